from __future__ import annotations

import numpy as np
import pytest
from tac_engine.converters.values import (
    BINARY,
    SIGN_ZERO,
    WeightLattice,
    distinct_values,
    encode_levels,
    fit_levels,
    weight_lattice,
)


def test_fit_levels_reads_scale_and_integers() -> None:
    fit = fit_levels(np.asarray([0.0, 0.538, 1.076, 1.614]))
    assert fit is not None
    assert fit.levels == (0, 1, 2, 3)
    assert fit.scale == pytest.approx(0.538, rel=1e-12)


def test_fit_levels_forgives_an_ulp_and_nothing_more() -> None:
    near = fit_levels(np.asarray([-1.0, np.nextafter(np.float32(1), np.float32(2))]))
    assert near is not None and near.levels == (-1, 1)
    assert fit_levels(np.asarray([-1.0, 1.001])) is None
    assert fit_levels(np.asarray([1.0, np.nan])) is None


def test_distinct_values_merges_within_the_tolerance() -> None:
    assert distinct_values(np.asarray([1.0, 1.0 + 1e-7, -1.0]), 2) is not None
    assert distinct_values(np.asarray([1.0, 1.1, -1.0]), 2) is None


@pytest.mark.parametrize(
    ("levels", "planes", "all_levels"),
    [
        ((-1, 1), 1, [-1, 1]),
        ((1,), 1, [-1, 1]),
        ((-1, 0, 1), 2, [-1, 0, 1]),
        ((0, 1), 1, [0, 1]),
        ((0, 1, 2, 3), 2, [0, 1, 2, 3]),
        ((-3, -1, 1, 3), 2, [-3, -1, 1, 3]),
        ((0, 15), 1, [0, 15]),
        (tuple(range(16)), 4, list(range(16))),
    ],
)
def test_encode_levels(levels: tuple[int, ...], planes: int, all_levels: list[int]) -> None:
    encoding = encode_levels(levels)
    assert encoding is not None
    assert encoding.planes == planes
    assert encoding.levels == all_levels


def test_encode_levels_names_and_limit() -> None:
    assert encode_levels((-1, 1)) == BINARY
    assert encode_levels((-1, 0, 1)) == SIGN_ZERO
    assert encode_levels(tuple(range(17))) is None


def test_weight_lattice_reads_folded_batch_norm_scales() -> None:
    rng = np.random.default_rng(1)
    signs = rng.choice([-1.0, 1.0], (8, 4, 3, 3))
    scales = rng.uniform(0.1, 3.0, (8, 1, 1, 1))
    noise = 1 + rng.uniform(-2.4e-7, 2.4e-7, signs.shape)
    lattice = weight_lattice((signs * scales * noise).astype(np.float32))
    assert isinstance(lattice, WeightLattice)
    assert lattice.values == (-1, 1)
    np.testing.assert_array_equal(lattice.levels, signs)
    np.testing.assert_allclose(lattice.scale, scales.ravel(), rtol=1e-6)


def test_weight_lattice_refuses_float_weights_by_name_of_the_channel() -> None:
    weight = np.ones((3, 40), np.float32)
    weight[2] = np.random.default_rng(0).normal(size=40)
    reason = weight_lattice(weight)
    assert isinstance(reason, str)
    assert "output channel 2" in reason


def test_weight_lattice_keeps_an_all_zero_channel() -> None:
    lattice = weight_lattice(np.asarray([[0.0, 0.0], [0.5, -0.5]], np.float32))
    assert isinstance(lattice, WeightLattice)
    assert lattice.values == (-1, 0, 1)


@pytest.mark.parametrize("top", range(1, 9))
def test_weight_planes_add_up_to_the_levels(top: int) -> None:
    levels = np.random.default_rng(top).integers(-top, top + 1, (3, 64))
    levels[0, :2] = (-top, top)
    coefs, shift, planes = WeightLattice(np.ones(3), levels).planes()
    total = sum(coef * (1 - 2 * plane.astype(np.int64)) for coef, plane in zip(coefs, planes, strict=True))
    np.testing.assert_array_equal(total, levels * (1 << shift))


@pytest.mark.parametrize(("low", "high"), [(0, 15), (-4, 11), (-11, 4), (-15, 0), (3, 10), (-12, -9), (16, 31), (9, 9)])
def test_sixteen_levels_in_a_row_take_five_planes_at_most(low: int, high: int) -> None:
    weight = np.random.default_rng(0).integers(low, high + 1, (3, 64)).astype(np.float32)
    weight[:, :2] = (low, high)
    lattice = weight_lattice(weight * np.float32(0.3))
    assert isinstance(lattice, WeightLattice)
    coefs, shift, planes = lattice.planes()
    assert len(coefs) <= 5
    total = sum(coef * (1 - 2 * plane.astype(np.int64)) for coef, plane in zip(coefs, planes, strict=True))
    levels = total / (1 << shift)
    np.testing.assert_allclose(levels * lattice.scale[:, None], weight * np.float32(0.3), rtol=1e-6)


def test_zero_points_of_channels_can_need_too_many_levels() -> None:
    weight = np.stack([np.arange(-15, 1), np.arange(16)]).astype(np.float32)
    assert weight_lattice(weight) == "the weight levels of all output channels are -15 to 15, more than sixteen"


@pytest.mark.parametrize(("top", "count"), [(3, 2), (5, 3), (7, 3)])
def test_odd_levels_take_one_plane_less(top: int, count: int) -> None:
    levels = np.arange(-top, top + 1, 2).reshape(1, -1)
    lattice = WeightLattice(np.ones(1), levels)
    coefs, shift, planes = lattice.planes()
    assert (len(coefs), shift, lattice.describe()) == (count, 0, f"{count}-bit")
    total = sum(coef * (1 - 2 * plane.astype(np.int64)) for coef, plane in zip(coefs, planes, strict=True))
    np.testing.assert_array_equal(total, levels)


def test_binary_weights_take_one_plane_where_bit_1_is_minus_1() -> None:
    coefs, shift, planes = WeightLattice(np.ones(1), np.asarray([[-1, 1, 1]])).planes()
    assert (coefs, shift) == ((1,), 0)
    np.testing.assert_array_equal(planes[0], [[1, 0, 0]])
