"""Compares a .tacbin with the ONNX model it came from: outputs, and the first layer where they part."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
# The same behind a convolution that rounds what it multiplies to integers, as ``conv_precision="i16"`` has asked for;
# behind n of them, which are taken to be independent, sqrt(n) times as much.
ROUNDED_TOLERANCE = 1e-3
# A flip is rounding only where the float in front of it differs by no more than so many tolerances of its own channel's
# largest value: a small channel can be all wrong within the tolerance of its tensor.
_CHANNEL_TOLERANCES = 10.0
_FEW_SAMPLES = 8  # of a tensor [N, features]: too few to know how large a feature gets

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

    The others are of the ONNX model as it is, ``judged_rel_diff`` and ``ok`` as VerifyReport says.
    """

    name: str
    samples: int
    max_abs_diff: float
    max_rel_diff: float  # max_abs_diff / the largest |value| of the reference
    top1_agree: int | None
    top1_total: int | None
    judged_rel_diff: float  # max_rel_diff on the path that the rounding flips take
    ok: bool


@dataclass
class LayerReport:
    """One tensor of the engine beside the ONNX tensor it stands for.

    ``elements_differing``: flips of a low-bit tensor or floats beyond the tolerance, without the ``rounding_flips``
    (see VerifyReport). ``arithmetic`` is that of the sums where an op has more than one, "i16" or "f32"; ``error`` its
    largest error over the largest output, in the samples where all layers in front agree. ``integer_sums``: the integer
    layer whose sums it holds, scaled.
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
    """``rounding_flips``: samples in which a quantizer of floats differs, by nothing but rounding.

    All layers in front of it agree within the tolerance, the quantizer's own input included, and the reference, given
    the engine's floats, quantizes them as the engine does in every element that flipped: a float sum, added up in
    another order or made of 16-bit inputs, fell on the other side of a threshold, which lies between two floats that
    are within the tolerance. What follows is another path of the same network, and the reference takes it too: from
    there on it goes on with the engine's levels, and every layer and output behind is compared with that. The sums of
    integer layers are exact: their flips are excused only where the reference gives the engine's level for the exact
    sum or one that is four units in the last place of its magnitudes away. Such a sum meets a threshold, and float32
    sums fall to either side of it.

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
        """Every output of every sample is within the tolerance, on the path that the rounding flips take."""
        return all(output.ok for output in self.outputs)

    @property
    def first_divergence(self) -> LayerReport | None:
        return next((layer for layer in self.layers if not layer.ok), None)

    @property
    def flips(self) -> int:
        """Elements of low-bit tensors that differ by more than rounding, all layers together."""
        return sum(layer.elements_differing for layer in self.layers if layer.low_bit)

    def to_json(self) -> dict[str, Any]:
        """Plain data for json.dumps."""
        first = self.first_divergence
        return {
            **asdict(self),
            "ok": self.ok,
            "flips": self.flips,
            "first_divergence": None if first is None else asdict(first),
        }

    def __str__(self) -> str:
        lines = [f"{self.tacbin} against {self.onnx}", f"{self.samples} samples ({self.data})"]
        for output in self.outputs:
            verdict = "ok" if output.ok else "DIFFERS"
            if self.rounding_flips:
                verdict += f", {output.judged_rel_diff:.3g} of the largest output with the flips taken over; without"
            lines.append(
                f"  output '{output.name}': {verdict}, max abs diff {output.max_abs_diff:.3g}, "
                f"relative to the largest output {output.max_rel_diff:.3g} (tolerance {self.tolerance:.3g})"
            )
            if output.top1_agree is not None and output.top1_total:
                share = output.top1_agree / output.top1_total
                lines.append(f"    top-1 agrees in {output.top1_agree} of {output.top1_total} ({share:.2%})")
        if self.rounding_flips:
            where = [layer for layer in self.layers if layer.rounding_flips]
            lines.append(
                f"  in {self.rounding_flips} of {self.samples} samples a float sum fell on the other side"
                " of a threshold (summation order, rounded inputs, a sum that meets a threshold exactly); what follows"
                " is compared with the reference on the engine's side"
            )
            lines.append("    in " + _listed([f"'{layer.op}' ({layer.rounding_flips} flipped)" for layer in where]))
        rounded = [layer for layer in self.layers if layer.arithmetic == "i16"]
        if rounded:
            worst = max(rounded, key=lambda layer: layer.error)
            lines.append(
                f"  layers on rounded integers: {len(rounded)}, largest error {worst.error:.2g} of the largest"
                f" output, in '{worst.op}'"
            )
        first = self.first_divergence
        low_bit = [layer for layer in self.layers if layer.low_bit]
        if not self.layers:
            lines.append("  layers: none recorded in the file")
        elif first is None:
            lines.append(f"  layers: all {len(self.layers)} agree ({len(low_bit)} of them low-bit, exactly)")
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
    noted = json.loads(engine.metadata or "{}")
    names = os.fspath(onnx_path), os.fspath(tacbin_path)
    tolerance = _tolerance(noted.get("layers", []))
    return VerifyReport(*names, count, origin, tolerance, outputs, layers, flips, noted.get("fused", []))


