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
    # The shipped network, with its latent weights replaced by those of 1 bit.
    source = onnx.load(Path(__file__).parents[2] / "models" / "vgg9b_tac.onnx")
    for tensor in source.graph.initializer:
        w = numpy_helper.to_array(tensor)
        if w.ndim == 4 and w.shape[1] > 3:
            centred = w - w.mean((1, 2, 3), keepdims=True)
            signs = np.where(centred < 0, -1, 1) * np.abs(centred).mean((1, 2, 3), keepdims=True)
            tensor.CopyFrom(numpy_helper.from_array(signs.astype(np.float32), tensor.name))
    packed = compact_onnx(source)
    paths = [tmp_path / "whole.onnx", tmp_path / "packed.onnx"]
    onnx.save(source, paths[0])
    onnx.save(packed, paths[1])
    assert paths[1].stat().st_size * 8 < paths[0].stat().st_size
    x = floats(4, 3, 32, 32)
    outputs = []
    for path in paths:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"input": x})[0])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    rows = [tac_engine.convert(path, path.with_suffix(".tacbin")).layers for path in paths]
    assert rows[0] == rows[1]
    engines = [tac_engine.load(path.with_suffix(".tacbin")) for path in paths]
    np.testing.assert_array_equal(engines[0].run(x), engines[1].run(x))
