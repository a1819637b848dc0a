"""QONNX: what its tools make of Brevitas exports, and its operators with parameters of every kind.

The outputs are those of the QONNX executor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.base import Transformation
from qonnx.transformation.batchnorm_to_affine import BatchNormToAffine
from qonnx.transformation.bipolar_to_xnor import ConvertBipolarMatMulToXnorPopcount
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.extract_quant_scale_zeropt import ExtractQuantScaleZeroPt
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.transformation.lower_convs_to_matmul import LowerConvsToMatMul
from qonnx.transformation.qcdq_to_qonnx import QCDQToQuant
from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ
from qonnx.util.cleanup import cleanup_model
from torch import nn

from . import Array, Recorded, register, samples
from .brevitas import binary, export, per_channel, relu_net, settle, signed_net, ternary

PRODUCER = "qonnx"
DOMAIN = "qonnx.custom_op.general"


def execute(model: ModelWrapper, x: Array) -> list[Array]:
    """All outputs for all samples; the executor takes one sample at a time."""
    name = model.graph.input[0].name
    rows = [execute_onnx(model, {name: x[i : i + 1]}) for i in range(len(x))]
    outputs = [item.name for item in model.graph.output]
    return [np.concatenate([row[output] for row in rows]).astype(np.float32) for output in outputs]


def add_transformed(
    name: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    transformations: Iterable[Transformation | Callable[[ModelWrapper], ModelWrapper]] = (),
    *,
    form: str = "qonnx",
    preserve: bool = True,
    rename: Callable[[ModelWrapper], ModelWrapper] = lambda model: model,
) -> None:
    """A Brevitas export, cleaned up (``preserve``: with the quantizers of weights kept) and transformed.

    ``rename`` changes names that the executor cannot run any more.
    """

    def write(path: Path) -> Recorded:
        torch.manual_seed(0)
        model = settle(make(), shape, seed=5)
        x = samples(4, *shape, seed=8)
        with tempfile.TemporaryDirectory() as folder:
            exported = Path(folder) / "exported.onnx"
            export(model, torch.from_numpy(x[:1]), exported, form)
            wrapped = ModelWrapper(str(exported))
        if form == "qonnx":
            wrapped = cleanup_model(wrapped, preserve_qnt_ops=preserve)
        for each in transformations:
            wrapped = wrapped.transform(each) if isinstance(each, Transformation) else each(wrapped)
        outputs = execute(wrapped, x)
        rename(wrapped).save(str(path))
        return Recorded([x], outputs)

    register(PRODUCER, name, write)


def to_multi_threshold(layout: str) -> Callable[[ModelWrapper], ModelWrapper]:
    """Relu -> Quant and BipolarQuant as MultiThreshold (-> Mul by the scale), as FINN's front end writes them."""

    def convert(model: ModelWrapper) -> ModelWrapper:
        graph = model.graph
        for node in list(graph.node):
            if node.op_type not in ("Quant", "BipolarQuant"):
                continue
            scale = model.get_initializer(node.input[1]).reshape(-1)[0]
            source, result, extra = node.input[0], node.output[0], []
            if node.op_type == "BipolarQuant":
                thresholds, factor, bias, bits = np.zeros((1, 1), np.float32), 2.0 * scale, -scale, "BIPOLAR"
            else:
                before = model.find_producer(source)
                if before is None or before.op_type != "Relu":
                    continue
                width = int(model.get_initializer(node.input[3]).reshape(-1)[0])
                steps = np.arange(2**width - 1, dtype=np.float32)
                thresholds = ((steps + np.float32(0.5)) * scale).reshape(1, -1)
                factor, bias, bits = 1.0, 0.0, f"UINT{width}"
                source = before.input[0]
                graph.node.remove(before)
                name = f"{result}_scale"
                model.set_initializer(name, np.asarray([scale], np.float32))
                extra = [helper.make_node("Mul", [f"{result}_integer", name], [result])]
                result = f"{result}_integer"
            model.set_initializer(f"{result}_thresholds", thresholds.astype(np.float32))
            made = helper.make_node(
                "MultiThreshold",
                [source, f"{result}_thresholds"],
                [result],
                domain=DOMAIN,
                out_dtype=bits,
                out_scale=float(factor),
                out_bias=float(bias),
                **({"data_layout": layout} if layout else {}),
            )
            index = list(graph.node).index(node)
            graph.node.remove(node)
            for place, each in enumerate([made, *extra]):
                graph.node.insert(index + place, each)
        return model.transform(InferShapes())

    return convert


def bipolar_matmuls(model: ModelWrapper) -> ModelWrapper:
    """Weights -1 and +1 and sign activations said to be BIPOLAR, then MatMul as XnorPopcountMatMul."""
    for node in model.graph.node:
        if node.op_type == "MatMul":
            model.set_tensor_datatype(node.input[1], DataType["BIPOLAR"])
        if node.op_type == "MultiThreshold":
            model.set_tensor_datatype(node.output[0], DataType["BIPOLAR"])
    return model.transform(ConvertBipolarMatMulToXnorPopcount()).transform(InferShapes())


