"""Shape and dtype of every operator's outputs, and its final form: what needed shapes is resolved and written to attrs.

A rule may rewrite its node (drop a shape input, set explicit pads) and is called again after that: it takes both forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from .. import resize_ops
from ..graph import Array, Batch, Dim, Node, Shape
from ..qonnx_ops import threshold_axis
from ..window_ops import make_explicit, window_count
from .base import RuleError
from .normalise_ops import REDUCTIONS

DType = np.dtype[Any]
Typed = tuple[Shape, DType]

UNARY_OPS = frozenset(
    """Abs Acos Acosh Asin Asinh Atan Atanh Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu
    Log Mish Neg Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh
    ThresholdedRelu""".split()
)
ARITHMETIC_OPS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mod"})
COMPARISON_OPS = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
LOGIC_OPS = frozenset({"And", "Or", "Xor"})
_INT64 = np.dtype(np.int64)
_BOOL = np.dtype(np.bool_)
_UINT8 = np.dtype(np.uint8)


@dataclass
class RuleInputs:
    """What is known of a node's inputs; a left-out one has None everywhere. ``values``: see shape_values.py."""

    node: Node
    shapes: list[Shape | None]
    dtypes: list[DType | None]
    constants: list[Array | None]
    values: list[Array | None]
    literal_batch: int | None

    def shape(self, index: int) -> Shape:
        shape = self.shapes[index]
        if shape is None:
            raise RuleError(f"input {index} is missing")
        return shape

    def dtype(self, index: int) -> DType:
        dtype = self.dtypes[index]
        if dtype is None:
            raise RuleError(f"input {index} is missing")
        return dtype

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def integers(self, index: int, what: str) -> list[int] | None:
        """A constant integer input; None if it is left out."""
        if not self.has(index):
            return None
        constant = self.constants[index]
        if constant is None:
            raise RuleError(f"{what} are computed from the data; constants are expected")
        return [int(value) for value in constant.ravel()]

    def dims(self, index: int, what: str) -> list[Dim]:
        """An input that holds dimensions, known up to the batch size."""
        value = self.values[index]
        if value is None:
            raise RuleError(f"{what} is computed from the data; a constant or the shape of a tensor is expected")
        return [dim if isinstance(dim, Batch) else int(dim) for dim in value.ravel()]


Rule = Callable[[RuleInputs], list[Typed]]


def shape_text(shape: Sequence[Dim]) -> str:
    return "[" + ", ".join(str(dim) for dim in shape) + "]"


def broadcast(shapes: Sequence[Shape]) -> Shape:
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for axis in range(rank):
        dims = {shape[axis - rank + len(shape)] for shape in shapes if axis - rank + len(shape) >= 0} - {1}
        if len(dims) > 1:
            raise RuleError("shapes " + " and ".join(shape_text(shape) for shape in shapes) + " do not broadcast")
        result.append(dims.pop() if dims else 1)
    return tuple(result)


def count_elements(shape: Sequence[Dim]) -> tuple[int, int]:
    """(c, p): the shape has c * N**p elements."""
    coefficient, power = 1, 0
    for dim in shape:
        coefficient *= dim.factor if isinstance(dim, Batch) else dim
        power += isinstance(dim, Batch)
    return coefficient, power


def normal_axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise RuleError(f"axis {axis} does not exist in a tensor of rank {rank}")
    return axis % rank


def _static(dim: Dim, what: str) -> int:
    if isinstance(dim, Batch):
        raise RuleError(f"{what} would mix the samples of a batch")
    return dim


def _same_dtype(inputs: RuleInputs, indices: Sequence[int]) -> DType:
    dtypes = {inputs.dtype(index) for index in indices}
    if len(dtypes) > 1:
        raise RuleError("inputs of one element type are expected, found " + " and ".join(sorted(map(str, dtypes))))
    return dtypes.pop()


# Elementwise ----------------------------------------------------------------------------------------------------------


def _unary(inputs: RuleInputs) -> list[Typed]:
    return [(inputs.shape(0), inputs.dtype(0))]


def _float_only(inputs: RuleInputs) -> list[Typed]:
    if not np.issubdtype(inputs.dtype(0), np.floating):
        raise RuleError(f"a float input is expected, found {inputs.dtype(0)}")
    return _unary(inputs)


def _arithmetic(inputs: RuleInputs) -> list[Typed]:
    dtype = inputs.dtype(0) if inputs.node.op == "Pow" else _same_dtype(inputs, (0, 1))
    return [(broadcast([inputs.shape(0), inputs.shape(1)]), dtype)]


def _comparison(inputs: RuleInputs) -> list[Typed]:
    _same_dtype(inputs, (0, 1))
    return [(broadcast([inputs.shape(0), inputs.shape(1)]), _BOOL)]


def _not(inputs: RuleInputs) -> list[Typed]:
    if inputs.dtype(0) != _BOOL:
        raise RuleError(f"a bool input is expected, found {inputs.dtype(0)}")
    return _unary(inputs)


def _is_predicate(inputs: RuleInputs) -> list[Typed]:
    return [(inputs.shape(0), _BOOL)]


