"""Layers that become sums of layers of bits, and those that must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import Array, Net, check, convert, kinds
from paper import Pair, PaperNet, run
from tac_engine.converters.report import ConversionReport
from tac_engine.converters.rewrites.bases import WeightBases, activation_parts, weight_bases
from tac_engine.converters.verify import verify

# Relative to the largest output, against float32 sums of some 600 terms that are themselves 4e-6 off.
TOLERANCE = 1e-5


def total(bases: WeightBases) -> Array:
    column = (-1,) + (1,) * (bases.signs.ndim - 2)
    parts = [scale.reshape(column) * sign for scale, sign in zip(bases.scales, bases.signs, strict=True)]
    return np.sum(parts, axis=0) + bases.offset.reshape(column)


# Weights


@pytest.mark.parametrize(
    ("values", "count", "has_offset"),
    [
        ((-1.21, 0.0, 0.83), 2, True),  # TTQ
        ((-1.3, -0.54, 0.54, 1.3), 2, False),  # LQ-Net, 2 bits
        ((-0.41, 0.62), 1, True),  # AdaBin
        ((-1.95, -1.35, -0.15, 0.45, -0.45, 0.15, 1.35, 1.95), 3, False),  # 0.15, 0.6 and 1.2 with any signs
        ((-1.7, -0.3, 0.3, 1.7), 2, False),
        ((-2.5, 0.1, 0.7, 2.5), 3, False),  # nested
        ((0.7,), 1, False),
    ],
)
def test_weight_bases_add_up(values: tuple[float, ...], count: int, has_offset: bool) -> None:
    weight = np.random.default_rng(0).choice(np.asarray(values, np.float32), (6, 40, 3, 3))
    weight[1:3] *= np.float32(0.37)
    weight[3] = -weight[3]
    weight[4] = weight[4, 0, 0, 0]  # a channel of one value
    weight[5] = -0.41 if len(values) == 1 else weight[5]
    bases = weight_bases(weight)
    if len(values) == 1:
        assert bases is None
        return
    assert bases is not None
    assert (len(bases.scales), bool(bases.offset.any())) == (count, has_offset)
    np.testing.assert_allclose(total(bases), weight, rtol=0, atol=1e-6)


def test_many_valued_weights_have_no_bases() -> None:
    assert weight_bases(np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)) is None


# Activations


@pytest.mark.parametrize(
    ("values", "levels", "offset"),
    [
        ((0.0, 0.43, 0.97, 1.40), [(0, 1, 1, 2), (0, 0, 1, 1)], 0.0),  # LQ-Net
        ((-0.65, 0.9131), [(-1, 1)], 0.13155),  # AdaBin
        ((-0.65, 0.91), [(-5, 7)], 0.0),  # AdaBin that happens to be 0.13 times integers
        ((-0.6789, 0.1344, 0.9477), [(-1, 0, 1)], 0.1344),  # AdaBin with a sign that can be 0
        ((-1.45, -0.35, 1.45), [(-1, 1, 1), (-1, -1, 1)], 0.0),  # two nested signs
        ((-0.31, 0.0, 0.77), [(-1, 0, 0), (0, 0, 1)], 0.0),
        ((0.5, 1.0, 1.5, 2.0), [(1, 2, 3, 4)], 0.0),  # a lattice is one part
        ((-1.0, 1.0), [(-1, 1)], 0.0),
    ],
)
def test_activation_parts_add_up(values: tuple[float, ...], levels: list[tuple[int, ...]], offset: float) -> None:
    parts = activation_parts(np.asarray(values))
    assert parts is not None
    assert [part.levels for part in parts.parts] == levels
    assert parts.offset == pytest.approx(offset, abs=1e-7)
    found = parts.offset + sum(part.scale * np.asarray(part.levels) for part in parts.parts)
    np.testing.assert_allclose(found, values, rtol=0, atol=1e-6)


def test_one_value_or_values_too_close_have_no_parts() -> None:
    assert activation_parts(np.asarray([0.5])) is None
    assert activation_parts(np.asarray([0.5, 0.500001, 3.0])) is None


# Layers


def two_values(net: Net, x: str, low: float, high: float, threshold: float = 0.1) -> str:
    above = net.op("GreaterOrEqual", x, net.constant(threshold))
    return net.op("Where", above, net.constant(high), net.constant(low))


def ternary(net: Net, *shape: int) -> Array:
    """Two scales, as in TTQ, others in every channel."""
    scale = net.rng.uniform(0.5, 2, (shape[0], *[1] * (len(shape) - 1)))
    return net.rng.choice(np.asarray([-1.21, 0.0, 0.83]), shape) * scale


def image(net: Net, batch: int = 3) -> Array:
    return net.rng.normal(size=(batch, *net.shape[1:])).astype(np.float32)


def layers_of_bits(report: ConversionReport) -> int:
    return sum(layer.op == "binary_conv" for layer in report.layers)


@pytest.mark.parametrize("attributes", [{}, {"pads": [1, 1, 1, 1]}, {"strides": [2, 1], "pads": [0, 2, 1, 0]}])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_with_offsets_on_both_sides(
    attributes: dict[str, Any], group: int, bias: bool, tmp_path: Path
) -> None:
    net = Net(("N", 64, 7, 6), seed=1)
    weight = ternary(net, 10, 64 // group, 3, 3)
    binary = two_values(net, "x", -0.65, 0.9131)
    output = net.conv(binary, weight, net.rng.normal(size=10) if bias else None, group=group, **attributes)
    report = check(net.model(output), tmp_path, image(net), tolerance=TOLERANCE)
    assert layers_of_bits(report) == 3
    assert not any(kind.startswith("float") for kind in kinds(report))


@pytest.mark.parametrize("op", ["Gemm", "Gemm, transposed", "MatMul"])
def test_fully_connected_layers(op: str, tmp_path: Path) -> None:
    net = Net(("N", 64), seed=2)
    weight = ternary(net, 12, 64)
    binary = two_values(net, "x", -0.65, 0.9131)
    if op == "MatMul":
        output = net.op("MatMul", binary, net.constant(weight.T))
    else:
        transposed = "transposed" in op
        inputs = [binary, net.constant(weight if transposed else weight.T), net.constant(net.rng.normal(size=12))]
        output = net.op("Gemm", *inputs, transB=int(transposed), alpha=0.7, beta=1.3)
    report = check(net.model(output), tmp_path, image(net, 9), tolerance=TOLERANCE)
    assert layers_of_bits(report) == 3


def test_a_shared_weight_and_a_shared_activation(tmp_path: Path) -> None:
    net = Net(("N", 64, 6, 6), seed=3)
    weight = net.constant(ternary(net, 64, 64, 1, 1))
    binary = two_values(net, "x", -0.65, 0.9131)
    first = net.op("Conv", binary, weight, kernel_shape=[1, 1])
    second = net.op("Conv", two_values(net, first, 0.0, 0.7), weight, kernel_shape=[1, 1])
    third = net.conv(binary, net.signs(8, 64, 3, 3))
    report = check(net.model(second, outputs=(first, third)), tmp_path, image(net), tolerance=TOLERANCE)
    assert layers_of_bits(report) == 7
    assert kinds(report).count("quantizer") == 2


def test_a_quantizer_behind_the_sum_is_found(tmp_path: Path) -> None:
    net = Net(("N", 64, 6, 6), seed=4)
    hidden = net.conv(net.op("Sign", "x"), ternary(net, 64, 64, 3, 3), pads=[1, 1, 1, 1])
    output = net.conv(net.op("Sign", net.batch_norm(hidden, 64, 20)), net.signs(5, 64, 1, 1))
    report = check(net.model(output), tmp_path, image(net), tolerance=TOLERANCE)
    assert kinds(report)[-2:] == ["quantizer", "binary conv"]


def moved_by_max_pool(net: Net, x: str) -> str:
    return net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])


def joined_by_concat(net: Net, x: str) -> str:
    return net.op("Concat", x, two_values(net, "x", -0.65, 1.0), axis=1)


@pytest.mark.parametrize("move", [moved_by_max_pool, joined_by_concat])
def test_few_values_are_followed_through_ops_that_move_them(move: Any, tmp_path: Path) -> None:
    net = Net(("N", 64, 6, 6), seed=5)
    moved = move(net, two_values(net, "x", -0.65, 0.9131))
    channels = 128 if move is joined_by_concat else 64
    output = net.conv(moved, net.signs(7, channels, 3, 3), pads=[1, 1, 1, 1])
    report = check(net.model(output), tmp_path, image(net), tolerance=TOLERANCE)
    assert not any(kind.startswith("float") for kind in kinds(report))


def test_a_value_that_a_single_float_gives_is_kept(tmp_path: Path) -> None:
    """0.8 Sign(x - 0.13) + 0.13 is 0.13 for x = 0.13 alone."""
    net = Net(("N", 64), seed=6)
    beta = np.float32(0.1344)
    shifted = net.op("Sign", net.op("Sub", "x", net.constant(beta)))
    binary = net.op("Add", net.op("Mul", shifted, net.constant(0.8127)), net.constant(beta))
    output = net.op("MatMul", binary, net.constant(net.signs(64, 5)))
    x = image(net, 4)
    x[1:3, ::3] = beta
    assert layers_of_bits(check(net.model(output), tmp_path, x, tolerance=TOLERANCE)) == 1


# What must not be split


def reason(report: ConversionReport) -> str:
    (layer,) = (layer for layer in report.layers if layer.kind == "float conv")
    return layer.reason


def test_too_many_planes_stay_float_and_say_so(tmp_path: Path) -> None:
    net = Net(("N", 64, 6, 6), seed=7)
    steps = np.asarray([0.31, 0.77, 1.9, 3.3])
    name = two_values(net, "x", 0.0, 0.31)
    for index, step in enumerate(steps):
        name = net.op("Add", name, two_values(net, "x", 0.0, step, 0.3 + index))
    output = net.conv(name, ternary(net, 4, 64, 3, 3))
    report = check(net.model(output), tmp_path, image(net), tolerance=TOLERANCE)
    assert "it would take 10 pairs of planes for 64 input channels" in reason(report)


def test_few_channels_stay_float_and_say_so(tmp_path: Path) -> None:
    net = Net(("N", 16, 6, 6), seed=8)
    output = net.conv(two_values(net, "x", -0.65, 0.9131), ternary(net, 4, 16, 3, 3))
    report = check(net.model(output), tmp_path, image(net), tolerance=TOLERANCE)
    assert "for 16 input channels" in reason(report)


def test_float_activations_or_float_weights_are_left_alone(tmp_path: Path) -> None:
    net = Net(("N", 64, 6, 6), seed=9)
    output = net.conv("x", ternary(net, 4, 64, 3, 3))
    report = check(net.model(output), tmp_path, image(net), tolerance=TOLERANCE)
    assert "activation 'x' is real" in reason(report)
    assert kinds(report) == ["float conv"]
    net = Net(("N", 64, 6, 6), seed=9)
    output = net.conv(two_values(net, "x", -0.65, 0.9131), net.rng.normal(size=(4, 64, 3, 3)))
    assert "few-valued" in reason(check(net.model(output), tmp_path, image(net), tolerance=TOLERANCE))


def test_values_of_several_inputs_are_not_one_step_function(tmp_path: Path) -> None:
    """A product of a sign and a float has many values, though one factor has two."""
    net = Net(("N", 64, 6, 6), seed=10)
    product = net.op("Mul", two_values(net, "x", -0.65, 0.9131), "x")
    output = net.conv(product, net.signs(4, 64, 3, 3))
    report = check(net.model(output), tmp_path, image(net), tolerance=TOLERANCE)
    assert kinds(report)[-1] == "float conv"


def test_verify_compares_the_parts_with_the_tensor_they_are_parts_of(tmp_path: Path) -> None:
    net = Net(("N", 64, 6, 6), seed=11)
    name = net.op("Add", two_values(net, "x", -0.65, 0.9131), two_values(net, "x", 0.0, 0.37, 0.8))
    output = net.conv(name, net.signs(4, 64, 3, 3))
    target = convert(net.model(output), tmp_path)[1]
    found = verify(tmp_path / "model.onnx", target, image(net))
    assert found.ok
    parts = [layer for layer in found.layers if layer.low_bit]
    assert [(layer.onnx_tensor, layer.elements_differing) for layer in parts] == [(name, 0), (name, 0)]


def test_a_layer_that_is_packed_again_stays_so_when_another_is_split(tmp_path: Path) -> None:
    net = Net(("N", 64, 6, 6), seed=12)
    both = net.op("Concat", net.op("Sign", "x"), two_values(net, "x", -1.0, 1.0, 0.3), axis=1)
    hidden = net.conv(both, net.signs(64, 128, 3, 3))
    output = net.conv(two_values(net, hidden, -0.65, 0.9131), ternary(net, 5, 64, 1, 1))
    report = check(net.model(output), tmp_path, image(net), tolerance=TOLERANCE)
    assert layers_of_bits(report) == 4


@pytest.mark.parametrize("seed", range(24))
def test_random_layers_agree_with_float64(seed: int, tmp_path: Path) -> None:
    """Any few weights and activations, groups, strides and pads: within a few float32 roundings of the exact sums."""
    rng = np.random.default_rng(seed)
    group, size = int(rng.choice([1, 1, 2])), int(rng.choice([1, 3]))
    channels, outputs = group * int(rng.integers(48, 65)), group * int(rng.integers(1, 20))
    net = PaperNet((channels, *(int(length) for length in rng.integers(3, 8, 2))), seed, batch=2)
    values = np.sort(rng.choice(rng.uniform(-2, 2, 4), int(rng.integers(2, 4)), replace=False)).astype(np.float32)
    values[rng.integers(values.size)] *= np.float32(rng.integers(2))  # zero is one of them every other time
    values = np.unique(values)
    name, value = "", np.full(net.image.shape, values[0], np.float64)
    for high, threshold in zip(values[1:], np.sort(rng.normal(size=values.size - 1)), strict=True):
        above = net.op("GreaterOrEqual", "x", net.constant(threshold))
        name = net.op("Where", above, net.constant(high), name or net.constant(values[0]))
        value[net.image >= np.float32(threshold)] = high
    weight = rng.choice(rng.normal(size=int(rng.integers(2, 4))), (outputs, channels // group, size, size))
    weight = (weight * rng.uniform(0.5, 2, (outputs, 1, 1, 1))).astype(np.float32)
    pad, stride = int(rng.integers(0, 2)), int(rng.integers(1, 3))
    output = net.convolve(Pair(name, value), weight, rng.normal(size=outputs), stride=stride, pad=pad, group=group)
    ran = run(net, output, tmp_path, bound=2e-6)
    assert ran.layers
    assert not any(kind.startswith("float") for kind, _ in ran.layers)
