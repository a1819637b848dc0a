"""Compact ONNX files: the same values to the bit, from fewer bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_models import floats, parse
from tac_engine.converters.compact import compact_onnx
from tac_engine.converters.evaluate import ReferenceModel

import tac_engine

RNG = np.random.default_rng(60)


def few_valued(count: int, *shape: int) -> Any:
    return RNG.choice(RNG.normal(size=count).astype(np.float32), shape)


WEIGHTS = {
    "signs, a scale for each row": np.where(floats(40, 37, seed=1) < 0, -1, 1) * np.abs(floats(40, 1, seed=2)),
    "signs, a scale for each column": np.where(floats(41, 33, seed=1) < 0, -1, 1) * np.abs(floats(1, 33, seed=2)),
    "15 values and zero": np.where(floats(40, 37) < 0, 0, few_valued(15, 40, 37)),
    "16 values and zero": np.where(floats(40, 37) < 0, 0, few_valued(16, 40, 37)),
    "256 values": few_valued(256, 40, 37),
    "one value": np.full((40, 37), 0.3),
    "minus zero": np.where(floats(40, 37) < 0, -0.0, 0.0),
}
# Bits of a weight.
BITS = dict(zip(WEIGHTS, (1, 1, 4, 8, 8, 1, 4), strict=True))


def network(weight: Any) -> onnx.ModelProto:
    rows, columns = weight.shape
    constants = {"w": weight.astype(np.float32), "b": floats(columns)}
    inputs, outputs = f"float[N, {rows}] x", f"float[N, {columns}] y"
    return parse("m = MatMul(x, w) y = Add(m, b)", inputs=inputs, outputs=outputs, constants=constants)


@pytest.mark.parametrize("name", WEIGHTS)
def test_values_are_the_same_and_take_their_bits(name: str) -> None:
    model = network(WEIGHTS[name])
    packed = compact_onnx(model)
    onnx.checker.check_model(packed, full_check=True)
    (w,) = (t for t in model.graph.initializer if t.name == "w")
    # What gives w, as an output of its own.
    probe = onnx.ModelProto()
    probe.CopyFrom(packed)
    probe.graph.output.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, w.dims))
    x = floats(3, w.dims[0])
    found = onnx.reference.ReferenceEvaluator(probe).run(["w", "y"], {"x": x})
    np.testing.assert_array_equal(found[0], numpy_helper.to_array(w))
    np.testing.assert_array_equal(ReferenceModel(packed).run({"x": x})["y"], ReferenceModel(model).run({"x": x})["y"])
    assert packed.ByteSize() - model.ByteSize() <= np.prod(w.dims) * (BITS[name] - 32) / 8 + 4096


@pytest.mark.parametrize(
    "weight",
    [np.arange(60 * 37).reshape(60, 37) % 257, np.full((31, 33), 0.5), np.where(floats(40, 37) < 0, np.nan, 1)],
)
def test_what_would_not_shrink_stays(weight: Any) -> None:
    model = network(weight)
    assert compact_onnx(model) == model


def test_onnx_runtime_and_the_converter_read_it(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    signs = np.where(floats(128, 32, 3, 3) < 0, -1, 1) * np.abs(floats(128, 1, 1, 1))
    codebook = np.where(floats(8192, 20) < 0, 0, few_valued(15, 8192, 20))
    source = parse(
        "c = Conv <pads = [1, 1, 1, 1]> (input, stem) a = Sign(c) d = Conv <pads = [1, 1, 1, 1]> (a, w) "
        "f = Flatten(d) logits = MatMul(f, fc)",
        inputs="float[N, 3, 8, 8] input",
        outputs="float[N, 20] logits",
        constants={
            name: w.astype(np.float32) for name, w in {"stem": floats(32, 3, 3, 3), "w": signs, "fc": codebook}.items()
        },
    )
    packed = compact_onnx(source)
    paths = [tmp_path / "whole.onnx", tmp_path / "packed.onnx"]
    onnx.save(source, paths[0])
    onnx.save(packed, paths[1])
    assert paths[1].stat().st_size * 8 < paths[0].stat().st_size
    x = floats(4, 3, 8, 8)
    outputs = []
    for path in paths:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"input": x})[0])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    rows = [tac_engine.convert(path, path.with_suffix(".tacbin")).layers for path in paths]
    assert rows[0] == rows[1]
    engines = [tac_engine.load(path.with_suffix(".tacbin")) for path in paths]
    np.testing.assert_array_equal(engines[0].run(x), engines[1].run(x))
