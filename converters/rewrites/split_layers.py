"""Layers of few values that lie on no lattice, as sums of layers of bits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..analysis import MAC_OPS, Analysis, BitSource, MacWeights, bit_source, mac_weights
from ..graph import Array, Graph, Node, Shape, StepOf
from ..passes.base import fresh_name, tensor_names
from ..value_sets import few_values
from ..values import MAX_LEVELS, TOLERANCE, WeightLattice, distinct_values, weight_lattice
from ..window_ops import conv
from .bases import MAX_BASES, ActivationParts, WeightBases, activation_parts, weight_bases

# Pairs of a weight plane and an activation plane that cost as much as the float layer: 8 to 11 on AVX2, 14 to 20 on
# AVX-512, measured at 64 channels and more; a word of 64 channels costs the same if it is not full.
MAX_PAIRS = 9
_WORD = 64
_MIN_CHANNELS = 32
_FLOAT = np.dtype(np.float32)
_BOOL = np.dtype(bool)


@dataclass
class SplitResult:
    """What became of the layers whose weights and activations have few values.

    Of each layer that is new, by its name: a note for the report, and the bytes of what it replaces (all in the first
    layer of a sum). ``declined``: why a layer was left alone, by its output.
    """

    notes: dict[str, str] = field(default_factory=dict)
    bytes_before: dict[str, int] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)


def split_layers(analysis: Analysis) -> SplitResult:
    """Rewrites float layers of the graph whose weights and activations both have few values.

    With weights ``W = c * 1 + sum_j W_j`` (bases, bases.py) and activations ``A = b + sum_g A_g`` (parts, each a
    comparison of A with a few constants), both per element,

        MAC(A, W) = sum_g sum_j MAC(A_g, W_j) + c * sum_g MAC(A_g, 1) + MAC(b * 1, W).

    Every MAC(A_g, W_j) has its values on a lattice and becomes an integer layer. MAC(A_g, 1) has one output channel,
    the sum of each window (in a grouped convolution it has all, weights c). The last term does not depend on the input:
    a bias, or with padding a constant map, since a tap in the padding reads 0 and not b. Activations that are on a
    lattice already stay as they are; those that are, but behind ops that packed bits do not pass, are one part.

    The layer's name stays with the sum. The float sum of two integer layers is rounded where a single float layer
    would be, in another order: results differ by a few ulp.

    Left alone: layers that would take more than ``MAX_PAIRS`` pairs of planes, or have fewer than 32 input channels a
    group, where the float layer is as fast.
    """
    result = SplitResult()
    graph = analysis.graph
    steps: dict[str, list[str]] = {}
    used = tensor_names(graph)
    instead: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node.op not in MAC_OPS or node.domain or node.output not in analysis.reasons:
            continue
        constant = mac_weights(graph, node)
        if isinstance(constant, str) or not _is_plain(graph, node, constant):
            continue
        if distinct_values(constant.weight[0], 1 << MAX_BASES) is None:
            continue  # many values; the activation need not be searched
        source = bit_source(analysis, constant.activation)
        parts = None if isinstance(source, BitSource) else _parts(analysis, constant.activation)
        if parts is None and not isinstance(source, BitSource):
            continue
        weights = weight_lattice(constant.weight)
        bases = weight_bases(constant.weight) if isinstance(weights, str) else _lattice_bases(constant.weight)
        if bases is None or (isinstance(weights, WeightLattice) and parts is None):
            continue  # many values, or a layer that analysis knows a better reason for
        planes = source.encoding.planes if isinstance(source, BitSource) else 0 if parts is None else parts.planes
        group = int(node.attrs.get("group", 1))
        pairs = planes * (_weight_planes(weights, bases) + (group > 1 and bool(bases.offset.any())))
        channels = constant.weight.shape[1]
        if channels < _MIN_CHANNELS or pairs * -(-channels // _WORD) * _WORD > MAX_PAIRS * channels:
            result.declined[node.output] = (
                f"weights and activations have few values, but as a sum of layers of bits it would take {pairs} pairs "
                f"of planes for {channels} input channels: no faster than float"
            )
            continue
        splitter = _Splitter(graph, node, constant, bases, steps, used)
        notes = splitter.run(parts)
        instead[id(node)] = splitter.nodes
        result.notes |= notes
        before = 4 * constant.weight.size + (constant.bias.nbytes if constant.bias.any() else 0)
        result.bytes_before |= {name: 0 if index else before for index, name in enumerate(notes)}
    if instead:
        graph.replace_nodes([new for node in graph.nodes for new in instead.get(id(node), [node])])
    return result


def _is_plain(graph: Graph, node: Node, constant: MacWeights) -> bool:
    """Layers that integer layers exist for, with finite weights."""
    rank = len(graph.shapes[constant.activation])
    return rank == constant.weight.ndim == (4 if node.op == "Conv" else 2) and bool(np.isfinite(constant.weight).all())


def _lattice_bases(weight: Array) -> WeightBases:
    """The weights as they are, in the form of a sum."""
    outputs = weight.shape[0]
    return WeightBases(np.ones((1, outputs)), weight.astype(np.float64)[None], np.zeros(outputs))


def _weight_planes(weights: WeightLattice | str, bases: WeightBases) -> int:
    return len(weights.planes()[0]) if isinstance(weights, WeightLattice) else len(bases.scales)


def _parts(analysis: Analysis, tensor: str) -> ActivationParts | None:
    values = few_values(analysis.graph, tensor, analysis.value_steps_of)
    distinct = None if values is None else distinct_values(values, MAX_LEVELS)
    return None if distinct is None else activation_parts(distinct)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


class _Splitter:
    """The new nodes of one layer.

    ``steps`` has the parts that earlier layers made of an activation, by its name, ``used`` the names of all tensors.
    """

    def __init__(
        self,
        graph: Graph,
        node: Node,
        constant: MacWeights,
        bases: WeightBases,
        steps: dict[str, list[str]],
        used: set[str],
    ) -> None:
        self._graph = graph
        self._node = node
        self._name = node.name or node.output
        self._constant = constant
        self._bases = bases
        self._steps = steps
        self._used = used
        self.nodes: list[Node] = []
        self._is_conv = node.op == "Conv"

    def run(self, parts: ActivationParts | None) -> dict[str, str]:
        """Makes ``nodes``, in order; returns a note per new layer."""
        graph, node, bases = self._graph, self._node, self._bases
        activation = self._constant.activation
        bias, border = self._constant_term(0.0 if parts is None else parts.offset)
        terms = [(activation, 1.0)]
        if parts is not None:
            if activation not in self._steps:
                self._steps[activation] = [self._step(parts.values, part.levels) for part in parts.parts]
            terms = list(zip(self._steps[activation], (part.scale for part in parts.parts), strict=True))
        column = (-1,) + (1,) * (self._constant.weight.ndim - 1)
        weights = [scale.reshape(column) * signs for scale, signs in zip(bases.scales, bases.signs, strict=True)]
        has_offset = bool(bases.offset.any())
        if has_offset and self._group() > 1:
            weights.append(np.broadcast_to(bases.offset.reshape(column), weights[0].shape))
        layers: list[Node] = []
        total, windows = "", ""
        for tensor, scale in terms:
            for weight in weights:
                layers.append(self._mac(tensor, weight * scale, None if total else bias))
                total = self._sum(total, layers[-1].output)
            if has_offset and self._group() == 1:
                layers.append(self._mac(tensor, np.full((1, *weights[0].shape[1:]), scale), None))
                windows = self._sum(windows, layers[-1].output)
        if windows:
            # One offset for all channels is a scalar: the product keeps the one channel, and the sum broadcasts it.
            same = np.ptp(bases.offset) <= TOLERANCE * np.max(np.abs(bases.offset))
            offset = bases.offset[:1] if same else bases.offset
            factor = self._add_constant(offset.reshape((-1, 1, 1) if self._is_conv else (-1,)))
            shape = graph.shapes[windows] if same else None
            total = self._op("Add", [total, self._op("Mul", [windows, factor], shape=shape).output]).output
        if border is not None:
            total = self._op("Add", [total, self._add_constant(border)]).output
        last = self.nodes[-1]
        del graph.shapes[last.output], graph.dtypes[last.output]
        last.outputs, last.name = [node.output], node.name
        return self._notes(layers, parts, has_offset, border is not None)

    def _notes(
        self, layers: list[Node], parts: ActivationParts | None, has_offset: bool, has_border: bool
    ) -> dict[str, str]:
        first, *others = (layer.name for layer in layers)
        texts = []
        if len(self._bases.scales) > 1 or has_offset:
            texts.append(
                _count(len(self._bases.scales), "weight basis", "weight bases") + " and an offset" * has_offset
            )
        if parts is not None:
            texts.append(
                _count(len(parts.parts), "activation step", "activation steps") + " and an offset" * bool(parts.offset)
            )
        text = " x ".join(texts) + ", constant map for the padding" * has_border
        return {
            first: f"sum '{self._name}' of {_count(len(layers), 'layer', 'layers')} of bits: {text}",
            **dict.fromkeys(others, f"part of the sum '{self._name}'"),
        }

    def _group(self) -> int:
        return int(self._node.attrs.get("group", 1))

    def _constant_term(self, value: float) -> tuple[Array | None, Array | None]:
        """(bias, map) of MAC(value * 1, W) and the layer's own bias; a map where padding makes the border differ."""
        weight, bias = self._constant.weight.astype(np.float64), self._constant.bias.astype(np.float64)
        if value and not self._is_conv:
            bias = bias + value * weight.sum(axis=1)
        elif value:
            shape = self._graph.shapes[self._constant.activation]
            filled = np.full((1, *(dim for dim in shape[1:] if isinstance(dim, int))), value)
            border = conv(filled, weight, bias, **self._node.attrs)
            if np.any(border != border[:, :, :1, :1]):
                return None, border.astype(np.float32)
            bias = border[0, :, 0, 0]
        return (bias.astype(np.float32) if bias.any() else None), None

    def _step(self, values: Array, levels: tuple[int, ...]) -> str:
        """``levels[k]`` where the activation is ``values[k]``: Where above each middle between two values."""
        activation = self._constant.activation
        shape = self._graph.shapes[activation]
        rises = [k for k in range(1, len(levels)) if levels[k] != levels[k - 1]]
        middles = [float(np.float32((values[k - 1] + values[k]) / 2)) for k in rises]
        result = self._add_constant(np.asarray(levels[0]))
        for k, middle in zip(rises, middles, strict=True):
            above = self._op("GreaterOrEqual", [activation, self._add_constant(np.asarray(middle))], _BOOL, shape)
            level = self._add_constant(np.asarray(levels[k]))
            result = self._op("Where", [above.output, level, result], shape=shape).output
        reached = (levels[0], *(levels[k] for k in rises))
        self._graph.leveled[result] = StepOf(activation, tuple(middles), reached)
        return result

    def _mac(self, tensor: str, weight: Array, bias: Array | None) -> Node:
        """A layer like the original with other weights [O', ...], O' = O or 1."""
        attrs = dict(self._node.attrs)
        if not self._is_conv:
            attrs = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
        inputs = [tensor, self._add_constant(weight), "" if bias is None else self._add_constant(bias)]
        dims = self._graph.shapes[self._node.output]
        shape = (dims[0], weight.shape[0], *dims[2:])
        return self._op("Conv" if self._is_conv else "Gemm", inputs, shape=shape, attrs=attrs)

    def _sum(self, left: str, right: str) -> str:
        return self._op("Add", [left, right], shape=self._graph.shapes[right]).output if left else right

    def _op(
        self,
        kind: str,
        inputs: list[str],
        dtype: np.dtype[Any] = _FLOAT,
        shape: Shape | None = None,
        attrs: dict[str, Any] | None = None,
    ) -> Node:
        """A new node; its output has the shape of the layer's unless given."""
        graph = self._graph
        output = fresh_name(self._used, f"{self._node.output}/{kind.lower()}")
        graph.shapes[output] = graph.shapes[self._node.output] if shape is None else shape
        graph.dtypes[output] = dtype
        node = Node(kind, f"{self._name}/{len(self.nodes) + 1}", inputs, [output], attrs or {})
        self.nodes.append(node)
        return node

    def _add_constant(self, value: Array) -> str:
        graph = self._graph
        name = fresh_name(self._used, f"{self._node.output}/constant")
        graph.constants[name] = np.ascontiguousarray(value, np.float32)
        graph.shapes[name], graph.dtypes[name] = value.shape, _FLOAT
        return name
