"""Convolutions of floats in integers: levels for the weights, and how many bits are left for the inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .graph import Array
from .values import weight_lattice

MAX_LEVEL = 32767  # of weights and of inputs
MAX_SUM = 2**31 - 1
# How far the largest input lies above their root mean square, about, and the largest output above that of the outputs.
_PEAK = 4.0
_MAX_ERROR = 1e-4  # expected root mean square, over the largest output
_MAX_ROW_ERROR = 2e-3  # of the weights of an output, over a usual one of them
_LIMITS = tuple(2**bits - 1 for bits in range(8, 16))
_PARTS = (1024, 512, 256, 128, 64, 32)  # products in a sum of 32 bits, where those of all are too many


@dataclass(frozen=True)
class IntegerWeights:
    """``weight ~ level * scale``, float32 [O]; the inputs are rounded to ``-limit .. limit``.

    The sums of ``runs_per_sum`` runs fit 32 bits; ``run_parts`` runs make a piece (csrc/ir/ops.h). ``error`` is
    ``||w' - w|| / ||w||``.
    """

    scale: Array
    limit: int
    error: float
    run_parts: int = 1
    runs_per_sum: int = 1

    def describe(self) -> str:
        near = f" within {self.error:.1g}" if self.error > 1e-6 else ""
        return f"sums of integers, weights{near}, inputs to {self.limit.bit_length()} bits and a sign"


def whole_weights(weight: Array, limit: int) -> IntegerWeights | None:
    """For ``weight`` [O, K] of integers, the inputs integers of ``-limit .. limit``; None where sums do not fit."""
    if not _fits(np.abs(weight.astype(np.float64)).sum(axis=1), np.abs(weight).max(), limit):
        return None
    return IntegerWeights(np.ones(len(weight), np.float32), limit, 0.0, 1, weight.shape[1])


def integer_weights(weight: Array, piece: int) -> IntegerWeights | str:
    """Levels for ``weight`` [O, K] float32, of K / ``piece`` kernel rows or taps; or why sums have to stay float.

    Few-valued weights keep their values, and the inputs get what bits that leaves of 31. For others every split of the
    bits between weights and inputs is tried, each output using its share to the full: for sums of all products, and
    where those leave too few bits, of ever smaller parts.
    """
    wide = weight.astype(np.float64)
    largest = np.max(np.abs(wide), axis=1)
    if not np.all(np.isfinite(largest)) or np.any((largest > 0) & (largest < MAX_LEVEL * np.finfo(np.float32).tiny)):
        return "its weights are not of a usual magnitude"
    lattice = weight_lattice(weight)
    if not isinstance(lattice, str):
        levels = np.abs(lattice.levels).reshape(wide.shape)
        limit = min(MAX_LEVEL, MAX_SUM // max(1, int(levels.sum(axis=1).max())))
        scale = lattice.scale.astype(np.float32)
        error = _error(wide, scale)
        if limit == 0 or _expected(limit, error) > _MAX_ERROR:
            return f"sums of {wide.shape[1]} products leave inputs too few bits"
        return IntegerWeights(scale, limit, error, 1, wide.shape[1])
    for products in (wide.shape[1], *(size for size in _PARTS if size < wide.shape[1])):
        run_parts = -(-piece // products)
        run = -(-piece // (2 * run_parts)) * 2
        runs_per_sum = max(1, products // piece)
        sums = _largest_sums(np.abs(wide), piece, run, runs_per_sum)
        # The estimates are near: the best one that fits is mostly the first.
        splits = [(limit, _smallest_scales(largest, sums, limit, run * runs_per_sum)) for limit in _LIMITS]
        splits.sort(key=lambda split: _expected(split[0], _estimated_error(wide, split[1])))
        for limit, scale in splits:
            if _expected(limit, _estimated_error(wide, scale)) > 1.5 * _MAX_ERROR:
                break
            levels = np.abs(_levels(wide, scale))
            if not _fits(_largest_sums(levels, piece, run, runs_per_sum), levels.max(), limit):
                continue
            error = _error(wide, scale)
            if _expected(limit, error) <= _MAX_ERROR and _row_error(wide, scale) <= _MAX_ROW_ERROR:
                return IntegerWeights(scale, limit, error, run_parts, runs_per_sum)
            break
    return "its weights differ too much in magnitude"


def _levels(weight: Array, scale: Array) -> Array:
    levels: Array = np.rint(weight / scale[:, None].astype(np.float64))
    return levels


def _error(weight: Array, scale: Array) -> float:
    norm = float(np.linalg.norm(weight))
    return float(np.linalg.norm(_levels(weight, scale) * scale[:, None] - weight)) / norm if norm else 0.0


def _largest_sums(magnitudes: Array, piece: int, run: int, runs_per_sum: int) -> Array:
    """[O]: the largest sum of ``magnitudes`` [O, K] over the products that meet in 32 bits."""
    outputs = len(magnitudes)
    pieces = magnitudes.reshape(outputs, -1, piece)
    starts = np.arange(0, piece, run)
    runs = np.add.reduceat(pieces, starts, axis=2).reshape(outputs, -1)
    sums = np.add.reduceat(runs, np.arange(0, runs.shape[1], runs_per_sum), axis=1)
    largest: Array = np.max(sums, axis=1)
    return largest


def _fits(sums: Array, largest: float, limit: int) -> bool:
    return bool(largest <= MAX_LEVEL and np.max(sums) * limit <= MAX_SUM)


def _smallest_scales(largest: Array, sums: Array, limit: int, products: int) -> Array:
    """The smallest scale of each output whose sums fit, whatever rounding does to its levels."""
    room = MAX_SUM / limit * (1 - 1e-6) - products / 2
    ratio = np.divide(largest, sums, out=np.ones_like(sums), where=sums > 0)
    top = np.floor(np.clip(room * ratio, 1, MAX_LEVEL))
    scale: Array = np.where(largest > 0, largest / top, 1.0).astype(np.float32)
    return scale


def _expected(limit: int, error: float) -> float:
    """The expected error of an output, over the largest one: inputs go to ``limit``, weights are off by ``error``."""
    return float(np.hypot(_PEAK / limit / np.sqrt(12), error)) / _PEAK


def _estimated_error(weight: Array, scale: Array) -> float:
    """About what :func:`_error` is: rounding is off by scale / sqrt(12)."""
    norm = float(np.linalg.norm(weight))
    squares = float(np.count_nonzero(weight, axis=1) @ scale.astype(np.float64) ** 2) / 12
    return float(np.sqrt(squares)) / norm if norm else 0.0


def _row_error(weight: Array, scale: Array) -> float:
    """The largest of any output, over a usual weight: one large weight must not cost the others all their bits."""
    off = np.sqrt(np.mean((_levels(weight, scale) * scale[:, None] - weight) ** 2, axis=1))
    magnitudes = np.where(weight == 0.0, np.nan, np.abs(weight))
    used = ~np.isnan(magnitudes).all(axis=1)
    if not used.any():
        return 0.0
    return float(np.max(off[used] / np.nanmedian(magnitudes[used], axis=1)))
