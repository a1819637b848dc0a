"""Every published low-bit system as a small network: runs natively, and gives what the paper's formulas give.

The weights come from the paper's quantizer, the expected output from its formulas in float64 (paper.py, systems.py).
Where sums are integers and scales powers of two the comparison asks for equality, else for a few float32 roundings.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import systems
from nets import Array
from paper import Pair, PaperNet, conv64, run

# Two or three layers of float32 sums of a few hundred terms, relative to the largest output.
FLOAT = 2e-6


def few_thresholds(net: PaperNet, x: Pair, levels: Array, thresholds: Array) -> Pair:
    """levels[number of thresholds below x] as an exporter writes it: a sum of scaled comparisons."""
    value = levels[np.searchsorted(thresholds, x.value, side="left")]
    name = ""
    for step, threshold in zip(np.diff(levels), thresholds, strict=True):
        above = net.op("Cast", net.op("Greater", x.name, net.constant(threshold)), to=1)
        term = net.op("Mul", above, net.constant(step))
        name = term if not name else net.op("Add", name, term)
    if levels[0] != 0.0:
        name = net.op("Add", name, net.constant(levels[0]))
    return Pair(name, value)


def stem(net: PaperNet, channels: int) -> Pair:
    """The float first layer that nearly every system keeps, and its BatchNormalization."""
    return net.norm(net.convolve(net.x, net.normal(channels, net.image.shape[1], 3, 3), pad=1))


# 1-bit weights


def test_binary_connect_has_binary_weights_and_float_activations(tmp_path: Path) -> None:
    net = PaperNet((3, 8, 8), seed=1)
    x = net.relu(net.norm(net.convolve(net.x, systems.binary_connect(net.normal(16, 3, 3, 3)), pad=1)))
    x = net.relu(net.norm(net.max_pool(net.convolve(x, systems.binary_connect(net.normal(24, 16, 3, 3)), pad=1))))
    x = net.relu(net.norm(net.linear(net.flatten(x), systems.binary_connect(net.normal(64, 24 * 16)))))
    output = net.linear(x, systems.binary_connect(net.normal(10, 64)))
    ran = run(net, output, tmp_path, bound=FLOAT)
    assert ran.layers == [("float conv", "1 x 32")] * 2 + [("codebook linear", "1 x 32")] * 2
    assert min(ran.smaller[1:3]) > 16


def test_bwnh_has_scaled_binary_weights_and_float_activations(tmp_path: Path) -> None:
    net = PaperNet((3, 8, 8), seed=2)
    x = net.relu(stem(net, 16))
    x = net.relu(net.norm(net.convolve(x, systems.scaled_binary(net.normal(24, 16, 3, 3)), pad=1)))
    ran = run(net, net.classifier(x), tmp_path, bound=FLOAT)
    assert ran.layers[1] == ("float conv", "1 x 32")


def test_binary_net_is_binary_in_every_layer(tmp_path: Path) -> None:
    """In arXiv 1602.02830: pixels 2 u / 255 - 1 into a binary first layer, signs elsewhere, BatchNormalization last."""
    pixels = np.random.default_rng(3).integers(0, 256, (3, 3, 8, 8))
    net = PaperNet((3, 8, 8), seed=3, image=(2.0 * pixels / 255.0 - 1.0).astype(np.float32))
    x = net.sign(net.norm(net.convolve(net.x, systems.sign(net.normal(32, 3, 3, 3)), net.normal(32), pad=1)))
    x = net.sign(net.norm(net.max_pool(net.convolve(x, systems.sign(net.normal(40, 32, 3, 3)), net.normal(40), pad=1))))
    x = net.sign(net.norm(net.linear(net.flatten(x), systems.sign(net.normal(64, 40 * 16)))))
    output = net.norm(net.linear(x, systems.sign(net.normal(10, 64))))
    ran = run(net, output, tmp_path, bound=1e-6)
    assert ran.layers[1:] == [("binary conv", "1 x 1")] + [("binary linear", "1 x 1")] * 2


@pytest.mark.parametrize("relu", [False, True])
def test_xnor_net_folds_alpha(relu: bool, tmp_path: Path) -> None:
    """Blocks of norm, sign, convolution, pooling; the released PyTorch port has a ReLU behind the convolution."""
    net = PaperNet((3, 12, 12), seed=4)
    x = net.max_pool(net.relu(stem(net, 16)))
    for channels, kernel, pad in ((24, 3, 1), (32, 3, 1), (48, 6, 0)):
        weight = systems.scaled_binary(net.normal(channels, x.value.shape[1], kernel, kernel))
        x = net.convolve(net.sign(net.norm(x)), weight, pad=pad)
        x = net.relu(x) if relu else x
    ran = run(net, net.linear(net.flatten(net.norm(x)), net.normal(5, 48)), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == [("binary conv", "1 x 1")] * 3


def test_xnor_net_with_its_map_of_activation_scales(tmp_path: Path) -> None:
    """The paper's K = |I| averaged over the channels, then over the window; (sign(I) * sign(W)) K alpha."""
    net = PaperNet((3, 10, 10), seed=40)
    x = net.norm(stem(net, 16))
    for channels in (24, 32):
        weight = net.normal(channels, x.value.shape[1], 3, 3)
        magnitude = net.op("Abs", x.name)
        mean = net.op("ReduceMean", magnitude, net.constant([1], np.int64), keepdims=1)
        box = np.full((1, 1, 3, 3), 1.0 / 9.0)
        scales = conv64(np.abs(x.value).mean(axis=1, keepdims=True), box, 1, 1)
        map_name = net.conv(mean, box, pads=[1] * 4)
        sums = net.convolve(net.sign(x), systems.sign(weight), pad=1)
        scaled = net.pair(sums.value * scales, "Mul", sums.name, map_name)
        x = net.norm(net.scale(scaled, np.abs(weight).mean(axis=(1, 2, 3)).reshape(1, -1, 1, 1)))
    ran = run(net, net.classifier(x), tmp_path, bound=FLOAT)
    assert [kind for kind, _ in ran.layers].count("binary conv") == 2