def domain(name: str, declared: bool) -> Callable[[ModelWrapper], ModelWrapper]:
    """The domain of an older tool; the executor runs the model before, the operators are the same."""

    def convert(model: ModelWrapper) -> ModelWrapper:
        for node in model.graph.node:
            if node.domain == DOMAIN:
                node.domain = name
        kept = [item for item in model.model.opset_import if item.domain != DOMAIN]
        del model.model.opset_import[:]
        model.model.opset_import.extend(kept + ([helper.make_opsetid(name, 1)] if declared else []))
        return model

    return convert


def signs_net() -> nn.Module:
    """Binary fully connected layers."""
    import brevitas.nn as qnn

    from .brevitas import Sign, SignWeight

    layers: list[nn.Module] = [qnn.QuantIdentity(act_quant=Sign)]
    for features, outputs in ((48, 32), (32, 16)):
        layers += [qnn.QuantLinear(features, outputs, bias=False, weight_quant=SignWeight), nn.BatchNorm1d(outputs)]
        layers += [qnn.QuantIdentity(act_quant=Sign)]
    layers.append(qnn.QuantLinear(16, 10, bias=False, weight_quant=SignWeight))
    return nn.Sequential(*layers)


class Operators:
    """A graph from one input to many quantizers, each an output."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, domain: str = DOMAIN, **attributes: Any) -> str:
        name = f"y{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [name], domain=domain, name=f"{kind}_{name}", **attributes)
        )
        return name

    def quant(self, scale: Any, zero: Any, bits: float, **attributes: Any) -> str:
        parameters = [self.constant(scale), self.constant(zero), self.constant(bits)]
        return self.op("Quant", "x", *parameters, **attributes)

    def write(self, path: Path, x: Array, outputs: list[str] | None = None, version: int = 2) -> Recorded:
        names = outputs or [node.output[0] for node in self.nodes]
        graph = helper.make_graph(
            self.nodes,
            "operators",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *self.shape])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid(DOMAIN, version)]
        wrapped = ModelWrapper(helper.make_model(graph, opset_imports=opsets, ir_version=8)).transform(InferShapes())
        recorded = Recorded([x], execute(wrapped, x))
        wrapped.save(str(path))
        return recorded


def grid(*shape: int) -> Array:
    """Multiples of 1/16, ties of every scale below among them."""
    return samples(*shape, seed=9, step=1 / 16) * np.float32(2)


MODES = ("ROUND", "HALF_EVEN", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN", "round")


def quant_operators(path: Path) -> Recorded:
    net = Operators(3, 4, 4)
    for mode in MODES:
        net.quant(0.5, 0.0, 3, signed=1, narrow=0, rounding_mode=mode)
        net.quant(0.3, 0.0, 8, signed=1, narrow=1, rounding_mode=mode)
    for bits in (1, 2, 3, 4, 5, 8):
        for signed, narrow in ((0, 0), (0, 1), (1, 0), (1, 1)):
            if (bits, signed, narrow) not in ((1, 0, 1), (1, 1, 1)):
                net.quant(0.25, 0.0, bits, signed=signed, narrow=narrow, rounding_mode="ROUND")
    channel = np.asarray([0.125, 0.3, 1.0], np.float32).reshape(1, 3, 1, 1)
    for bits in (2, 4, 8):
        net.quant(channel, 0.0, bits, signed=1, narrow=0, rounding_mode="ROUND")
        net.quant(0.5, 1.0, bits, signed=0, narrow=0, rounding_mode="ROUND")
        net.quant(0.4, -1.0, bits, signed=1, narrow=0, rounding_mode="FLOOR")
        zeros = np.asarray([0.0, 1.0, 2.0]).reshape(1, 3, 1, 1)
        net.quant(channel, zeros, bits, signed=0, narrow=0, rounding_mode="ROUND")
    for scale in (1.0, 0.1, channel):
        net.op("BipolarQuant", "x", net.constant(scale))
    parameters = [net.constant(0.25), net.constant(0.0), net.constant(4)]
    net.op("IntQuant", "x", *parameters, signed=1, narrow=0, rounding_mode="ROUND")
    return net.write(path, grid(8, 3, 4, 4))


def trunc_operators(version: int) -> Callable[[Path], Recorded]:
    def write(path: Path) -> Recorded:
        net = Operators(3, 4, 4)
        for mode in MODES:
            for bits in (2, 4):
                inputs = [net.constant(0.25), net.constant(0.0), net.constant(6)]
                attributes: dict[str, Any] = {"rounding_mode": mode}
                if version == 2:
                    inputs.append(net.constant(0.25 * 2 ** (6 - bits)))
                    attributes |= {"signed": 1, "narrow": 0}
                net.op("Trunc", "x", *inputs, net.constant(bits), **attributes)
        x = grid(4, 3, 4, 4)
        return net.write(path, np.clip(x, -8, 7.75), version=version)

    return write


def threshold_operators(path: Path) -> Recorded:
    net = Operators(4, 5, 5)
    rng = np.random.default_rng(3)
    for steps in (1, 3, 7, 15):
        for rows in (1, 4):
            thresholds = net.constant(np.sort(rng.integers(-24, 24, (rows, steps)) / 8))
            net.op("MultiThreshold", "x", thresholds, out_dtype="UINT4", data_layout="NCHW")
            net.op("MultiThreshold", "x", thresholds, out_dtype="FLOAT32", out_scale=0.3, out_bias=-0.6)
    per_row = net.constant(np.sort(rng.integers(-24, 24, (5, 3)) / 8))
    net.op("MultiThreshold", "x", per_row, out_dtype="UINT2", data_layout="NHWC")
    return net.write(path, grid(4, 4, 5, 5))


def threshold_defaults(path: Path) -> Recorded:
    """Without data_layout the channels of a tensor of rank 3 are its last axis."""
    net = Operators(4, 6)
    thresholds = net.constant(np.sort(np.random.default_rng(4).integers(-24, 24, (6, 3)) / 8))
    net.op("MultiThreshold", "x", thresholds, out_dtype="UINT2")
    return net.write(path, grid(4, 4, 6))


def qkeras_style(path: Path) -> Recorded:
    """Quant with int64 zero points and bit widths in FINN's old domain, MatMul + Add."""
    net = Operators(16)
    rng = np.random.default_rng(6)
    integer = {"dtype": np.int64}

    def quant(x: str, bits: int, scale: float, signed: int, narrow: int) -> str:
        inputs = [net.constant(scale), net.constant(0, **integer), net.constant(bits, **integer)]
        return net.op("Quant", x, *inputs, signed=signed, narrow=narrow, rounding_mode="ROUND")

    x = quant("x", 4, 0.25, 1, 0)
    for inputs, outputs in ((16, 24), (24, 12)):
        weight = quant(net.constant(rng.normal(size=(inputs, outputs)) * 0.4), 3, 0.25, 1, 1)
        x = net.op("MatMul", x, weight, domain="")
        x = net.op("Add", x, quant(net.constant(rng.normal(size=outputs)), 8, 0.125, 1, 1), domain="")
        x = quant(net.op("Relu", x, domain=""), 3, 0.5, 0, 0)
    x = net.op("MatMul", x, quant(net.constant(rng.normal(size=(12, 5)) * 0.4), 4, 0.125, 1, 0), domain="")
    recorded = net.write(path, samples(8, 16, seed=2), [x], version=1)
    model = ModelWrapper(str(path))
    domain("finn.custom_op.general", True)(model).save(str(path))
    return recorded


