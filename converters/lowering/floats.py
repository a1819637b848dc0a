"""Elementwise ops on floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..graph import Array, Node
from .emitter import NotLowered, Stored
from .moves import constant_for, constant_tensor

if TYPE_CHECKING:
    from .lower import Lowering

_INFINITY = float("inf")


def unary(
    lowering: Lowering,
    node: Node,
    stored: Stored,
    kind: str,
    alpha: float = 0.0,
    beta: float = 0.0,
    *,
    last: bool = True,
) -> Stored:
    fields = {"input": stored.tensor, "kind": kind, "alpha": alpha, "beta": beta}
    holds = node.output if last else ""
    tensor = lowering.emit.op("unary", node, fields, stored.dims, holds=holds, layout=stored.layout)
    if last:
        lowering.emit.row(node, "unary", kind.replace("_", " "), stored.dims, "32", 0, 0)
    return Stored(tensor, stored.dims, stored.layout, stored.map_dims)


def _simple(kind: str, **defaults: float) -> Callable[[Lowering, Node], Stored]:
    def rule(lowering: Lowering, node: Node) -> Stored:
        values = [float(node.attrs.get(name, default)) for name, default in defaults.items()]
        return unary(lowering, node, lowering.float_of(node.inputs[0], node), kind, *values)

    return rule


def _jumping(kind: str) -> Callable[[Lowering, Node], Stored]:
    """A rounding of one ulp in front can move the result by 1 or 2."""

    def rule(lowering: Lowering, node: Node) -> Stored:
        stored = unary(lowering, node, lowering.float_of(node.inputs[0], node), kind)
        lowering.emit.mark_quantizer(node.inputs[0])
        return stored

    return rule


def _scalar(lowering: Lowering, node: Node, position: int, default: float) -> float:
    if len(node.inputs) <= position or not node.inputs[position]:
        return default
    name = node.inputs[position]
    if not lowering.graph.is_constant(name) or lowering.graph.constants[name].size != 1:
        raise NotLowered(node, f"its input '{name}' must be a constant scalar")
    return float(lowering.graph.constants[name].reshape(()))


def clip(lowering: Lowering, node: Node) -> Stored:
    low, high = _scalar(lowering, node, 1, -_INFINITY), _scalar(lowering, node, 2, _INFINITY)
    return unary(lowering, node, lowering.float_of(node.inputs[0], node), "clip", low, high)


def batch_normalization(lowering: Lowering, node: Node) -> Stored:
    graph = lowering.graph
    if not all(graph.is_constant(name) for name in node.inputs[1:5]):
        raise NotLowered(node, "its parameters are computed at run time")
    gamma, beta, mean, variance = (graph.constants[name].astype(np.float64) for name in node.inputs[1:5])
    with np.errstate(all="ignore"):
        scale = (gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))).astype(np.float32)
        shift = (beta - mean * scale).astype(np.float32)
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        raise NotLowered(node, "its scale or shift is not finite: is a variance negative or zero?")
    stored = lowering.float_of(node.inputs[0], node)
    if stored.layout == "plain" and len(stored.dims) > 1:
        if len(stored.dims) != 3:
            raise NotLowered(node, f"its input has rank {len(stored.dims) + 1}, expected 2 or 4")
        stored = lowering.emit.nhwc(stored, node)
    if stored.layout == "flat":
        stored = lowering.emit.plain(stored, node)
    fields = {"input": stored.tensor, "scale": scale, "shift": shift}
    tensor = lowering.emit.op("affine", node, fields, stored.dims, holds=node.output, layout=stored.layout)
    size = 2 * gamma.size * 4
    lowering.emit.row(node, "affine", "batch norm", stored.dims, "32", size, size)
    return Stored(tensor, stored.dims, stored.layout)


def _binary(kind: str) -> Callable[[Lowering, Node], Stored]:
    def rule(lowering: Lowering, node: Node) -> Stored:
        return binary_of(lowering, node, kind, *node.inputs)

    return rule


def binary_of(lowering: Lowering, node: Node, kind: str, left: str, right: str, *, last: bool = True) -> Stored:
    """``kind`` of two tensors of which one may be constant."""
    graph = lowering.graph
    if graph.is_constant(right):
        return with_constant(lowering, node, kind, lowering.float_of(left, node), graph.constants[right], False, last)
    if graph.is_constant(left):
        return with_constant(lowering, node, kind, lowering.float_of(right, node), graph.constants[left], True, last)
    return combine(lowering, node, kind, lowering.float_of(left, node), lowering.float_of(right, node), last=last)


def power(lowering: Lowering, node: Node) -> Stored:
    """Squares, of which statistics are made, without a call of pow."""
    base, exponent = node.inputs
    constant = lowering.graph.constants.get(exponent)
    if constant is not None and constant.size == 1 and constant.reshape(()) == 2.0:
        stored = lowering.float_of(base, node)
        return combine(lowering, node, "mul", stored, stored)
    return _binary("pow")(lowering, node)


def gelu(lowering: Lowering, node: Node) -> Stored:
    kind = "gelu_tanh" if node.attrs.get("approximate", "none") == "tanh" else "gelu"
    return unary(lowering, node, lowering.float_of(node.inputs[0], node), kind)


def local_response_normalisation(lowering: Lowering, node: Node) -> Stored:
    emit = lowering.emit
    stored = lowering.float_of(node.inputs[0], node)
    if len(stored.dims) == 3:
        stored = emit.nhwc(stored, node)
    elif len(stored.dims) == 1:
        stored = emit.plain(stored, node)
    else:
        raise NotLowered(node, f"its input has rank {len(stored.dims) + 1}, expected 2 or 4")
    fields = {"input": stored.tensor, **{name: node.attrs[name] for name in ("size", "alpha", "beta", "bias")}}
    tensor = emit.op("lrn", node, fields, stored.dims, holds=node.output, layout=stored.layout)
    emit.row(node, "lrn", "local response norm", stored.dims, "32", 0, 0)
    return Stored(tensor, stored.dims, stored.layout)


def with_constant(
    lowering: Lowering, node: Node, kind: str, stored: Stored, constant: Array, constant_first: bool, last: bool
) -> Stored:
    emit = lowering.emit
    rank = len(lowering.graph.shapes[node.output])
    if rank != len(stored.dims) + 1:
        stored = emit.plain(stored, node)
    if stored.layout == "nhwc" and constant.ndim > 4:
        stored = emit.plain(stored, node)
    value = constant_for(constant, stored, rank, node)
    broadcast = np.broadcast_shapes(stored.dims, value.shape)
    operand = constant_tensor(lowering, node, value)
    first, second = (operand, stored.tensor) if constant_first else (stored.tensor, operand)
    layout = stored.layout if stored.layout != "flat" or broadcast == stored.dims else "plain"
    fields: dict[str, Any] = {"a": first, "b": second, "kind": kind}
    tensor = emit.op("binary", node, fields, broadcast, holds=node.output if last else "", layout=layout)
    emit.row(node, "binary", kind, broadcast, "32", value.nbytes, value.nbytes)
    return Stored(tensor, broadcast, layout, stored.map_dims)


def combine(lowering: Lowering, node: Node, kind: str, left: Stored, right: Stored, *, last: bool = True) -> Stored:
    emit = lowering.emit
    same = left.layout == right.layout and left.map_dims == right.map_dims and len(left.dims) == len(right.dims)
    if len(left.dims) == len(right.dims) and "nhwc" not in (left.layout, right.layout):
        # A single value for each sample lies alike in every layout.
        if right.dims == (1,):
            right, same = replace(right, layout=left.layout, map_dims=left.map_dims), True
        elif left.dims == (1,):
            left, same = replace(left, layout=right.layout, map_dims=right.map_dims), True
    if not same and {left.layout, right.layout} == {"nhwc", "plain"} and len(left.dims) == len(right.dims) == 3:
        left, right = emit.nhwc(left, node), emit.nhwc(right, node)
    elif not same:
        left, right = emit.plain(left, node), emit.plain(right, node)
    dims = np.broadcast_shapes(left.dims, right.dims)
    fields: dict[str, Any] = {"a": left.tensor, "b": right.tensor, "kind": kind}
    tensor = emit.op("binary", node, fields, dims, holds=node.output if last else "", layout=left.layout)
    if last:
        emit.row(node, "binary", kind, dims, "32", 0, 0)
    return Stored(tensor, dims, left.layout, left.map_dims)


RULES: dict[str, Callable[[Lowering, Node], Stored]] = {
    "Relu": _simple("relu"),
    "LeakyRelu": _simple("leaky_relu", alpha=0.01),
    "Sigmoid": _simple("sigmoid"),
    "Tanh": _simple("tanh"),
    "HardSigmoid": _simple("hard_sigmoid", alpha=0.2, beta=0.5),
    "HardSwish": _simple("hard_swish"),
    "Abs": _simple("abs"),
    "Neg": _simple("neg"),
    "Sqrt": _simple("sqrt"),
    "Exp": _simple("exp"),
    "Sign": _jumping("sign"),
    "Floor": _jumping("floor"),
    "Ceil": _jumping("ceil"),
    "Round": _jumping("round"),
    "Clip": clip,
    "BatchNormalization": batch_normalization,
    "Add": _binary("add"),
    "Sub": _binary("sub"),
    "Mul": _binary("mul"),
    "Div": _binary("div"),
    "Min": _binary("min"),
    "Max": _binary("max"),
    "Pow": power,
    "PRelu": _binary("prelu"),
    "Elu": _simple("elu", alpha=1.0),
    "Selu": _simple("selu", alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Celu": _simple("celu", alpha=1.0),
    "Softplus": _simple("softplus"),
    "Softsign": _simple("softsign"),
    "Erf": _simple("erf"),
    "Gelu": gelu,
    "Reciprocal": _simple("reciprocal"),
    "Log": _simple("log"),
    "Mish": _simple("mish"),
    "ThresholdedRelu": _simple("thresholded_relu", alpha=1.0),
    "LRN": local_response_normalisation,
}
