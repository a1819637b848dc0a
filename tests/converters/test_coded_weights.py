from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import Array, Net, check
from tac_engine.converters.coded_weights import CodedWeights, encode_weights

from tac_engine import _core


def decode(coded: CodedWeights, shape: tuple[int, int]) -> Array:
    """Independent decoder of the documented layout."""
    stream = [int(byte) >> bit & 1 for byte in coded.codes for bit in range(8)]
    out = np.zeros(shape, np.float32)
    position = 0
    for row, column in np.ndindex(*shape):
        if coded.bitmap is not None and not coded.bitmap[row, column]:
            continue
        first = position * coded.code_bits
        code = sum(bit << i for i, bit in enumerate(stream[first : first + coded.code_bits]))
        book = coded.values[row] if coded.values.ndim == 2 else coded.values
        out[row, column] = book[code if coded.code_bits else position]
        position += 1
    assert len(stream) - position * coded.code_bits < 8
    assert not any(stream[position * coded.code_bits :])
    return out


def few(rng: np.random.Generator, values: int, zeros: float, per_output: bool) -> Array:
    weight = rng.choice(rng.normal(size=values).astype(np.float32), (11, 203))
    if per_output:
        weight *= rng.uniform(0.5, 2, (11, 1)).astype(np.float32)
    weight[rng.random(weight.shape) < zeros] = 0.0
    return weight


@pytest.mark.parametrize("values", [1, 2, 3, 4, 7, 16, 33, 150, 256])
@pytest.mark.parametrize("zeros", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("per_output", [False, True])
def test_weights_come_back_exactly(values: int, zeros: float, per_output: bool) -> None:
    weight = few(np.random.default_rng(values), values, zeros, per_output)
    coded = encode_weights(weight)
    if coded is None:
        assert values >= 150 and zeros == 0.0
        return
    np.testing.assert_array_equal(decode(coded, weight.shape), weight)
    assert coded.nbytes < weight.nbytes


@pytest.mark.parametrize(
    ("build", "bits_per_weight", "text"),
    [
        (lambda rng: rng.choice([-0.1, 0.1], (64, 576)), 1.0, "1"),
        (lambda rng: rng.choice([-1, 1], (64, 576)) * rng.uniform(0.1, 1, (64, 1)), 1.0, "1"),
        (lambda rng: rng.choice([-0.2, 0, 0.2], (64, 576)), 2.0, "ternary"),
        (lambda rng: rng.choice([-0.2, 0, 0, 0, 0, 0.3], (64, 576)), 1.34, "ternary"),
        (lambda rng: np.sign(rng.normal(size=(64, 576))) * 2.0 ** rng.integers(-8, 0, (64, 576)), 4.0, "4"),
        (lambda rng: rng.choice(rng.normal(size=17), (64, 576)), 5.0, "5"),
        (lambda rng: rng.choice(rng.normal(size=256), (256, 1152)), 8.0, "8"),
        (lambda rng: rng.normal(size=(64, 576)) * (rng.random((64, 576)) < 0.1), 4.3, "32"),
    ],
)
def test_every_system_takes_its_bits(build: Any, bits_per_weight: float, text: str) -> None:
    weight = build(np.random.default_rng(3)).astype(np.float32)
    coded = encode_weights(weight)
    assert coded is not None
    assert coded.bits == text
    books = coded.values.nbytes if coded.code_bits else 0
    assert (coded.nbytes - books) * 8 / weight.size <= bits_per_weight * 1.02


@pytest.mark.parametrize("shape", [(4, 27), (300, 40)])
def test_weights_of_many_values_stay_as_they_are(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert encode_weights(weight) is None


def test_negative_zeros_are_zeros() -> None:
    weight = np.asarray([[0.0, -0.0, 1.0, 1.0] * 16], np.float32)
    coded = encode_weights(weight)
    assert coded is not None
    np.testing.assert_array_equal(decode(coded, weight.shape), weight)


@pytest.mark.parametrize("group", [1, 4])
def test_float_layers_with_few_values_are_small_and_exact(group: int, tmp_path: Path) -> None:
    net = Net(("N", 16, 9, 9), seed=1)
    weight = net.signs(24, 16 // group, 3, 3) * net.rng.uniform(0.1, 1, (24, 1, 1, 1))
    hidden = net.op("Relu", net.conv("x", weight, net.rng.normal(size=24), pads=[1, 1, 1, 1], group=group))
    ternary = net.rng.choice(np.asarray([-0.5, 0, 0, 0.25], np.float32), (8, 24, 3, 3))
    hidden = net.op("Flatten", net.op("Relu", net.conv(hidden, ternary)))
    last = net.rng.choice(net.rng.normal(size=40).astype(np.float32), (10, 392))
    output = net.op("Gemm", hidden, net.constant(last), transB=1)
    x = net.rng.normal(size=(3, 16, 9, 9)).astype(np.float32)
    report = check(net.model(output), tmp_path, x, tolerance=2e-6)
    assert [(layer.op, layer.bits) for layer in report.layers if layer.bytes_before] == [
        ("coded_conv", "1 x 32"),
        ("coded_conv", "ternary x 32"),
        ("coded_linear", "6 x 32"),
    ]
    first, second, third = (layer for layer in report.layers if layer.bytes_before)
    assert first.bytes_after == weight.size // 8 + 24 * 2 * 4 + 24 * 4
    assert second.bytes_after <= ternary.size * 2 // 8 + 3 * 4 + 8 * 4
    assert third.bytes_after == last.size * 6 // 8 + 40 * 4 + 10 * 4
    assert "stored as 1-bit codes of 2 values per output" in first.reason
    kinds = [op["kind"] for op in _core.inspect(tmp_path / "model.tacbin")["ops"]]
    assert kinds.count("coded_conv") == 2 and kinds.count("coded_linear") == 1


@pytest.mark.parametrize(
    ("levels", "bits"), [((-1, 1), "1"), ((-1, 0, 1), "1"), ((-3, -2, -1, 0, 1, 2, 3), "4"), ((-1, 0, 0, 0, 1), "1")]
)
def test_fully_connected_levels_with_a_scale_for_each_output_are_a_codebook(
    levels: tuple[int, ...], bits: str, tmp_path: Path
) -> None:
    net = Net(("N", 300), seed=2)
    scale = net.rng.uniform(0.1, 1, (50, 1)).astype(np.float32)
    weight = net.rng.choice(np.asarray(levels, np.float32), (50, 300)) * scale
    output = net.op("Gemm", "x", net.constant(weight), net.constant(net.rng.normal(size=50)), transB=1)
    x = net.rng.normal(size=(5, 300)).astype(np.float32)
    report = check(net.model(output), tmp_path, x, tolerance=2e-6, fc_precision="f32")
    (layer,) = report.layers
    assert (layer.kind, layer.bits) == ("codebook linear", f"{bits} x 32")
    assert layer.reason.startswith("a scale for each output, ")
    assert layer.bytes_after < weight.nbytes / 6
