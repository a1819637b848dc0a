"""The whole way from an ONNX file to a .tacbin."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InvalidInputError, UnsupportedModelError
from .analysis import analyse, mac_weights
from .codebook import MAX_CODES, compress
from .explain import explain as explain_layers
from .graph import Array, Graph
from .lowering import Lowering, lower
from .onnx_file import check_target
from .onnx_import import import_model
from .report import ConversionReport
from .rewrites import integer_sums, split_layers, token_layers

PathLike = str | os.PathLike[str]


def convert(
    source: PathLike,
    target: PathLike,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    scale: float | None = None,
    input_layout: str | None = None,
    fc_prune: float | None = None,
    fc_bits: int | None = None,
    fc_precision: str = "i16",
    conv_precision: str = "f32",
    input_shapes: Mapping[str, Sequence[int | None]] | None = None,
    explain: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> ConversionReport:
    """Converts an ONNX model into a .tacbin file.

    Every weight keeps its exact value unless ``fc_prune`` or ``fc_bits`` is given, but for the rounding of
    ``fc_precision`` and ``conv_precision``.

    Args:
        source: ONNX file; external data are read from its folder.
        target: .tacbin file to write; replaced in one step when everything succeeded.
        mean: preprocessing for uint8 images, one value or one per channel: ``(pixel * scale - mean) / std`` in float32.
            With any of the three the engine takes images [H, W, C] or [N, H, W, C] as well.
        std: see ``mean``; 1 if left out.
        scale: see ``mean``; 1/255 if left out.
        input_layout: "NCHW" or "NHWC", the layout of the model's own image input; read off the shape if left out.
        fc_prune: prunes this share (0..1) of the smallest weights of every float fully connected layer that is not a
            codebook already, 0.75 in TAC (arXiv 1907.05271).
        fc_bits: clusters what is left into ``2**fc_bits - 1`` values and zero (1..4) by k-means.
        fc_precision: sums of codebook layers. "i16": inputs are rounded to 16 bits and the few weights to 15, sums are
            exact, and two to five times as fast; outputs are within about 1e-4 of the largest one, which ``verify``
            measures. "f32": float32 throughout. Layers that "i16" does not pay for or fit stay "f32"; the report
            says which and why.
        conv_precision: sums of the convolutions that stay float, such as the first layer. "f32": float32. "i16":
            inputs and weights are rounded to integers whose sums fit 32 bits, about 13 bits each for 150 products
            (few-valued weights keep their values, and leave inputs up to 15), which is faster. The outputs of such a
            layer are within a few 1e-4 of the largest one, which ``verify`` measures; signs behind it flip where it
            is as near to 0 as that.
        input_shapes: shapes for inputs with dynamic axes, ``{"input": (None, 3, 32, 32)}``.
        explain: also fills ``report.explanations``: per layer with weights the value sets that were found and, for a
            float layer, why it is not low-bit.
        progress: called with a stage and the share done.

    Raises:
        FormatError: `source` cannot be read, or `target` not written.
        UnsupportedModelError: the model cannot be converted; every offending node is named.
        InvalidInputError: an argument is out of range.
    """
    report_progress = progress or (lambda stage, share: None)
    _check_options(fc_prune, fc_bits, fc_precision, conv_precision, input_layout)
    if Path(source).exists() and Path(target).exists() and Path(target).samefile(source):
        raise InvalidInputError(f"{os.fspath(target)} is the ONNX model itself; name another file to write")
    check_target(target)
    report_progress("reading", 0.0)
    graph = import_model(source, input_shapes=input_shapes)
    notes = _compress_layers(graph, fc_prune, fc_bits) if fc_prune is not None or fc_bits is not None else {}
    luts, channels_first = _preprocessing(graph, mean, std, scale, input_layout)
    report_progress("analysing", 0.2)
    analysis = analyse(graph)
    if token_layers(analysis):
        analysis = analyse(graph)
    split = split_layers(analysis)
    if split.notes:
        analysis = analyse(graph)
        notes |= split.notes
    analysis.reasons |= split.declined
    before = len(graph.nodes)
    sums = integer_sums(analysis)
    if len(graph.nodes) != before:
        analysis = analyse(graph)
        analysis.reasons |= {output: reason for output, reason in split.declined.items() if output in analysis.reasons}
    analysis.integer_sums = sums
    report_progress("lowering", 0.7)
    emitter = lower(Lowering(analysis, luts, channels_first, fc_precision, conv_precision))
    report_progress("writing", 0.9)
    emitter.writer.save(os.fspath(target))
    report = ConversionReport(os.fspath(source), os.fspath(target), emitter.rows)
    report.layers = [
        replace(
            row,
            bytes_before=split.bytes_before.get(row.name, row.bytes_before),
            reason="; ".join(filter(None, (notes.get(row.name, ""), row.reason))),
        )
        for row in report.layers
    ]
    if graph.half_types:
        report.notes.append(
            f"the model's {' and '.join(graph.half_types)} tensors are float32 here, inputs and outputs too: nothing "
            "is rounded to 16 bits on the way"
        )
    if explain:
        report.explanations = explain_layers(analysis, emitter.rows)
    report.file_bytes = Path(target).stat().st_size
    report.onnx_bytes = Path(source).stat().st_size
    report_progress("done", 1.0)
    return report


def _check_options(
    fc_prune: float | None, fc_bits: int | None, fc_precision: str, conv_precision: str, input_layout: str | None
) -> None:
    if fc_prune is not None and not 0.0 <= fc_prune < 1.0:
        raise InvalidInputError(f"fc_prune must be in [0, 1), got {fc_prune}")
    if fc_bits is not None and fc_bits not in (1, 2, 3, 4):
        raise InvalidInputError(f"fc_bits must be 1, 2, 3 or 4, got {fc_bits}")
    if fc_precision not in ("i16", "f32"):
        raise InvalidInputError(f"fc_precision must be 'i16' or 'f32', got '{fc_precision}'")
    if conv_precision not in ("i16", "f32"):
        raise InvalidInputError(f"conv_precision must be 'i16' or 'f32', got '{conv_precision}'")
    if input_layout not in (None, "NCHW", "NHWC"):
        raise InvalidInputError(f"input_layout must be 'NCHW' or 'NHWC', got '{input_layout}'")


def _compress_layers(graph: Graph, prune: float | None, bits: int | None) -> dict[str, str]:
    """Replaces the weights of float fully connected layers; returns a note per layer."""
    notes: dict[str, str] = {}
    for node in graph.nodes:
        if node.op not in ("Gemm", "MatMul") or node.domain:
            continue
        constant = mac_weights(graph, node)
        if isinstance(constant, str) or np.unique(constant.weight).size <= MAX_CODES + 1:
            continue
        result = compress(constant.weight, prune or 0.0, bits or 4)
        name = f"{node.inputs[1]}/compressed/{node.name}"
        transposed = node.op == "MatMul" or not node.attrs.get("transB", 0)
        graph.constants[name] = np.ascontiguousarray(result.weight.T if transposed else result.weight)
        graph.shapes[name] = graph.constants[name].shape
        graph.dtypes[name] = graph.constants[name].dtype
        alpha = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
        if alpha != 1.0:
            node.attrs["alpha"] = 1.0  # mac_weights has multiplied it in
        node.inputs[1] = name
        notes[node.name or node.output] = (
            f"weights changed: {result.sparsity:.0%} zeros, relative error {result.error:.3g}"
        )
    return notes


def _preprocessing(
    graph: Graph,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
    scale: float | None,
    input_layout: str | None,
) -> tuple[dict[str, Array], dict[str, bool]]:
    if mean is None and std is None and scale is None:
        if input_layout is not None:
            raise InvalidInputError("input_layout says how images are laid out: give mean, std or scale with it")
        return {}, {}
    images = [item for item in graph.inputs if len(item.shape) == 4]
    if len(graph.inputs) != 1 or len(images) != 1:
        raise InvalidInputError(
            f"preprocessing needs a model with a single image input of rank 4, found {len(graph.inputs)}"
        )
    shape = images[0].shape
    if input_layout is None:
        first, last = shape[1], shape[3]
        if (first in (1, 3, 4)) == (last in (1, 3, 4)):
            raise InvalidInputError(
                f"cannot tell the image layout from shape {[str(d) for d in shape]}; give input_layout"
            )
        input_layout = "NCHW" if first in (1, 3, 4) else "NHWC"
    channels = shape[1] if input_layout == "NCHW" else shape[3]
    if not isinstance(channels, int):
        raise UnsupportedModelError(f"input '{images[0].name}' has a dynamic channel axis")
    means, stds = _per_channel("mean", mean, 0.0, channels), _per_channel("std", std, 1.0, channels)
    if np.any(stds == 0.0):
        raise InvalidInputError("std must not be 0")
    factor = np.float32(1.0 / 255.0 if scale is None else scale)
    pixels = np.arange(256, dtype=np.float32) * factor
    lut = (pixels[None] - means[:, None]) / stds[:, None]
    return {images[0].name: np.ascontiguousarray(lut, np.float32)}, {images[0].name: input_layout == "NCHW"}


def _per_channel(name: str, value: Sequence[float] | float | None, default: float, channels: int) -> Array:
    values = np.asarray(default if value is None else value, np.float32).reshape(-1)
    if values.size not in (1, channels) or not np.all(np.isfinite(values)):
        raise InvalidInputError(f"{name} must be 1 or {channels} finite values, got {values.tolist()}")
    return np.array(np.broadcast_to(values, (channels,)))
