"""Shrinks operands that only repeat themselves: what an elementwise operator broadcasts need not be written out."""

from __future__ import annotations

import numpy as np

from ..graph import Array, Batch, Graph, Node, Shape
from .base import PassContext, PassResult, RuleError, fresh_name
from .shape_rules import ARITHMETIC_OPS, COMPARISON_OPS, LOGIC_OPS, broadcast

_BROADCASTING = ARITHMETIC_OPS | COMPARISON_OPS | LOGIC_OPS | {"Where", "PRelu"}


class CollapseBroadcasts:
    """f(x, expand(c)) = f(x, c) where the result keeps its shape.

    Exporters write a bias [1, C, 1, 1] as an initializer [1, C, H, W], or expand it to Shape(x), or fill a tensor of
    Shape(x) with ones. Such an operand is replaced by the constant with size 1 along every axis that repeats.
    """

    name = "collapse_broadcasts"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        modified = False
        producers = {name: node for node in graph.nodes for name in node.outputs}
        collapsed: dict[str, str] = {}
        for node in graph.nodes:
            if node.domain or node.op not in _BROADCASTING or node.output not in graph.shapes:
                continue
            for index, name in enumerate(node.inputs):
                small = self.check(graph, node, index, producers.get(name))
                if small is None:
                    continue
                if name not in collapsed:
                    collapsed[name] = fresh_name(graph, f"{name}__collapsed")
                    new = collapsed[name]
                    graph.constants[new] = small
                    graph.shapes[new], graph.dtypes[new] = small.shape, small.dtype
                if graph.constants[collapsed[name]].shape == small.shape:
                    node.inputs[index] = collapsed[name]
                    modified = True
        return PassResult(modified)

    def check(self, graph: Graph, node: Node, index: int, producer: Node | None) -> Array | None:
        """The smaller operand; None where there is none or the result would lose its shape."""
        name = node.inputs[index]
        small = _repeated_part(graph, name, producer)
        if small is None:
            return None
        others = [graph.shapes[other] for place, other in enumerate(node.inputs) if place != index]
        try:
            kept = broadcast([*others, small.shape]) == graph.shapes[node.output]
        except RuleError:
            return None
        return small if kept else None


def _repeated_part(graph: Graph, name: str, producer: Node | None) -> Array | None:
    constant = graph.constants.get(name)
    if constant is not None:
        small = _without_repetition(constant)
        return small if small.shape != constant.shape else None
    if producer is None or producer.domain:
        return None
    if producer.op == "Expand" and producer.inputs[0] in graph.constants and "shape" in producer.attrs:
        shape: Shape = producer.attrs["shape"]
        small = _without_repetition(graph.constants[producer.inputs[0]])
        return small.reshape((1,) * (len(shape) - small.ndim) + small.shape)
    if producer.op == "ConstantOfShape":
        shape = graph.shapes[name]
        if not any(isinstance(dim, Batch) for dim in shape):
            return None  # folded as any constant
        value = producer.attrs.get("value")
        fill = np.zeros(1, np.float32) if value is None else value
        return np.full((1,) * len(shape), fill.reshape(-1)[0], fill.dtype)
    return None


def _without_repetition(constant: Array) -> Array:
    if constant.size == 0:
        return constant
    for axis in range(constant.ndim):
        first = constant.take([0], axis)
        if constant.shape[axis] > 1 and np.array_equal(constant, np.broadcast_to(first, constant.shape)):
            constant = first
    return np.ascontiguousarray(constant)
