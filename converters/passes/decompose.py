"""Writes operators as several simpler ones, once shapes are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..chains import ELEMENTWISE, POINTWISE
from ..graph import Array, Batch, Graph, Node, Shape
from ..qonnx_ops import threshold_axis
from ..resize_ops import taps
from .base import PassContext, PassResult, RuleError, fresh_name, tensor_names
from .shape_rules import shape_text

# Positions along an axis are constants of the model: a few bytes of a file could ask for any amount of memory.
_MAX_SELECTED = 1 << 20


class Decompose:
    """Normalisations, resizing, depth and space, mirrored padding, transposed and one-dimensional convolutions.

    Each rule gives the algebra in its docstring. The results are operators that the analysis and the lowering know, so
    that a sign in front of them is still seen.
    """

    name = "decompose"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        used = tensor_names(graph)
        producers = {name: node for node in graph.nodes for name in node.outputs}
        nodes: list[Node] = []
        modified = False
        for node in graph.nodes:
            rule = _RULES.get(node.op) if node.output in graph.shapes else None
            maker = _Maker(graph, node, used, producers)
            try:
                done = rule is not None and rule(maker)
            except RuleError as error:
                context.problems.add_node(node, str(error))
                done = False
            if done:
                maker.nodes[-1].outputs = [node.output]
                nodes += maker.nodes
                modified = True
            else:
                nodes.append(node)
        graph.nodes = nodes
        return PassResult(modified)


class _Maker:
    """The nodes that replace ``node``; the last one gets its output."""

    def __init__(self, graph: Graph, node: Node, used: set[str], producers: dict[str, Node]) -> None:
        self.graph = graph
        self.producers = producers
        self.node = node
        self.used = used
        self.nodes: list[Node] = []

    def op(self, kind: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        output = fresh_name(self.used, f"{self.node.output}__{kind.lower()}")
        name = f"{self.node.name}/{kind.lower()}{len(self.nodes)}"
        self.nodes.append(Node(kind, name, list(inputs), [output], attrs, domain))
        return output

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = fresh_name(self.used, f"{self.node.output}__constant")
        self.graph.constants[name] = np.asarray(value, dtype)
        return name

    def flattened_axis(self, name: str) -> int | None:
        """The axis of size 1 that a Reshape to ``name``, of rank 3, took out."""
        node = self.producers.get(name)
        if node is None or node.op != "Reshape" or node.inputs[0] not in self.graph.shapes:
            return None
        return _lift_axis(self.graph.shapes[name], self.graph.shapes[node.inputs[0]])

    def shape(self, index: int = 0) -> Shape:
        return self.graph.shapes[self.node.inputs[index]]

    def weights(self, index: int, what: str) -> Array:
        name = self.node.inputs[index]
        if name not in self.graph.constants:
            raise RuleError(f"its {what} '{name}' is computed at run time")
        return self.graph.constants[name]


def _normalised(maker: _Maker, x: str, axes: list[int]) -> str:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon), means over ``axes``."""
    mean = maker.op("ReduceMean", x, axes=axes, keepdims=1)
    centred = maker.op("Sub", x, mean)
    variance = maker.op("ReduceMean", maker.op("Mul", centred, centred), axes=axes, keepdims=1)
    epsilon = maker.constant(maker.node.attrs["epsilon"])
    return maker.op("Div", centred, maker.op("Sqrt", maker.op("Add", variance, epsilon)))


def _layer_normalization(maker: _Maker) -> bool:
    """Normalised over the last axes, from ``axis`` on."""
    node = maker.node
    axes = list(range(node.attrs["axis"], len(maker.shape())))
    y = maker.op("Mul", _normalised(maker, node.inputs[0], axes), node.inputs[1])
    if len(node.inputs) > 2 and node.inputs[2]:
        maker.op("Add", y, node.inputs[2])
    return True


def _instance_normalization(maker: _Maker) -> bool:
    """Normalised over the axes behind the channels, each channel with a scale and a bias."""
    rank = len(maker.shape())
    y = _normalised(maker, maker.node.inputs[0], list(range(2, rank)))
    column = (-1, *(1,) * (rank - 2))
    scale, bias = (maker.constant(maker.weights(i, what).reshape(column)) for i, what in ((1, "scale"), (2, "bias")))
    maker.op("Add", maker.op("Mul", y, scale), bias)
    return True


