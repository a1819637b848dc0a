"""ONNX files whose weights take the bits they have: packed constants and the nodes that unpack them.

Any ONNX runtime runs such a file; those that fold constants, as ``convert`` and ONNX Runtime do, unpack it once, when
they load it. Only basic arithmetic is used, so that old runtimes do too. The values are the same bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .codebook import pack_codes
from .graph import Array

_SMALLEST = 1024  # elements; below, nodes take more than they save


def compact_onnx(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns ``model`` with its few-valued float32 initializers packed; the rest is as it was.

    - Weights of +-s, with an s for each index of the first or the last axis: 1 bit each.
    - Up to 16 distinct values: 4 bits each and a table; up to 256: 8 bits.
    """
    packed = onnx.ModelProto()
    packed.CopyFrom(model)
    graph = packed.graph
    nodes: list[onnx.NodeProto] = []
    kept: list[onnx.TensorProto] = []
    for tensor in graph.initializer:
        unpacking = None
        if tensor.data_type == TensorProto.FLOAT and int(np.prod(tensor.dims)) >= _SMALLEST:
            weight = numpy_helper.to_array(tensor)
            unpacking = _signs(tensor.name, weight) or _codes(tensor.name, weight)
        if unpacking is None:
            kept.append(tensor)
        else:
            kept += unpacking.constants
            nodes += unpacking.nodes
    nodes += graph.node
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    return packed


class _Unpacking:
    """Constants and nodes that give the tensor called ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.constants: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []

    def constant(self, suffix: str, value: Array) -> str:
        name = f"{self.name}/{suffix}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        output = result or f"{self.name}/{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def unpacked(self, numbers: Array, bits: int) -> str:
        """``numbers`` of ``bits`` (1 or 4) each, packed into bytes, the first lowest; gives them as floats [N]."""
        packed = pack_codes(numbers, bits)
        shifts = np.arange(0, 8, bits)
        # floor(byte / 2^shift), less what lies above: exact in float32.
        shifted = self.op(
            "Floor",
            self.op(
                "Div",
                self.op("Cast", self.constant("packed", packed[:, None]), to=TensorProto.FLOAT),
                self.constant("powers", (2.0**shifts).astype(np.float32)),
            ),
        )
        base = self.constant("base", np.float32(2**bits))
        above = self.op("Mul", self.op("Floor", self.op("Div", shifted, base)), base)
        flat = self.op("Reshape", self.op("Sub", shifted, above), self.constant("flat", np.array([-1])))
        return self.op(
            "Slice", flat, self.constant("first", np.array([0])), self.constant("end", np.array([numbers.size]))
        )


def _signs(name: str, weight: Array) -> _Unpacking | None:
    for axis in dict.fromkeys((0, weight.ndim - 1)):
        others = tuple(i for i in range(weight.ndim) if i != axis)
        scale = np.abs(weight).max(axis=others, keepdims=True)
        if np.all(np.abs(weight) == scale) and np.all(scale > 0):
            unpacking = _Unpacking(name)
            bits = unpacking.unpacked((weight < 0).ravel().astype(np.uint8), 1)
            # 1 - 2 bit, as scale + bit * (-2 scale) would round.
            doubled = unpacking.op("Mul", bits, unpacking.constant("two", np.float32(2)))
            signs = unpacking.op("Sub", unpacking.constant("one", np.float32(1)), doubled)
            shaped = unpacking.op("Reshape", signs, unpacking.constant("shape", np.array(weight.shape)))
            unpacking.op("Mul", shaped, unpacking.constant("scale", scale), result=name)
            return unpacking
    return None


def _codes(name: str, weight: Array) -> _Unpacking | None:
    table = np.unique(weight + np.float32(0))
    if table.size > 256 or np.isnan(table).any():
        return None
    unpacking = _Unpacking(name)
    codes = np.searchsorted(table, weight).astype(np.uint8)
    if table.size <= 16:
        flat = unpacking.unpacked(codes.ravel(), 4)
        packed = unpacking.op("Reshape", flat, unpacking.constant("shape", np.array(weight.shape)))
    else:
        packed = unpacking.constant("packed", codes)
    indices = unpacking.op("Cast", packed, to=TensorProto.INT32)
    unpacking.op("Gather", unpacking.constant("table", table), indices, axis=0, result=name)
    return unpacking
