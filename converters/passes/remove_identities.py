"""Removes nodes that hand their input on."""

from __future__ import annotations

from ..graph import Graph, Node
from .base import PassContext, PassResult


class RemoveIdentities:
    """y = x. Also a Reshape, Expand, Transpose, Cast, Pad, Slice or Concat that changes nothing.

    Names of graph outputs are kept: the node before is renamed. Where that is impossible (x is a graph input or is an
    output itself) a Reshape to the same shape remains.
    """

    name = "remove_identities"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        outputs = set(graph.outputs)
        producers: dict[str, Node] = {}
        renamed: dict[str, str] = {}
        kept: list[Node] = []
        modified = False

        def current(name: str) -> str:
            # At most two steps: to the tensor that was handed on, and to the output that it became.
            while name in renamed:
                name = renamed[name]
            return name

        for node in graph.nodes:
            node.inputs = [current(name) for name in node.inputs]
            if self.check(graph, node):
                source, result = node.inputs[0], node.output
                producer = producers.get(source)
                if result not in outputs:
                    renamed[result] = source
                    modified = True
                    continue
                if producer is not None and source not in outputs:
                    producer.outputs = [result if name == source else name for name in producer.outputs]
                    producers[result] = producer
                    renamed[source] = result
                    modified = True
                    continue
                if node.op != "Reshape":
                    node.op, node.inputs, node.attrs = "Reshape", [source], {"shape": graph.shapes[result]}
                    modified = True
            kept.append(node)
            producers.update(dict.fromkeys(node.outputs, node))
        for node in kept:  # those in front of the node that gave its input another name
            node.inputs = [current(name) for name in node.inputs]
        graph.nodes = kept
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
