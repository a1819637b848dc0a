"""Matrix products on maps as the convolutions that they are."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import Batch, Graph, Node
from .base import NodeBuilder, PassContext, PassResult, fresh_name, tensor_names

_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


class LoweredConvolutions:
    """MatMul(Im2Col(x), W) and MatMul(x, W) on maps [N, H, W, C], with a constant W [K, O], are convolutions of x.

    An Im2Col row has its window's values in the order (row, column, channel), so W [kh * kw * C, O] holds the filters
    [O, C, kh, kw] in another order; without Im2Col the filters are 1 x 1. Comes behind shape inference; an Im2Col that
    feeds anything else stays and is refused in lowering.
    """

    name = "lowered_convolutions"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        unfolded = {node.output: node for node in graph.nodes if node.op == "Im2Col"}
        nodes: list[Node] = []
        used = tensor_names(graph)
        for node in graph.nodes:
            if not self.check(graph, node):
                nodes.append(node)
                continue
            build = NodeBuilder(node, lambda wanted: fresh_name(used, wanted), graph.constants)
            nodes += self.rewrite(graph, build, node, unfolded.get(node.inputs[0]))
        modified = len(nodes) > len(graph.nodes)
        graph.nodes = nodes
        return PassResult(modified)

    def check(self, graph: Graph, node: Node) -> bool:
        if node.op != "MatMul" or node.domain or node.inputs[0] not in graph.shapes:
            return False
        weight, shape = graph.constants.get(node.inputs[1]), graph.shapes[node.inputs[0]]
        is_map = len(shape) == 4 and shape[0] == Batch() and all(isinstance(dim, int) for dim in shape[1:])
        return weight is not None and weight.ndim == 2 and is_map

    def rewrite(self, graph: Graph, build: NodeBuilder, node: Node, unfold: Node | None) -> list[Node]:
        attrs: dict[str, Any] = {"kernel_shape": [1, 1], "strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4}
        source = node.inputs[0]
        if unfold is not None:
            attrs |= {name: unfold.attrs[name] for name in ("kernel_shape", "strides", "dilations", "pads")}
            source = unfold.inputs[0]
        weight = graph.constants[node.inputs[1]]
        height, width = attrs["kernel_shape"]
        filters = weight.reshape(height, width, -1, weight.shape[1]).transpose(3, 2, 0, 1)
        map_ = build.add("Transpose", source, perm=_TO_CHANNELS_FIRST)
        batch, rows, columns, channels = graph.shapes[source]
        shapes = {map_: (batch, channels, rows, columns)}
        sums = build.add("Conv", map_, build.constant(np.ascontiguousarray(filters)), "", group=1, **attrs)
        build.nodes[-1].name = node.name
        batch, rows, columns, outputs = graph.shapes[node.output]
        shapes[sums] = (batch, outputs, rows, columns)
        for each in build.nodes:
            graph.shapes[each.output], graph.dtypes[each.output] = shapes[each.output], graph.dtypes[source]
            for name in each.inputs:
                if name in graph.constants:
                    graph.shapes[name], graph.dtypes[name] = filters.shape, filters.dtype
        build.add("Transpose", sums, output=node.output, perm=_TO_CHANNELS_LAST)
        return build.nodes
