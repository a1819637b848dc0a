from __future__ import annotations

import numpy as np
import pytest
from tac_engine.converters.codebook import (
    MAX_LEVEL,
    Codebook,
    CodebookLevels,
    compress,
    encode_codebook,
    integer_levels,
)


def decode(book: Codebook, shape: tuple[int, int]) -> np.ndarray:
    """Independent decoder of the documented layout."""
    per_byte = 8 // book.code_bits
    stream = [
        int(byte) >> (book.code_bits * i) & ((1 << book.code_bits) - 1) for byte in book.codes for i in range(per_byte)
    ]
    out = np.zeros(shape, np.float32)
    position = 0
    for index in np.ndindex(*shape):
        if book.bitmap is None or book.bitmap[index]:
            out[index] = book.values[stream[position]]
            position += 1
    return out


@pytest.mark.parametrize("values", [2, 3, 4, 5, 15, 16])
@pytest.mark.parametrize("zeros", [0.0, 0.2, 0.9])
def test_codebook_round_trip_is_exact(values: int, zeros: float) -> None:
    rng = np.random.default_rng(values)
    weight = rng.choice(rng.normal(size=values).astype(np.float32), (7, 45))
    weight[rng.random(weight.shape) < zeros] = 0.0
    book = encode_codebook(weight)
    assert book is not None
    np.testing.assert_array_equal(decode(book, weight.shape), weight)


def test_sixteen_values_and_zero_fit_and_seventeen_do_not() -> None:
    values = np.arange(1, 17, dtype=np.float32)
    weight = np.zeros((4, 64), np.float32)
    weight[0, :16] = values
    book = encode_codebook(weight)
    assert book is not None and book.bitmap is not None and book.values.size == 16
    np.testing.assert_array_equal(decode(book, weight.shape), weight)
    weight[1, 0] = 17.0
    assert encode_codebook(weight) is None


def test_a_pruned_four_bit_layer_takes_about_two_bits_a_weight() -> None:
    rng = np.random.default_rng(0)
    weight = rng.choice(np.arange(1, 16, dtype=np.float32), (256, 1024))
    weight[rng.random(weight.shape) < 0.75] = 0.0
    book = encode_codebook(weight)
    assert book is not None
    assert book.nbytes * 8 / weight.size <= 2.1


def test_compress_prunes_clusters_and_says_its_error() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    result = compress(weight, 0.75, 4)
    assert result.sparsity == pytest.approx(0.75, abs=1e-4)
    assert np.unique(result.weight).size <= 16
    kept = np.sort(np.abs(weight).ravel())[round(0.75 * weight.size)]
    np.testing.assert_array_equal(result.weight == 0.0, np.abs(weight) < kept)
    error = np.linalg.norm(result.weight - weight) / np.linalg.norm(weight)
    assert result.error == pytest.approx(error, rel=1e-6)
    # Better than cutting the same range into equal steps, which is where k-means starts.
    survivors = weight[result.weight != 0]
    grid = np.linspace(survivors.min(), survivors.max(), 15)
    uniform = grid[np.argmin(np.abs(survivors[:, None] - grid), axis=1)]
    assert np.linalg.norm(result.weight[result.weight != 0] - survivors) < np.linalg.norm(uniform - survivors)


def levels_of(weight: np.ndarray) -> tuple[Codebook, CodebookLevels]:
    book = encode_codebook(weight)
    assert book is not None
    levels = integer_levels(book, weight)
    assert isinstance(levels, CodebookLevels)
    return book, levels


def test_values_that_lie_on_a_grid_get_its_smallest_levels() -> None:
    weight = np.array([[0, 0.25, -0.75, 0], [0, 0, 0.5, 0]], np.float32)
    book, levels = levels_of(weight)
    assert dict(zip(book.values.tolist(), levels.levels.tolist(), strict=True)) | {0.0: 0} == {
        -0.75: -3,
        0.0: 0,
        0.25: 1,
        0.5: 2,
    }
    assert (levels.scale, levels.error) == (0.25, 0.0)


def test_levels_of_clustered_weights_are_close() -> None:
    weight = compress(np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32), 0.75, 4).weight
    book, levels = levels_of(weight)
    assert np.max(np.abs(levels.levels)) <= MAX_LEVEL
    rounded = np.zeros_like(weight, np.float64)
    for value, level in zip(book.values, levels.levels, strict=True):
        rounded[weight == value] = level * levels.scale
    error = np.linalg.norm(rounded - weight) / np.linalg.norm(weight)
    assert levels.error == pytest.approx(error, rel=1e-6)
    assert error < 4e-5


def test_levels_that_would_lose_a_value_are_refused() -> None:
    weight = np.array([[0, 1.0, 2e-5, 0], [0, 0, 0, -1.0]], np.float32)
    book = encode_codebook(weight)
    assert book is not None
    assert integer_levels(book, weight) == "its values differ too much in magnitude for 15 bits"
