"""Few values as sums of fewer: bases for weights, steps for activations. Numpy only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..graph import Array
from ..values import TOLERANCE, Levels, distinct_values, encode_levels, small_lattice

MAX_BASES = 8
# Values closer than this share of the largest are not told apart by a threshold between them.
_MIN_GAP = 1e-5


@dataclass(frozen=True)
class WeightBases:
    """``weight[o] = offset[o] + sum over j of scales[j, o] * signs[j, o]`` with signs of +-1.

    ``scales`` float64 [J, O], ``signs`` int8 [J, O, ...], ``offset`` float64 [O].
    """

    scales: Array
    signs: Array
    offset: Array


def weight_bases(weight: Array) -> WeightBases | None:
    """Writes each output channel of ``weight`` [O, ...] as a sum of few bases; None where it takes more than 8.

    Less its smallest value, every value v_k of a channel is to be a sum of some of d_1, d_2, ... > 0, each at most
    once. Two ways are tried, the one with fewer bases wins, then the one without offset:

    - The smallest value that no sum gives yet becomes the next d. That finds 2 v1 and 2 v2 for LQ-Net's {+-v1 +-v2},
      and the difference of AdaBin's two values.
    - d_k = v_k - v_(k-1), of which v_k takes the first k. That suits nested bases such as ABC-Net's.

    With h = (1 + s) / 2 in {0, 1} the sum of d_j h_j is that of d_j / 2 * s_j, and an offset.
    """
    rows = np.asarray(weight, np.float64).reshape(weight.shape[0], -1)
    ways = [_all_rows(rows, way) for way in (_subset_sums, _differences)]
    found = [way for way in ways if way is not None]
    best = min(found, key=lambda way: (len(way.scales), way.offset.any()), default=None)
    if best is None or not len(best.scales):
        return None
    return WeightBases(best.scales, best.signs.reshape(-1, *weight.shape), best.offset)


def _all_rows(rows: Array, way: Callable[[Array, float], Array | None]) -> WeightBases | None:
    found: list[tuple[Array, Array, float]] = []
    for row in rows:
        one = _row_bases(row, way)
        if one is None:
            return None
        found.append(one)
    count = max(scale.size for scale, _, _ in found)
    scales, offset = np.zeros((count, rows.shape[0])), np.zeros(rows.shape[0])
    signs = np.ones((count, *rows.shape), np.int8)
    for o, (scale, sign, rest) in enumerate(found):
        if scale.size:
            # A channel that needs fewer has its last base in equal parts.
            parts = count - scale.size + 1
            scales[:, o] = np.concatenate([scale[:-1], np.full(parts, scale[-1] / parts)])
            signs[: scale.size, o], signs[scale.size :, o], offset[o] = sign, sign[-1], rest
        elif count:
            scales[:, o] = rest / count  # one value only: parts of it times +1 instead of an offset
    return WeightBases(scales, signs, offset)


def _row_bases(row: Array, way: Callable[[Array, float], Array | None]) -> tuple[Array, Array, float] | None:
    """(scales [J], signs [J, K], offset) of one channel."""
    distinct = distinct_values(row, 1 << MAX_BASES)
    if distinct is None:
        return None
    near = TOLERANCE * float(np.max(np.abs(distinct)))
    chosen = way(distinct - distinct[0], near)
    if chosen is None:
        return None
    # The values were rounded to float32, sums of them more than once: take the bases that fit all of them best.
    system = np.column_stack([np.where(chosen, 1.0, -1.0), np.ones(len(chosen))])
    solution = np.linalg.lstsq(system, distinct, rcond=None)[0]
    if np.max(np.abs(system @ solution - distinct)) > near:
        return None
    nearest = np.searchsorted((distinct[:-1] + distinct[1:]) / 2, row)
    offset = float(solution[-1])
    return solution[:-1], system[nearest, :-1].T.astype(np.int8), 0.0 if abs(offset) <= near else offset


def _subset_sums(above: Array, near: float) -> Array | None:
    """Which bases each of the values, the first 0, is the sum of: bool [K, J]."""
    sums, picks = np.zeros(1), np.zeros((1, 0), bool)
    for value in above:
        if np.min(np.abs(sums - value)) <= near:
            continue
        if picks.shape[1] == MAX_BASES:
            return None
        sums = np.concatenate([sums, sums + value])
        picks = np.concatenate([np.pad(picks, ((0, 0), (0, 1)), constant_values=taken) for taken in (False, True)])
    return np.asarray(picks[np.argmin(np.abs(sums[None] - above[:, None]), axis=1)])


def _differences(above: Array, near: float) -> Array | None:
    count = above.size - 1
    return np.tri(count + 1, count, -1, dtype=bool) if count <= MAX_BASES else None


@dataclass(frozen=True)
class ActivationPart:
    """A step function of the activation: ``levels[k]`` at its k-th value, integers without a common factor."""

    scale: float
    levels: tuple[int, ...]

    @property
    def planes(self) -> int:
        encoding = encode_levels(self.levels)
        assert encoding is not None  # at most 16 levels in steps of one
        return encoding.planes


@dataclass(frozen=True)
class ActivationParts:
    """``values[k] = offset + sum over the parts of scale * levels[k]``, values ascending."""

    values: Array
    parts: tuple[ActivationPart, ...]
    offset: float

    @property
    def planes(self) -> int:
        return sum(part.planes for part in self.parts)


def activation_parts(values: Array) -> ActivationParts | None:
    """Writes a set of values as a sum of few monotone step functions on integers; None for a single value.

    On a lattice one part is enough. Else each step from a value to the next is its own part, and equal steps share
    one: LQ-Net's {0, v1, v2, v1 + v2} steps by v1, v2 - v1 and v1, so it has two parts, {0, 1, 1, 2} and
    {0, 0, 1, 1}. Every part is 0 at 0 if that is one of the values, since a convolution pads with it; or else odd
    about the middle, which is then the offset.
    """
    values = np.unique(np.asarray(values, np.float64))
    largest = float(np.max(np.abs(values), initial=0.0))
    steps = np.diff(values)
    if values.size < 2 or np.min(steps) < _MIN_GAP * largest:
        return None
    lattice = small_lattice(values)
    if isinstance(lattice, Levels) and encode_levels(lattice.levels) is not None:
        return ActivationParts(values, (ActivationPart(lattice.scale, lattice.levels),), 0.0)
    zero = np.flatnonzero(np.abs(values) <= TOLERANCE * largest)
    parts: list[ActivationPart] = []
    left = list(range(steps.size))
    while left:
        same = [index for index in left if abs(steps[index] - steps[left[0]]) <= TOLERANCE * largest]
        left = [index for index in left if index not in same]
        counts = np.searchsorted(np.asarray(same), np.arange(values.size), side="left")
        levels = counts - counts[zero[0]] if zero.size else 2 * counts - len(same)
        common = math.gcd(*(int(level) for level in levels))
        step = float(np.mean(steps[same])) / (1 if zero.size else 2)
        parts.append(ActivationPart(step * common, tuple(int(level) // common for level in levels)))
    middle = 0.0 if zero.size else float(values[0] + values[-1]) / 2
    return ActivationParts(values, tuple(parts), 0.0 if abs(middle) <= TOLERANCE * largest else middle)
