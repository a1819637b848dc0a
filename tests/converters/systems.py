"""Quantizers of published low-bit systems in float64, as their papers define the forward pass."""

from __future__ import annotations

import numpy as np
from nets import Array


def _column(weight: Array) -> tuple[int, ...]:
    return (-1,) + (1,) * (weight.ndim - 1)


def _filter_axes(weight: Array) -> tuple[int, ...]:
    return tuple(range(1, weight.ndim))


def sign(values: Array) -> Array:
    """+1 for values >= 0, else -1."""
    return np.where(values >= 0.0, 1.0, -1.0)


def binary_connect(weight: Array, height: float = 1.0) -> Array:
    """BinaryConnect, deterministic (Courbariaux et al., arXiv 1511.00363): H for w >= 0, else -H."""
    return height * sign(weight)


def scaled_binary(weight: Array) -> Array:
    """XNOR-Net, BWN, HWGQ, Bi-Real: ``mean|W_o| * sign(W_o)`` per filter (arXiv 1603.05279)."""
    alpha = np.abs(weight).mean(axis=_filter_axes(weight))
    return alpha.reshape(_column(weight)) * sign(weight)


def ternary_weight(weight: Array) -> Array:
    """TWN (Li et al., arXiv 1605.04711): threshold 0.7 mean|W|, one scale: the mean magnitude above it."""
    threshold = 0.7 * np.abs(weight).mean()
    above = np.abs(weight) > threshold
    return np.abs(weight[above]).mean() * np.where(above, np.sign(weight), 0.0)


def trained_ternary(weight: Array, positive: float, negative: float, t: float = 0.05) -> Array:
    """TTQ (Zhu et al., arXiv 1612.01064): {-W_n, 0, W_p}, threshold t max|W|; both scales are learned."""
    threshold = t * np.abs(weight).max()
    return np.where(weight > threshold, positive, np.where(weight < -threshold, -negative, 0.0))


