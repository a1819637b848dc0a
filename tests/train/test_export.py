"""Every module through PyTorch's exporters and the converter: the layer that comes out has the bits it was made for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tac_engine.converters.verify import verify

import tac_engine
from tac_engine.errors import InvalidInputError

torch = pytest.importorskip("torch", reason="needs the extra [train]")
nn = torch.nn

from tac_engine import train

EXPORTERS = [
    "legacy",
    pytest.param(
        "dynamo",
        marks=pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed"),
    ),
]


def settle(model: Any, shape: tuple[int, ...]) -> Any:
    """Give the network statistics and a spread of parameters, as if trained."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, -1.0, 1.0)
            nn.init.normal_(module.bias, std=0.2)
    for _ in range(30):
        model(torch.randn(16, *shape))
    return model.eval()


def convolutions(conv: Callable[..., Any], activation: Callable[[], Any]) -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        activation(),
        conv(16, 24, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(24),
        activation(),
        conv(24, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24),
        activation(),
        conv(24, 8, 3, padding=1),
        nn.Flatten(),
    )


def fully_connected(linear: Callable[..., Any], activation: Callable[[], Any]) -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        activation(),
        nn.Flatten(),
        linear(512, 40, bias=False),
        nn.BatchNorm1d(40),
        activation(),
        linear(40, 10),
    )


def exported(model: Any, exporter: str, tmp_path: Path) -> Any:
    torch.manual_seed(8)
    shape = (3, 8, 8)
    settle(model, shape)
    source, target = tmp_path / "model.onnx", tmp_path / "model.tacbin"
    train.export_onnx(model, source, shape, exporter=exporter)
    report = tac_engine.convert(source, target)
    x = np.random.default_rng(9).normal(size=(8, *shape)).astype(np.float32)
    found = verify(source, target, data=x)
    assert found.ok, str(found)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    y = tac_engine.load(target).run(x)
    np.testing.assert_array_equal(y.argmax(1), expected.argmax(1))
    return report


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("conv", "activation", "kind", "bits"),
    [
        (train.BinaryConv2d, train.SignActivation, "binary conv", "1 x 1"),
        (train.TernaryConv2d, train.SignActivation, "ternary conv", "ternary x 1"),
        (train.BinaryConv2d, train.HwgqActivation, "1-bit x 2-bit conv", "1 x 2"),
    ],
)
def test_convolutions_keep_their_bits(
    conv: Callable[..., Any], activation: Callable[[], Any], kind: str, bits: str, exporter: str, tmp_path: Path
) -> None:
    report = exported(convolutions(conv, activation), exporter, tmp_path)
    assert [(layer.kind, layer.bits) for layer in report.layers].count((kind, bits)) == 3, str(report)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("linear", "kind", "bits"),
    [(train.BinaryLinear, "binary linear", "1 x 1"), (train.TernaryLinear, "ternary linear", "ternary x 1")],
)
def test_linear_layers_keep_their_bits(
    linear: Callable[..., Any], kind: str, bits: str, exporter: str, tmp_path: Path
) -> None:
    report = exported(fully_connected(linear, train.SignActivation), exporter, tmp_path)
    assert [(layer.kind, layer.bits) for layer in report.layers].count((kind, bits)) == 2, str(report)


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(("bias", "centroids"), [(False, 15), (True, 16)])
def test_codebooks_survive_the_exporters(bias: bool, centroids: int, exporter: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 48, bias=bias), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
    train.prune_linears(model, 0.75)
    train.compress_linears(model, centroids)
    report = exported(model, exporter, tmp_path)
    assert [layer.kind for layer in report.layers].count("codebook linear") == 2, str(report)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_file_has_a_free_batch_and_no_paths_of_this_machine(exporter: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    train.export_onnx(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), path, (3, 2, 2), exporter=exporter)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (batch, *rest) = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param
    assert [dim.dim_value for dim in rest] == [3, 2, 2]
    assert [model.graph.input[0].name, model.graph.output[0].name] == ["input", "logits"]
    assert b".py" not in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_export_leaves_the_model_alone(tmp_path: Path) -> None:
    model = nn.Sequential(train.BinaryConv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train.export_onnx(model, tmp_path / "model.onnx", (3, 5, 5), exporter="legacy")
    assert model.training
    assert isinstance(model[0], train.BinaryConv2d)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_exporters_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no exporter 'script'; there are dynamo, legacy"):
        train.export_onnx(nn.Flatten(), tmp_path / "model.onnx", (3,), exporter="script")
