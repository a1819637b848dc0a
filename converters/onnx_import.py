"""ONNX file -> Graph: parsed, checked, normalised to one opset, constants folded, every shape and dtype known.

Normalised forms
----------------
After ``import_model`` every node has one of these forms (opset ``NORMAL_OPSET`` semantics, whatever the file had). The
attributes named are always present and nothing else is. ``x|""``: the input is the empty string where it is absent; the
number of inputs is fixed. Axes are never negative. A letter in capitals is a constant.

==========================  =============================  ==========================================================
op                          inputs                         attrs
==========================  =============================  ==========================================================
Conv                        x, w, b|""                     kernel_shape, strides, pads (begins then ends), dilations,
                                                           group; auto_pad is resolved into pads
MaxPool                     x                              kernel_shape, strides, pads, dilations, ceil_mode
AveragePool                 x                              as MaxPool, and count_include_pad
GlobalAveragePool,          x
GlobalMaxPool
ReduceMean/Sum/Max/Min/     x                              axes (sorted list), keepdims
Prod/L1/L2/SumSquare
MatMul                      a, b
Gemm                        a, b, c|""                     alpha, beta, transA, transB
BatchNormalization          x, scale, bias, mean, var      epsilon
Clip                        x, MIN|"", MAX|""
PRelu                       x, slope
LeakyRelu, Elu, Celu,       x                              alpha
ThresholdedRelu
HardSigmoid                 x                              alpha, beta
Selu                        x                              alpha, gamma
Gelu                        x                              approximate
Softmax, LogSoftmax         x                              axis
ArgMax, ArgMin              x                              axis, keepdims, select_last_index
Concat                      x, y, ...  (two or more)       axis
Reshape                     x                              shape: a Shape (tuple of int | Batch). Also stands for
                                                           Flatten, Squeeze, Unsqueeze
Transpose                   x                              perm
Slice                       x                              axes, starts, ends, steps: clamped; steps may be negative,
                                                           ends is then -1 for "through element 0". Also stands for
                                                           Split
Gather                      x, indices                     axis
Pad                         x, VALUE|""                    pads (2 * rank: begins then ends), mode
Expand                      x                              shape: a Shape (left only where it cannot be collapsed)
Cast                        x                              to (TensorProto data type)
QuantizeLinear              x, scale, ZERO_POINT           axis; the output dtype is the zero point's
DequantizeLinear            x, scale, zero_point|""        axis
Add Sub Mul Div Pow Equal   a, b                           Sum, Max, Min of more inputs become chains; a Mean becomes
Less LessOrEqual Greater                                   Add ... Div
GreaterOrEqual Max Min And
Or Xor
Where                       condition, a, b
one-input elementwise ops   x                              (see UNARY_OPS in passes/shape_rules.py)
qonnx.BipolarQuant          x, scale
qonnx.Quant                 x, scale, zero_point, bits     signed, narrow, rounding_mode (upper case); IntQuant too
qonnx.Trunc                 x, scale, zero_point,          rounding_mode, signed, narrow, version: 1 (five inputs) or 2
                            in_bits[, out_scale], out_bits (six)
qonnx.MultiThreshold        x, thresholds                  out_scale, out_bias, data_layout
qonnx.Im2Col                x                              kernel_shape, strides, pads, dilations; left only where no
                                                           MatMul with a constant reads it
==========================  =============================  ==========================================================

The operators on integers of ONNX and com.microsoft (integer_ops.py) are expanded into those above. Constant, Identity,
Dropout, CastLike, Flatten, Squeeze, Unsqueeze, Sum, Mean, Shape, Size, ConstantOfShape, Range and control flow never
occur. Normalisations but BatchNormalization, Resize, DepthToSpace, SpaceToDepth, ConvTranspose, ScatterND, mirrored
Pads and windows of one dimension are written as the operators above (passes/decompose.py). A node with constant inputs
only never occurs. A constant operand of an elementwise op has size 1 along every axis where its values repeat, if the
result keeps its shape ([1, C, H, W] -> [1, C, 1, 1]). An Identity between a graph input and a graph output is a Reshape
to the same shape.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from ..errors import InvalidInputError, UnsupportedModelError
from .graph import Batch, Dim, Graph, GraphInput
from .onnx_file import RawGraph, RawInput, load_model, read_graph
from .passes.base import PassContext, Problems
from .passes.normalise_ops import NORMAL_OPSET, normalise_nodes
from .passes.pipeline import run_passes

# Operators whose inputs behind the first one are parameters of a network.
_PARAMETERS = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul"})
InputShapes = Mapping[str, Sequence[int | None]]

__all__ = ["NORMAL_OPSET", "import_model"]


def import_model(path: str | os.PathLike[str] | onnx.ModelProto, *, input_shapes: InputShapes | None = None) -> Graph:
    """Reads an ONNX file into the form described above.

    ``input_shapes`` fixes dynamic axes: ``{"input": (None, 3, 32, 32)}``; axis 0 is the batch axis and stays free.

    Raises:
        FormatError: the file cannot be read, or is not an ONNX model.
        UnsupportedModelError: with every problem found, each naming its node, input or initializer.
        InvalidInputError: ``input_shapes`` does not fit the model.
    """
    model, base_dir, source = load_model(path)
    raw = read_graph(model, base_dir, source)
    problems = Problems()
    _refuse_weights_as_inputs(raw)
    inputs, literal_batch = _graph_inputs(raw, dict(input_shapes or {}), problems)
    constants = dict(raw.constants)
    nodes = normalise_nodes(raw.nodes, raw.outputs, constants, raw.opset, problems)
    graph = Graph(nodes, constants, inputs, list(raw.outputs), {}, {}, NORMAL_OPSET, source, half_types=raw.half_types)
    run_passes(graph, PassContext(problems, literal_batch))
    for node in graph.nodes:
        dtype = graph.dtypes.get(node.output)
        if node.op in ("Conv", "Gemm", "MatMul") and dtype is not None and dtype.kind == "f" and dtype != np.float32:
            problems.add_node(node, f"it computes in {dtype}; export the model in float32")
    for name in graph.outputs:
        if name in graph.constants:
            problems.add(f"output '{name}' does not depend on any input")
    if problems:
        for item in graph.inputs:
            # [C, H, W] with C taken for the batch leads to reasons that do not say so.
            if len(item.shape) == 3 and literal_batch is not None:
                dims = [str(literal_batch), *map(str, item.shape[1:])]
                problems.add(
                    f"axis 0 of input '{item.name}' {_dims_text(dims)} is taken for the batch axis; where it is none, "
                    "export the model with one"
                )
        raise UnsupportedModelError(problems.describe(source))
    live = {name for node in graph.nodes for name in (*node.inputs, *node.outputs)} | set(graph.outputs)
    live.update(item.name for item in graph.inputs)
    graph.shapes = {name: shape for name, shape in graph.shapes.items() if name in live}
    graph.dtypes = {name: dtype for name, dtype in graph.dtypes.items() if name in live}
    return graph


def _refuse_weights_as_inputs(raw: RawGraph) -> None:
    """An export without parameters declares each as an input, which would be taken for data with a batch axis.

    An operand of MatMul with more than two axes may be data.
    """
    problems = Problems()
    ranks = {item.name: len(item.shape or ()) for item in raw.inputs}
    for node in raw.nodes:
        names = dict.fromkeys(name for name in node.inputs[1:] if name in ranks and name != node.inputs[0])
        given = [f"'{name}'" for name in names if node.op != "MatMul" or ranks[name] <= 2]
        if not node.domain and node.op in _PARAMETERS and given:
            problems.add_node(
                node,
                f"{', '.join(given)}: an initializer is expected, found a model input; export the model with its "
                "parameters (export_params=True)",
            )
    if problems:
        raise UnsupportedModelError(problems.describe(raw.source))


def _graph_inputs(
    raw: RawGraph, input_shapes: dict[str, Sequence[int | None]], problems: Problems
) -> tuple[list[GraphInput], int | None]:
    """The inputs with N in axis 0, and the batch size that the file fixes. A faulty input is left out."""
    unknown = sorted(set(input_shapes) - {item.name for item in raw.inputs})
    if unknown:
        known = ", ".join(f"'{item.name}'" for item in raw.inputs)
        raise InvalidInputError(f"input_shapes names '{unknown[0]}', but the model's inputs are {known}")
    inputs: list[GraphInput] = []
    fixed: dict[int, str] = {}
    for item in raw.inputs:
        dims = _merged_shape(item, input_shapes.get(item.name))
        if item.dtype != np.float32:
            problems.add(
                f"input '{item.name}': element type float32 is expected, found {item.dtype}; export in float32"
            )
            continue
        if dims is None:
            problems.add(
                f"input '{item.name}' has no shape; give it, every axis but the batch axis fixed: "
                f"{_shape_options(item.name, ['None', '...'])}"
            )
            continue
        if len(dims) < 2:
            what = "a scalar" if not dims else f"shape [{dims[0] or '?'}]"
            problems.add(
                f"input '{item.name}': a batch axis and at least one more are expected, found {what}; export the model "
                "with a batch axis in front"
            )
            continue
        shape = _with_batch(item.name, dims, problems)
        if shape is None:
            continue
        if isinstance(dims[0], int):
            fixed.setdefault(dims[0], item.name)
        inputs.append(GraphInput(item.name, item.dtype, shape))
    if len(fixed) > 1:
        sizes = ", ".join(f"{size} ('{name}')" for size, name in sorted(fixed.items()))
        problems.add(f"the inputs have different batch sizes: {sizes}")
    return inputs, next(iter(fixed), None)


def _merged_shape(item: RawInput, given: Sequence[int | None] | None) -> list[int | str | None] | None:
    """The file's shape with ``given`` filled in."""
    if given is None:
        return item.shape
    for dim in given:
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
            raise InvalidInputError(f"input_shapes['{item.name}']: {dim!r} is neither None nor a positive integer")
    if item.shape is None:
        return list(given)
    fits = len(given) == len(item.shape) and all(
        new is None or not isinstance(old, int) or old == new for old, new in zip(item.shape, given, strict=True)
    )
    if not fits:
        raise InvalidInputError(
            f"input_shapes['{item.name}'] is {list(given)}, but the model's input has shape {_dims_text(item.shape)}"
        )
    return [old if new is None else new for old, new in zip(item.shape, given, strict=True)]


def _with_batch(name: str, dims: list[int | str | None], problems: Problems) -> tuple[Dim, ...] | None:
    dynamic = [axis for axis, dim in enumerate(dims) if axis > 0 and not isinstance(dim, int)]
    if dynamic:
        example = ["None", *("..." if axis in dynamic else str(dims[axis]) for axis in range(1, len(dims)))]
        axes = " and ".join(str(axis) for axis in dynamic)
        problems.add(
            f"input '{name}' of shape {_dims_text(dims)}: {'axes' if len(dynamic) > 1 else 'axis'} {axes} "
            f"{'are' if len(dynamic) > 1 else 'is'} dynamic, only the batch axis may be; export with fixed sizes, or "
            f"fix them: {_shape_options(name, example)}"
        )
        return None
    return (Batch(), *(dim for dim in dims[1:] if isinstance(dim, int)))


def _shape_options(name: str, dims: list[str]) -> str:
    """How to give a shape, on the command line and in Python; "None" is the batch axis."""
    typed = ",".join("N" if dim == "None" else dim for dim in dims)
    return f"--input-shape '{name}:{typed}', in Python input_shapes={{'{name}': ({', '.join(dims)})}}"


def _dims_text(dims: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"
