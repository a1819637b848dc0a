"""Real exports of other tools: each converts to the layers it should, and gives its framework's own answers.

The files are made by tests/data/generate.py; ``expected.json`` beside them lists what each layer with weights must
become.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from tac_engine.converters import ConversionReport
from tac_engine.converters.verify import verify

import tac_engine

DATA = Path(__file__).parents[1] / "data"
EXPECTED = {
    f"{file.parent.name}/{name}": layers
    for file in sorted(DATA.glob("*/expected.json"))
    for name, layers in json.loads(file.read_text()).items()
}
# Float sums in another order than the framework's. Inputs are such that no sum comes that close to a threshold, so a
# sign that flips fails the test.
TOLERANCE = 1e-4


def layers_of(report: ConversionReport) -> list[str]:
    """Kind and bits of every layer with weights, in order."""
    return [f"{row.kind}: {row.bits}" for row in report.layers if row.kind.endswith(("conv", "linear"))]


def test_every_file_has_an_expectation() -> None:
    files = {f"{file.parent.name}/{file.stem}" for file in DATA.glob("*/*.onnx")}
    assert files == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_export_converts_and_matches_its_framework(name: str, tmp_path: Path) -> None:
    source, target = DATA / f"{name}.onnx", tmp_path / "model.tacbin"
    report = tac_engine.convert(source, target)
    assert layers_of(report) == EXPECTED[name]

    graph = onnx.load(source, load_external_data=False).graph
    initializers = {item.name for item in graph.initializer}
    inputs = [item.name for item in graph.input if item.name not in initializers]
    with np.load(DATA / f"{name}.npz") as arrays:
        x = {tensor: arrays[f"input.{index}"] for index, tensor in enumerate(inputs)}
        expected = {item.name: arrays[f"output.{index}"] for index, item in enumerate(graph.output)}
    for backend in tac_engine.backends()["runnable"]:
        result = tac_engine.load(target, backend=backend).run(x)
        for tensor, value in expected.items():
            limit = TOLERANCE * float(np.max(np.abs(value)))
            np.testing.assert_allclose(result[tensor], value, rtol=0, atol=limit, err_msg=backend)

    checked = verify(source, target, x)
    assert checked.ok, str(checked)
    assert checked.rounding_flips == 0, str(checked)