def _depth_to_space(maker: _Maker) -> bool:
    """[N, C b b, H, W] as [N, C, H b, W b]: a transpose of the axes that the sizes are split into."""
    batch, _, height, width = maker.shape()
    b, mode = maker.node.attrs["blocksize"], maker.node.attrs["mode"]
    out = maker.graph.shapes[maker.node.output]
    split: Shape = (batch, b, b, out[1], height, width) if mode == "DCR" else (batch, out[1], b, b, height, width)
    perm = [0, 3, 4, 1, 5, 2] if mode == "DCR" else [0, 1, 4, 2, 5, 3]
    parts = maker.op("Reshape", maker.node.inputs[0], shape=split)
    maker.op("Reshape", maker.op("Transpose", parts, perm=perm), shape=out)
    return True


def _space_to_depth(maker: _Maker) -> bool:
    """[N, C, H b, W b] as [N, b b C, H, W], or as [N, C b b, H, W] where mode is CRD."""
    batch, depth = maker.shape()[:2]
    out = maker.graph.shapes[maker.node.output]
    b = maker.node.attrs["blocksize"]
    parts = maker.op("Reshape", maker.node.inputs[0], shape=(batch, depth, out[2], b, out[3], b))
    perm = [0, 1, 3, 5, 2, 4] if maker.node.attrs.get("mode") == "CRD" else [0, 3, 5, 1, 2, 4]
    maker.op("Reshape", maker.op("Transpose", parts, perm=perm), shape=out)
    return True


def _require_length(length: int) -> None:
    if length > _MAX_SELECTED:
        raise RuleError(f"an axis of {length} elements, at most {_MAX_SELECTED} are supported")


def _resize(maker: _Maker) -> bool:
    """Per axis the sum of one or two selections, each times a constant."""
    node, x = maker.node, maker.node.inputs[0]
    before, after = maker.shape(), maker.graph.shapes[node.output]
    for axis, scale in enumerate(node.attrs["scales"]):
        size, new_size = before[axis], after[axis]
        if isinstance(size, Batch) or isinstance(new_size, Batch) or (size == new_size and scale == 1.0):
            continue
        _require_length(new_size)
        terms = taps(node.attrs, size, new_size, scale)
        column = (-1, *(1,) * (len(before) - 1 - axis))
        parts = [maker.op("Gather", x, maker.constant(index, np.int64), axis=axis) for index, _ in terms]
        if len(terms) == 1:
            x = parts[0]
            continue
        scaled = [
            maker.op("Mul", part, maker.constant(weight.reshape(column)))
            for part, (_, weight) in zip(parts, terms, strict=True)
        ]
        x = maker.op("Add", *scaled)
    if not maker.nodes:
        maker.op("Identity", x)
    return True


def _mirrored_pad(maker: _Maker) -> bool:
    """A selection along each padded axis: position -1 is position 1 (reflect), 0 (edge) or the last one (wrap)."""
    node, shape, x = maker.node, maker.shape(), maker.node.inputs[0]
    if node.attrs["mode"] == "constant":
        return False
    rank = len(shape)
    for axis, size in enumerate(shape):
        begin, end = node.attrs["pads"][axis], node.attrs["pads"][rank + axis]
        if not begin and not end:
            continue
        assert isinstance(size, int)  # the shape rule refuses to pad the batch
        _require_length(size + max(begin, 0) + max(end, 0))
        kept = np.arange(max(-begin, 0), size - max(-end, 0))
        index = np.pad(kept, (max(begin, 0), max(end, 0)), mode=node.attrs["mode"])
        x = maker.op("Gather", x, maker.constant(index, np.int64), axis=axis)
    if not maker.nodes:
        maker.op("Identity", x)
    return True


def _expand(maker: _Maker) -> bool:
    """A selection of position 0, repeated, along each axis that grows."""
    before, after, x = maker.shape(), maker.graph.shapes[maker.node.output], maker.node.inputs[0]
    if x in maker.graph.constants:
        return False
    if len(before) != len(after) or before[0] != after[0]:
        raise RuleError(
            f"it expands {shape_text(before)} to {shape_text(after)}; only axes behind the batch axis can grow"
        )
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            assert isinstance(new, int)  # the batch axis is the first
            _require_length(new)
            x = maker.op("Gather", x, maker.constant(np.zeros(new), np.int64), axis=axis)
    if not maker.nodes:
        maker.op("Identity", x)
    return True


