"""Quantizers with more values than packed bits hold, on floats: every integer of up to 16 bits is a float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..graph import Array, Node
from ..integers import integer_limits
from ..qonnx_ops import integer_range, threshold_axis
from ..values import BINARY, MAX_LEVELS, Encoding
from .emitter import NotLowered, Stored
from .floats import combine, unary, with_constant

if TYPE_CHECKING:
    from .lower import Lowering

# The roundings that are a unary op; the others take magnitudes and put the sign back: (added to |x|, op).
_PLAIN = {"ROUND": "round", "HALF_EVEN": "round", "FLOOR": "floor", "CEIL": "ceil"}
_OF_MAGNITUDES = {
    "UP": (0.0, "ceil"),
    "DOWN": (0.0, "floor"),
    "ROUND_TO_ZERO": (0.0, "floor"),
    "HALF_UP": (0.5, "floor"),
    "HALF_DOWN": (-0.5, "ceil"),
}


class _Arithmetic:
    """The ops that a quantizer consists of, one after the other; ``finish`` adds the one that holds its output."""

    def __init__(self, lowering: Lowering, node: Node) -> None:
        self.lowering, self.node = lowering, node
        self.stored = lowering.float_of(node.inputs[0], node)

    def constant(self, kind: str, value: Array) -> None:
        """A binary op with a constant that broadcasts; left out where it changes nothing."""
        neutral = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}.get(kind)
        if neutral is None or np.any(value != neutral):
            self.stored = with_constant(self.lowering, self.node, kind, self.stored, value, False, False)

    def clip(self, low: Array, high: Array) -> None:
        if low.size == 1 and high.size == 1:
            limits = float(low.reshape(())), float(high.reshape(()))
            self.stored = unary(self.lowering, self.node, self.stored, "clip", *limits, last=False)
        else:
            self.constant("max", low)
            self.constant("min", high)

    def finish(self, kind: str, value: Array, *, quantizes: bool = True) -> Stored:
        """The last op, a binary one with a constant. What ``quantizes`` can fall to either side of a rounding."""
        stored = with_constant(self.lowering, self.node, kind, self.stored, value, False, True)
        if quantizes:
            self.lowering.emit.mark_quantizer(self.node.inputs[0])
        return stored

    def round(self, mode: str) -> None:
        if mode in _PLAIN:
            self.stored = unary(self.lowering, self.node, self.stored, _PLAIN[mode], last=False)
            return
        offset, kind = _OF_MAGNITUDES[mode]
        sign = unary(self.lowering, self.node, self.stored, "sign", last=False)
        self.stored = unary(self.lowering, self.node, self.stored, "abs", last=False)
        self.constant("add", np.asarray(offset, np.float32))
        self.stored = unary(self.lowering, self.node, self.stored, kind, last=False)
        self.stored = combine(self.lowering, self.node, "mul", self.stored, sign, last=False)


def _parameters(lowering: Lowering, node: Node) -> list[Array]:
    """The constant inputs behind the first, float32."""
    graph = lowering.graph
    for name in node.inputs[1:]:
        if name and not graph.is_constant(name):
            raise NotLowered(node, f"its parameter '{name}' is computed at run time")
    return [graph.constants[name].astype(np.float32) for name in node.inputs[1:] if name]


def quant(lowering: Lowering, node: Node) -> Stored:
    """QONNX Quant, op by op as it is defined (qonnx_ops.quant)."""
    scale, zero, bits = _parameters(lowering, node)
    steps = _Arithmetic(lowering, node)
    steps.constant("div", scale)
    steps.constant("add", zero)
    if node.attrs["signed"] and np.all(bits == 1):
        steps.stored = _signs(lowering, node, steps.stored)
    else:
        low, high = integer_range(bits, bool(node.attrs["signed"]), bool(node.attrs["narrow"]))
        steps.clip(low, high)
        steps.round(node.attrs["rounding_mode"])
    steps.constant("sub", zero)
    return steps.finish("mul", scale)


def trunc(lowering: Lowering, node: Node) -> Stored:
    """QONNX Trunc, op by op as it is defined (qonnx_ops.trunc)."""
    scale, zero, in_bits, *rest = _parameters(lowering, node)
    steps = _Arithmetic(lowering, node)
    steps.constant("div", scale)
    steps.constant("add", zero)
    steps.round("ROUND")
    if node.attrs["version"] == 1:
        steps.constant("div", np.exp2(in_bits - rest[0]))
        steps.round(node.attrs["rounding_mode"])
        steps.constant("sub", zero)
        return steps.finish("mul", scale)
    out_scale, out_bits = rest
    divisor = np.exp2(np.rint(np.log2(out_scale / scale)))
    steps.constant("div", divisor)
    steps.clip(*integer_range(out_bits, bool(node.attrs["signed"]), bool(node.attrs["narrow"])))
    steps.round(node.attrs["rounding_mode"])
    steps.constant("sub", zero / divisor)
    return steps.finish("mul", out_scale)


def bipolar_quant(lowering: Lowering, node: Node) -> Stored:
    """Where scales differ between channels: signs, packed and unpacked, times the scales."""
    (scale,) = _parameters(lowering, node)
    steps = _Arithmetic(lowering, node)
    steps.stored = _signs(lowering, node, steps.stored)
    return steps.finish("mul", scale)


def _signs(lowering: Lowering, node: Node, stored: Stored) -> Stored:
    """+1 where x >= 0, else -1."""
    values = np.asarray([[-1.0, 1.0]], np.float32)
    return _packed_and_unpacked(lowering, node, stored, np.zeros((1, 1), np.float32), BINARY, values)


def _packed_and_unpacked(
    lowering: Lowering, node: Node, stored: Stored, thresholds: Array, encoding: Encoding, values: Array
) -> Stored:
    """``values`` [1, L] of the levels that ``thresholds`` [1 or C, L - 1] divide a tensor into."""
    fields = {"input": stored.tensor, "thresholds": thresholds}
    bits = lowering.emit.op("quantize", node, fields, stored.dims, dtype="bits", encoding=encoding, helper=True)
    fields = {"input": bits, "values": values}
    made = lowering.emit.op("dequantize", node, fields, stored.dims, helper=True)
    return Stored(made, stored.dims, stored.layout, stored.map_dims)


def multi_threshold(lowering: Lowering, node: Node) -> Stored:
    """More thresholds than packed bits have levels: a sum of counts of up to 15."""
    (thresholds,) = _parameters(lowering, node)
    rank = len(lowering.graph.shapes[node.output])
    steps = _Arithmetic(lowering, node)
    axis = threshold_axis(node.attrs["data_layout"], rank)
    stored = (
        lowering.emit.nhwc(steps.stored, node) if rank == 4 and axis == 1 else lowering.emit.plain(steps.stored, node)
    )
    if len(thresholds) > 1 and stored.layout == "plain" and axis != rank - 1:
        raise NotLowered(node, f"its channels are on axis {axis}, expected 1 of a map or the last")
    ascending = np.sort(thresholds, axis=1)
    total: Stored | None = None
    for begin in range(0, ascending.shape[1], MAX_LEVELS - 1):
        part = np.ascontiguousarray(ascending[:, begin : begin + MAX_LEVELS - 1])
        counts = np.arange(part.shape[1] + 1, dtype=np.float32).reshape(1, -1)
        encoding = Encoding("linear", 0, 1, counts.size)
        count = _packed_and_unpacked(lowering, node, stored, part, encoding, counts)
        total = count if total is None else combine(lowering, node, "add", total, count, last=False)
    if total is None:
        raise NotLowered(node, "it has no thresholds")
    steps.stored = total
    steps.constant("mul", np.asarray(node.attrs["out_scale"], np.float32))
    return steps.finish("add", np.asarray(node.attrs["out_bias"], np.float32))


def _along_axis(node: Node, constant: Array, rank: int) -> Array:
    if constant.size == 1:
        return constant.reshape(())
    if constant.ndim != 1:
        raise NotLowered(node, "scales of blocks, on a tensor that is no constant")
    shape = [1] * rank
    shape[int(node.attrs["axis"])] = constant.size
    return constant.reshape(shape)


def quantize_linear(lowering: Lowering, node: Node) -> Stored:
    """QuantizeLinear to integers kept as floats."""
    graph = lowering.graph
    rank = len(graph.shapes[node.output])
    scale, zero = (_along_axis(node, value, rank) for value in _parameters(lowering, node))
    limits = integer_limits(graph.dtypes[node.output])
    if limits is None or limits[1] - limits[0] >= 1 << 16:
        raise NotLowered(node, f"quantization to {graph.dtypes[node.output]}")
    steps = _Arithmetic(lowering, node)
    steps.constant("div", scale)
    steps.round("ROUND")
    steps.constant("add", zero)
    low, high = (np.asarray(limit, np.float32) for limit in limits)
    steps.constant("max", low)
    return steps.finish("min", high)


def dequantize_linear(lowering: Lowering, node: Node) -> Stored:
    rank = len(lowering.graph.shapes[node.output])
    scale, *zero = (_along_axis(node, value, rank) for value in _parameters(lowering, node))
    steps = _Arithmetic(lowering, node)
    offset = zero[0] if zero else np.zeros((), np.float32)
    if np.any(scale != 1.0):
        steps.constant("sub", offset)
        return steps.finish("mul", scale, quantizes=False)
    return steps.finish("sub", offset, quantizes=False) if np.any(offset) else steps.stored


RULES = {
    "BipolarQuant": bipolar_quant,
    "MultiThreshold": multi_threshold,
    "Quant": quant,
    "Trunc": trunc,
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
}
