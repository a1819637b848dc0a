"""Products of matrices that both depend on the data, and what attention has around them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from nets import Net, check, convert, kinds
from onnx_models import floats
from tac_engine.converters.graph import Array
from tac_engine.converters.verify import verify

from tac_engine import UnsupportedModelError

SAMPLES, TOKENS, CHANNELS, HEADS = 3, 5, 12, 3
TOLERANCE = 2e-6


def ints(net: Net, *values: int) -> str:
    return net.constant(values, np.int64)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((4, 7), (7, 5)),
        ((1, 7), (7, 1)),
        ((3, 4, 33), (3, 33, 20)),
        ((2, 3, 1, 5), (2, 3, 5, 70)),
        # ONNX broadcasts all but the last two axes.
        ((1, 4, 7), (3, 7, 5)),
        ((3, 4, 7), (1, 7, 5)),
        ((2, 1, 4, 7), (1, 3, 7, 5)),
    ],
)
def test_products_of_two_tensors(tmp_path: Path, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    sizes = [math.prod(left), math.prod(right)]
    net = Net(("N", sum(sizes)))
    parts = net.split("x", sizes, 1)
    a, b = (net.op("Reshape", part, ints(net, 0, *dims)) for part, dims in zip(parts, (left, right), strict=True))
    report = check(net.model(net.op("MatMul", a, b)), tmp_path, floats(SAMPLES, sum(sizes)), tolerance=TOLERANCE)
    (row,) = (row for row in report.layers if row.op == "matmul")
    assert (row.kind, row.bits, row.reason) == ("matrix product", "32", "")
    assert verify(tmp_path / "model.onnx", tmp_path / "model.tacbin").ok


@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 3, 7, 5), (1, 2, 1, 7, 5)])
@pytest.mark.parametrize("constant_first", [False, True])
def test_products_with_a_constant_of_several_matrices(
    tmp_path: Path, shape: tuple[int, ...], constant_first: bool
) -> None:
    dims = (3, 4, 7) if len(shape) < 5 else (1, 3, 4, 7)
    net = Net(("N", *dims))
    weight = floats(*shape)
    if constant_first:
        turned = [*range(len(dims) - 1), len(dims), len(dims) - 1]
        y = net.op("MatMul", net.constant(weight.swapaxes(-1, -2)), net.op("Transpose", "x", perm=turned))
    else:
        y = net.op("MatMul", "x", net.constant(weight))
    report = check(net.model(y), tmp_path, floats(SAMPLES, *dims), tolerance=TOLERANCE)
    assert "matrix product" in kinds(report)


@pytest.mark.parametrize(
    ("first", "shape"),
    [(True, (9, TOKENS)), (True, (1, 9, TOKENS)), (True, (TOKENS,)), (False, (1, CHANNELS, 9)), (False, (CHANNELS,))],
)
def test_a_single_constant_matrix_is_the_weight_of_a_layer(tmp_path: Path, first: bool, shape: tuple[int, ...]) -> None:
    net = Net(("N", TOKENS, CHANNELS))
    operands = (net.constant(floats(*shape)), "x")
    report = check(
        net.model(net.op("MatMul", *(operands if first else operands[::-1]))),
        tmp_path,
        floats(SAMPLES, TOKENS, CHANNELS),
        tolerance=TOLERANCE,
    )
    assert {"float linear", "codebook linear"} & set(kinds(report))
    assert "matrix product" not in kinds(report)


def test_signs_that_mix_tokens_are_a_binary_layer(tmp_path: Path) -> None:
    net = Net(("N", 33, 40))
    signs = net.op("Where", net.op("Less", "x", net.constant(0)), net.constant(-1), net.constant(1))
    report = check(
        net.model(net.op("MatMul", net.constant(net.signs(21, 33)), signs)), tmp_path, floats(SAMPLES, 33, 40)
    )
    assert kinds(report)[-1] == "binary conv"


def test_what_is_not_a_product_for_each_sample_is_refused(tmp_path: Path) -> None:
    """All of the batch is one matrix to MatMul."""
    net = Net(("N", TOKENS))
    y = net.op("MatMul", "x", net.constant(floats(7, TOKENS, 2)))
    text = r"MatMul.*inputs \['N', '5'\] and \['7', '5', '2'\] are no matrices of each sample"
    with pytest.raises(UnsupportedModelError, match=text):
        convert(net.model(y), tmp_path)


def attention(net: Net, x: str, mask: Array | None, heads_in_batch: bool) -> str:
    """[N, T, C] as timm writes it: queries, keys and values of all heads are one product, split behind a Transpose.

    ``heads_in_batch``: with torch.bmm, which takes three axes.
    """
    head = CHANNELS // HEADS
    qkv = net.op("MatMul", net.op("Sign", x), net.constant(0.25 * net.signs(CHANNELS, 3 * CHANNELS)))
    qkv = net.op("Add", qkv, net.constant(floats(3 * CHANNELS)))
    qkv = net.op("Reshape", qkv, ints(net, 0, -1, 3, HEADS, head))
    parts = net.split(net.op("Transpose", qkv, perm=[2, 0, 3, 1, 4]), [1, 1, 1], 0)
    q, k, v = (net.op("Squeeze", part, ints(net, 0)) for part in parts)
    turned = [0, 1, 3, 2]
    if heads_in_batch:
        q, k, v = (net.op("Reshape", part, ints(net, -1, TOKENS, head)) for part in (q, k, v))
        turned = [0, 2, 1]
    scores = net.op("MatMul", net.op("Mul", q, net.constant(head**-0.5)), net.op("Transpose", k, perm=turned))
    if mask is not None:
        scores = net.op("Add", scores, net.constant(mask[None] if heads_in_batch else mask))
    y = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    if heads_in_batch:
        y = net.op("Reshape", y, ints(net, -1, HEADS, TOKENS, head))
    return net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), ints(net, 0, -1, CHANNELS))


@pytest.mark.parametrize("mask", [None, np.triu(np.full((TOKENS, TOKENS), -np.inf, np.float32), 1)])
@pytest.mark.parametrize("heads_in_batch", [False, True])
def test_attention(tmp_path: Path, mask: Array | None, heads_in_batch: bool) -> None:
    net = Net(("N", TOKENS, CHANNELS))
    y = net.op("Add", "x", attention(net, "x", mask, heads_in_batch))
    report = check(net.model(y), tmp_path, floats(SAMPLES, TOKENS, CHANNELS), tolerance=TOLERANCE)
    assert kinds(report).count("binary conv") == 1
    assert kinds(report).count("matrix product") == 2
    assert verify(tmp_path / "model.onnx", tmp_path / "model.tacbin").ok


def test_sizes_are_computed_of_parts_of_a_shape(tmp_path: Path) -> None:
    """As unflatten is exported: of the sizes behind the last axis there is none."""
    net = Net(("N", TOKENS, CHANNELS))
    shape = net.op("Shape", "x")
    before, behind = (net.op("Slice", shape, ints(net, start), ints(net, end)) for start, end in ((0, 2), (3, 1 << 62)))
    channels = net.op("Gather", shape, net.constant(2, np.int64), axis=0)
    head = net.op("Unsqueeze", net.op("Div", channels, net.constant(HEADS, np.int64)), ints(net, 0))
    heads = net.op("Reshape", "x", net.op("Concat", before, ints(net, HEADS), head, behind, axis=0))
    check(net.model(net.op("Transpose", heads, perm=[0, 2, 1, 3])), tmp_path, floats(SAMPLES, TOKENS, CHANNELS))


@pytest.mark.parametrize("picked", ["Gather", "Gather of several", "Slice"])
def test_the_batch_axis_may_lie_elsewhere_for_a_while(tmp_path: Path, picked: str) -> None:
    net = Net(("N", 4, 6, 5))
    y = net.op("Transpose", "x", perm=[2, 0, 1, 3])  # [6, N, 4, 5]
    if picked == "Gather":
        y = net.op("Gather", y, net.constant(3, np.int64), axis=0)
    elif picked == "Gather of several":
        y = net.op("Gather", y, ints(net, 5, 0, 1), axis=0)
        y = net.op("Transpose", net.op("Reshape", y, ints(net, 3, -1, 20)), perm=[1, 2, 0])
    else:
        y = net.op("Slice", y, *(ints(net, *values) for values in ((4, 1), (-7, 3), (0, 3), (-2, 2))))
        y = net.op("Transpose", y, perm=[1, 3, 0, 2])
    check(net.model(y), tmp_path, floats(SAMPLES, 4, 6, 5))


@pytest.mark.parametrize("expanded", [True, False])
def test_a_class_token_is_joined_to_every_sample(tmp_path: Path, expanded: bool) -> None:
    net = Net(("N", TOKENS, CHANNELS))
    token = net.constant(floats(1, 1, CHANNELS))
    if expanded:
        batch = net.op("Gather", net.op("Shape", "x"), ints(net, 0), axis=0)
        token = net.op("Expand", token, net.op("Concat", batch, ints(net, 1, CHANNELS), axis=0))
    y = net.op("Concat", token, "x", axis=1) if expanded else None
    if y is None:  # an exporter that fixed the batch to 1 has folded the Expand
        net.shape = (1, TOKENS, CHANNELS)
        y = net.op("Concat", token, "x", token, axis=1)
    y = net.op("Add", y, net.constant(floats(1, TOKENS + 2 - expanded, CHANNELS)))
    y = net.op(
        "Add", net.op("Gather", y, net.constant(0, np.int64), axis=1), net.op("ReduceMax", y, ints(net, 1), keepdims=0)
    )
    report = check(net.model(y), tmp_path, floats(1 + 2 * expanded, TOKENS, CHANNELS))
    assert "concat" in kinds(report)
    assert verify(tmp_path / "model.onnx", tmp_path / "model.tacbin").ok


def test_maps_are_joined_with_constants(tmp_path: Path) -> None:
    net = Net((1, 4, 6, 6))
    y = net.conv("x", floats(8, 4, 3, 3), pads=[1, 1, 1, 1])
    y = net.conv(net.op("Concat", y, net.constant(floats(1, 2, 6, 6)), axis=1), floats(3, 10, 1, 1))
    check(net.model(y), tmp_path, floats(1, 4, 6, 6), tolerance=TOLERANCE)


def test_learned_queries_are_constants_of_every_sample(tmp_path: Path) -> None:
    net = Net(("N", TOKENS, CHANNELS))
    batch = net.op("Gather", net.op("Shape", "x"), ints(net, 0), axis=0)
    queries = net.op("Expand", net.constant(floats(1, 2, CHANNELS)), net.op("Concat", batch, ints(net, 1, 1), axis=0))
    y = net.op("MatMul", queries, net.op("Transpose", "x", perm=[0, 2, 1]))
    report = check(net.model(y), tmp_path, floats(SAMPLES, TOKENS, CHANNELS), tolerance=TOLERANCE)
    assert kinds(report).count("float linear") == 1


def test_tensors_are_expanded(tmp_path: Path) -> None:
    net = Net(("N", 1, CHANNELS, 1))
    y = net.op("Expand", "x", ints(net, 1, 4, 1, 3))
    check(net.model(y), tmp_path, floats(SAMPLES, 1, CHANNELS, 1))


def test_a_constant_too_large_to_write_out_is_refused(tmp_path: Path) -> None:
    net = Net(("N", 1, 1 << 15))
    batch = net.op("Gather", net.op("Shape", "x"), ints(net, 0), axis=0)
    rows = net.op("Expand", net.constant(1.0), net.op("Concat", batch, ints(net, 1 << 15, 1 << 15), axis=0))
    with pytest.raises(UnsupportedModelError, match=r"Expand"):
        convert(net.model(net.op("Concat", "x", rows, axis=1)), tmp_path)
