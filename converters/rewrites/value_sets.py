"""Which few values a float tensor can take, on a lattice or not, and through ops that only move values."""

from __future__ import annotations

import itertools

import numpy as np

from ..chains import ELEMENTWISE, evaluate_chain, float_steps, trace
from ..evaluate import evaluate_node
from ..graph import Array, Graph, Node
from ..values import MAX_LEVELS, Table, distinct_values

# Every element of the result is an element of an input.
MOVES = frozenset("Concat Expand Gather MaxPool Reshape Slice Split Transpose".split())


class ValueSets:
    """Sets of at most ``MAX_LEVELS`` values, found by evaluating; tensors without one cost one look.

    - A chain of elementwise ops that is a step function of any float has the values of its steps.
    - On a tensor that has few values an elementwise op gives the results of those; on several such tensors, of all
      their combinations.
    - An op that only moves values gives the union of what its inputs have; Pad adds the value it writes.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[str, Array | None] = {}

    def of(self, tensor: str) -> Array | None:
        """Distinct float64 values, ascending; None where there are too many or none can be told."""
        if tensor not in self._known:
            self._known[tensor] = None  # meanwhile
            self._known[tensor] = self._find(tensor)
        return self._known[tensor]

    def _find(self, tensor: str) -> Array | None:
        graph = self._graph
        if graph.is_constant(tensor):
            constant = graph.constants[tensor]
            return distinct_values(constant, MAX_LEVELS) if constant.dtype.kind == "f" else None
        node = graph.producer(tensor)
        if node is None or node.domain not in ("", "qonnx"):
            return None
        if node.op in MOVES:
            sources = node.inputs if node.op == "Concat" else node.inputs[:1]
            return self._union([self.of(name) for name in sources])
        if node.op == "Pad":
            filled = node.attrs["mode"] == "constant"
            written = self.of(node.inputs[1]) if filled and node.inputs[1] else np.zeros(int(filled))
            return self._union([self.of(node.inputs[0]), written])
        if node.op in ELEMENTWISE and graph.dtypes[tensor] == np.float32:
            return self._elementwise(tensor, node)
        return None

    def _union(self, sets: list[Array | None]) -> Array | None:
        known = [values for values in sets if values is not None]
        return distinct_values(np.concatenate(known), MAX_LEVELS) if len(known) == len(sets) else None

    def _elementwise(self, tensor: str, node: Node) -> Array | None:
        graph = self._graph
        chains = trace(graph, tensor, stop=lambda name: False, through_pool=False)
        for chain in chains:
            if graph.dtypes[chain.root] != np.float32:
                continue
            values = self.of(chain.root)
            if values is None:
                steps = float_steps(graph, chain, Table.read)
                if not isinstance(steps, str):
                    return np.asarray(steps.values, np.float64)
            else:
                dim = 1 if chain.free else graph.shapes[chain.root][chain.channel_axis]
                if isinstance(dim, int):
                    probes = np.repeat(values.astype(np.float32)[:, None], dim, axis=1)
                    return distinct_values(evaluate_chain(graph, chain, probes)[0], MAX_LEVELS)
        sets = [self.of(name) for name in node.inputs if name]
        known = [values for values in sets if values is not None]
        if len(known) < 2 or len(known) < len(sets) or node.domain:
            return None
        grid = np.asarray(list(itertools.product(*known)), np.float32)
        return distinct_values(evaluate_node(node, list(grid.T), graph.opset)[0], MAX_LEVELS)
