"""Ops that move, pool or join float tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..graph import Array, Batch, Node
from .emitter import NotLowered, Stored
from .integer import require_taps, window_fields

if TYPE_CHECKING:
    from .lower import Lowering

# Position of each ONNX axis of an [N, C, H, W] among the stored [H, W, C].
_NHWC_AXIS = {1: 2, 2: 0, 3: 1}


def _axis(stored: Stored, axis: int, rank: int, node: Node) -> int:
    """Per-sample axis of the stored tensor for an ONNX axis."""
    if axis < 0:
        axis += rank
    if axis == 0:
        raise NotLowered(node, "it works along the batch axis")
    return _NHWC_AXIS[axis] if stored.layout == "nhwc" else axis - 1


def _plain_unless_nhwc(lowering: Lowering, stored: Stored, node: Node) -> Stored:
    return stored if stored.layout == "nhwc" else lowering.emit.plain(stored, node)


def reshape(lowering: Lowering, node: Node) -> Stored:
    before = lowering.graph.shapes[node.inputs[0]]
    after = lowering.graph.shapes[node.output]
    if before[0] != Batch() or after[0] != Batch():
        raise NotLowered(node, f"it mixes samples: shape {[str(d) for d in before]} becomes {[str(d) for d in after]}")
    stored = lowering.float_of(node.inputs[0], node)
    dims = lowering.dims(node.output)
    emit = lowering.emit
    if stored.layout == "nhwc" and len(dims) == 1 and stored.dims[0] * stored.dims[1] > 1 and stored.dims[2] > 1:
        height, width, channels = stored.dims
        fields = {"input": stored.tensor}
        flat = (height, width, channels)
        tensor = emit.op("reshape", node, fields, dims, holds=node.output, layout="flat", map_dims=flat)
        return Stored(tensor, dims, "flat", flat)
    stored = emit.plain(stored, node)
    return Stored(emit.op("reshape", node, {"input": stored.tensor}, dims, holds=node.output), dims)


def transpose(lowering: Lowering, node: Node) -> Stored:
    perm = list(node.attrs["perm"])
    if perm[0] != 0:
        raise NotLowered(node, f"it moves the batch axis (perm {perm})")
    stored = lowering.float_of(node.inputs[0], node)
    dims = lowering.dims(node.output)
    emit = lowering.emit
    if perm == [0, 2, 3, 1] and stored.layout == "nhwc":
        return Stored(emit.op("reshape", node, {"input": stored.tensor}, dims, holds=node.output), dims)
    stored = emit.plain(stored, node)
    if perm == [0, 3, 1, 2]:  # an NHWC map that becomes NCHW is stored as it was
        tensor = emit.op("reshape", node, {"input": stored.tensor}, stored.dims, holds=node.output, layout="nhwc")
        return Stored(tensor, stored.dims, "nhwc")
    fields = {"input": stored.tensor, "perm": [axis - 1 for axis in perm[1:]]}
    return Stored(emit.op("transpose", node, fields, dims, holds=node.output), dims)


def _map_dims(lowering: Lowering, node: Node) -> tuple[int, int, int]:
    dims = lowering.dims(node.output)
    if len(dims) != 3:
        raise NotLowered(node, f"its output has rank {len(dims) + 1}; only 2-D pooling runs")
    return dims[1], dims[2], dims[0]


def pool(lowering: Lowering, node: Node) -> Stored:
    dims = _map_dims(lowering, node)
    emit = lowering.emit
    stored = emit.nhwc(lowering.float_of(node.inputs[0], node), node)
    kind = "max" if node.op == "MaxPool" else "average"
    fields: dict[str, Any] = {"input": stored.tensor, "kind": kind, **window_fields(node)}
    require_taps(node, fields, stored.dims, dims)
    fields["count_include_pad"] = bool(node.attrs.get("count_include_pad", 0))
    tensor = emit.op("pool", node, fields, dims, holds=node.output, layout="nhwc")
    emit.row(node, "pool", f"{kind} pool", dims, "32", 0, 0)
    return Stored(tensor, dims, "nhwc")


def global_pool(lowering: Lowering, node: Node) -> Stored:
    """A global pool, or ReduceMean or ReduceMax over both axes of a map: a pool whose window is the map."""
    rank = len(lowering.graph.shapes[node.inputs[0]])
    if rank != 4:
        raise NotLowered(node, f"its input has rank {rank}, expected 4")
    emit = lowering.emit
    stored = emit.nhwc(lowering.float_of(node.inputs[0], node), node)
    height, width, channels = stored.dims
    kind = "max" if node.op in ("ReduceMax", "GlobalMaxPool") else "average"
    fields = {
        "input": stored.tensor,
        "kind": kind,
        "kernel": [height, width],
        "strides": [1, 1],
        "dilations": [1, 1],
        "pads": [0, 0, 0, 0],
        "count_include_pad": False,
    }
    keep = bool(node.attrs.get("keepdims", 1))
    dims = (1, 1, channels)
    tensor = emit.op("pool", node, fields, dims, holds=node.output if keep else "", layout="nhwc")
    emit.row(node, "pool", f"global {kind} pool", dims, "32", 0, 0)
    if keep:
        return Stored(tensor, dims, "nhwc")
    return Stored(emit.op("reshape", node, {"input": tensor}, (channels,), holds=node.output), (channels,))


_REDUCTIONS = {
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "ReduceMax": "max",
    "ReduceMin": "min",
    "ReduceProd": "prod",
    "ReduceL1": "l1",
    "ReduceL2": "l2",
    "ReduceSumSquare": "sum_square",
}


def reduce(lowering: Lowering, node: Node) -> Stored:
    axes: list[int] = node.attrs["axes"]
    shape = lowering.graph.shapes[node.inputs[0]]
    rank = len(shape)
    if rank == 4 and axes == [2, 3] and node.op in ("ReduceMean", "ReduceMax"):
        return global_pool(lowering, node)
    emit = lowering.emit
    stored = lowering.float_of(node.inputs[0], node)
    if not axes:
        return Stored(
            emit.op("reshape", node, {"input": stored.tensor}, stored.dims, holds=node.output, layout=stored.layout),
            stored.dims,
            stored.layout,
            stored.map_dims,
        )
    if 0 in axes:
        raise NotLowered(node, "it reduces the batch axis")
    keep = bool(node.attrs["keepdims"])
    # What is left of [H, W, C] is in ONNX order where the channels or both other axes are gone.
    left = [axis for axis in range(1, rank) if axis not in axes and shape[axis] != 1]
    if stored.layout == "nhwc" and not keep and 1 in left and len(left) > 1:
        stored = emit.plain(stored, node)
    places = sorted(_axis(stored, axis, rank, node) for axis in axes)
    kept = tuple(1 if place in places else dim for place, dim in enumerate(stored.dims))
    dims = kept if keep else lowering.dims(node.output)
    layout = "nhwc" if stored.layout == "nhwc" and keep else "plain"
    kind = _REDUCTIONS[node.op]
    fields = {"input": stored.tensor, "kind": kind, "axes": places}
    if keep or dims == tuple(dim for place, dim in enumerate(kept) if place not in places):
        tensor = emit.op("reduce", node, fields, dims, holds=node.output, layout=layout)
    else:  # an axis of size 1 stays, but not where it was
        small = emit.op("reduce", node, fields, kept)
        tensor = emit.op("reshape", node, {"input": small}, dims, holds=node.output, helper=True)
    emit.row(node, "reduce", kind.replace("_", " "), dims, "32", 0, 0)
    return Stored(tensor, dims, layout)


def _select(lowering: Lowering, node: Node, stored: Stored, axis: int, indices: Array, *, last: bool = True) -> Stored:
    """Positions ``indices`` along ONNX ``axis``."""
    emit = lowering.emit
    place = _axis(stored, axis, len(stored.dims) + 1, node)
    dims = (*stored.dims[:place], len(indices), *stored.dims[place + 1 :])
    fields = {"input": stored.tensor, "axis": place, "indices": np.ascontiguousarray(indices, np.int32)}
    tensor = emit.op("select", node, fields, dims, holds=node.output if last else "", layout=stored.layout)
    if last:
        emit.row(node, "select", "select", dims, "32", 0, 0)
    return Stored(tensor, dims, stored.layout)


def slice_(lowering: Lowering, node: Node) -> Stored:
    attrs = node.attrs
    stored = _plain_unless_nhwc(lowering, lowering.float_of(node.inputs[0], node), node)
    sliced: list[tuple[int, range]] = []
    for axis, start, end, step in zip(attrs["axes"], attrs["starts"], attrs["ends"], attrs["steps"], strict=True):
        sliced.append((axis, range(start, end, step)))
    if not sliced:
        sliced = [(1, range(lowering.dims(node.output)[0]))]
    sliced.sort(key=lambda item: len(item[1]))
    for number, (axis, taken) in enumerate(sliced, 1):
        last = number == len(sliced)
        stored = _select(lowering, node, stored, axis, np.asarray(taken), last=last)
    return stored


def gather(lowering: Lowering, node: Node) -> Stored:
    graph = lowering.graph
    if not graph.is_constant(node.inputs[1]):
        raise NotLowered(node, f"its indices '{node.inputs[1]}' are computed at run time")
    indices = graph.constants[node.inputs[1]]
    axis = node.attrs["axis"]
    size = graph.shapes[node.inputs[0]][axis]
    if indices.ndim > 1 or not isinstance(size, int):
        raise NotLowered(node, f"its indices have rank {indices.ndim}, expected 0 or 1")
    if indices.size and not (-size <= int(indices.min()) and int(indices.max()) < size):
        raise NotLowered(node, f"its indices {int(indices.min())} .. {int(indices.max())} leave an axis of size {size}")
    stored = _plain_unless_nhwc(lowering, lowering.float_of(node.inputs[0], node), node)
    if indices.ndim == 1:
        return _select(lowering, node, stored, axis, indices % size)
    # A single position: the axis goes.
    emit = lowering.emit
    part = emit.plain(_select(lowering, node, stored, axis, indices.reshape(1) % size, last=False), node)
    dims = lowering.dims(node.output)
    tensor = emit.op("reshape", node, {"input": part.tensor}, dims, holds=node.output, helper=True)
    emit.row(node, "select", "select", dims, "32", 0, 0)
    return Stored(tensor, dims)


def concat(lowering: Lowering, node: Node) -> Stored:
    emit, graph = lowering.emit, lowering.graph
    live = {name: lowering.float_of(name, node) for name in node.inputs if not graph.is_constant(name)}
    layout = "nhwc" if all(part.layout == "nhwc" for part in live.values()) else "plain"
    if layout == "plain":
        live = {name: emit.plain(part, node) for name, part in live.items()}
    parts = [live[name] if name in live else _constant_part(lowering, node, name, layout) for name in node.inputs]
    rank = len(graph.shapes[node.output])
    axis = _axis(parts[0], node.attrs["axis"], rank, node)
    dims = list(parts[0].dims)
    dims[axis] = sum(part.dims[axis] for part in parts)
    fields = {"inputs": [part.tensor for part in parts], "axis": axis}
    tensor = emit.op("concat", node, fields, tuple(dims), holds=node.output, layout=layout)
    emit.row(node, "concat", "concat", tuple(dims), "32", 0, 0)
    return Stored(tensor, tuple(dims), layout)


def _constant_part(lowering: Lowering, node: Node, name: str, layout: str) -> Stored:
    value = per_sample(lowering.graph.constants[name], node)
    if layout == "nhwc":
        value = value.transpose(1, 2, 0)
    return Stored(constant_tensor(lowering, node, value), value.shape, layout)


def per_sample(constant: Array, node: Node) -> Array:
    """A constant [1, ...] that stands for every sample of a batch, without the batch axis."""
    if len(constant) != 1:
        raise NotLowered(node, "a constant differs from sample to sample of the batch")
    value: Array = constant[0]
    return value


def constant_tensor(lowering: Lowering, node: Node, value: Array) -> int:
    emit = lowering.emit
    tensor: int = emit.writer.add_constant(
        emit.unique(f"{node.output}/constant"), np.ascontiguousarray(value, np.float32)
    )
    return tensor


def pad(lowering: Lowering, node: Node) -> Stored:
    mode = node.attrs.get("mode", "constant")
    if mode != "constant":
        raise NotLowered(node, f"padding mode '{mode}'; only 'constant' runs")
    pads = list(node.attrs["pads"])
    rank = len(pads) // 2
    if pads[0] or pads[rank]:
        raise NotLowered(node, "it pads the batch axis")
    value = 0.0
    if len(node.inputs) > 1 and node.inputs[1]:
        if not lowering.graph.is_constant(node.inputs[1]):
            raise NotLowered(node, "its value is computed at run time")
        value = float(lowering.graph.constants[node.inputs[1]].reshape(()))
    emit = lowering.emit
    stored = _plain_unless_nhwc(lowering, lowering.float_of(node.inputs[0], node), node)
    begin, end = [0] * (rank - 1), [0] * (rank - 1)
    for axis in range(1, rank):
        place = _axis(stored, axis, rank, node)
        begin[place], end[place] = pads[axis], pads[axis + rank]
    dims = tuple(d + b + e for d, b, e in zip(stored.dims, begin, end, strict=True))
    fields = {"input": stored.tensor, "begin": begin, "end": end, "value": value}
    tensor = emit.op("pad", node, fields, dims, holds=node.output, layout=stored.layout)
    return Stored(tensor, dims, stored.layout)


def softmax(lowering: Lowering, node: Node) -> Stored:
    emit = lowering.emit
    stored = _plain_unless_nhwc(lowering, lowering.float_of(node.inputs[0], node), node)
    rank = len(lowering.graph.shapes[node.output])
    axis = _axis(stored, node.attrs.get("axis", -1), rank, node)
    fields = {"input": stored.tensor, "axis": axis, "log": node.op == "LogSoftmax"}
    tensor = emit.op("softmax", node, fields, stored.dims, holds=node.output, layout=stored.layout)
    emit.row(node, "softmax", "softmax", stored.dims, "32", 0, 0)
    return Stored(tensor, stored.dims, stored.layout)


def arg_max(lowering: Lowering, node: Node) -> Stored:
    if node.output not in lowering.graph.outputs:
        raise NotLowered(node, "its integers are computed with; ArgMax runs only as a model output")
    emit = lowering.emit
    stored = emit.plain(lowering.float_of(node.inputs[0], node), node)
    rank = len(lowering.graph.shapes[node.inputs[0]])
    axis = _axis(stored, node.attrs.get("axis", 0), rank, node)
    dims = lowering.dims(node.output)
    fields = {"input": stored.tensor, "axis": axis, "select_last": bool(node.attrs.get("select_last_index", 0))}
    tensor = emit.op("arg_max", node, fields, dims, dtype="i64", holds=node.output)
    emit.row(node, "arg_max", "arg max", dims, "-", 0, 0)
    return Stored(tensor, dims)


def constant_for(constant: Array, stored: Stored, rank: int, node: Node) -> Array:
    """A constant operand [broadcastable to the ONNX shape] in the axes of ``stored``, without the batch axis."""
    value = constant.astype(np.float32)
    if value.ndim > rank:
        raise NotLowered(node, f"a constant of rank {value.ndim} meets a tensor of rank {rank}")
    value = per_sample(np.reshape(value, (1,) * (rank - value.ndim) + value.shape), node)
    if stored.layout == "nhwc":
        value = value.transpose(1, 2, 0)
    if stored.layout == "flat" and value.size > 1:
        height, width, channels = stored.map_dims
        value = value.reshape(channels, height, width).transpose(1, 2, 0).ravel()
    # An axis along which the constant only repeats itself is stored once, unless the result has its length from there.
    lengths = (1,) * (value.ndim - len(stored.dims)) + stored.dims
    for axis in range(value.ndim):
        if 1 < value.shape[axis] == lengths[axis] and np.array_equal(
            value, np.broadcast_to(value.take([0], axis), value.shape)
        ):
            value = value.take([0], axis)
    return np.ascontiguousarray(value)


RULES = {
    "Reshape": reshape,
    "Transpose": transpose,
    "MaxPool": pool,
    "AveragePool": pool,
    "GlobalAveragePool": global_pool,
    "GlobalMaxPool": global_pool,
    **dict.fromkeys(_REDUCTIONS, reduce),
    "Slice": slice_,
    "Gather": gather,
    "Concat": concat,
    "Pad": pad,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "ArgMax": arg_max,
}
