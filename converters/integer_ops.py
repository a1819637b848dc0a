"""Operators on integer tensors, those of ONNX and of the domain com.microsoft, by their definitions on numpy arrays.

q, s and z below are the integers, the scale and the zero point of a tensor that stands for s * (q - z). A result is
``saturate(rint(value) + z)``, ties to even, as QuantizeLinear has it and ONNX Runtime computes it; QLinearAdd and
QLinearMul round the sum, ``saturate(rint(value + z))``. Sums of products are exact; the factor behind them is the
float32 ``s_x * s_w / s_y``.

Definitions: https://onnx.ai/onnx/operators and https://github.com/microsoft/onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import window_ops
from .graph import Array
from .integers import integer_limits

MICROSOFT_DOMAIN = "com.microsoft"

Inputs = list[Array | None]


def _needed(inputs: Inputs, index: int) -> Array:
    value = inputs[index] if index < len(inputs) else None
    if value is None:
        raise ValueError(f"input {index} is missing")
    return value


def _optional(inputs: Inputs, index: int) -> Array | None:
    return inputs[index] if index < len(inputs) else None


def saturate(values: Array, zero_point: Array) -> Array:
    """``rint(values) + zero_point`` in the zero point's type, clipped to it; float32 ``values``."""
    limits = integer_limits(zero_point.dtype)
    if limits is None:
        raise TypeError(f"a zero point of an integer type is expected, found {zero_point.dtype}")
    shifted = np.rint(values) + zero_point.astype(values.dtype)
    return np.asarray(np.clip(shifted, *limits).astype(zero_point.dtype))


def _saturate_sum(values: Array, zero_point: Array) -> Array:
    """``rint(values + zero_point)`` in the zero point's type, clipped to it: a tie falls as the sum has it."""
    return saturate(values + zero_point.astype(values.dtype), np.zeros((), zero_point.dtype))


def dequantize(x: Array, scale: Array, zero_point: Array | None, axis: int = 0, block_size: int = 0) -> Array:
    """``scale * (x - zero_point)``; a scale [C] runs along ``axis``, each of ``block_size`` repeats there as often."""

    def expanded(parameter: Array) -> Array:
        if block_size:
            return np.repeat(parameter, block_size, axis=axis).take(range(x.shape[axis]), axis=axis)
        return (
            parameter.reshape([-1 if place == axis else 1 for place in range(x.ndim)])
            if parameter.size > 1
            else (parameter.reshape(()))
        )

    # 32-bit integers keep all their digits until the difference is taken.
    integers = x.astype(np.int64)
    if zero_point is not None:
        integers = integers - expanded(zero_point).astype(np.int64)
    return np.asarray(integers.astype(scale.dtype) * expanded(scale))


def _centred(x: Array, zero_point: Array | None, channel_axis: int | None = None) -> Array:
    """float64 ``x - zero_point``: sums of products of such numbers are exact."""
    wide = x.astype(np.float64)
    if zero_point is None:
        return wide
    return wide - _along(zero_point.astype(np.float64), x.ndim, channel_axis)


def _along(parameter: Array, rank: int, axis: int | None) -> Array:
    if parameter.size == 1:
        return parameter.reshape(())
    if parameter.ndim != 1 or axis is None:
        return parameter
    return parameter.reshape([-1 if place == axis % rank else 1 for place in range(rank)])


def _convolve(x: Array, w: Array, attrs: dict[str, Any]) -> Array:
    window = dict(attrs)
    window_ops.make_explicit(window, x.shape[2:], w.shape[2:])
    return window_ops.conv(x, w, None, **window)


def _q_linear_conv(attrs: dict[str, Any], inputs: Inputs) -> list[Array]:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (_needed(inputs, index) for index in range(8))
    sums = _convolve(_centred(x, x_zero), _centred(w, w_zero, 0), attrs)
    bias = _optional(inputs, 8)
    if bias is not None:
        sums = sums + _along(bias.astype(np.float64), sums.ndim, 1)
    factor = _along(x_scale * w_scale / y_scale, sums.ndim, 1)
    return [saturate(sums.astype(np.float32) * factor, y_zero)]


def _q_linear_mat_mul(attrs: dict[str, Any], inputs: Inputs) -> list[Array]:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (_needed(inputs, index) for index in range(8))
    sums = _centred(a, a_zero, -2) @ _centred(b, b_zero, -1)
    factor = _along(a_scale, sums.ndim, -2) * _along(b_scale, sums.ndim, -1) / y_scale
    return [saturate(sums.astype(np.float32) * factor, y_zero)]


def _q_gemm(attrs: dict[str, Any], inputs: Inputs) -> list[Array]:
    a, a_scale, a_zero, b, b_scale, b_zero = (_needed(inputs, index) for index in range(6))
    left = _centred(a, a_zero)
    right = _centred(b, b_zero, 0 if attrs["transB"] else 1)
    sums = (left.T if attrs["transA"] else left) @ (right.T if attrs["transB"] else right)
    c = _optional(inputs, 6)
    if c is not None:
        sums = sums + c.astype(np.float64)
    factor = np.float32(attrs["alpha"]) * a_scale * b_scale
    y_scale = _optional(inputs, 7)
    if y_scale is None:
        return [np.asarray(sums.astype(np.float32) * factor)]
    return [saturate(sums.astype(np.float32) * (factor / y_scale), _needed(inputs, 8))]


