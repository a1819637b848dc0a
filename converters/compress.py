"""Step 2 of TAC after training: fully connected layers pruned and clustered in an ONNX file, and what that costs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..engine import Engine, load
from ..errors import InvalidInputError
from .codebook import MAX_CODES, Compression, compress
from .convert import PathLike, convert
from .graph import Array
from .onnx_file import check_target, load_model, read_graph, save_model

DEFAULT_SAMPLES = 64
SEED = 0
_BATCH = 250
# What a weight may pass on its way to the layer without its values changing.
_VIEWS = ("Transpose", "Identity")


@dataclass(frozen=True)
class Effect:
    """What a compressed network gives beside the original one, on the same samples.

    ``output_error``: ``||y' - y|| / ||y||`` over all samples; ``same_class``: share of samples whose largest output is
    the same; ``accuracy``: share of the labels that it is, None without labels.
    """

    output_error: float
    same_class: float
    accuracy: float | None


@dataclass(frozen=True)
class CompressedLayer:
    """A fully connected layer; ``effect`` is that of compressing it alone."""

    name: str
    shape: tuple[int, ...]
    zeros: float
    values: int  # distinct ones beside zero
    weight_error: float  # ``||w' - w|| / ||w||``
    effect: Effect


@dataclass
class CompressReport:
    """Result of :func:`compress_model`; ``skipped`` has a reason for each layer that was left as it is."""

    source: str
    target: str
    data: str
    samples: int
    prune: float
    bits: int
    layers: list[CompressedLayer]
    skipped: dict[str, str]
    effect: Effect  # of all layers together
    accuracy_before: float | None
    tacbin_bytes_before: int
    tacbin_bytes: int
    max_loss: float | None = None

    @property
    def accuracy_loss(self) -> float | None:
        """How much accuracy falls, in points; None without labels."""
        if self.accuracy_before is None or self.effect.accuracy is None:
            return None
        return 100 * (self.accuracy_before - self.effect.accuracy)

    @property
    def ok(self) -> bool:
        """Whether accuracy falls by no more than ``max_loss`` points, as far as both are known."""
        return self.max_loss is None or self.accuracy_loss is None or self.accuracy_loss <= self.max_loss

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "accuracy_loss": self.accuracy_loss, "ok": self.ok}

    def __str__(self) -> str:
        header = ("compressed", "weights", "zeros", "values", "weight error", "output error", "same class", "accuracy")
        rows = [
            (
                layer.name,
                "x".join(map(str, layer.shape)),
                f"{layer.zeros:.1%}",
                str(layer.values),
                f"{layer.weight_error:.3f}",
                *_effect(layer.effect),
            )
            for layer in self.layers
        ]
        rows.append(("all of them", "", "", "", "", *_effect(self.effect)))
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        lines = [f"{self.source} -> {self.target}: {self.samples} samples ({self.data})"]
        table = (header, tuple("-" * width for width in widths), *rows)
        lines += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
        lines += [f"left alone: {name}, {reason}" for name, reason in self.skipped.items()]
        lines.append(f"as .tacbin {self.tacbin_bytes_before} -> {self.tacbin_bytes} bytes")
        if self.accuracy_before is not None and self.accuracy_loss is not None:
            lines.append(f"accuracy before {self.accuracy_before:.2%}, lost {self.accuracy_loss:.2f} points")
            if not self.ok:
                lines.append(f"MORE is lost than the {self.max_loss:g} points allowed")
        return "\n".join(lines)


def _effect(effect: Effect) -> tuple[str, str, str]:
    accuracy = "-" if effect.accuracy is None else f"{effect.accuracy:.2%}"
    return f"{effect.output_error:.4f}", f"{effect.same_class:.2%}", accuracy


def compress_model(
    source: PathLike,
    target: PathLike,
    *,
    prune: float = 0.75,
    bits: int = 4,
    skip: Sequence[str] = (),
    inputs: Array | None = None,
    labels: Array | None = None,
    max_loss: float | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    scale: float | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> CompressReport:
    """Writes the ONNX file ``source`` with its float fully connected layers pruned and on a codebook, without training.

    Sensitivity is measured by the engine: once for each layer compressed alone, once for all together.

    Args:
        source: ONNX file.
        target: ONNX file to write; its weights are inside, replaced in one step.
        prune: share of the smallest weights of each layer that become zero.
        bits: the others take ``2**bits - 1`` values (1..4), by k-means.
        skip: names of nodes to leave alone.
        inputs: what to measure on, as the model takes it [N, ...] or, with mean, std or scale, uint8 pictures
            [N, H, W, C]; 64 samples of standard normal numbers if left out.
        labels: class of each of ``inputs``, integers [N].
        max_loss: points of accuracy that may be lost; beyond them the report is not ``ok``.
        mean: as for ``convert``.
        std: as for ``convert``.
        scale: as for ``convert``.
        progress: called with a stage and the share done.

    Raises:
        FormatError: ``source`` cannot be read, or ``target`` not written.
        UnsupportedModelError: it cannot be converted.
        InvalidInputError: an argument is out of range, or the model has no layer to compress.
    """
    if not 0.0 <= prune < 1.0:
        raise InvalidInputError(f"prune must be in [0, 1), got {prune}")
    if bits not in (1, 2, 3, 4):
        raise InvalidInputError(f"bits must be 1, 2, 3 or 4, got {bits}")
    if Path(target).exists() and Path(source).exists() and Path(target).samefile(source):
        raise InvalidInputError(f"{os.fspath(target)} is the model itself; name another file to write")
    check_target(target)
    report_progress = progress or (lambda stage, share: None)
    model, base_dir, name = load_model(source)
    constants = read_graph(model, base_dir, name).constants
    _take_external_data_in(model, constants)
    weights, skipped = _layers(model, skip)
    if not weights:
        reasons = "; ".join(f"{node}: {reason}" for node, reason in skipped.items()) or "it has none"
        raise InvalidInputError(f"{os.fspath(source)}: no fully connected layer to compress ({reasons})")
    compressed = {tensor: compress(_values(model, tensor), prune, bits) for tensor in weights}

    with tempfile.TemporaryDirectory() as folder:

        def engine(changed: Iterable[str]) -> tuple[Engine, int]:
            onnx_path, tacbin_path = Path(folder) / "model.onnx", Path(folder) / "model.tacbin"
            onnx_path.write_bytes(_with(model, {t: compressed[t] for t in changed}).SerializeToString())
            conversion = convert(onnx_path, tacbin_path, mean=mean, std=std, scale=scale, fc_precision="f32")
            return load(tacbin_path), conversion.file_bytes

        report_progress("measuring the original", 0.0)
        original, bytes_before = engine(())
        data, x = _samples(original, inputs, labels)
        before = _run(original, x)
        layers = []
        for index, (tensor, nodes) in enumerate(weights.items()):
            report_progress(f"measuring {nodes[0]}", (index + 1) / (len(weights) + 2))
            found = compressed[tensor]
            layers.append(
                CompressedLayer(
                    ", ".join(nodes),
                    found.weight.shape,
                    found.sparsity,
                    int(np.unique(found.weight[found.weight != 0]).size),
                    found.error,
                    _compare(before, _run(engine([tensor])[0], x), labels),
                )
            )
        report_progress("measuring all layers together", (len(weights) + 1) / (len(weights) + 2))
        together, bytes_after = engine(weights)
        effect = _compare(before, _run(together, x), labels)
    accuracy_before = None if labels is None else float(np.mean(before.argmax(1) == labels))
    save_model(_with(model, compressed), target)
    report_progress("done", 1.0)
    return CompressReport(
        os.fspath(source),
        os.fspath(target),
        data,
        len(x),
        prune,
        bits,
        layers,
        skipped,
        effect,
        accuracy_before,
        bytes_before,
        bytes_after,
        max_loss,
    )


# --- the file -------------------------------------------------------------------------------


def _take_external_data_in(model: onnx.ModelProto, constants: Mapping[str, Array]) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))


def _layers(model: onnx.ModelProto, skip: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Weights to compress with the nodes that use each, and the layers left alone with the reason why."""
    graph = model.graph
    initializers = {tensor.name for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    wanted: dict[str, list[str]] = {}
    skipped: dict[str, str] = {}
    seen: dict[str, None] = {}
    paths: set[int] = set()
    for node in graph.node:
        if node.op_type not in ("Gemm", "MatMul") or node.domain not in ("", "ai.onnx"):
            continue
        label = node.name or node.output[0]
        seen[label] = None
        tensor, path = node.input[1], [id(node)]
        while tensor in producers and producers[tensor].op_type in _VIEWS:
            path.append(id(producers[tensor]))
            tensor = producers[tensor].input[0]
        if tensor not in initializers and not _is_matrix(producers.get(tensor)):
            skipped[label] = f"its weight '{node.input[1]}' is computed"
            continue
        values = _values(model, tensor)
        if values.ndim != 2 or values.dtype != np.float32:
            skipped[label] = f"its weight is {values.dtype} of rank {values.ndim}, not float32 of rank 2"
        elif np.unique(values).size <= MAX_CODES + 1:
            skipped[label] = f"its weight has {np.unique(values).size} values already"
        elif label in skip:
            skipped[label] = "as asked"
        else:
            wanted.setdefault(tensor, []).append(label)
            paths.update(path)
    unknown = [label for label in skip if label not in seen]
    if unknown:
        raise InvalidInputError(f"no fully connected layer is called {', '.join(unknown)}; there are {', '.join(seen)}")
    for node in graph.node:
        for tensor in node.input:
            if tensor in wanted and id(node) not in paths:
                skipped[", ".join(wanted.pop(tensor))] = f"its weight is also read by '{node.name or node.output[0]}'"
    return wanted, skipped


def _is_matrix(node: onnx.NodeProto | None) -> bool:
    """Whether it is a Constant node that holds a tensor."""
    return node is not None and node.op_type == "Constant" and node.attribute[0].name == "value"


def _values(model: onnx.ModelProto, tensor: str) -> Array:
    return numpy_helper.to_array(_tensor(model, tensor))


def _tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """The initializer called ``name``, or the value of the Constant node that gives it."""
    found: onnx.TensorProto
    for found in model.graph.initializer:
        if found.name == name:
            return found
    (node,) = (node for node in model.graph.node if name in node.output)
    found = node.attribute[0].t
    return found


def _with(model: onnx.ModelProto, compressed: Mapping[str, Compression]) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for name, found in compressed.items():
        tensor = _tensor(changed, name)
        tensor.CopyFrom(numpy_helper.from_array(found.weight, tensor.name))
    return changed


# --- what it costs --------------------------------------------------------------------------


def _samples(engine: Engine, inputs: Array | None, labels: Array | None) -> tuple[str, Array]:
    if inputs is None:
        if labels is not None:
            raise InvalidInputError("labels are given, but no inputs")
        if len(engine.inputs) != 1:
            raise InvalidInputError(f"the model has {len(engine.inputs)} inputs, one is expected")
        shape = (DEFAULT_SAMPLES, *(dim or 1 for dim in engine.inputs[0].shape[1:]))
        return f"standard normal, seed {SEED}", np.random.default_rng(SEED).standard_normal(shape, np.float32)
    if not len(inputs):
        raise InvalidInputError("inputs are empty")
    if labels is not None and (labels.shape != (len(inputs),) or labels.dtype.kind not in "iu"):
        raise InvalidInputError(f"labels are {labels.dtype} {list(labels.shape)}, expected integers [{len(inputs)}]")
    return "given", inputs


def _run(engine: Engine, x: Array) -> Array:
    parts = []
    for first in range(0, len(x), _BATCH):
        found = engine.run(np.ascontiguousarray(x[first : first + _BATCH]))
        parts.append(next(iter(found.values())) if isinstance(found, dict) else found)
    y = np.concatenate(parts)
    return y.reshape(len(y), -1)


def _compare(before: Array, after: Array, labels: Array | None) -> Effect:
    norm = float(np.linalg.norm(before.astype(np.float64)))
    error = float(np.linalg.norm(after.astype(np.float64) - before)) / norm if norm else 0.0
    classes = after.argmax(1)
    accuracy = None if labels is None else float(np.mean(classes == labels))
    return Effect(error, float(np.mean(classes == before.argmax(1))), accuracy)
