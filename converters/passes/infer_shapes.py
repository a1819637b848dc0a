"""Gives every tensor a shape and a dtype, and brings every node into its final form."""

from __future__ import annotations

import numpy as np

from ..graph import Array, Graph, Node, Shape
from .base import PassContext, PassResult, RuleError
from .shape_rules import RULES, RuleInputs, count_elements, shape_text
from .shape_values import as_value, compute_value, is_known

MAX_ELEMENTS = 1 << 31  # of one sample, in a .tacbin


class InferShapes:
    """One sweep in topological order. A tensor whose value follows from shapes alone becomes a constant.

    A node behind one that failed is passed over: its own shape is unknown, and the fault is named already.
    """

    name = "infer_shapes"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        shapes = {item.name: item.shape for item in graph.inputs}
        dtypes = {item.name: item.dtype for item in graph.inputs}
        values: dict[str, Array] = {}
        for name, constant in graph.constants.items():
            shapes[name], dtypes[name] = constant.shape, constant.dtype
            value = as_value(constant)
            if value is not None:
                values[name] = value
        modified = False
        kept: list[Node] = []
        for node in graph.nodes:
            kept.append(node)
            if not all(name in shapes for name in node.inputs if name):
                continue
            rule = RULES.get((node.domain, node.op))
            if rule is None:
                context.problems.add_node(node, "this operator is not supported")
                continue
            value = compute_value(
                node, [shapes.get(name) for name in node.inputs], [values.get(name) for name in node.inputs]
            )
            before = (node.op, list(node.inputs), dict(node.attrs))
            inputs = RuleInputs(
                node,
                [shapes.get(name) for name in node.inputs],
                [dtypes.get(name) for name in node.inputs],
                [graph.constants.get(name) for name in node.inputs],
                [values.get(name) for name in node.inputs],
                context.literal_batch,
            )
            try:
                results = rule(inputs)
                for shape, _ in results:
                    _check_size(shape)
            except RuleError as error:
                context.problems.add_node(node, str(error))
                continue
            modified |= (node.op, node.inputs) != before[:2] or node.attrs.keys() != before[2].keys()
            for name, (shape, dtype) in zip(node.outputs, results, strict=True):
                if name:
                    shapes[name], dtypes[name] = shape, dtype
            if value is not None:
                values[node.output] = value
                if is_known(value):
                    graph.constants[node.output] = np.asarray(value.tolist(), dtypes[node.output])
                    kept.pop()
                    modified = True
        graph.nodes = kept
        graph.shapes, graph.dtypes = shapes, dtypes
        return PassResult(modified)


def _check_size(shape: Shape) -> None:
    elements, _ = count_elements(shape)
    if elements > MAX_ELEMENTS:
        raise RuleError(f"its result {shape_text(shape)} has {elements} elements a sample, at most {MAX_ELEMENTS} fit")
    if elements == 0 and len(shape) > 1:  # an empty list of axes or sizes is none of its data
        raise RuleError(f"its result {shape_text(shape)} is empty")
