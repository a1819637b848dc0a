"""How large the result of an operator on constants is, known before it is computed.

A file of a few bytes can ask for any amount of memory (an Expand, a Range) or of time (a product of two such). What is
not listed here is not computed from constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .graph import Array, Batch, Node

MAX_BYTES = 1 << 28
MAX_PRODUCTS = 1 << 37  # of a MatMul or Gemm: seconds
MAX_RANK = 32

# At most as many elements as the inputs broadcast to, or as all inputs together.
_BOUNDED = frozenset(
    """Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh BatchNormalization BitShift BitwiseAnd BitwiseNot
    BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Compress Concat Cos Cosh CumSum DepthToSpace DequantizeLinear
    Div DynamicQuantizeLinear Elu Equal Erf Exp Flatten Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish
    Hardmax Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log LogSoftmax Max Mean Min Mish Mod Mul Neg Not Or
    PRelu Pow QuantizeLinear Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Round ScatterElements ScatterND Selu Shape Shrink Sigmoid
    Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
    ThresholdedRelu TopK Transpose Trilu Unsqueeze Where Xor
    BipolarQuant Quant Trunc MultiThreshold""".split()
)


def too_large(node: Node, inputs: list[Array | None]) -> str:
    """Why ``node`` is not computed on these constants; "" if it may be."""
    arrays = [array for array in inputs if array is not None]
    if node.op in _BOUNDED:
        elements = _bounded(arrays)
    elif node.op in _GROWING:
        try:
            elements = _GROWING[node.op](node, inputs)
        except (AttributeError, IndexError, TypeError, ValueError):
            return ""  # inputs that do not fit the operator, which says so itself
    else:
        return f"{node.op} is not computed on constants"
    size = 8 * elements  # few results have larger elements, and the way there may
    if size > MAX_BYTES and size // 8 * max(array.itemsize for array in arrays) > MAX_BYTES:
        return f"the result would have {size} bytes, at most {MAX_BYTES} are allowed"
    if node.op in ("MatMul", "Gemm") and elements * max(arrays[0].shape, default=1) > MAX_PRODUCTS:
        return f"{elements * max(arrays[0].shape)} products, at most {MAX_PRODUCTS} are allowed"
    if max(array.ndim for array in arrays) > MAX_RANK:
        return f"rank {max(array.ndim for array in arrays)}, at most {MAX_RANK} is supported"
    return ""


# Bytes kept at a time and made all together, beside so many times the bytes of the weights: a latent weight passes 34
# nodes on its way through the longest sign that exporters write.
_MAX_TOTAL = 1 << 30
_LIVE_PER_WEIGHT, _TOTAL_PER_WEIGHT = 4, 64


@dataclass
class Budget:
    """What all constants computed for one model may take."""

    weight_bytes: int
    live: int = 0
    total: int = 0

    def add(self, size: int) -> str:
        """Counts a constant; returns why it is one too many, or ""."""
        self.live += size
        self.total += size
        for used, share in ((self.live, _LIVE_PER_WEIGHT), (self.total, _TOTAL_PER_WEIGHT)):
            limit = _MAX_TOTAL + share * self.weight_bytes
            if used > limit:
                return f"the constants computed up to here take {used} bytes, at most {limit} are allowed"
        return ""

    def drop(self, size: int) -> None:
        self.live -= size


def elements_of(shape: tuple[int, ...]) -> int:
    """A dimension of 0 counts as 1: a reduction over it leaves the others."""
    return math.prod(max(int(dim), 1) for dim in shape)


def _bounded(arrays: list[Array]) -> int:
    together = sum(elements_of(array.shape) for array in arrays)
    try:
        return max(together, elements_of(np.broadcast_shapes(*(array.shape for array in arrays))))
    except (ValueError, RuntimeError):
        return together


def _ints(array: Array | None) -> list[int]:
    return [] if array is None else [int(value) for value in array.ravel()]


def _target(node: Node, inputs: list[Array | None]) -> tuple[int, ...]:
    """The shape that an Expand or Reshape is given, as an attribute or an input."""
    if "shape" in node.attrs:
        return tuple(1 if isinstance(dim, Batch) else int(dim) for dim in node.attrs["shape"])
    return tuple(_ints(inputs[1]))


def _expand(node: Node, inputs: list[Array | None]) -> int:
    assert inputs[0] is not None
    return elements_of(np.broadcast_shapes(inputs[0].shape, tuple(abs(dim) for dim in _target(node, inputs))))


def _tile(node: Node, inputs: list[Array | None]) -> int:
    assert inputs[0] is not None
    return elements_of(inputs[0].shape) * elements_of(tuple(_ints(inputs[1])))


def _pad(node: Node, inputs: list[Array | None]) -> int:
    x = inputs[0]
    assert x is not None
    pads = node.attrs["pads"] if "pads" in node.attrs else _ints(inputs[1])
    given = None if "pads" in node.attrs or len(inputs) < 4 else inputs[3]
    axes = list(range(x.ndim)) if given is None else [axis % x.ndim for axis in _ints(given)]
    dims = list(x.shape)
    for index, axis in enumerate(axes):
        dims[axis] += max(pads[index], 0) + max(pads[len(axes) + index], 0)
    return elements_of(tuple(dims))


def _range(node: Node, inputs: list[Array | None]) -> int:
    start, limit, step = (float(value.reshape(())) for value in inputs if value is not None)
    count = (limit - start) / step if step else 0.0
    return max(int(count), 1) if math.isfinite(count) else 1 << 62


def _gather(node: Node, inputs: list[Array | None]) -> int:
    x, indices = inputs
    assert x is not None and indices is not None
    rest = [dim for axis, dim in enumerate(x.shape) if axis != node.attrs["axis"] % x.ndim]
    return elements_of((*rest, *indices.shape))


def _gather_nd(node: Node, inputs: list[Array | None]) -> int:
    x, indices = inputs
    assert x is not None and indices is not None
    return elements_of((*indices.shape[:-1], *x.shape[node.attrs.get("batch_dims", 0) + indices.shape[-1] :]))


def _mat_mul(node: Node, inputs: list[Array | None]) -> int:
    a, b = (value.shape for value in inputs[:2] if value is not None)
    rows = a[::-1] if node.attrs.get("transA") else a
    columns = b[::-1] if node.attrs.get("transB") else b
    return elements_of((*np.broadcast_shapes(rows[:-2], columns[:-2]), *rows[-2:-1], *columns[-1:]))


def _one_hot(node: Node, inputs: list[Array | None]) -> int:
    assert inputs[0] is not None
    return elements_of(inputs[0].shape) * max(abs(_ints(inputs[1])[0]), 1)


def _given_first(node: Node, inputs: list[Array | None]) -> int:
    return elements_of(tuple(_ints(inputs[0])))


def _reshape(node: Node, inputs: list[Array | None]) -> int:
    assert inputs[0] is not None
    return elements_of(inputs[0].shape)


def _indices(node: Node, inputs: list[Array | None]) -> int:
    assert inputs[1] is not None
    return elements_of(inputs[1].shape)


def _non_zero(node: Node, inputs: list[Array | None]) -> int:
    assert inputs[0] is not None
    return max(inputs[0].ndim, 1) * elements_of(inputs[0].shape)


_GROWING: dict[str, Callable[[Node, list[Array | None]], int]] = {
    "ConstantOfShape": _given_first,
    "Expand": _expand,
    "EyeLike": _reshape,
    "Gather": _gather,
    "GatherElements": _indices,
    "GatherND": _gather_nd,
    "Gemm": _mat_mul,
    "MatMul": _mat_mul,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Tile": _tile,
}