def incremental_power_of_two(weight: Array, bits: int = 5) -> Array:
    """INQ (Zhou et al., arXiv 1702.03044): {0, +-2^n2 .. +-2^n1}, n1 = floor(log2(4 max|W| / 3)).

    n2 = n1 + 1 - 2^(bits - 1) / 2: 16 values and zero at 5 bits. Each weight takes the power beta with alpha and beta
    neighbours in the set and (alpha + beta) / 2 <= |w| < 3 beta / 2.
    """
    top = int(np.floor(np.log2(4.0 * np.abs(weight).max() / 3.0)))
    powers = 2.0 ** np.arange(top + 1 - (1 << (bits - 1)) // 2, top + 1)
    alphas = np.concatenate([[0.0], powers[:-1]])
    index = np.searchsorted((alphas + powers) / 2, np.abs(weight), side="right")
    return np.sign(weight) * np.concatenate([[0.0], powers])[index]


def two_step_ternary(weight: Array) -> Array:
    """TSQ (Wang et al., CVPR 2018): per filter ``alpha * t``, t in {-1, 0, 1}, the least squares fit.

    For a given count of non-zeros the best are the largest magnitudes; the count with the largest
    (sum of them)^2 / count wins, and alpha is their mean.
    """
    rows = weight.reshape(weight.shape[0], -1)
    result = np.zeros_like(rows)
    for out, row in zip(result, rows, strict=True):
        order = np.argsort(-np.abs(row))
        sums = np.cumsum(np.abs(row)[order])
        count = int(np.argmax(sums**2 / np.arange(1, row.size + 1))) + 1
        out[order[:count]] = sums[count - 1] / count * np.sign(row[order[:count]])
    return result.reshape(weight.shape)


def abc_bases(weight: Array, count: int) -> tuple[Array, Array]:
    """ABC-Net (Lin et al., arXiv 1711.11294): (alphas [M], bases [M, ...]) of the whole layer.

    B_m = sign(W - mean + u_m std) with u_m = -1 + (m - 1) * 2 / (M - 1); alpha by least squares.
    """
    shifts = np.linspace(-1.0, 1.0, count)
    bases = np.stack([sign(weight - weight.mean() + shift * weight.std()) for shift in shifts])
    alphas = np.linalg.lstsq(bases.reshape(count, -1).T, weight.ravel(), rcond=None)[0]
    return alphas, bases


def learned_bases(weight: Array, bits: int, rounds: int = 4) -> tuple[Array, Array]:
    """LQ-Net (Zhang et al., arXiv 1807.10029): (basis v [O, bits], codes [O, bits, ...] of +-1) per filter.

    Quantization error minimization: with v fixed each weight takes the nearest of the 2^bits sums of +-v_i, with the
    codes fixed v is their least squares solution.
    """
    rows = weight.reshape(weight.shape[0], -1)
    codes_of = np.asarray([[1.0 if code >> bit & 1 else -1.0 for bit in range(bits)] for code in range(1 << bits)])
    basis = np.abs(rows).mean(axis=1, keepdims=True) * 2.0 ** np.arange(bits) / 2.0
    codes = np.zeros((*rows.shape, bits))
    for _ in range(rounds):
        for o, row in enumerate(rows):
            nearest = np.argmin(np.abs(row[:, None] - codes_of @ basis[o]), axis=1)
            codes[o] = codes_of[nearest]
            basis[o] = np.linalg.lstsq(codes[o], row, rcond=None)[0]
    for o, row in enumerate(rows):
        codes[o] = codes_of[np.argmin(np.abs(row[:, None] - codes_of @ basis[o]), axis=1)]
    return basis, np.moveaxis(codes, 2, 1).reshape(weight.shape[0], bits, *weight.shape[1:])


def deep_compression(weight: Array, bits: int, keep: float, rng: np.random.Generator) -> Array:
    """Deep Compression (Han et al., arXiv 1510.00149): the largest magnitudes share 2^bits - 1 values.

    Linear initialisation and k-means on what pruning left; entry 0 of the codebook is the pruned weights' zero.
    """
    flat = weight.ravel()
    kept = np.abs(flat) >= np.quantile(np.abs(flat), 1.0 - keep)
    values = flat[kept]
    centroids = np.linspace(values.min(), values.max(), (1 << bits) - 1)
    for _ in range(10):
        nearest = np.argmin(np.abs(values[:, None] - centroids), axis=1)
        for k in range(centroids.size):
            if np.any(nearest == k):
                centroids[k] = values[nearest == k].mean()
    result = np.zeros_like(flat)
    # A centroid without weights stays in the codebook; a random weight keeps its code in use.
    nearest = np.argmin(np.abs(values[:, None] - centroids), axis=1)
    for k in range(centroids.size):
        if not np.any(nearest == k):
            nearest[rng.integers(nearest.size)] = k
    result[kept] = centroids[nearest]
    return result.reshape(weight.shape)


def entropy_constrained(weight: Array, step: float) -> Array:
    """ECQ (Choi et al., arXiv 1612.01543): uniform quantization, any number of levels, then Huffman codes."""
    return step * np.rint(weight / step)


def adaptive_binary(weight: Array) -> Array:
    """AdaBin (Tu et al., arXiv 2208.08084): ``std_o * b + mean_o`` per filter, b = sign((w - mean) / std).

    Both are the closed form of the paper; the filter's two values lie anywhere.
    """
    mean = weight.mean(axis=_filter_axes(weight)).reshape(_column(weight))
    std = weight.std(axis=_filter_axes(weight)).reshape(_column(weight))
    return std * sign((weight - mean) / std) + mean


def information_retaining(weight: Array) -> Array:
    """IR-Net (Qin et al., arXiv 1909.10788): ``sign(w_std) * 2^s``, s = round(log2(mean|w_std|)).

    w_std is balanced and standardized per filter.
    """
    balanced = weight - weight.mean(axis=_filter_axes(weight)).reshape(_column(weight))
    standardized = balanced / balanced.std(axis=_filter_axes(weight), ddof=1).reshape(_column(weight))
    shift = np.rint(np.log2(np.abs(standardized).mean(axis=_filter_axes(weight))))
    return sign(standardized) * (2.0**shift).reshape(_column(weight))


def dorefa_weight(weight: Array, bits: int) -> Array:
    """DoReFa-Net (Zhou et al., arXiv 1606.06160, equations 9 and 11).

    1 bit: ``mean|W| * sign(W)`` of the layer. k bits: 2 q(tanh(w) / (2 max|tanh(W)|) + 1/2) - 1 with q rounding to
    multiples of 1 / (2^k - 1).
    """
    if bits == 1:
        return np.abs(weight).mean() * sign(weight)
    levels = (1 << bits) - 1
    squashed = np.tanh(weight)
    return 2.0 * np.rint(levels * (squashed / (2.0 * np.abs(squashed).max()) + 0.5)) / levels - 1.0
