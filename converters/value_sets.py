"""Which values a tensor can hold, followed through ops that move values or combine a few of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .chains import POINTWISE, Steps
from .evaluate import evaluate_node
from .graph import Array, Graph, Node
from .values import MAX_LEVELS

# Every element of the result is an element of the first input (or of any, for Concat; or the value of a Pad).
_SELECTING = frozenset(
    "Concat Expand Gather GlobalMaxPool Identity MaxPool Pad ReduceMax ReduceMin Reshape Slice Split Transpose".split()
)
_MAX_DEPTH = 64


def few_values(graph: Graph, tensor: str, steps_of: Callable[[str], Steps | str]) -> Array | None:
    """Every value that ``tensor`` can hold (some of them perhaps never), distinct; None for more than 16 or unknown.

    ``steps_of`` says what is a quantizer's output; those are the leaves.
    """
    known: dict[str, Array | None] = {}

    def values_of(name: str, depth: int) -> Array | None:
        if name not in known:
            known[name] = None  # where the depth ends, too
            values = find(name, depth) if depth < _MAX_DEPTH else None
            known[name] = values if values is not None and values.size <= MAX_LEVELS else None
        return known[name]

    def find(name: str, depth: int) -> Array | None:
        if graph.is_constant(name):
            return np.unique(graph.constants[name])
        node = graph.producer(name)
        if node is None or node.domain:
            return None
        if node.op not in _SELECTING:
            steps = steps_of(name)
            if isinstance(steps, Steps):
                return steps.values
        if node.op not in _SELECTING | POINTWISE:
            return None
        parts: list[Array] = []
        for source in _sources(node):
            values = values_of(source, depth + 1)
            if values is None:
                return None
            parts.append(values)
        if node.op in POINTWISE:
            return _combined(graph, node, parts)
        if node.op == "Pad" and len(parts) == 1 and node.attrs["mode"] == "constant" and any(node.attrs["pads"]):
            parts.append(np.zeros(1, np.float32))
        return np.unique(np.concatenate(parts))

    return values_of(tensor, 0)


def _sources(node: Node) -> list[str]:
    """The inputs whose values the result can have; a Pad's second is the value that it writes."""
    names = node.inputs if node.op in POINTWISE or node.op in ("Concat", "Pad") else node.inputs[:1]
    return [name for name in names if name]


def _combined(graph: Graph, node: Node, parts: list[Array]) -> Array | None:
    """The results for every combination of one value from each part."""
    if np.prod([part.size for part in parts]) > MAX_LEVELS**2:
        return None
    grids = iter(np.meshgrid(*parts, indexing="ij"))
    inputs: list[Array | None] = []
    for name in node.inputs:
        grid = next(grids) if name else None
        is_bound = node.op == "Clip" and len(inputs) > 0  # a scalar, which the operator asks for
        inputs.append(grid.ravel()[:1].reshape(()) if grid is not None and is_bound else grid)
    values = evaluate_node(node, inputs, graph.opset)[0]
    return np.unique(values) if values.dtype.kind != "f" or np.all(np.isfinite(values)) else None