def _where(inputs: RuleInputs) -> list[Typed]:
    if inputs.dtype(0) != _BOOL:
        raise RuleError(f"a bool condition is expected, found {inputs.dtype(0)}")
    return [(broadcast([inputs.shape(0), inputs.shape(1), inputs.shape(2)]), _same_dtype(inputs, (1, 2)))]


def _scatter(inputs: RuleInputs) -> list[Typed]:
    node = inputs.node
    if "masked" not in node.attrs:
        raise RuleError("its positions or values are computed at run time; only y[mask] = constant is supported")
    mask, data = inputs.shape(0), inputs.shape(2)
    same_batch = bool(mask and data) and data[0] in (mask[0], inputs.literal_batch)
    if len(mask) != len(data) or mask[1:] != data[1:] or not same_batch:
        raise RuleError(f"a mask of shape {shape_text(mask)} selects from a tensor of shape {shape_text(data)}")
    node.op, node.attrs = "Where", {}
    return _where(inputs)


def _non_zero(inputs: RuleInputs) -> list[Typed]:
    raise RuleError("how many positions it gives depends on the data; only y[mask] = constant is supported")


def _clip(inputs: RuleInputs) -> list[Typed]:
    for index in (1, 2):
        if inputs.has(index) and count_elements(inputs.shape(index)) != (1, 0):
            raise RuleError(f"scalar bounds are expected, found shape {shape_text(inputs.shape(index))}")
    return _unary(inputs)


def _prelu(inputs: RuleInputs) -> list[Typed]:
    shape = inputs.shape(0)
    if broadcast([shape, inputs.shape(1)]) != shape:
        raise RuleError(f"slope {shape_text(inputs.shape(1))} does not broadcast to {shape_text(shape)}")
    return [(shape, _same_dtype(inputs, (0, 1)))]


def _batch_normalization(inputs: RuleInputs) -> list[Typed]:
    shape = inputs.shape(0)
    channels = shape[1] if len(shape) > 1 else shape[0]
    for index, what in enumerate(("scale", "bias", "mean", "variance"), 1):
        if inputs.shape(index) != (channels,):
            raise RuleError(f"{what} of shape [{channels}] is expected, found {shape_text(inputs.shape(index))}")
    return [(shape, _same_dtype(inputs, range(5)))]


def _lrn(inputs: RuleInputs) -> list[Typed]:
    size = inputs.node.attrs["size"]
    if size < 1:
        raise RuleError(f"size {size}: at least 1 is expected")
    _static(inputs.shape(0)[1], "normalising over the batch axis")
    return _float_only(inputs)


def _cast(inputs: RuleInputs) -> list[Typed]:
    to = inputs.node.attrs["to"]
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to))
    except (KeyError, TypeError, ValueError) as error:
        raise RuleError(f"unknown element type {to}") from error
    if to == onnx.TensorProto.STRING:
        raise RuleError("strings are not supported")
    return [(inputs.shape(0), dtype)]


def _cast_like(inputs: RuleInputs) -> list[Typed]:
    node = inputs.node
    dtype = inputs.dtype(1)
    node.op, node.inputs = "Cast", node.inputs[:1]
    node.attrs = {"to": int(onnx.helper.np_dtype_to_tensor_dtype(dtype))}
    return [(inputs.shape(0), dtype)]


def _quantize_linear(inputs: RuleInputs) -> list[Typed]:
    node, shape = inputs.node, inputs.shape(0)
    quantizes = node.op == "QuantizeLinear"
    if node.attrs.get("block_size"):
        raise RuleError("scales of blocks run only on constants")
    node.attrs.pop("block_size", None)
    if count_elements(inputs.shape(1)) == (1, 0):
        # Per tensor: the axis means nothing, and the scale is a scalar.
        node.attrs["axis"] = min(1, max(len(shape) - 1, 0))
    else:
        axis = node.attrs["axis"] = normal_axis(node.attrs["axis"], len(shape))
        if inputs.shape(1) != (shape[axis],):
            raise RuleError(f"scale of shape [{shape[axis]}] is expected, found {shape_text(inputs.shape(1))}")
    if inputs.has(2) and inputs.shape(2) != inputs.shape(1) and count_elements(inputs.shape(2)) != (1, 0):
        raise RuleError(
            f"zero point {shape_text(inputs.shape(2))} does not fit the scale {shape_text(inputs.shape(1))}"
        )
    if not quantizes and inputs.has(2) and inputs.dtype(2) != inputs.dtype(0):
        raise RuleError(f"zero point of type {inputs.dtype(0)} is expected, found {inputs.dtype(2)}")
    return [(shape, inputs.dtype(2) if quantizes else inputs.dtype(1))]


def _dynamic_quantize_linear(inputs: RuleInputs) -> list[Typed]:
    """Only until it is expanded."""
    return [(inputs.shape(0), _UINT8), ((), np.dtype(np.float32)), ((), _UINT8)]