def _conv_integer(attrs: dict[str, Any], inputs: Inputs) -> list[Array]:
    x, w = _needed(inputs, 0), _needed(inputs, 1)
    sums = _convolve(_centred(x, _optional(inputs, 2)), _centred(w, _optional(inputs, 3), 0), attrs)
    return [sums.astype(np.int32)]


def _mat_mul_integer(attrs: dict[str, Any], inputs: Inputs) -> list[Array]:
    a, b = _needed(inputs, 0), _needed(inputs, 1)
    sums = _centred(a, _optional(inputs, 2), -2) @ _centred(b, _optional(inputs, 3), -1)
    return [np.asarray(sums).astype(np.int32)]


def _dynamic_quantize_linear(attrs: dict[str, Any], inputs: Inputs) -> list[Array]:
    """To uint8 so that the tensor's range, widened to hold 0, is 0 .. 255. All zeros have the scale 1 / 255."""
    x = _needed(inputs, 0)
    low, high = np.minimum(np.float32(0), x.min()), np.maximum(np.float32(0), x.max())
    span = np.float32(high - low)
    scale = np.float32((span if span > 0 else np.float32(1)) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
    return [saturate(x / scale, zero), np.asarray(scale), np.asarray(zero)]


def _by_floats(compute: Callable[..., Array]) -> Callable[[dict[str, Any], Inputs], list[Array]]:
    """An operator q, s, z, ..., s_y, z_y that is defined on the real values of its operands."""

    def run(attrs: dict[str, Any], inputs: Inputs) -> list[Array]:
        *operands, y_scale, y_zero = (_needed(inputs, index) for index in range(len(inputs)))
        values = [dequantize(operands[i], operands[i + 1], operands[i + 2]) for i in range(0, len(operands), 3)]
        return [saturate(compute(attrs, *values) / y_scale, y_zero)]

    return run


def _q_linear_add(attrs: dict[str, Any], inputs: Inputs) -> list[Array]:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (_needed(inputs, index) for index in range(8))
    return [_saturate_sum((dequantize(a, a_scale, a_zero) + dequantize(b, b_scale, b_zero)) / y_scale, y_zero)]


def _q_linear_mul(attrs: dict[str, Any], inputs: Inputs) -> list[Array]:
    """The product of the integers times ``s_a * s_b / s_y``."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (_needed(inputs, index) for index in range(8))
    products = (_centred(a, a_zero) * _centred(b, b_zero)).astype(np.float32)
    return [_saturate_sum(products * (a_scale * b_scale / y_scale), y_zero)]


def _leaky_relu(attrs: dict[str, Any], x: Array) -> Array:
    return np.where(x < 0, np.float32(attrs["alpha"]) * x, x)


def _sigmoid(attrs: dict[str, Any], x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _softmax(attrs: dict[str, Any], x: Array) -> Array:
    exponentials = np.exp(x - x.max(axis=attrs["axis"], keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=attrs["axis"], keepdims=True))


def _average_pool(attrs: dict[str, Any], inputs: Inputs) -> list[Array]:
    """The mean of the integers times ``s_x / s_y``."""
    x, x_scale, x_zero, y_scale, y_zero = (_needed(inputs, index) for index in range(5))
    centred = _centred(x, x_zero)
    if "kernel_shape" in attrs:
        names = ("kernel_shape", "strides", "pads", "dilations", "ceil_mode", "count_include_pad")
        means = window_ops.average_pool(centred, **{name: attrs[name] for name in names})
    else:
        means = centred.mean(axis=tuple(range(2, x.ndim)), keepdims=True)
    return [saturate(means.astype(np.float32) * (x_scale / y_scale), y_zero)]


def _q_linear_concat(attrs: dict[str, Any], inputs: Inputs) -> list[Array]:
    given = [_needed(inputs, index) for index in range(len(inputs))]
    parts = [dequantize(given[i], given[i + 1], given[i + 2]) for i in range(2, len(given), 3)]
    return [saturate(np.concatenate(parts, axis=attrs["axis"]) / given[0], given[1])]


OPS: dict[str, Callable[[dict[str, Any], Inputs], list[Array]]] = {
    "QLinearConv": _q_linear_conv,
    "QLinearMatMul": _q_linear_mat_mul,
    "ConvInteger": _conv_integer,
    "MatMulInteger": _mat_mul_integer,
    "DynamicQuantizeLinear": _dynamic_quantize_linear,
    "QGemm": _q_gemm,
    "QLinearAdd": _q_linear_add,
    "QLinearMul": _q_linear_mul,
    "QLinearLeakyRelu": _by_floats(_leaky_relu),
    "QLinearSigmoid": _by_floats(_sigmoid),
    "QLinearSoftmax": _by_floats(_softmax),
    "QLinearAveragePool": _average_pool,
    "QLinearGlobalAveragePool": _average_pool,
    "QLinearConcat": _q_linear_concat,
}
