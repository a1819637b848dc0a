"""Keeps the batch axis in front and alone, as attention moves it and puts it together with that of the heads."""

from __future__ import annotations

import numpy as np

from ..graph import Batch, Graph, Node, Shape
from .base import NodeBuilder, PassContext, PassResult, fresh_name, tensor_names
from .shape_rules import ARITHMETIC_OPS, UNARY_OPS, count_elements

# They work on each index of the first axis alone.
_OF_EACH_SAMPLE = ARITHMETIC_OPS | UNARY_OPS | {"MatMul", "Softmax", "Transpose", "Where"}


class BatchFirst:
    """f(Transpose(x)) = Transpose(f(x)) where the Transpose moves the batch axis away and f moves or picks elements.

    Queries, keys and values are such parts of a tensor [3, N, heads, T, D]. Where a Transpose moves the batch axis back
    again, the two become one that does not. And f(Reshape(x)) = Reshape(f(x)) where the Reshape makes [heads * N, T, D]
    of [N, heads, T, D] and f works on each matrix alone.
    """

    name = "batch_first"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        moved = {node.output: node for node in graph.nodes if _moves_batch(graph, node)}
        used = tensor_names(graph)
        nodes: list[Node] = []
        modified = False
        for node in graph.nodes:
            made = None
            if not node.domain and node.inputs and node.output in graph.shapes:
                build = NodeBuilder(node, lambda wanted: fresh_name(used, wanted), graph.constants)
                if node.inputs[0] in moved:
                    made = _behind(graph, build, node, moved[node.inputs[0]])
                elif _has_heads_in_batch(graph, node):
                    made = _apart(graph, build, node)
            modified |= made is not None
            nodes += [node] if made is None else made
        graph.nodes = nodes
        return PassResult(modified)


def _moves_batch(graph: Graph, node: Node) -> bool:
    if node.op != "Transpose" or node.inputs[0] not in graph.shapes or node.output not in graph.shapes:
        return False
    batch, *rest = graph.shapes[node.inputs[0]]
    return node.attrs["perm"][0] != 0 and batch == Batch() and all(isinstance(dim, int) for dim in rest)


def _behind(graph: Graph, build: NodeBuilder, node: Node, transpose: Node) -> list[Node] | None:
    """``node`` on the input of the Transpose in front of it; None where it does more than move or pick elements."""
    source, perm = transpose.inputs[0], transpose.attrs["perm"]
    if node.op == "Transpose":
        return build.end("Transpose", source, perm=[perm[axis] for axis in node.attrs["perm"]])
    if node.op == "Slice":
        attrs = {**node.attrs, "axes": [perm[axis] for axis in node.attrs["axes"]]}
        return build.end("Transpose", build.add("Slice", source, **attrs), perm=perm)
    if node.op == "Gather" and node.inputs[1] in graph.constants and graph.constants[node.inputs[1]].ndim < 2:
        axis = perm[node.attrs["axis"]]
        if graph.constants[node.inputs[1]].ndim == 0:
            perm = [old - (old > axis) for old in perm if old != axis]
        return build.end("Transpose", build.add("Gather", source, node.inputs[1], axis=axis), perm=perm)
    if node.op == "Reshape":
        return _reshaped(build, source, perm, graph.shapes[transpose.output], graph.shapes[node.output])
    return None


def _reshaped(build: NodeBuilder, source: str, perm: list[int], before: Shape, after: Shape) -> list[Node] | None:
    """[A, N, B] as [A', N, B'], which is [N, A, B] as [N, A', B']; or [1, N, k B] as [k N, B]."""
    place = before.index(Batch())
    new_place = next((axis for axis, dim in enumerate(after) if isinstance(dim, Batch)), None)
    if new_place is None or count_elements(before[:place]) != count_elements(after[:new_place]):
        return None
    if new_place != 0 and after[new_place] != Batch():
        return None
    first = build.add("Transpose", source, perm=[0, *(axis for axis in perm if axis != 0)])
    if new_place == 0:
        return build.end("Reshape", first, shape=after)
    reshaped = build.add("Reshape", first, shape=(Batch(), *after[:new_place], *after[new_place + 1 :]))
    back = [*range(1, new_place + 1), 0, *range(new_place + 1, len(after))]
    return build.end("Transpose", reshaped, perm=back)


def _has_heads_in_batch(graph: Graph, node: Node) -> bool:
    """Whether ``node`` works on each of k N matrices alone."""
    batch, *rest = graph.shapes[node.output] or (1,)
    if node.op not in _OF_EACH_SAMPLE or not isinstance(batch, Batch) or batch == Batch():
        return False
    if node.op == "MatMul" and len(rest) < 2:
        return False
    if node.op == "Transpose" and node.attrs["perm"][0] != 0:
        return False
    live = [graph.shapes.get(name, ()) for name in node.inputs if name not in graph.constants]
    return all(shape[:1] == (batch,) and len(shape) == len(rest) + 1 for shape in live)


def _apart(graph: Graph, build: NodeBuilder, node: Node) -> list[Node]:
    """The same on [N, k, ...] instead of [k N, ...]."""
    after, inputs = graph.shapes[node.output], []
    for name in node.inputs:
        if name not in graph.constants:
            batch, *rest = graph.shapes[name]
            assert isinstance(batch, Batch)
            inputs.append(build.add("Reshape", name, shape=(Batch(), batch.factor, *rest)))
        elif graph.constants[name].ndim == len(after):
            inputs.append(build.constant(graph.constants[name][:, np.newaxis]))
        else:
            inputs.append(name)
    attrs = dict(node.attrs)
    if node.op == "Softmax":
        attrs["axis"] += 1
    elif node.op == "Transpose":
        attrs["perm"] = [0, *(axis + 1 for axis in attrs["perm"])]
    result = build.add(node.op, *inputs, **attrs)
    build.nodes[-1].name = node.name
    build.add("Reshape", result, output=node.output, shape=after)
    return build.nodes
