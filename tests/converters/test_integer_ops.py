"""Operators on integers: their definitions, and that they convert to the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from nets import Net, check, convert, kinds
from onnx import TensorProto, helper
from onnx_models import parse
from tac_engine.converters.evaluate import ReferenceModel, evaluate_node
from tac_engine.converters.graph import Array, Node

import tac_engine

MICROSOFT = "com.microsoft"


def evaluate(op: str, *inputs: Any, domain: str = "", **attrs: Any) -> Array:
    names = [f"i{index}" for index in range(len(inputs))]
    return evaluate_node(Node(op, "n", names, ["y"], attrs, domain), [np.asarray(value) for value in inputs])[0]


def f32(value: Any) -> Array:
    return np.asarray(value, np.float32)


def u8(value: Any) -> Array:
    return np.asarray(value, np.uint8)


def test_ties_are_rounded_to_even_before_the_zero_point_is_added() -> None:
    x = f32([0.5, 1.5, 2.5, -0.5])
    np.testing.assert_array_equal(evaluate("QuantizeLinear", x, f32(1), u8(1), axis=0), [1, 3, 3, 1])


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_sums_and_products_are_rounded_with_their_zero_point(op: str) -> None:
    one, other = f32(1), u8([0, 0]) if op == "QLinearAdd" else u8([1, 1])
    y = evaluate(op, u8([1, 3]), f32(0.5), u8(0), other, one, u8(0), one, u8(1), domain=MICROSOFT)
    np.testing.assert_array_equal(y, [2, 2])  # 0.5 + 1 and 1.5 + 1


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
def test_sums_and_products_with_many_ties(op: str, constant: bool, tmp_path: Path) -> None:
    net = Net(("N", 6, 5, 5), seed=4)
    scales = [net.constant(value) for value in (0.25, 0.1, 0.1 if op == "QLinearAdd" else 0.5)]
    zeros = [net.constant(value, np.uint8) for value in (120, 130, 121)]
    left = net.op("QuantizeLinear", "x", scales[0], zeros[0])
    right = net.constant(net.rng.integers(90, 170, (6, 1, 1)), np.uint8)
    if not constant:
        right = net.op("QuantizeLinear", net.op("Neg", "x"), scales[1], zeros[1])
    operands = (left, scales[0], zeros[0], right, scales[1], zeros[1], scales[2], zeros[2])
    codes = net.op(op, *operands, domain=MICROSOFT)
    model = net.model(net.op("DequantizeLinear", codes, scales[2], zeros[2]), (MICROSOFT,))
    x = np.random.default_rng(0).normal(size=(4, 6, 5, 5)).astype(np.float32) * 4
    check(model, tmp_path, x)
    a, b = (ReferenceModel(model).run({"x": x}, intermediates=True)[name].astype(int) for name in (left, codes))
    c = onnx.numpy_helper.to_array(net.initializers[6]).astype(int) if constant else None
    if c is not None:  # in exact arithmetic the same but for the ties, which are many
        exact = 2.5 * (a - 120) + (c - 130) + 121 if op == "QLinearAdd" else (a - 120) * (c - 130) / 20 + 121
        tie = exact % 1 == 0.5
        assert tie.mean() > 0.01
        np.testing.assert_array_equal(b, np.clip(np.where(tie, b, np.rint(exact)), 0, 255))


def test_a_convolution_of_integers_is_exact() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (2, 40, 5, 5), np.uint8), rng.integers(-128, 128, (3, 40, 3, 3)).astype(np.int8)
    bias = rng.integers(-9999, 9999, 3).astype(np.int32)
    x_zero, w_zero = u8(7), np.asarray([1, -2, 3], np.int8)
    scales = f32(0.02), f32([0.01, 0.02, 0.03]), f32(1.7)
    parameters = (scales[0], x_zero, w, scales[1], w_zero, scales[2], np.int8(-5), bias)
    attrs = {"strides": [2, 2], "pads": [1, 0, 1, 1], "dilations": [1, 1], "kernel_shape": [3, 3], "group": 1}
    y = evaluate("QLinearConv", x, *parameters, **attrs)
    padded = np.pad(x.astype(np.int64) - 7, ((0, 0), (0, 0), (1, 1), (0, 1)))
    levels = w.astype(np.int64) - w_zero.reshape(3, 1, 1, 1)
    for row in range(3):
        for column in range(2):
            window = padded[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            sums = np.einsum("nchw,ochw->no", window, levels) + bias
            expected = np.rint(sums.astype(np.float32) * (scales[0] * scales[1] / scales[2])) - 5
            np.testing.assert_array_equal(y[:, :, row, column], np.clip(expected, -128, 127))


def test_scales_of_blocks_repeat_along_their_axis() -> None:
    x = np.arange(-8, 8).reshape(4, 4).astype(ml_dtypes.int4)
    y = evaluate("DequantizeLinear", x, f32([[1, 2, 3, 4], [0, 0, 0, 1]]), axis=0, block_size=2)
    np.testing.assert_array_equal(y[:2], [[-8, -14, -18, -20], [-4, -6, -6, -4]])
    np.testing.assert_array_equal(y[2:], [[0, 0, 0, 3], [0, 0, 0, 7]])


def test_a_gemm_of_integers_scales_its_bias_too() -> None:
    a, b = u8([[1, 2, 3]]), np.asarray([[1, 0], [0, 1], [1, 1]], np.int8)
    common = (f32(0.5), u8(1), b, f32([1, 2]), np.asarray([0, 1], np.int8))
    for transposed, matrix in ((0, b), (1, np.ascontiguousarray(b.T))):
        inputs = [a, *common[:2], matrix, *common[3:], np.asarray([10, 20], np.int32)]
        attrs = {"alpha": 2.0, "transA": 0, "transB": transposed}
        y = evaluate("QGemm", *inputs, domain=MICROSOFT, **attrs)
        # (a - 1) (b - [0, 1]) = [2, 0], with the bias [12, 20], times 2 * 0.5 * [1, 2]
        np.testing.assert_array_equal(y, [[12, 40]])
        quantized = evaluate("QGemm", *inputs, f32(4), u8(2), domain=MICROSOFT, **attrs)
        np.testing.assert_array_equal(quantized, [[5, 12]])


def test_weights_of_few_bits_are_unpacked_column_by_column() -> None:
    # N = 1, K = 5 in two blocks of four codes of 4 bits, low ones first; zero points 7 and 8.
    packed, scales, zeros = u8([[[0x21, 0x43], [0x09, 0x00]]]), f32([2, 10]), u8([0x87])
    constants = {"w": packed, "s": scales, "z": zeros}
    text = "y = com.microsoft.MatMulNBits <K=5, N=1, bits=4, block_size=4> (x, w, s, z)"
    model = parse(text, inputs="float[N, 5] x", domains=', "com.microsoft": 1', constants=constants)
    y = ReferenceModel(model).run({"x": np.eye(5, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(y.ravel(), [-12, -10, -8, -6, 10])


def dynamic_layer(batch: int | str) -> onnx.ModelProto:
    """DynamicQuantizeLinear, MatMulInteger, Cast, Mul by both scales; the output is t4."""
    net = Net((batch, 12))
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"))
    weight = net.constant(net.rng.integers(-128, 128, (12, 7)), np.int8)
    sums = net.op("MatMulInteger", "q", weight, "z", net.constant(3, np.int8))
    scale = net.op("Mul", "s", net.constant(0.03))
    return net.model(net.op("Mul", net.op("Cast", sums, to=TensorProto.FLOAT), scale))


@pytest.mark.parametrize("batch", [1, "N"])
def test_a_dynamic_range_is_that_of_each_sample(batch: int | str, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(5, 12)).astype(np.float32) * f32([[1], [10], [0.1], [3], [0]])
    x[3] = np.abs(x[3])
    check(dynamic_layer(batch), tmp_path, x)  # the last sample is zero
    single = np.concatenate([ReferenceModel(dynamic_layer(1)).run({"x": row[None]})["t4"] for row in x])
    _, target = convert(dynamic_layer(batch), tmp_path)
    np.testing.assert_array_equal(tac_engine.load(target).run({"x": x})["t4"], single)


@pytest.mark.parametrize("move", ["", "Flatten", "Transpose"])
@pytest.mark.parametrize("reader", ["DequantizeLinear", "MatMulInteger", "MatMulInteger, scales of columns"])
def test_a_dynamic_range_reaches_its_tensor_wherever_that_was_moved(move: str, reader: str, tmp_path: Path) -> None:
    net = Net(("N", 4, 5, 3))
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"))
    codes = "q" if not move else net.op(move, "q", **({"perm": [0, 2, 3, 1]} if move == "Transpose" else {}))
    if reader == "DequantizeLinear":
        output = net.op("DequantizeLinear", codes, "s", "z")
    else:
        rows = {"": 3, "Flatten": 60, "Transpose": 4}[move]
        sums = net.op("MatMulInteger", codes, net.constant(net.rng.integers(-64, 64, (rows, 7)), np.int8), "z")
        weight_scale = net.constant(net.rng.uniform(0.01, 0.1, (1, 7)) if "columns" in reader else 0.03)
        scales = net.op("Mul", "s", weight_scale)
        output = net.op("Mul", net.op("Cast", sums, to=TensorProto.FLOAT), scales)
    x = np.random.default_rng(1).normal(size=(3, 4, 5, 3)).astype(np.float32) * f32([1, 10, 0.1]).reshape(3, 1, 1, 1)
    check(net.model(output), tmp_path, x)


def test_a_dynamic_range_goes_into_elementwise_operators_only(tmp_path: Path) -> None:
    net = Net(("N", 4, 5, 3))
    net.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"))
    scale = net.op("Concat", net.op("Reshape", "s", net.constant([1], np.int64)), net.constant([2.0, 3.0]), axis=0)
    output = net.op("Mul", net.op("DequantizeLinear", "q", "s", "z"), scale)
    with pytest.raises(
        tac_engine.UnsupportedModelError, match="'s' differs between samples, which only an elementwise"
    ):
        convert(net.model(output), tmp_path)


@pytest.mark.parametrize("op", ["Add", "Mul", "Sub"])
def test_arithmetic_that_wraps_around_is_refused(op: str, tmp_path: Path) -> None:
    net = Net(("N", 6))
    one, zero = net.constant(1), net.constant(0, np.uint8)
    codes = net.op("QuantizeLinear", "x", one, zero)
    output = net.op("DequantizeLinear", net.op(op, codes, net.constant(200, np.uint8)), one, zero)
    with pytest.raises(tac_engine.UnsupportedModelError, match="arithmetic on uint8 wraps around"):
        convert(net.model(output), tmp_path)


@pytest.mark.parametrize(("bits", "opset"), [(4, 21), (2, 25)])
def test_types_of_few_bits_run_as_bits(bits: int, opset: int, tmp_path: Path) -> None:
    net = Net(("N", 24), opset=opset)
    unsigned, signed = (ml_dtypes.uint4, ml_dtypes.int4) if bits == 4 else (ml_dtypes.uint2, ml_dtypes.int2)

    def small(value: Any, kind: Any) -> str:
        array = np.asarray(value).astype(kind)
        name = f"c{len(net.initializers)}"
        net.initializers.append(onnx.numpy_helper.from_array(array, name))
        return name

    scale, zero = net.constant(0.25), small(1, unsigned)
    act = net.op("DequantizeLinear", net.op("QuantizeLinear", "x", scale, zero), scale, zero)
    half = 1 << (bits - 1)
    weight = small(net.rng.integers(-half, half, (24, 10)), signed)
    hidden = net.op("MatMul", act, net.op("DequantizeLinear", weight, net.constant(0.5)))
    x = np.random.default_rng(2).normal(size=(8, 24)).astype(np.float32)
    assert kinds(check(net.model(hidden), tmp_path, x)) == ["quantizer", f"{bits}-bit linear"]
