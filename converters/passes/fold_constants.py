"""Computes every node that reads constants only."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..evaluate import evaluate_node
from ..graph import Array, Batch, Graph, Node
from ..result_size import Budget, too_large
from .base import PassContext, PassResult


class FoldConstants:
    """f(c1, c2, ...) = c. Evaluated by the reference evaluator, so folding changes no value.

    A constant that no node reads any more is dropped at once.
    """

    name = "fold_constants"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        if context.budget is None:
            context.budget = Budget(sum(array.nbytes for array in graph.constants.values()))
        readers = Counter(name for node in graph.nodes for name in node.inputs if name)
        readers.update(graph.outputs)
        kept: list[Node] = []
        for place, node in enumerate(graph.nodes):
            if not self.check(graph, node):
                kept.append(node)
                continue
            reason = self.rewrite(graph, node)
            if reason:
                context.problems.add_node(node, f"its constant inputs cannot be folded: {reason}")
                kept.append(node)
                continue
            for name in filter(None, node.inputs):
                readers[name] -= 1
                if readers[name] == 0:
                    context.budget.drop(graph.constants.pop(name).nbytes)
            reason = context.budget.add(sum(graph.constants[name].nbytes for name in node.outputs if name))
            if reason:
                context.problems.add_node(node, reason)
                kept += graph.nodes[place + 1 :]
                break
        modified = len(kept) < len(graph.nodes)
        graph.nodes = kept
        return PassResult(modified)

    def check(self, graph: Graph, node: Node) -> bool:
        names = [name for name in node.inputs if name]
        # An Expand over the batch axis has no value: the batch size is known when the model runs.
        open_shape = any(isinstance(dim, Batch) for dim in node.attrs.get("shape") or ())
        return bool(names) and not open_shape and all(name in graph.constants for name in names)

    def rewrite(self, graph: Graph, node: Node) -> str:
        """Adds the constants; returns why that is impossible, or ""."""
        inputs: list[Array | None] = [graph.constants[name] if name else None for name in node.inputs]
        reason = too_large(node, inputs)
        if reason:
            return reason
        try:
            results = evaluate_node(node, inputs, graph.opset)
        except Exception as error:  # onnx.reference raises whatever numpy raises, and types of its own
            return str(error) or type(error).__name__
        for name, array in zip(node.outputs, results, strict=False):
            if array.dtype.kind == "f" and np.isnan(array).any() and not _has_nan(inputs):
                return "the result has NaN values"
            if name:
                graph.constants[name] = np.ascontiguousarray(array)
                graph.shapes[name], graph.dtypes[name] = array.shape, array.dtype
        return ""


def _has_nan(inputs: list[Array | None]) -> bool:
    return any(array is not None and array.dtype.kind == "f" and bool(np.isnan(array).any()) for array in inputs)
