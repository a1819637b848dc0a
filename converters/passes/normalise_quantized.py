"""The operators of the domain com.microsoft that ONNX Runtime's quantization tools write.

Definitions: https://github.com/microsoft/onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import Array, Node
from ..integer_ops import MICROSOFT_DOMAIN
from .base import NodeBuilder, RuleError, with_defaults

# Least and greatest number of inputs, attributes with their defaults.
QUANTIZED_OPERATORS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "QGemm": (6, 9, {"alpha": 1.0, "transA": 0, "transB": 0}),
    "QLinearAdd": (8, 8, {}),
    "QLinearMul": (8, 8, {}),
    "QLinearLeakyRelu": (5, 5, {"alpha": 0.01}),
    "QLinearSigmoid": (5, 5, {}),
    "QLinearSoftmax": (5, 5, {"axis": -1, "opset": 13}),
    "QLinearAveragePool": (
        5,
        5,
        {
            "kernel_shape": None,
            "strides": None,
            "pads": None,
            "dilations": None,
            "auto_pad": "NOTSET",
            "ceil_mode": 0,
            "count_include_pad": 0,
            "channels_last": 0,
        },
    ),
    "QLinearGlobalAveragePool": (5, 5, {"channels_last": 0}),
    "QLinearConcat": (5, 1 << 16, {"axis": None}),
    "MatMulNBits": (3, 6, {"K": None, "N": None, "bits": 4, "block_size": None, "accuracy_level": 0}),
}
# Operators of ONNX; those of the domain add element types to older opsets.
AS_OF_ONNX = frozenset({"QuantizeLinear", "DequantizeLinear"})


def normalise_quantized(build: NodeBuilder, node: Node) -> list[Node]:
    """The node with its attributes written out, or what stands for it. Raises RuleError."""
    least, most, defaults = QUANTIZED_OPERATORS[node.op]
    if not least <= len(node.inputs) <= most or not all(node.inputs[:3]):
        wanted = f"{least}" if least == most else f"at least {least}" if most > 99 else f"{least} to {most}"
        raise RuleError(f"{wanted} inputs are expected, found {len(node.inputs)}")
    attrs = {name: value for name, value in with_defaults(node, defaults).items() if value is not None}
    if attrs.pop("channels_last", 0):
        raise RuleError("channels_last = 1 is not supported")
    if node.op == "MatMulNBits":
        return _mat_mul_n_bits(build, node, attrs)
    if attrs.pop("opset", 13) < 13:
        raise RuleError("the softmax of opsets before 13 is not supported")
    for name in ("axis", "kernel_shape"):
        if name in defaults and name not in attrs:
            raise RuleError(f"attribute '{name}' is missing")
    if "kernel_shape" in attrs:
        rank = len(attrs["kernel_shape"])
        if attrs.pop("auto_pad") not in ("NOTSET", "VALID"):
            raise RuleError("auto_pad is not supported; explicit pads are expected")
        attrs = {"strides": [1] * rank, "dilations": [1] * rank, "pads": [0] * (2 * rank), **attrs}
    return [Node(node.op, node.name, list(node.inputs), list(node.outputs), attrs, MICROSOFT_DOMAIN)]


def _mat_mul_n_bits(build: NodeBuilder, node: Node, attrs: dict[str, Any]) -> list[Node]:
    """A product with a weight that is stored in few bits: with the weight's floats it is a MatMul."""
    for name in ("K", "N", "block_size"):
        if not isinstance(attrs.get(name), int) or attrs[name] < 1:
            raise RuleError(f"attribute '{name}' must be a positive integer")
    if len(node.inputs) > 4 and node.inputs[4]:
        raise RuleError("a g_idx input is not supported")
    parameters: list[Array | None] = []
    for name in node.inputs[1:4]:
        if name and name not in build.constants:
            raise RuleError(f"its input '{name}' is computed at run time")
        parameters.append(build.constants[name] if name else None)
    weight = build.constant(_unpacked(*parameters, **{name: attrs[name] for name in ("K", "N", "bits", "block_size")}))
    if len(node.inputs) < 6 or not node.inputs[5]:
        return build.end("MatMul", node.inputs[0], weight)
    return build.end("Add", build.add("MatMul", node.inputs[0], weight), node.inputs[5])


def _unpacked(
    packed: Array | None,
    scales: Array | None,
    zero_points: Array | None = None,
    *,
    K: int,  # noqa: N803
    N: int,  # noqa: N803
    bits: int,
    block_size: int,
) -> Array:
    """The weight [K, N] of a MatMulNBits.

    ``packed`` uint8 [N, blocks, block_size * bits / 8] holds the codes of a column's blocks, the first in the lowest
    bits; ``scales`` has N * blocks values; ``zero_points`` are packed like a row of codes per column, or of the scales'
    type; 2 ** (bits - 1) if left out.
    """
    if packed is None or scales is None:
        raise RuleError("the packed weight or its scales are missing")
    blocks = -(-K // block_size)
    if bits not in (2, 4, 8) or packed.dtype != np.uint8 or packed.size != N * blocks * block_size * bits // 8:
        raise RuleError(f"packed weights {packed.dtype}{list(packed.shape)} do not fit K={K}, N={N}, {bits} bits")
    if scales.size != N * blocks:
        raise RuleError(f"{N * blocks} scales are expected, found {scales.size}")
    codes = _codes(packed.reshape(N, -1), bits).reshape(N, blocks, block_size).astype(np.float32)
    offsets = np.full((N, blocks, 1), 2.0 ** (bits - 1), np.float32)
    if zero_points is not None:
        if zero_points.dtype == np.uint8:
            zero_points = _codes(zero_points.reshape(N, -1), bits)[:, :blocks]
        offsets = zero_points.reshape(N, blocks, 1).astype(np.float32)
    weight = (codes - offsets) * scales.reshape(N, blocks, 1).astype(np.float32)
    return np.ascontiguousarray(weight.reshape(N, -1)[:, :K].T)


def _codes(rows: Array, bits: int) -> Array:
    """Codes of ``bits`` in the bytes of each row, the first in the lowest bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.reshape((rows[..., None] >> shifts) & (2**bits - 1), (len(rows), -1))
