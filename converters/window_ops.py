"""Convolution and pooling on numpy arrays by sliding windows; onnx.reference has them too, in Python loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .graph import Array
from .passes.base import RuleError

MAX_WINDOW = 1 << 16  # the largest size, stride, dilation or pad of a window that a .tacbin takes

# Bytes of unfolded windows held at a time; beyond a few times the L2 cache nothing is gained.
_UNFOLD_BYTES = 32 << 20


def set_window_defaults(attrs: dict[str, Any], rank: int) -> None:
    """strides, dilations and pads written out. Raises RuleError where a list does not fit ``rank``."""
    attrs.setdefault("strides", [1] * rank)
    attrs.setdefault("dilations", [1] * rank)
    attrs.setdefault("pads", [0] * (2 * rank))
    for name, count, least in (
        ("kernel_shape", rank, 1),
        ("strides", rank, 1),
        ("dilations", rank, 1),
        ("pads", 2 * rank, 0),
    ):
        if len(attrs[name]) != count or not all(least <= value <= MAX_WINDOW for value in attrs[name]):
            raise RuleError(f"{name} {attrs[name]}: {count} values from {least} to {MAX_WINDOW} are expected")


def make_explicit(attrs: dict[str, Any], sizes: Sequence[int], kernel: Sequence[int]) -> None:
    """Writes out every attribute of a window on a map of ``sizes``; ``kernel`` is its size if the file does not say.

    Raises RuleError as :func:`set_window_defaults` does.
    """
    attrs.setdefault("kernel_shape", list(kernel))
    set_window_defaults(attrs, len(sizes))
    auto_pad = attrs.pop("auto_pad", "NOTSET")
    if auto_pad != "NOTSET":
        attrs["pads"] = _pads_of(auto_pad, sizes, attrs["kernel_shape"], attrs["strides"], attrs["dilations"])


def _pads_of(
    auto_pad: str, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """Explicit pads, begins then ends, for auto_pad SAME_UPPER, SAME_LOWER or VALID."""
    if auto_pad == "VALID":
        return [0] * (2 * len(sizes))
    begins, ends = [], []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        out_size = -(-size // stride)
        total = max((out_size - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if auto_pad == "SAME_UPPER" else large)
        ends.append(large if auto_pad == "SAME_UPPER" else small)
    return begins + ends


def window_count(
    size: int, taps: int, stride: int, dilation: int, begin: int, end: int, ceil_mode: bool = False
) -> int:
    """Output size along one axis. With ceil_mode the last window must start inside the input or its begin padding."""
    span = size + begin + end - (taps - 1) * dilation - 1
    if span < 0:
        return 0
    if not ceil_mode:
        return span // stride + 1
    count = -(-span // stride) + 1
    return count - 1 if (count - 1) * stride >= size + begin else count


def _windows(
    x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], out: Sequence[int]
) -> Array:
    """View of a padded [N, C, *spatial] array as [N, C, *kernel, *out]."""
    rank = len(kernel)
    reach = [(taps - 1) * dilation + 1 for taps, dilation in zip(kernel, dilations, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + rank)))
    index: list[slice] = [slice(None), slice(None)]
    index += [slice(0, (count - 1) * stride + 1, stride) for count, stride in zip(out, strides, strict=True)]
    index += [slice(None, None, dilation) for dilation in dilations]
    view = view[tuple(index)]
    return np.transpose(view, (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank)))


def _pad(x: Array, pads: Sequence[int], value: float) -> Array:
    if not any(pads):
        return x
    rank = len(pads) // 2
    widths = [(0, 0), (0, 0)] + [(pads[i], pads[rank + i]) for i in range(rank)]
    return np.pad(x, widths, constant_values=value)


def conv(
    x: Array,
    w: Array,
    b: Array | None,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Array:
    """ONNX Conv: unfold to [C * taps, positions], then one matrix product per group and block of samples."""
    rank = len(kernel_shape)
    out = [
        window_count(x.shape[2 + i], kernel_shape[i], strides[i], dilations[i], pads[i], pads[rank + i])
        for i in range(rank)
    ]
    samples, out_channels = x.shape[0], w.shape[0]
    y = np.empty((samples, out_channels, *out), x.dtype)
    if y.size == 0:
        return y
    windows = _windows(_pad(x, pads, 0), kernel_shape, strides, dilations, out)
    k = w.shape[1] * int(np.prod(kernel_shape))
    positions = int(np.prod(out))
    filters = w.reshape(group, out_channels // group, k)
    block = max(1, _UNFOLD_BYTES // (group * k * positions * x.itemsize))
    for first in range(0, samples, block):
        columns = windows[first : first + block].reshape(-1, group, k, positions)
        y[first : first + block] = np.matmul(filters, columns).reshape(-1, out_channels, *out)
    if b is not None:
        y += b.reshape(-1, *[1] * rank)
    return y


def max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int,
) -> Array:
    lowest = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
    windows = _pooling_windows(x, kernel_shape, strides, pads, dilations, ceil_mode, lowest)
    return np.asarray(windows.max(axis=tuple(range(2, 2 + len(kernel_shape)))))


def average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int,
    count_include_pad: int,
) -> Array:
    """Sum over the window divided by how many elements count; what ceil_mode adds beyond the pads never counts."""
    axes = tuple(range(2, 2 + len(kernel_shape)))
    total = _pooling_windows(x, kernel_shape, strides, pads, dilations, ceil_mode, 0).sum(axis=axes)
    countable = np.ones((1, 1, *x.shape[2:]), x.dtype)
    inner_pads = list(pads)
    if count_include_pad:
        countable = _pad(countable, pads, 1)
        inner_pads = [0] * len(pads)
    shape = total.shape[2:]
    counts = _pooling_windows(countable, kernel_shape, strides, inner_pads, dilations, 0, 0, shape).sum(axis=axes)
    return np.asarray(total / counts)


def _pooling_windows(
    x: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: int,
    fill: float,
    out: Sequence[int] | None = None,
) -> Array:
    rank = len(kernel)
    if out is None:
        out = [
            window_count(x.shape[2 + i], kernel[i], strides[i], dilations[i], pads[i], pads[rank + i], bool(ceil_mode))
            for i in range(rank)
        ]
    full_pads = list(pads)
    for i in range(rank):
        needed = (out[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1
        missing = needed - (x.shape[2 + i] + pads[i] + pads[rank + i])
        full_pads[rank + i] += max(missing, 0)
    return _windows(_pad(x, full_pads, fill), kernel, strides, dilations, out)
