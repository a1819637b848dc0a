"""Rewrites every spelling of an operator (old opsets, defaults left out, aliases) into the one of opset NORMAL_OPSET.

Nothing here needs a shape, so the reference evaluator uses the same function; what needs shapes is in shape_rules.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import defs

from ..graph import Array, Node
from ..integer_ops import MICROSOFT_DOMAIN
from ..onnx_file import CHANNELS_LAST_DOMAIN
from ..window_ops import set_window_defaults
from . import normalise_onnxruntime
from .base import NodeBuilder, Problems, RuleError, fresh_name
from .normalise_qonnx import in_channels_first, normalise_qonnx
from .normalise_quantized import AS_OF_ONNX, QUANTIZED_OPERATORS, normalise_quantized

NORMAL_OPSET = 20

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
RANDOM_OPS = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
# Attributes that change nothing in inference, or only something that no supported model has.
_IGNORED_ATTRS = {
    "BatchNormalization": ("momentum", "training_mode", "spatial"),
    "MaxPool": ("storage_order",),
    "Dropout": ("ratio", "seed"),
    "Cast": ("saturate", "round_mode"),
    "QuantizeLinear": ("saturate", "precision"),
}
REDUCTIONS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
)


@dataclass
class Normaliser:
    """Normalises nodes one by one; ``constants`` gains the tensors that used to be attributes.

    Names of new tensors derive from the node's first output, which is unique, and are kept away from ``used``. ``read``
    has the tensors that some node or the graph's outputs need.
    """

    opset: int
    constants: dict[str, Array]
    used: set[str]
    read: set[str]

    def reads_output(self, node: Node, index: int) -> bool:
        return any(name in self.read for name in node.outputs[index:] if name)

    def normalise(self, node: Node) -> list[Node]:
        """The nodes that stand for ``node``; empty where it became a constant. Raises RuleError."""
        if node.domain == "qonnx":
            return normalise_qonnx(self._builder(node), node)
        if node.domain == CHANNELS_LAST_DOMAIN:
            return [each for step in in_channels_first(self._builder(node), node) for each in self._of_onnx(step)]
        if node.domain == MICROSOFT_DOMAIN:
            if node.op in AS_OF_ONNX:
                return _quantize_linear(self, Node(node.op, node.name, node.inputs, node.outputs, node.attrs))
            if node.op in QUANTIZED_OPERATORS:
                return normalise_quantized(self._builder(node), node)
            steps = normalise_onnxruntime.unfused(self._builder(node), node, self.opset)
            return [each for step in steps for each in self._of_onnx(step)]
        if node.domain == normalise_onnxruntime.LAYOUT_DOMAIN:
            raise RuleError(
                "ONNX Runtime has laid this model out for one machine; save it with the optimisation level "
                "ORT_ENABLE_EXTENDED or less"
            )
        if node.domain != "":
            raise RuleError(f"operators of the domain '{node.domain}' are not known")
        return self._of_onnx(node)

    def _of_onnx(self, node: Node) -> list[Node]:
        if node.op in CONTROL_FLOW:
            raise RuleError("control flow is not supported")
        if node.op in RANDOM_OPS:
            raise RuleError("random operators are not supported")
        self._apply_schema(node)
        if node.attrs.get("saturate") == 0:
            raise RuleError("saturate = 0 is not supported")
        rule = _RULES.get(node.op)
        nodes = rule(self, node) if rule else [node]
        for result in nodes:
            for name in _IGNORED_ATTRS.get(result.op, ()):
                result.attrs.pop(name, None)
        return nodes

    def add_constant(self, node: Node, suffix: str, value: Array) -> str:
        name = self.fresh(f"{node.output}__{suffix}")
        self.constants[name] = value
        return name

    def _builder(self, node: Node) -> NodeBuilder:
        return NodeBuilder(node, self.fresh, self.constants)

    def fresh(self, wanted: str) -> str:
        return fresh_name(self.used, wanted)

    def _apply_schema(self, node: Node) -> None:
        """Checks the node against its operator's definition and writes the default attributes out."""
        try:
            schema = defs.get_schema(node.op, self.opset, "")
        except defs.SchemaError as error:
            raise RuleError(f"ONNX opset {self.opset} has no operator of this name") from error
        given = len(node.inputs)
        if not schema.min_input <= given <= schema.max_input:
            wanted = _count_text(schema.min_input, schema.max_input)
            raise RuleError(f"{wanted} inputs are expected, found {given}")
        if not schema.min_output <= len(node.outputs) <= schema.max_output:
            wanted = _count_text(schema.min_output, schema.max_output)
            raise RuleError(f"{wanted} outputs are expected, found {len(node.outputs)}")
        for index in range(schema.min_input):
            if not node.inputs[index]:
                raise RuleError(f"required input {index} is left out")
        if not node.outputs[0] and not any(node.outputs):
            raise RuleError("it has no named output")
        for name, attribute in schema.attributes.items():
            if name not in node.attrs:
                if attribute.required:
                    raise RuleError(f"required attribute '{name}' is missing")
                if attribute.default_value.name:
                    value = onnx.helper.get_attribute_value(attribute.default_value)
                    node.attrs[name] = value.decode() if isinstance(value, bytes) else value
            elif not _attribute_type_fits(node.attrs[name], attribute.type):
                raise RuleError(f"attribute '{name}' has the wrong type: {node.attrs[name]!r}")
        unknown = sorted(set(node.attrs) - set(schema.attributes))
        if unknown:
            raise RuleError(f"unknown attribute '{unknown[0]}'")