def _qonnx(inputs: RuleInputs) -> list[Typed]:
    shape = inputs.shape(0)
    _float_only(inputs)
    for index in range(1, len(inputs.node.inputs)):
        if broadcast([shape, inputs.shape(index)]) != shape:
            raise RuleError(
                f"parameter {index} {shape_text(inputs.shape(index))} does not broadcast to {shape_text(shape)}"
            )
    return [(shape, inputs.dtype(0))]


def _multi_threshold(inputs: RuleInputs) -> list[Typed]:
    shape, thresholds = inputs.shape(0), inputs.shape(1)
    if not shape:
        raise RuleError("a scalar has no channels")
    channels = shape[threshold_axis(inputs.node.attrs["data_layout"], len(shape))]
    if len(thresholds) != 2 or thresholds[0] not in (1, channels):
        raise RuleError(f"thresholds [{channels}, steps] are expected, found {shape_text(thresholds)}")
    return _float_only(inputs)


def _im2col(inputs: RuleInputs) -> list[Typed]:
    attrs, shape = inputs.node.attrs, inputs.shape(0)
    if len(shape) != 4:
        raise RuleError(f"a map [N, H, W, C] is expected, found {shape_text(shape)}")
    height, width, channels = (_static(dim, "a window over the batch axis") for dim in shape[1:])
    kernel, pads = attrs["kernel_shape"], attrs["pads"]
    sizes = [
        window_count(size, kernel[axis], attrs["strides"][axis], attrs["dilations"][axis], pads[axis], pads[axis + 2])
        for axis, size in enumerate((height, width))
    ]
    if min(sizes) < 1:
        raise RuleError(f"the window {kernel} is larger than the padded map {shape_text(shape)}")
    return [((shape[0], *sizes, kernel[0] * kernel[1] * channels), inputs.dtype(0))]


# Windows and products -------------------------------------------------------------------------------------------------


def _resolve_window(inputs: RuleInputs, kernel: list[int]) -> list[int]:
    """Explicit window attributes; returns the spatial sizes of the input."""
    node, shape = inputs.node, inputs.shape(0)
    rank = len(shape) - 2
    if rank < 1:
        raise RuleError(f"an input [N, C, ...] of rank 3 or more is expected, found {shape_text(shape)}")
    sizes = [_static(dim, "a window over the batch axis") for dim in shape[2:]]
    make_explicit(node.attrs, sizes, kernel)
    return sizes


def _window_output(attrs: dict[str, Any], sizes: list[int]) -> list[int]:
    rank = len(sizes)
    out = [
        window_count(
            sizes[axis],
            attrs["kernel_shape"][axis],
            attrs["strides"][axis],
            attrs["dilations"][axis],
            attrs["pads"][axis],
            attrs["pads"][rank + axis],
            bool(attrs.get("ceil_mode", 0)),
        )
        for axis in range(rank)
    ]
    if min(out) < 1:
        raise RuleError(f"the window {attrs['kernel_shape']} is larger than its padded input {sizes}")
    return out


def _conv(inputs: RuleInputs) -> list[Typed]:
    shape, filters = inputs.shape(0), inputs.shape(1)
    if len(filters) != len(shape):
        raise RuleError(f"weights of rank {len(shape)} are expected, found {shape_text(filters)}")
    dims = [_static(dim, "weights with a batch axis") for dim in filters]
    sizes = _resolve_window(inputs, dims[2:])
    attrs = inputs.node.attrs
    if attrs["kernel_shape"] != dims[2:]:
        raise RuleError(f"kernel_shape {attrs['kernel_shape']} does not fit the weights {shape_text(filters)}")
    group = attrs["group"]
    if group < 1 or dims[0] % group or shape[1] != dims[1] * group:
        raise RuleError(f"weights {shape_text(filters)} with group {group} do not fit an input {shape_text(shape)}")
    if inputs.has(2) and inputs.shape(2) != (dims[0],):
        raise RuleError(f"a bias of shape [{dims[0]}] is expected, found {shape_text(inputs.shape(2))}")
    dtype = _same_dtype(inputs, [0, 1, 2] if inputs.has(2) else [0, 1])
    return [((shape[0], dims[0], *_window_output(attrs, sizes)), dtype)]


def _conv_transpose(inputs: RuleInputs) -> list[Typed]:
    shape, filters, attrs = inputs.shape(0), inputs.shape(1), inputs.node.attrs
    if len(shape) != 4 or len(filters) != 4:
        raise RuleError(
            f"an input and weights of rank 4 are expected, found {shape_text(shape)}, {shape_text(filters)}"
        )
    dims = [_static(dim, "weights with a batch axis") for dim in filters]
    sizes = [_static(dim, "a window over the batch axis") for dim in shape[2:]]
    make_explicit(attrs, sizes, dims[2:])
    padding = attrs.setdefault("output_padding", [0, 0])
    if len(padding) != 2 or any(
        not 0 <= padding[i] < max(attrs["strides"][i], attrs["dilations"][i]) for i in range(2)
    ):
        raise RuleError(f"output_padding {padding} is not below strides {attrs['strides']}")
    group = attrs["group"]
    if group < 1 or dims[0] % group or shape[1] != dims[0] or attrs["kernel_shape"] != dims[2:]:
        raise RuleError(f"weights {shape_text(filters)} with group {group} do not fit an input {shape_text(shape)}")
    if inputs.has(2) and inputs.shape(2) != (dims[1] * group,):
        raise RuleError(f"a bias of shape [{dims[1] * group}] is expected, found {shape_text(inputs.shape(2))}")
    out = [
        attrs["strides"][i] * (sizes[i] - 1)
        + padding[i]
        + attrs["dilations"][i] * (dims[2 + i] - 1)
        + 1
        - attrs["pads"][i]
        - attrs["pads"][2 + i]
        for i in range(2)
    ]
    if min(out) < 1:
        raise RuleError(f"pads {attrs['pads']} leave nothing of the result")
    return [((shape[0], dims[1] * group, *out), _same_dtype(inputs, [0, 1]))]


