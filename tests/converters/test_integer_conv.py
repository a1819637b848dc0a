"""Convolutions of floats in integers: levels whose sums fit, and what the option makes of layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import Net, check, convert, kinds
from onnx_models import floats
from tac_engine.converters.graph import Array
from tac_engine.converters.integer_weights import (
    MAX_LEVEL,
    MAX_SUM,
    IntegerWeights,
    integer_weights,
    whole_weights,
)
from tac_engine.converters.verify import ROUNDED_TOLERANCE, TOLERANCE, verify

import tac_engine


def levels_of(weight: Array, found: IntegerWeights) -> Array:
    return np.rint(weight.astype(np.float64) / found.scale[:, None].astype(np.float64))


def largest_sum(levels: Array, piece: int, found: IntegerWeights) -> float:
    """Of |levels| over the products of a sum of 32 bits, one output and one run after the other."""
    size = -(-piece // (2 * found.run_parts)) * 2
    largest = 0.0
    for row in np.abs(levels):
        runs = [part[i : i + size].sum() for part in row.reshape(-1, piece) for i in range(0, piece, size)]
        sums = [sum(runs[i : i + found.runs_per_sum]) for i in range(0, len(runs), found.runs_per_sum)]
        largest = max(largest, *sums)
    return largest


@pytest.mark.parametrize(
    ("products", "piece"), [(27, 9), (147, 21), (363, 33), (64, 64), (512, 512), (1152, 384), (4608, 512), (36, 4)]
)
@pytest.mark.parametrize("kind", ["normal", "one large", "uniform"])
def test_sums_fit_32_bits_and_use_them(products: int, piece: int, kind: str) -> None:
    weight = floats(20, products, seed=products)
    if kind == "one large":
        weight[:, 3] = 50.0
    elif kind == "uniform":
        weight = np.sign(weight) * (1 + np.abs(weight) * 1e-3).astype(np.float32)
    weight[7] = 0.0
    found = integer_weights(weight, piece)
    assert isinstance(found, IntegerWeights)
    levels = levels_of(weight, found)
    most = largest_sum(levels, piece, found)
    assert most * found.limit <= MAX_SUM
    assert most * found.limit >= 0.45 * MAX_SUM or found.limit == MAX_LEVEL or np.abs(levels).max() > 0.9 * MAX_LEVEL
    error = np.linalg.norm(levels * found.scale[:, None] - weight) / np.linalg.norm(weight)
    assert found.error == pytest.approx(error, rel=1e-3)
    assert error < 5e-4


def test_one_large_weight_does_not_cost_the_others_their_bits(tmp_path: Path) -> None:
    weight = floats(20, 12, 3, 3)
    weight[3, 5, 1, 1] = 1e4
    assert integer_weights(weight.reshape(20, -1), 36) == "its weights differ too much in magnitude"
    net = Net(("N", 12, 5, 5))
    report, _ = convert(net.model(net.conv("x", weight)), tmp_path, conv_precision="i16")
    (row,) = (row for row in report.layers if row.kind.endswith("conv"))
    assert row.kind == "float conv"
    assert "float32 sums: its weights differ too much in magnitude" in row.reason


def test_many_products_are_summed_in_parts() -> None:
    whole, split = integer_weights(floats(8, 147), 21), integer_weights(floats(8, 9216), 1024)
    assert isinstance(whole, IntegerWeights)
    assert isinstance(split, IntegerWeights)
    assert (whole.run_parts, whole.runs_per_sum) == (1, 7)
    assert split.run_parts > 1 or split.runs_per_sum < 9


@pytest.mark.parametrize("scale", [1.0, 0.0137])
def test_few_valued_weights_keep_their_values(scale: float) -> None:
    levels = np.random.default_rng(1).integers(-1, 2, (10, 4608)).astype(np.float32)
    weight = levels * np.float32(scale) * np.arange(1, 11, dtype=np.float32)[:, None]
    found = integer_weights(weight, 1536)
    assert isinstance(found, IntegerWeights)
    assert found.error < 1e-6
    assert np.array_equal(levels_of(weight, found), levels)
    assert (found.limit, found.run_parts) == (MAX_LEVEL, 1)


def test_whole_weights_are_levels_where_their_sums_fit() -> None:
    weight = np.full((2, 1000), 127, np.float32)
    found = whole_weights(weight, 255)
    assert found is not None
    assert np.array_equal(found.scale, [1, 1])
    assert found.limit == 255
    assert whole_weights(np.full((2, 1000), 32767, np.float32), 255) is None
    assert whole_weights(np.full((2, 3), 32768, np.float32), 1) is None


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e-36, 1e-44])
def test_weights_of_unusual_magnitudes_stay_float(value: float) -> None:
    weight = floats(3, 20)
    weight[1] = value
    assert integer_weights(weight, 20) == "its weights are not of a usual magnitude"


WINDOWS: list[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = [
    ({"strides": [2, 2], "pads": [3, 3, 3, 3]}, (3, 20, 20), (10, 3, 7, 7)),
    ({}, (40, 5, 5), (33, 40, 1, 1)),
    ({"strides": [2, 2]}, (40, 7, 7), (16, 40, 1, 1)),
    ({"pads": [1, 1, 1, 1], "group": 2}, (6, 6, 6), (8, 3, 3, 3)),
    ({"pads": [2, 1, 0, 2], "dilations": [1, 2]}, (5, 8, 8), (17, 5, 3, 2)),
    ({"pads": [1, 1, 1, 1], "dilations": [2, 1]}, (5, 8, 8), (17, 5, 3, 3)),
    ({"pads": [1, 1, 1, 1]}, (300, 4, 4), (9, 300, 3, 3)),
]


@pytest.mark.parametrize(("attributes", "shape", "weight"), WINDOWS)
@pytest.mark.parametrize("weights", ["real", "ternary"])
def test_float_convolutions_run_on_integers_where_asked_for(
    attributes: dict[str, Any], shape: tuple[int, ...], weight: tuple[int, ...], weights: str, tmp_path: Path
) -> None:
    net = Net(("N", *shape), seed=2)
    values = floats(*weight, seed=4)
    if weights == "ternary":
        values = np.float32(0.3) * np.sign(values) * (np.abs(values) > 0.5)
    model = net.model(net.conv("x", values, floats(weight[0], seed=5), **attributes))
    x = floats(6, *shape, seed=6)
    report = check(model, tmp_path, x, tolerance=5e-4, conv_precision="i16")
    (row,) = (row for row in report.layers if row.kind.endswith("conv"))
    assert (row.kind, row.bits) == ("integer conv", "16 x 16" if weights == "real" else "ternary x 16")
    assert "sums of integers, weights" in row.reason
    result = verify(tmp_path / "model.onnx", tmp_path / "model.tacbin", x)
    assert result.ok
    assert result.tolerance == ROUNDED_TOLERANCE
    layer = result.layers[0]
    assert layer.arithmetic == "i16"
    assert 0.0 < layer.error == layer.max_rel_diff < 5e-4
    assert "layers on rounded integers: 1, largest error" in str(result)
    # Nobody asked: float sums, no less exact than before.
    report = check(model, tmp_path, x, tolerance=1e-5)
    assert "integer conv" not in kinds(report)
    assert verify(tmp_path / "model.onnx", tmp_path / "model.tacbin", x).tolerance == TOLERANCE


def test_depthwise_convolutions_stay_float_and_say_so(tmp_path: Path) -> None:
    net = Net(("N", 8, 5, 5))
    report, _ = convert(net.model(net.conv("x", floats(8, 1, 3, 3), group=8)), tmp_path, conv_precision="i16")
    (row,) = (row for row in report.layers if row.kind.endswith("conv"))
    assert row.kind == "float conv"
    assert "float32 sums: a group for every channel" in row.reason


@pytest.mark.parametrize("magnitude", [1e-30, 1e-3, 1e6, 1e30])
def test_inputs_of_every_magnitude(magnitude: float, tmp_path: Path) -> None:
    net = Net(("N", 3, 9, 9))
    model = net.model(net.conv("x", floats(8, 3, 3, 3)))
    x = floats(5, 3, 9, 9, seed=3) * np.float32(magnitude)
    x[2] *= np.float32(1e-4)  # every sample has a range of its own
    x[3] = 0.0
    target = tmp_path / "model.tacbin"
    convert(model, tmp_path, conv_precision="i16")
    expected = tac_engine.load(target).run(x)
    found = {name: tac_engine.load(target, backend=name).run(x) for name in tac_engine.backends()["runnable"]}
    for name, result in found.items():
        np.testing.assert_array_equal(result, expected, err_msg=name)
    for sample in range(5):
        alone = tac_engine.load(target).run(x[sample : sample + 1])
        np.testing.assert_array_equal(alone[0], expected[sample])
    convert(model, tmp_path)
    floating = tac_engine.load(target).run(x)
    for sample in range(5):
        largest = np.abs(floating[sample]).max()
        assert np.abs(floating[sample] - expected[sample]).max() <= 5e-4 * largest


def test_an_unknown_precision_is_refused(tmp_path: Path) -> None:
    net = Net(("N", 3, 9, 9))
    with pytest.raises(tac_engine.InvalidInputError, match="conv_precision must be 'i16' or 'f32', got 'i8'"):
        convert(net.model(net.conv("x", floats(8, 3, 3, 3))), tmp_path, conv_precision="i8")