def normalise_nodes(
    nodes: list[Node], outputs: list[str], constants: dict[str, Array], opset: int, problems: Problems
) -> list[Node]:
    """Normalises all ``nodes``; ``constants`` gains new ones. Those that cannot be are reported and left out."""
    read = {name for node in nodes for name in node.inputs} | set(outputs)
    used = read | set(constants) | {name for node in nodes for name in node.outputs}
    normaliser = Normaliser(opset, constants, used, read)
    result: list[Node] = []
    for node in nodes:
        copy = Node(node.op, node.name, list(node.inputs), list(node.outputs), dict(node.attrs), node.domain)
        try:
            result += normaliser.normalise(copy)
        except RuleError as error:
            problems.add_node(node, str(error))
    return result


def _count_text(low: int, high: int) -> str:
    if low == high:
        return str(low)
    return f"at least {low}" if high > 1000 else f"{low} to {high}"


def _attribute_type_fits(value: Any, kind: Any) -> bool:
    kinds = defs.OpSchema.AttrType
    if kind == kinds.INT:
        return isinstance(value, int)
    if kind == kinds.FLOAT:
        return isinstance(value, float)
    if kind == kinds.STRING:
        return isinstance(value, str)
    if kind in (kinds.INTS, kinds.FLOATS, kinds.STRINGS):
        return isinstance(value, list)
    if kind == kinds.TENSOR:
        return isinstance(value, np.ndarray)
    return True


def _pad_inputs(node: Node, count: int) -> list[Node]:
    node.inputs += [""] * (count - len(node.inputs))
    return [node]


def _attribute_to_input(self: Normaliser, node: Node, attribute: str, index: int) -> None:
    value = node.attrs.pop(attribute, None)
    if value is None:
        return
    node.inputs += [""] * (index + 1 - len(node.inputs))
    node.inputs[index] = self.add_constant(node, attribute, np.asarray(value, np.int64))


def _constant(self: Normaliser, node: Node) -> list[Node]:
    values = list(node.attrs.items())
    if len(values) != 1:
        raise RuleError(f"exactly one value attribute is expected, found {len(values)}")
    name, value = values[0]
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if name != "value" and name not in dtypes:
        raise RuleError(f"constants of the kind '{name}' are not supported")
    array = value if name == "value" else np.asarray(value, dtypes[name])
    if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
        raise RuleError("the constant has NaN values")
    self.constants[node.output] = array
    return []


def _clip(self: Normaliser, node: Node) -> list[Node]:
    if self.opset < 11:
        low, high = node.attrs.pop("min"), node.attrs.pop("max")
        finfo = np.finfo(np.float32)
        # The old operator's defaults are the ends of float32: no bound at all.
        bounds = [("min", low, float(finfo.min)), ("max", high, float(finfo.max))]
        for name, value, default in bounds:
            unbounded = value is None or value == default
            node.inputs.append("" if unbounded else self.add_constant(node, name, np.asarray(value, np.float32)))
    return _pad_inputs(node, 3)


