"""The operators of the QONNX domains: attributes written out, and what ONNX has operators for in terms of those.

Definitions: https://github.com/fastmachinelearning/qonnx, docs/qonnx-custom-ops and the executable ones beside them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import Node
from ..qonnx_ops import ROUNDING_MODES
from .base import NodeBuilder, RuleError, with_defaults

# Number of inputs, attributes with their defaults.
_OPERATORS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "BipolarQuant": ((2,), {}),
    "Quant": ((4,), {"signed": 1, "narrow": 0, "rounding_mode": "ROUND"}),
    "Trunc": ((5, 6), {"signed": 1, "narrow": 0, "rounding_mode": "FLOOR"}),
    "MultiThreshold": ((2,), {"out_scale": 1.0, "out_bias": 0.0, "data_layout": "", "out_dtype": ""}),
    "XnorPopcountMatMul": ((2,), {}),
    "Im2Col": (
        (1,),
        {
            "stride": [],
            "kernel_size": [],
            "input_shape": "",
            "pad_amount": [0, 0, 0, 0],
            "pad_value": 0,
            "depthwise": 0,
            "dilations": [1, 1],
        },
    ),
}


def normalise_qonnx(build: NodeBuilder, node: Node) -> list[Node]:
    """The nodes that stand for a node of the general QONNX domain. Raises RuleError."""
    op = {"IntQuant": "Quant"}.get(node.op, node.op)
    if op not in _OPERATORS:
        raise RuleError("this QONNX operator is not known")
    counts, defaults = _OPERATORS[op]
    if len(node.inputs) not in counts or not all(node.inputs):
        wanted = " or ".join(str(count) for count in counts)
        raise RuleError(f"{wanted} inputs are expected, found {sum(map(bool, node.inputs))}")
    attrs = with_defaults(node, defaults)
    if op == "XnorPopcountMatMul":
        return _xnor_popcount(build, node)
    if op == "Im2Col":
        return _im2col(build, node, attrs)
    attrs.pop("out_dtype", None)
    if "rounding_mode" in attrs:
        mode = attrs["rounding_mode"] = str(attrs["rounding_mode"]).upper()
        if mode not in ROUNDING_MODES:
            raise RuleError(f"unknown rounding_mode '{mode}'; known are {', '.join(sorted(ROUNDING_MODES))}")
    if op == "Trunc":
        attrs["version"] = 1 if len(node.inputs) == 5 else 2
    return [Node(op, node.name, list(node.inputs), list(node.outputs), attrs, "qonnx")]


def _xnor_popcount(build: NodeBuilder, node: Node) -> list[Node]:
    """Operands hold 0 for -1. Of k products of signs p are +1: their sum is 2p - k, the result p."""
    weight = build.constants.get(node.inputs[1])
    if weight is None or weight.ndim != 2:
        raise RuleError("its second input must be a constant matrix")
    two, one, half, count = (build.constant(np.asarray(v, np.float32)) for v in (2, 1, 0.5, weight.shape[0]))
    signs = build.add("Sub", build.add("Mul", node.inputs[0], two), one)
    sums = build.add("MatMul", signs, build.constant((2 * weight - 1).astype(weight.dtype)))
    return build.end("Mul", build.add("Add", sums, count), half)


def _im2col(build: NodeBuilder, node: Node, attrs: dict[str, Any]) -> list[Node]:
    """With the names of Conv's attributes; the input is a map [N, H, W, C]."""
    window = {"kernel_shape": "kernel_size", "strides": "stride", "dilations": "dilations", "pads": "pad_amount"}
    resolved: dict[str, Any] = {new: list(attrs[old]) for new, old in window.items()}
    for name, count in (("kernel_shape", 2), ("strides", 2), ("dilations", 2), ("pads", 4)):
        if len(resolved[name]) != count or min(resolved[name]) < (name != "pads"):
            raise RuleError(f"{window[name]} {resolved[name]}: {count} positive values are expected")
    source = node.inputs[0]
    if attrs["pad_value"] and any(resolved["pads"]):
        top, left, bottom, right = resolved["pads"]
        pads = build.constant(np.asarray([0, top, left, 0, 0, bottom, right, 0], np.int64))
        value = build.constant(np.asarray(attrs["pad_value"], np.float32))
        source = build.add("Pad", source, pads, value, "", mode="constant")
        resolved["pads"] = [0, 0, 0, 0]
    return [*build.nodes, Node("Im2Col", node.name, [source], list(node.outputs), resolved, "qonnx")]


def in_channels_first(build: NodeBuilder, node: Node) -> list[Node]:
    """A node of the channels-last domain (qonnx-to-channels-last writes it) as ONNX nodes."""
    if node.op == "BatchNormalization":
        # The definition, its parameters [C] broadcast along the last axis of any rank.
        x, scale, bias, mean, variance = node.inputs[:5]
        epsilon = build.constant(np.asarray(node.attrs.get("epsilon", 1e-5), np.float32))
        deviation = build.add("Sqrt", build.add("Add", variance, epsilon))
        scaled = build.add("Mul", build.add("Sub", x, mean), scale)
        return build.end("Add", build.add("Div", scaled, deviation), bias)
    if node.op not in ("Conv", "MaxPool"):
        raise RuleError("this operator on channels-last tensors is not known")
    rank = len(node.attrs.get("kernel_shape", ())) + 2
    if rank < 3:
        raise RuleError("kernel_shape is missing")
    first, last = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    inputs = list(node.inputs)
    for index in range(2 if node.op == "Conv" else 1):
        inputs[index] = build.add("Transpose", inputs[index], perm=first)
    return build.end("Transpose", build.add(node.op, *inputs, **node.attrs), perm=last)
