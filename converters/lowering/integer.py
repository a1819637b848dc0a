"""Integer layers, quantizers and packed pooling."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import _core
from ..analysis import BitSource, IntegerMac
from ..chains import Steps
from ..graph import Array, Node
from ..values import BINARY, Encoding, encode_levels
from .emitter import NotLowered, Stored, StoredBits

if TYPE_CHECKING:
    from .lower import Lowering

_INT32 = np.iinfo(np.int32)


def bits_of(lowering: Lowering, tensor: str, node: Node) -> StoredBits:
    """Makes the packed form of a quantized tensor: fused into its integer layer, or from floats."""
    analysis = lowering.analysis
    steps = analysis.steps[tensor]
    assert isinstance(steps, Steps)
    encoding = encode_levels(steps.levels.levels)
    assert encoding is not None
    root = steps.chain.root
    mac = analysis.integer.get(root)
    if mac is not None:
        thresholds = _expand(steps, encoding, _INT32.min, _INT32.max)
        if analysis.is_fused(root):
            made = _layer(lowering, mac, node, encoding=encoding, thresholds=thresholds.astype(np.int32), steps=steps)
        else:
            made = _quantize_floats(lowering, mac, thresholds, steps, encoding, node)
        if steps.chain.pool is not None:
            made = _bit_pool(lowering, made, steps.chain.pool, steps.chain.result, steps)
            if analysis.is_fused(root):
                lowering.emit.mark_thresholds(root)
        return made
    stored = lowering.float_of(root, node)
    rank = len(lowering.graph.shapes[root])
    axis = steps.chain.channel_axis
    if rank == 4 and axis == 1:
        stored = lowering.emit.nhwc(stored, node)
    else:
        stored = lowering.emit.plain(stored, node)
        if axis != rank - 1:
            raise NotLowered(node, f"its per-channel constants are on axis {axis}, expected 1 or the last")
    fields = {"input": stored.tensor, "thresholds": _expand(steps, encoding, -np.inf, np.inf), **_descending(steps)}
    return _emit_quantize(lowering, node, fields, stored.dims, steps, encoding)


def _expand(steps: Steps, encoding: Encoding, lowest: float, highest: float) -> Array:
    """Thresholds for every level of the encoding, [rows, n_levels - 1]; levels that never occur are stepped over."""
    positions = [encoding.levels.index(level) for level in steps.levels.levels]
    rows, count = steps.thresholds.shape[0], len(encoding.levels)
    result = np.empty((rows, count - 1), steps.thresholds.dtype)
    for row in range(rows):
        # Along the root the level index only grows once a descending channel is read from its far end.
        order = [count - 1 - p for p in positions[::-1]] if steps.descending[row] else positions
        result[row, : order[0]] = lowest
        for step, (begin, end) in enumerate(itertools.pairwise(order)):
            result[row, begin:end] = steps.thresholds[row, step]
        result[row, order[-1] :] = highest
    return result


def _descending(steps: Steps) -> dict[str, Any]:
    return {"descending": steps.descending.astype(np.uint8)} if steps.descending.any() else {}


def _emit_quantize(
    lowering: Lowering, node: Node, fields: dict[str, Any], dims: tuple[int, ...], steps: Steps, encoding: Encoding
) -> StoredBits:
    emit = lowering.emit
    pooled = steps.chain.pool is not None  # what follows the pool in the graph is done in front of it
    tensor = emit.op(
        "quantize",
        node,
        fields,
        dims,
        dtype="bits",
        encoding=encoding,
        holds="" if pooled else node.output,
        layout=_layout(dims, steps),
        root=steps.chain.root,
    )
    text = activation_bits(steps, encoding)
    emit.row(node, "quantize", "quantizer", dims, f"- x {text}", 0, fields["thresholds"].nbytes, _zero_note(text))
    return StoredBits(tensor, dims, encoding, text)


def _layout(dims: tuple[int, ...], steps: Steps | None) -> str:
    """How packed [H, W, C] or [C] holds the result of ``steps``: Transposes may have moved the channels to the end."""
    return "nhwc" if len(dims) == 3 and (steps is None or steps.chain.result_axis == 1) else "plain"


def activation_bits(steps: Steps, encoding: Encoding) -> str:
    """Bits per activation for the report; "1 (+ zero)" is a sign that is 0 at a single point, not over a range."""
    return "1 (+ zero)" if encoding.kind == "sign_zero" and steps.zero_is_a_point() else str(encoding.planes)


def _zero_note(text: str) -> str:
    return "sign(0) = 0 is reachable and kept; costs time only where one occurs" if "zero" in text else ""


def _quantize_floats(
    lowering: Lowering, mac: IntegerMac, thresholds: Array, steps: Steps, encoding: Encoding, node: Node
) -> StoredBits:
    """Where the layer's floats are wanted too: a threshold becomes the float that the engine gives at its integer.

    That is ``scale * float(acc) + bias`` with the scale in float32, which may miss the ONNX node's float by an ulp.
    """
    stored = lowering.float_of(steps.chain.root, node)
    integers = np.clip(thresholds, mac.integers[0], mac.integers[-1]).astype(np.float32)
    floats = integers * mac.scale.astype(np.float32)[:, None] + mac.bias[:, None]
    floats[thresholds == _INT32.min] = -np.inf
    floats[thresholds == _INT32.max] = np.inf
    fields = {"input": stored.tensor, "thresholds": floats, **_descending(steps)}
    return _emit_quantize(lowering, node, fields, stored.dims, steps, encoding)


def _bit_pool(lowering: Lowering, bits: StoredBits, node: Node, holds: str, steps: Steps | None = None) -> StoredBits:
    height, width = lowering.dims(node.output)[-2:]
    dims = (height, width, bits.dims[2])
    fields: dict[str, Any] = {"input": bits.tensor, **window_fields(node)}
    if steps is not None and steps.take_min.any():
        fields["take_min"] = steps.take_min.astype(np.uint8)
    if node.attrs.get("ceil_mode", 0):
        _extend_ceil(fields, bits.dims, dims)
    require_taps(node, fields, bits.dims, dims)
    emit = lowering.emit
    tensor = emit.op(
        "bit_pool", node, fields, dims, dtype="bits", encoding=bits.encoding, holds=holds, layout=_layout(dims, steps)
    )
    emit.row(node, "bit_pool", "pooling on bits", dims, f"- x {bits.text}", 0, 0)
    return StoredBits(tensor, dims, bits.encoding, bits.text)


def _extend_ceil(fields: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Ceil mode as padding at the end, which never wins a maximum."""
    for axis in range(2):
        reach = (
            (after[axis] - 1) * fields["strides"][axis] + (fields["kernel"][axis] - 1) * fields["dilations"][axis] + 1
        )
        missing = reach - (before[axis] + fields["pads"][axis] + fields["pads"][axis + 2])
        fields["pads"][axis + 2] += max(0, missing)


