"""onnxruntime.quantization: static (QDQ and QOperator form), dynamic and 4-bit weight-only quantization.

The outputs are those of ONNX Runtime, with its default optimizations unless said otherwise.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from . import Array, Recorded, register, samples

PRODUCER = "onnxruntime"


class Net:
    """A float network of one input "x", built node by node."""

    def __init__(self, shape: tuple[int, ...], opset: int = 17, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape, self.opset = shape, opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"{kind}_{len(self.nodes)}", **attributes))
        return name

    def conv(self, x: str, inputs: int, outputs: int, size: int = 3, group: int = 1, **attributes: Any) -> str:
        shape = (outputs, inputs // group, size, size)
        weight = self.rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        weight *= np.geomspace(0.3, 3, outputs).reshape(-1, 1, 1, 1)  # what per-channel scales are for
        bias = self.constant(self.rng.normal(size=outputs) * 0.3)
        return self.op("Conv", x, self.constant(weight), bias, kernel_shape=[size, size], group=group, **attributes)

    def gemm(self, x: str, inputs: int, outputs: int) -> str:
        weight = self.constant(self.rng.normal(size=(outputs, inputs)) / np.sqrt(inputs))
        return self.op("Gemm", x, weight, self.constant(self.rng.normal(size=outputs) * 0.3), transB=1)

    def matmul(self, x: str, inputs: int, outputs: int) -> str:
        return self.op("MatMul", x, self.constant(self.rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)))

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.shape])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10 if self.opset >= 21 else 8)
        return onnx.shape_inference.infer_shapes(model)


def cnn(opset: int = 17, pool: bool = True) -> Net:
    """Convolutions with ReLU, a shortcut, pooling and a fully connected layer."""
    net = Net((3, 10, 10), opset)
    x = net.op("Relu", net.conv("x", 3, 8, pads=[1, 1, 1, 1]))
    if pool:
        x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("Relu", net.conv(x, 8, 8, pads=[1, 1, 1, 1], group=2))
    x = net.op("Add", x, net.conv(y, 8, 8, size=1))
    x = net.op("Relu", net.conv(x, 8, 12, pads=[0, 0, 1, 1], strides=[2, 2]))
    x = net.op("GlobalAveragePool", x)
    net.gemm(net.op("Flatten", x), 12, 10)
    return net


def mixed() -> Net:
    """The other operators that have an integer form."""
    net = Net((4, 9, 9))
    x = net.op("LeakyRelu", net.conv("x", 4, 6), alpha=0.1)
    y = net.op("Sigmoid", net.conv(x, 6, 6, pads=[1, 1, 1, 1]))
    x = net.op("Mul", x, y)
    x = net.op("Concat", x, net.op("Clip", y, net.constant(0.2), net.constant(0.8)), axis=1)
    # Means of 9 values: one of an even count can lie halfway between two integers, where any rounding error decides.
    x = net.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2])
    x = net.op("Pad", x, net.constant([0, 0, 1, 0, 0, 0, 0, 1], np.int64), net.constant(0.25))
    x = net.op("Transpose", x, perm=[0, 2, 3, 1])
    x = net.op("Reshape", x, net.constant([0, -1], np.int64))
    return net


def mixed_head() -> Net:
    net = mixed()
    net.op("Softmax", net.gemm(net.nodes[-1].output[0], 4 * 4 * 12, 5), axis=1)
    return net


def mlp(opset: int = 17) -> Net:
    """MatMul + Add layers."""
    net = Net((32,), opset)
    x = net.op("Relu", net.op("Add", net.matmul("x", 32, 48), net.constant(net.rng.normal(size=48) * 0.2)))
    x = net.op("Relu", net.op("Add", net.matmul(x, 48, 32), net.constant(net.rng.normal(size=32) * 0.2)))
    net.matmul(x, 32, 10)
    return net


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: Array) -> None:
        self.batches = iter([{"x": x[i : i + 8]} for i in range(0, len(x), 8)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.batches, None)


def run(path: Path, x: Array, *, optimized: bool = True, one_by_one: bool = False) -> Recorded:
    """``optimized``: with the graph optimizations that are on by default, which make other operators of the file's."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    blocks = np.split(x, len(x)) if one_by_one else [x]
    results = [session.run(None, {"x": block}) for block in blocks]
    return Recorded([x], [np.concatenate(parts) for parts in zip(*results, strict=True)])


