"""ONNX Resize as one matrix per axis: interpolation is linear and works along one axis at a time.

The definition does not say how precisely sizes and positions are computed. Where a scale is given, PyTorch and ONNX
Runtime compute both in float32, and so does this: 10 elements times 0.7 are 7, in float64 they would be 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .graph import Array

MODES = ("nearest", "linear")
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric")
_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def unsupported(attrs: Mapping[str, Any]) -> str:
    """Why a Resize with these attributes is not supported, or ""."""
    if attrs["mode"] not in MODES:
        return f"mode '{attrs['mode']}' is not supported, only {' and '.join(MODES)} are"
    if attrs["coordinate_transformation_mode"] not in _COORDINATES:
        return f"coordinate_transformation_mode '{attrs['coordinate_transformation_mode']}' is not supported"
    if attrs["mode"] == "nearest" and attrs["nearest_mode"] not in _ROUNDINGS:
        return f"nearest_mode '{attrs['nearest_mode']}' is not known"
    if attrs.get("antialias", 0):
        return "antialias is not supported"
    if attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return f"keep_aspect_ratio_policy '{attrs['keep_aspect_ratio_policy']}' is not supported"
    return ""


def output_size(size: int, scale: float) -> int:
    return int(np.floor(np.float32(size) * np.float32(scale)))


def taps(attrs: Mapping[str, Any], size: int, new_size: int, scale: float) -> list[tuple[Array, Array]]:
    """The terms of ``y[i] = sum of weight[i] * x[index[i]]`` along an axis: one for nearest, two for linear.

    Indices int64 [new_size], weights float32 [new_size]. ``scale`` is that of the file, new_size / size if sizes are
    given there. Definition: the Resize operator of ONNX.
    """
    positions = _coordinates(attrs["coordinate_transformation_mode"], size, new_size, scale)
    if attrs["mode"] == "nearest":
        index = _nearest(attrs["nearest_mode"], positions)
        return [(np.clip(index, 0, size - 1), np.ones(new_size, np.float32))]
    left = np.floor(positions)
    share = (positions - left).astype(np.float32)
    index = left.astype(np.int64)
    terms = [(index, 1 - share), (index + 1, share)]
    return [(np.clip(place, 0, size - 1), weight) for place, weight in terms]


def _coordinates(mode: str, size: int, new_size: int, scale: float) -> Array:
    """Where each new position lies in the old axis, float64 of what float32 gives."""
    if mode == "align_corners":
        # The new length is not rounded here, as in the reference implementation of ONNX.
        step = (size - 1) / (scale * size - 1) if new_size > 1 else 0.0
        return np.asarray(np.arange(new_size) * step, np.float64)
    new, factor, half = np.arange(new_size, dtype=np.float32), np.float32(scale), np.float32(0.5)
    if mode == "asymmetric":
        return np.asarray(new / factor, np.float64)
    if mode == "pytorch_half_pixel" and new_size == 1:
        return np.zeros(1)
    centred = np.asarray((new + half) / factor - half, np.float64)
    if mode == "half_pixel_symmetric":
        # The part of the axis that rounding the new size down leaves out is shared by both ends.
        return np.asarray(centred + size * (1 - new_size / (scale * size)) / 2)
    return centred


def _nearest(mode: str, positions: Array) -> Array:
    if mode == "round_prefer_floor":
        result = np.ceil(positions - 0.5)
    elif mode == "round_prefer_ceil":
        result = np.floor(positions + 0.5)
    else:
        result = np.floor(positions) if mode == "floor" else np.ceil(positions)
    index: Array = result.astype(np.int64)
    return index


def resize(x: Array, attrs: Mapping[str, Any], sizes: list[int], scales: list[float]) -> Array:
    """``x`` with ``sizes[i]`` elements along axis i."""
    for axis, (new_size, scale) in enumerate(zip(sizes, scales, strict=True)):
        if new_size == x.shape[axis] and scale == 1.0:
            continue
        column = [-1 if place == axis else 1 for place in range(x.ndim)]
        terms = taps(attrs, x.shape[axis], new_size, scale)
        if len(terms) == 1:
            x = np.take(x, terms[0][0], axis)
        else:
            (low, low_weight), (high, high_weight) = terms
            x = np.take(x, low, axis) * low_weight.reshape(column) + np.take(x, high, axis) * high_weight.reshape(
                column
            )
    return x