def _tolerance(entries: Sequence[Mapping[str, Any]]) -> float:
    rounding = sum(entry.get("kind") == "integer_conv" and "arithmetic" in entry for entry in entries)
    return ROUNDED_TOLERANCE * float(np.sqrt(rounding)) if rounding else TOLERANCE


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
    tolerance = _tolerance(entries)
    count = next(iter(feeds.values())).shape[0] if feeds else 0
    step = reference.fixed_batch or _BLOCK
    outputs: dict[str, _Totals] = {}
    layers: dict[int, _Totals] = {}
    rounding_flips = 0
    for first in range(0, max(count, 1), step):
        block = {name: array[first : first + step] for name, array in feeds.items()}
        expected = _Expected(reference, block, step)
        found = engine.run(block)
        size = next(iter(block.values())).shape[0] if block else 0
        agreeing, flipped = np.ones(size, bool), np.zeros(size, bool)
        floats: dict[str, Array] = {}  # the engine's, by the ONNX tensor; those that may be off by rounding
        tensors = engine.intermediates(block) if entries else {}
        for index, entry in enumerate(entries):
            name, mine = entry["onnx_tensor"], tensors.get(entry["tensor"])
            if name not in expected or mine is None or not _layout_is_known(entry):
                continue  # a tensor that folding made, or a view of the one before
            original = expected[name]
            if original.shape[:1] != (size,):
                continue  # of the whole batch there, of each sample here
            levels = _level_values(original, entry)
            low_bit = bool(entry.get("low_bit", _is_integral(mine)))
            totals = layers.setdefault(index, _Totals(tolerance))
            found_here = _as_onnx(mine, entry, original.shape)
            match = _Match.of(levels, found_here, low_bit, tolerance)
            differs = match.differs(levels, found_here)
            first_here = np.flatnonzero(agreeing & _in_sample(differs))
            if "arithmetic" in entry:
                totals.add_undisturbed(levels[agreeing], found_here[agreeing])
            if first_here.size:
                wrong, taken = differs[first_here], original[first_here]
                for root, values in _possible_roots(entry, floats, reference, expected):
                    again = expected.given(name, root, values, first_here)
                    near = _is_rounding(expected[root], values, tolerance, entry)[first_here]
                    if near.shape != wrong.shape:  # pooled in between
                        near = ~_in_sample(~near).reshape(-1, *[1] * (wrong.ndim - 1))
                    right = wrong & near & ~match.differs(_level_values(again, entry), found_here[first_here])
                    wrong, taken = wrong & ~right, np.where(right, again, taken)
                explained = ~_in_sample(wrong)
                excused = first_here[explained]
                if excused.size:
                    flipped[excused] = True
                    totals.rounding_flips += int(differs[excused].sum())
                    original = original.copy()
                    original[excused] = taken[explained]
                    expected.replace(name, original)
                    levels = _level_values(original, entry)
                    differs[excused] = False
            expected.settle(name)
            if not low_bit and entry.get("kind") != "binary_conv":
                floats[name] = found_here
            totals.add_layer(match, levels, found_here)
            agreeing &= ~_in_sample(differs)
        rounding_flips += int(flipped.sum())
        for name in reference.outputs:
            if name not in found:
                raise InvalidInputError(f"the .tacbin has no output '{name}': it came from another model")
            totals = outputs.setdefault(name, _Totals(tolerance))
            totals.add_output(expected.as_it_is(name), expected[name], found[name])
        if progress is not None:
            progress("comparing", min(first + step, count) / count)
    layer_reports = [layers[index].layer_report(entries[index]) for index in sorted(layers)]
    return [totals.output_report(name) for name, totals in outputs.items()], layer_reports, rounding_flips


