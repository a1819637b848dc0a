"""Layers of 8-bit weights and activations: float layers, but on the integers themselves, so that sums are exact."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..analysis import MAC_OPS, Analysis, IntegerSums, mac_weights
from ..graph import Array, Graph, Node
from ..integers import integer_limits
from ..passes.base import fresh_name, tensor_names
from ..qonnx_ops import integer_range

MAX_LEVEL = 255
_ROUNDING = 4e-7  # of the largest weight of a row: a product of scale and integer in float32, folded once more
_FLOAT = np.dtype(np.float32)
_COMMUTING = frozenset({"MaxPool", "Reshape", "Transpose", "Relu"})


def integer_sums(analysis: Analysis) -> dict[str, IntegerSums]:
    """Takes scales out of float layers in the graph; returns what is known of each layer on integers, by its output.

    With w = s_w[o] * n and x = s_x * q, n and q integers of up to 8 bits,

        sum w x + b = s_w[o] s_x * sum n q + b

    and the sum on the right is exact in float32, in any order, while it stays below 2^24: it is the accumulator of an
    integer kernel, and what ONNX Runtime computes of a QDQ file. The float sum on the left is rounded at each step, so
    that what is quantized behind it falls on one side or the other as the order has it.

    x comes from DequantizeLinear or Quant with one scale, through nodes that a scale passes. Layers that are on
    integers already (QLinearConv, ConvInteger) only get their note.
    """
    integers = _Integers(analysis.graph)
    found: dict[str, IntegerSums] = {}
    nodes: list[Node] = []
    for node in analysis.graph.nodes:
        layer = None
        if node.op in MAC_OPS and not node.domain and node.output in analysis.reasons:
            layer = integers.layer(node)
        if layer is None:
            nodes.append(node)
            continue
        new, output, sums = layer
        nodes += new
        found[output] = sums
    if len(nodes) > len(analysis.graph.nodes):
        analysis.graph.replace_nodes(nodes)
    return found


class _Integers:
    """The nodes that make the integers of activations, each made once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._used = tensor_names(graph)
        self._made: dict[str, str] = {}
        self._nodes: list[Node] = []

    def layer(self, node: Node) -> tuple[list[Node], str, IntegerSums] | None:
        """(the nodes in place of ``node``, the tensor of the sums among them, theirs); None if it stays as it is."""
        graph = self._graph
        constant = mac_weights(graph, node)
        if isinstance(constant, str):
            return None
        found = self._find(constant.activation)
        rows = None if found is None else _integer_rows(constant.weight)
        if found is None or rows is None:
            return None
        (scale, top), (row_scales, levels) = found, rows
        bound = int(np.abs(levels).reshape(len(levels), -1).sum(axis=1).max()) * top
        known = IntegerSums(top, bound)
        if scale == 1.0 and np.all(row_scales == 1.0):
            return [node], node.output, known
        self._nodes = []
        activation = constant.activation if scale == 1.0 else self._make(constant.activation)
        sums = fresh_name(self._used, f"{node.output}__sums")
        weight = levels.astype(np.float32)
        attrs = dict(node.attrs)
        if node.op == "MatMul":
            weight = np.ascontiguousarray(weight.T)
        elif node.op == "Gemm":
            attrs = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
        inputs = [activation, self._constant(f"{node.output}__levels", weight)] + [""] * (node.op != "MatMul")
        self._add(Node(node.op, node.name, inputs, [sums], attrs), node.output)
        column = (-1, 1, 1) if node.op == "Conv" else (-1,)
        factor = (row_scales * scale).astype(np.float32)
        steps = [("Mul", factor)] + ([("Add", constant.bias)] if constant.bias.any() else [])
        tensor = sums
        for op, value in steps:
            value = value[:1] if np.all(value == value[0]) else value
            operand = self._constant(f"{node.output}__{op.lower()}", value.reshape(column))
            output = node.output if op == steps[-1][0] else fresh_name(self._used, f"{node.output}__scaled")
            self._add(Node(op, f"{node.name}/{op.lower()}", [tensor, operand], [output]), node.output)
            tensor = output
        return self._nodes, sums, known

    def _add(self, node: Node, like: str) -> str:
        self._nodes.append(node)
        self._graph.shapes[node.output], self._graph.dtypes[node.output] = self._graph.shapes[like], _FLOAT
        return node.output

    def _constant(self, wanted: str, value: Array) -> str:
        graph, name = self._graph, fresh_name(self._used, wanted)
        graph.constants[name], graph.shapes[name], graph.dtypes[name] = value, value.shape, value.dtype
        return name

    def _scalar(self, name: str) -> float | None:
        constant = self._graph.constants.get(name)
        return float(constant.reshape(())) if constant is not None and constant.size == 1 else None

    def _find(self, tensor: str) -> tuple[float, int] | None:
        """(scale, largest |q|) of an activation ``scale * q``; None if it is none of up to 8 bits."""
        graph = self._graph
        node = graph.producer(tensor)
        while node is not None and _is_move(graph, node):
            node = graph.producer(node.inputs[0])
        if node is None:
            return None
        if node.op == "Quant":
            scale, zero, bits = (self._scalar(name) for name in node.inputs[1:4])
            if scale is None or zero is None or bits is None or not 2 <= bits <= 8:
                return None
            low, high = integer_range(np.asarray(bits), bool(node.attrs["signed"]), bool(node.attrs["narrow"]))
            return _checked(scale, float(low) - zero, float(high) - zero)
        codes, scale, zero = node.inputs[0], None, 0.0
        if node.op == "DequantizeLinear":
            scale = self._scalar(node.inputs[1])
            zero = self._scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else 0.0
        elif node.op == "Sub":
            cast = graph.producer(codes)
            if cast is None or cast.op != "Cast":
                return None
            codes, scale, zero = cast.inputs[0], 1.0, self._scalar(node.inputs[1])
        elif node.op == "Cast":
            scale = 1.0
        limits = integer_limits(graph.dtypes[codes])
        if scale is None or zero is None or limits is None:
            return None
        return _checked(scale, limits[0] - zero, limits[1] - zero)

    def _make(self, tensor: str) -> str:
        """The tensor that holds q, for an activation that :meth:`_find` has found with a scale other than 1."""
        graph = self._graph
        moves: list[Node] = []
        node = graph.producers[tensor]
        while node.output not in self._made and _is_move(graph, node):
            moves.append(node)
            node = graph.producers[node.inputs[0]]
        if node.output not in self._made:
            self._made[node.output] = self._unscaled(node)
        made = self._made[node.output]
        for move in reversed(moves):
            made = self._made[move.output] = self._copy(move, [made, *move.inputs[1:]])
        return made

    def _unscaled(self, node: Node) -> str:
        """A DequantizeLinear or Quant with the scale 1."""
        inputs = list(node.inputs)
        if node.op == "Quant":
            ratio = fresh_name(self._used, f"{node.output}__ratio")
            inputs[0] = self._add(Node("Div", f"{node.name}/ratio", inputs[:2], [ratio]), node.output)
        inputs[1] = self._constant(f"{node.output}__one", np.ones((), np.float32))
        return self._copy(node, inputs)

    def _copy(self, node: Node, inputs: list[str]) -> str:
        output = fresh_name(self._used, f"{node.output}__integers")
        attrs: dict[str, Any] = dict(node.attrs)
        return self._add(Node(node.op, f"{node.name}/integers", inputs, [output], attrs, node.domain), node.output)


