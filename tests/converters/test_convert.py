from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import Array, Net, check, convert, kinds, save
from onnx import helper
from tac_engine.converters.evaluate import ReferenceModel
from tac_engine.converters.verify import verify

import tac_engine
from tac_engine import InvalidInputError, UnsupportedModelError


def image(net: Net, batch: int = 3, size: tuple[int, ...] | None = None) -> Array:
    dims = tuple(dim for dim in net.shape[1:] if isinstance(dim, int)) if size is None else size
    return net.rng.normal(size=(batch, *dims)).astype(np.float32)


def sign(net: Net, x: str) -> str:
    return net.op("Sign", x)


# Spellings of a sign


def where_greater_or_equal(net: Net, x: str) -> str:
    return net.op("Where", net.op("GreaterOrEqual", x, net.constant(0)), net.constant(1), net.constant(-1))


def where_full_shape(net: Net, x: str) -> str:
    ones = np.ones((1, 6, 8, 8))
    return net.op("Where", net.op("GreaterOrEqual", x, net.constant(0)), net.constant(ones), net.constant(-ones))


def greater(net: Net, x: str) -> str:
    return net.op("Where", net.op("Greater", x, net.constant(0)), net.constant(1), net.constant(-1))


def cast(net: Net, x: str) -> str:
    as_float = net.op("Cast", net.op("GreaterOrEqual", x, net.constant(0)), to=1)
    return net.op("Sub", net.op("Mul", as_float, net.constant(2)), net.constant(1))


def sign_add_sign(net: Net, x: str) -> str:
    return net.op("Sign", net.op("Add", net.op("Sign", x), net.constant(0.1)))


def clipped(net: Net, x: str) -> str:
    return net.op("Sign", net.op("Clip", x, net.constant(-1), net.constant(1)))


def behind_prelu(net: Net, x: str) -> str:
    return net.op("Sign", net.op("PRelu", x, net.constant(np.full((6, 1, 1), 0.25))))


def behind_identity_and_dropout(net: Net, x: str) -> str:
    return net.op("Sign", net.op("Identity", net.op("Dropout", x)))


def detached(net: Net, x: str) -> str:
    clip = net.op("Clip", x, net.constant(-1), net.constant(1))
    return net.op("Add", net.op("Sub", net.op("Sign", x), clip), clip)


def ternary_in_two_layouts(net: Net, x: str) -> str:
    """Both branches are transposed on their own, as tf2onnx pushes transposes through a subtraction and an addition."""
    nhwc = [0, 2, 3, 1]
    low = net.op("Sign", net.op("Transpose", net.op("Add", x, net.constant(2.5)), perm=nhwc))
    high = net.op("Sign", net.op("Transpose", net.op("Sub", x, net.constant(2.5)), perm=nhwc))
    return net.op("Transpose", net.op("Sign", net.op("Add", low, high)), perm=[0, 3, 1, 2])


def bipolar(net: Net, x: str) -> str:
    return net.op("BipolarQuant", x, net.constant([1.0]), domain="qonnx.custom_op.general")


@pytest.mark.parametrize(
    "spelling",
    [
        sign,
        where_greater_or_equal,
        where_full_shape,
        greater,
        cast,
        sign_add_sign,
        clipped,
        behind_prelu,
        behind_identity_and_dropout,
        detached,
        bipolar,
    ],
)
def test_every_sign_spelling_becomes_a_binary_convolution(spelling: Any, tmp_path: Path) -> None:
    net = Net(("N", 6, 8, 8), seed=3)
    hidden = spelling(net, net.batch_norm("x", 6))
    hidden = net.batch_norm(net.conv(hidden, net.signs(6, 6, 3, 3), pads=[1, 1, 1, 1]), 6, spread=7)
    output = net.conv(spelling(net, hidden), net.signs(4, 6, 3, 3))
    domains = ("qonnx.custom_op.general",) if spelling is bipolar else ()
    x = image(net, 4)
    x[0, 0, 0, :4] = [0.0, -0.0, 1e-45, -1e-45]
    tolerance = 2e-6 if spelling is detached else 0.0  # its +-1 are off by an ulp in the original
    report = check(net.model(output, domains), tmp_path, x, tolerance=tolerance)
    assert kinds(report).count("binary conv") == 2
    assert not any("float" in kind for kind in kinds(report))


@pytest.mark.parametrize(
    "domain",
    ["onnx.brevitas", "finn", "finn.custom_op.general", "qonnx.custom_op.general"],
)
@pytest.mark.parametrize("declared", [True, False])
def test_qonnx_domains_declared_or_not(domain: str, declared: bool, tmp_path: Path) -> None:
    net = Net(("N", 40), seed=5)
    scale, zero, bits = net.constant(0.5), net.constant(0.0), net.constant(2.0)
    act = net.op("Quant", "x", scale, zero, bits, domain=domain, signed=1, narrow=1, rounding_mode="ROUND")
    latent = net.constant(net.rng.normal(size=(12, 40)) * 0.1)
    weight = net.op("BipolarQuant", latent, net.constant([1.0]), domain=domain)
    hidden = net.op("MatMul", act, net.op("Transpose", weight, perm=[1, 0]))
    output = net.op("BipolarQuant", net.batch_norm(hidden, 12, 5), net.constant([1.0]), domain=domain)
    output = net.op("MatMul", output, net.constant(net.signs(12, 3)))
    report = check(net.model(output, (domain,) if declared else ()), tmp_path, image(net, 50))
    assert kinds(report) == ["quantizer", "1-bit x 2-bit linear", "binary linear"]


# BatchNorm and weight spellings


def test_batch_norm_spelled_out_folded_and_latent_weights(tmp_path: Path) -> None:
    net = Net(("N", 5, 6, 6), seed=9)
    latent = net.constant(net.rng.normal(size=(7, 5, 3, 3)))
    hidden = net.op("Conv", net.op("Sign", "x"), net.op("Sign", latent), kernel_shape=[3, 3])
    mean, variance = (
        net.constant(net.rng.normal(size=(1, 7, 1, 1)) * 4),
        net.constant(net.rng.uniform(9, 30, (1, 7, 1, 1))),
    )
    deviation = net.op("Pow", variance, net.constant(0.5))
    hidden = net.op("Div", net.op("Sub", hidden, mean), deviation)
    hidden = net.op("Add", net.op("Mul", hidden, net.constant(net.rng.normal(size=(7, 1, 1)))), net.constant(0.125))
    output = net.conv(net.op("Sign", hidden), net.signs(4, 7, 3, 3))
    report = check(net.model(output), tmp_path, image(net, 5))
    assert kinds(report).count("binary conv") == 2


def test_weights_scaled_by_folded_batch_norm_are_binary(tmp_path: Path) -> None:
    net = Net(("N", 8, 6, 6), seed=2)
    scales = net.rng.choice([0.25, 0.5, 1.0, 2.0], (6, 1, 1, 1)) * net.rng.choice([-1, 1], (6, 1, 1, 1))
    hidden = net.conv(net.op("Sign", "x"), net.signs(6, 8, 3, 3) * scales, net.rng.normal(size=6))
    output = net.conv(net.op("Sign", hidden), net.signs(3, 6, 3, 3) * 0.3, net.rng.normal(size=3))
    report = check(net.model(output), tmp_path, image(net), tolerance=1e-6)
    assert kinds(report).count("binary conv") == 2


def test_arbitrary_scales_agree_with_the_float_model(tmp_path: Path) -> None:
    net = Net(("N", 8, 6, 6), seed=12)
    weight = net.signs(6, 8, 3, 3) * net.rng.uniform(0.01, 3, (6, 1, 1, 1))
    output = net.conv(net.op("Sign", "x"), weight, net.rng.normal(size=6), pads=[1, 1, 1, 1])
    assert "binary conv" in kinds(check(net.model(output), tmp_path, image(net), tolerance=1e-6))


