"""Removes nodes and constants that no output depends on."""

from __future__ import annotations

from ..graph import Graph, Node
from .base import PassContext, PassResult


class RemoveDeadNodes:
    """A node stays if one of its outputs is read by a node that stays, or is a graph output."""

    name = "remove_dead_nodes"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        wanted = set(graph.outputs)
        kept: list[Node] = []
        for node in reversed(graph.nodes):
            if wanted.intersection(node.outputs):
                kept.append(node)
                wanted.update(node.inputs)
        modified = len(kept) < len(graph.nodes)
        graph.nodes = kept[::-1]
        graph.constants = {name: array for name, array in graph.constants.items() if name in wanted}
        return PassResult(modified)