def _dropout(self: Normaliser, node: Node) -> list[Node]:
    if self.reads_output(node, 1):
        raise RuleError("the mask of a Dropout is not supported")
    if len(node.inputs) > 2 and node.inputs[2]:
        mode = self.constants.get(node.inputs[2])
        if mode is None or bool(np.any(mode)):
            raise RuleError("it runs in training mode; export the model in evaluation mode")
    return [Node("Identity", node.name, node.inputs[:1], node.outputs[:1])]


def _batch_normalization(self: Normaliser, node: Node) -> list[Node]:
    if node.attrs.get("training_mode"):
        raise RuleError("training_mode is set; export the model in evaluation mode")
    if node.attrs.get("spatial") == 0:
        raise RuleError("spatial = 0 is not supported")
    if self.reads_output(node, 1):
        raise RuleError("only the first output is supported in evaluation mode")
    node.outputs = node.outputs[:1]
    return [node]


def _squeeze(self: Normaliser, node: Node) -> list[Node]:
    _attribute_to_input(self, node, "axes", 1)
    return _pad_inputs(node, 2)


def _pad(self: Normaliser, node: Node) -> list[Node]:
    if self.opset < 11:
        value = node.attrs.pop("value")
        node.inputs += ["", self.add_constant(node, "value", np.asarray(value, np.float32))]
        _attribute_to_input(self, node, "pads", 1)
    return _pad_inputs(node, 4)


def _slice(self: Normaliser, node: Node) -> list[Node]:
    if self.opset < 10:
        for index, attribute in enumerate(("starts", "ends", "axes")):
            _attribute_to_input(self, node, attribute, index + 1)
    return _pad_inputs(node, 5)


def _split(self: Normaliser, node: Node) -> list[Node]:
    _attribute_to_input(self, node, "split", 1)
    node.attrs.pop("num_outputs", None)  # as many as there are outputs
    return _pad_inputs(node, 2)


def _reduce(self: Normaliser, node: Node) -> list[Node]:
    axes = node.attrs.pop("axes", None)
    node.attrs.setdefault("noop_with_empty_axes", 0)
    if axes:
        node.inputs.append(self.add_constant(node, "axes", np.asarray(axes, np.int64)))
    return _pad_inputs(node, 2)


def _softmax(self: Normaliser, node: Node) -> list[Node]:
    # Before opset 13: over all axes from ``axis`` on, as if the input were a matrix.
    node.attrs["coerce_to_matrix"] = int(self.opset < 13)
    return [node]


def _gemm(self: Normaliser, node: Node) -> list[Node]:
    return _pad_inputs(node, 3)


_CONVOLUTIONS = {"Conv": 3, "QLinearConv": 9, "ConvInteger": 4}  # and their inputs


