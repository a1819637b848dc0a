"""Compares a .tacbin with the ONNX model it came from: outputs, and the first layer where they part."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from .. import load
from ..errors import InvalidInputError
from .evaluate import ReferenceModel
from .graph import Array

DEFAULT_SAMPLES = 64
SEED = 0

# A float may differ by this share of the largest magnitude of its tensor: float32 sums of a few thousand terms, added
# up in another order, stay an order of magnitude below; codebook layers on 16-bit integers are made to stay within.
TOLERANCE = 1e-4

_LISTED = 8  # names in one line of the report

# Samples run at a time while every intermediate tensor is kept.
_BLOCK = 16


class EngineLike(Protocol):
    """What verify needs of a tac_engine.Engine."""

    @property
    def metadata(self) -> str: ...

    def run(self, x: Mapping[str, Array]) -> Any: ...

    def intermediates(self, x: Mapping[str, Array]) -> dict[str, Array]: ...


@dataclass
class OutputReport:
    """``top1_agree``: in how many rows the largest element is the same; None for an output without classes.

    The differences are those of all samples; ``ok`` judges the samples without a rounding flip (see VerifyReport).
    """

    name: str
    samples: int
    max_abs_diff: float
    max_rel_diff: float  # max_abs_diff / the largest |value| of the reference
    top1_agree: int | None
    top1_total: int | None
    ok: bool


@dataclass
class LayerReport:
    """One tensor of the engine beside the ONNX tensor it stands for.

    Of the samples that are judged: ``elements_differing``, flips of a low-bit tensor or floats beyond the tolerance.
    ``rounding_flips``: elements in samples that are not judged from here on (see VerifyReport). ``arithmetic`` is that
    of the sums where an op has more than one, "i16" or "f32"; ``error`` its largest error over the largest output, in
    the samples where all layers in front agree. ``integer_sums``: the integer layer whose sums it holds, scaled.
    """

    op: str
    onnx_tensor: str
    low_bit: bool
    elements: int
    elements_differing: int
    max_abs_diff: float
    max_rel_diff: float
    arithmetic: str = ""
    error: float = 0.0
    rounding_flips: int = 0
    integer_sums: str = ""

    @property
    def ok(self) -> bool:
        return self.elements_differing == 0


@dataclass
class VerifyReport:
    """``rounding_flips``: samples whose first difference is a quantizer of floats, and nothing but rounding.

    All layers in front of it agree within the tolerance, the quantizer's own input included, and the reference, given
    the engine's floats, quantizes them as the engine does in every element that flipped: a float sum, added up in
    another order or made of 16-bit inputs, fell on the other side of a threshold, which lies between two floats that
    are within the tolerance. What follows is another path of the same network; such samples are counted, not judged.
    The sums of integer layers are exact: their flips are excused only where the reference gives the engine's level for
    the exact sum or one that is four units in the last place of its magnitudes away. Such a sum meets a threshold, and
    float32 sums fall to either side of it.

    ``fused`` are the integer layers that compare their sums with thresholds before anyone sees them: what is compared
    is their bits. Where others want the sums, their layer has ``integer_sums``.
    """

    onnx: str
    tacbin: str
    samples: int
    data: str  # where the inputs came from
    tolerance: float
    outputs: list[OutputReport]
    layers: list[LayerReport] = field(default_factory=list)
    rounding_flips: int = 0
    fused: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Every output of every sample without a rounding flip is within the tolerance."""
        return self.decided and all(output.ok for output in self.outputs)

    @property
    def decided(self) -> bool:
        """Whether any sample is without a rounding flip: if none is, what follows the flips was not compared."""
        return self.rounding_flips < self.samples

    @property
    def first_divergence(self) -> LayerReport | None:
        return next((layer for layer in self.layers if not layer.ok), None)

    @property
    def flips(self) -> int:
        """Elements of low-bit tensors that differ in samples that are judged, all layers together."""
        return sum(layer.elements_differing for layer in self.layers if layer.low_bit)

    def to_json(self) -> dict[str, Any]:
        """Plain data for json.dumps."""
        first = self.first_divergence
        return {
            **asdict(self),
            "ok": self.ok,
            "decided": self.decided,
            "flips": self.flips,
            "first_divergence": None if first is None else asdict(first),
        }

    def __str__(self) -> str:
        lines = [f"{self.tacbin} against {self.onnx}", f"{self.samples} samples ({self.data})"]
        for output in self.outputs:
            verdict = "ok" if output.ok else "DIFFERS"
            if not self.decided:
                verdict = "UNDECIDED, no sample is without a flip"
            elif self.rounding_flips:
                verdict += f" in the {self.samples - self.rounding_flips} samples that decide; over all"
            lines.append(
                f"  output '{output.name}': {verdict}, max abs diff {output.max_abs_diff:.3g}, "
                f"relative to the largest output {output.max_rel_diff:.3g} (tolerance {self.tolerance:g})"
            )
            if output.top1_agree is not None and output.top1_total:
                share = output.top1_agree / output.top1_total
                lines.append(f"    top-1 agrees in {output.top1_agree} of {output.top1_total} ({share:.2%})")
        if self.rounding_flips:
            where = [layer for layer in self.layers if layer.rounding_flips]
            lines.append(
                f"  in {self.rounding_flips} of {self.samples} samples a float sum fell on the other side"
                " of a threshold (summation order, 16-bit inputs, a sum that meets a threshold exactly); the others"
                " decide"
            )
            lines.append(
                "    first in " + _listed([f"'{layer.op}' ({layer.rounding_flips} flipped)" for layer in where])
            )
        rounded = [layer for layer in self.layers if layer.arithmetic == "i16"]
        if rounded:
            worst = max(rounded, key=lambda layer: layer.error)
            lines.append(
                f"  codebook layers on 16-bit integers: {len(rounded)}, largest error {worst.error:.2g} of the largest"
                f" output, in '{worst.op}'"
            )
        first = self.first_divergence
        low_bit = [layer for layer in self.layers if layer.low_bit]
        if not self.layers:
            lines.append("  layers: none recorded in the file")
        elif first is None:
            limits = "" if self.decided else " as far as they are judged"
            lines.append(f"  layers: all {len(self.layers)} agree{limits} ({len(low_bit)} of them low-bit, exactly)")
        else:
            total = sum(layer.elements for layer in low_bit)
            lines.append(f"  layers: first difference in op '{first.op}' (ONNX tensor '{first.onnx_tensor}'):")
            what = "elements flipped" if first.low_bit else "elements beyond the tolerance"
            lines.append(
                f"    {first.elements_differing} of {first.elements} {what}, max abs diff {first.max_abs_diff:.3g}"
            )
            lines.append(f"    flips in all low-bit layers: {self.flips} of {total} elements")
        sums = [f"'{layer.integer_sums}'" for layer in self.layers if layer.integer_sums]
        if sums:
            lines.append(f"  integer layers compared by their sums: {_listed(sums)}")
        if self.fused:
            fused = _listed([f"'{name}'" for name in self.fused])
            lines.append(f"  integer layers with thresholds inside, compared by the bits that they give: {fused}")
        return "\n".join(lines)


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


