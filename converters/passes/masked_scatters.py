"""Reads a scatter to the positions of a mask as the elementwise operator that it is."""

from __future__ import annotations

import numpy as np
import onnx

from ..graph import Graph, Node
from .base import PassContext, PassResult, fresh_name, tensor_names
from .remove_dead_nodes import RemoveDeadNodes

# They hand on the value of a tensor that holds one value everywhere, whatever its shape becomes.
_RESHAPING = frozenset({"Expand", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Tile", "Transpose"})


class MaskedScatters:
    """ScatterND(data, P, u) = Where(mask, v, data): P holds the positions where mask is true, u is v everywhere.

    ``y[x < 0] = v`` is exported this way. How many positions there are depends on the data, so this comes before shapes
    are inferred; the form ScatterND(mask, v, data) is left for shape inference, which sees whether mask and data have
    the same shape and makes it a Where.
    """

    name = "masked_scatters"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        producers = {name: node for node in graph.nodes for name in node.outputs}
        used = tensor_names(graph)
        nodes: list[Node] = []
        for node in graph.nodes:
            scatters = node.op == "ScatterND" and not node.domain and "masked" not in node.attrs
            if scatters and node.attrs.get("reduction", "none") == "none":
                mask, value = _mask_of(producers, node.inputs[1]), _single_value(graph, producers, node.inputs[2])
                if mask is not None and value is not None:
                    nodes.append(self.rewrite(graph, node, mask, value, used))
            nodes.append(node)
        modified = len(nodes) > len(graph.nodes)
        graph.nodes = nodes
        if modified:
            RemoveDeadNodes().run(graph, context)  # the positions, which have no shape
        return PassResult(modified)

    def rewrite(self, graph: Graph, node: Node, mask: str, value: str, used: set[str]) -> Node:
        """Returns the node that comes before it."""
        scalar, condition = fresh_name(used, f"{node.output}__value"), fresh_name(used, f"{node.output}__mask")
        graph.constants[scalar] = graph.constants[value].reshape(-1)[:1].reshape(())
        node.inputs, node.attrs = [condition, scalar, node.inputs[0]], {"masked": 1}
        return Node("Cast", f"{node.name}/mask", [mask], [condition], {"to": int(onnx.TensorProto.BOOL)})


def _mask_of(producers: dict[str, Node], positions: str) -> str | None:
    """What ``positions`` [count, rank] are the true elements of."""
    transpose = producers.get(positions)
    while transpose is not None and transpose.op in ("Identity", "Cast"):
        transpose = producers.get(transpose.inputs[0])
    if transpose is None or transpose.op != "Transpose" or transpose.attrs.get("perm", [1, 0]) != [1, 0]:
        return None
    non_zero = producers.get(transpose.inputs[0])
    return non_zero.inputs[0] if non_zero is not None and non_zero.op == "NonZero" else None


def _single_value(graph: Graph, producers: dict[str, Node], name: str) -> str | None:
    """The constant whose only value ``name`` holds in every element."""
    while name not in graph.constants:
        node = producers.get(name)
        if node is None or node.domain or node.op not in _RESHAPING:
            return None
        name = node.inputs[0]
    constant = graph.constants[name]
    return name if constant.size and np.all(constant == constant.reshape(-1)[0]) else None
