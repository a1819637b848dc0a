"""Fully connected layers as codebooks: exact where weights have few values, pruned and quantized where asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .graph import Array

MAX_CODES = 16
MAX_LEVEL = 16383  # 14 bits: eight products with inputs of 15 bits mostly fit a sum of 32 bits
_MAX_LEVEL_FEATURES = 65536
_MIN_ZEROS = 0.5
_MAX_LEVEL_ERROR = 1e-4
_KMEANS_ROUNDS = 100
_CODES_AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class Codebook:
    """File layout of a codebook layer (csrc/ir/ops.h); no ``bitmap`` where every position has a code."""

    code_bits: int
    values: Array  # float32, at most 2**code_bits
    bitmap: Array | None  # bool [O, K]
    codes: Array  # uint8, packed

    @property
    def nbytes(self) -> int:
        bitmap = 0 if self.bitmap is None else self.bitmap.shape[0] * -(-self.bitmap.shape[1] // 32) * 4
        return self.values.nbytes + bitmap + self.codes.nbytes


def encode_codebook(weight: Array) -> Codebook | None:
    """The smaller of the two layouts for a weight [O, K] float32; None with more than 16 distinct values and zero."""
    distinct = np.unique(weight + np.float32(0.0))
    if distinct.size > MAX_CODES + 1:
        return None
    # np.unique would sort the whole matrix for its inverse.
    codes = np.searchsorted(distinct, weight).astype(np.uint8)
    layouts: list[Codebook] = []
    if distinct.size <= MAX_CODES:
        bits = _code_bits(distinct.size)
        layouts.append(Codebook(bits, distinct, None, pack_codes(codes.ravel(), bits)))
    zero = np.flatnonzero(distinct == 0.0)
    if zero.size == 1 and distinct.size > 1:
        bits = _code_bits(distinct.size - 1)
        mask = codes != zero[0]
        shifted = codes - (codes > zero[0]).astype(np.uint8)
        layouts.append(Codebook(bits, np.delete(distinct, zero[0]), mask, pack_codes(shifted[mask], bits)))
    return min(layouts, key=lambda layout: layout.nbytes, default=None)


@dataclass(frozen=True)
class CodebookLevels:
    """Integers for the values of a codebook: value ~ level * scale. ``error`` is ``||w' - w|| / ||w||``."""

    levels: Array  # int32
    scale: float
    error: float


def integer_levels(book: Codebook, weight: Array) -> CodebookLevels | str:
    """The levels of ``book``, the codebook of ``weight`` [O, K], or why its sums have to stay float.

    The largest magnitude gets every level up to MAX_LEVEL in turn: the scale whose grid all values lie on wins, with
    the smallest level, or else the one with the smallest error.
    """
    values, counts = np.unique(weight, return_counts=True)
    largest = float(np.max(np.abs(values)))
    if weight.shape[1] > _MAX_LEVEL_FEATURES:
        return f"more than {_MAX_LEVEL_FEATURES} inputs"
    if book.bitmap is not None and book.values.size == MAX_CODES:
        return "16 values and zero"
    if not MAX_LEVEL * np.finfo(np.float32).tiny < largest < np.inf:
        return "no weight of a usual magnitude"
    if np.mean(weight == 0.0) < _MIN_ZEROS:
        return "less than half of the weights are zero"
    scales = np.float32(largest / np.arange(1, MAX_LEVEL + 1)).astype(np.float64)[:, None]
    wide = values.astype(np.float64)
    squares = (np.rint(wide / scales) * scales - wide) ** 2 @ counts
    errors = np.sqrt(squares / (wide**2 @ counts))
    exact = np.flatnonzero(errors < 1e-7)
    best = int(exact[0] if exact.size else np.argmin(errors))
    scale = float(scales[best, 0])
    levels = np.rint(book.values.astype(np.float64) / scale).astype(np.int32)
    if errors[best] > _MAX_LEVEL_ERROR or np.any((levels == 0) & (book.values != 0.0)):
        return "its values differ too much in magnitude for 15 bits"
    return CodebookLevels(levels, scale, float(errors[best]))


