"""Layers of 8 bits: on integers, so that nothing is rounded before the sum is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import Net, check, convert
from tac_engine.converters.graph import Array

import tac_engine

QONNX = "qonnx.custom_op.general"
SCALE, ZERO = np.float32(0.0173), 131


def quantized(net: Net, x: str, how: str) -> str:
    if how == "Quant":
        inputs = [net.constant(SCALE), net.constant(ZERO), net.constant(8)]
        return net.op("Quant", x, *inputs, domain=QONNX, signed=0, narrow=0, rounding_mode="ROUND")
    scale, zero = net.constant(SCALE), net.constant(ZERO, np.uint8)
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)


def codes(x: Array) -> Array:
    return (np.clip(np.rint(x / SCALE) + ZERO, 0, 255) - ZERO).astype(np.int64)


def run(net: Net, output: str, folder: Path, x: Array) -> tuple[list[Any], list[Array]]:
    report, target = convert(net.model(output, (QONNX,)), folder)
    rows = [row for row in report.layers if row.bytes_before and row.kind.endswith(("conv", "linear"))]
    backends = tac_engine.backends()["runnable"]
    return rows, [tac_engine.load(target, backend=backend).run({"x": x})[output] for backend in backends]


@pytest.mark.parametrize("how", ["DequantizeLinear", "Quant"])
@pytest.mark.parametrize("bias", [False, True])
def test_sums_are_those_of_integers(how: str, bias: bool, tmp_path: Path) -> None:
    net = Net(("N", 24, 6, 6), seed=1)
    levels = net.rng.integers(-127, 128, (9, 24, 3, 3))
    levels[:, 0, 0, 0] = 127
    scales = net.rng.uniform(0.001, 0.01, 9).astype(np.float32)
    weight = scales.reshape(-1, 1, 1, 1) * levels.astype(np.float32)
    shift = net.rng.normal(size=9).astype(np.float32) if bias else None
    output = net.conv(quantized(net, "x", how), weight, shift)
    x = net.rng.normal(size=(3, 24, 6, 6)).astype(np.float32)
    rows, results = run(net, output, tmp_path, x)
    assert [(row.kind, row.bits) for row in rows] == [("integer conv", "8 x 8")]
    assert "every sum is exact" in rows[0].reason
    windows = np.lib.stride_tricks.sliding_window_view(codes(x), (3, 3), axis=(2, 3))
    sums = np.einsum("nchwyx,ocyx->nohw", windows, levels)
    assert np.abs(sums).max() < 1 << 24
    factor = (scales.astype(np.float64) * SCALE).astype(np.float32).reshape(-1, 1, 1)
    expected = sums.astype(np.float32) * factor + (0 if shift is None else shift.reshape(-1, 1, 1))
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=3e-7, atol=1e-7 * np.abs(expected).max())
        assert np.array_equal(result, results[0])


def test_scales_pass_what_lies_between(tmp_path: Path) -> None:
    net = Net(("N", 4, 8, 8), seed=2)
    act = net.op("Relu", quantized(net, "x", "DequantizeLinear"))
    act = net.op("MaxPool", act, kernel_shape=[2, 2], strides=[2, 2])
    act = net.op("Pad", act, net.constant([0, 0, 1, 0, 0, 0, 0, 1], np.int64))
    act = net.op("Flatten", net.op("Transpose", act, perm=[0, 2, 3, 1]))
    levels = net.rng.integers(-127, 128, (100, 7))
    output = net.op("MatMul", act, net.constant(levels * 0.37))
    x = net.rng.normal(size=(5, 4, 8, 8)).astype(np.float32)
    rows, results = run(net, output, tmp_path, x)
    assert [row.bits for row in rows] == ["8 x 8"]
    pooled = np.maximum(codes(x), 0).reshape(5, 4, 4, 2, 4, 2).max(axis=(3, 5))
    padded = np.pad(pooled, ((0, 0), (0, 0), (1, 0), (0, 1))).transpose(0, 2, 3, 1).reshape(5, -1)
    expected = (padded @ levels).astype(np.float32) * np.float32(0.37 * SCALE)
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=5e-7)


def test_scales_pass_a_thousand_nodes(tmp_path: Path) -> None:
    net = Net(("N", 8), seed=5)
    act = quantized(net, "x", "DequantizeLinear")
    for _ in range(1000):
        act = net.op("Relu", act)
    levels = net.rng.integers(-127, 128, (8, 4))
    output = net.op("MatMul", act, net.constant(levels * 0.37))
    x = net.rng.normal(size=(3, 8)).astype(np.float32)
    rows, results = run(net, output, tmp_path, x)
    assert "every sum is exact" in rows[0].reason
    expected = (np.maximum(codes(x), 0) @ levels).astype(np.float32) * np.float32(0.37 * SCALE)
    for result in results:
        np.testing.assert_allclose(result, expected, rtol=5e-7)


def test_a_bound_beyond_float32_is_said(tmp_path: Path) -> None:
    net = Net(("N", 1300), seed=3)
    levels = net.rng.integers(100, 128, (1300, 3))
    output = net.op("MatMul", quantized(net, "x", "DequantizeLinear"), net.constant(levels * 0.01))
    rows, _ = run(net, output, tmp_path, np.zeros((1, 1300), np.float32))
    assert "of which the bound is 1." in rows[0].reason


@pytest.mark.parametrize("case", ["float weights", "float activations", "scales of channels", "16 bits", "pad by 1"])
def test_other_layers_stay_as_they_are(case: str, tmp_path: Path) -> None:
    net = Net(("N", 20, 3, 3), seed=4)
    weight = net.rng.integers(-127, 128, (6, 20, 3, 3)).astype(np.float32) * np.float32(0.013)
    act = "x" if case == "float activations" else quantized(net, "x", "DequantizeLinear")
    if case == "float weights":
        weight = net.rng.normal(size=weight.shape).astype(np.float32)
    if case == "scales of channels":
        scale, zero = net.constant(net.rng.uniform(0.01, 0.02, 20)), net.constant([ZERO] * 20, np.uint8)
        act = net.op("DequantizeLinear", net.op("QuantizeLinear", "x", scale, zero, axis=1), scale, zero, axis=1)
    if case == "16 bits":
        scale, zero = net.constant(SCALE), net.constant(0, np.int16)
        act = net.op("DequantizeLinear", net.op("QuantizeLinear", "x", scale, zero), scale, zero)
    if case == "pad by 1":
        act = net.op("Pad", act, net.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64), net.constant(1.0))
    model = net.model(net.conv(act, weight))
    report = check(model, tmp_path, net.rng.normal(size=(2, 20, 3, 3)).astype(np.float32), tolerance=1e-6)
    assert all(row.bits.endswith("x 32") for row in report.layers if row.kind == "float conv")
