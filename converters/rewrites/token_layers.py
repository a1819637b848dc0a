"""Fully connected layers on tokens as convolutions, which exist on bits."""

from __future__ import annotations

from ...errors import UnsupportedModelError
from ..analysis import Analysis, mac_weights, moved_from
from ..chains import Steps
from ..graph import Node
from ..passes.base import NodeBuilder, PassContext, Problems, fresh_name, tensor_names
from ..passes.pipeline import run_passes
from ..values import weight_lattice


def token_layers(analysis: Analysis) -> bool:
    """MatMul(x, W) on tokens x [N, T, C], both of few values, becomes that on a map x [N, 1, T, C] of one row.

    The passes, which run again then, make a convolution of the latter and move the reshaping out of the chains around
    it. Returns whether any was found: the analysis is out of date then. Layers on floats stay, as fully connected ones
    their weights can have a codebook.

    Raises:
        UnsupportedModelError: the passes found a problem in what became of the graph.
    """
    graph = analysis.graph
    used = tensor_names(graph)
    nodes: list[Node] = []
    for node in graph.nodes:
        if not _is_token_layer(analysis, node):
            nodes.append(node)
            continue
        build = NodeBuilder(node, lambda wanted: fresh_name(used, wanted), graph.constants)
        tokens, weight = node.inputs
        batch, count, channels = graph.shapes[tokens]
        row = build.add("Reshape", tokens, shape=(batch, 1, count, channels))
        product = build.add("MatMul", row, weight)
        build.nodes[-1].name = node.name
        graph.add_view(row, tokens)
        graph.add_view(product, node.output)
        build.add("Reshape", product, output=node.output, shape=graph.shapes[node.output])
        nodes += build.nodes
    if len(nodes) == len(graph.nodes):
        return False
    graph.nodes = nodes
    problems = Problems()
    run_passes(graph, PassContext(problems))
    if problems:
        raise UnsupportedModelError(problems.describe(graph.source))
    graph.replace_nodes(graph.nodes)
    return True


def _is_token_layer(analysis: Analysis, node: Node) -> bool:
    graph = analysis.graph
    if node.op != "MatMul" or node.domain or len(graph.shapes[node.output]) != 3:
        return False
    constant = mac_weights(graph, node)
    if isinstance(constant, str) or isinstance(weight_lattice(constant.weight), str):
        return False
    return isinstance(analysis.steps_of(moved_from(graph, constant.activation)), Steps)
