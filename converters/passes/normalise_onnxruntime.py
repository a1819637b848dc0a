"""The operators into which ONNX Runtime fuses others when it saves an optimised model (domain "com.microsoft").

Definitions: https://github.com/microsoft/onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph import Array, Node
from .base import NodeBuilder, RuleError

LAYOUT_DOMAIN = "com.microsoft.nchwc"

# The attributes of each activation, in the order of activation_params.
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "Clip": ("min", "max"),
    "HardSigmoid": ("alpha", "beta"),
}


def unfused(build: NodeBuilder, node: Node, opset: int) -> list[Node]:
    """FusedConv(x, w, b, z) = act(Conv(x, w, b) + z) and FusedGemm = act(Gemm) as ONNX operators of ``opset``.

    Raises RuleError.
    """
    attrs = dict(node.attrs)
    activation = attrs.pop("activation", "")
    if node.op == "FusedConv":
        parameters = attrs.pop("activation_params", [])
    elif node.op == "FusedGemm":
        given = [attrs.pop(f"activation_{name}", None) for name in ("alpha", "beta", "gamma")]
        parameters = [value for value in given if value is not None]
    else:
        raise RuleError("this operator of ONNX Runtime is not known; save the model without its optimisations")
    if activation not in ("", *_ACTIVATIONS):
        raise RuleError(f"the activation '{activation}' is not known")
    summand = node.inputs[3] if len(node.inputs) > 3 else ""
    steps = 1 + bool(summand) + bool(activation)
    names = [build.fresh(f"{node.output}__step{index}") for index in range(1, steps)] + [node.output]
    nodes = [Node(node.op.removeprefix("Fused"), node.name, node.inputs[:3], [names[0]], attrs)]
    if summand:
        nodes.append(Node("Add", f"{node.name}/sum", [names[0], summand], [names[1]]))
    if activation:
        nodes.append(_activation(build, node, activation, parameters, names[-2], opset))
    return nodes


def _activation(build: NodeBuilder, node: Node, op: str, parameters: list[float], source: str, opset: int) -> Node:
    attributes = _ACTIVATIONS[op]
    if len(parameters) != len(attributes):
        raise RuleError(f"{op} has {len(attributes)} parameters, found {len(parameters)}")
    values: dict[str, Any] = {name: float(value) for name, value in zip(attributes, parameters, strict=True)}
    inputs = [source]
    if op == "Clip" and opset >= 11:
        inputs += [build.constant(_scalar(value)) for value in values.values()]
        values = {}
    return Node(op, f"{node.name}/{op.lower()}", inputs, [node.output], values)


def _scalar(value: float) -> Array:
    return np.asarray(value, np.float32)