add_transformed("cleaned_binary", binary, (3, 8, 8))
add_transformed("cleaned_w2a2", lambda: relu_net(2, 2), (3, 9, 9))
add_transformed("cleaned_per_channel", per_channel, (3, 9, 9))
add_transformed("cleaned_weights_folded", lambda: relu_net(3, 3), (3, 9, 9), preserve=False)
add_transformed("scales_extracted", ternary, (4, 6, 6), [ExtractQuantScaleZeroPt()])
add_transformed("channels_last", lambda: relu_net(2, 2), (3, 9, 9), [ConvertToChannelsLastAndClean()])
add_transformed("quant_to_qcdq", lambda: relu_net(3, 3), (3, 9, 9), [QuantToQCDQ(), InferShapes()])
add_transformed("qcdq_to_quant", lambda: relu_net(3, 3), (3, 9, 9), [InferShapes(), QCDQToQuant()], form="qcdq")
add_transformed(
    "affine_matmul", lambda: signed_net(4, False), (24,), [BatchNormToAffine(), GemmToMatMul(), InferShapes()]
)
add_transformed("thresholds", lambda: relu_net(2, 2), (3, 9, 9), [to_multi_threshold("NCHW")], preserve=False)
add_transformed("thresholds_signs", binary, (3, 8, 8), [to_multi_threshold("")], preserve=False)
add_transformed(
    "lowered_convs",
    lambda: relu_net(2, 2),
    (3, 9, 9),
    [to_multi_threshold(""), InferDataTypes(), LowerConvsToMatMul()],
    preserve=False,
)
add_transformed("xnor_popcount", signs_net, (48,), [to_multi_threshold(""), bipolar_matmuls], preserve=False)
for old, declared in (("onnx.brevitas", False), ("finn.custom_op.general", True), ("finn", False)):
    add_transformed(f"domain_{old.replace('.', '_')}", binary, (3, 8, 8), rename=domain(old, declared))
register(PRODUCER, "quant_operators", quant_operators)
register(PRODUCER, "trunc_operators_v1", trunc_operators(1))
register(PRODUCER, "trunc_operators_v2", trunc_operators(2))
register(PRODUCER, "threshold_operators", threshold_operators)
register(PRODUCER, "threshold_defaults", threshold_defaults)
register(PRODUCER, "qkeras_style", qkeras_style)