def verify(
    onnx_path: str | os.PathLike[str],
    tacbin_path: str | os.PathLike[str],
    data: Array | Mapping[str, Array] | None = None,
    samples: int | None = None,
    *,
    backend: str | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> VerifyReport:
    """Runs both models on the same inputs.

    Args:
        onnx_path: the original, evaluated in numpy by the ONNX definitions.
        tacbin_path: what ``convert`` made of it.
        data: inputs [N, ...] in float32 as the ONNX model takes them (a dict by name for several); standard normal
            numbers with a fixed seed if left out.
        samples: how many samples to compare; all of ``data``, or 64 random ones, if left out.
        backend: as for :func:`tac_engine.load`.
        progress: called with a stage and the share done.

    Raises:
        InvalidInputError: the data do not fit the model.
        UnsupportedModelError: the ONNX model cannot be evaluated.
        FormatError: one of the files cannot be read.
    """
    reference = ReferenceModel(onnx_path)
    engine = load(tacbin_path, backend=backend)
    feeds, origin = _feeds(reference, data, samples)
    outputs, layers, flips = compare(reference, engine, feeds, progress)
    count = next(iter(feeds.values())).shape[0]
    fused = json.loads(engine.metadata or "{}").get("fused", [])
    names = os.fspath(onnx_path), os.fspath(tacbin_path)
    return VerifyReport(*names, count, origin, TOLERANCE, outputs, layers, flips, fused)


def _feeds(
    reference: ReferenceModel, data: Array | Mapping[str, Array] | None, samples: int | None
) -> tuple[dict[str, Array], str]:
    if samples is not None and samples < 1:
        raise InvalidInputError(f"samples is {samples}, expected at least 1")
    if data is None:
        generator = np.random.default_rng(SEED)
        count = samples or DEFAULT_SAMPLES
        feeds = {}
        for item in reference.inputs:
            dims = [] if item.shape is None else item.shape[1:]
            if item.shape is None or not all(isinstance(dim, int) for dim in dims):
                raise InvalidInputError(f"input '{item.name}' has dynamic axes: give data (--data FILE.npy)")
            feeds[item.name] = generator.standard_normal((count, *map(int, map(str, dims)))).astype(item.dtype)
        return feeds, f"standard normal, seed {SEED}"
    if isinstance(data, Mapping):
        given = dict(data)
    else:
        if len(reference.inputs) != 1:
            names = ", ".join(f"'{item.name}'" for item in reference.inputs)
            raise InvalidInputError(f"the model has several inputs: a dict with {names} is expected")
        given = {reference.inputs[0].name: data}
    return {name: np.ascontiguousarray(array[:samples]) for name, array in given.items()}, "given"


@np.errstate(invalid="ignore", over="ignore")  # infinities and NaN are differences, not accidents
def compare(
    reference: ReferenceModel,
    engine: EngineLike,
    feeds: Mapping[str, Array],
    progress: Callable[[str, float], None] | None = None,
) -> tuple[list[OutputReport], list[LayerReport], int]:
    """Outputs, layers and rounding flips, block by block: intermediates of all samples at once would not fit."""
    entries: Sequence[Mapping[str, Any]] = json.loads(engine.metadata or "{}").get("layers", [])
    count = next(iter(feeds.values())).shape[0] if feeds else 0
    step = reference.fixed_batch or _BLOCK
    outputs: dict[str, _Totals] = {}
    layers: dict[int, _Totals] = {}
    rounding_flips = 0
    for first in range(0, max(count, 1), step):
        block = {name: array[first : first + step] for name, array in feeds.items()}
        expected = reference.run(block, intermediates=True, batch_size=step)
        found = engine.run(block)
        size = next(iter(block.values())).shape[0] if block else 0
        agreeing, judged = np.ones(size, bool), np.ones(size, bool)
        floats: dict[str, Array] = {}  # the engine's, by the ONNX tensor; those that may be off by rounding
        tensors = engine.intermediates(block) if entries else {}
        for index, entry in enumerate(entries):
            original, mine = expected.get(entry["onnx_tensor"]), tensors.get(entry["tensor"])
            if original is None or mine is None or not _layout_is_known(entry):
                continue  # a tensor that folding made, or a view of the one before
            if original.shape[:1] != (size,):
                continue  # of the whole batch there, of each sample here
            original = _level_values(original, entry)
            low_bit = bool(entry.get("low_bit", _is_integral(mine)))
            totals = layers.setdefault(index, _Totals())
            found_here = _as_onnx(mine, entry, original.shape)
            match = _Match.of(original, found_here, low_bit)
            differs = match.differs(original, found_here)
            first_here = np.flatnonzero(agreeing & _in_sample(differs))
            if "arithmetic" in entry:
                totals.add_undisturbed(original[agreeing], found_here[agreeing])
            if first_here.size:
                wrong = differs[first_here]
                given = {name: array[first_here] for name, array in block.items()}
                for root, values in _possible_roots(entry, floats, reference, expected):
                    again = reference.recompute(entry["onnx_tensor"], given, {root: values[first_here]})
                    wrong = wrong & match.differs(_level_values(again, entry), found_here[first_here])
                excused = first_here[~_in_sample(wrong)]
                judged[excused] = False
                totals.rounding_flips += int(differs[excused].sum())
            if not low_bit and entry.get("kind") != "binary_conv":
                floats[entry["onnx_tensor"]] = found_here
            totals.add_layer(match, original[judged], found_here[judged])
            agreeing &= ~_in_sample(differs)
        rounding_flips += int((~judged).sum())
        for name in reference.outputs:
            if name not in found:
                raise InvalidInputError(f"the .tacbin has no output '{name}': it came from another model")
            outputs.setdefault(name, _Totals()).add_output(expected[name], found[name], judged)
        if progress is not None:
            progress("comparing", min(first + step, count) / count)
    layer_reports = [layers[index].layer_report(entries[index]) for index in sorted(layers)]
    return [totals.output_report(name) for name, totals in outputs.items()], layer_reports, rounding_flips


def _possible_roots(
    entry: Mapping[str, Any], floats: Mapping[str, Array], reference: ReferenceModel, expected: Mapping[str, Array]
) -> list[tuple[str, Array]]:
    """What the tensor that a quantizer reads holds, but for rounding; empty where rounding is no excuse.

    The engine's own floats; or, where an integer layer compares its sums with thresholds, the exact sums and those that
    are the error of a float32 sum to either side.
    """
    root = entry.get("root", "")
    if root in floats and entry.get("kind") != "binary_conv":
        return [(root, floats[root])]
    root = entry.get("thresholds_on", "")
    found = reference.exact_sums(root, expected) if root in expected else None
    if found is None or found[0].shape != expected[root].shape:
        return []
    sums, error = found
    return [(root, sums + side * error) for side in (np.float32(-1), np.float32(0), np.float32(1))]


def _level_values(original: Array, entry: Mapping[str, Any]) -> Array:
    """What the engine's tensor holds for ``original``: one of a few levels, where it stands for a table of values."""
    if "middles" not in entry:
        return original
    return np.asarray(entry["levels"])[np.searchsorted(entry["middles"], original, side="right")]


@dataclass(frozen=True)
class _Match:
    """How an engine's tensor must agree: ``scale`` times it is within ``limit`` of the reference.

    A lattice tensor is scale * level with a positive scale, and the levels are what must agree.
    """

    low_bit: bool
    scale: float
    limit: float

    @staticmethod
    def of(expected: Array, found: Array, low_bit: bool) -> _Match:
        if low_bit:
            scale = _scale(expected, found)
            return _Match(True, scale, 1e-3 * scale)
        return _Match(False, 1.0, TOLERANCE * float(np.max(np.abs(expected), initial=0.0)))

    def differs(self, expected: Array, found: Array) -> Array:
        """Of each element; equal infinities do not differ."""
        scaled = self.scale * found if self.low_bit else found
        return np.asarray(~(np.abs(expected - scaled) <= self.limit) & (expected != scaled))


def _in_sample(elements: Array) -> Array:
    """Bool [N]: the samples with any of ``elements`` [N, ...]."""
    return np.asarray(np.any(np.reshape(elements, (len(elements), -1)), axis=1))


def _layout_is_known(entry: Mapping[str, Any]) -> bool:
    return entry.get("layout", "plain") != "flat" or "map_dims" in entry


def _is_integral(array: Array) -> bool:
    """Levels are small integers; a float tensor that happens to be is compared as strictly as one."""
    return bool(np.all(np.abs(array) <= 64) and np.array_equal(array, np.rint(array)))


def _as_onnx(mine: Array, entry: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
    """The engine's tensor with the axes of the ONNX one. "nhwc" stores images with channels last, "flat" so too."""
    layout = entry.get("layout", "plain")
    if layout == "nhwc" and mine.ndim == 4:
        mine = mine.transpose(0, 3, 1, 2)
    elif layout == "flat":
        height, width, channels = entry["map_dims"]
        mine = mine.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
    if mine.size != int(np.prod(shape)):
        raise InvalidInputError(
            f"op '{entry['op']}' gives {list(mine.shape)}, but the ONNX tensor '{entry['onnx_tensor']}' has shape "
            f"{list(shape)}: the .tacbin came from another model"
        )
    return mine.reshape(shape)


class _Totals:
    """Sums over the blocks of samples."""

    def __init__(self) -> None:
        self.samples = 0
        self.elements = 0
        self.differing = 0
        self.max_diff = 0.0
        self.max_magnitude = 0.0
        self.low_bit = True
        self.agree = 0
        self.rows: int | None = None
        self.exact = True
        self.judged_diff = 0.0
        self.own_diff = 0.0
        self.own_magnitude = 0.0
        self.rounding_flips = 0

    def add_output(self, expected: Array, found: Array, judged: Array) -> None:
        if expected.shape != found.shape:
            raise InvalidInputError(
                f"an output has shape {list(found.shape)} in the .tacbin, but {list(expected.shape)} in the ONNX model"
            )
        self.samples += expected.shape[0]
        largest = self._add_difference(expected[judged], found[judged])
        self.judged_diff = largest if np.isnan(largest) else max(self.judged_diff, largest)
        self.exact = self.exact and bool(np.array_equal(expected[judged], found[judged]))
        self._add_difference(expected, found)
        if expected.dtype.kind == "f" and expected.ndim >= 2 and expected.shape[-1] > 1:
            same = expected.argmax(axis=-1) == found.argmax(axis=-1)
            self.agree += int(same.sum())
            self.rows = (self.rows or 0) + same.size
        self.low_bit = expected.dtype.kind != "f"

    def add_layer(self, match: _Match, expected: Array, found: Array) -> None:
        self.elements += expected.size
        self.low_bit = self.low_bit and match.low_bit
        self.differing += int(match.differs(expected, found).sum())
        self._add_difference(expected, match.scale * found)

    def add_undisturbed(self, expected: Array, found: Array) -> None:
        """Samples of a layer whose inputs agree."""
        difference = np.where(expected == found, 0.0, np.abs(expected.astype(np.float64) - found))
        self.own_diff = float(np.maximum(self.own_diff, np.max(difference, initial=0.0)))  # NaN wins
        self.own_magnitude = max(self.own_magnitude, float(np.max(np.abs(expected), initial=0.0)))

    def _add_difference(self, expected: Array, found: Array) -> float:
        a, b = np.asarray(expected, np.float64), np.asarray(found, np.float64)
        # Equal infinities do not differ.
        difference = np.where(a == b, 0.0, np.abs(a - b))
        largest = float(np.max(difference, initial=0.0))
        self.max_diff = largest if np.isnan(largest) else max(self.max_diff, largest)
        self.max_magnitude = max(self.max_magnitude, float(np.max(np.abs(a), initial=0.0)))
        return largest

    def _relative(self) -> float:
        return self.max_diff / self.max_magnitude if self.max_magnitude else self.max_diff

    def output_report(self, name: str) -> OutputReport:
        ok = self.exact or (not self.low_bit and self.judged_diff <= TOLERANCE * self.max_magnitude)
        agree = None if self.rows is None else self.agree
        return OutputReport(name, self.samples, self.max_diff, self._relative(), agree, self.rows, ok)

    def layer_report(self, entry: Mapping[str, Any]) -> LayerReport:
        return LayerReport(
            str(entry["op"]),
            str(entry["onnx_tensor"]),
            self.low_bit,
            self.elements,
            self.differing,
            self.max_diff,
            self._relative(),
            str(entry.get("arithmetic", "")),
            self.own_diff / self.own_magnitude if self.own_magnitude else self.own_diff,
            self.rounding_flips,
            str(entry.get("sums", "")),
        )


def _scale(expected: Array, levels: Array) -> float:
    """The scale of the lattice: the median of |value / level|, which single flips do not move. Never negative."""
    usable = (levels != 0) & (expected != 0) & np.isfinite(expected)
    if not usable.any():
        return 1.0
    return float(np.median(np.abs(expected[usable] / levels[usable])))
