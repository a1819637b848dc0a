"""Removes nodes and constants that no output depends on."""

from __future__ import annotations

from ..graph import Graph
from .base import PassContext, PassResult


class RemoveDeadNodes:
    """A node stays if one of its outputs is read by a node that stays, or is a graph output."""

    name = "remove_dead_nodes"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        kept = graph.live_nodes()
        modified = len(kept) < len(graph.nodes)
        graph.nodes = kept
        wanted = {name for node in kept for name in node.inputs}.union(graph.outputs)
        graph.constants = {name: array for name, array in graph.constants.items() if name in wanted}
        return PassResult(modified)