def add(name: str, make: Callable[[], Net], quantize: Callable[[Path, Path, Array], None], **options: bool) -> None:
    def write(path: Path) -> Recorded:
        net = make()
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "float.onnx"
            onnx.save(net.model(net.nodes[-1].output[0]), source)
            logging.disable(logging.WARNING)
            quantize(source, path, samples(64, *net.shape, seed=11))
            logging.disable(logging.NOTSET)
        return run(path, samples(6, *net.shape, seed=12), **options)

    register(PRODUCER, name, write)


def static(form: QuantFormat, activation: QuantType, weight: QuantType, **options: Any) -> Callable[..., None]:
    def quantize(source: Path, target: Path, calibration: Array) -> None:
        quantize_static(
            source,
            target,
            Calibration(calibration),
            quant_format=form,
            activation_type=activation,
            weight_type=weight,
            **options,
        )

    return quantize


def dynamic(weight: QuantType, **options: Any) -> Callable[..., None]:
    def quantize(source: Path, target: Path, calibration: Array) -> None:
        quantize_dynamic(source, target, weight_type=weight, **options)

    return quantize


def weight_only(form: QuantFormat, bits: int, symmetric: bool) -> Callable[..., None]:
    def quantize(source: Path, target: Path, calibration: Array) -> None:
        quantizer = MatMulNBitsQuantizer(
            onnx.load(source), bits=bits, block_size=16, is_symmetric=symmetric, quant_format=form
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(target))

    return quantize


U8, S8, U4, S4, S16 = QuantType.QUInt8, QuantType.QInt8, QuantType.QUInt4, QuantType.QInt4, QuantType.QInt16
QDQ, OPERATORS = QuantFormat.QDQ, QuantFormat.QOperator

for form, form_name in ((QDQ, "qdq"), (OPERATORS, "qlinear")):
    add(f"{form_name}_u8s8", cnn, static(form, U8, S8))
    add(f"{form_name}_u8s8_per_channel", cnn, static(form, U8, S8, per_channel=True))
    add(f"{form_name}_s8s8", cnn, static(form, S8, S8, extra_options={"ActivationSymmetric": True}))
    # By default ONNX Runtime fuses QDQ pairs into integer operators, which round otherwise here and there.
    add(f"{form_name}_mixed", mixed_head, static(form, U8, U8), optimized=form == OPERATORS)
    add(f"{form_name}_mlp", mlp, static(form, U8, S8))
add("qdq_int4_weights", lambda: cnn(21), static(QDQ, U8, S4, per_channel=True))
add("qdq_uint4_weights", lambda: cnn(21), static(QDQ, U8, U4))
add("qdq_int4", lambda: mlp(21), static(QDQ, S4, S4, extra_options={"WeightSymmetric": True}))
add("qdq_uint4", lambda: cnn(21, pool=False), static(QDQ, U4, S4, per_channel=True))
add("qdq_uint4_weights_too", lambda: cnn(21, pool=False), static(QDQ, U4, U4))
add("qdq_int16", lambda: cnn(21), static(QDQ, S16, S8, per_channel=True))
add("qdq_int4_old_opset", mlp, static(QDQ, U4, S4))
add("blocked_int4", lambda: mlp(21), weight_only(QDQ, 4, True), optimized=False)
add("blocked_uint4", lambda: mlp(21), weight_only(QDQ, 4, False), optimized=False)
add("matmul_nbits", mlp, weight_only(OPERATORS, 4, True))
add("matmul_nbits_zero_points", mlp, weight_only(OPERATORS, 4, False))
add("dynamic_mlp", mlp, dynamic(S8), one_by_one=True)
add("dynamic_mlp_per_channel", mlp, dynamic(S8, per_channel=True), one_by_one=True)
add("dynamic_cnn", cnn, dynamic(U8), one_by_one=True)
