"""Convolutions and fully connected layers on floats; few-valued fully connected weights become codebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _core
from ..analysis import MacWeights, mac_weights
from ..codebook import encode_codebook, integer_levels
from ..graph import Node
from .emitter import NotLowered, Stored, feature_order
from .integer import window_fields

if TYPE_CHECKING:
    from .lower import Lowering


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
    fields |= {"weights": weight.ravel(), "bias": constant.bias}
    emit = lowering.emit
    tensor = emit.op("conv", node, fields, dims, holds=node.output, layout="nhwc")
    size = weight.nbytes + constant.bias.nbytes
    emit.row(node, "conv", "float conv", dims, "32 x 32", size, size, lowering.analysis.reasons.get(node.output, ""))
    return Stored(tensor, dims, "nhwc")


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
    book = encode_codebook(weight)
    reason = lowering.analysis.reasons.get(node.output, "")
    if book is None:
        fields["weights"] = np.ascontiguousarray(weight).ravel()
        tensor = emit.op("linear", node, fields, dims, holds=node.output)
        emit.row(node, "linear", "float linear", dims, "32 x 32", before, weight.nbytes + constant.bias.nbytes, reason)
        return Stored(tensor, dims)
    fields |= {"code_bits": book.code_bits, "codebook": book.values, "codes": book.codes, "level_scale": 0.0}
    if book.bitmap is not None:
        fields["bitmap"] = np.asarray(_core.pack_bits(book.bitmap.astype(np.uint8))).ravel()
    levels = integer_levels(book, weight) if lowering.fc_precision == "i16" else "asked for"
    if isinstance(levels, str):
        arithmetic, bits, sums = "f32", 32, f"weights exact, float32 sums: {levels}"
    else:
        arithmetic, bits, sums = "i16", 16, f"16-bit sums, weights within {levels.error:.1g}"
        fields |= {"levels": levels.levels, "level_scale": levels.scale}
    tensor = emit.op("codebook_linear", node, fields, dims, holds=node.output, arithmetic=arithmetic)
    zeros = float(np.mean(weight == 0.0))
    note = f"{np.unique(weight).size} values, {zeros:.0%} zeros, {sums}"
    after = book.nbytes + constant.bias.nbytes
    emit.row(node, "codebook_linear", "codebook linear", dims, f"{book.code_bits} x {bits}", before, after, note)
    return Stored(tensor, dims)


RULES = {"Conv": conv, "Gemm": linear, "MatMul": linear}
