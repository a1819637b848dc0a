"""The quantization operators of the QONNX domain on numpy arrays, in the dtype of ``x`` (float32 in practice)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .graph import Array


def _away_from_zero(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.ceil(np.abs(x)))


def _half_away_from_zero(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.floor(np.abs(x) + np.asarray(0.5, x.dtype)))


def _half_towards_zero(x: Array) -> Array:
    return np.asarray(np.sign(x) * np.ceil(np.abs(x) - np.asarray(0.5, x.dtype)))


# Upper-case names; files spell them in either case. ROUND_TO_ZERO is what Brevitas writes for DOWN.
ROUNDING_MODES: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": _away_from_zero,
    "DOWN": np.trunc,
    "ROUND_TO_ZERO": np.trunc,
    "HALF_UP": _half_away_from_zero,
    "HALF_DOWN": _half_towards_zero,
}


def integer_range(bits: Array, signed: bool, narrow: bool) -> tuple[Array, Array]:
    """Least and greatest integer of ``bits`` bits; narrow drops the least (signed) or the greatest (unsigned)."""
    if signed:
        half = 2.0 ** (bits - 1)
        return np.asarray(-half + (1 if narrow else 0)), np.asarray(half - 1)
    return np.zeros_like(bits), np.asarray(2.0**bits - (2 if narrow else 1))


def bipolar_quant(x: Array, scale: Array) -> Array:
    """Bipolar: scale * (+1 where x >= 0, else -1). Both zeros give +scale, NaN gives -scale."""
    one = np.ones((), x.dtype)
    return np.asarray(np.where(x >= 0, one, -one) * scale.astype(x.dtype))


def quant(
    x: Array, scale: Array, zero_point: Array, bits: Array, *, signed: int, narrow: int, rounding_mode: str
) -> Array:
    """(round(clamp(x / scale + zero_point)) - zero_point) * scale; one signed bit means bipolar, as in QONNX."""
    scale, zero_point, bits = (value.astype(x.dtype) for value in (scale, zero_point, bits))
    y = x / scale + zero_point
    if signed and np.all(bits == 1):
        one = np.ones((), x.dtype)
        y = np.where(y >= 0, one, -one)
    else:
        low, high = integer_range(bits, bool(signed), bool(narrow))
        y = ROUNDING_MODES[rounding_mode](np.clip(y, low.astype(x.dtype), high.astype(x.dtype)))
    return np.asarray((y - zero_point) * scale)


def trunc(x: Array, *parameters: Array, rounding_mode: str, signed: int, narrow: int, version: int) -> Array:
    """Drops low bits of a quantized tensor. Version 1 keeps the scale, version 2 has an output scale and clamps."""
    values = [value.astype(x.dtype) for value in parameters]
    scale, zero_point, in_bits = values[:3]
    rounding = ROUNDING_MODES[rounding_mode]
    y = np.rint(x / scale + zero_point)
    if version == 1:
        y = rounding(y / np.exp2(in_bits - values[3]))
        return np.asarray((y - zero_point) * scale)
    out_scale, out_bits = values[3], values[4]
    divisor = np.exp2(np.rint(np.log2(out_scale / scale)))
    low, high = integer_range(out_bits, bool(signed), bool(narrow))
    y = rounding(np.clip(y / divisor, low.astype(x.dtype), high.astype(x.dtype)))
    return np.asarray((y - zero_point / divisor) * out_scale)


def threshold_axis(data_layout: str, rank: int) -> int:
    """The axis of a MultiThreshold's channels; without a layout it follows from the rank, where 3 means NWC."""
    layout = data_layout or {3: "NWC"}.get(rank, "")
    axis = layout.find("C") if "C" in layout else 1
    return min(axis, rank - 1)


def multi_threshold(x: Array, thresholds: Array, *, out_scale: float, out_bias: float, data_layout: str) -> Array:
    """out_scale * (how many thresholds x reaches) + out_bias. ``thresholds`` is [channels or 1, steps]."""
    column_shape = [1] * x.ndim
    column_shape[threshold_axis(data_layout, x.ndim)] = -1
    count = np.zeros(x.shape, x.dtype)
    for step in range(thresholds.shape[1]):
        count += x >= thresholds[:, step].reshape(column_shape)
    return np.asarray(count * x.dtype.type(out_scale) + x.dtype.type(out_bias))


def im2col(x: Array, *, kernel_shape: list[int], strides: list[int], dilations: list[int], pads: list[int]) -> Array:
    """Windows of a map [N, H, W, C], each a row [kh * kw * C] of the result [N, OH, OW, kh * kw * C]."""
    (height, width), (top, left, bottom, right) = kernel_shape, pads
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel_shape, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
    windows = windows[:, :: strides[0], :: strides[1], :, :: dilations[0], :: dilations[1]]
    n, rows, columns, channels = windows.shape[:4]
    return np.reshape(windows.transpose(0, 1, 2, 4, 5, 3), (n, rows, columns, height * width * channels))


OPS: dict[str, Callable[..., Any]] = {
    "BipolarQuant": bipolar_quant,
    "Quant": quant,
    "Trunc": trunc,
    "MultiThreshold": multi_threshold,
    "Im2Col": im2col,
}
