"""What simplifiers and optimisers make of the exports of other producers. The answers stay those of the framework."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxsim
import onnxslim

from . import Recorded, register

HERE = Path(__file__).parents[1]
SOURCES = ("pytorch/dorefa_2_2_legacy", "pytorch/binarynet_legacy", "larq/quantizer_ste_tern")


def slim(model: onnx.ModelProto, path: Path) -> None:
    onnx.save(onnxslim.slim(model), path)


def simplified(model: onnx.ModelProto, path: Path) -> None:
    onnx.save(onnxsim.simplify(model)[0], path)


def onnxruntime_extended(model: onnx.ModelProto, path: Path) -> None:
    """Offline optimisation with the fusions that are not bound to one machine."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def rewrite(tool: Callable[[onnx.ModelProto, Path], None], source: str) -> Callable[[Path], Recorded]:
    def write(path: Path) -> Recorded:
        tool(onnx.load(HERE / f"{source}.onnx"), path)
        with np.load(HERE / f"{source}.npz") as arrays:
            return Recorded([arrays["input.0"]], [arrays["output.0"]])

    return write


for source in SOURCES:
    for tool in (slim, simplified, onnxruntime_extended):
        register("rewritten", f"{source.split('/')[1]}_{tool.__name__}", rewrite(tool, source))
