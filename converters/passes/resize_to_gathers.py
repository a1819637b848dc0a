"""A Resize that takes the nearest element picks positions along each axis: a Gather for each axis that changes."""

from __future__ import annotations

import numpy as np

from ..evaluate import evaluate_node
from ..graph import Array, Graph, Node
from .base import PassContext, PassResult, fresh_name, tensor_names


class ResizeToGathers:
    """``Resize(x)[.., i, ..] = x[.., p(i), ..]``, axis by axis; p is what Resize makes of the numbers 0, 1, 2, ..."""

    name = "resize_to_gathers"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        if not any(self.check(node) for node in graph.nodes):
            return PassResult(False)
        used = tensor_names(graph)
        nodes: list[Node] = []
        for node in graph.nodes:
            nodes += self.rewrite(graph, node, used) if self.check(node) else [node]
        graph.nodes = nodes
        return PassResult(True)

    def check(self, node: Node) -> bool:
        return node.op == "Resize" and not node.domain and "resized" in node.attrs

    def rewrite(self, graph: Graph, node: Node, used: set[str]) -> list[Node]:
        shape = graph.shapes[node.inputs[0]]
        result: list[Node] = []
        tensor = node.inputs[0]
        for axis, scale, size in node.attrs["resized"]:
            dim = shape[axis]
            assert isinstance(dim, int)
            indices = self._positions(node, dim, scale, size)
            if np.array_equal(indices, np.arange(dim)):
                continue
            name = fresh_name(used, f"{node.output}__positions{axis}")
            graph.constants[name] = indices
            graph.shapes[name], graph.dtypes[name] = indices.shape, indices.dtype
            output = fresh_name(used, f"{node.output}__axis{axis}")
            result.append(Node("Gather", f"{node.name}/{axis}", [tensor, name], [output], {"axis": axis}))
            tensor = output
        if not result:
            return [Node("Identity", node.name, [tensor], [node.output])]
        result[-1].outputs = [node.output]
        return result

    def _positions(self, node: Node, dim: int, scale: float | None, size: int | None) -> Array:
        attrs = {name: value for name, value in node.attrs.items() if name != "resized"}
        line = Node("Resize", node.name, ["x", "", "scales", "sizes"], ["y"], {"mode": "nearest", **attrs})
        scales = None if scale is None else np.asarray([scale], np.float32)
        sizes = None if size is None else np.asarray([size], np.int64)
        (positions,) = evaluate_node(line, [np.arange(dim, dtype=np.float32), None, scales, sizes])
        return positions.astype(np.int64)
