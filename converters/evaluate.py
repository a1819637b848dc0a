"""What a model computes, by the ONNX and QONNX definitions, in numpy: the oracle of the converter and of ``verify``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from ..errors import InvalidInputError, UnsupportedModelError
from . import integer_ops, qonnx_ops, resize_ops, window_ops
from .graph import Array, Batch, Node
from .integers import integer_limits
from .onnx_file import RawInput, load_model, read_graph
from .passes.base import Problems
from .passes.normalise_ops import NORMAL_OPSET, normalise_nodes
from .result_size import Budget, too_large

Progress = Callable[[int, int], None]


def evaluate_node(node: Node, inputs: list[Array | None], opset: int = NORMAL_OPSET) -> list[Array]:
    """The outputs of one node, in the order of ``node.outputs``.

    ``node`` is a normalised one, before or after shape inference. float32 stays float32 throughout, in
    BatchNormalization and the quantizers too. Raises ValueError or TypeError where the inputs do not fit the operator.
    """
    with np.errstate(all="ignore"):  # infinities and NaN are values here, not accidents
        if node.domain == "qonnx":
            given = [value for value in inputs if value is not None]
            return [np.asarray(qonnx_ops.OPS[node.op](*given, **node.attrs))]
        if node.op in integer_ops.OPS:
            return integer_ops.OPS[node.op](node.attrs, inputs)
        own = _OWN.get(node.op)
        if own is not None:
            result = own(node, inputs)
            if result is not None:
                return [np.asarray(array) for array in result]
        return _evaluate_by_onnx(node, inputs, opset)


def _evaluate_by_onnx(node: Node, inputs: list[Array | None], opset: int) -> list[Array]:
    present = tuple(value is not None for value in inputs)
    evaluator = _evaluator(node.op, _frozen(node.attrs), present, len(node.outputs), opset)
    feeds = {f"i{index}": value for index, value in enumerate(inputs) if value is not None}
    return [np.asarray(array) for array in evaluator.run(None, feeds)]


@lru_cache(maxsize=4096)
def _evaluator(
    op: str, attrs: tuple[tuple[str, Any], ...], present: tuple[bool, ...], outputs: int, opset: int
) -> ReferenceEvaluator:
    names = [f"i{index}" if given else "" for index, given in enumerate(present)]
    while names and not names[-1]:
        names.pop()
    results = [f"o{index}" for index in range(outputs)]
    node = onnx.helper.make_node(op, names, results, **{name: _thawed(value) for name, value in attrs})
    graph = onnx.GraphProto(
        name=op,
        node=[node],
        input=[onnx.ValueInfoProto(name=name) for name in names if name],
        output=[onnx.ValueInfoProto(name=name) for name in results],
    )
    return ReferenceEvaluator(graph, opsets={"": opset})


def _frozen(attrs: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    items: list[tuple[str, Any]] = []
    for name in sorted(attrs):
        value = attrs[name]
        if isinstance(value, np.ndarray):
            value = ("array", value.dtype, value.shape, value.tobytes())
        elif isinstance(value, list):
            value = ("list", *value)
        items.append((name, value))
    return tuple(items)


def _thawed(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    if value[0] == "list":
        return list(value[1:])
    _, dtype, shape, data = value
    return onnx.numpy_helper.from_array(np.frombuffer(data, dtype).reshape(shape))


def _required(inputs: list[Array | None]) -> list[Array]:
    return [value for value in inputs if value is not None]


def _window_attrs(node: Node, x: Array, kernel: list[int]) -> dict[str, Any]:
    """The attributes of a convolution or pooling node, all explicit."""
    attrs = dict(node.attrs)
    window_ops.make_explicit(attrs, x.shape[2:], kernel)
    return attrs


def _conv(node: Node, inputs: list[Array | None]) -> list[Array]:
    x, w = _required(inputs)[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    return [window_ops.conv(x, w, bias, **_window_attrs(node, x, list(w.shape[2:])))]


def _max_pool(node: Node, inputs: list[Array | None]) -> list[Array]:
    (x,) = _required(inputs)
    return [window_ops.max_pool(x, **_window_attrs(node, x, []))]


def _average_pool(node: Node, inputs: list[Array | None]) -> list[Array]:
    (x,) = _required(inputs)
    return [window_ops.average_pool(x, **_window_attrs(node, x, []))]


def _shaped(node: Node, inputs: list[Array | None]) -> list[Array] | None:
    """Reshape and Expand with their resolved shape; the ONNX form has a second input instead."""
    shape = node.attrs.get("shape")
    if shape is None:
        return None
    (x,) = _required(inputs)
    if node.op == "Reshape":
        return [x.reshape([-1 if isinstance(dim, Batch) else dim for dim in shape])]
    # The batch dimension of an Expand is known only from its input.
    offset = len(shape) - x.ndim
    target = []
    for axis, dim in enumerate(shape):
        target.append(x.shape[axis - offset] if isinstance(dim, Batch) and axis >= offset else dim)
    if any(isinstance(dim, Batch) for dim in target):
        raise ValueError("the batch size of this Expand is not known from its input")
    return [np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(target)))]


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceMean": lambda x, **kw: np.mean(x, dtype=x.dtype, **kw),
    "ReduceSum": lambda x, **kw: np.sum(x, dtype=x.dtype, **kw),
    "ReduceProd": lambda x, **kw: np.prod(x, dtype=x.dtype, **kw),
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceL1": lambda x, **kw: np.sum(np.abs(x), dtype=x.dtype, **kw),
    "ReduceL2": lambda x, **kw: np.sqrt(np.sum(np.square(x), dtype=x.dtype, **kw)),
    "ReduceSumSquare": lambda x, **kw: np.sum(np.square(x), dtype=x.dtype, **kw),
}


def _reduce(node: Node, inputs: list[Array | None]) -> list[Array]:
    x = _required(inputs)[0]
    axes: tuple[int, ...] = tuple(range(x.ndim))
    if "axes" in node.attrs:
        axes = tuple(node.attrs["axes"])
    elif len(inputs) > 1 and inputs[1] is not None and inputs[1].size:
        axes = tuple(int(axis) for axis in inputs[1].ravel())
    elif node.attrs.get("noop_with_empty_axes"):
        axes = ()
    return [_REDUCTIONS[node.op](x, axis=axes, keepdims=bool(node.attrs["keepdims"]))]


def _global_pool(node: Node, inputs: list[Array | None]) -> list[Array]:
    (x,) = _required(inputs)
    axes = tuple(range(2, x.ndim))
    return [x.mean(axis=axes, keepdims=True) if node.op == "GlobalAveragePool" else x.max(axis=axes, keepdims=True)]


def _pad(node: Node, inputs: list[Array | None]) -> list[Array]:
    x = inputs[0]
    assert x is not None
    if "pads" in node.attrs:
        pads, axes, value = list(node.attrs["pads"]), list(range(x.ndim)), inputs[1]
    else:
        if inputs[1] is None:
            raise ValueError("pads are missing")
        pads, value = [int(pad) for pad in inputs[1]], inputs[2]
        axes = list(range(x.ndim)) if inputs[3] is None else [int(axis) % x.ndim for axis in inputs[3]]
    widths = [(0, 0)] * x.ndim
    for index, axis in enumerate(axes):
        begin, end = pads[index], pads[len(axes) + index]
        # Negative pads remove elements.
        x = np.take(x, range(max(-begin, 0), x.shape[axis] - max(-end, 0)), axis=axis)
        widths[axis] = (max(begin, 0), max(end, 0))
    mode = node.attrs["mode"]
    if mode == "constant":
        fill = 0 if value is None else value.reshape(-1)[0]
        return [np.pad(x, widths, constant_values=fill)]
    return [np.pad(x, widths, mode=mode)]


def _slice(node: Node, inputs: list[Array | None]) -> list[Array] | None:
    if "starts" not in node.attrs:
        return None
    (x,) = _required(inputs)
    index = [slice(None)] * x.ndim
    attrs = node.attrs
    for axis, start, end, step in zip(attrs["axes"], attrs["starts"], attrs["ends"], attrs["steps"], strict=True):
        index[axis] = slice(start, None if end < 0 else end, step)
    return [x[tuple(index)]]


def _conv_transpose(node: Node, inputs: list[Array | None]) -> list[Array]:
    """Every input element spreads ``x * w`` over the outputs of its window; onnx.reference lacks groups."""
    x, w = _required(inputs)[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    attrs = _window_attrs(node, x, list(w.shape[2:]))
    rank, group, outputs = x.ndim - 2, attrs["group"], w.shape[1]
    strides, dilations, kernel, pads = (attrs[name] for name in ("strides", "dilations", "kernel_shape", "pads"))
    extra = attrs.get("output_padding") or [0] * rank
    full = [strides[i] * (x.shape[2 + i] - 1) + dilations[i] * (kernel[i] - 1) + 1 + extra[i] for i in range(rank)]
    y = np.zeros((x.shape[0], group, outputs, *full), x.dtype)
    every = (slice(None),) * 3
    grouped, filters = x.reshape(x.shape[0], group, -1, *x.shape[2:]), w.reshape(group, -1, *w.shape[1:])
    for tap in np.ndindex(*kernel):
        place = tuple(
            slice(dilations[i] * tap[i], dilations[i] * tap[i] + strides[i] * (x.shape[2 + i] - 1) + 1, strides[i])
            for i in range(rank)
        )
        y[every + place] += np.einsum("ngc...,gco->ngo...", grouped, filters[every + tap])
    inner = tuple(slice(pads[i], full[i] - pads[rank + i]) for i in range(rank))
    y = y.reshape(x.shape[0], group * outputs, *full)[every[:2] + inner]
    return [y if bias is None else y + bias.reshape(-1, *[1] * rank)]


def _resize(node: Node, inputs: list[Array | None]) -> list[Array]:
    x, attrs = inputs[0], node.attrs
    assert x is not None
    reason = resize_ops.unsupported(attrs)
    if reason:
        raise ValueError(reason)
    if "scales" in attrs:
        sizes = [old if isinstance(new, Batch) else new for old, new in zip(x.shape, attrs["sizes"], strict=True)]
        return [resize_ops.resize(x, attrs, sizes, attrs["scales"])]
    axes = [axis % x.ndim for axis in attrs.get("axes") or range(x.ndim)]
    factors, sizes = [1.0] * x.ndim, list(x.shape)
    for place, axis in enumerate(axes):
        if inputs[1] is not None and inputs[1].size:
            factors[axis] = float(inputs[1].ravel()[place])
            sizes[axis] = resize_ops.output_size(x.shape[axis], factors[axis])
        elif inputs[2] is not None:
            sizes[axis] = int(inputs[2].ravel()[place])
            factors[axis] = sizes[axis] / x.shape[axis]
    return [resize_ops.resize(x, attrs, sizes, factors)]


def _split(node: Node, inputs: list[Array | None]) -> list[Array]:
    x = _required(inputs)[0]
    axis = node.attrs["axis"]
    sizes = node.attrs.get("split")
    if sizes is None:
        given = inputs[1] if len(inputs) > 1 else None
        if given is not None:
            sizes = [int(size) for size in given]
        else:
            block = -(-x.shape[axis] // len(node.outputs))
            sizes = [block] * (len(node.outputs) - 1)
            sizes.append(x.shape[axis] - sum(sizes))
    return list(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def _softmax(node: Node, inputs: list[Array | None]) -> list[Array]:
    (x,) = _required(inputs)
    axis = node.attrs["axis"] % max(x.ndim, 1)
    y = x.reshape(int(np.prod(x.shape[:axis])), -1) if node.attrs.get("coerce_to_matrix") else x
    axis = 1 if node.attrs.get("coerce_to_matrix") else axis
    shifted = y - y.max(axis=axis, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=axis, keepdims=True)
    y = shifted - np.log(total) if node.op == "LogSoftmax" else exponentials / total
    return [y.reshape(x.shape)]


def _quantize_linear(node: Node, inputs: list[Array | None]) -> list[Array] | None:
    """saturate(round(x / scale) + zero_point), saturating before the cast: an int32 would wrap for a large x."""
    x, scale, zero_point = _required(inputs)
    if integer_limits(zero_point.dtype) is None:
        return None  # a float type, left to onnx.reference
    if scale.size > 1:
        column = [1] * x.ndim
        column[node.attrs["axis"]] = -1
        scale = scale.reshape(column)
        zero_point = zero_point.reshape(column) if zero_point.size > 1 else zero_point.reshape(())
    else:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return [integer_ops.saturate(x / scale.astype(x.dtype), zero_point)]


def _dequantize_linear(node: Node, inputs: list[Array | None]) -> list[Array] | None:
    x, scale = _required(inputs)[:2]
    zero_point = inputs[2] if len(inputs) > 2 else None
    if integer_limits(x.dtype) is None:
        return None
    axis = node.attrs["axis"] % max(x.ndim, 1)
    return [integer_ops.dequantize(x, scale, zero_point, axis, node.attrs.get("block_size", 0))]


def _batch_normalization(node: Node, inputs: list[Array | None]) -> list[Array]:
    x, *parameters = _required(inputs)
    column = [1] * x.ndim
    column[1 if x.ndim > 1 else 0] = -1
    scale, bias, mean, var = (value.reshape(column) for value in parameters)
    y = scale * (x - mean) / np.sqrt(var + var.dtype.type(node.attrs["epsilon"])) + bias
    return [y.astype(x.dtype)]


def _lrn(node: Node, inputs: list[Array | None]) -> list[Array]:
    # onnx.reference normalises only as many channels as there are samples.
    (x,) = _required(inputs)
    size, channels = node.attrs["size"], x.shape[1]
    squares = np.zeros((x.shape[0], channels + size - 1, *x.shape[2:]), x.dtype)
    squares[:, (size - 1) // 2 : (size - 1) // 2 + channels] = x * x
    sums = np.sum([squares[:, i : i + channels] for i in range(size)], axis=0, dtype=x.dtype)
    alpha, beta, bias = (x.dtype.type(node.attrs[name]) for name in ("alpha", "beta", "bias"))
    return [x / (bias + alpha / x.dtype.type(size) * sums) ** beta]


_OWN: dict[str, Callable[[Node, list[Array | None]], list[Array] | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Reshape": _shaped,
    "Expand": _shaped,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Resize": _resize,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "BatchNormalization": _batch_normalization,
    "LRN": _lrn,
    **dict.fromkeys(_REDUCTIONS, _reduce),
}


class ReferenceModel:
    """An ONNX file evaluated node by node, as it is written: nothing that lowering could get wrong is shared with it.

    Constant subgraphs are computed once. A model that fixes its batch size is run that many samples at a time.
    """

    def __init__(self, source: str | os.PathLike[str] | onnx.ModelProto) -> None:
        model, base_dir, name = load_model(source)
        raw = read_graph(model, base_dir, name)
        problems = Problems()
        constants = dict(raw.constants)
        nodes = normalise_nodes(raw.nodes, raw.outputs, constants, raw.opset, problems)
        if problems:
            raise UnsupportedModelError(problems.describe(name))
        self.source = name
        self.inputs: list[RawInput] = raw.inputs
        self.outputs: list[str] = raw.outputs
        self.nodes: list[Node] = []
        self._constants = constants
        budget = Budget(sum(array.nbytes for array in constants.values()))
        readers = Counter(tensor for node in nodes for tensor in node.inputs if tensor)
        readers.update(raw.outputs)
        for node in nodes:
            if not any(node.inputs) or not all(tensor in constants for tensor in node.inputs if tensor):
                self.nodes.append(node)
                continue
            reason = too_large(node, [constants.get(tensor) for tensor in node.inputs])
            if not reason:
                results = dict(zip(node.outputs, self._evaluate(node, constants), strict=False))
                constants.update(results)
                for tensor in filter(None, node.inputs):
                    readers[tensor] -= 1
                    if readers[tensor] == 0:
                        budget.drop(constants.pop(tensor).nbytes)
                reason = budget.add(sum(array.nbytes for array in results.values()))
            if reason:
                raise UnsupportedModelError(f"{name}: {node}: {reason}")
        # Whether an operator takes something over the whole batch; then each sample runs by itself.
        self._mixes_samples = any(node.op == "DynamicQuantizeLinear" for node in self.nodes)
        self._last_use: list[list[str]] = self._dead_after_each_node()

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the file prescribes, if it does."""
        sizes = {value.shape[0] for value in self.inputs if value.shape}
        fixed = [size for size in sizes if isinstance(size, int)]
        return fixed[0] if fixed else None

    def run(
        self,
        feeds: Mapping[str, Array],
        *,
        intermediates: bool = False,
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> dict[str, Array]:
        """The outputs for any number of samples; with ``intermediates`` every tensor that depends on the inputs.

        Samples lie along axis 0 of every input. ``progress(done, total)`` is called after each block of samples. An
        intermediate without batch axis (a shape, say) is that of the first block.
        """
        self._check_feeds(feeds)
        return self._in_blocks(feeds, lambda chunk: self._run_block(chunk, intermediates), batch_size, progress)

    def recompute(self, name: str, feeds: Mapping[str, Array], given: Mapping[str, Array]) -> Array:
        """The tensor ``name`` where the tensors ``given``, with a batch axis, are these instead of computed ones."""
        needed, nodes = {name}, []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs) - given.keys():
                nodes.append(node)
                needed.update(node.inputs)

        def evaluate(chunk: dict[str, Array]) -> dict[str, Array]:
            values = dict(chunk)
            for node in reversed(nodes):
                results = zip(node.outputs, self._evaluate(node, values), strict=False)
                values.update((output, array) for output, array in results if output not in given)
            return {name: values[name]}

        return self._in_blocks({**feeds, **given}, evaluate)[name]

    def exact_sums(self, name: str, values: Mapping[str, Array]) -> tuple[Array, Array] | None:
        """The tensor ``name`` of a Conv, Gemm or MatMul with sums in float64, and how far float32 sums can be off.

        ``values`` has what the node reads. The second is four units in the last place of the sum of magnitudes. None
        where another operator writes the tensor.
        """
        node = next((node for node in self.nodes if name in node.outputs), None)
        if node is None or node.op not in ("Conv", "Gemm", "MatMul") or node.domain:
            return None
        inputs = [(values[i] if i in values else self._constants.get(i)) if i else None for i in node.inputs]
        if any(value is None and name for value, name in zip(inputs, node.inputs, strict=True)):
            return None
        wide = [None if value is None else value.astype(np.float64) for value in inputs]
        (sums,) = evaluate_node(node, wide)
        (magnitudes,) = evaluate_node(node, [None if value is None else np.abs(value) for value in wide])
        return sums.astype(np.float32), (magnitudes * 2.0**-22).astype(np.float32)

    def _in_blocks(
        self,
        feeds: Mapping[str, Array],
        evaluate: Callable[[dict[str, Array]], dict[str, Array]],
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> dict[str, Array]:
        samples = next(iter(feeds.values())).shape[0]
        block = self.fixed_batch or (1 if self._mixes_samples else max(1, batch_size))
        pieces: dict[str, list[Array]] = {}
        for first in range(0, samples, block):
            count = min(block, samples - first)
            chunk = {name: array[first : first + block] for name, array in feeds.items()}
            if count < block and self.fixed_batch:
                # The last block of a fixed-batch model is filled up with copies of its last sample.
                chunk = {
                    name: np.concatenate([part, np.repeat(part[-1:], block - count, axis=0)])
                    for name, part in chunk.items()
                }
            rows = next(iter(chunk.values())).shape[0]
            for name, array in evaluate(chunk).items():
                batched = array.ndim > 0 and rows > 0 and array.shape[0] % rows == 0
                if batched:
                    per_sample = array.shape[0] // rows
                    pieces.setdefault(name, []).append(array[: count * per_sample])
                elif name not in pieces:
                    if name in self.outputs and samples > block:
                        raise UnsupportedModelError(
                            f"{self.source}: output '{name}' of shape {list(array.shape)} has no batch axis, so "
                            f"{samples} samples cannot be run in blocks of {block}"
                        )
                    pieces[name] = [array]
            if progress is not None:
                progress(first + count, samples)
        return {name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in pieces.items()}

    def _dead_after_each_node(self) -> list[list[str]]:
        last: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            for name in (*node.inputs, *node.outputs):
                last[name] = index
        dead: list[list[str]] = [[] for _ in self.nodes]
        for name, index in last.items():
            if name and name not in self.outputs and name not in self._constants:
                dead[index].append(name)
        return dead

    def _run_block(self, feeds: Mapping[str, Array], keep_all: bool) -> dict[str, Array]:
        values = dict(feeds)
        for node, dead in zip(self.nodes, self._last_use, strict=True):
            values.update(zip(node.outputs, self._evaluate(node, values), strict=False))
            if not keep_all:
                for name in dead:
                    values.pop(name, None)
        wanted = values if keep_all else self.outputs
        return {name: values[name] if name in values else self._constants[name] for name in wanted if name}

    def _evaluate(self, node: Node, values: Mapping[str, Array]) -> list[Array]:
        inputs = [(values[name] if name in values else self._constants[name]) if name else None for name in node.inputs]
        try:
            return evaluate_node(node, inputs)
        except Exception as error:  # onnx.reference raises whatever numpy raises, and types of its own
            shapes = ", ".join("none" if value is None else f"{value.dtype}{list(value.shape)}" for value in inputs)
            raise UnsupportedModelError(f"{self.source}: {node} fails on inputs {shapes}: {error}") from error

    def _check_feeds(self, feeds: Mapping[str, Array]) -> None:
        expected = {value.name for value in self.inputs}
        if set(feeds) != expected:
            raise InvalidInputError(f"inputs {sorted(expected)} are expected, found {sorted(feeds)}")
        counts: dict[str, int] = {}
        for value in self.inputs:
            array = feeds[value.name]
            if array.dtype != value.dtype:
                raise InvalidInputError(f"input '{value.name}': dtype {value.dtype} is expected, found {array.dtype}")
            fits = value.shape is None or (
                array.ndim == len(value.shape)
                and all(
                    not isinstance(dim, int) or dim == size
                    for dim, size in zip(value.shape[1:], array.shape[1:], strict=True)
                )
            )
            if not fits or array.ndim == 0:
                wanted = [] if value.shape is None else ["N", *(dim or "?" for dim in value.shape[1:])]
                raise InvalidInputError(f"input '{value.name}': shape {wanted} is expected, found {list(array.shape)}")
            counts[value.name] = array.shape[0]
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise InvalidInputError(f"inputs need one and the same number of samples, at least 1; found {counts}")
