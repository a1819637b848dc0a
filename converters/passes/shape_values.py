"""Integer tensors that hold dimensions: computed while the batch size is still a symbol.

A value is an object array of int and Batch. Exporters compute Reshape and Expand targets from Shape this way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..evaluate import evaluate_node
from ..graph import Array, Batch, Dim, Node, Shape

# Shape tensors are short; anything longer is data, not a shape.
MAX_ELEMENTS = 64


def as_value(array: Array) -> Array | None:
    """A constant as a value, if it can be a shape."""
    if not np.issubdtype(array.dtype, np.integer) or array.size > MAX_ELEMENTS:
        return None
    value = np.empty(array.shape, object)
    for index in np.ndindex(array.shape):
        value[index] = int(array[index])
    return value


def is_known(value: Array) -> bool:
    return all(isinstance(dim, int) for dim in value.ravel())


def compute_value(node: Node, shapes: list[Shape | None], values: list[Array | None]) -> Array | None:
    """The value of the node's output; None where it is not a shape computation or depends on more than shapes."""
    if node.op == "Shape":
        shape = shapes[0]
        if shape is None:
            return None
        return _array(list(shape[slice(node.attrs.get("start", 0), node.attrs.get("end"))]))
    if node.op == "Size":
        return None if shapes[0] is None else _reduce_product(_array(list(shapes[0])))
    given = [value for name, value in zip(node.inputs, values, strict=True) if name]
    if any(value is None for value in given):
        return None
    known = [value for value in given if value is not None]
    if node.op in _ELEMENTWISE:
        return _elementwise(_ELEMENTWISE[node.op], known)
    if node.op == "ReduceProd":
        return _reduce_product(known[0]) if not node.attrs.get("keepdims") or known[0].ndim == 1 else None
    if node.op in _STRUCTURAL:
        try:
            return _STRUCTURAL[node.op](node, values)
        except (IndexError, ValueError, TypeError):
            return None  # the shape rule of the operator explains what is wrong
    return None


def _array(dims: list[Dim]) -> Array:
    value = np.empty(len(dims), object)
    value[:] = dims
    return value


def _elementwise(rule: Callable[..., Any], operands: list[Array]) -> Array | None:
    try:
        arrays = np.broadcast_arrays(*operands)
    except ValueError:
        return None
    result = np.empty(arrays[0].shape, object)
    for index in np.ndindex(result.shape):
        item = rule(*(array[index] for array in arrays))
        if item is None or not _fits_int64(item):
            return None
        result[index] = item
    return result


def _fits_int64(dim: Dim) -> bool:
    return -(1 << 63) <= _factor(dim) < 1 << 63


def _scaled(factor: int) -> Dim | None:
    return Batch(factor) if factor > 0 else (0 if factor == 0 else None)


def _multiply(a: Dim, b: Dim) -> Dim | None:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if isinstance(a, Batch) and isinstance(b, Batch):
        return None
    return _scaled(_factor(a) * _factor(b))


def _factor(dim: Dim) -> int:
    return dim.factor if isinstance(dim, Batch) else dim


def _divide(a: Dim, b: Dim) -> Dim | None:
    if b == 0 or (isinstance(b, Batch) and isinstance(a, int)):
        return None
    if isinstance(a, int) and isinstance(b, int):
        return int(a / b) if abs(a) < 2**52 else None  # ONNX truncates towards zero
    quotient, rest = divmod(_factor(a), _factor(b))
    if rest or quotient <= 0:
        return None
    return quotient if isinstance(b, Batch) else Batch(quotient)


def _add(a: Dim, b: Dim) -> Dim | None:
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if a == 0 or b == 0:
        return a if b == 0 else b
    return Batch(a.factor + b.factor) if isinstance(a, Batch) and isinstance(b, Batch) else None


def _subtract(a: Dim, b: Dim) -> Dim | None:
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    if b == 0:
        return a
    return _scaled(a.factor - b.factor) if isinstance(a, Batch) and isinstance(b, Batch) else None


def _equal(a: Dim, b: Dim) -> bool | None:
    if isinstance(a, Batch) == isinstance(b, Batch):
        return a == b
    number = a if isinstance(a, int) else b
    # A batch size is at least 1, so it is never -1 or 0; whether it is 1 nobody knows yet.
    return False if isinstance(number, int) and number <= 0 else None


def _reduce_product(value: Array) -> Array | None:
    product: Dim = 1
    for dim in value.ravel():
        scaled = _multiply(product, dim)
        if scaled is None or not _fits_int64(scaled):
            return None
        product = scaled
    result = np.empty((), object)
    result[()] = product
    return result


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Mul": _multiply,
    "Div": _divide,
    "Add": _add,
    "Sub": _subtract,
    "Equal": _equal,
    "Where": lambda condition, a, b: a if condition else b,
}


def _by_index(node: Node, values: list[Array | None]) -> Array:
    """Gather, Slice, ... only move elements: the same operator on positions says which element goes where."""
    source = values[0]
    assert source is not None
    inputs: list[Array | None] = [np.arange(source.size, dtype=np.int64).reshape(source.shape)]
    inputs += [None if value is None else np.asarray(value, np.int64) for value in values[1:]]
    positions = evaluate_node(node, inputs)[0]
    return np.asarray(source.ravel()[positions.astype(np.int64)], object)  # of a single position too


def _concat(node: Node, values: list[Array | None]) -> Array:
    return np.concatenate([value for value in values if value is not None], axis=node.attrs["axis"])


def _constant_of_shape(node: Node, values: list[Array | None]) -> Array | None:
    (shape,) = values
    filling = node.attrs.get("value")
    if shape is None or filling is None or not is_known(shape) or math.prod(shape.tolist()) > MAX_ELEMENTS:
        return None
    return as_value(np.full(shape.tolist(), filling.reshape(())))


_STRUCTURAL: dict[str, Callable[[Node, list[Array | None]], Array | None]] = {
    "Gather": _by_index,
    "Slice": _by_index,
    "Squeeze": _by_index,
    "Unsqueeze": _by_index,
    "Reshape": _by_index,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Cast": lambda node, values: np.asarray(values[0]),
}
