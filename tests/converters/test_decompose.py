"""Operators that are written as simpler ones: the same numbers, and what they become."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import Net, check, convert, kinds
from onnx.reference import ReferenceEvaluator
from onnx_models import floats, parse
from tac_engine.converters.evaluate import ReferenceModel, evaluate_node
from tac_engine.converters.graph import Array, Graph
from tac_engine.converters.onnx_import import import_model

from tac_engine import UnsupportedModelError

IMAGE = "float[N, 4, 6, 6] x"


def by_onnx(model: onnx.ModelProto, x: Array) -> Array:
    result: Array = ReferenceEvaluator(model).run(None, {"x": x})[0]
    return result


def imported(model: onnx.ModelProto, x: Array) -> tuple[Graph, Array]:
    """The imported graph and what it computes."""
    graph = import_model(model)
    values: dict[str, Array] = {**graph.constants, "x": x}
    for node in graph.nodes:
        inputs = [values[name] if name else None for name in node.inputs]
        values.update(zip(node.outputs, evaluate_node(node, inputs, graph.opset), strict=True))
    return graph, values[graph.outputs[0]]


def assert_same(model: onnx.ModelProto, x: Array, tolerance: float = 2e-6) -> Graph:
    graph, found = imported(model, x)
    expected = by_onnx(model, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.max(np.abs(expected)))
    return graph


def ops(graph: Graph) -> set[str]:
    return {node.op for node in graph.nodes}


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization(axis: int, bias: bool) -> None:
    shape = (2, 4, 6, 6)
    tail = shape[axis:]
    body = f"y = LayerNormalization <axis={axis}, epsilon=0.01> (x, s{', b' if bias else ''})"
    model = parse(body, inputs=IMAGE, constants={"s": floats(*tail, seed=1), "b": floats(*tail, seed=2)})
    graph = assert_same(model, floats(*shape))
    assert "LayerNormalization" not in ops(graph)


def test_instance_normalization() -> None:
    body = "y = InstanceNormalization <epsilon=0.01> (x, s, b)"
    model = parse(body, inputs=IMAGE, constants={"s": floats(4, seed=1), "b": floats(4, seed=2)})
    assert "InstanceNormalization" not in ops(assert_same(model, floats(2, 4, 6, 6)))


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    model = parse(f'y = DepthToSpace <blocksize=2, mode="{mode}"> (x)', inputs=IMAGE)
    assert ops(assert_same(model, floats(2, 4, 6, 6), 0)) == {"Reshape", "Transpose"}


def test_space_to_depth() -> None:
    model = parse("y = SpaceToDepth <blocksize=3> (x)", inputs=IMAGE)
    assert ops(assert_same(model, floats(2, 4, 6, 6), 0)) == {"Reshape", "Transpose"}


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_mirrored_padding_is_a_selection(mode: str) -> None:
    pads = np.array([0, 0, 2, 1, 0, 0, 3, 0])
    model = parse(f'y = Pad <mode="{mode}"> (x, p)', inputs=IMAGE, opset=19, constants={"p": pads})
    assert ops(assert_same(model, floats(2, 4, 6, 6), 0)) == {"Gather"}


def test_mirrored_padding_that_also_crops() -> None:
    pads = np.array([0, 0, -2, 1, 0, 0, 3, -2])
    model = parse('y = Pad <mode="edge"> (x, p)', inputs=IMAGE, opset=19, constants={"p": pads})
    x = floats(2, 4, 6, 6)
    expected = np.pad(x[:, :, 2:, :4], [(0, 0), (0, 0), (0, 3), (1, 0)], mode="edge")
    np.testing.assert_array_equal(imported(model, x)[1], expected)


RESIZE = list(
    itertools.product(
        ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric"],
        [("nearest", mode) for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")] + [("linear", "")],
        [(2.0, 3.0), (0.5, 1.5), (1.0, 0.45)],
    )
)
# onnx.reference takes 6 * 0.45 = 2.7 for the new length here, ONNX Runtime 2.
RESIZE = [case for case in RESIZE if not (case[0] == "align_corners" and case[2] == (1.0, 0.45))]


@pytest.mark.parametrize(("coordinates", "modes", "scales"), RESIZE)
def test_resize_by_scales(coordinates: str, modes: tuple[str, str], scales: tuple[float, float]) -> None:
    nearest = f', nearest_mode="{modes[1]}"' if modes[1] else ""
    body = f'y = Resize <mode="{modes[0]}", coordinate_transformation_mode="{coordinates}"{nearest}> (x, , s)'
    model = parse(body, inputs=IMAGE, opset=19, constants={"s": np.array([1, 1, *scales], np.float32)})
    graph = assert_same(model, floats(1, 4, 6, 6))
    assert ops(graph) <= {"Gather", "Mul", "Add", "Identity", "Reshape"}


@pytest.mark.parametrize(("scale", "selected"), [(0.6, [0, 1, 3]), (0.7, [0, 1, 2]), (1.4, [0, 0, 1, 2, 2, 3, 4])])
def test_resize_counts_and_places_in_float32(scale: float, selected: list[int]) -> None:
    """5 elements; what torch.nn.functional.interpolate(mode="nearest", scale_factor=scale) selects."""
    body = 'y = Resize <mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"> (x, , s)'
    model = parse(body, inputs="float[N, 1, 1, 5] x", opset=19, constants={"s": np.array([1, 1, 1, scale], np.float32)})
    x = np.arange(5, dtype=np.float32).reshape(1, 1, 1, 5)
    assert imported(model, x)[1].ravel().tolist() == selected
    assert ReferenceModel(model).run({"x": x})["y"].ravel().tolist() == selected


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_by_sizes_along_two_axes(mode: str) -> None:
    body = f'y = Resize <mode="{mode}", axes=[2, 3]> (x, , , s)'
    assert_same(parse(body, inputs=IMAGE, opset=19, constants={"s": np.array([9, 3])}), floats(1, 4, 6, 6))


def test_upsample_of_old_opsets_lays_positions_out_from_the_corner() -> None:
    model = parse("y = Upsample (x, s)", inputs=IMAGE, opset=9, constants={"s": np.array([1, 1, 2, 2], np.float32)})
    x = floats(2, 4, 6, 6)
    graph, found = imported(model, x)
    assert ops(graph) == {"Gather"}
    np.testing.assert_array_equal(found, x.repeat(2, axis=2).repeat(2, axis=3))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('y = Resize <mode="cubic"> (x, , s)', "mode 'cubic' is not supported"),
        ("y = Resize <antialias=1> (x, , s)", "antialias is not supported"),
        ("y = Resize (x, , b)", "resizing the batch axis"),
        ("y = Resize (x, , huge)", "an axis of 6000000 elements, at most 1048576"),
        ('y = Pad <mode="wrap"> (x, p)', "an axis of 10000006 elements, at most 1048576"),
        ("y = DepthToSpace <blocksize=3> (x)", "blocks of 3 do not fit"),
        ("y = LayerNormalization <axis=0> (x, one)", "would mix the samples"),
        ("y = InstanceNormalization (x, one, one)", "4 scales and biases are expected"),
        ('y = ConvTranspose <auto_pad="SAME_UPPER"> (x, w)', "auto_pad and output_shape are not supported"),
        ("y = ConvTranspose <group=3> (x, w)", "do not fit an input"),
        ("y = ConvTranspose <output_padding=[2, 0]> (x, w)", r"output_padding \[2, 0\] is not below strides"),
        ("y = ConvTranspose (x, x)", "weights with a batch axis"),
    ],
)
def test_what_is_refused_is_named(body: str, reason: str) -> None:
    constants = {
        "s": np.array([1, 1, 2, 2], np.float32),
        "b": np.array([2, 1, 1, 1], np.float32),
        "huge": np.array([1, 1, 1, 1e6], np.float32),
        "p": np.array([0, 0, 0, 0, 0, 0, 0, 10**7]),
        "one": np.ones(1, np.float32),
        "w": floats(4, 2, 3, 3),
    }
    with pytest.raises(UnsupportedModelError, match=reason):
        import_model(parse(body, inputs=IMAGE, opset=19, constants=constants))


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 2]},
        {"strides": [2, 3], "pads": [1, 0, 1, 2]},
        {"strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]},
        {"dilations": [2, 1], "pads": [0, 2, 3, 0]},
        {"strides": [3, 3], "pads": [2, 2, 2, 2]},
        {"group": 2, "strides": [2, 1]},
    ],
)
def test_conv_transpose(attributes: dict[str, Any]) -> None:
    group = attributes.get("group", 1)
    weight, bias = floats(4, 3, 3, 2, seed=1), floats(3 * group, seed=2)
    settings = ", ".join(f"{name}={value}" for name, value in attributes.items())
    body = f"y = ConvTranspose <{settings}> (x, w, b)" if settings else "y = ConvTranspose (x, w, b)"
    x = floats(2, 4, 6, 6)
    model = parse(body, inputs=IMAGE, constants={"w": weight, "b": bias})
    graph, found = imported(model, x)
    expected = transposed(x, weight, bias, **attributes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ReferenceModel(model).run({"x": x})["y"], expected, rtol=0, atol=1e-5)
    assert "ConvTranspose" not in ops(graph)


def transposed(
    x: Array,
    weight: Array,
    bias: Array,
    strides: tuple[int, ...] = (1, 1),
    dilations: tuple[int, ...] = (1, 1),
    pads: tuple[int, ...] = (0, 0, 0, 0),
    output_padding: tuple[int, ...] = (0, 0),
    group: int = 1,
) -> Array:
    """By the definition: every input element adds its kernel to the output; in float64."""
    (n, channels, h, w), (_, outputs, kh, kw) = x.shape, weight.shape
    full = [
        (size - 1) * strides[i] + dilations[i] * (kernel - 1) + 1 + output_padding[i]
        for i, (size, kernel) in enumerate(((h, kh), (w, kw)))
    ]
    y = np.zeros((n, outputs * group, *full))
    for c, i, j, a, b in itertools.product(range(channels), range(h), range(w), range(kh), range(kw)):
        first = c // (channels // group) * outputs
        place = (i * strides[0] + a * dilations[0], j * strides[1] + b * dilations[1])
        y[:, first : first + outputs, place[0], place[1]] += x[:, c, i, j, None] * weight[c, :, a, b]
    top, left, bottom, right = pads
    y = y[:, :, top : full[0] - bottom, left : full[1] - right] + bias[:, None, None]
    return y.astype(np.float32)


@pytest.mark.parametrize("attributes", ["", "pads=[1, 1]", "pads=[2, 0], strides=[2], dilations=[2]", "group=2"])
def test_convolution_and_pools_of_one_dimension(attributes: str) -> None:
    group = 2 if "group" in attributes else 1
    settings = f"<{attributes}>" if attributes else ""
    body = f"""c = Conv {settings} (x, w) s = Sigmoid (c) d = Mul (s, k) m = MaxPool <kernel_shape=[2], strides=[2]> (d)
        y = AveragePool <kernel_shape=[3], pads=[1, 0]> (m)"""
    constants = {"w": floats(6, 4 // group, 3), "k": floats(6, 1, seed=1)}
    graph = assert_same(parse(body, inputs="float[N, 4, 15] x", constants=constants), floats(2, 4, 15))
    # One Reshape in front, one behind: everything between runs in two dimensions.
    assert [node.op for node in graph.nodes] == [
        "Reshape",
        "Conv",
        "Sigmoid",
        "Mul",
        "MaxPool",
        "AveragePool",
        "Reshape",
    ]


def test_a_binary_network_of_one_dimension_stays_binary(tmp_path: Path) -> None:
    net = Net(("N", 4, 16))
    x = net.op("Conv", net.op("Sign", "x"), net.constant(net.signs(8, 4, 3)), kernel_shape=[3], pads=[1, 1])
    x = net.op("Sign", net.batch_norm(net.op("MaxPool", x, kernel_shape=[2], strides=[2]), 8, 3))
    x = net.op("Conv", x, net.constant(net.signs(6, 8, 3)), kernel_shape=[3])
    report = check(net.model(x), tmp_path, net.rng.normal(size=(3, 4, 16)).astype(np.float32))
    assert [kind for kind in kinds(report) if "conv" in kind] == ["binary conv", "binary conv"]


def test_a_sum_over_an_axis_of_constants(tmp_path: Path) -> None:
    """torch.bucketize of the legacy exporter: bounds in front of x, expanded to its shape, in a sum of comparisons."""
    net = Net(("N", 4, 6, 6), seed=3)
    shape = net.op("Concat", net.constant([3], np.int64), net.op("Shape", "x"), axis=0)
    bounds = net.op("Expand", net.constant(np.asarray([-0.5, 0.25, 1.0]).reshape(3, 1, 1, 1, 1)), shape)
    passed = net.op("Cast", net.op("Not", net.op("Less", "x", bounds)), to=onnx.TensorProto.INT64)
    index = net.op("ReduceSum", passed, net.constant([0], np.int64), keepdims=0)
    levels = net.op("Cast", index, to=onnx.TensorProto.FLOAT)
    report = check(net.model(net.conv(levels, net.signs(5, 4, 3, 3))), tmp_path, np.rint(4 * floats(3, 4, 6, 6)) / 4)
    assert kinds(report) == ["quantizer", "1-bit x 2-bit conv"]


def pooled_and_expanded(net: Net) -> str:
    return net.op("Expand", net.op("Sign", net.op("GlobalMaxPool", "x")), net.op("Shape", "x"))


@pytest.mark.parametrize(
    ("use", "layers"),
    [
        (lambda net, y: net.op("Mul", "x", y), ["global max pool", "sign", "mul"]),
        (lambda net, y: net.op("Concat", "x", y, axis=1), ["global max pool", "sign", "select", "select", "concat"]),
        (
            lambda net, y: net.conv(y, net.signs(5, 4, 3, 3)),
            ["global max pool", "sign", "select", "select", "quantizer", "1-bit x 2-bit conv"],
        ),
    ],
)
def test_run_time_values_expanded_to_the_shape_of_others(
    use: Callable[[Net, str], str], layers: list[str], tmp_path: Path
) -> None:
    net = Net(("N", 4, 6, 6), seed=3)
    report = check(net.model(use(net, pooled_and_expanded(net))), tmp_path, floats(3, 4, 6, 6) - 1.5)
    assert kinds(report) == layers


def test_an_expansion_of_the_batch_axis_is_named(tmp_path: Path) -> None:
    net = Net(("N", 4), seed=3)
    y = net.op("Expand", "x", net.constant([2, 1, 4], np.int64))
    with pytest.raises(
        UnsupportedModelError, match=r"expands \[N, 4\] to \[2, N, 4\]; only axes behind the batch axis"
    ):
        convert(net.model(y), tmp_path)


def test_a_sum_over_an_axis_that_the_samples_have_too(tmp_path: Path) -> None:
    net = Net((3, 4), seed=3)
    weighted = net.op("Mul", "x", net.constant(net.rng.normal(size=(3, 1))))
    with pytest.raises(UnsupportedModelError):
        convert(net.model(net.op("ReduceSum", weighted, net.constant([0], np.int64), keepdims=0)), tmp_path)


QONNX = "qonnx.custom_op.general"


def quantized(net: Net, x: str, kind: str) -> str:
    """A quantizer of 2 bits at most on [N, 16, L] sums."""
    channels = np.asarray([2.0, 4.0, 6.0, 3.0] * 4)
    if kind.startswith("MultiThreshold"):
        layout = kind.partition(" ")[2]
        rows = {"NCW": 16, "NWC": 10, "": 1}[layout]
        thresholds = net.constant(np.sort(net.rng.normal(size=(rows, 3)) * 8, axis=1))
        return net.op("MultiThreshold", x, thresholds, domain=QONNX, data_layout=layout, out_dtype="UINT2")
    if kind.startswith("Quantize"):
        scale, zero = (channels, np.zeros(16)) if "channel" in kind else (4.0, 0.0)
        parameters = [net.constant(scale), net.constant(zero, np.int8)]
        bounds = [net.constant(bound, np.int8) for bound in (-1, 1)]
        clipped = net.op("Clip", net.op("QuantizeLinear", x, *parameters, axis=1), *bounds)
        return net.op("DequantizeLinear", clipped, *parameters, axis=1)
    if kind == "BipolarQuant":
        return net.op("BipolarQuant", x, net.constant(0.5), domain=QONNX)
    scale = net.constant(channels[:4].repeat(4)[:, None] if "channel" in kind else 2.0)
    bits = net.constant(4.0 if kind == "Trunc" else 2.0)
    attributes = {"domain": QONNX, "signed": 0, "narrow": 0}
    x = net.op("Quant", x, scale, net.constant(0.0), bits, rounding_mode="ROUND", **attributes)
    if kind != "Trunc":
        return x
    return net.op("Trunc", x, scale, net.constant(0.0), bits, net.constant(8.0), net.constant(2.0), **attributes)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("BipolarQuant", ["binary conv", "binary conv"]),
        ("Quant", ["binary conv", "1-bit x 2-bit conv"]),
        ("Quant by channel", ["binary conv", "float conv"]),
        ("Trunc", ["binary conv", "1-bit x 2-bit conv"]),
        ("MultiThreshold", ["binary conv", "1-bit x 2-bit conv"]),
        ("MultiThreshold NCW", ["binary conv", "1-bit x 2-bit conv"]),
        ("MultiThreshold NWC", ["binary conv", "float conv"]),
        ("QuantizeLinear", ["binary conv", "1-bit x 2-bit conv"]),
        ("QuantizeLinear by channel", ["binary conv", "1-bit x 4-bit conv"]),
    ],
)
def test_quantizers_of_one_dimension_are_those_of_maps(kind: str, layers: list[str], tmp_path: Path) -> None:
    net = Net(("N", 16, 10), seed=9)
    signs = net.op("BipolarQuant", "x", net.constant(1.0), domain=QONNX)
    hidden = quantized(net, net.conv(signs, net.signs(16, 16, 3), pads=[1, 1]), kind)
    output = net.conv(hidden, net.signs(8, 16, 3), pads=[1, 1])
    report = check(net.model(output, (QONNX,)), tmp_path, np.rint(2 * floats(3, 16, 10)))
    assert [kind for kind in kinds(report) if kind.endswith("conv")] == layers


def test_thresholds_of_channels_on_a_sequence(tmp_path: Path) -> None:
    """Channels on axis 1 without a convolution near."""
    net = Net(("N", 16, 10), seed=2)
    output = quantized(net, "x", "MultiThreshold NCW")
    check(net.model(output, (QONNX,)), tmp_path, 8 * floats(3, 16, 10))


def test_a_transposed_convolution_of_signs_runs_on_bits(tmp_path: Path) -> None:
    """The zeros between the signs are a third value."""
    net = Net(("N", 4, 6, 6))
    weight = net.constant(net.signs(4, 3, 2, 2))
    x = net.op("ConvTranspose", net.op("Sign", "x"), weight, strides=[2, 2])
    report = check(net.model(x), tmp_path, net.rng.normal(size=(3, 4, 6, 6)).astype(np.float32))
    assert report.layers[-1].bits == "1 x 2"


def test_a_sign_behind_resized_normalised_maps(tmp_path: Path) -> None:
    net = Net(("N", 4, 6, 6))
    scale, bias = net.constant(net.rng.normal(size=4)), net.constant(net.rng.normal(size=4))
    x = net.op("InstanceNormalization", "x", scale, bias)
    x = net.op("Resize", x, "", net.constant([1, 1, 2, 2]), mode="linear")
    model = net.model(net.conv(net.op("Sign", x), net.signs(5, 4, 3, 3)))
    x = net.rng.normal(size=(3, 4, 6, 6)).astype(np.float32)
    assert np.all(np.abs(ReferenceModel(model).run({"x": x}, intermediates=True)["t1"]) > 1e-5)
    assert check(model, tmp_path, x).layers[-1].kind == "binary conv"
