"""Operators on integer tensors as float operators on the same integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx

from ..chains import POINTWISE
from ..graph import Graph, Node, Shape
from ..integer_ops import MICROSOFT_DOMAIN
from .base import NodeBuilder, PassContext, PassResult, RuleError, fresh_name, tensor_names

_FLOAT = int(onnx.TensorProto.FLOAT)
_TINY = float(np.finfo(np.float32).tiny)


class ExpandIntegerOps:
    """q_y = saturate(rint(f * sum (q_x - z_x) (q_w - z_w)) + z_y), f = s_x s_w / s_y, in operators on floats.

    A float32 holds every integer up to 2^24, so the sums are those of the integer operator in any order, as long as
    none is larger; factor, rounding and saturation are the same float32 operations. Operators that are defined on the
    real values (Sigmoid, ...) become DequantizeLinear, the operator itself, QuantizeLinear.

    The results of ConvInteger and MatMulInteger are floats here, and a Cast behind them has nothing to do.
    """

    name = "expand_integer_ops"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        nodes: list[Node] = []
        modified = False
        used = tensor_names(graph)
        for node in graph.nodes:
            rule = _RULES.get(node.op) if node.domain in ("", MICROSOFT_DOMAIN) else None
            if rule is None:
                nodes.append(node)
                continue
            build = NodeBuilder(node, lambda wanted: fresh_name(used, wanted), graph.constants)
            try:
                nodes += rule(build, node)
                modified = True
            except RuleError as error:
                context.problems.add_node(node, str(error))
        graph.nodes = nodes
        return PassResult(modified)


def _has(node: Node, index: int) -> bool:
    return len(node.inputs) > index and bool(node.inputs[index])


def _centred(build: NodeBuilder, x: str, zero_point: str, column: list[int] | None = None) -> str:
    """The floats q - z; ``column`` is the shape of a zero point for each channel."""
    x = build.add("Cast", x, to=_FLOAT)
    return build.add("Sub", x, _vector(build, build.add("Cast", zero_point, to=_FLOAT), column)) if zero_point else x


def _vector(build: NodeBuilder, name: str, column: list[int] | None) -> str:
    if column is None:
        return name
    return build.add("Reshape", name, build.constant(np.asarray(column, np.int64)), allowzero=0)


def _quantized(build: NodeBuilder, sums: str, factor: str, zero_point: str) -> list[Node]:
    one = build.constant(np.ones((), np.float32))
    return build.end("QuantizeLinear", build.add("Mul", sums, factor), one, zero_point, axis=1)


def _factor(build: NodeBuilder, x_scale: str, w_scale: str, y_scale: str) -> str:
    product = build.add("Mul", x_scale, w_scale)
    return build.add("Div", product, y_scale)


def _window_rank(build: NodeBuilder, weight: str) -> int:
    if weight not in build.constants:
        raise RuleError(f"its weight '{weight}' is computed at run time")
    return build.constants[weight].ndim - 2


def _q_linear_conv(build: NodeBuilder, node: Node) -> list[Node]:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
    rank = _window_rank(build, w)
    weight = _centred(build, w, w_zero, [-1, 1] + [1] * rank)
    bias = build.add("Cast", node.inputs[8], to=_FLOAT) if _has(node, 8) else ""
    sums = build.add("Conv", _centred(build, x, x_zero), weight, bias, **node.attrs)
    factor = _vector(build, _factor(build, x_scale, w_scale, y_scale), [-1] + [1] * rank)
    return _quantized(build, sums, factor, y_zero)


def _q_linear_mat_mul(build: NodeBuilder, node: Node) -> list[Node]:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs[:8]
    _require_scalar(build, a_scale, a_zero)
    sums = build.add("MatMul", _centred(build, a, a_zero), _centred(build, b, b_zero))
    return _quantized(build, sums, _factor(build, a_scale, b_scale, y_scale), y_zero)


def _require_scalar(build: NodeBuilder, *names: str) -> None:
    for name in names:
        if name in build.constants and build.constants[name].size != 1:
            raise RuleError(f"'{name}' has {build.constants[name].size} values; one for the whole left operand runs")


def _q_gemm(build: NodeBuilder, node: Node) -> list[Node]:
    a, a_scale, a_zero, b, b_scale, b_zero = node.inputs[:6]
    _require_scalar(build, a_scale, a_zero)
    attrs = {"alpha": 1.0, "beta": 1.0, "transA": node.attrs["transA"], "transB": node.attrs["transB"]}
    weight = _centred(build, b, b_zero, [-1, 1] if node.attrs["transB"] else [1, -1])
    bias = build.add("Cast", node.inputs[6], to=_FLOAT) if _has(node, 6) else ""
    sums = build.add("Gemm", _centred(build, a, a_zero), weight, bias, **attrs)
    alpha = build.constant(np.asarray(node.attrs["alpha"], np.float32))
    factor = build.add("Mul", build.add("Mul", alpha, a_scale), b_scale)
    if not _has(node, 7):
        return build.end("Mul", sums, factor)
    return _quantized(build, sums, build.add("Div", factor, node.inputs[7]), node.inputs[8])


def _conv_integer(build: NodeBuilder, node: Node) -> list[Node]:
    x, w, x_zero, w_zero = (node.inputs[index] if _has(node, index) else "" for index in range(4))
    weight = _centred(build, w, w_zero, [-1, 1] + [1] * _window_rank(build, w))
    return build.end("Conv", _centred(build, x, x_zero), weight, "", **node.attrs)


def _mat_mul_integer(build: NodeBuilder, node: Node) -> list[Node]:
    a, b, a_zero, b_zero = (node.inputs[index] if _has(node, index) else "" for index in range(4))
    _require_scalar(build, a_zero)
    return build.end("MatMul", _centred(build, a, a_zero), _centred(build, b, b_zero))


def _of_values(op: str, *names: str) -> Callable[[NodeBuilder, Node], list[Node]]:
    """Operands q, s, z, ..., then s_y, z_y; ``names`` are the attributes that the float operator has too."""

    def rule(build: NodeBuilder, node: Node) -> list[Node]:
        *operands, y_scale, y_zero = node.inputs
        values = [
            build.add("DequantizeLinear", *operands[index : index + 3], axis=1) for index in range(0, len(operands), 3)
        ]
        result = build.add(op, *values, **{name: node.attrs[name] for name in names})
        return build.end("QuantizeLinear", result, y_scale, y_zero, axis=1)

    return rule


def _quantized_sum(build: NodeBuilder, values: str, zero_point: str) -> list[Node]:
    """saturate(rint(value + z)): the zero point is added before rounding."""
    if zero_point not in build.constants:
        raise RuleError(f"its zero point '{zero_point}' is computed at run time")
    total = build.add("Add", values, build.add("Cast", zero_point, to=_FLOAT))
    zero = build.constant(np.zeros((), build.constants[zero_point].dtype))
    return build.end("QuantizeLinear", total, build.constant(np.ones((), np.float32)), zero, axis=1)


def _q_linear_add(build: NodeBuilder, node: Node) -> list[Node]:
    left, right = (build.add("DequantizeLinear", *node.inputs[begin : begin + 3], axis=1) for begin in (0, 3))
    return _quantized_sum(build, build.add("Div", build.add("Add", left, right), node.inputs[6]), node.inputs[7])


def _q_linear_mul(build: NodeBuilder, node: Node) -> list[Node]:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs
    product = build.add("Mul", _centred(build, a, a_zero), _centred(build, b, b_zero))
    return _quantized_sum(build, build.add("Mul", product, _factor(build, a_scale, b_scale, y_scale)), y_zero)


def _q_linear_softmax(build: NodeBuilder, node: Node) -> list[Node]:
    node.attrs["coerce_to_matrix"] = 0
    return _of_values("Softmax", "axis", "coerce_to_matrix")(build, node)


def _q_linear_average_pool(build: NodeBuilder, node: Node) -> list[Node]:
    x, x_scale, x_zero, y_scale, y_zero = node.inputs
    op = node.op.removeprefix("QLinear")
    mean = build.add(op, _centred(build, x, x_zero), **node.attrs)
    return _quantized(build, mean, build.add("Div", x_scale, y_scale), y_zero)


def _q_linear_concat(build: NodeBuilder, node: Node) -> list[Node]:
    y_scale, y_zero, *operands = node.inputs
    values = [
        build.add("DequantizeLinear", *operands[index : index + 3], axis=1) for index in range(0, len(operands), 3)
    ]
    joined = build.add("Concat", *values, axis=node.attrs["axis"])
    return build.end("QuantizeLinear", joined, y_scale, y_zero, axis=1)


_RULES: dict[str, Callable[[NodeBuilder, Node], list[Node]]] = {
    "QLinearConv": _q_linear_conv,
    "QLinearMatMul": _q_linear_mat_mul,
    "ConvInteger": _conv_integer,
    "MatMulInteger": _mat_mul_integer,
    "QGemm": _q_gemm,
    "QLinearAdd": _q_linear_add,
    "QLinearMul": _q_linear_mul,
    "QLinearLeakyRelu": _of_values("LeakyRelu", "alpha"),
    "QLinearSigmoid": _of_values("Sigmoid"),
    "QLinearSoftmax": _q_linear_softmax,
    "QLinearAveragePool": _q_linear_average_pool,
    "QLinearGlobalAveragePool": _q_linear_average_pool,
    "QLinearConcat": _q_linear_concat,
}
INTEGER_OPS = frozenset(_RULES)


class ExpandDynamicQuantization:
    """DynamicQuantizeLinear by its definition, for each sample of the batch by itself.

    ONNX takes the range of the whole tensor. With a batch of one that is the sample's range, and a result may not
    depend on what else is in its batch; so larger batches are computed like batches of one. Asks for the
    shapes that the round before inferred.

    Scale and zero point are scalars in the file and have a value for each sample here. So has what is made of them and
    of constants alone, such as the product with a weight's scale: a tensor of shape S becomes one of shape
    [N, 1, ..., S]. The ones bring it to the rank of the tensor that it meets, whatever moved that one. Such tensors get
    new names, since they are not those of the file.
    """

    name = "expand_dynamic_quantization"

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        dynamic = [node for node in graph.nodes if node.op == "DynamicQuantizeLinear" and not node.domain]
        if not dynamic:
            return PassResult(False)
        scales = {node.outputs[1] for node in dynamic}
        known = all(node.inputs[0] in graph.shapes for node in dynamic)
        used = tensor_names(graph)
        of_samples: dict[str, _OfSamples] = {}
        nodes: list[Node] = []
        for node in graph.nodes:
            build = NodeBuilder(node, lambda wanted: fresh_name(used, wanted), graph.constants)
            try:
                if node.op == "DequantizeLinear" and node.inputs[1] in scales:
                    nodes += build.end("Mul", _centred(build, node.inputs[0], node.inputs[2]), node.inputs[1])
                elif known and node.op == "DynamicQuantizeLinear" and not node.domain:
                    nodes += _quantized_by_sample(build, graph, of_samples)
                elif any(name in of_samples for name in node.inputs):
                    nodes += _with_ranges(build, graph, of_samples)
                else:
                    nodes.append(node)
            except RuleError as error:
                context.problems.add_node(node, str(error))
        graph.nodes = nodes
        return PassResult(True)  # the next round knows the shapes, or has a problem to report


@dataclass(frozen=True)
class _OfSamples:
    """What stands for a tensor that the file makes of scales and zero points: its name, its own shape and the file's.

    Ones in front of the file's shape are left out.
    """

    name: str
    shape: Shape
    in_file: Shape


def _require_inner(graph: Graph, names: list[str]) -> None:
    for name in names:
        if name in graph.outputs:
            raise RuleError(f"'{name}', which has no batch axis, is a model output")


def _quantized_by_sample(build: NodeBuilder, graph: Graph, of_samples: dict[str, _OfSamples]) -> list[Node]:
    x = build.node.inputs[0]
    y, y_scale, y_zero = build.node.outputs
    _require_inner(graph, [y_scale, y_zero])
    rank = len(graph.shapes[x])
    axes = list(range(1, rank))
    zero, top = (build.constant(np.asarray(value, np.float32)) for value in (0.0, 255.0))
    low = build.add("Min", build.add("ReduceMin", x, axes=axes, keepdims=1), zero)
    high = build.add("Max", build.add("ReduceMax", x, axes=axes, keepdims=1), zero)
    span = build.add("Div", build.add("Sub", high, low), top)
    # A sample of zeros alone: any scale gives zeros.
    scale = build.add("Max", span, build.constant(np.asarray(_TINY, np.float32)))
    offset = build.add("Div", build.add("Sub", zero, low), scale)
    offset = build.add("Clip", build.add("Round", offset), zero, top)
    shifted = build.add("Add", build.add("Round", build.add("Div", x, scale)), offset)
    shape: Shape = (graph.shapes[x][0], *[1] * (rank - 1))
    of_samples |= {y_scale: _OfSamples(scale, shape, ()), y_zero: _OfSamples(offset, shape, ())}
    build.add("Clip", shifted, zero, top, output=y)
    return build.nodes


def _with_ranges(build: NodeBuilder, graph: Graph, of_samples: dict[str, _OfSamples]) -> list[Node]:
    """The node with what stands for its operands; it gives a tensor of the file, or one of ranges and constants."""
    node = build.node
    ranges = [name for name in node.inputs if name in of_samples]
    if node.op not in POINTWISE:
        raise RuleError(f"'{ranges[0]}' differs between samples, which only an elementwise operator can take")
    if node.output not in graph.shapes:
        return [node]  # behind a node that failed
    shape = graph.shapes[node.output]
    others = [name for name in node.inputs if name and name not in of_samples and name not in graph.constants]
    if others and not any(len(graph.shapes[name]) == len(shape) for name in others):
        raise RuleError(f"'{ranges[0]}' differs between samples, but no other operand has a batch axis")
    of_ranges = not others
    if of_ranges:
        _require_inner(graph, [node.output])
        batch = of_samples[ranges[0]].shape[0]
        in_file = _without_leading_ones(shape)
        shape = (batch, *(in_file or (1,)))
    for index, name in enumerate(node.inputs):
        if name in of_samples:
            node.inputs[index] = _of_rank(build, of_samples[name], len(shape))
    if of_ranges:
        of_samples[node.output] = _OfSamples(build.fresh(f"{node.output}__of_sample"), shape, in_file)
        node.outputs = [of_samples[node.output].name]
    return [*build.nodes, node]


def _without_leading_ones(shape: Shape) -> Shape:
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def _of_rank(build: NodeBuilder, tensor: _OfSamples, rank: int) -> str:
    ones = rank - 1 - len(tensor.in_file)
    if ones < 0:
        raise RuleError(f"'{tensor.name}' has the axes {list(tensor.in_file)} for each sample, too many to broadcast")
    wanted: Shape = (tensor.shape[0], *[1] * ones, *tensor.in_file)
    return tensor.name if wanted == tensor.shape else build.add("Reshape", tensor.name, shape=wanted)