def _layer_normalization(inputs: RuleInputs) -> list[Typed]:
    shape, attrs = inputs.shape(0), inputs.node.attrs
    axis = attrs["axis"] = normal_axis(attrs["axis"], len(shape))
    if any(isinstance(dim, Batch) for dim in shape[axis:]):
        raise RuleError("normalising over the batch axis would mix the samples of a batch")
    for index in (1, 2):
        if inputs.has(index) and broadcast([shape, inputs.shape(index)]) != shape:
            raise RuleError(f"a scale {shape_text(inputs.shape(index))} does not fit an input {shape_text(shape)}")
    return [(shape, inputs.dtype(0))]


def _instance_normalization(inputs: RuleInputs) -> list[Typed]:
    shape = inputs.shape(0)
    if len(shape) < 3:
        raise RuleError(f"an input [N, C, ...] of rank 3 or more is expected, found {shape_text(shape)}")
    for index in (1, 2):
        if inputs.shape(index) != (shape[1],):
            raise RuleError(f"{shape[1]} scales and biases are expected, found {shape_text(inputs.shape(index))}")
    return [(shape, inputs.dtype(0))]


def _depth_to_space(inputs: RuleInputs) -> list[Typed]:
    shape, attrs = inputs.shape(0), inputs.node.attrs
    if len(shape) != 4:
        raise RuleError(f"an input of rank 4 is expected, found {shape_text(shape)}")
    depth, height, width = (_static(dim, "splitting the batch axis") for dim in shape[1:])
    block = attrs["blocksize"]
    if inputs.node.op == "SpaceToDepth":
        if block < 1 or height % block or width % block:
            raise RuleError(f"blocks of {block} do not fit an input {shape_text(shape)}")
        return [((shape[0], depth * block * block, height // block, width // block), inputs.dtype(0))]
    if attrs["mode"] not in ("DCR", "CRD"):
        raise RuleError(f"unknown mode '{attrs['mode']}'")
    if block < 1 or depth % (block * block):
        raise RuleError(f"blocks of {block} do not fit an input {shape_text(shape)}")
    return [((shape[0], depth // (block * block), height * block, width * block), inputs.dtype(0))]


def _resize(inputs: RuleInputs) -> list[Typed]:
    """Resolves scales and sizes into attrs: a factor for each axis, and the new shape."""
    node, shape, attrs = inputs.node, inputs.shape(0), inputs.node.attrs
    if "scales" in attrs:
        return [(attrs["sizes"], inputs.dtype(0))]
    reason = resize_ops.unsupported(attrs)
    if reason:
        raise RuleError(reason)
    axes = [normal_axis(axis, len(shape)) for axis in attrs.pop("axes", None) or range(len(shape))]
    scales, sizes = [1.0] * len(shape), list(shape)
    if inputs.has(1) and inputs.constants[1] is None:
        raise RuleError("the scales are computed from the data; constants are expected")
    given = inputs.constants[1]
    if given is not None and given.size:
        if given.size != len(axes) or not np.all(given > 0):
            raise RuleError(f"{len(axes)} positive scales are expected, found {given.ravel().tolist()}")
        for axis, scale in zip(axes, given.ravel().tolist(), strict=True):
            scales[axis] = float(scale)
            if scale != 1.0:
                size = _static(shape[axis], "resizing the batch axis")
                sizes[axis] = resize_ops.output_size(size, float(scale))
    elif inputs.has(2):
        wanted = inputs.dims(2, "the new sizes")
        if len(wanted) != len(axes):
            raise RuleError(f"{len(axes)} sizes are expected, found {len(wanted)}")
        for axis, dim in zip(axes, wanted, strict=True):
            old = shape[axis]
            if dim == old or (isinstance(old, Batch) and dim == inputs.literal_batch):
                continue
            size = _static(old, "resizing the batch axis")
            sizes[axis] = new_size = _static(dim, "a size that depends on the batch")
            scales[axis] = new_size / size
    else:
        raise RuleError("scales and sizes are missing")
    if any(isinstance(size, int) and size < 1 for size in sizes):
        raise RuleError(f"scales {scales} leave nothing of {shape_text(shape)}")
    node.inputs, node.attrs = node.inputs[:1], {**attrs, "scales": scales, "sizes": tuple(sizes)}
    return [(tuple(sizes), inputs.dtype(0))]


def _pool(inputs: RuleInputs) -> list[Typed]:
    shape = inputs.shape(0)
    sizes = _resolve_window(inputs, [])
    return [((*shape[:2], *_window_output(inputs.node.attrs, sizes)), inputs.dtype(0))]


def _global_pool(inputs: RuleInputs) -> list[Typed]:
    shape = inputs.shape(0)
    if len(shape) < 3:
        raise RuleError(f"an input [N, C, ...] of rank 3 or more is expected, found {shape_text(shape)}")
    return [((*shape[:2], *[1] * (len(shape) - 2)), inputs.dtype(0))]


def _mat_mul(inputs: RuleInputs) -> list[Typed]:
    a, b = inputs.shape(0), inputs.shape(1)
    dtype = _same_dtype(inputs, (0, 1))
    if not a or not b:
        raise RuleError("matrices are expected, found a scalar")
    rows, columns = (a if len(a) > 1 else (1, *a)), (b if len(b) > 1 else (*b, 1))
    if rows[-1] != columns[-2]:
        raise RuleError(f"shapes {shape_text(a)} and {shape_text(b)} cannot be multiplied")
    _static(rows[-1], "a sum over the batch axis")
    shape = (*broadcast([rows[:-2], columns[:-2]]),) if len(rows) > 2 or len(columns) > 2 else ()
    shape += (rows[-2],) if len(a) > 1 else ()
    shape += (columns[-1],) if len(b) > 1 else ()
    return [(shape, dtype)]


def _gemm(inputs: RuleInputs) -> list[Typed]:
    a, b, attrs = inputs.shape(0), inputs.shape(1), inputs.node.attrs
    if len(a) != 2 or len(b) != 2:
        raise RuleError(f"two matrices are expected, found {shape_text(a)} and {shape_text(b)}")
    rows, inner_a = (a[1], a[0]) if attrs["transA"] else a
    inner_b, columns = (b[1], b[0]) if attrs["transB"] else b
    if inner_a != inner_b:
        raise RuleError(f"shapes {shape_text(a)} and {shape_text(b)} cannot be multiplied")
    _static(inner_a, "a sum over the batch axis")
    shape: Shape = (rows, columns)
    if inputs.has(2) and broadcast([shape, inputs.shape(2)]) != shape:
        raise RuleError(f"C of shape {shape_text(inputs.shape(2))} does not broadcast to {shape_text(shape)}")
    return [(shape, _same_dtype(inputs, [0, 1, 2] if inputs.has(2) else [0, 1]))]


# Reductions -----------------------------------------------------------------------------------------------------------


def _drop_axes(shape: Shape, axes: Sequence[int], keep: bool) -> Shape:
    for axis in axes:
        _static(shape[axis], "reducing the batch axis")
    if keep:
        return tuple(1 if axis in axes else dim for axis, dim in enumerate(shape))
    return tuple(dim for axis, dim in enumerate(shape) if axis not in axes)


def _reduce(inputs: RuleInputs) -> list[Typed]:
    node, shape = inputs.node, inputs.shape(0)
    axes = node.attrs.get("axes")
    if axes is None:
        axes = inputs.integers(1, "axes")
        if not axes:
            axes = [] if node.attrs.get("noop_with_empty_axes") else list(range(len(shape)))
    axes = sorted({normal_axis(axis, len(shape)) for axis in axes})
    keep = node.attrs["keepdims"]
    result = _drop_axes(shape, axes, bool(keep))
    node.inputs = node.inputs[:1]
    node.attrs = {"axes": axes, "keepdims": keep}
    return [(result, inputs.dtype(0))]


def _arg_max(inputs: RuleInputs) -> list[Typed]:
    attrs, shape = inputs.node.attrs, inputs.shape(0)
    attrs["axis"] = normal_axis(attrs["axis"], len(shape))
    return [(_drop_axes(shape, [attrs["axis"]], bool(attrs["keepdims"])), _INT64)]


def _softmax(inputs: RuleInputs) -> list[Typed]:
    attrs, shape = inputs.node.attrs, inputs.shape(0)
    axis = normal_axis(attrs["axis"], len(shape))
    if attrs.pop("coerce_to_matrix", 0) and any(dim != 1 for dim in shape[axis + 1 :]):
        raise RuleError(
            f"before opset 13 it normalises over all axes from {axis} on; only one axis is supported, the input is "
            f"{shape_text(shape)}"
        )
    attrs["axis"] = axis
    _static(shape[axis], "normalising over the batch axis")
    return _float_only(inputs)


# Moving elements ------------------------------------------------------------------------------------------------------


def resolve_reshape(source: Shape, target: list[Dim], allow_zero: bool, literal_batch: int | None) -> Shape:
    """The shape that a Reshape gives, with the batch size as a symbol.

    A target that spells the file's batch size out ([1, 784] for an input [1, 1, 28, 28]) is read with N in its place.
    """
    text = shape_text(target)
    dims = list(target)
    if dims.count(-1) > 1 or any(isinstance(dim, int) and dim < -1 for dim in dims):
        raise RuleError(f"impossible target shape {text}")
    for axis, dim in enumerate(dims):
        if dim == 0:
            if allow_zero or axis >= len(source):
                raise RuleError(f"target shape {text} has an empty axis {axis}")
            dims[axis] = source[axis]
    batch_axes = [axis for axis, dim in enumerate(source) if isinstance(dim, Batch)]
    if len(batch_axes) > 1:
        raise RuleError(f"the input {shape_text(source)} has the batch size in two axes")
    if batch_axes and not any(isinstance(dim, Batch) for dim in dims) and literal_batch is not None:
        _insert_batch(source, batch_axes[0], dims, literal_batch)
    return _fill_minus_one(source, dims, text)


def _insert_batch(source: Shape, batch_axis: int, dims: list[Dim], literal_batch: int) -> None:
    """Replaces the literal batch size in ``dims`` by N, at the place that keeps as many elements before it."""
    before = count_elements(source[:batch_axis])[0]
    for axis, dim in enumerate(dims):
        if dim == -1:
            return  # the open axis stands before the batch axis or is it
        assert isinstance(dim, int)
        if before == 1 and dim % literal_batch == 0:
            dims[axis] = Batch(dim // literal_batch)
            return
        if before % dim:
            return
        before //= dim


def _fill_minus_one(source: Shape, dims: list[Dim], text: str) -> Shape:
    count, power = count_elements(source)
    known, known_power = count_elements([dim for dim in dims if dim != -1])
    mismatch = RuleError(f"{shape_text(source)} cannot be reshaped to {text}")
    if -1 in dims:
        if known == 0 or count % known or power - known_power not in (0, 1):
            raise mismatch
        missing = count // known
        dims[dims.index(-1)] = Batch(missing) if power > known_power else missing
    elif (known, known_power) != (count, power):
        if power == 1 and known_power == 0:
            raise RuleError(
                f"target shape {text} fixes the batch size, but the input {shape_text(source)} has a dynamic one; "
                "export with a fixed batch size, or give input_shapes"
            )
        raise mismatch
    result = tuple(dims)
    if power == 1:
        position = [
            next(axis for axis, dim in enumerate(shape) if isinstance(dim, Batch)) for shape in (source, result)
        ]
        if count_elements(source[: position[0]]) != count_elements(result[: position[1]]):
            raise RuleError(f"reshaping {shape_text(source)} to {shape_text(result)} mixes the samples of a batch")
    return result


def _as_reshape(inputs: RuleInputs, shape: Shape) -> list[Typed]:
    node = inputs.node
    node.op, node.inputs, node.attrs = "Reshape", node.inputs[:1], {"shape": shape}
    return [(shape, inputs.dtype(0))]


def _reshape(inputs: RuleInputs) -> list[Typed]:
    source = inputs.shape(0)
    resolved = inputs.node.attrs.get("shape")
    if resolved is None:
        target = inputs.dims(1, "the target shape")
        resolved = resolve_reshape(source, target, bool(inputs.node.attrs["allowzero"]), inputs.literal_batch)
    return _as_reshape(inputs, resolved)


def _flatten(inputs: RuleInputs) -> list[Typed]:
    shape = inputs.shape(0)
    axis = inputs.node.attrs["axis"]
    if not -len(shape) <= axis <= len(shape):
        raise RuleError(f"axis {axis} does not exist in a tensor of rank {len(shape)}")
    axis = axis + len(shape) if axis < 0 else axis
    halves: list[Dim] = []
    for part in (shape[:axis], shape[axis:]):
        count, power = count_elements(part)
        halves.append(Batch(count) if power else count)
    if axis == 0 and count_elements(shape)[1]:
        raise RuleError("axis 0 would mix the samples of a batch")
    return _as_reshape(inputs, tuple(halves))


def _squeeze(inputs: RuleInputs) -> list[Typed]:
    shape = inputs.shape(0)
    axes = inputs.integers(1, "axes")
    if axes is None:
        if inputs.literal_batch == 1 and any(isinstance(dim, Batch) for dim in shape):
            raise RuleError("without axes it would drop the batch axis of size 1; give axes, or a dynamic batch axis")
        axes = [axis for axis, dim in enumerate(shape) if dim == 1]
    axes = [normal_axis(axis, len(shape)) for axis in axes]
    for axis in axes:
        if isinstance(shape[axis], Batch):
            raise RuleError(f"it drops axis {axis}, the batch axis")
        if shape[axis] != 1:
            raise RuleError(f"axis {axis} of {shape_text(shape)} is not of size 1")
    return _as_reshape(inputs, tuple(dim for axis, dim in enumerate(shape) if axis not in axes))


def _unsqueeze(inputs: RuleInputs) -> list[Typed]:
    shape = inputs.shape(0)
    axes = inputs.integers(1, "axes")
    if axes is None:
        raise RuleError("axes are missing")
    rank = len(shape) + len(axes)
    places = {normal_axis(axis, rank) for axis in axes}
    if len(places) != len(axes):
        raise RuleError(f"axes {axes} repeat")
    rest = iter(shape)
    return _as_reshape(inputs, tuple(1 if axis in places else next(rest) for axis in range(rank)))


def _transpose(inputs: RuleInputs) -> list[Typed]:
    shape, attrs = inputs.shape(0), inputs.node.attrs
    perm = attrs.setdefault("perm", list(reversed(range(len(shape)))))
    if sorted(perm) != list(range(len(shape))):
        raise RuleError(f"perm {perm} is no order of {len(shape)} axes")
    return [(tuple(shape[axis] for axis in perm), inputs.dtype(0))]


def _concat(inputs: RuleInputs) -> list[Typed]:
    node = inputs.node
    shapes = [inputs.shape(index) for index in range(len(node.inputs))]
    axis = node.attrs["axis"] = normal_axis(node.attrs["axis"], len(shapes[0]))
    dtype = _same_dtype(inputs, range(len(shapes)))
    if axis != 0 and any(shape[:1] == (Batch(),) for shape in shapes):
        # A constant [1, ...] is joined to every sample.
        shapes = [
            (Batch(), *shape[1:]) if constant is not None and shape[:1] == (1,) else shape
            for shape, constant in zip(shapes, inputs.constants, strict=True)
        ]
    first = shapes[0]
    for shape in shapes[1:]:
        if len(shape) != len(first) or shape[:axis] + shape[axis + 1 :] != first[:axis] + first[axis + 1 :]:
            raise RuleError("shapes " + " and ".join(map(shape_text, shapes)) + f" cannot be joined along axis {axis}")
    total = sum(_static(shape[axis], "joining along the batch axis") for shape in shapes)
    return [((*first[:axis], total, *first[axis + 1 :]), dtype)]


def _slice(inputs: RuleInputs) -> list[Typed]:
    node, shape = inputs.node, inputs.shape(0)
    attrs = node.attrs
    if "starts" not in attrs:
        starts, ends = inputs.integers(1, "starts"), inputs.integers(2, "ends")
        if starts is None or ends is None:
            raise RuleError("starts or ends are missing")
        axes = inputs.integers(3, "axes") if inputs.has(3) else list(range(len(starts)))
        steps = inputs.integers(4, "steps") if inputs.has(4) else [1] * len(starts)
        if axes is None or steps is None or not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
            raise RuleError(f"starts {starts}, ends {ends}, axes {axes} and steps {steps} do not fit together")
        axes = [normal_axis(axis, len(shape)) for axis in axes]
        if len(set(axes)) < len(axes):
            raise RuleError(f"axes {axes} repeat")
        kept: list[tuple[int, int, int, int]] = []
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            dim = shape[axis]
            if isinstance(dim, Batch):
                if start == 0 and step == 1 and end >= 2**31 - 1:
                    continue
                raise RuleError("slicing the batch axis is not supported")
            kept.append((axis, *slice(start, None if step < 0 and end < -dim else end, step).indices(dim)))
        node.inputs = node.inputs[:1]
        columns = list(zip(*kept, strict=True)) or [()] * 4
        node.attrs = attrs = dict(zip(("axes", "starts", "ends", "steps"), map(list, columns), strict=True))
    dims = list(shape)
    for axis, start, end, step in zip(attrs["axes"], attrs["starts"], attrs["ends"], attrs["steps"], strict=True):
        dims[axis] = len(range(start, end, step))
    if 0 in dims and len(dims) > 1:  # of a list of sizes it may be nothing
        raise RuleError(f"nothing of {shape_text(shape)} is left")
    return [(tuple(dims), inputs.dtype(0))]


def _split(inputs: RuleInputs) -> list[Typed]:
    node, shape = inputs.node, inputs.shape(0)
    axis = normal_axis(node.attrs["axis"], len(shape))
    size = _static(shape[axis], "splitting the batch axis")
    sizes = node.attrs.get("split") or inputs.integers(1, "sizes")
    count = len(node.outputs)
    if sizes is None:
        block = -(-size // count)
        sizes = [block] * (count - 1) + [size - block * (count - 1)]
    if len(sizes) != count or sum(sizes) != size or min(sizes) < 1:
        raise RuleError(f"axis {axis} of size {size} cannot be split into {count} parts {sizes}")
    node.inputs, node.attrs = node.inputs[:1], {"axis": axis, "split": sizes}
    return [((*shape[:axis], part, *shape[axis + 1 :]), inputs.dtype(0)) for part in sizes]


def _gather(inputs: RuleInputs) -> list[Typed]:
    node, shape = inputs.node, inputs.shape(0)
    axis = node.attrs["axis"] = normal_axis(node.attrs["axis"], len(shape))
    _static(shape[axis], "picking from the batch axis")
    return [((*shape[:axis], *inputs.shape(1), *shape[axis + 1 :]), inputs.dtype(0))]


def _pad(inputs: RuleInputs) -> list[Typed]:
    node, shape = inputs.node, inputs.shape(0)
    rank = len(shape)
    if "pads" not in node.attrs:
        given = inputs.integers(1, "pads")
        if given is None:
            raise RuleError("pads are missing")
        axes = inputs.integers(3, "axes") if inputs.has(3) else list(range(rank))
        if axes is None or len(given) != 2 * len(axes):
            raise RuleError(f"{2 * len(axes or [])} pads are expected, found {len(given)}")
        pads = [0] * (2 * rank)
        for index, axis in enumerate(axes):
            place = normal_axis(axis, rank)
            pads[place], pads[rank + place] = given[index], given[len(axes) + index]
        node.attrs = {"pads": pads, "mode": node.attrs["mode"]}
        node.inputs = [node.inputs[0], node.inputs[2]]
    pads = node.attrs["pads"]
    dims: list[Dim] = []
    for axis, dim in enumerate(shape):
        extra = pads[axis] + pads[rank + axis]
        if pads[axis] or pads[rank + axis]:
            dim = _static(dim, "padding the batch axis") + extra
            if dim < 1:
                raise RuleError(f"pads {pads} leave nothing of {shape_text(shape)}")
        dims.append(dim)
    return [(tuple(dims), inputs.dtype(0))]


def _expand(inputs: RuleInputs) -> list[Typed]:
    node = inputs.node
    target = node.attrs.get("shape")
    if target is None:
        target = tuple(inputs.dims(1, "the target shape"))
        node.inputs = node.inputs[:1]
    node.attrs = {"shape": broadcast([inputs.shape(0), target])}
    return [(node.attrs["shape"], inputs.dtype(0))]


def _constant_of_shape(inputs: RuleInputs) -> list[Typed]:
    dims = inputs.dims(0, "the shape")
    if any(isinstance(dim, int) and dim < 0 for dim in dims):
        raise RuleError(f"impossible shape {shape_text(dims)}")
    value = inputs.node.attrs.get("value")
    return [(tuple(dims), np.dtype(np.float32) if value is None else value.dtype)]


def _shape(inputs: RuleInputs) -> list[Typed]:
    rank = len(inputs.shape(0)[slice(inputs.node.attrs.get("start", 0), inputs.node.attrs.get("end"))])
    return [((rank,), _INT64)]


def _size(inputs: RuleInputs) -> list[Typed]:
    return [((), _INT64)]


RULES: dict[tuple[str, str], Rule] = {
    **{("", op): _unary for op in UNARY_OPS | {"Identity"}},
    **{("", op): _arithmetic for op in ARITHMETIC_OPS},
    **{("", op): _comparison for op in COMPARISON_OPS | LOGIC_OPS},
    **{("", op): _reduce for op in REDUCTIONS},
    ("", "LRN"): _lrn,
    ("", "Not"): _not,
    ("", "IsNaN"): _is_predicate,
    ("", "IsInf"): _is_predicate,
    ("", "Where"): _where,
    ("", "ScatterND"): _scatter,
    ("", "NonZero"): _non_zero,
    ("", "Clip"): _clip,
    ("", "PRelu"): _prelu,
    ("", "BatchNormalization"): _batch_normalization,
    ("", "Cast"): _cast,
    ("", "CastLike"): _cast_like,
    ("", "QuantizeLinear"): _quantize_linear,
    ("", "DequantizeLinear"): _quantize_linear,
    ("", "DynamicQuantizeLinear"): _dynamic_quantize_linear,
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "LayerNormalization"): _layer_normalization,
    ("", "InstanceNormalization"): _instance_normalization,
    ("", "DepthToSpace"): _depth_to_space,
    ("", "SpaceToDepth"): _depth_to_space,
    ("", "Resize"): _resize,
    ("", "MaxPool"): _pool,
    ("", "AveragePool"): _pool,
    ("", "GlobalAveragePool"): _global_pool,
    ("", "GlobalMaxPool"): _global_pool,
    ("", "MatMul"): _mat_mul,
    ("", "Gemm"): _gemm,
    ("", "ArgMax"): _arg_max,
    ("", "ArgMin"): _arg_max,
    ("", "Softmax"): _softmax,
    ("", "LogSoftmax"): _softmax,
    ("", "Reshape"): _reshape,
    ("", "Flatten"): _flatten,
    ("", "Squeeze"): _squeeze,
    ("", "Unsqueeze"): _unsqueeze,
    ("", "Transpose"): _transpose,
    ("", "Concat"): _concat,
    ("", "Slice"): _slice,
    ("", "Split"): _split,
    ("", "Gather"): _gather,
    ("", "Pad"): _pad,
    ("", "Expand"): _expand,
    ("", "ConstantOfShape"): _constant_of_shape,
    ("", "Shape"): _shape,
    ("", "Size"): _size,
    ("qonnx", "BipolarQuant"): _qonnx,
    ("qonnx", "Quant"): _qonnx,
    ("qonnx", "Trunc"): _qonnx,
    ("qonnx", "MultiThreshold"): _multi_threshold,
    ("qonnx", "Im2Col"): _im2col,
}
