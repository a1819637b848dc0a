"""``tac-engine train``: from the arguments of the command line to a trained, converted and checked network."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from ..errors import InvalidInputError
from .card import finish
from .data import load_data
from .recipe import Recipe
from .trainer import Trainer


def run(
    args: argparse.Namespace, progress: Callable[[str, float], None] | None, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Train what `args` asks for and return the model card, or None when time is up first.

    Raises:
        InvalidInputError: an argument or the data do not fit.
        FormatError: a file of the data or the checkpoint is broken.
    """
    device = _device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    options = {field.name: getattr(args, field.name) for field in fields(Recipe)}
    options["prune_rates"] = tuple(args.prune_rates)
    if args.precision is None:
        low = device.type == "cuda" and torch.cuda.is_bf16_supported()
        options["precision"] = "bfloat16" if low else "float32"
    recipe = Recipe(**options)
    data = load_data(args.data, image_size=recipe.image_size, train_images=recipe.train_images)
    trainer = Trainer(
        recipe,
        data,
        args.out,
        device=device,
        checkpoint_seconds=args.checkpoint_seconds,
        slim=args.slim_checkpoints,
        compiled=args.compile,
        test_every=args.test_every,
        say=say,
        progress=progress,
    )
    if not trainer.run(args.stop_after):
        return None
    if progress is not None:
        progress("exporting, converting, verifying", 1.0)
    command = shlex.join(["tac-engine", *sys.argv[1:]])
    return finish(trainer, exporter=args.exporter, verify_images=args.verify_images, command=command)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInputError(f"device '{name}': {str(error).splitlines()[0]}") from None
    return device
