"""Weights of float layers in the file: as few bytes as their values need, and every value exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core
from .codebook import pack_codes
from .graph import Array

MAX_VALUES = 256


@dataclass(frozen=True)
class CodedWeights:
    """One of the layouts of csrc/ir/ops.h for a weight [O, K].

    ``values`` float32: a codebook [n] or one for each row [O, n]. With a ``bitmap`` (bool [O, K]) only the weights that
    it names have a code, the others are 0. Where ``code_bits`` is 0 there are no codes and ``values`` are the weights
    themselves that the bitmap names. ``count`` is the number of values of a row, 0 included.
    """

    values: Array
    code_bits: int
    bitmap: Array | None
    codes: Array
    count: int = 0

    @property
    def nbytes(self) -> int:
        bitmap = 0 if self.bitmap is None else self.bitmap.shape[0] * -(-self.bitmap.shape[1] // 32) * 4
        return self.values.nbytes + bitmap + self.codes.nbytes

    @property
    def bits(self) -> str:
        """For the report: "1", "ternary", "5", or "32"."""
        if self.code_bits == 0:
            return "32"
        return {1: "1", 2: "1", 3: "ternary"}.get(self.count, str((self.count - 1).bit_length()))

    def describe(self) -> str:
        zeros = "" if self.bitmap is None else f"a bitmap of the {1 - self.bitmap.mean():.0%} zeros and "
        if self.code_bits == 0:
            return f"{zeros}floats"
        book = f"{self.values.shape[-1]} values" + (" per output" if self.values.ndim == 2 else "")
        return f"{zeros}{self.code_bits}-bit codes of {book}"

    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "values": np.ascontiguousarray(self.values).ravel(),
            "code_bits": self.code_bits,
            "per_output": self.values.ndim == 2,
            "codes": self.codes,
        }
        if self.bitmap is not None:
            fields["bitmap"] = np.asarray(_core.pack_bits(self.bitmap.astype(np.uint8))).ravel()
        return fields


def encode_weights(weight: Array) -> CodedWeights | None:
    """The smallest layout for ``weight`` [O, K] float32; None where it takes least as it is."""
    weight = np.ascontiguousarray(weight)
    nonzero = weight != 0.0
    layouts: list[CodedWeights] = []
    if not nonzero.all():
        layouts.append(floats_behind_bitmap(weight))
    rows = _row_values(weight)
    if rows is not None:
        layouts += _without_zero(weight, nonzero, rows)
        layouts += _codebooks(weight, rows)
    best = min(layouts, key=lambda layout: layout.nbytes, default=None)
    return best if best is not None and best.nbytes < weight.nbytes else None


def floats_behind_bitmap(weight: Array) -> CodedWeights:
    """The layout without codes, for any ``weight`` [O, K] float32."""
    nonzero = weight != 0.0
    return CodedWeights(weight[nonzero], 0, nonzero, np.zeros(0, np.uint8))


def _row_values(weight: Array) -> list[Array] | None:
    """The distinct values of each row, ascending; None where a row has more than fit."""
    rows: list[Array] = []
    for row in weight:
        values = np.unique(row + np.float32(0.0))  # -0.0 is 0.0
        if values.size > MAX_VALUES + 1:
            return None
        rows.append(values)
    return rows


def _codebooks(weight: Array, rows: list[Array]) -> list[CodedWeights]:
    shared = np.unique(np.concatenate(rows))
    layouts: list[CodedWeights] = []
    if shared.size <= MAX_VALUES:
        layouts.append(_layout(shared, None, np.searchsorted(shared, weight.ravel()), shared.size))
    count = max(values.size for values in rows)
    if count < shared.size and count <= MAX_VALUES:
        codes = [np.searchsorted(values, row) for values, row in zip(rows, weight, strict=True)]
        layouts.append(_layout(_stacked(rows, count), None, np.concatenate(codes), count))
    return layouts


def _without_zero(weight: Array, nonzero: Array, rows: list[Array]) -> list[CodedWeights]:
    """The codebooks behind a bitmap."""
    if nonzero.all() or not nonzero.any():
        return []
    rows = [values[values != 0.0] for values in rows]
    shared = np.unique(np.concatenate(rows))
    layouts: list[CodedWeights] = []
    if shared.size <= MAX_VALUES:
        layouts.append(_layout(shared, nonzero, np.searchsorted(shared, weight[nonzero]), shared.size + 1))
    count = max(values.size for values in rows)
    if count < shared.size and count <= MAX_VALUES:
        codes = [np.searchsorted(values, row[row != 0.0]) for values, row in zip(rows, weight, strict=True)]
        layouts.append(_layout(_stacked(rows, count), nonzero, np.concatenate(codes), count + 1))
    return layouts


def _stacked(rows: list[Array], count: int) -> Array:
    """Codebooks [O, count]; a shorter one is filled up with values that no code names."""
    return np.stack([np.resize(values if values.size else np.ones(1, np.float32), count) for values in rows])


def _layout(values: Array, bitmap: Array | None, codes: Array, count: int) -> CodedWeights:
    bits = max(1, (values.shape[-1] - 1).bit_length())
    return CodedWeights(values, bits, bitmap, pack_codes(codes, bits), count)