def _conv_transpose(maker: _Maker) -> bool:
    """A convolution, with the kernel turned around, of the input with ``stride - 1`` zeros behind each element."""
    node, attrs, group = maker.node, maker.node.attrs, maker.node.attrs["group"]
    weight = maker.weights(1, "weight")
    batch, channels, height, width = maker.shape()
    strides, kernel, dilations = attrs["strides"], attrs["kernel_shape"], attrs["dilations"]
    sizes = [height, width]
    x = node.inputs[0]
    if strides != [1, 1]:
        sizes = [size * stride for size, stride in zip(sizes, strides, strict=True)]
        apart = maker.op("Reshape", x, shape=(batch, channels, height, 1, width, 1))
        pads = [0] * 9 + [strides[0] - 1, 0, strides[1] - 1]
        stuffed: Shape = (batch, channels, *sizes)
        x = maker.op("Reshape", maker.op("Pad", apart, "", pads=pads, mode="constant"), shape=stuffed)
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    begins = [reach[i] - attrs["pads"][i] for i in range(2)]
    ends = [reach[i] - attrs["pads"][2 + i] + attrs["output_padding"][i] - (strides[i] - 1) for i in range(2)]
    if min(begins + ends) < 0:
        starts = [max(-begin, 0) for begin in begins]
        stops = [size - max(-end, 0) for size, end in zip(sizes, ends, strict=True)]
        x = maker.op("Slice", x, axes=[2, 3], starts=starts, ends=stops, steps=[1, 1])
    outputs = weight.shape[1]
    turned = weight.reshape(group, -1, *weight.shape[1:]).swapaxes(1, 2)[..., ::-1, ::-1]
    turned = turned.reshape(group * outputs, -1, *kernel)
    conv = {"kernel_shape": kernel, "strides": [1, 1], "dilations": dilations, "group": group}
    pads = [max(pad, 0) for pad in (*begins, *ends)]
    bias = node.inputs[2] if len(node.inputs) > 2 else ""
    maker.op("Conv", x, maker.constant(turned, weight.dtype), bias, pads=pads, **conv)
    return True


def _mat_mul(maker: _Maker) -> bool:
    """C x = (x^T C^T)^T for a constant matrix C: a layer with weights. Other products have their leading axes expanded.

    A constant vector is a matrix of one row or column.
    """
    node, graph = maker.node, maker.graph
    after = graph.shapes[node.output]
    left, right = (_constant_matrix(maker, index) for index in range(2))
    rank = len(maker.shape(1))
    if left is not None and len(maker.shape(0)) <= rank > 2:
        swapped = [*range(rank - 2), rank - 1, rank - 2]
        turned = maker.op("Transpose", node.inputs[1], perm=swapped)
        product = maker.op("MatMul", turned, maker.constant(left.T, left.dtype))
        maker.nodes[-1].name = node.name
        columns = maker.op("Transpose", product, perm=swapped)
        if graph.constants[node.inputs[0]].ndim == 1:
            maker.op("Reshape", columns, shape=after)
        return True
    if right is not None:
        before = graph.constants[node.inputs[1]]
        if before.ndim == 2 or before.ndim > len(maker.shape(0)):
            return False
        product = maker.op("MatMul", node.inputs[0], maker.constant(right, right.dtype))
        maker.nodes[-1].name = node.name
        if before.ndim == 1:
            maker.op("Reshape", product, shape=after)
        return True
    if len(after) < 3 or after[0] != Batch() or min(len(maker.shape(index)) for index in range(2)) < 2:
        return False
    inputs: list[str] = []
    for name in node.inputs:
        batch = 1 if name in graph.constants else after[0]
        wanted: Shape = (batch, *after[1:-2], *graph.shapes[name][-2:])
        expanded = graph.shapes[name] != wanted
        inputs.append(maker.op("Expand", name, shape=wanted) if expanded else name)
    if inputs == node.inputs:
        return False
    maker.op("MatMul", *inputs)
    maker.nodes[-1].name = node.name
    return True


def _constant_matrix(maker: _Maker, index: int) -> Array | None:
    """A constant operand of a MatMul that is the same for every sample and leading index."""
    value = maker.graph.constants.get(maker.node.inputs[index])
    if value is None or value.ndim == 0 or value.size != math.prod(value.shape[-2:]):
        return None
    return value.reshape((1, -1) if index == 0 else (-1, 1)) if value.ndim == 1 else value.reshape(value.shape[-2:])


