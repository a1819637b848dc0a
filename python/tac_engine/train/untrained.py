"""A network with random weights, compressed, converted and timed: `python -m tac_engine.train.untrained alexnet OUT`.

What a network takes, in bytes and milliseconds, before anybody has trained it, at the shape of ImageNet for instance.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import tac_engine

from ..cli import EXIT_DIFFERS, EXIT_ERROR, number, positive
from ..converters.verify import verify
from ..errors import TacError
from .compression import compress_linears, prune_linears
from .export import EXPORTERS, export_onnx
from .networks import Network, build_network
from .recipe import ARCHITECTURES, VARIANTS, Recipe

_SETTLING_IMAGES = 8


def untrained_network(recipe: Recipe, input_shape: Sequence[int], classes: int) -> Network:
    """Return the network of `recipe` at the end of its stages, but for the training.

    BatchNormalization has the statistics of normally distributed images, so that signs are as mixed as in a network
    that was trained.
    """
    torch.manual_seed(recipe.seed)
    network = build_network(recipe, input_shape, classes)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(_SETTLING_IMAGES, *input_shape))
    for stage in recipe.stages():
        if stage.prune is not None:
            prune_linears(network.classifier, stage.prune)
        if stage.share:
            compress_linears(network.classifier, recipe.centroids)
    return network.eval()


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files, print the report and the times, return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arch", choices=ARCHITECTURES)
    parser.add_argument("out", type=Path, help="folder for model.onnx and model.tacbin, made if missing")
    parser.add_argument("--variant", choices=VARIANTS, default="tac", help="(default tac)")
    parser.add_argument("--width", type=number, default=1.0, help="factor of filters and FC units (default 1)")
    parser.add_argument("--image-size", type=positive, default=224, help="side of the pictures (default 224)")
    parser.add_argument("--classes", type=positive, default=1000, help="(default 1000)")
    parser.add_argument("--seed", type=int, default=1, help="of the weights (default 1)")
    parser.add_argument("--seconds", type=number, default=1.0, help="time for each measurement (default 1)")
    parser.add_argument("--exporter", choices=EXPORTERS, default="dynamo", help="PyTorch's (default dynamo)")
    args = parser.parse_args(argv)
    shape = (3, args.image_size, args.image_size)
    try:
        recipe = Recipe(args.arch, args.variant, width=args.width, seed=args.seed)
        args.out.mkdir(parents=True, exist_ok=True)
        source, target = args.out / "model.onnx", args.out / "model.tacbin"
        export_onnx(untrained_network(recipe, shape, args.classes), source, shape, exporter=args.exporter)
        print(tac_engine.convert(source, target), "\n")
        verification = verify(source, target, samples=4)
        print(verification, "\n")
        # In a process of its own, whose memory is the engine's.
        command = [sys.executable, "-m", "tac_engine", "bench", str(target), "--seconds", str(args.seconds)]
        print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout, end="")
    except (TacError, ImportError, OSError, subprocess.CalledProcessError) as error:
        print(f"tac-engine: error: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0 if verification.ok else EXIT_DIFFERS


if __name__ == "__main__":
    sys.exit(main())