@pytest.mark.parametrize("order", ["pool, norm, sign", "norm, pool, sign", "norm, sign, pool"])
def test_max_pool_before_or_after_the_sign(order: str, tmp_path: Path) -> None:
    net = Net(("N", 33, 9, 9), seed=4)
    hidden = net.conv(net.op("Sign", "x"), net.signs(40, 33, 3, 3), pads=[1, 1, 1, 1])
    for step in order.split(", "):
        if step == "pool":
            hidden = net.op("MaxPool", hidden, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        elif step == "norm":
            hidden = net.batch_norm(hidden, 40, 17)
        else:
            hidden = net.op("Sign", hidden)
    output = net.conv(hidden, net.signs(5, 40, 3, 3))
    report = check(net.model(output), tmp_path, image(net))
    assert kinds(report).count("binary conv") == 2
    assert "pooling on bits" in kinds(report)


# Geometry


@pytest.mark.parametrize("pad", [np.inf, -np.inf])
def test_infinite_padding_of_signs_runs_as_floats(pad: float, tmp_path: Path) -> None:
    net = Net(("N", 64, 4, 4), seed=19)
    pads = net.constant([0, 0, 1, 0, 0, 0, 0, 0], np.int64)
    padded = net.op("Pad", net.op("Sign", "x"), pads, net.constant(pad))
    report = check(net.model(net.conv(padded, np.abs(net.signs(2, 64, 3, 3)))), tmp_path, image(net))
    assert "float conv" in kinds(report)


@pytest.mark.parametrize("channels", [1, 3, 32, 65, 130])
@pytest.mark.parametrize("pad", [0.0, -1.0, 1.0])
def test_paddings_and_channel_counts_are_exact(channels: int, pad: float, tmp_path: Path) -> None:
    net = Net(("N", channels, 7, 6), seed=channels)
    hidden = net.op("Sign", "x")
    if pad == 0.0:
        output = net.conv(hidden, net.signs(17, channels, 3, 3), pads=[1, 1, 1, 1])
    else:
        pads = net.constant([0, 0, 1, 2, 0, 0, 0, 1], np.int64)
        hidden = net.op("Pad", hidden, pads, net.constant(pad))
        output = net.conv(hidden, net.signs(17, channels, 3, 3))
    check(net.model(output), tmp_path, image(net))


@pytest.mark.parametrize(
    ("weight", "attributes"),
    [
        ((8, 6, 1, 1), {}),
        ((8, 6, 5, 5), {"pads": [2, 2, 2, 2]}),
        ((8, 6, 2, 3), {"strides": [2, 1], "pads": [0, 1, 1, 0]}),
        ((8, 6, 3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
        ((8, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
        ((6, 2, 3, 3), {"group": 3, "strides": [2, 2]}),
        ((8, 6, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((8, 6, 7, 7), {"pads": [6, 6, 6, 6]}),
    ],
)
def test_any_window_stride_dilation_and_group(weight: tuple[int, ...], attributes: Any, tmp_path: Path) -> None:
    net = Net(("N", 6, 9, 8), seed=1)
    output = net.conv(net.op("Sign", "x"), net.signs(*weight), **attributes)
    assert "binary conv" in kinds(check(net.model(output), tmp_path, image(net)))


def test_depthwise_layers_of_signs_run_as_floats(tmp_path: Path) -> None:
    """One bit in a word of 64: 12 times as slow as floats on AVX-512, 38 times on AVX2."""
    net = Net(("N", 6, 9, 8), seed=1)
    hidden = net.conv(net.op("Sign", "x"), net.signs(12, 1, 3, 3), group=6, pads=[1, 1, 1, 1])
    report = check(net.model(net.op("Sign", hidden)), tmp_path, image(net))
    (layer,) = (layer for layer in report.layers if layer.bytes_before > 4 * 12)
    assert (layer.kind, layer.bits) == ("float conv", "1 x 32")
    assert layer.reason.startswith("a depthwise layer")


@pytest.mark.parametrize("layout", ["computed shape", "constant shape", "Flatten"])
@pytest.mark.parametrize("channels", [8, 33])
@pytest.mark.parametrize("last", ["MatMul", "Gemm", "Gemm transposed"])
def test_flatten_into_a_fully_connected_layer(layout: str, channels: int, last: str, tmp_path: Path) -> None:
    net = Net(("N", channels, 4, 3), seed=6)
    hidden = net.op("Sign", "x")
    features = channels * 12
    if layout == "Flatten":
        hidden = net.op("Flatten", hidden)
    else:
        target = net.constant([-1, features], np.int64)
        if layout == "computed shape":
            batch = net.op("Gather", net.op("Shape", hidden), net.constant(0, np.int64), axis=0)
            batch = net.op("Unsqueeze", batch, net.constant([0], np.int64))
            target = net.op("Concat", batch, net.constant([-1], np.int64), axis=0)
        hidden = net.op("Reshape", hidden, target)
    weight = net.signs(11, features)
    if last == "MatMul":
        output = net.op("MatMul", hidden, net.op("Transpose", net.constant(weight), perm=[1, 0]))
    elif last == "Gemm":
        output = net.op("Gemm", hidden, net.constant(weight.T), net.constant(np.arange(11)))
    else:
        output = net.op(
            "Gemm", hidden, net.constant(weight), net.constant(np.arange(11)), transB=1, alpha=2.0, beta=0.5
        )
    assert "binary linear" in kinds(check(net.model(output), tmp_path, image(net)))


def test_channels_last_graph_with_transposes(tmp_path: Path) -> None:
    net = Net(("N", 6, 5, 4), seed=8)  # NHWC, as Keras exports
    hidden = net.op(
        "Pad",
        net.op("Sign", net.op("Add", net.op("Sign", "x"), net.constant(0.1))),
        net.constant([0, 1, 1, 0, 0, 1, 1, 0], np.int64),
        net.constant(1.0),
    )
    hidden = net.conv(net.op("Transpose", hidden, perm=[0, 3, 1, 2]), net.signs(9, 4, 3, 3))
    hidden = net.op("Transpose", hidden, perm=[0, 2, 3, 1])
    hidden = net.op("Mul", hidden, net.constant(net.rng.normal(size=9)))
    hidden = net.op("Sign", net.op("Add", hidden, net.constant(net.rng.normal(size=9))))
    hidden = net.op("Reshape", hidden, net.constant([-1, 6 * 5 * 9], np.int64))
    output = net.op("MatMul", hidden, net.constant(net.signs(6 * 5 * 9, 3)))
    report = check(net.model(output), tmp_path, image(net))
    assert kinds(report).count("binary conv") == 1
    assert kinds(report).count("binary linear") == 1


# More bits


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "weight_levels", [(-1, 1), (-1, 0, 1), (-3, -1, 1, 3), tuple(range(-4, 4)), tuple(range(-7, 8))]
)
def test_low_bit_activations_and_weights(bits: int, weight_levels: tuple[int, ...], tmp_path: Path) -> None:
    net = Net(("N", 35, 6, 6), seed=bits)
    scale, zero, width = net.constant(0.25), net.constant(0.0), net.constant(float(bits))
    domain = "qonnx.custom_op.general"
    act = net.op(
        "Quant", net.op("Relu", "x"), scale, zero, width, domain=domain, signed=0, narrow=0, rounding_mode="ROUND"
    )
    weight = net.rng.choice(np.asarray(weight_levels, np.float32), (10, 35, 3, 3)) * 0.5
    hidden = net.batch_norm(net.conv(act, weight, pads=[1, 1, 1, 1]), 10, 8)
    act = net.op("Quant", hidden, scale, zero, width, domain=domain, signed=1, narrow=0, rounding_mode="ROUND")
    output = net.conv(act, net.rng.choice(np.asarray(weight_levels, np.float32), (4, 10, 1, 1)))
    report = check(net.model(output, (domain,)), tmp_path, image(net))
    assert sum(layer.op == "binary_conv" for layer in report.layers) == 2


@pytest.mark.parametrize("pad_value", [0, 1])
def test_a_convolution_lowered_to_a_matrix_product_is_one_again(pad_value: int, tmp_path: Path) -> None:
    domain = "qonnx.custom_op.general"
    net = Net(("N", 9, 8, 5), seed=1)
    columns = net.op(
        "Im2Col",
        "x",
        domain=domain,
        kernel_size=[2, 3],
        stride=[2, 1],
        dilations=[2, 1],
        pad_amount=[1, 0, 2, 1],
        pad_value=pad_value,
        input_shape="(1, 9, 8, 5)",
    )
    weight = net.rng.integers(-4, 5, (2 * 3 * 5, 7)).astype(np.float32)
    output = net.op("MatMul", columns, net.constant(weight))
    x = net.rng.integers(-8, 8, (3, 9, 8, 5)).astype(np.float32)
    report = check(net.model(output, (domain,)), tmp_path, x)
    assert "float conv" in kinds(report)
    padded = np.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=pad_value)
    taps = np.stack([padded[:, i : i + 9 : 2, j : j + 7] for i in (0, 2) for j in range(3)], axis=3)
    expected = np.einsum("nhwtc,tco->nhwo", taps, weight.reshape(6, 5, 7))
    found = ReferenceModel(net.model(output, (domain,))).run({"x": x})[output]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [("N", 6, 4, 4), ("N", 6)])
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("steps", [16, 40])
def test_more_thresholds_than_bits_hold_are_counted(
    shape: tuple[int | str, ...], rows: int, steps: int, tmp_path: Path
) -> None:
    domain = "qonnx.custom_op.general"
    net = Net(shape, seed=2)
    thresholds = net.constant(np.sort(net.rng.normal(size=(rows, steps)), axis=1))
    output = net.op("MultiThreshold", "x", thresholds, domain=domain, out_dtype="INT8", out_scale=0.3, out_bias=-1.5)
    x = net.rng.normal(size=(5, *shape[1:])).astype(np.float32)
    check(net.model(output, (domain,)), tmp_path, x)


def test_quantize_dequantize_pairs_are_read_as_levels(tmp_path: Path) -> None:
    net = Net(("N", 8, 5, 5), seed=0)
    scale, zero = net.constant(0.5), net.constant(0, np.int8)
    act = net.op("QuantizeLinear", "x", scale, zero)
    act = net.op("Clip", act, net.constant(-1, np.int8), net.constant(1, np.int8))
    act = net.op("DequantizeLinear", act, scale, zero)
    weight = net.op("DequantizeLinear", net.constant(net.rng.integers(-1, 2, (6, 8, 3, 3)), np.int8), scale, zero)
    output = net.op("Conv", act, weight, kernel_shape=[3, 3])
    assert "ternary conv" in kinds(check(net.model(output), tmp_path, image(net)))


def test_eight_bit_quantizers_run_as_floats(tmp_path: Path) -> None:
    net = Net(("N", 8, 5, 5), seed=0)
    scale, zero = net.constant(0.02), net.constant(3, np.uint8)
    act = net.op("DequantizeLinear", net.op("QuantizeLinear", "x", scale, zero), scale, zero)
    output = net.conv(act, net.rng.normal(size=(4, 8, 3, 3)))
    assert "float conv" in kinds(check(net.model(output), tmp_path, image(net), tolerance=1e-6))


# Residual networks and float layers


def test_residual_binary_block(tmp_path: Path) -> None:
    net = Net(("N", 3, 12, 12), seed=21)
    stem = net.conv("x", net.rng.normal(size=(16, 3, 3, 3)), net.rng.normal(size=16), pads=[1, 1, 1, 1], strides=[2, 2])
    body = net.batch_norm(net.conv(net.op("Sign", stem), net.signs(16, 16, 3, 3), pads=[1, 1, 1, 1]), 16, 12)
    joined = net.op("PRelu", net.op("Add", body, stem), net.constant(np.full((16, 1, 1), 0.25)))
    down = net.op("AveragePool", joined, kernel_shape=[2, 2], strides=[2, 2])
    down = net.batch_norm(net.conv(down, net.rng.normal(size=(24, 16, 1, 1))), 24)
    body = net.conv(net.op("Sign", joined), net.signs(24, 16, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    joined = net.op("Add", net.batch_norm(body, 24, 12), down)
    pooled = net.op("Flatten", net.op("GlobalAveragePool", joined))
    output = net.op("Gemm", pooled, net.constant(net.rng.normal(size=(10, 24))), net.constant(np.arange(10)), transB=1)
    report = check(net.model(output), tmp_path, image(net), tolerance=1e-5)
    assert kinds(report).count("binary conv") == 2
    reasons = {layer.name: layer.reason for layer in report.layers if layer.kind.startswith("float")}
    assert len(reasons) == 3
    assert all(reasons.values())


def test_binary_convolution_scaled_by_the_map_of_its_input(tmp_path: Path) -> None:
    # XNOR-Net: the mean of |x| over the channels, averaged over the window, scales each pixel of the sum.
    net = Net(("N", 24, 9, 9), seed=22)
    x = net.batch_norm("x", 24)
    mean = net.op("ReduceMean", net.op("Abs", x), net.constant([1], np.int64), keepdims=1)
    scale = net.conv(mean, np.full((1, 1, 3, 3), 1 / 9), pads=[1, 1, 1, 1])
    body = net.conv(net.op("Sign", x), net.signs(16, 24, 3, 3), pads=[1, 1, 1, 1])
    output = net.op("Mul", net.op("Mul", body, scale), net.constant(net.rng.uniform(0.1, 1, (1, 16, 1, 1))))
    report = check(net.model(output), tmp_path, image(net), tolerance=2e-6)
    assert kinds(report).count("binary conv") == 1


def test_signs_around_the_mean_of_each_sample(tmp_path: Path) -> None:
    # RBNN: activations are normalised per sample, so that each has a threshold of its own.
    net = Net(("N", 20, 8, 8), seed=23)
    axes = net.constant([1, 2, 3], np.int64)
    centred = net.op("Sub", "x", net.op("ReduceMean", "x", axes))
    deviation = net.op("Sqrt", net.op("ReduceMean", net.op("Mul", centred, centred), axes))
    output = net.conv(net.op("Sign", net.op("Div", centred, deviation)), net.signs(8, 20, 3, 3))
    x = image(net, 6) + np.arange(6, dtype=np.float32)[:, None, None, None]
    report = check(net.model(output), tmp_path, x)
    assert kinds(report).count("binary conv") == 1


def test_channels_selected_in_front_of_a_sign(tmp_path: Path) -> None:
    net = Net(("N", 20, 6, 6), seed=24)
    chosen = net.op("Gather", "x", net.constant([17, 3, 4, 5, 9, 0], np.int64), axis=1)
    hidden = net.op("Sign", net.batch_norm(chosen, 6))
    report = check(net.model(net.conv(hidden, net.signs(8, 6, 3, 3))), tmp_path, image(net))
    assert kinds(report) == ["select", "quantizer", "binary conv"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda n: n.op("ReduceSum", "x", n.constant([0], np.int64)), "reducing the batch axis"),
        (lambda n: n.op("Gather", "x", n.constant([4], np.int64), axis=1), "leave an axis of size 4"),
        (lambda n: n.op("Gather", "x", n.constant([-5, 0], np.int64), axis=1), "leave an axis of size 4"),
        (lambda n: n.op("Gather", "x", n.constant([[0]], np.int64), axis=1), "rank 2, expected 0 or 1"),
        (lambda n: n.op("Resize", "x", "", n.constant([1, 1, 2, 2]), mode="cubic"), "mode 'cubic' is not supported"),
        (lambda n: n.op("Resize", "x", "", n.constant([2, 1, 2, 2]), mode="nearest"), "resizing the batch axis"),
        (lambda n: n.op("Resize", "x", "", n.constant([1, 1, 2]), mode="nearest"), "4 positive scales are expected"),
        (lambda n: n.op("Resize", "x", "", n.constant([1, 1, 0.1, 1]), mode="nearest"), "leave nothing of"),
        (lambda n: n.op("Cast", n.op("Cast", "x", to=2), to=1), "a cast from float32 to uint8 may change values"),
        (
            lambda n: n.op("Cast", n.op("Mul", n.op("Cast", "x", to=7), n.op("Cast", "x", to=7)), to=1),
            "arithmetic on int64 wraps around",
        ),
    ],
)
def test_ops_that_do_not_run_say_why(build: Any, message: str, tmp_path: Path) -> None:
    net = Net(("N", 4, 3, 3))
    with pytest.raises(UnsupportedModelError, match=message):
        convert(net.model(build(net)), tmp_path)


FLOAT_OPS: dict[str, Any] = {
    "Relu": lambda n, x: n.op("Relu", x),
    "Clip": lambda n, x: n.op("Clip", x, n.constant(-0.5), n.constant(0.75)),
    "LeakyRelu": lambda n, x: n.op("LeakyRelu", x, alpha=0.1),
    "PRelu": lambda n, x: n.op("PRelu", x, n.constant(n.rng.normal(size=(6, 1, 1)))),
    "Sigmoid": lambda n, x: n.op("Sigmoid", x),
    "Tanh": lambda n, x: n.op("Tanh", x),
    "HardSwish": lambda n, x: n.op("HardSwish", x),
    "HardSigmoid": lambda n, x: n.op("HardSigmoid", x, alpha=0.25, beta=0.4),
    "Abs, Sqrt": lambda n, x: n.op("Sqrt", n.op("Abs", x)),
    "BatchNormalization": lambda n, x: n.batch_norm(x, 6),
    "MaxPool": lambda n, x: n.op("MaxPool", x, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    "MaxPool ceil": lambda n, x: n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    "AveragePool": lambda n, x: n.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "AveragePool with pads": lambda n, x: n.op(
        "AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "GlobalAveragePool": lambda n, x: n.op("GlobalAveragePool", x),
    "GlobalMaxPool": lambda n, x: n.op("GlobalMaxPool", x),
    "Add scalar": lambda n, x: n.op("Add", n.constant(1.5), x),
    "Sub vector": lambda n, x: n.op("Sub", n.constant(n.rng.normal(size=(6, 1, 1))), x),
    "Mul map": lambda n, x: n.op("Mul", x, n.constant(n.rng.normal(size=(7, 5)))),
    "Div": lambda n, x: n.op("Div", x, n.constant(n.rng.uniform(1, 2, (1, 6, 1, 1)))),
    "Add itself": lambda n, x: n.op("Add", x, x),
    "Mul by a pooled map": lambda n, x: n.op("Mul", x, n.op("GlobalAveragePool", x)),
    "Concat": lambda n, x: n.op("Concat", x, n.op("Relu", x), axis=1),
    "Concat rows": lambda n, x: n.op("Concat", x, n.op("Relu", x), axis=2),
    "Transpose": lambda n, x: n.op("Transpose", x, perm=[0, 3, 1, 2]),
    "to NHWC": lambda n, x: n.op("Transpose", x, perm=[0, 2, 3, 1]),
    "Reshape": lambda n, x: n.op("Reshape", x, n.constant([0, 2, -1], np.int64)),
    "Flatten": lambda n, x: n.op("Flatten", x),
    "Squeeze, Unsqueeze": lambda n, x: n.op(
        "Squeeze", n.op("Unsqueeze", x, n.constant([2], np.int64)), n.constant([2], np.int64)
    ),
    "Pad": lambda n, x: n.op("Pad", x, n.constant([0, 1, 0, 2, 0, 0, 1, 0], np.int64), n.constant(0.5)),
    "Pad crops": lambda n, x: n.op("Pad", x, n.constant([0, 0, -1, 0, 0, 0, 0, -2], np.int64)),
    "Softmax": lambda n, x: n.op("Softmax", x, axis=1),
    "Softmax last": lambda n, x: n.op("LogSoftmax", x, axis=-1),
    "ArgMax": lambda n, x: n.op("ArgMax", x, axis=1, keepdims=0),
    "ReduceMean": lambda n, x: n.op("ReduceMean", x, n.constant([2, 3], np.int64), keepdims=0),
    "Elu": lambda n, x: n.op("Elu", x, alpha=0.7),
    "Selu": lambda n, x: n.op("Selu", x),
    "Celu": lambda n, x: n.op("Celu", x, alpha=0.6),
    "Softplus": lambda n, x: n.op("Softplus", x),
    "Softsign": lambda n, x: n.op("Softsign", x),
    "Erf": lambda n, x: n.op("Erf", x),
    "Gelu": lambda n, x: n.op("Gelu", x),
    "Gelu by tanh": lambda n, x: n.op("Gelu", x, approximate="tanh"),
    "Mish": lambda n, x: n.op("Mish", x),
    "Abs, Log": lambda n, x: n.op("Log", n.op("Add", n.op("Abs", x), n.constant(0.5))),
    "Reciprocal": lambda n, x: n.op("Reciprocal", n.op("Add", n.op("Abs", x), n.constant(0.5))),
    "ThresholdedRelu": lambda n, x: n.op("ThresholdedRelu", x, alpha=0.3),
    "squares": lambda n, x: n.op("Pow", x, n.constant(2.0)),
    "cubes": lambda n, x: n.op("Pow", n.op("Abs", x), n.constant(3.0)),
    "LRN": lambda n, x: n.op("LRN", x, size=5, alpha=0.02, beta=0.75, bias=2.0),
    "LRN of an even size": lambda n, x: n.op("LRN", x, size=4, alpha=0.3, beta=0.6),
    "Where of two tensors": lambda n, x: n.op(
        "Where", n.op("Less", x, n.op("Neg", x)), n.op("Mul", x, x), n.op("ReduceMax", x, n.constant([1], np.int64))
    ),
    "Where of a constant": lambda n, x: n.op(
        "Where",
        n.op("GreaterOrEqual", x, n.op("ReduceMean", x, n.constant([1, 2, 3], np.int64))),
        x,
        n.constant(n.rng.normal(size=(6, 1, 1))),
    ),
    "Where of a constant condition": lambda n, x: n.op(
        "Where", n.constant(n.rng.random((7, 5)) < 0.5, np.bool_), x, n.op("Neg", x)
    ),
    "comparisons": lambda n, x: n.op(
        "Cast",
        n.op(
            "Xor",
            n.op("And", n.op("Greater", x, n.op("Neg", x)), n.op("LessOrEqual", x, n.op("Mul", x, x))),
            n.op("Or", n.op("Not", n.op("Equal", x, n.op("Relu", x))), n.op("Less", n.op("Exp", x), n.constant(0.5))),
        ),
        to=1,
    ),
    "Cast to whole numbers and back": lambda n, x: n.op(
        "Cast", n.op("Cast", n.op("Mul", x, n.constant(7.5)), to=7), to=1
    ),
    "Cast to bool": lambda n, x: n.op("Mul", n.op("Cast", n.op("Cast", n.op("Floor", x), to=9), to=1), x),
    "ReduceMean of channels": lambda n, x: n.op("ReduceMean", n.op("Abs", x), n.constant([1], np.int64)),
    "ReduceSum of rows": lambda n, x: n.op("ReduceSum", x, n.constant([-2], np.int64), keepdims=0),
    "ReduceMax of rows and channels": lambda n, x: n.op("ReduceMax", x, n.constant([1, 2], np.int64), keepdims=0),
    "ReduceMin of channels": lambda n, x: n.op("ReduceMin", x, n.constant([1], np.int64), keepdims=0),
    "ReduceProd": lambda n, x: n.op("ReduceProd", x, n.constant([3], np.int64)),
    "ReduceL1": lambda n, x: n.op("ReduceL1", x, n.constant([1, 3], np.int64)),
    "ReduceL2 of a sample": lambda n, x: n.op("ReduceL2", x, n.constant([1, 2, 3], np.int64), keepdims=0),
    "ReduceSumSquare of vectors": lambda n, x: n.op(
        "ReduceSumSquare", n.op("Flatten", x), n.constant([1], np.int64), keepdims=0
    ),
    "ReduceSum of no axis": lambda n, x: n.op("ReduceSum", x, noop_with_empty_axes=1),
    "ReduceMean beside an axis of size 1": lambda n, x: n.op(
        "ReduceMean", n.op("MaxPool", x, kernel_shape=[7, 1]), n.constant([3], np.int64), keepdims=0
    ),
    "minus its mean": lambda n, x: n.op("Sub", x, n.op("ReduceMean", x, n.constant([1, 2, 3], np.int64))),
    "flat minus its mean": lambda n, x: n.op(
        "Sub", n.op("Flatten", x), n.op("ReduceMean", n.op("Flatten", x), n.constant([1], np.int64))
    ),
    "times a map of all channels": lambda n, x: n.op("Mul", n.op("ReduceMean", x, n.constant([1], np.int64)), x),
    "times a column of all channels": lambda n, x: n.op("Mul", x, n.op("ReduceMax", x, n.constant([1, 3], np.int64))),
    "rows over columns": lambda n, x: n.op(
        "Sub", n.op("ReduceMax", x, n.constant([2], np.int64)), n.op("ReduceMin", x, n.constant([1, 3], np.int64))
    ),
    "Slice": lambda n, x: n.op("Slice", x, *(n.constant(v, np.int64) for v in ([1, 5], [6, 0], [1, 2], [2, -2]))),
    "Slice of all": lambda n, x: n.op("Slice", x, *(n.constant(v, np.int64) for v in ([0], [2**62], [0]))),
    "Split": lambda n, x: n.op("Add", *n.split(x, [2, 2, 2], 1)[1:]),
    "Split of a vector": lambda n, x: n.op("Sub", *n.split(n.op("Flatten", x), [105, 105], 1)),
    "Gather": lambda n, x: n.op("Gather", x, n.constant([3, -1, 0, 0, 2], np.int64), axis=1),
    "Resize by scales": lambda n, x: n.op(
        "Resize", x, "", n.constant([1, 1, 2, 1.5]), mode="nearest", coordinate_transformation_mode="asymmetric"
    ),
    "Resize to sizes": lambda n, x: n.op(
        "Resize", x, "", "", n.constant([6, 3, 10], np.int64), mode="nearest", axes=[1, 2, 3]
    ),
    "Resize of two axes": lambda n, x: n.op(
        "Resize", x, "", n.constant([3.0, 0.5]), mode="nearest", axes=[2, 3], nearest_mode="floor"
    ),
    "Resize by interpolation": lambda n, x: n.op("Resize", x, "", n.constant([1, 1, 2, 0.6]), mode="linear"),
    "Resize to what it was": lambda n, x: n.op("Resize", x, "", n.constant([1, 1, 1, 1]), mode="nearest"),
    "Gather columns": lambda n, x: n.op("Gather", x, n.constant([4, 1], np.int64), axis=3),
    "Gather one": lambda n, x: n.op("Gather", x, n.constant(-2, np.int64), axis=2),
    "Min": lambda n, x: n.op("Min", x, n.constant(0.25)),
    "Max of three": lambda n, x: n.op("Max", x, n.constant(0.0), n.op("Neg", x)),
    "Conv": lambda n, x: n.conv(
        x, n.rng.normal(size=(9, 2, 3, 3)), n.rng.normal(size=9), group=3, strides=[2, 1], pads=[1, 2, 0, 1]
    ),
    "MatMul of rank 4": lambda n, x: n.op("MatMul", x, n.constant(n.rng.normal(size=(5, 3)))),
}


@pytest.mark.parametrize("name", FLOAT_OPS)
@pytest.mark.parametrize("behind", ["input", "convolution"])
def test_float_op(name: str, behind: str, tmp_path: Path) -> None:
    net = Net(("N", 6, 7, 5), seed=17)
    x = "x" if behind == "input" else net.conv("x", net.rng.normal(size=(6, 6, 1, 1)))
    check(net.model(FLOAT_OPS[name](net, x)), tmp_path, image(net, 2), tolerance=2e-6)


def test_flat_features_meet_constants_and_linear_layers(tmp_path: Path) -> None:
    net = Net(("N", 6, 4, 4), seed=17)
    flat = net.op("Flatten", net.conv("x", net.rng.normal(size=(5, 6, 1, 1))))
    flat = net.op("Relu", net.op("Mul", flat, net.constant(net.rng.normal(size=80))))
    flat = net.batch_norm(net.op("Add", flat, flat), 80)
    output = net.op("Gemm", flat, net.constant(net.rng.normal(size=(80, 7))))
    check(net.model(output), tmp_path, image(net, 2), tolerance=5e-6)


@pytest.mark.parametrize(
    "names",
    [("sums", "sums"), ("sums", "top"), ("top", "top/nhwc"), ("top", "top#1"), ("top", "sums/nhwc"), ("a", "a")],
)
def test_outputs_keep_their_names_whatever_nodes_are_called(names: tuple[str, str], tmp_path: Path) -> None:
    node, second = names
    net = Net(("N", 4, 5, 5), seed=18)
    weight = net.constant(net.rng.normal(size=(4, 4, 3, 3)))
    net.nodes = [
        helper.make_node("Conv", ["x", weight], ["sums"], name=node),
        helper.make_node("Relu", ["sums"], ["top"], name=node),
        helper.make_node("Neg", ["top"], [second if second not in ("sums", "top") else "last"], name=node),
    ]
    outputs = ("top", net.nodes[-1].output[0])
    check(net.model("sums", outputs=outputs), tmp_path, image(net), tolerance=2e-6)


def test_several_outputs_and_a_sign_that_is_also_added(tmp_path: Path) -> None:
    net = Net(("N", 6, 5, 5), seed=2)
    bits = net.op("Sign", "x")
    conv = net.conv(bits, net.signs(6, 6, 3, 3), pads=[1, 1, 1, 1])
    output = net.op("Add", conv, bits)
    second = net.conv(net.op("Sign", net.op("Add", conv, net.constant(0.5))), net.signs(2, 6, 1, 1))
    report = check(net.model(output, outputs=(second, conv)), tmp_path, image(net))
    assert kinds(report).count("binary conv") == 2


# Fully connected layers


@pytest.mark.parametrize("values", [2, 4, 16])
def test_few_valued_weights_become_an_exact_codebook(values: int, tmp_path: Path) -> None:
    net = Net(("N", 100), seed=values)
    weight = net.rng.choice(net.rng.normal(size=values).astype(np.float32), (30, 100))
    output = net.op("Gemm", "x", net.constant(weight), net.constant(np.arange(30)), transB=1)
    report = check(net.model(output), tmp_path, image(net, 9), tolerance=1e-6)
    assert kinds(report) == ["codebook linear"]


def pruned(net: Net, features: int, outputs: int, values: int = 15, zeros: float = 0.75) -> Array:
    weight = net.rng.choice(net.rng.normal(size=values).astype(np.float32), (outputs, features))
    weight[net.rng.random(weight.shape) < zeros] = 0.0
    return weight


@pytest.mark.parametrize(("precision", "tolerance"), [("i16", 1e-4), ("f32", 1e-6)])
def test_pruned_codebooks_keep_the_accuracy_that_their_arithmetic_promises(
    precision: str, tolerance: float, tmp_path: Path
) -> None:
    net = Net(("N", 900), seed=5)
    output = net.op("Gemm", "x", net.constant(pruned(net, 900, 70)), net.constant(np.arange(70)), transB=1)
    x = image(net, 9)
    report = check(net.model(output), tmp_path, x, tolerance=tolerance, fc_precision=precision)
    row = report.layers[0]
    assert (row.kind, row.bits) == ("codebook linear", "4 x 16" if precision == "i16" else "4 x 32")
    assert ("16-bit sums" if precision == "i16" else "float32 sums") in row.reason
    result = verify(tmp_path / "model.onnx", tmp_path / "model.tacbin", x)
    assert result.ok
    assert [layer.arithmetic for layer in result.layers] == [precision]
    assert 0.0 < result.layers[0].error == result.layers[0].max_rel_diff <= tolerance
    assert ("layers on rounded integers: 1, largest error" in str(result)) == (precision == "i16")


@pytest.mark.parametrize("kind", ["lognormal", "one large", "large where all weights are zero", "few"])
def test_sums_of_16_bits_keep_their_promise_for_uneven_inputs(kind: str, tmp_path: Path) -> None:
    net = Net(("N", 2000), seed=7)
    weight = pruned(net, 2000, 80)
    x = net.rng.normal(size=(5, 2000)).astype(np.float32)
    if kind == "lognormal":
        x = np.exp(2.0 * x)
    elif kind == "one large":
        x[:, 11] = 3e4
    elif kind == "large where all weights are zero":
        weight[:, 12] = 0.0
        x[:, 12] = 1e5
    else:
        x[:, 20:] = 0.0
    model = net.model(net.op("Gemm", "x", net.constant(weight), transB=1))
    report = check(model, tmp_path, x, tolerance=1e-4, fc_precision="i16")
    assert "16-bit sums" in report.layers[0].reason
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    found = tac_engine.load(tmp_path / "model.tacbin").run(x)
    errors = np.max(np.abs(found - expected), axis=1) / np.max(np.abs(expected), axis=1)
    assert np.max(errors) <= 1e-4


def test_sums_of_16_bits_are_the_same_on_every_backend_in_every_batch(tmp_path: Path) -> None:
    net = Net(("N", 300), seed=6)
    _, target = convert(net.model(net.op("MatMul", "x", net.constant(pruned(net, 300, 40).T))), tmp_path)
    x = image(net, 11)
    x[3] = 0.0
    x[4] = np.sign(x[4])
    results = []
    for backend in tac_engine.backends()["runnable"]:
        for threads in (1, 2):
            engine = tac_engine.load(target, backend=backend, threads=threads)
            results.append(engine.run(x))
            results.append(np.concatenate([engine.run(row[None]) for row in x]))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize(
    ("values", "zeros", "reason"),
    [
        (15, 0.3, "less than half of the weights are zero"),
        (16, 0.75, "16 values and zero"),
        (3, 1.1, "usual magnitude"),
    ],
)
def test_layers_that_16_bits_do_not_fit_keep_float_sums(values: int, zeros: float, reason: str, tmp_path: Path) -> None:
    net = Net(("N", 200), seed=7)
    output = net.op("Gemm", "x", net.constant(pruned(net, 200, 30, values, zeros)), transB=1)
    report = check(net.model(output), tmp_path, image(net), tolerance=1e-6)
    assert report.layers[0].bits.endswith("x 32")
    assert reason in report.layers[0].reason


def test_float_weights_stay_exact_unless_compression_is_asked_for(tmp_path: Path) -> None:
    net = Net(("N", 128), seed=1)
    output = net.op("Gemm", "x", net.constant(net.rng.normal(size=(64, 128))), transB=1)
    model = net.model(output)
    assert kinds(check(model, tmp_path, image(net, 3), tolerance=1e-6)) == ["float linear"]
    report, _ = convert(model, tmp_path, fc_prune=0.75, fc_bits=4)
    assert kinds(report) == ["codebook linear"]
    assert "75% zeros" in report.layers[0].reason
    assert "relative error" in report.layers[0].reason
    assert report.layers[0].bytes_after < 128 * 64 * 2.1 / 8 + 64 * 4 + 64


@pytest.mark.parametrize(
    "option", [{"fc_prune": 1.0}, {"fc_prune": -0.1}, {"fc_bits": 5}, {"fc_precision": "i8"}, {"input_layout": "CHWN"}]
)
def test_bad_options_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    net = Net(("N", 4))
    with pytest.raises(tac_engine.InvalidInputError, match=next(iter(option))):
        convert(net.model(net.op("Relu", "x")), tmp_path, **option)


# Preprocessing


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_images_are_normalised_as_numpy_does(layout: str, tmp_path: Path) -> None:
    shape = ("N", 3, 6, 5) if layout == "NCHW" else ("N", 6, 5, 3)
    net = Net(shape, seed=1)
    _, path = convert(net.model(net.op("Relu", "x")), tmp_path, mean=[0.1, 0.5, 0.25], std=[0.5, 0.25, 1.0])
    engine = tac_engine.load(path)
    pixels = net.rng.integers(0, 256, (4, 6, 5, 3), np.uint8)
    mean, std = np.asarray([0.1, 0.5, 0.25], np.float32), np.asarray([0.5, 0.25, 1.0], np.float32)
    x = (pixels.astype(np.float32) * np.float32(1 / 255) - mean) / std
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if layout == "NCHW" else x
    np.testing.assert_array_equal(engine.run(pixels), np.maximum(x, 0))
    np.testing.assert_array_equal(engine.run(x), np.maximum(x, 0))
    np.testing.assert_array_equal(engine.run(pixels[0]), np.maximum(x[:1], 0))


# Refusals


@pytest.mark.parametrize("quantized", [False, True])
def test_a_pool_window_of_padding_only_is_refused_by_name(quantized: bool, tmp_path: Path) -> None:
    net = Net(("N", 3, 2, 4))
    hidden = net.op("Sign" if quantized else "Relu", "x")
    hidden = net.op("MaxPool", hidden, kernel_shape=[2, 1], dilations=[3, 1], pads=[1, 0, 1, 0])
    with pytest.raises(UnsupportedModelError, match=r"'MaxPool_1' \(MaxPool\): its output row 0 .* padding only"):
        convert(net.model(net.conv(hidden, net.signs(2, 3, 1, 1))), tmp_path)


def test_every_offender_is_named_with_its_reason(tmp_path: Path) -> None:
    net = Net(("N", 4, 8, 8))
    first = net.op("Atan", "x")
    second = net.op("Gather", "x", net.constant([[0]], np.int64), axis=1)
    third = net.op("MatMul", net.op("Flatten", "x"), net.constant(np.ones((2, 256, 3))))
    model = net.model(first, outputs=(second, third))
    with pytest.raises(UnsupportedModelError) as caught:
        convert(model, tmp_path)
    message = str(caught.value)
    assert "'Atan_0' (Atan)" in message
    assert "'Gather_1' (Gather): its indices have rank 2" in message
    assert "'MatMul_3' (MatMul)" in message
    assert not (tmp_path / "model.tacbin").exists()


def test_a_ternary_activation_in_two_branches_of_transposes(tmp_path: Path) -> None:
    net = Net(("N", 6, 8, 8))
    x = net.conv(net.op("Sign", "x"), net.signs(8, 6, 3, 3))
    model = net.model(net.conv(ternary_in_two_layouts(net, x), net.signs(4, 8, 3, 3)))
    assert kinds(check(model, tmp_path, image(net))) == ["quantizer", "binary conv", "1-bit x 2-bit conv"]


def test_branches_transposed_differently_are_no_elementwise_chain(tmp_path: Path) -> None:
    """An element of x + transpose(x) depends on two elements of x, though a second transpose restores the order."""
    net = Net(("N", 4, 8, 8))
    swap = {"perm": [0, 1, 3, 2]}
    mixed = net.op("Transpose", net.op("Add", "x", net.op("Transpose", "x", **swap)), **swap)
    model = net.model(net.conv(net.op("Sign", mixed), net.signs(5, 4, 3, 3)))
    check(model, tmp_path, image(net))


def test_a_pool_behind_a_transpose_pools_the_axes_that_it_sees(tmp_path: Path) -> None:
    """MaxPool of an NHWC tensor takes the maximum over W and C."""
    net = Net(("N", 4, 8, 8))
    sums = net.conv(net.op("Sign", "x"), net.signs(8, 4, 3, 3), pads=[1, 1, 1, 1])
    pooled = net.op("MaxPool", net.op("Transpose", sums, perm=[0, 2, 3, 1]), kernel_shape=[2, 2], strides=[2, 2])
    signs = net.op("Transpose", net.op("Sign", pooled), perm=[0, 3, 1, 2])
    model = net.model(net.conv(signs, net.signs(5, 4, 3, 3)))
    check(model, tmp_path, image(net))


def joined(net: Net, x: str) -> str:
    return net.op("Concat", x, net.op("Sign", net.batch_norm("x", 4)), axis=1)


def gathered(net: Net, x: str) -> str:
    return net.op("Gather", x, net.constant([3, 1, 1, 0, 2, 2], np.int64), axis=1)


def shuffled(net: Net, x: str) -> str:
    groups = net.op("Reshape", x, net.constant([0, 2, 2, 8, 8], np.int64))
    swapped = net.op("Transpose", groups, perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", swapped, net.constant([0, 4, 8, 8], np.int64))


def added(net: Net, x: str) -> str:
    return net.op("Add", x, net.op("Sign", net.batch_norm("x", 4)))


def gated(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Relu", net.op("Sign", net.batch_norm("x", 4))))


def exclusive(net: Net, x: str) -> str:
    zero = net.constant(0.0)
    signs = [net.op("Greater", name, zero) for name in (x, net.op("Sign", net.batch_norm("x", 4)))]
    return net.op("Cast", net.op("Xor", *signs), to=1)


def averaged_and_rounded(net: Net, x: str) -> str:
    return net.op("Ceil", net.op("Mul", added(net, x), net.constant(0.5)))


def largest_of_each_map(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("GlobalMaxPool", added(net, x)))


def padded_and_pooled(net: Net, x: str) -> str:
    """The Pad adds channels, and a value to those of a Sign."""
    pad = net.op("Pad", x, net.constant([0, 1, 0, 0, 0, 1, 0, 0], np.int64), net.constant(2.0))
    return net.op("MaxPool", pad, kernel_shape=[2, 2])


@pytest.mark.parametrize(
    ("combine", "bits"),
    [
        (joined, "1 x 2"),
        (gathered, "1 x 2"),
        (shuffled, "1 x 2"),
        (added, "1 x 3"),
        (gated, "1 x 2"),
        (exclusive, "1 x 1"),
        (averaged_and_rounded, "1 x 2"),
        (largest_of_each_map, "1 x 3"),
        (padded_and_pooled, "1 x 2"),
    ],
)
def test_few_values_are_packed_however_they_were_combined(
    combine: Callable[[Net, str], str], bits: str, tmp_path: Path
) -> None:
    net = Net(("N", 4, 8, 8))
    y = combine(net, sign(net, "x"))
    channels = {joined: 8, gathered: 6, padded_and_pooled: 6}.get(combine, 4)
    model = net.model(net.conv(y, net.signs(5, channels, 3, 3)))
    report = check(model, tmp_path, np.rint(2 * image(net)) / 2)
    assert report.layers[-1].bits == bits


def test_many_values_are_not_packed(tmp_path: Path) -> None:
    net = Net(("N", 4, 8, 8))
    y = net.op("Concat", sign(net, "x"), net.op("Relu", "x"), axis=1)
    report = check(net.model(net.conv(y, net.signs(5, 8, 3, 3))), tmp_path, image(net), tolerance=1e-6)
    assert report.layers[-1].kind == "float conv"
    assert "Concat" in report.layers[-1].reason


def test_the_report_says_why_a_layer_is_float(tmp_path: Path) -> None:
    net = Net(("N", 4, 8, 8))
    output = net.conv(net.op("Relu", "x"), net.signs(4, 4, 3, 3))
    report, _ = convert(net.model(output), tmp_path)
    reason = next(layer.reason for layer in report.layers if layer.kind == "float conv")
    assert "Relu_0" in reason
    assert "dropped their sign" in reason


def test_external_data_beside_the_model(tmp_path: Path) -> None:
    net = Net(("N", 6, 8, 8), seed=3)
    model = net.model(net.conv(net.op("Sign", "x"), net.signs(6, 6, 3, 3)))
    x = image(net)
    expected, inside = convert(model, tmp_path)
    want = tac_engine.load(inside).run(x)
    path = tmp_path / "external.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="external.bin", size_threshold=0)
    report = tac_engine.convert(path, tmp_path / "external.tacbin")
    assert kinds(report) == kinds(expected)
    np.testing.assert_array_equal(tac_engine.load(tmp_path / "external.tacbin").run(x), want)


def test_a_model_is_not_overwritten_by_its_own_conversion(tmp_path: Path) -> None:
    net = Net((2, 4))
    path = save(net.model(net.op("Relu", "x")), tmp_path)
    before = path.read_bytes()
    with pytest.raises(InvalidInputError, match="is the ONNX model itself"):
        tac_engine.convert(path, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_axis_takes_any_batch(batch: int, tmp_path: Path) -> None:
    net = Net((batch, 2, 4, 4), seed=batch)
    flat = net.op("Reshape", net.op("Sign", "x"), net.constant([batch, 32], np.int64))
    output = net.op("MatMul", flat, net.constant(net.signs(32, 5)))
    _, path = convert(net.model(output), tmp_path)
    engine = tac_engine.load(path)
    x = image(net, 7)
    signs = np.sign(x).reshape(7, 32)
    weight = onnx.numpy_helper.to_array(net.initializers[-1])
    np.testing.assert_array_equal(engine.run(x), signs @ weight)


def test_dynamic_height_is_refused_by_name_and_fixed_by_input_shapes(tmp_path: Path) -> None:
    net = Net(("N", 3, "H", 8))
    model = net.model(net.op("Relu", "x"))
    with pytest.raises(UnsupportedModelError, match="'x'"):
        convert(model, tmp_path)
    convert(model, tmp_path, input_shapes={"x": (None, 3, 8, 8)})


def in_half_precision(model: onnx.ModelProto, kind: int, *, keep_inputs: bool = False) -> onnx.ModelProto:
    """What .half() or .bfloat16() makes of a model; with ``keep_inputs`` a Cast behind each input and no more."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for node in half.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = kind
        if keep_inputs:
            node.input[:] = [f"{name}_half" if name == "x" else name for name in node.input]
    if keep_inputs:
        half.graph.node.insert(0, helper.make_node("Cast", ["x"], ["x_half"], to=kind))
    else:
        half.graph.input[0].type.tensor_type.elem_type = kind
    return half


@pytest.mark.parametrize("keep_inputs", [False, True])
@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16])
def test_a_model_in_half_precision_is_the_one_in_float32(kind: int, keep_inputs: bool, tmp_path: Path) -> None:
    net = Net(("N", 4, 8, 8), seed=3)
    parameters = [
        net.constant(value) for value in ([0.5, -1.25, 2, 1], [0.25, 0, -0.5, 1], [1, -2, 0.5, 0], [1, 4, 1, 2])
    ]
    hidden = net.op("BatchNormalization", "x", *parameters)
    at_least = net.op("Cast", net.op("GreaterOrEqual", hidden, net.constant(0.125)), to=onnx.TensorProto.FLOAT)
    signs = net.op("Sub", net.op("Mul", at_least, net.constant(2.0)), net.constant(1.0))
    sums = net.conv(signs, net.signs(6, 4, 3, 3) * np.float32(0.375), pads=[1, 1, 1, 1])
    logits = net.op("GlobalAveragePool", net.op("Clip", sums, net.constant(-2.0), net.constant(2.0)))
    model = net.model(logits)
    x = image(net, 5)
    expected, path = convert(model, tmp_path)
    want = tac_engine.load(path).run(x)
    half = in_half_precision(model, kind, keep_inputs=keep_inputs)
    report = check(half, tmp_path, x, tolerance=1e-6)
    assert kinds(report) == kinds(expected)
    name = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}[kind]
    assert f"the model's {name} tensors are float32 here" in str(report) and not expected.notes
    np.testing.assert_array_equal(tac_engine.load(tmp_path / "model.tacbin").run(x), want)


def test_a_model_in_half_precision_beside_onnx_runtime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from tac_engine.converters.onnx_runtime import OnnxRuntimeModel

    net = Net(("N", 6), seed=3)
    hidden = net.op("MatMul", net.op("Sign", "x"), net.constant(net.signs(6, 5)))
    model = in_half_precision(net.model(net.op("Mul", hidden, net.constant(0.5))), onnx.TensorProto.FLOAT16)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    x = image(net, 4)
    check(model, tmp_path, x)
    found = OnnxRuntimeModel(tmp_path / "model.onnx").load(1)({"x": x})
    np.testing.assert_array_equal(found["t2"], ReferenceModel(model).run({"x": x})["t2"])


@pytest.mark.parametrize("perm", [[0, 1, 3, 2], [0, 3, 2, 1], [0, 2, 1, 3], [0, 2, 3, 1], [0, 3, 1, 2]])
@pytest.mark.parametrize("place", ["before the sign", "behind the sign", "between two signs"])
def test_signs_among_transposes_of_any_kind(perm: list[int], place: str, tmp_path: Path) -> None:
    net = Net(("N", 5, 4, 3), seed=7)
    hidden = "x" if place == "before the sign" else where_greater_or_equal(net, "x")
    hidden = net.op("Transpose", hidden, perm=perm)
    hidden = hidden if place == "behind the sign" else where_greater_or_equal(net, hidden)
    channels = (5, 4, 3)[perm[1] - 1]
    conv = net.conv(hidden, net.signs(6, channels, 2, 2))
    check(net.model(conv, outputs=(hidden,)), tmp_path, image(net))


def test_a_convolution_whose_weights_are_all_zero(tmp_path: Path) -> None:
    net = Net(("N", 5, 4, 3), seed=7)
    check(net.model(net.conv(net.op("Sign", "x"), np.zeros((3, 5, 1, 1)), np.arange(3))), tmp_path, image(net))


def test_two_quantizers_of_one_integer_layer(tmp_path: Path) -> None:
    net = Net(("N", 24), seed=3)
    sums = net.op("MatMul", net.op("Sign", "x"), net.constant(net.signs(24, 9)))
    first = net.op("MatMul", net.op("Sign", sums), net.constant(net.signs(9, 4)))
    second = where_greater_or_equal(net, net.op("Sub", sums, net.constant(2.0)))
    check(net.model(first, outputs=(second,)), tmp_path, image(net, 20))


def test_a_sum_on_a_threshold_is_the_same_beside_a_second_quantizer(tmp_path: Path) -> None:
    net = Net(("N", 24), seed=4)
    weight = net.signs(24, 64) * net.rng.uniform(0.1, 1, 64)
    # The layer's scale is 0.3 times a weight's: no float32, so the engine's product is rounded twice.
    sums = net.op("MatMul", net.op("Mul", net.op("Sign", "x"), net.constant(0.3)), net.constant(weight))
    at_a_sum = net.constant((6 * 0.3 * np.abs(weight[0]).astype(np.float64)).astype(np.float32))
    first = net.op("Cast", net.op("GreaterOrEqual", sums, at_a_sum), to=1)
    second = net.op("Cast", net.op("Less", sums, at_a_sum), to=1)
    x = image(net, 50)
    found = []
    for outputs in ((), (second,)):
        target = convert(net.model(first, outputs=outputs), tmp_path)[1]
        result = tac_engine.load(target).run({"x": x})
        found.append(result[first] if isinstance(result, dict) else result)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("behind", ["input", "binary convolution", "pooling"])
def test_values_on_no_lattice_are_looked_up_by_their_code(behind: str, tmp_path: Path) -> None:
    """Comparisons do not run on floats, but a quantizer and a table do what they do."""
    net = Net(("N", 6, 8, 8), seed=4)
    x = "x" if behind != "binary convolution" else net.conv(net.op("Sign", "x"), net.signs(6, 6, 1, 1))
    name = net.op("Where", net.op("Greater", x, net.constant(0.3)), net.constant(0.61), net.constant(-0.42))
    above = net.op("Cast", net.op("Greater", x, net.constant(1.2)), to=1)
    name = net.op("Add", name, net.op("Mul", above, net.constant(0.77)))
    if behind == "pooling":
        name = net.op("MaxPool", name, kernel_shape=[2, 2])
    report = check(net.model(net.op("Add", name, net.constant(1.0))), tmp_path, image(net))
    assert kinds(report).count("unpack to float") == 1


@pytest.mark.parametrize("pool", [False, True])
def test_sums_too_many_to_try_each_are_exact_as_well(pool: bool, tmp_path: Path) -> None:
    """DoReFa's 3 bits x 4 bits over 512 channels: sums of up to 480,000, with ties on the thresholds."""
    net = Net(("N", 512, 4, 4), seed=8)
    domain = "qonnx.custom_op.general"

    def quantize(x: str) -> str:
        scale, zero, bits = net.constant(0.25), net.constant(0.0), net.constant(4.0)
        return net.op("Quant", x, scale, zero, bits, domain=domain, signed=0, narrow=0, rounding_mode="ROUND")

    weight = net.rng.choice(np.arange(-7, 8, 2), (24, 512, 3, 3))
    sums = net.conv(quantize("x"), weight * np.float32(2**-8), pads=[1, 1, 1, 1])
    hidden = net.op("MaxPool", sums, kernel_shape=[2, 2]) if pool else sums
    output = net.conv(quantize(hidden), net.signs(3, 24, 2, 2))
    report = check(net.model(output, (domain,)), tmp_path, image(net, 2) * 2)
    assert [layer.kind for layer in report.layers if layer.op == "binary_conv"] == ["3-bit conv", "1-bit x 4-bit conv"]
    assert kinds(report).count("quantizer") == 1


@pytest.mark.parametrize("behind", ["floats", "integer sums"])
def test_a_sign_spelled_as_a_quotient(behind: str, tmp_path: Path) -> None:
    """The quotient x / (|x| + 1e-12) is +-1 wherever a sum of signs can lie, and any number for a float near 0."""
    net = Net(("N", 8, 6, 6), seed=5)
    hidden = "x" if behind == "floats" else net.conv(net.op("Sign", "x"), net.signs(8, 8, 3, 3))
    hidden = net.batch_norm(hidden, 8, 9.0)
    size = net.op("Add", net.op("Abs", hidden), net.constant(1e-12))
    report = check(
        net.model(net.conv(net.op("Div", hidden, size), net.signs(4, 8, 3, 3))), tmp_path, image(net), tolerance=1e-6
    )
    assert kinds(report)[-1] == ("float conv" if behind == "floats" else "binary conv")
    assert behind != "floats" or "values off its lattice" in report.layers[-1].reason