@pytest.mark.parametrize("spelling", ["mean of squares", "sum over n - 1"])
def test_rbnn_and_siman_normalise_each_sample_before_the_sign(spelling: str, tmp_path: Path) -> None:
    """In arXiv 2009.13055 and 2102.07981: sign((x - mean) / std) over C, H and W of the sample, at inference too."""
    net = PaperNet((3, 10, 10), seed=41)
    x = stem(net, 16)
    axes = net.constant([1, 2, 3], np.int64)
    for channels in (24, 32):
        count = x.value[0].size
        centred = net.op("Sub", x.name, net.op("ReduceMean", x.name, axes, keepdims=1))
        square = net.op("Mul", centred, centred)
        if spelling == "mean of squares":
            variance = net.op("ReduceMean", square, axes, keepdims=1)
        else:
            variance = net.op("Div", net.op("ReduceSum", square, axes, keepdims=1), net.constant(count - 1))
        name = net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, net.constant(1e-5))))
        deviation = x.value.std(axis=(1, 2, 3), ddof=int(spelling != "mean of squares"), keepdims=True)
        normal = Pair(name, (x.value - x.value.mean(axis=(1, 2, 3), keepdims=True)) / deviation)
        weight = systems.scaled_binary(net.normal(channels, x.value.shape[1], 3, 3))
        x = net.norm(net.convolve(net.sign(normal), weight, pad=1))
    ran = run(net, net.classifier(x), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == [("binary conv", "1 x 1")] * 2


def test_melius_net_improves_the_channels_it_added(tmp_path: Path) -> None:
    """In arXiv 2001.05936: a dense block appends 32 channels, an improvement block adds to the last 32 of them."""
    net = PaperNet((3, 12, 12), seed=42)
    x = net.max_pool(net.relu(stem(net, 32)))

    def part(x: Pair, begin: int, end: int) -> Pair:
        bounds = [net.constant([bound], np.int64) for bound in (begin, end, 1)]
        return net.pair(x.value[:, begin:end], "Slice", x.name, *bounds)

    for _ in range(2):
        channels = x.value.shape[1]
        x = net.concat(x, net.convolve(net.sign(net.norm(x)), systems.sign(net.normal(32, channels, 3, 3)), pad=1))
        better = net.convolve(net.sign(net.norm(x)), systems.sign(net.normal(32, channels + 32, 3, 3)), pad=1)
        x = net.concat(part(x, 0, channels), net.add(part(x, channels, channels + 32), better))
    ran = run(net, net.classifier(net.relu(net.norm(x))), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == [("binary conv", "1 x 1")] * 4


def test_hwgq_has_binary_weights_and_two_bit_activations(tmp_path: Path) -> None:
    """In arXiv 1702.00953: levels 0.538 * {0, 1, 2, 3} with thresholds 0, 0.807 and 1.345."""
    net = PaperNet((3, 9, 9), seed=5)
    levels, thresholds = 0.538 * np.arange(4), np.asarray([0.0, 0.807, 1.345])
    x = few_thresholds(net, stem(net, 16), levels, thresholds)
    for channels in (24, 32):
        x = net.convolve(x, systems.scaled_binary(net.normal(channels, x.value.shape[1], 3, 3)), pad=1)
        x = few_thresholds(net, net.norm(x), levels, thresholds)
    x = net.convolve(x, systems.scaled_binary(net.normal(20, 32, 9, 9)))
    ran = run(net, net.classifier(net.relu(net.norm(x))), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == [("1-bit x 2-bit conv", "1 x 2")] * 3


def test_abc_net_written_as_one_convolution_per_pair_of_bases(tmp_path: Path) -> None:
    """3 weight bases, 2 activation bases H_n = 2 [clip(R + v_n, 0, 1) >= 0.5] - 1, scales beta_n."""
    net = PaperNet((3, 8, 8), seed=6)
    x = stem(net, 16)
    alphas, bases = systems.abc_bases(net.normal(24, 16, 3, 3), 3)
    total: Pair | None = None
    for shift, beta in ((0.0, 0.9), (0.8, 0.55)):
        clipped = net.op("Clip", net.op("Add", x.name, net.constant(shift)), net.constant(0.0), net.constant(1.0))
        above = net.op("Cast", net.op("GreaterOrEqual", clipped, net.constant(0.5)), to=1)
        name = net.op("Sub", net.op("Mul", above, net.constant(2.0)), net.constant(1.0))
        step = Pair(name, 2.0 * (np.clip(x.value + shift, 0.0, 1.0) >= 0.5) - 1.0)
        for alpha, base in zip(alphas, bases, strict=True):
            term = net.scale(net.convolve(step, base, pad=1), alpha * beta)
            total = term if total is None else net.add(total, term)
    assert total is not None
    ran = run(net, net.classifier(net.relu(net.norm(total))), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == [("binary conv", "1 x 1")] * 6


def test_bi_real_net_keeps_float_shortcuts(tmp_path: Path) -> None:
    """In arXiv 1808.00278: sign, convolution, norm, plus the shortcut; down-sampling pools and convolves in float."""
    net = PaperNet((3, 16, 16), seed=7)
    x = net.max_pool(net.relu(stem(net, 16)), 3, 2, 1)
    body = net.norm(net.convolve(net.sign(x), systems.scaled_binary(net.normal(16, 16, 3, 3)), pad=1))
    x = net.add(body, x)
    body = net.norm(net.convolve(net.sign(x), systems.scaled_binary(net.normal(32, 16, 3, 3)), stride=2, pad=1))
    x = net.add(body, net.norm(net.convolve(net.average_pool(x), net.normal(32, 16, 1, 1))))
    ran = run(net, net.classifier(x), tmp_path, bound=FLOAT)
    assert [kind for kind, _ in ran.layers] == [
        "float conv",
        "binary conv",
        "binary conv",
        "float conv",
        "float linear",
    ]


def test_react_net_shifts_signs_and_prelus(tmp_path: Path) -> None:
    """In arXiv 2003.03488: RSign = sign(x + b_c), RPReLU = PReLU(x + g_c) + z_c; 1x1 layers double by concatenation."""
    net = PaperNet((3, 12, 12), seed=8)
    x = net.norm(net.convolve(net.x, net.normal(16, 3, 3, 3), stride=2, pad=1))

    def block(x: Pair, kernel: int) -> Pair:
        channels = x.value.shape[1]
        shifted = net.sign(net.add_constant(x, net.normal(1, channels, 1, 1).astype(np.float32) * 0.3))
        weight = systems.scaled_binary(net.normal(channels, channels, kernel, kernel))
        joined = net.add(net.norm(net.convolve(shifted, weight, pad=kernel // 2)), x)
        moved = net.add_constant(joined, net.normal(1, channels, 1, 1) * 0.1)
        slope = net.rng.uniform(0.1, 0.4, (channels, 1, 1))
        value = np.where(moved.value >= 0.0, moved.value, slope * moved.value)
        active = net.pair(value, "PRelu", moved.name, net.constant(slope))
        return net.add_constant(active, net.normal(1, channels, 1, 1) * 0.1)

    x = block(x, 3)
    x = net.concat(block(x, 1), block(x, 1))
    x = block(x, 3)
    ran = run(net, net.classifier(x), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == [("binary conv", "1 x 1")] * 4


def test_ir_net_scales_by_powers_of_two(tmp_path: Path) -> None:
    net = PaperNet((3, 10, 10), seed=9)
    x = stem(net, 16)
    for channels in (24, 32):
        x = net.norm(
            net.convolve(
                net.sign(x), systems.information_retaining(net.normal(channels, x.value.shape[1], 3, 3)), pad=1
            )
        )
    ran = run(net, net.classifier(x), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == [("binary conv", "1 x 1")] * 2


def test_binary_dense_net_grows_by_concatenation(tmp_path: Path) -> None:
    """In arXiv 1906.08637: each layer reads norm and sign of all maps before it and adds 8 channels of float sums."""
    net = PaperNet((3, 12, 12), seed=10)
    x = net.max_pool(net.relu(stem(net, 16)))
    for _ in range(3):
        new = net.convolve(net.sign(net.norm(x)), systems.sign(net.normal(8, x.value.shape[1], 3, 3)), pad=1)
        x = net.concat(x, new)
    x = net.convolve(net.average_pool(net.relu(net.norm(x))), net.normal(20, 40, 1, 1))
    ran = run(net, net.classifier(x), tmp_path, bound=FLOAT)
    assert [kind for kind, _ in ran.layers][1:4] == ["binary conv"] * 3


def test_quick_net_down_samples_with_pooling_and_a_blur(tmp_path: Path) -> None:
    """In arXiv 2011.09398: sign, binary convolution, ReLU, norm, plus the shortcut; blur pooling in float."""
    net = PaperNet((3, 16, 16), seed=11)
    x = net.relu(net.norm(net.convolve(net.x, net.normal(8, 3, 3, 3), stride=2, pad=1)))
    x = net.norm(net.convolve(x, net.normal(8, 1, 3, 3), pad=1, group=8))
    x = net.norm(net.convolve(x, net.normal(16, 8, 1, 1)))

    def residual(x: Pair) -> Pair:
        channels = x.value.shape[1]
        weight = systems.sign(net.normal(channels, channels, 3, 3))
        return net.add(net.norm(net.relu(net.convolve(net.sign(x), weight, pad=1))), x)

    x = residual(residual(x))
    pooled = net.max_pool(net.relu(x), 2, 1)
    blur = np.tile(np.outer([1.0, 2.0, 1.0], [1.0, 2.0, 1.0]) / 16.0, (16, 1, 1, 1))
    x = net.norm(net.convolve(net.convolve(pooled, blur, stride=2, pad=1, group=16), net.normal(32, 16, 1, 1)))
    ran = run(net, net.classifier(net.relu(residual(x))), tmp_path, bound=FLOAT)
    assert [kind for kind, _ in ran.layers].count("binary conv") == 3


# Ternary weights, powers of two, codebooks


def test_twn_with_float_and_with_binary_activations(tmp_path: Path) -> None:
    net = PaperNet((3, 8, 8), seed=12)
    x = net.relu(net.norm(net.convolve(net.x, systems.ternary_weight(net.normal(16, 3, 3, 3)), pad=1)))
    x = net.norm(net.convolve(x, systems.ternary_weight(net.normal(24, 16, 3, 3)), pad=1))
    x = net.norm(net.convolve(net.sign(x), systems.ternary_weight(net.normal(32, 24, 3, 3)), pad=1))
    x = net.linear(net.flatten(net.relu(x)), systems.ternary_weight(net.normal(10, 32 * 64)))
    ran = run(net, x, tmp_path, bound=FLOAT, fc_precision="f32")
    assert ran.layers == [
        ("float conv", "ternary x 32"),
        ("float conv", "ternary x 32"),
        ("ternary conv", "ternary x 1"),
        ("codebook linear", "1 x 32"),
    ]
    assert min(ran.smaller) > 10


def test_ttq_with_float_activations(tmp_path: Path) -> None:
    net = PaperNet((3, 8, 8), seed=13)
    x = net.relu(stem(net, 16))
    x = net.relu(net.norm(net.convolve(x, systems.trained_ternary(net.normal(24, 16, 3, 3), 0.83, 1.21), pad=1)))
    x = net.linear(net.flatten(x), systems.trained_ternary(net.normal(10, 24 * 64), 0.37, 0.91, 0.3))
    ran = run(net, x, tmp_path, bound=FLOAT, fc_precision="f32")
    assert ran.layers[1:] == [("float conv", "ternary x 32"), ("codebook linear", "1 x 32")]
    assert min(ran.smaller[1:]) > 14


def test_inq_has_seventeen_powers_of_two(tmp_path: Path) -> None:
    net = PaperNet((3, 8, 8), seed=14)
    weight = systems.incremental_power_of_two(net.normal(24, 16, 3, 3))
    x = net.relu(net.norm(net.convolve(net.relu(stem(net, 16)), weight, pad=1)))
    last = systems.incremental_power_of_two(net.normal(10, 24 * 64))
    assert np.unique(last).size == 17
    ran = run(net, net.linear(net.flatten(x), last), tmp_path, bound=FLOAT)
    assert ran.layers[1:] == [("float conv", "5 x 32"), ("codebook linear", "4 x 32")]
    assert min(ran.smaller[1:]) > 5.5


def test_tsq_is_ternary_times_two_bits(tmp_path: Path) -> None:
    """Activations: nothing below a threshold, above it 1, 2 or 3 times the layer's scale."""
    net = PaperNet((3, 9, 9), seed=15)
    levels, thresholds = 0.47 * np.arange(4), np.asarray([0.31, 0.705, 1.175])
    x = few_thresholds(net, stem(net, 16), levels, thresholds)
    for channels in (24, 32):
        x = net.convolve(x, systems.two_step_ternary(net.normal(channels, x.value.shape[1], 3, 3)), pad=1)
        x = few_thresholds(net, net.norm(x), levels, thresholds)
    ran = run(net, net.classifier(x), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == [("ternary conv", "ternary x 2")] * 2


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_dorefa_net(bits: int, tmp_path: Path) -> None:
    """Activations: clip(x, 0, 1) rounded to multiples of 1 / (2^k - 1), 2 bits; weights of 1 to 3 bits."""
    net = PaperNet((3, 9, 9), seed=16)

    def quantize(x: Pair) -> Pair:
        clipped = net.op("Clip", x.name, net.constant(0.0), net.constant(1.0))
        name = net.op("Div", net.op("Round", net.op("Mul", clipped, net.constant(3.0))), net.constant(3.0))
        return Pair(name, np.rint(3.0 * np.clip(x.value, 0.0, 1.0)) / 3.0)

    x = quantize(stem(net, 16))
    for channels in (24, 32):
        x = net.convolve(x, systems.dorefa_weight(net.normal(channels, x.value.shape[1], 3, 3), bits), pad=1)
        x = quantize(net.norm(x))
    ran = run(net, net.classifier(x), tmp_path, bound=FLOAT)
    kind = ("1-bit x 2-bit conv", "1 x 2") if bits == 1 else (f"{bits}-bit conv", f"{bits} x 2")
    assert ran.layers[1:-1] == [kind] * 2


def test_deep_compression_shares_values_among_pruned_weights(tmp_path: Path) -> None:
    """256 values in convolutions, 32 and 16 in fully connected layers, a tenth to a quarter of the weights kept."""
    net = PaperNet((3, 8, 8), seed=17)
    x = net.relu(net.convolve(net.x, systems.deep_compression(net.normal(16, 3, 3, 3), 8, 0.8, net.rng), pad=1))
    x = net.max_pool(
        net.relu(net.convolve(x, systems.deep_compression(net.normal(24, 16, 3, 3), 8, 0.4, net.rng), pad=1))
    )
    x = net.relu(
        net.linear(net.flatten(x), systems.deep_compression(net.normal(80, 384), 5, 0.1, net.rng), net.normal(80))
    )
    x = net.linear(x, systems.deep_compression(net.normal(10, 80), 4, 0.25, net.rng), net.normal(10))
    ran = run(net, x, tmp_path, bound=FLOAT, fc_precision="f32")
    assert ran.layers == [
        ("float conv", "8 x 32"),
        ("float conv", "8 x 32"),
        ("float linear", "5 x 32"),
        ("codebook linear", "4 x 32"),
    ]


def test_ecq_has_as_many_levels_as_its_step_asks_for(tmp_path: Path) -> None:
    net = PaperNet((3, 8, 8), seed=18)
    x = net.relu(net.convolve(net.x, systems.entropy_constrained(net.normal(16, 3, 3, 3), 0.05), pad=1))
    x = net.linear(net.flatten(x), systems.entropy_constrained(net.normal(10, 1024), 0.11))
    ran = run(net, x, tmp_path, bound=FLOAT)
    assert [kind for kind, _ in ran.layers] == ["float conv", "float linear"]


# Fewer channels


@pytest.mark.parametrize("channels", [(7, 13, 37), (31, 33, 65)])
def test_filter_pruning_leaves_odd_channel_counts(channels: tuple[int, ...], tmp_path: Path) -> None:
    """In arXiv 1608.08710: whole filters go; here the network is binary as well."""
    net = PaperNet((3, 8, 8), seed=19)
    x = stem(net, channels[0])
    for count in channels[1:]:
        x = net.norm(net.convolve(net.sign(x), systems.scaled_binary(net.normal(count, x.value.shape[1], 3, 3)), pad=1))
    ran = run(net, net.classifier(x), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == [("binary conv", "1 x 1")] * 2


@pytest.mark.parametrize("quantized", [False, True])
def test_slimming_selects_channels(quantized: bool, tmp_path: Path) -> None:
    """In arXiv 1708.06519: a pre-activation block reads some of the channels, by a Gather behind BatchNormalization."""
    net = PaperNet((3, 8, 8), seed=43)
    x = stem(net, 24)
    for chosen in ([0, 3, 4, 9, 17, 23], [1, 2, 21, 22]):
        normal = net.norm(x)
        picked = net.pair(normal.value[:, chosen], "Gather", normal.name, net.constant(chosen, np.int64), axis=1)
        active = net.sign(picked) if quantized else net.relu(picked)
        weight = net.normal(24, len(chosen), 3, 3)
        x = net.add(x, net.convolve(active, systems.scaled_binary(weight) if quantized else weight, pad=1))
    ran = run(net, net.classifier(net.relu(x)), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == [("binary conv", "1 x 1") if quantized else ("float conv", "32 x 32")] * 2


# Values on no lattice


def test_ttq_with_two_bit_activations_is_two_bases_and_a_window_sum(tmp_path: Path) -> None:
    net = PaperNet((3, 9, 9), seed=30)
    levels, thresholds = np.arange(4) / 3.0, np.asarray([0.5, 1.5, 2.5]) / 3.0
    x = few_thresholds(net, stem(net, 32), levels, thresholds)
    for channels in (48, 64):
        weight = systems.trained_ternary(net.normal(channels, x.value.shape[1], 3, 3), 0.83, 1.21, 0.3)
        x = few_thresholds(net, net.norm(net.convolve(x, weight, pad=1)), levels, thresholds)
    x = net.linear(net.flatten(x), systems.trained_ternary(net.normal(10, 64 * 81), 0.37, 0.91, 0.3))
    ran = run(net, x, tmp_path, bound=FLOAT)
    assert ran.layers[1:] == [("1-bit x 2-bit conv", "1 x 2")] * 6 + [("1-bit x 2-bit linear", "1 x 2")] * 3
    note = next(layer.reason for layer in ran.report.layers if layer.name == "Conv_13/1")
    assert note == "sum 'Conv_13' of 3 layers of bits: 2 weight bases and an offset"


def test_lq_net_learns_bases_on_both_sides(tmp_path: Path) -> None:
    """Activations {0, v1, v2, v1 + v2}: steps of v1, twice, and of v2 - v1; weights +-v1 +-v2 per filter."""
    net = PaperNet((3, 9, 9), seed=31)
    levels, thresholds = np.asarray([0.0, 0.43, 0.97, 1.40]), np.asarray([0.215, 0.7, 1.185])
    x = few_thresholds(net, stem(net, 64), levels, thresholds)
    for channels in (64, 48):
        basis, codes = systems.learned_bases(net.normal(channels, x.value.shape[1], 3, 3), 2)
        weight = np.einsum("oj,oj...->o...", basis, codes)
        x = few_thresholds(net, net.norm(net.convolve(x, weight, pad=1)), levels, thresholds)
    ran = run(net, net.classifier(x), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == ([("1-bit x 2-bit conv", "1 x 2")] * 2 + [("binary conv", "1 x 1")] * 2) * 2


def test_abc_net_written_as_one_convolution_of_sums(tmp_path: Path) -> None:
    """What an exporter makes of it that adds the bases up first: 4 weight values times 3 activation values."""
    net = PaperNet((3, 8, 8), seed=32)
    x = stem(net, 64)
    alphas, bases = systems.abc_bases(net.normal(48, 64, 3, 3), 3)
    first, second = net.sign(x), net.sign(net.add_constant(x, 0.8))
    both = net.add(net.scale(first, 0.9), net.scale(second, 0.55))
    x = net.norm(net.convolve(both, np.tensordot(alphas, bases, 1), pad=1))
    ran = run(net, net.classifier(net.relu(x)), tmp_path, bound=FLOAT)
    assert ran.layers[1:-1] == [("binary conv", "1 x 1")] * 6


def test_ada_bin_has_offsets_on_both_sides_and_zero_padding(tmp_path: Path) -> None:
    """A tap in the padding reads 0, which is neither of the activation's values."""
    net = PaperNet((3, 9, 9), seed=33)
    x = stem(net, 32)
    for channels, alpha, beta, pad in ((48, 0.8127, 0.1344, 1), (64, 0.6321, -0.2113, 1), (72, 0.7251, 0.0931, 0)):
        centred = net.op("Div", net.op("Sub", x.name, net.constant(beta)), net.constant(alpha))
        name = net.op("Add", net.op("Mul", net.op("Sign", centred), net.constant(alpha)), net.constant(beta))
        binary = Pair(name, alpha * systems.sign(x.value - beta) + beta)
        weight = systems.adaptive_binary(net.normal(channels, x.value.shape[1], 3, 3))
        x = net.norm(net.convolve(binary, weight, pad=pad))
    ran = run(net, net.classifier(net.relu(x)), tmp_path, bound=FLOAT)
    assert {kind for kind, _ in ran.layers[1:-1]} == {"binary conv"}
    assert len(ran.layers[1:-1]) == 6
    reasons = [layer.reason for layer in ran.report.layers if layer.reason.startswith("sum")]
    border = ["constant map" in reason for reason in reasons]
    assert border == [True, True, False]


def test_signs_that_are_concatenated_stay_binary(tmp_path: Path) -> None:
    net = PaperNet((3, 9, 9), seed=34)
    x = stem(net, 32)
    both = net.concat(net.sign(x), net.sign(net.add_constant(x, 0.3)))
    x = net.norm(net.convolve(both, systems.sign(net.normal(48, 64, 3, 3)), pad=1))
    ran = run(net, net.classifier(net.relu(x)), tmp_path, bound=FLOAT)
    assert ran.layers[1] == ("binary conv", "1 x 1")