def require_taps(node: Node, fields: dict[str, Any], before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Refuses a pool with an output that has no input: the maximum of nothing, or the mean of padding."""
    for axis in range(2):
        stride, dilation, begin = fields["strides"][axis], fields["dilations"][axis], fields["pads"][axis]
        # Of a window that starts in the padding, the first tap behind it must exist and lie in the map.
        starts = np.arange(0, min(begin, after[axis] * stride), stride) - begin
        skipped = -(starts // dilation)
        in_front = (skipped >= fields["kernel"][axis]) | (starts + skipped * dilation >= before[axis])
        # The others start in the map or beyond it.
        beyond = -(-(before[axis] + begin) // stride)
        empty = [*np.flatnonzero(in_front), *([beyond] if beyond < after[axis] else [])]
        if empty:
            side = ("row", "column")[axis]
            raise NotLowered(node, f"its output {side} {int(empty[0])} is a window of padding only")


def window_fields(node: Node) -> dict[str, Any]:
    """Window of a Conv or pool node: ONNX pads are [top, left, bottom, right] already."""
    kernel = list(node.attrs["kernel_shape"])
    return {
        "kernel": kernel,
        "strides": list(node.attrs.get("strides") or [1] * len(kernel)),
        "dilations": list(node.attrs.get("dilations") or [1] * len(kernel)),
        "pads": list(node.attrs.get("pads") or [0] * (2 * len(kernel))),
    }


def _input_bits(lowering: Lowering, source: BitSource, node: Node) -> StoredBits:
    """Follows the moves between the quantizer and the layer."""
    bits = lowering.bits[source.steps.chain.result]
    for move in source.moves:
        if move.op == "MaxPool":
            if move.output not in lowering.bits:
                lowering.bits[move.output] = _bit_pool(lowering, bits, move, move.output)
            bits = lowering.bits[move.output]
    return bits


def _layer(
    lowering: Lowering,
    mac: IntegerMac,
    node: Node,
    *,
    encoding: Encoding | None = None,
    thresholds: Array | None = None,
    steps: Steps | None = None,
    scale: Array | None = None,
    bias: Array | None = None,
    holds: str = "",
) -> StoredBits:
    """Emits the binary_conv of ``mac`` with an epilogue to bits (thresholds) or floats (scale and bias)."""
    bits = _input_bits(lowering, mac.source, node)
    levels = mac.weights.levels
    out_channels = levels.shape[0]
    fields: dict[str, Any] = {"input": bits.tensor, "pad_level": mac.source.pad_level}
    if mac.node.op == "Conv":
        fields |= window_fields(mac.node)
        fields["pads"] = [a + b for a, b in zip(fields["pads"], mac.source.pads, strict=True)]
        fields["groups"] = int(mac.node.attrs.get("group", 1))
        rows = levels.transpose(0, 2, 3, 1)
        dims: tuple[int, ...] = (*lowering.dims(mac.node.output)[1:], out_channels)
    else:
        is_map = len(bits.dims) == 3
        kernel = list(bits.dims[:2]) if is_map else [1, 1]
        fields |= {"kernel": kernel, "strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0], "groups": 1}
        rows = _map_rows(lowering, levels, bits, mac.source) if is_map else levels
        dims = (1, 1, out_channels) if is_map else (out_channels,)
    lattice = type(mac.weights)(mac.weights.scale, np.ascontiguousarray(rows).reshape(out_channels, -1))
    coefs, shift, planes = lattice.planes()
    packed = np.concatenate([np.asarray(_core.pack_bits(plane)).ravel() for plane in planes])
    fields |= {"weights": packed, "w_coefs": list(coefs), "w_shift": shift}
    if thresholds is not None and steps is not None:
        fields |= {"thresholds": thresholds, **_descending(steps)}
    else:
        assert scale is not None and bias is not None
        fields |= {"scale": scale.astype(np.float32), "bias": bias.astype(np.float32)}
    emit = lowering.emit
    dtype = "f32" if encoding is None else "bits"
    if steps is not None and steps.chain.pool is None:
        holds = steps.chain.result
    is_flat = mac.node.op != "Conv" and len(dims) == 3
    origin = mac.node.name if node is mac.node else f"{mac.node.name} .. {node.name}"
    tensor = emit.op(
        "binary_conv",
        mac.node,
        fields,
        dims,
        dtype=dtype,
        encoding=encoding,
        holds="" if is_flat else holds,
        layout=_layout(dims, steps),
        origin=origin,
    )
    after = packed.nbytes + sum(
        fields[key].nbytes for key in ("thresholds", "scale", "bias", "descending") if key in fields
    )
    kind = _kind(mac, bits.text)
    text = "" if encoding is None or steps is None else activation_bits(steps, encoding)
    bits_text = f"{mac.weights.describe().removesuffix('-bit')} x {bits.text}"
    before = levels.size * 4 + (mac.bias.nbytes if mac.bias.any() else 0)
    emit.row(mac.node, "binary_conv", kind, dims, bits_text, before, after, _zero_note(text))
    if is_flat:
        dims = (out_channels,)
        tensor = emit.op(
            "reshape", mac.node, {"input": tensor}, dims, dtype=dtype, encoding=encoding, holds=holds, helper=True
        )
    if encoding is not None:
        if holds:
            emit.mark_thresholds(mac.node.output)
        emit.fused.append(mac.node.name or mac.node.output)
    return StoredBits(tensor, dims, encoding or BINARY, text)


def _kind(mac: IntegerMac, activation: str) -> str:
    shape = "conv" if mac.node.op == "Conv" else "linear"
    weights = mac.weights.describe()
    if weights == "1-bit":
        return f"binary {shape}" if activation.startswith("1") else f"1-bit x {activation}-bit {shape}"
    return f"{weights} {shape}"


def _map_rows(lowering: Lowering, levels: Array, bits: StoredBits, source: BitSource) -> Array:
    """Columns of a fully connected layer in the (H, W, C) order of the packed map."""
    height, width, channels = bits.dims
    axis = source.steps.chain.result_axis
    for move in source.moves:
        if move.op == "Transpose":
            axis = move.attrs["perm"].index(axis)
        if move.op == "Reshape":
            break
    if axis == 1:
        return np.moveaxis(levels.reshape(-1, channels, height, width), 1, 3)
    return np.reshape(levels, (-1, height, width, channels))


def float_layer(lowering: Lowering, mac: IntegerMac) -> Stored:
    """An integer layer that gives floats: ``scale * acc + bias``."""
    made = _layer(lowering, mac, mac.node, scale=mac.scale, bias=mac.bias, holds=mac.node.output)
    lowering.emit.mark_sums(mac.node.name or mac.node.output)
    return Stored(made.tensor, made.dims, "nhwc" if len(made.dims) == 3 else "plain")


def dequantize(lowering: Lowering, tensor: str, node: Node) -> Stored:
    """Floats of a packed tensor, exactly those that the chain gives at each level."""
    steps = lowering.analysis.steps[tensor]
    assert isinstance(steps, Steps)
    bits = lowering.bits[tensor]
    values = np.asarray([[level * steps.levels.scale for level in bits.encoding.levels]], np.float32)
    values[0, [bits.encoding.levels.index(level) for level in steps.levels.levels]] = steps.values
    producer = lowering.graph.producer(tensor) or node
    four = len(bits.dims) == 3
    emit = lowering.emit
    made = emit.op("dequantize", producer, {"input": bits.tensor, "values": values}, bits.dims)
    emit.row(producer, "dequantize", "unpack to float", bits.dims, f"- x {bits.text}", 0, values.nbytes)
    nhwc = four and steps.chain.result_axis == 1
    return Stored(made, bits.dims, "nhwc" if nhwc else "plain")
