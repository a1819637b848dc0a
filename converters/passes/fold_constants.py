"""Computes every node that reads constants only."""

from __future__ import annotations

import numpy as np

from ..evaluate import evaluate_node
from ..graph import Array, Batch, Graph, Node
from .base import PassContext, PassResult

# A folded tensor may not be larger: a ConstantOfShape or Expand of a few bytes could ask for any amount of memory.
MAX_FOLDED_BYTES = 1 << 28


class FoldConstants:
    """f(c1, c2, ...) = c. Evaluated by the reference evaluator, so folding changes no value."""

    name = "fold_constants"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        kept: list[Node] = []
        for node in graph.nodes:
            if not self.check(graph, node):
                kept.append(node)
                continue
            reason = self.rewrite(graph, node)
            if reason:
                context.problems.add_node(node, f"its constant inputs cannot be folded: {reason}")
                kept.append(node)
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
        size = _expected_bytes(node, inputs)
        if size > MAX_FOLDED_BYTES:
            return f"the result would have {size} bytes, at most {MAX_FOLDED_BYTES} are allowed"
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


def _expected_bytes(node: Node, inputs: list[Array | None]) -> int:
    """An estimate for the operators whose result is not bounded by the size of their inputs."""

    def product(dims: Array | None) -> int:
        count = 1
        for dim in [] if dims is None else dims.ravel():
            count *= max(int(dim), 1)
        return count

    first = inputs[0]
    if node.op == "ConstantOfShape":
        return 8 * product(first)
    if node.op == "Expand" and first is not None:
        return first.size * first.itemsize * product(inputs[1] if len(inputs) > 1 else None)
    if node.op == "Tile" and first is not None:
        return first.size * first.itemsize * product(inputs[1])
    if node.op == "Pad" and first is not None and inputs[1] is not None and "pads" not in node.attrs:
        pads = [max(int(pad), 0) for pad in inputs[1].ravel()]
        count, axes = 1, len(pads) // 2
        for axis, size in enumerate(first.shape[-axes:] if axes else ()):
            count *= size + pads[axis] + pads[axes + axis]
        return count * first.itemsize
    if node.op == "Range" and all(value is not None and value.size == 1 for value in inputs):
        start, limit, step = (float(value.ravel()[0]) for value in inputs if value is not None)
        return int(8 * abs((limit - start) / step)) if step else 0
    arrays = [value for value in inputs if value is not None]
    if node.op in ("MatMul", "Gemm"):
        return arrays[0].itemsize * _product_elements(node, arrays[0].shape, arrays[1].shape)
    try:
        return 8 * int(np.prod(np.broadcast_shapes(*(value.shape for value in arrays)), dtype=object))
    except ValueError:
        return 0


def _product_elements(node: Node, a: tuple[int, ...], b: tuple[int, ...]) -> int:
    rows = a[::-1] if node.attrs.get("transA") else a
    columns = b[::-1] if node.attrs.get("transB") else b
    count = 1
    for dim in (*rows[:-1], *columns[:-2], columns[-1] if len(columns) > 1 else 1):
        count *= dim
    return count