def _windowed(self: Normaliser, node: Node) -> list[Node]:
    if self.reads_output(node, 1):
        raise RuleError("the indices of a MaxPool are not supported")
    node.outputs = node.outputs[:1]
    convolves = node.op in _CONVOLUTIONS
    if convolves:
        _pad_inputs(node, _CONVOLUTIONS[node.op])
    auto_pad = node.attrs.setdefault("auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise RuleError(f"unknown auto_pad '{auto_pad}'")
    node.attrs.setdefault("ceil_mode", 0)
    if convolves:
        node.attrs.pop("ceil_mode")
    kernel = node.attrs.get("kernel_shape")
    if kernel is not None:
        set_window_defaults(node.attrs, len(kernel))
    return [node]


def _conv_transpose(self: Normaliser, node: Node) -> list[Node]:
    if node.attrs.pop("auto_pad") != "NOTSET" or node.attrs.get("output_shape"):
        raise RuleError("auto_pad and output_shape are not supported; give pads and output_padding")
    return _pad_inputs(node, 3)


def _one_output(self: Normaliser, node: Node) -> list[Node]:
    if self.reads_output(node, 1):
        raise RuleError("only the first output is supported")
    node.outputs = node.outputs[:1]
    return [node]


def _layer_normalization(self: Normaliser, node: Node) -> list[Node]:
    node.attrs.pop("stash_type", None)
    return _one_output(self, _pad_inputs(node, 3)[0])


def _depth_to_space(self: Normaliser, node: Node) -> list[Node]:
    node.attrs.setdefault("mode", "DCR")
    return [node]


def _resize(self: Normaliser, node: Node) -> list[Node]:
    """Inputs x, scales, sizes. Upsample, and Resize before opset 11, lay the positions out from the corner."""
    if node.op == "Upsample":
        scales = node.attrs.pop("scales", None)
        if scales is not None:
            node.inputs.append(self.add_constant(node, "scales", np.asarray(scales, np.float32)))
    if node.op == "Upsample" or self.opset < 11:
        node.attrs |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        inputs = [*node.inputs, ""]
    else:
        inputs = [node.inputs[0], *_pad_inputs(node, 4)[0].inputs[2:]]
    for name in ("cubic_coeff_a", "exclude_outside", "extrapolation_value"):
        node.attrs.pop(name, None)
    return [Node("Resize", node.name, inputs, node.outputs, node.attrs)]


def _variadic(self: Normaliser, node: Node) -> list[Node]:
    """Sum, Max, Min and Mean of many inputs as a chain of two-input operators, from left to right."""
    op = {"Sum": "Add", "Mean": "Add"}.get(node.op, node.op)
    inputs = node.inputs
    if len(inputs) == 1:
        return [Node("Identity", node.name, inputs, node.outputs)]
    chain: list[Node] = []
    left = inputs[0]
    for index, right in enumerate(inputs[1:], 1):
        last = index == len(inputs) - 1 and node.op != "Mean"
        output = node.output if last else self.fresh(f"{node.output}__{node.op.lower()}{index}")
        chain.append(Node(op, node.name if last else f"{node.name}__{index}", [left, right], [output]))
        left = output
    if node.op == "Mean":
        count = self.add_constant(node, "count", np.asarray(len(inputs), np.float32))
        chain.append(Node("Div", node.name, [left, count], node.outputs))
    return chain


def _quantize_linear(self: Normaliser, node: Node) -> list[Node]:
    if node.op == "QuantizeLinear" and node.attrs.pop("block_size", 0):
        raise RuleError("quantization by blocks is not supported")
    output_dtype = node.attrs.pop("output_dtype", 0)
    _pad_inputs(node, 3)
    if node.op == "QuantizeLinear":
        # axis came with opset 13; before, the scale was a scalar.
        node.attrs.setdefault("axis", 1)
        if not node.inputs[2]:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(output_dtype) if output_dtype else np.dtype(np.uint8)
            node.inputs[2] = self.add_constant(node, "zero_point", np.zeros((), dtype))
    else:
        node.attrs.setdefault("axis", 1)
        if output_dtype:
            raise RuleError("output_dtype is not supported")
    return [node]


def _arg_max(self: Normaliser, node: Node) -> list[Node]:
    node.attrs.setdefault("select_last_index", 0)
    return [node]


def _reshape(self: Normaliser, node: Node) -> list[Node]:
    node.attrs.setdefault("allowzero", 0)
    return [node]


_RULES: dict[str, Callable[[Normaliser, Node], list[Node]]] = {
    "Constant": _constant,
    "Clip": _clip,
    "Dropout": _dropout,
    "BatchNormalization": _batch_normalization,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _split,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Gemm": _gemm,
    **dict.fromkeys(_CONVOLUTIONS, _windowed),
    "MaxPool": _windowed,
    "AveragePool": _windowed,
    "ConvTranspose": _conv_transpose,
    "LayerNormalization": _layer_normalization,
    "DepthToSpace": _depth_to_space,
    "Resize": _resize,
    "Upsample": _resize,
    "Sum": _variadic,
    "Mean": _variadic,
    "Max": _variadic,
    "Min": _variadic,
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _quantize_linear,
    "Reshape": _reshape,
    "ArgMax": _arg_max,
    "ArgMin": _arg_max,
    **dict.fromkeys(REDUCTIONS, _reduce),
}
