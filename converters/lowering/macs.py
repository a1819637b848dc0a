"""Convolutions and fully connected layers on floats: in float32, in integers, and as codebooks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _core
from ..analysis import MacWeights, mac_weights
from ..codebook import encode_codebook, integer_levels
from ..coded_weights import encode_weights, floats_behind_bitmap
from ..graph import Array, Batch, Node
from ..integer_weights import IntegerWeights, integer_weights, whole_weights
from ..values import weight_lattice
from .emitter import NotLowered, Stored, feature_order
from .integer import window_fields
from .moves import constant_tensor, per_sample

if TYPE_CHECKING:
    from .lower import Lowering

# Of an input: with fewer, turning it into an integer costs more than the products gain. For where nobody asked.
_MIN_PRODUCTS = 16


def _weights(lowering: Lowering, node: Node) -> MacWeights:
    constant = mac_weights(lowering.graph, node)
    if isinstance(constant, str):
        raise NotLowered(node, constant)
    if constant.weight.dtype != np.float32:
        raise NotLowered(node, f"its weight is {constant.weight.dtype}, expected float32")
    return constant


def conv(lowering: Lowering, node: Node) -> Stored:
    constant = _weights(lowering, node)
    if constant.weight.ndim != 4:
        raise NotLowered(node, f"its weight has rank {constant.weight.ndim}; only 2-D convolutions run")
    stored = lowering.emit.nhwc(lowering.float_of(constant.activation, node), node)
    weight = np.ascontiguousarray(constant.weight.transpose(0, 2, 3, 1))
    channels, height, width = lowering.dims(node.output)
    dims = (height, width, channels)
    fields: dict[str, Any] = {"input": stored.tensor, **window_fields(node), "groups": int(node.attrs.get("group", 1))}
    rows = weight.reshape(channels, -1)
    levels = _conv_levels(lowering, node, weight, depthwise=1 < fields["groups"] == stored.dims[-1] == channels)
    if isinstance(levels, IntegerWeights):
        tensor = _integer_conv(lowering, node, fields, rows, levels, constant.bias, dims)
    else:
        tensor = _float_layer(lowering, node, "conv", fields, rows, constant.bias, dims, levels)
    return Stored(tensor, dims, "nhwc")


def _conv_levels(lowering: Lowering, node: Node, weight: Array, *, depthwise: bool) -> IntegerWeights | str:
    """How a convolution with ``weight`` [O, kh, kw, C / groups] runs in integers, or why not ("": nobody asked)."""
    exact = lowering.analysis.integer_sums.get(node.output)
    if exact is None and lowering.conv_precision == "f32":
        return ""
    if depthwise:
        return "" if exact is not None else "float32 sums: a group for every channel"
    rows = weight.reshape(len(weight), -1)
    if exact is not None:
        outputs, taps = len(weight) // int(node.attrs.get("group", 1)), weight.shape[1] * weight.shape[2]
        pays = outputs * taps >= _MIN_PRODUCTS * math.prod(window_fields(node)["strides"])
        return (whole_weights(rows, exact.limit) if pays else None) or ""
    # A kernel row is contiguous where dilation and groups leave no gaps.
    contiguous = int(node.attrs.get("group", 1)) == 1 and window_fields(node)["dilations"][1] == 1
    levels = integer_weights(rows, weight.shape[2] * weight.shape[3] if contiguous else weight.shape[3])
    return f"float32 sums: {levels}" if isinstance(levels, str) else levels


def _integer_conv(
    lowering: Lowering,
    node: Node,
    fields: dict[str, Any],
    weight: Array,
    levels: IntegerWeights,
    bias: Array,
    dims: tuple[int, ...],
) -> int:
    """A conv with ``weight`` [O, K] whose sums are those of integers."""
    emit = lowering.emit
    coded = encode_weights(weight) or floats_behind_bitmap(weight)
    exact = node.output in lowering.analysis.integer_sums
    fields |= {
        **coded.fields(),
        "bias": bias,
        "level_scale": levels.scale,
        "run_parts": levels.run_parts,
        "runs_per_sum": levels.runs_per_sum,
        "input_limit": levels.limit,
        "input_unit": 1.0 if exact else 0.0,
    }
    reason = "integers: every sum is exact" if exact else lowering.analysis.reasons.get(node.output, "")
    parts = [reason, "" if exact else levels.describe(), f"stored as {coded.describe()}" if coded.code_bits else ""]
    arithmetic = "" if exact else "i16"
    tensor = emit.op("integer_conv", node, fields, dims, holds=node.output, layout="nhwc", arithmetic=arithmetic)
    width = 8 if exact else 16
    bits = f"{coded.bits if coded.code_bits else width} x {width}"
    before = weight.nbytes + (bias.nbytes if bias.any() else 0)
    after = coded.nbytes + levels.scale.nbytes + bias.nbytes
    emit.row(node, "integer_conv", "integer conv", dims, bits, before, after, "; ".join(filter(None, parts)))
    return tensor


def _float_layer(
    lowering: Lowering,
    node: Node,
    op: str,
    fields: dict[str, Any],
    weight: Array,
    bias: Array,
    dims: tuple[int, ...],
    declined: str = "",
) -> int:
    """A conv or linear with ``weight`` [O, K] in as few bytes as its values need; the sums are those of floats.

    ``declined`` is why they are not those of integers, where that was asked for.
    """
    emit = lowering.emit
    coded = encode_weights(weight)
    kind = f"float {op}"
    sums = lowering.analysis.integer_sums.get(node.output)
    reason = lowering.analysis.reasons.get(node.output, "") if sums is None else sums.describe()
    reason = "; ".join(filter(None, (reason, declined)))
    activation_bits = "32" if sums is None else "8"
    layout = "nhwc" if op == "conv" else "plain"
    before = weight.nbytes + (bias.nbytes if bias.any() else 0)
    if coded is None:
        fields |= {"weights": np.ascontiguousarray(weight).ravel(), "bias": bias}
        after, bits = weight.nbytes, "32"
    else:
        fields |= {**coded.fields(), "bias": bias}
        op, after, bits = f"coded_{op}", coded.nbytes, coded.bits
        reason = "; ".join(filter(None, (reason, f"stored as {coded.describe()}")))
    tensor = emit.op(op, node, fields, dims, holds=node.output, layout=layout)
    emit.row(node, op, kind, dims, f"{bits} x {activation_bits}", before, after + bias.nbytes, reason)
    return tensor


def linear(lowering: Lowering, node: Node) -> Stored:
    constant = _weights(lowering, node)
    emit = lowering.emit
    stored = lowering.float_of(constant.activation, node)
    weight = constant.weight
    if stored.layout == "flat":
        weight = weight[:, feature_order(stored.map_dims)]
    else:
        stored = emit.plain(stored, node)
    outputs, features = weight.shape
    if stored.dims[-1] != features:
        raise NotLowered(node, f"its input has {stored.dims[-1]} features, its weight {features}")
    dims = (*stored.dims[:-1], outputs)
    before = weight.nbytes + (constant.bias.nbytes if constant.bias.any() else 0)
    fields: dict[str, Any] = {"input": stored.tensor, "bias": constant.bias}
    book, scale = encode_codebook(weight), None
    if book is None:
        scaled = _scaled_rows(weight)
        if scaled is not None:
            scale, weight = scaled
            book = encode_codebook(weight)
            fields["bias"] = np.zeros(outputs, np.float32)
    if book is None:
        return Stored(_float_layer(lowering, node, "linear", fields, weight, constant.bias, dims), dims)
    fields |= {"code_bits": book.code_bits, "codebook": book.values, "codes": book.codes, "level_scale": 0.0}
    if book.bitmap is not None:
        fields["bitmap"] = np.asarray(_core.pack_bits(book.bitmap.astype(np.uint8))).ravel()
    is_exact = node.output in lowering.analysis.integer_sums
    if lowering.fc_precision == "i16" and not is_exact:
        levels = integer_levels(book, weight)
    else:
        levels = "inputs and weights are integers" if is_exact else "asked for"
    if isinstance(levels, str):
        arithmetic, bits, sums = "f32", 8 if is_exact else 32, f"weights exact, float32 sums: {levels}"
    else:
        arithmetic, bits, sums = "i16", 16, f"16-bit sums, weights within {levels.error:.1g}"
        fields |= {"levels": levels.levels, "level_scale": levels.scale}
    zeros = float(np.mean(weight == 0.0))
    note = f"{np.unique(weight).size} values, {zeros:.0%} zeros, {sums}"
    after = book.nbytes + constant.bias.nbytes
    if scale is None:
        tensor = emit.op("codebook_linear", node, fields, dims, holds=node.output, arithmetic=arithmetic)
    else:
        sums_tensor = emit.op("codebook_linear", node, fields, dims, helper=True)
        fields = {"input": sums_tensor, "scale": scale, "shift": constant.bias}
        tensor = emit.op("affine", node, fields, dims, holds=node.output, arithmetic=arithmetic)
        note = f"a scale for each output, {note}"
        after += scale.nbytes
    emit.row(node, "codebook_linear", "codebook linear", dims, f"{book.code_bits} x {bits}", before, after, note)
    return Stored(tensor, dims)


def _scaled_rows(weight: Array) -> tuple[Array, Array] | None:
    """(scale [O], levels [O, K]) float32 with ``scale * levels`` exactly ``weight``, levels small integers."""
    lattice = weight_lattice(weight)
    if isinstance(lattice, str):
        return None
    levels = lattice.levels.astype(np.float32)
    # The scale is read off the smallest weight, which is most often the scale itself.
    magnitudes = np.where(levels == 0.0, np.inf, np.abs(levels))
    smallest = np.argmin(magnitudes, axis=1)[:, None]
    scale = np.take_along_axis(np.abs(weight), smallest, 1) / np.take_along_axis(magnitudes, smallest, 1)
    return (np.ravel(scale), levels) if np.array_equal(scale * levels, weight) else None


def mat_mul(lowering: Lowering, node: Node) -> Stored:
    """A fully connected layer; or a product of matrices [N, ..., M, K] and [N, ..., K, O] for each sample on its own.

    One of the two may be a constant [1, ..., K, O]. Axes that ONNX broadcasts have been written out.
    """
    graph = lowering.graph
    if graph.is_constant(node.inputs[1]) and graph.constants[node.inputs[1]].ndim == 2:
        return linear(lowering, node)
    if graph.dtypes[node.output] != np.float32:
        raise NotLowered(node, f"a product of {graph.dtypes[node.output]}; only float32 runs")
    after = graph.shapes[node.output]
    shapes = [graph.shapes[name] for name in node.inputs]
    if len(after) < 3 or after[0] != Batch() or any(len(s) != len(after) or s[1:-2] != after[1:-2] for s in shapes):
        found = " and ".join(str([str(dim) for dim in shape]) for shape in shapes)
        raise NotLowered(node, f"its inputs {found} are no matrices of each sample")
    emit, dims = lowering.emit, lowering.dims(node.output)
    operands: list[int] = []
    size = 0
    for name in node.inputs:
        if graph.is_constant(name):
            value = per_sample(graph.constants[name], node)
            size += value.nbytes
            operands.append(constant_tensor(lowering, node, value))
        else:
            operands.append(emit.plain(lowering.float_of(name, node), node).tensor)
    fields = dict(zip("ab", operands, strict=True))
    tensor = emit.op("matmul", node, fields, dims, holds=node.output)
    emit.row(node, "matmul", "matrix product", dims, "32", size, size)
    return Stored(tensor, dims)


RULES = {"Conv": conv, "Gemm": linear, "MatMul": mat_mul}
