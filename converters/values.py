"""Value sets: which integers, times which scale, a tensor can hold.

A tensor is a *lattice* if every value is ``scale * level`` with a few integer levels. Exporters fold BatchNorm into
+-s_c and detach tricks miss +-1 by an ulp, so levels are read within a relative tolerance of 1e-6.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import Array

TOLERANCE = 1e-6
MAX_LEVELS = 16
MAX_WEIGHT_LEVEL = 8
MAX_SHIFTED_LEVEL = 31  # of sixteen levels or fewer in a row, which a zero point moves away from 0
_MAX_DIVISOR = 16


@dataclass(frozen=True)
class Levels:
    """Values ``scale * level`` for each of ``levels`` (ascending integers, greatest common divisor 1)."""

    scale: float
    levels: tuple[int, ...]

    def nearest(self, values: Array) -> Array:
        """The level that each value is closest to, in ``levels`` or not, int64 of the same shape."""
        return np.rint(np.asarray(values, np.float64) / self.scale).astype(np.int64)

    def holds(self, values: Array, errors: Array | float = 0.0) -> bool:
        """Whether every value, up to its error, is that of a level, in ``levels`` or not."""
        scaled = np.asarray(values, np.float64) / self.scale
        top = max(1, *(abs(level) for level in self.levels))
        near = np.abs(scaled - np.rint(scaled)) <= TOLERANCE * top + errors / self.scale
        return bool(np.all(np.isfinite(scaled)) and np.all(near))

    def widened(self, values: Array) -> Levels | None:
        """With a level for each of ``values`` that is none yet; None where that adds no level.

        A lattice cannot get any between its levels.
        """
        return self if self.holds(values) else None

    def index(self, values: Array) -> Array:
        """Position in ``levels`` of each value, int64 of the same shape."""
        return np.searchsorted(np.asarray(self.levels), self.nearest(values))

    def describe(self) -> str:
        body = ", ".join(str(level) for level in self.levels)
        return f"{{{body}}}" if self.scale == 1.0 else f"{self.scale:.6g} * {{{body}}}"


@dataclass(frozen=True)
class Table(Levels):
    """A few values of any kind, ascending: level k is ``table[k]``."""

    table: tuple[float, ...]

    @staticmethod
    def read(values: Array) -> Table | str:
        distinct = distinct_values(values, MAX_LEVELS)
        if distinct is None:
            return "takes many values"
        return Table(1.0, tuple(range(distinct.size)), tuple(float(value) for value in distinct))

    @property
    def middles(self) -> tuple[float, ...]:
        return tuple((low + high) / 2 for low, high in itertools.pairwise(self.table))

    def nearest(self, values: Array) -> Array:
        return np.searchsorted(np.asarray(self.middles), np.asarray(values, np.float64))

    def holds(self, values: Array, errors: Array | float = 0.0) -> bool:
        table, flat = np.asarray(self.table), np.asarray(values, np.float64)
        near = np.abs(flat - table[self.nearest(flat)]) <= TOLERANCE * np.max(np.abs(table)) + errors
        return bool(np.all(np.isfinite(flat)) and np.all(near))

    def widened(self, values: Array) -> Table | None:
        wider = Table.read(np.concatenate([self.table, np.ravel(values)]))
        # A value beside a level, too far off to be it and too near to be another, adds none.
        return None if isinstance(wider, str) or len(wider.table) <= len(self.table) else wider


def fit_levels(distinct: Array) -> Levels | None:
    """The lattice that holds every one of ``distinct`` values (finite, any order), or None."""
    values = np.unique(np.asarray(distinct, np.float64))
    if values.size == 0 or not np.all(np.isfinite(values)):
        return None
    largest = float(np.max(np.abs(values)))
    if largest == 0.0:
        return Levels(1.0, (0,))
    magnitudes = np.abs(values)
    smallest = float(np.min(magnitudes[magnitudes > TOLERANCE * largest]))
    for divisor in range(1, _MAX_DIVISOR + 1):
        scale = smallest / divisor
        levels = np.rint(values / scale)
        if np.all(np.abs(values - levels * scale) <= TOLERANCE * largest):
            ints = sorted({int(level) for level in levels})
            common = math.gcd(*ints)
            ints = [level // common for level in ints]
            # The scale that fits best, not the one the smallest value happens to give.
            top = max(ints, key=abs)
            return Levels(float(values[np.argmax(magnitudes)] / top), tuple(ints))
    return None


def small_lattice(values: Array) -> Levels | str:
    """The lattice of the values of an activation, scale positive, or why there is none of few levels."""
    return lattice_of(distinct_values(values, 4 * MAX_LEVELS))


def lattice_of(distinct: Array | None) -> Levels | str:
    """:func:`small_lattice` of values that are distinct; None stands for too many."""
    if distinct is None:
        return "takes many values"
    levels = fit_levels(distinct)
    if levels is None:
        return f"its {distinct.size} values are not multiples of one scale"
    if max(levels.levels) - min(levels.levels) >= 4 * MAX_LEVELS:
        return f"its {distinct.size} values span too many levels"
    return Levels(abs(levels.scale), levels.levels if levels.scale > 0 else tuple(sorted(-v for v in levels.levels)))


def distinct_values(values: Array, limit: int) -> Array | None:
    """Distinct values up to the tolerance, ascending; None if there are more than ``limit``."""
    flat = np.unique(values).astype(np.float64)
    if flat.size == 0 or not np.all(np.isfinite(flat)):
        return None
    gap = TOLERANCE * float(np.max(np.abs(flat)))
    starts = np.concatenate([[True], np.diff(flat) > gap])
    return flat[starts] if int(starts.sum()) <= limit else None


@dataclass(frozen=True)
class Encoding:
    """How levels become packed codes; the C++ side documents the arithmetic (csrc/ir/tensor.h)."""

    kind: str  # "linear" or "sign_zero"
    lo: int
    step: int
    n_levels: int

    @property
    def planes(self) -> int:
        return 2 if self.kind == "sign_zero" else max(1, (self.n_levels - 1).bit_length())

    @property
    def levels(self) -> list[int]:
        """Ascending."""
        if self.kind == "sign_zero":
            return [-1, 0, 1]
        return sorted(self.lo + self.step * code for code in range(self.n_levels))

    def spec(self) -> dict[str, Any]:
        if self.kind == "sign_zero":
            return {"kind": "sign_zero"}
        return {"kind": "linear", "lo": self.lo, "step": self.step, "n_levels": self.n_levels}


BINARY = Encoding("linear", 1, -2, 2)
SIGN_ZERO = Encoding("sign_zero", -1, 1, 3)


def encode_levels(levels: tuple[int, ...]) -> Encoding | None:
    """The smallest encoding whose levels contain ``levels``, or None if it would need more than 16 of them."""
    low, high = min(levels), max(levels)
    if {low, high} <= {-1, 1} and 0 not in levels:
        return BINARY
    if low == -1 and high == 1:
        return SIGN_ZERO
    if low == high:
        low, high = min(low, 0), max(high, 1)
    step = math.gcd(*(level - low for level in (*levels, high)))
    count = (high - low) // step + 1
    return Encoding("linear", low, step, count) if count <= MAX_LEVELS else None


# Sign planes whose signed sum, divided by 2, reaches every integer from -m to m: the subset sums of the coefficients
# cover 0..2m.
_SYMMETRIC_COEFS: dict[int, tuple[int, ...]] = {
    1: (1, 1),
    2: (1, 1, 2),
    3: (1, 2, 3),
    4: (1, 2, 2, 3),
    5: (1, 2, 3, 4),
    6: (1, 2, 4, 5),
    7: (1, 2, 4, 7),
    8: (1, 1, 2, 4, 8),
}


# The same without a division, for odd levels only.
_ODD_COEFS: dict[int, tuple[int, ...]] = {1: (1,), 3: (1, 2), 5: (1, 2, 2), 7: (1, 2, 4)}


def _coefficients(values: tuple[int, ...]) -> tuple[tuple[int, ...], int] | None:
    """(coefficients, shift) of the fewest planes for weight levels, ascending; None if more than five would be needed.

    Sixteen levels from ``low`` on: the coefficients 1, 2, 4, 8 reach -15 .. 15 in steps of two, a fifth moves that to
    ``2 * low .. 2 * low + 30``.
    """
    low, high = values[0], values[-1]
    top = max(1, -low, high)
    if top in _ODD_COEFS and all(value % 2 != 0 for value in values):
        return _ODD_COEFS[top], 0
    if top <= MAX_WEIGHT_LEVEL:
        return _SYMMETRIC_COEFS[top], 1
    if high - low > 15 or top > MAX_SHIFTED_LEVEL:
        return None
    bits = (high - low).bit_length()
    return (*(1 << bit for bit in range(bits)), abs(2 * low + (1 << bits) - 1)), 1


@dataclass(frozen=True)
class WeightLattice:
    """Integer weights: ``weight[o] = scale[o] * levels[o]``; float64 ``scale`` [O], int64 ``levels`` [O, ...]."""

    scale: Array
    levels: Array

    @property
    def values(self) -> tuple[int, ...]:
        return tuple(int(level) for level in np.unique(self.levels))

    def planes(self) -> tuple[tuple[int, ...], int, list[Array]]:
        """(coefficients, shift, sign bits per plane): ``level = sum(coef * (1 - 2 * bit)) / 2**shift``."""
        found = _coefficients(self.values)
        assert found is not None  # weight_lattice refuses what has none
        coefs, shift = found
        # level * 2**shift + sum(coefs) = 2 * (sum of the coefficients whose sign is +1)
        rest = (self.levels * (1 << shift) + sum(coefs)) // 2
        table = {0: (0,) * len(coefs)}
        for mask in range(1, 1 << len(coefs)):
            chosen = tuple(mask >> j & 1 for j in range(len(coefs)))
            table.setdefault(sum(c for c, take in zip(coefs, chosen, strict=True) if take), chosen)
        lookup = np.zeros((sum(coefs) + 1, len(coefs)), np.uint8)
        for total, chosen in table.items():
            lookup[total] = chosen
        positive = lookup[rest]
        return coefs, shift, [(1 - positive[..., j]).astype(np.uint8) for j in range(len(coefs))]

    def describe(self) -> str:
        values = self.values
        if values in ((-1, 1), (-1,), (1,)):
            return "1-bit"
        if set(values) <= {-1, 0, 1}:
            return "ternary"
        step = math.gcd(*(value - values[0] for value in values)) or 1
        return f"{max(1, math.ceil(math.log2((values[-1] - values[0]) // step + 1)))}-bit"


def weight_lattice(weight: Array) -> WeightLattice | str:
    """Reads the lattice of a constant weight [O, ...] from its values, one scale per output channel.

    Returns the reason as text if there is none: other levels than -8 .. 8, and more than sixteen in a row.
    """
    flat = np.asarray(weight, np.float64).reshape(weight.shape[0], -1)
    levels = np.zeros(flat.shape, np.int64)
    scales = np.ones(flat.shape[0])
    for channel, row in enumerate(flat):
        distinct = distinct_values(row, 2 * MAX_WEIGHT_LEVEL + 1)
        fit = None if distinct is None else fit_levels(distinct)
        if fit is None or _coefficients(fit.levels) is None:
            count = np.unique(row).size
            return f"weights are not few-valued: output channel {channel} has {count} distinct values"
        scale = abs(fit.scale)
        scales[channel] = scale
        levels[channel] = np.rint(row / scale)
    low, high = int(levels.min()), int(levels.max())
    if _coefficients((low, high) if low < high else (low,)) is None:
        return f"the weight levels of all output channels are {low} to {high}, more than sixteen"
    return WeightLattice(scales, levels.reshape(weight.shape))
