"""Comparisons, logic, choices and casts, with floats for numbers of every type: 1 is true, 0 is false."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..graph import Node
from .emitter import NotLowered, Stored
from .floats import binary_of, unary, with_constant
from .moves import constant_for, constant_tensor

if TYPE_CHECKING:
    from .lower import Lowering

_ZERO = np.zeros((), np.float32)


def _operands(kind: str, swapped: bool = False) -> Callable[[Lowering, Node], Stored]:
    """``kind`` of the two inputs, the second first if ``swapped``."""

    def rule(lowering: Lowering, node: Node) -> Stored:
        left, right = node.inputs[::-1] if swapped else node.inputs
        return binary_of(lowering, node, kind, left, right)

    return rule


def exclusive_or(lowering: Lowering, node: Node) -> Stored:
    difference = binary_of(lowering, node, "sub", *node.inputs, last=False)
    return unary(lowering, node, difference, "abs")


def negate(lowering: Lowering, node: Node) -> Stored:
    return with_constant(lowering, node, "equal", lowering.float_of(node.inputs[0], node), _ZERO, False, True)


def cast(lowering: Lowering, node: Node) -> Stored:
    before, after = (lowering.graph.dtypes[name] for name in (node.inputs[0], node.output))
    stored = lowering.float_of(node.inputs[0], node)
    if after == np.bool_ and before != np.bool_:
        is_zero = with_constant(lowering, node, "equal", stored, _ZERO, False, False)
        return with_constant(lowering, node, "equal", is_zero, _ZERO, False, True)
    if before == np.float32 and after in (np.int32, np.int64):
        return unary(lowering, node, stored, "trunc")
    # A number that keeps its value is stored as it was.
    if before == np.bool_ or before == after or (np.issubdtype(before, np.integer) and _holds(after, before)):
        fields = {"input": stored.tensor}
        tensor = lowering.emit.op("reshape", node, fields, stored.dims, holds=node.output, layout=stored.layout)
        return Stored(tensor, stored.dims, stored.layout, stored.map_dims)
    raise NotLowered(node, f"a cast from {before} to {after} may change values in a way that floats do not")


def _holds(after: np.dtype[np.generic], before: np.dtype[np.generic]) -> bool:
    return after == np.float32 or bool(np.can_cast(before, after, "safe"))


def where(lowering: Lowering, node: Node) -> Stored:
    graph, emit = lowering.graph, lowering.emit
    rank = len(graph.shapes[node.output])
    live = {name: lowering.float_of(name, node) for name in node.inputs if not graph.is_constant(name)}
    for name, stored in live.items():
        if len(stored.dims) != rank - 1:
            raise NotLowered(node, f"its input '{name}' has rank {len(stored.dims) + 1}, its output {rank}")
    is_map = rank == 4 and any(stored.layout == "nhwc" for stored in live.values())
    live = {name: emit.nhwc(item, node) if is_map else emit.plain(item, node) for name, item in live.items()}
    layout = "nhwc" if is_map else "plain"
    operands: list[int] = []
    dims: tuple[int, ...] = ()
    size = 0
    for name in node.inputs:
        if name in live:
            operands.append(live[name].tensor)
            dims = np.broadcast_shapes(dims, live[name].dims)
            continue
        value = constant_for(graph.constants[name], Stored(0, (1,) * (rank - 1), layout), rank, node)
        operands.append(constant_tensor(lowering, node, value))
        dims = np.broadcast_shapes(dims, value.shape)
        size += value.nbytes
    fields = dict(zip(("condition", "a", "b"), operands, strict=True))
    tensor = emit.op("where", node, fields, dims, holds=node.output, layout=layout)
    emit.row(node, "where", "where", dims, "32", size, size)
    return Stored(tensor, dims, layout)


RULES: dict[str, Callable[[Lowering, Node], Stored]] = {
    "Less": _operands("less"),
    "LessOrEqual": _operands("less_or_equal"),
    "Greater": _operands("less", swapped=True),
    "GreaterOrEqual": _operands("less_or_equal", swapped=True),
    "Equal": _operands("equal"),
    "And": _operands("min"),
    "Or": _operands("max"),
    "Xor": exclusive_or,
    "Not": negate,
    "Cast": cast,
    "Where": where,
}
