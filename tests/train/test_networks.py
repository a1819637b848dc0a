"""Every network in every variant: the layers that it is made of, and what the converter makes of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tac_engine.converters.verify import verify

import tac_engine
from tac_engine.errors import InvalidInputError
from tac_engine.train.recipe import ARCHITECTURES, Recipe

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from tac_engine import train
from tac_engine.train import untrained
from tac_engine.train.networks import build_network

# Convolutions and FC layers that are not float, in "tac" (codebooks) and "binary".
LAYERS = {
    ("vgg9a", "tac"): {"float conv": 1, "binary conv": 5, "codebook linear": 3},
    ("vgg9a", "binary"): {"float conv": 1, "binary conv": 5, "binary linear": 3},
    ("vgg9b", "tac"): {"float conv": 1, "binary conv": 5, "codebook linear": 3},
    ("vgg9b", "binary"): {"float conv": 1, "binary conv": 5, "binary linear": 3},
    ("vgg_small", "tac"): {"float conv": 1, "binary conv": 5, "codebook linear": 1},
    ("vgg_small", "binary"): {"float conv": 1, "binary conv": 5, "binary linear": 1},
    ("alexnet", "tac"): {"float conv": 1, "binary conv": 4, "codebook linear": 3},
    ("alexnet", "binary"): {"float conv": 1, "binary conv": 4, "binary linear": 2, "float linear": 1},
    ("birealnet18", "tac"): {"float conv": 4, "binary conv": 16, "codebook linear": 1},
    ("birealnet18", "binary"): {"float conv": 4, "binary conv": 16, "float linear": 1},
}
PARAMETERS = {
    # Weights of convolutions and FC layers, the last bias, two of BatchNormalization for each filter and unit.
    "vgg9a": 9 * (3 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512)
    + (8192 * 1024 + 1024 * 1024 + 1024 * 10 + 10)
    + 2 * (2 * 128 + 2 * 256 + 2 * 512 + 2 * 1024),
    "vgg9b": 9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 256 * 256)
    + (4096 * 512 + 512 * 512 + 512 * 10 + 10)
    + 2 * (2 * 64 + 2 * 128 + 2 * 256 + 2 * 512),
    "vgg_small": 9 * (3 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512)
    + (8192 * 10 + 10)
    + 2 * (2 * 128 + 2 * 256 + 2 * 512),
}


def shape_of(arch: str) -> tuple[int, int, int]:
    # The smallest image that alexnet takes, so that its FC layers are small.
    return (3, 63, 63) if arch == "alexnet" else (3, 32, 32)


@pytest.mark.parametrize(("arch", "count"), sorted(PARAMETERS.items()))
def test_number_of_parameters(arch: str, count: int) -> None:
    network = build_network(Recipe(arch), (3, 32, 32), 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_alexnet_has_the_shapes_of_imagenet() -> None:
    network = build_network(Recipe("alexnet", width=0.125), (3, 224, 224), 1000)
    shapes = [tuple(layer.weight.shape) for layer in train.linears(network)]
    assert shapes == [(512, 32 * 6 * 6), (512, 512), (1000, 512)]


@pytest.mark.parametrize(("arch", "variant"), sorted(LAYERS))
def test_layers_keep_their_bits(arch: str, variant: str, tmp_path: Path) -> None:
    torch.manual_seed(40)
    shape = shape_of(arch)
    network = build_network(Recipe(arch, variant, width=0.125), shape, 10)
    for _ in range(3):
        network(torch.randn(8, *shape))
    if variant == "tac":
        train.prune_linears(network.classifier, 0.75)
        train.compress_linears(network.classifier)
    train.export_onnx(network, tmp_path / "net.onnx", shape, exporter="legacy")
    report = tac_engine.convert(tmp_path / "net.onnx", tmp_path / "net.tacbin")
    kinds = Counter(layer.kind for layer in report.layers)
    assert {kind: count for kind, count in kinds.items() if kind.endswith((" conv", " linear"))} == LAYERS[
        arch, variant
    ]
    found = verify(tmp_path / "net.onnx", tmp_path / "net.tacbin", samples=4)
    (output,) = found.outputs
    assert output.top1_agree == output.top1_total, str(found)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_parameter_gets_a_gradient(arch: str) -> None:
    torch.manual_seed(41)
    for variant in ("tac", "binary", "float"):
        network = build_network(Recipe(arch, variant, width=0.125), shape_of(arch), 10)
        network(torch.randn(4, *shape_of(arch))).square().sum().backward()
        missing = [
            name for name, value in network.named_parameters() if value.grad is None or not bool(value.grad.any())
        ]
        assert missing == [], variant


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_images_that_are_too_small_are_refused(arch: str) -> None:
    size = {"alexnet": 32, "birealnet18": 28}.get(arch, 7)
    with pytest.raises(InvalidInputError, match=f"{arch} does not take images of {size} x {size}"):
        build_network(Recipe(arch, width=0.1), (3, size, size), 10)


def test_the_seed_makes_the_network() -> None:
    def weights(seed: int) -> Any:
        torch.manual_seed(seed)
        return build_network(Recipe("vgg9b", width=0.1), (3, 32, 32), 10).features[0].weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_an_untrained_network_is_compressed_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--width", "0.125", "--image-size", "64", "--classes", "20", "--seconds", "0.01", "--exporter", "legacy"]
    assert untrained.main(["alexnet", str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count("codebook linear") == 3
    assert printed.count("75% zeros") == 3
    assert "top-1 agrees in 4 of 4" in printed
    assert "file to first answer" in printed
    assert tac_engine.load(tmp_path / "model.tacbin").outputs[0].shape[1:] == (20,)


def test_an_untrained_network_of_a_bad_shape_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert untrained.main(["alexnet", str(tmp_path), "--image-size", "20"]) == 2
    assert "alexnet does not take images of 20 x 20" in capsys.readouterr().err
