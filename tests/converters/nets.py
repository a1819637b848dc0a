"""Small ONNX networks for tests, built node by node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tac_engine.converters import ConversionReport
from tac_engine.converters.evaluate import ReferenceModel

import tac_engine

Array = npt.NDArray[Any]


class Net:
    """One input "x"; every method adds nodes and returns the name of the result."""

    def __init__(self, shape: tuple[int | str, ...], seed: int = 0, opset: int = 20) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=name, domain=domain, **attributes))
        return output

    def split(self, x: str, sizes: list[int], axis: int) -> list[str]:
        outputs = [f"t{len(self.nodes)}.{part}" for part in range(len(sizes))]
        inputs = [x, self.constant(sizes, np.int64)]
        self.nodes.append(helper.make_node("Split", inputs, outputs, name=f"Split_{len(self.nodes)}", axis=axis))
        return outputs

    def signs(self, *shape: int) -> Array:
        return self.rng.choice(np.asarray([-1, 1], np.float32), shape)

    def batch_norm(self, x: str, channels: int, spread: float = 1.0) -> str:
        """Gammas of both signs, statistics on the scale of the sums."""
        gamma = self.rng.normal(size=channels)
        beta = self.rng.normal(size=channels)
        mean = self.rng.normal(size=channels) * spread
        variance = self.rng.uniform(0.5, 2, channels) * spread**2
        parameters = [self.constant(value) for value in (gamma, beta, mean, variance)]
        return self.op("BatchNormalization", x, *parameters, epsilon=1e-5)

    def conv(self, x: str, weight: Array, bias: Array | None = None, **attributes: Any) -> str:
        inputs = [x, self.constant(weight)] + ([] if bias is None else [self.constant(bias)])
        return self.op("Conv", *inputs, kernel_shape=list(weight.shape[2:]), **attributes)

    def model(self, output: str, domains: tuple[str, ...] = (), outputs: tuple[str, ...] = ()) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(self.shape))],
            [helper.make_empty_tensor_value_info(name) for name in (output, *outputs)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset)] + [helper.make_opsetid(domain, 1) for domain in domains]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def convert(model: onnx.ModelProto, folder: Path, **options: Any) -> tuple[ConversionReport, Path]:
    target = folder / "model.tacbin"
    report = tac_engine.convert(save(model, folder), target, **options)
    return report, target


def check(
    model: onnx.ModelProto,
    folder: Path,
    x: Array,
    *,
    tolerance: float = 0.0,
    backends: tuple[str, ...] | None = None,
    **options: Any,
) -> ConversionReport:
    """Converts, runs on every backend and compares with the reference evaluation of the ONNX file.

    ``tolerance`` is relative to the largest output; 0 asks for equality.
    """
    report, target = convert(model, folder, **options)
    reference = ReferenceModel(model).run({"x": x})
    for backend in backends or tac_engine.backends()["runnable"]:
        engine = tac_engine.load(target, backend=backend)
        result = engine.run({"x": x})
        assert result.keys() == reference.keys()
        for name, expected in reference.items():
            if tolerance == 0.0:
                np.testing.assert_array_equal(result[name], expected, err_msg=backend)
            else:
                limit = tolerance * max(1e-30, float(np.max(np.abs(expected), initial=0.0)))
                np.testing.assert_allclose(result[name], expected, rtol=0, atol=limit, err_msg=backend)
    return report


def kinds(report: ConversionReport) -> list[str]:
    return [layer.kind for layer in report.layers]
