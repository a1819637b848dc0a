"""ONNX models as text, for tests."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser
from tac_engine.converters.graph import Array


def parse(
    body: str,
    *,
    inputs: str = "float[N, 4] x",
    outputs: str = "float[N, M] y",
    opset: int = 18,
    constants: dict[str, Array] | None = None,
    domains: str = "",
) -> onnx.ModelProto:
    """A model of ``body`` (nodes in ONNX text form) with ``constants`` as initializers.

    The text parser declares every domain that is used; ``domains`` is text like ``, "qonnx.custom_op.general": 1``.
    """
    text = f'<ir_version: 8, opset_import: ["": {opset}{domains}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    model = parser.parse_model(text)
    for name, value in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
