"""Removes nodes that hand their input on."""

from __future__ import annotations

from ..graph import Graph, Node
from .base import PassContext, PassResult, replace_uses


class RemoveIdentities:
    """y = x. Also a Reshape, Expand, Transpose, Cast, Pad, Slice or Concat that changes nothing.

    Names of graph outputs are kept: the node before is renamed. Where that is impossible (x is a graph input or is an
    output itself) a Reshape to the same shape remains.
    """

    name = "remove_identities"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        modified = False
        for node in list(graph.nodes):
            if self.check(graph, node):
                modified |= self.rewrite(graph, node)
        return PassResult(modified)

    def check(self, graph: Graph, node: Node) -> bool:
        if node.domain or not node.inputs or node.inputs[0] not in graph.shapes or node.output not in graph.shapes:
            return False
        source, result = node.inputs[0], node.output
        unchanged = graph.shapes[source] == graph.shapes[result]
        if node.op == "Identity":
            return True
        if node.op in ("Reshape", "Expand"):
            return unchanged and "shape" in node.attrs
        if node.op == "Transpose":
            return bool(node.attrs["perm"] == sorted(node.attrs["perm"]))
        if node.op == "Cast":
            return graph.dtypes[source] == graph.dtypes[result]
        if node.op == "Pad":
            return not any(node.attrs.get("pads", [1]))
        if node.op == "Slice":
            return unchanged and all(step == 1 for step in node.attrs.get("steps", [0]))
        return node.op == "Concat" and len(node.inputs) == 1

    def rewrite(self, graph: Graph, node: Node) -> bool:
        source, result = node.inputs[0], node.output
        if result not in graph.outputs:
            graph.nodes.remove(node)
            replace_uses(graph, result, source)
            return True
        producer = graph.producer(source)
        if producer is not None and source not in graph.outputs:
            graph.nodes.remove(node)
            producer.outputs = [result if name == source else name for name in producer.outputs]
            replace_uses(graph, source, result)
            return True
        if node.op == "Reshape":
            return False
        node.op, node.inputs, node.attrs = "Reshape", [source], {"shape": graph.shapes[result]}
        return True
