"""A Split is a Slice for each of its outputs, so that no rule behind has to know of nodes with several outputs."""

from __future__ import annotations

import itertools

from ..graph import Graph, Node
from .base import PassContext, PassResult


class SplitToSlices:
    """``Split(x, sizes)[i] = Slice(x)`` from ``sum(sizes[:i])``, ``sizes[i]`` long. Asks for resolved sizes."""

    name = "split_to_slices"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        nodes: list[Node] = []
        for node in graph.nodes:
            nodes += self.rewrite(node) if self.check(node) else [node]
        modified = len(nodes) != len(graph.nodes) or any(
            new is not old for new, old in zip(nodes, graph.nodes, strict=True)
        )
        graph.nodes = nodes
        return PassResult(modified)

    def check(self, node: Node) -> bool:
        return node.op == "Split" and not node.domain and node.attrs.get("split") is not None and len(node.inputs) == 1

    def rewrite(self, node: Node) -> list[Node]:
        ends = list(itertools.accumulate(node.attrs["split"]))
        slices: list[Node] = []
        for number, (output, start, end) in enumerate(zip(node.outputs, [0, *ends], ends, strict=False)):
            if output:
                attrs = {"axes": [node.attrs["axis"]], "starts": [start], "ends": [end], "steps": [1]}
                slices.append(Node("Slice", f"{node.name}/{number}", list(node.inputs), [output], attrs))
        return slices