def _lifted(shape: Shape, axis: int) -> Shape:
    """[N, C, L] as [N, C, 1, L], for a one-dimensional window, or tokens [N, T, C] as a row [N, 1, T, C]."""
    return (*shape[:axis], 1, *shape[axis:])


def _lift_axis(flat: Shape, lifted: Shape) -> int | None:
    """The axis of size 1, 2 or 1, that makes ``lifted`` of ``flat``."""
    return next((axis for axis in (2, 1) if len(flat) == 3 and lifted == _lifted(flat, axis)), None)


def _one_dimensional(maker: _Maker) -> bool:
    """A window along one axis is a window of height 1 along two."""
    node, shape = maker.node, maker.shape()
    if len(shape) != 3:
        return False
    attrs = dict(node.attrs)
    for name, first in (("kernel_shape", 1), ("strides", 1), ("dilations", 1)):
        attrs[name] = [first, *attrs[name]]
    begin, end = attrs["pads"]
    attrs["pads"] = [0, begin, 0, end]
    inputs = [maker.op("Reshape", node.inputs[0], shape=_lifted(shape, 2)), *node.inputs[1:]]
    maker.graph.add_view(inputs[0], node.inputs[0])
    if node.op == "Conv":
        weight = maker.weights(1, "weight")
        inputs[1] = maker.constant(weight[:, :, np.newaxis], weight.dtype)
    result = maker.op(node.op, *inputs, **attrs)
    maker.nodes[-1].name = node.name
    maker.graph.add_view(result, node.output)
    maker.op("Reshape", result, shape=maker.graph.shapes[node.output])
    return True


def _reshape(maker: _Maker) -> bool:
    """reshape(reshape(x)) = reshape(x), and lift(f(x)) = f(lift(x)) for elementwise f."""
    node, graph = maker.node, maker.graph
    first = maker.producers.get(node.inputs[0])
    if first is None:
        return False
    shape = graph.shapes[first.output]
    if first.op == "Reshape":
        maker.op("Reshape", first.inputs[0], shape=graph.shapes[node.output])
        return True
    axis = _lift_axis(shape, graph.shapes[node.output])
    if axis is None or not _can_lift(maker, first, axis):
        return False
    chain: dict[str, Node] = {}
    pending = [first]
    while pending:
        each = pending.pop()
        chain[each.output] = each
        above = [maker.producers.get(name) for name in each.inputs]
        pending += [n for n in above if n and n.output not in chain and _can_lift(maker, n, axis)]
    lifted: dict[str, str] = {}
    for each in graph.nodes:
        if each.output in chain:
            _lift(maker, each, axis, lifted)
    return True


def _elementwise_on_lifted(maker: _Maker) -> bool:
    """f(reshape(x)) = reshape(f(x)) for a tensor that was lifted for the layer before, so that chains stay whole.

    What has constants of channels on axis 1 runs only on maps.
    """
    node, after = maker.node, maker.graph.shapes[maker.node.output]
    if len(after) != 3:
        return False
    axes = (maker.flattened_axis(name) for name in node.inputs)
    wants_map = node.op in _ON_MAPS and _channel_axis(node) == 1
    axis = 2 if wants_map else next((axis for axis in axes if axis is not None), None)
    if axis is None or not _can_lift(maker, node, axis):
        return False
    maker.op("Reshape", _lift(maker, node, axis, {}), shape=after)
    return True


def _channel_axis(node: Node) -> int | None:
    """The axis of [N, ., .] that an elementwise node with vectors of constants has them along."""
    if node.op == "MultiThreshold":
        return threshold_axis(node.attrs["data_layout"], 3)
    return 1 if node.op == "BatchNormalization" else node.attrs.get("axis")


def _can_lift(maker: _Maker, node: Node, axis: int) -> bool:
    """Whether an elementwise node gives the same when ``axis``, of size 1, is put into its inputs."""
    if node.op not in ELEMENTWISE:
        return False
    channels = _channel_axis(node)
    if node.op in _ON_MAPS and channels is not None and channels + (channels >= axis) not in _ON_MAPS[node.op]:
        return False
    graph = maker.graph
    tensors = [node.inputs[place] for place in _broadcast(node) if node.inputs[place] not in graph.constants]
    return all(graph.shapes[name] == graph.shapes[node.output] for name in tensors)


