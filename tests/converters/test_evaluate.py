"""The reference evaluator: every operator with a meaning of our own against definitions, hand-made values or onnx."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_models import floats, parse
from tac_engine.converters.evaluate import ReferenceModel, evaluate_node
from tac_engine.converters.graph import Array, Batch, Node

from tac_engine.errors import InvalidInputError, UnsupportedModelError


def qonnx(op: str, inputs: list[Array | None], **attrs: Any) -> Array:
    names = [f"i{index}" for index in range(len(inputs))]
    return evaluate_node(Node(op, "n", names, ["y"], attrs, "qonnx"), inputs)[0]


def f32(*values: float) -> Array:
    return np.array(values, np.float32)


def test_bipolar_quant_maps_both_zeros_to_plus() -> None:
    y = qonnx("BipolarQuant", [f32(-2, -0.0, 0.0, 1e-30, np.nan), f32(0.5)])
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, f32(-0.5, 0.5, 0.5, 0.5, -0.5))


X = f32(-9, -1.5, -0.5, 0.4, 0.5, 1.5, 2.5, 9)


@pytest.mark.parametrize(
    ("signed", "narrow", "mode", "expected"),
    [
        (1, 0, "ROUND", (-4, -2, 0, 0, 0, 2, 2, 3)),
        (1, 1, "ROUND", (-3, -2, 0, 0, 0, 2, 2, 3)),
        (0, 0, "ROUND", (0, 0, 0, 0, 0, 2, 2, 7)),
        (0, 1, "ROUND", (0, 0, 0, 0, 0, 2, 2, 6)),
        (1, 0, "FLOOR", (-4, -2, -1, 0, 0, 1, 2, 3)),
        (1, 0, "CEIL", (-4, -1, 0, 1, 1, 2, 3, 3)),
        (1, 0, "ROUND_TO_ZERO", (-4, -1, 0, 0, 0, 1, 2, 3)),
        (1, 0, "UP", (-4, -2, -1, 1, 1, 2, 3, 3)),
        (1, 0, "HALF_UP", (-4, -2, -1, 0, 1, 2, 3, 3)),
        (1, 0, "HALF_DOWN", (-4, -1, 0, 0, 0, 1, 2, 3)),
    ],
)
def test_quant_ranges_and_rounding(signed: int, narrow: int, mode: str, expected: tuple[int, ...]) -> None:
    y = qonnx("Quant", [X, f32(1), f32(0), f32(3)], signed=signed, narrow=narrow, rounding_mode=mode)
    np.testing.assert_array_equal(y, f32(*expected))


def test_quant_scale_per_channel_and_zero_point() -> None:
    x = np.array([[1.0, 1.0], [-3.0, 9.0]], np.float32)
    scale, zero_point = np.array([[0.5], [2.0]], np.float32), f32(1)
    y = qonnx("Quant", [x, scale, zero_point, f32(4)], signed=0, narrow=0, rounding_mode="ROUND")
    # Row 0: 1 / 0.5 + 1 = 3 -> 1. Row 1: -1.5 + 1 -> clamped to 0 -> -2; 4.5 + 1 = 5.5 -> 6 -> 10.
    np.testing.assert_array_equal(y, np.array([[1, 1], [-2, 10]], np.float32))


def test_quant_of_one_signed_bit_is_bipolar() -> None:
    y = qonnx("Quant", [f32(-0.1, 0.0, 3), f32(2), f32(0), f32(1)], signed=1, narrow=0, rounding_mode="ROUND")
    np.testing.assert_array_equal(y, f32(-2, 2, 2))


def test_quant_takes_integer_parameters_without_leaving_float32() -> None:
    y = qonnx("Quant", [X, f32(1), np.array(0), np.array(3)], signed=1, narrow=0, rounding_mode="ROUND")
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, f32(-4, -2, 0, 0, 0, 2, 2, 3))


def test_trunc_drops_low_bits() -> None:
    x = f32(0, 1, 6, 7, -5)
    attrs = {"rounding_mode": "FLOOR", "signed": 1, "narrow": 0}
    version1 = qonnx("Trunc", [x, f32(1), f32(0), f32(4), f32(2)], version=1, **attrs)
    np.testing.assert_array_equal(version1, f32(0, 0, 1, 1, -2))
    version2 = qonnx("Trunc", [x, f32(1), f32(0), f32(4), f32(4), f32(2)], version=2, **attrs)
    np.testing.assert_array_equal(version2, f32(0, 0, 4, 4, -8))


def test_multi_threshold_counts_per_channel() -> None:
    x = np.array([[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]], np.float32)
    thresholds = np.array([[0.0, 2.0], [1.0, 5.0]], np.float32)
    y = qonnx("MultiThreshold", [x, thresholds], out_scale=2.0, out_bias=-1.0, data_layout="NCHW")
    np.testing.assert_array_equal(y, np.array([[[1, 1, 3], [-1, 1, 1]]], np.float32))


def test_quantize_linear_rounds_half_to_even_and_saturates() -> None:
    x = f32(0.5, 1.5, 2.5, -0.5, 200, -200, 1e20, -1e20)
    node = Node("QuantizeLinear", "n", ["x", "s", "z"], ["y"], {"axis": 0})
    (y,) = evaluate_node(node, [x, f32(1).reshape(()), np.array(0, np.int8)])
    assert y.dtype == np.int8
    np.testing.assert_array_equal(y, np.array([0, 2, 2, 0, 127, -128, 127, -128], np.int8))


def test_batch_normalization_is_the_float32_formula() -> None:
    x, scale, bias, mean = floats(2, 3, 4, 4), floats(3, seed=1), floats(3, seed=2), floats(3, seed=3)
    variance = np.abs(floats(3, seed=4))
    node = Node("BatchNormalization", "n", list("xsbmv"), ["y"], {"epsilon": 1e-5})
    (y,) = evaluate_node(node, [x, scale, bias, mean, variance])
    s, b, m, v = (value.reshape(3, 1, 1) for value in (scale, bias, mean, variance))
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, s * (x - m) / np.sqrt(v + np.float32(1e-5)) + b)


WINDOW_CASES = [
    ("Conv <kernel_shape=[3,3], pads=[1,1,1,1]>", (4, 3, 3, 3)),
    ("Conv <kernel_shape=[3,3], pads=[0,1,2,0], strides=[2,1]>", (4, 3, 3, 3)),
    ("Conv <kernel_shape=[3,3], dilations=[2,1], group=3>", (6, 1, 3, 3)),
    ('Conv <auto_pad="SAME_UPPER", strides=[2,2]>', (2, 3, 2, 3)),
    ('Conv <auto_pad="SAME_LOWER", strides=[3,2]>', (2, 3, 2, 2)),
    ('Conv <auto_pad="VALID">', (2, 3, 1, 1)),
    ("MaxPool <kernel_shape=[2,2], strides=[2,2]>", None),
    ("MaxPool <kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,1]>", None),
    ("MaxPool <kernel_shape=[2,2], dilations=[2,2]>", None),
    ("AveragePool <kernel_shape=[2,2], strides=[2,2]>", None),
    ("AveragePool <kernel_shape=[3,3], pads=[1,1,1,1]>", None),
    ("AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>", None),
    ('AveragePool <kernel_shape=[3,3], auto_pad="SAME_UPPER", strides=[2,2]>', None),
]


@pytest.mark.parametrize(("call", "weights"), WINDOW_CASES)
def test_windowed_ops_equal_onnx_reference(call: str, weights: tuple[int, ...] | None) -> None:
    op, attrs = call.split(" ", 1)
    constants = {} if weights is None else {"w": floats(*weights, seed=1), "b": floats(weights[0], seed=2)}
    arguments = "x" if weights is None else "x, w, b"
    model = parse(
        f"y = {op} {attrs} ({arguments})",
        inputs="float[N, 3, 7, 8] x",
        outputs="float[A, B, C, D] y",
        constants=constants,
    )
    x = floats(2, 3, 7, 8)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    found = ReferenceModel(model).run({"x": x})["y"]
    assert found.dtype == np.float32
    # Sums of at most 27 float32 products of size about 1.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_max_pool_ceil_mode_drops_windows_that_start_in_the_end_padding() -> None:
    x = np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5)
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0], "dilations": [1, 1], "ceil_mode": 1}
    (y,) = evaluate_node(Node("MaxPool", "n", ["x"], ["y"], attrs), [x])
    np.testing.assert_array_equal(y[0, 0], [[6, 8, 9], [16, 18, 19], [21, 23, 24]])
    attrs = {**attrs, "pads": [0, 0, 1, 1]}
    (y,) = evaluate_node(Node("MaxPool", "n", ["x"], ["y"], attrs), [x])
    assert y.shape == (1, 1, 3, 3)


def test_average_pool_ceil_mode_never_counts_what_it_adds() -> None:
    x = np.ones((1, 1, 5, 5), np.float32)
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0], "dilations": [1, 1]}
    attrs |= {"ceil_mode": 1, "count_include_pad": 1}
    (y,) = evaluate_node(Node("AveragePool", "n", ["x"], ["y"], attrs), [x])
    np.testing.assert_array_equal(y, np.ones((1, 1, 3, 3), np.float32))


def test_resolved_reshape_takes_any_batch() -> None:
    node = Node("Reshape", "n", ["x"], ["y"], {"shape": (Batch(), 6)})
    assert evaluate_node(node, [floats(5, 2, 3)])[0].shape == (5, 6)


def test_pad_with_negative_pads_crops() -> None:
    node = Node("Pad", "n", ["x", ""], ["y"], {"pads": [0, -1, 0, 2], "mode": "constant"})
    (y,) = evaluate_node(node, [f32(1, 2, 3).reshape(1, 3), None])
    np.testing.assert_array_equal(y, f32(2, 3, 0, 0).reshape(1, 4))


def test_old_softmax_runs_over_all_later_axes() -> None:
    model = parse("y = Softmax <axis=1> (x)", inputs="float[N, 2, 3] x", outputs="float[N, 2, 3] y", opset=11)
    y = ReferenceModel(model).run({"x": floats(4, 2, 3)})["y"]
    np.testing.assert_allclose(y.sum(axis=(1, 2)), np.ones(4), rtol=1e-6)


OLD_FORMS = [
    (9, "y = Clip <min=-0.5, max=0.5> (x)", lambda x: np.clip(x, -0.5, 0.5)),
    (9, "y = Unsqueeze <axes=[1]> (x)", lambda x: x[:, None]),
    (9, "a = Unsqueeze <axes=[1]> (x) y = Squeeze <axes=[1]> (a)", lambda x: x),
    (9, "y = Pad <pads=[0,1,0,0], value=2.0> (x)", lambda x: np.pad(x, [(0, 0), (1, 0)], constant_values=2)),
    (9, "y = Slice <axes=[1], starts=[1], ends=[3]> (x)", lambda x: x[:, 1:3]),
    (9, "y = ReduceSum <axes=[1], keepdims=0> (x)", lambda x: x.sum(axis=1)),
    (9, "y, m = Dropout <ratio=0.5> (x)", lambda x: x),
    (9, "y = Sum (x, x, x)", lambda x: x + x + x),
    (13, "y = Mean (x, x)", lambda x: x),
]


@pytest.mark.parametrize(("opset", "body", "expected"), OLD_FORMS)
def test_old_opset_forms(opset: int, body: str, expected: Any) -> None:
    model = parse(body, opset=opset)
    x = floats(3, 4)
    np.testing.assert_array_equal(ReferenceModel(model).run({"x": x})["y"], expected(x))


def test_samples_run_in_blocks_and_report_progress() -> None:
    model = parse("y = MatMul (x, w)", constants={"w": floats(4, 2, seed=1)})
    x, seen = floats(10, 4), []
    y = ReferenceModel(model).run({"x": x}, batch_size=4, progress=lambda done, total: seen.append((done, total)))["y"]
    assert seen == [(4, 10), (8, 10), (10, 10)]
    np.testing.assert_allclose(y, x @ floats(4, 2, seed=1), rtol=1e-5, atol=1e-6)


def test_fixed_batch_is_respected_and_the_last_block_filled_up() -> None:
    model = parse("s = Shape (x) y = Expand (x, s)", inputs="float[2, 4] x", outputs="float[2, 4] y")
    x = floats(5, 4)
    reference = ReferenceModel(model)
    assert reference.fixed_batch == 2
    np.testing.assert_array_equal(reference.run({"x": x})["y"], x)


def test_intermediates_hold_every_tensor_of_the_data_path() -> None:
    model = parse("a = Relu (x) b = Neg (a) y = Abs (b)")
    values = ReferenceModel(model).run({"x": floats(3, 4)}, intermediates=True)
    assert set(values) == {"x", "a", "b", "y"}
    np.testing.assert_array_equal(values["b"], -values["a"])


def test_constant_subgraphs_are_computed_once() -> None:
    model = parse("a = Sign (w) b = Transpose (a) y = MatMul (x, b)", constants={"w": floats(2, 4)})
    assert [node.op for node in ReferenceModel(model).nodes] == ["MatMul"]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"z": floats(1, 4)}, r"inputs \['x'\] are expected, found \['z'\]"),
        ({"x": floats(1, 5)}, r"shape \['N', 4\] is expected, found \[1, 5\]"),
        ({"x": np.zeros((1, 4))}, "dtype float32 is expected, found float64"),
        ({"x": floats(0, 4)}, "at least 1"),
    ],
)
def test_wrong_feeds_are_named(feeds: dict[str, Array], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ReferenceModel(parse("y = Relu (x)")).run(feeds)


def test_failing_node_is_named() -> None:
    model = parse("y = MatMul (x, w)", constants={"w": floats(3, 2)})
    with pytest.raises(UnsupportedModelError, match=r"MatMul.*float32\[1, 4\], float32\[3, 2\]"):
        ReferenceModel(model).run({"x": floats(1, 4)})


def test_tfc_1w2a_on_mnist() -> None:
    """TAC_TFC_ONNX: TFC_1W2A.onnx of the QONNX model zoo; TAC_MNIST: folder with mnist_t10k-*-ubyte.gz."""
    model, folder = os.environ.get("TAC_TFC_ONNX"), os.environ.get("TAC_MNIST")
    if not model or not folder:
        pytest.skip("TAC_TFC_ONNX and TAC_MNIST are not set")
    images = np.frombuffer(gzip.decompress(Path(folder, "mnist_t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8)
    labels = np.frombuffer(gzip.decompress(Path(folder, "mnist_t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8)
    x = images[16:].reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255)
    logits = ReferenceModel(model).run({onnx.load(model).graph.input[0].name: x})["82"]
    # Equal to qonnx's own executor on the same images; the logits have ties, of which argmax takes the first.
    assert int((logits.argmax(axis=1) == labels[8:]).sum()) == 9474
