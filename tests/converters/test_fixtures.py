"""Real exports of other tools: each converts to the layers it should, and gives its framework's own answers.

The files are made by tests/data/generate.py; ``expected.json`` beside them lists what each layer with weights must
become.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from tac_engine.converters import ConversionReport
from tac_engine.converters.verify import verify

import tac_engine

Array = npt.NDArray[Any]
DATA = Path(__file__).parents[1] / "data"
EXPECTED = {
    f"{file.parent.name}/{name}": layers
    for file in sorted(DATA.glob("*/expected.json"))
    for name, layers in json.loads(file.read_text()).items()
}
# Float sums in another order than the framework's; up to 8e-7 was seen. Inputs are such that no sum comes that close to
# a threshold, so a sign that flips fails the test.
TOLERANCE = 2e-6


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Converting and verifying need onnx and numpy, and none of the tools that made the files."""
    for module in ("onnxruntime", "torch", "tensorflow", "tf2onnx", "larq", "brevitas", "qonnx"):
        monkeypatch.setitem(sys.modules, module, None)


def layers_of(report: ConversionReport) -> list[str]:
    """Kind and bits of every layer with weights, in order."""
    return [f"{row.kind}: {row.bits}" for row in report.layers if row.kind.endswith(("conv", "linear"))]


def test_every_file_has_an_expectation() -> None:
    files = {f"{file.parent.name}/{file.stem}" for file in DATA.glob("*/*.onnx")}
    assert files == {*EXPECTED, "broken/dropped_sign"}


def recorded(source: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inputs and the framework's outputs, by the names that the file gives them."""
    graph = onnx.load(source, load_external_data=False).graph
    initializers = {item.name for item in graph.initializer}
    inputs = [item.name for item in graph.input if item.name not in initializers]
    with np.load(source.with_suffix(".npz")) as arrays:
        return (
            {name: arrays[f"input.{index}"] for index, name in enumerate(inputs)},
            {item.name: arrays[f"output.{index}"] for index, item in enumerate(graph.output)},
        )


@pytest.mark.parametrize("name", EXPECTED)
def test_export_converts_and_matches_its_framework(name: str, tmp_path: Path) -> None:
    source, target = DATA / f"{name}.onnx", tmp_path / "model.tacbin"
    report = tac_engine.convert(source, target)
    assert layers_of(report) == EXPECTED[name]

    x, expected = recorded(source)
    for backend in tac_engine.backends()["runnable"]:
        result = tac_engine.load(target, backend=backend).run(x)
        for tensor, value in expected.items():
            limit = TOLERANCE * float(np.max(np.abs(value)))
            np.testing.assert_allclose(result[tensor], value, rtol=0, atol=limit, err_msg=backend)

    checked = verify(source, target, x)
    assert checked.ok, str(checked)
    assert checked.rounding_flips == 0, str(checked)


def test_a_sign_that_the_exporter_dropped_is_hinted_at(tmp_path: Path) -> None:
    """The file is not what was trained, and nothing but the hint can tell: it converts and equals itself."""
    source, target = DATA / "broken" / "dropped_sign.onnx", tmp_path / "model.tacbin"
    report = tac_engine.convert(source, target)
    assert layers_of(report) == ["float conv: 32 x 32", "float conv: 1 x 32"]
    layer = report.layers[-1]
    assert "the weights are +-1: if the activations should be too, the exporter dropped their sign" in layer.reason
    x, expected = recorded(source)
    assert verify(source, target, x).ok
    error = np.max(np.abs(tac_engine.load(target).run(x)["y"] - expected["y"]))
    assert error > 0.1 * np.max(np.abs(expected["y"]))