def _code_bits(count: int) -> int:
    return 1 if count <= 2 else 2 if count <= 4 else 4


def pack_codes(codes: Array, bits: int) -> Array:
    """uint8 of ``codes`` (below 2**bits, bits 1..8) one after the other, little end first, the last byte padded."""
    codes = codes.astype(np.uint8)
    if 8 % bits == 0:  # no code crosses the end of a byte: ten times as fast
        columns = np.pad(codes, (0, -codes.size % (8 // bits))).reshape(-1, 8 // bits)
        packed = np.zeros(len(columns), np.uint8)
        for place in range(8 // bits):
            packed |= columns[:, place] << np.uint8(place * bits)
        return packed
    planes = np.arange(bits, dtype=np.uint8)
    parts = np.split(codes, range(_CODES_AT_A_TIME, codes.size, _CODES_AT_A_TIME))
    return np.concatenate([np.packbits(part[:, None] >> planes & 1, bitorder="little") for part in parts])


@dataclass(frozen=True)
class Compression:
    """A compressed weight and what it cost: error is ``||w' - w|| / ||w||``."""

    weight: Array
    sparsity: float
    error: float


def compress(weight: Array, prune: float, bits: int) -> Compression:
    """Prunes the ``prune`` smallest magnitudes and clusters the rest into ``2**bits - 1`` values by 1-D k-means.

    Centroids start linearly between the smallest and the largest surviving weight (Han et al., Deep Compression, 2016,
    section 3); zero stays exactly zero.
    """
    flat = weight.astype(np.float64).ravel()
    keep = np.ones(flat.size, bool)
    dropped = round(prune * flat.size)
    if dropped:
        keep[np.argsort(np.abs(flat), kind="stable")[:dropped]] = False
    keep &= flat != 0.0
    result = np.zeros(flat.size, np.float32)
    if keep.any():
        centroids, nearest = kmeans(flat[keep], (1 << bits) - 1)
        result[keep] = centroids[nearest]
    norm = float(np.linalg.norm(flat))
    error = float(np.linalg.norm(result - flat)) / norm if norm else 0.0
    return Compression(result.reshape(weight.shape), 1.0 - np.count_nonzero(result) / flat.size, error)


def kmeans(values: Array, clusters: int) -> tuple[Array, Array]:
    """1-D k-means of ``values`` float64 [N]: centroids float32 [clusters], none of them zero, and the nearest of each.

    Centroids start linearly between the smallest and the largest value. One that loses its values, as in the hole
    that pruning leaves around zero, takes half of those of the cluster with the largest error.
    """
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    squares = np.concatenate([[0.0], np.cumsum(ordered**2)])
    centroids = np.linspace(ordered[0], ordered[-1], clusters)
    for _ in range(_KMEANS_ROUNDS):
        edges = np.searchsorted(ordered, (centroids[:-1] + centroids[1:]) / 2)
        begin, end = np.concatenate([[0], edges]), np.concatenate([edges, [ordered.size]])
        count, total = end - begin, sums[end] - sums[begin]
        filled = count > 0
        means = centroids.copy()
        means[filled] = total[filled] / count[filled]
        several = np.flatnonzero(filled & (ordered[begin.clip(max=ordered.size - 1)] < ordered[end - 1]))
        errors = (squares[end] - squares[begin] - total * means)[several]
        split = several[np.argsort(-errors, kind="stable")][: np.count_nonzero(~filled)]
        middle = np.searchsorted(ordered, means[split]).clip(begin[split] + 1, end[split] - 1)
        means[split] = (sums[middle] - sums[begin[split]]) / (middle - begin[split])
        means[np.flatnonzero(~filled)[: split.size]] = (sums[end[split]] - sums[middle]) / (end[split] - middle)
        means.sort()
        if np.array_equal(means, centroids):
            break
        centroids = means
    centroids = centroids.astype(np.float32)
    # A centroid that lands on 0 would make a survivor a zero: it moves to the smallest float instead.
    centroids[centroids == 0.0] = np.finfo(np.float32).tiny
    return centroids, np.searchsorted((centroids[:-1].astype(np.float64) + centroids[1:]) / 2, values)