def _is_move(graph: Graph, node: Node) -> bool:
    """Whether f(s * q) = s * f(q) for s > 0, as for a Pad with zeros."""
    if node.op != "Pad":
        return node.op in _COMMUTING
    if node.attrs["mode"] != "constant":
        return False
    value = node.inputs[1] if len(node.inputs) > 1 else ""
    return not value or (value in graph.constants and not graph.constants[value].any())


def _checked(scale: float, low: float, high: float) -> tuple[float, int] | None:
    top = max(abs(low), abs(high))
    return (scale, int(top)) if scale > 0 and top <= MAX_LEVEL and top == int(top) else None


def _integer_rows(weight: Array) -> tuple[Array, Array] | None:
    """(scale float64 [O], integers of up to 8 bits [O, ...]) with ``scale * integers`` the weight; None without."""
    rows = np.asarray(weight, np.float64).reshape(weight.shape[0], -1)
    top = np.max(np.abs(rows), axis=1)
    if not np.all(np.isfinite(top)):
        return None
    safe = np.where(top > 0, top, 1.0)
    scales, levels = np.ones(len(rows)), np.zeros(rows.shape)
    left = top > 0
    for largest in range(1, MAX_LEVEL + 1):
        if not left.any():
            break
        # A few weights tell most candidates off.
        places = np.flatnonzero(left)
        for columns in (slice(0, 16), slice(None)):
            scaled = rows[places, columns] * (largest / safe[places])[:, None]
            fits = np.all(np.abs(scaled - np.rint(scaled)) <= _ROUNDING * largest, axis=1)
            places, scaled = places[fits], scaled[fits]
        scales[places], levels[places] = safe[places] / largest, np.rint(scaled)
        left[places] = False
    return None if left.any() else (scales, levels.reshape(weight.shape))