def _broadcast(node: Node) -> list[int]:
    """The places of the inputs that are broadcast to the output."""
    count = 1 if node.op in _WITH_VECTORS else len(node.inputs)
    return [place for place, name in enumerate(node.inputs[:count]) if name]


def _lift(maker: _Maker, node: Node, axis: int, lifted: dict[str, str]) -> str:
    """An elementwise node on inputs with the new axis; ``lifted`` has, and gains, by name what was made."""
    attrs, graph, inputs = dict(node.attrs), maker.graph, list(node.inputs)
    channels = _channel_axis(node)
    if channels is not None and channels >= axis:
        if node.op == "MultiThreshold":
            attrs["data_layout"] = "NHWC"
        elif node.op != "BatchNormalization":
            attrs["axis"] = channels + 1
    elif node.op == "MultiThreshold":
        attrs["data_layout"] = "NCHW"
    for place in _broadcast(node):
        name = inputs[place]
        if graph.constants.get(name, _NO_ARRAY).size == 1:
            continue
        if name not in lifted and name in graph.constants:
            value = graph.constants[name]
            full = value.reshape((1,) * (3 - value.ndim) + value.shape)
            lifted[name] = maker.constant(np.expand_dims(full, axis), value.dtype)
        elif name not in lifted:
            lifted[name] = maker.op("Reshape", name, shape=_lifted(graph.shapes[name], axis))
            graph.add_view(lifted[name], name)
        inputs[place] = lifted[name]
    lifted[node.output] = maker.op(node.op, *inputs, domain=node.domain, **attrs)
    graph.add_view(lifted[node.output], node.output)
    return lifted[node.output]


def _sum_over_leading_axis(maker: _Maker) -> bool:
    """sum_k f(x, b[k]) for elementwise f, where only constants have the axis in front that is summed over.

    The legacy exporter of PyTorch writes bucketize so: how many of the bounds [K, 1, ...] x has passed.
    """
    node, graph, shape = maker.node, maker.graph, maker.shape()
    count = shape[0] if shape else 0
    if node.attrs["axes"] != [0] or node.attrs["keepdims"] or not isinstance(count, int):
        return False
    terms: dict[str, Node] = {}
    constants: dict[str, Array] = {}
    operands: set[str] = set()
    pending = [node.inputs[0]]
    while pending:
        name = pending.pop()
        made_by = maker.producers.get(name)
        constant = graph.constants.get(made_by.inputs[0] if made_by and made_by.op == "Expand" else name)
        if constant is not None:
            constants[name] = constant
        elif graph.shapes[name] == shape[1:]:
            operands.add(name)
        elif made_by is not None and made_by.op in POINTWISE and graph.shapes[name] == shape:
            terms[name] = made_by
            pending += [each for each in made_by.inputs if each]
        else:
            return False
    if not operands or count * len(terms) > _MAX_TERMS:
        return False
    total = ""
    for k in range(count):
        names = {name: name for name in operands} | {"": ""}
        for name, value in constants.items():
            part = value[k % value.shape[0]] if value.ndim == len(shape) else value
            names[name] = maker.constant(part, value.dtype)
        for each in graph.nodes:
            if each.output in terms:
                inputs = (names[name] for name in each.inputs)
                names[each.output] = maker.op(each.op, *inputs, domain=each.domain, **each.attrs)
        term = names[node.inputs[0]]
        total = maker.op("Add", total, term) if total else term
    return True


_MAX_TERMS = 1 << 10  # operators that take the place of one
_NO_ARRAY = np.zeros(0)
# Their inputs behind the first have shapes of their own, whatever the first one's.
_WITH_VECTORS = (ELEMENTWISE - POINTWISE) | {"Clip"}
# On maps [N, C, H, W], their channels must be on one of these axes.
_ON_MAPS = {"BatchNormalization": (1,), "MultiThreshold": (1, 3)}

_RULES: dict[str, Callable[[_Maker], bool]] = {
    "LayerNormalization": _layer_normalization,
    "InstanceNormalization": _instance_normalization,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "ReduceSum": _sum_over_leading_axis,
    "Resize": _resize,
    "Expand": _expand,
    "Pad": _mirrored_pad,
    "ConvTranspose": _conv_transpose,
    "MatMul": _mat_mul,
    **dict.fromkeys(ELEMENTWISE, _elementwise_on_lifted),
    "Reshape": _reshape,
    "Conv": _one_dimensional,
    "MaxPool": _one_dimensional,
    "AveragePool": _one_dimensional,
}