class _Expected(Mapping[str, Array]):
    """The tensors of the ONNX model for a block of samples.

    Once some are replaced, what depends on them is computed again when asked for, from the settled ones.
    """

    def __init__(self, reference: ReferenceModel, block: Mapping[str, Array], step: int) -> None:
        self._reference = reference
        self._block = block
        self._as_it_is = reference.run(block, intermediates=True, batch_size=step)
        self._replaced: dict[str, Array] = {}
        self._settled: dict[str, Array] = {}
        self._again: dict[str, Array] = {}  # since the last replacement

    def __iter__(self) -> Iterator[str]:
        return iter(self._as_it_is)

    def __len__(self) -> int:
        return len(self._as_it_is)

    def __contains__(self, name: object) -> bool:
        return name in self._as_it_is

    def __getitem__(self, name: str) -> Array:
        if name in self._settled:
            return self._settled[name]
        if not self._replaced:
            return self._as_it_is[name]
        if name not in self._again:
            self._again[name] = self._reference.recompute(name, self._block, self._settled)
        return self._again[name]

    def as_it_is(self, name: str) -> Array:
        """Without replacements."""
        return self._as_it_is[name]

    def given(self, name: str, root: str, values: Array, samples: Array) -> Array:
        """The tensor of some ``samples`` where ``root`` holds ``values`` [N, ...], those of all samples."""
        feeds = {feed: array[samples] for feed, array in self._block.items()}
        given = {known: array[samples] for known, array in {**self._replaced, root: values}.items()}
        return self._reference.recompute(name, feeds, given)

    def settle(self, name: str) -> None:
        """The tensor will not change any more."""
        self._settled[name] = self[name]

    def replace(self, name: str, array: Array) -> None:
        self._replaced[name] = self._settled[name] = array
        self._again.clear()


def _possible_roots(
    entry: Mapping[str, Any], floats: Mapping[str, Array], reference: ReferenceModel, expected: _Expected
) -> list[tuple[str, Array]]:
    """What the tensor that a quantizer reads holds, but for rounding; empty where rounding is no excuse.

    The engine's own floats; or, where an integer layer compares its sums with thresholds, the exact sums and those that
    are the error of a float32 sum to either side.
    """
    root = entry.get("root", "")
    if root in floats and entry.get("kind") != "binary_conv":
        return [(root, floats[root])]
    root = entry.get("thresholds_on", "") or root
    found = reference.exact_sums(root, expected) if root in expected else None
    if found is None or found[0].shape != expected[root].shape:
        return []
    sums, error = found
    return [(root, sums + side * error) for side in (np.float32(-1), np.float32(0), np.float32(1))]


def _is_rounding(expected: Array, found: Array, tolerance: float, entry: Mapping[str, Any]) -> Array:
    """Of each element of a tensor in front of a quantizer: whether it differs by no more than rounding explains."""
    values = np.abs(np.where(np.isfinite(expected), expected, 0))
    if values.ndim == 2 and len(values) < _FEW_SAMPLES:
        limit = np.max(values, initial=0.0)
    else:
        channel = values.ndim - 1 if entry.get("layout", "plain") == "plain" else 1
        others = tuple(axis for axis in range(values.ndim) if axis != channel)
        limit = np.max(values, axis=others, initial=0.0, keepdims=True)
    return np.asarray((expected == found) | (np.abs(expected - found) <= _CHANNEL_TOLERANCES * tolerance * limit))


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
    def of(expected: Array, found: Array, low_bit: bool, tolerance: float) -> _Match:
        if low_bit:
            scale = _scale(expected, found)
            return _Match(True, scale, 1e-3 * scale)
        return _Match(False, 1.0, tolerance * _largest(expected))

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

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
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

    def add_output(self, expected: Array, judged_by: Array, found: Array) -> None:
        """``expected`` of the ONNX model as it is, ``judged_by`` on the path that the rounding flips take."""
        if expected.shape != found.shape:
            raise InvalidInputError(
                f"an output has shape {list(found.shape)} in the .tacbin, but {list(expected.shape)} in the ONNX model"
            )
        self.samples += expected.shape[0]
        self.judged_diff = float(np.maximum(self.judged_diff, _largest_difference(judged_by, found)))  # NaN wins
        self.exact = self.exact and bool(np.array_equal(judged_by, found))
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
        self.own_diff = float(np.maximum(self.own_diff, _largest_difference(expected, found)))  # NaN wins
        self.own_magnitude = max(self.own_magnitude, _largest(expected))

    def _add_difference(self, expected: Array, found: Array) -> None:
        self.max_diff = float(np.maximum(self.max_diff, _largest_difference(expected, found)))  # NaN wins
        self.max_magnitude = max(self.max_magnitude, _largest(expected))

    def _relative(self) -> float:
        return self.max_diff / self.max_magnitude if self.max_magnitude else self.max_diff

    def output_report(self, name: str) -> OutputReport:
        ok = self.exact or (not self.low_bit and self.judged_diff <= self.tolerance * self.max_magnitude)
        agree = None if self.rows is None else self.agree
        judged = self.judged_diff / self.max_magnitude if self.max_magnitude else self.judged_diff
        return OutputReport(name, self.samples, self.max_diff, self._relative(), agree, self.rows, judged, ok)

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


def _largest(values: Array) -> float:
    """The largest finite magnitude."""
    magnitudes = np.abs(np.asarray(values, np.float64))
    return float(np.max(magnitudes, where=np.isfinite(magnitudes), initial=0.0))


def _largest_difference(expected: Array, found: Array) -> float:
    """Equal infinities do not differ."""
    a, b = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    return float(np.max(np.where(a == b, 0.0, np.abs(a - b)), initial=0.0))
