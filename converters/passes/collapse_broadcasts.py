"""Shrinks operands that only repeat themselves: what an elementwise operator broadcasts need not be written out."""

from __future__ import annotations

import math

import numpy as np

from ..evaluate import evaluate_node
from ..graph import Array, Batch, Graph, Node, Shape
from ..result_size import MAX_BYTES
from .base import PassContext, PassResult, RuleError, fresh_name, tensor_names
from .shape_rules import ARITHMETIC_OPS, COMPARISON_OPS, LOGIC_OPS, broadcast

_BROADCASTING = ARITHMETIC_OPS | COMPARISON_OPS | LOGIC_OPS | {"Where", "PRelu"}
# Their constants [1, ...] stand for every sample.
_BROADCASTING_SAMPLES = frozenset({"Concat", "MatMul"})
# What exporters compute of a constant that they have already filled or expanded.
_ON_CONSTANTS = COMPARISON_OPS | LOGIC_OPS | frozenset("Abs Add Cast Div Identity Mul Neg Not Sign Sub Where".split())


class CollapseBroadcasts:
    """f(x, expand(c)) = f(x, c) where the result keeps its shape; g(expand(c)) = expand(g(c)) for elementwise g.

    Exporters write a bias [1, C, 1, 1] as an initializer [1, C, H, W], or expand it to Shape(x), or fill a tensor of
    Shape(x) with ones and negate it. Such an operand is replaced by the constant with size 1 along every axis that
    repeats; the operand of a Concat (a class token) or a MatMul along the batch axis only. So is x * expand(y) of
    run-time values by x * y.
    """

    name = "collapse_broadcasts"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        modified = False
        written_out: dict[str, Array] = {}  # the repeated part of each tensor that holds a constant for every sample
        collapsed: dict[tuple[str, tuple[int, ...]], str] = {}
        expanded: dict[str, str] = {}  # run-time tensors, and what they repeat
        used = tensor_names(graph)
        for node in graph.nodes:
            if node.domain or node.output not in graph.shapes:
                continue
            part = _written_out(graph, node, written_out)
            if part is not None:
                written_out[node.output] = part
            if node.op == "Expand" and not graph.is_constant(node.inputs[0]):
                expanded[node.output] = node.inputs[0]
            of_samples = node.op in _BROADCASTING_SAMPLES and _has_batch(graph, node, written_out)
            for index, name in enumerate(node.inputs if node.op in _BROADCASTING or of_samples else []):
                if (
                    name in expanded
                    and not of_samples
                    and _keeps_shape(graph, node, index, graph.shapes[expanded[name]])
                ):
                    node.inputs[index] = expanded[name]
                    modified = True
                small = (_one_sample if of_samples else self.check)(graph, node, index, written_out)
                if small is None:
                    continue
                key = (name, small.shape)
                if key not in collapsed:
                    collapsed[key] = fresh_name(used, f"{name}__collapsed")
                    new = collapsed[key]
                    graph.constants[new] = small
                    graph.shapes[new], graph.dtypes[new] = small.shape, small.dtype
                node.inputs[index] = collapsed[key]
                modified = True
        return PassResult(modified)

    def check(self, graph: Graph, node: Node, index: int, written_out: dict[str, Array]) -> Array | None:
        """The smaller operand; None where there is none or the result would lose its shape."""
        name = node.inputs[index]
        small = written_out.get(name)
        if small is None and name in graph.constants:
            small = _without_repetition(graph.constants[name])
            small = small if small.shape != graph.constants[name].shape else None
        return small if small is not None and _keeps_shape(graph, node, index, small.shape) else None


def _keeps_shape(graph: Graph, node: Node, index: int, shape: Shape) -> bool:
    """Whether the result keeps its shape where operand ``index`` has ``shape``."""
    others = [graph.shapes[other] for place, other in enumerate(node.inputs) if place != index]
    try:
        return broadcast([*others, shape]) == graph.shapes[node.output]
    except RuleError:
        return False


def _has_batch(graph: Graph, node: Node, written_out: dict[str, Array]) -> bool:
    """Whether an operand depends on the data, so that the result has a batch axis whatever the others have."""
    return any(name not in graph.constants and name not in written_out for name in node.inputs)


def _one_sample(graph: Graph, node: Node, index: int, written_out: dict[str, Array]) -> Array | None:
    """What a tensor that holds a constant for every sample has for one: [1, ...], all of it."""
    name = node.inputs[index]
    shape = graph.shapes[name]
    if name not in written_out or shape[0] != Batch():
        return None
    sizes = tuple(dim for dim in shape[1:] if isinstance(dim, int))
    if math.prod(sizes) * written_out[name].itemsize > MAX_BYTES:
        return None
    return np.ascontiguousarray(np.broadcast_to(written_out[name], (1, *sizes)))


def _written_out(graph: Graph, node: Node, known: dict[str, Array]) -> Array | None:
    """The constant that ``node`` repeats along the batch axis and others; None where it does something else."""
    shape = graph.shapes[node.output]
    if node.op == "Expand" and node.inputs[0] in graph.constants and "shape" in node.attrs:
        small = _without_repetition(graph.constants[node.inputs[0]])
        return small.reshape((1,) * (len(shape) - small.ndim) + small.shape)
    if node.op == "ConstantOfShape":
        if not any(isinstance(dim, Batch) for dim in shape):
            return None  # folded as any constant
        value = node.attrs.get("value")
        fill = np.zeros(1, np.float32) if value is None else value
        return np.full((1,) * len(shape), fill.reshape(-1)[0], fill.dtype)
    if node.op in _ON_CONSTANTS and any(name in known for name in node.inputs):
        parts = [known.get(name, graph.constants.get(name)) for name in node.inputs]
        if all(part is not None for part in parts):
            return evaluate_node(node, parts)[0]
    return None


def _without_repetition(constant: Array) -> Array:
    if constant.size == 0:
        return constant
    for axis in range(constant.ndim):
        first = constant.take([0], axis)
        if constant.shape[axis] > 1 and np.array_equal(constant, np.broadcast_to(first, constant.shape)):
            constant = first
    return np.ascontiguousarray(constant)
