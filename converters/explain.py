"""Why each layer with weights became what it is: the value sets that were found, and what would change them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .analysis import MAC_OPS, Analysis, IntegerMac, MacWeights, mac_weights, moved_from
from .chains import Steps
from .graph import Array, Node
from .report import LayerReport
from .values import MAX_LEVELS, MAX_WEIGHT_LEVEL, TOLERANCE, WeightLattice, weight_lattice

# Weights this close to +-s, but not within TOLERANCE, were rounded on their way: float16 keeps 11 bits.
_NEARLY = 1e-2
# Weights of more values than that are not quantized, they are latent ones.
_FEW_VALUES = 256


@dataclass(frozen=True)
class LayerExplanation:
    """What is known of one Conv, Gemm or MatMul.

    ``activation``, ``weights`` and ``sums`` are value sets as text, "" where there is none; ``reason`` is the first one
    that keeps a float layer from being low-bit; ``hint`` what to do about it, where that is known.
    """

    layer: str
    op: str
    became: str
    activation: str
    weights: str
    sums: str
    reason: str
    hint: str

    def __str__(self) -> str:
        lines = [f"{self.op} '{self.layer}' -> {self.became}"]
        rows = (
            ("activation", self.activation),
            ("weights", self.weights),
            ("sums", self.sums),
            ("why float", self.reason),
            ("hint", self.hint),
        )
        lines += [f"    {title + ':':12}{text}" for title, text in rows if text]
        return "\n".join(lines)


def explain(analysis: Analysis, rows: Sequence[LayerReport]) -> list[LayerExplanation]:
    """One entry per Conv, Gemm and MatMul, in the order of the model; ``rows`` say what each became."""
    graph = analysis.graph
    became = {row.name: f"{row.kind}, {row.bits} bits" for row in rows if row.bytes_before}
    found: list[LayerExplanation] = []
    for node in graph.nodes:
        if node.op not in MAC_OPS or node.domain:
            continue
        name = node.name or node.output
        if name not in became:
            continue  # nothing reads it
        constant = mac_weights(graph, node)
        mac = analysis.integer.get(node.output)
        if mac is not None:
            activation = _steps_text(analysis, mac.source.steps)
            weights, sums, reason, hint = _lattice_text(mac.weights), _sums_text(mac), "", ""
        else:
            is_codebook = became[name].startswith("codebook")
            reason, sums = "" if is_codebook else analysis.reasons[node.output], ""
            activation, weights, hint = "", "", ""
            if isinstance(constant, MacWeights):
                origin = moved_from(graph, constant.activation)
                steps = analysis.steps_of(origin)
                lattice = weight_lattice(constant.weight)
                activation = _steps_text(analysis, steps) if isinstance(steps, Steps) else f"real: {steps}"
                weights = _weights_text(constant.weight, lattice)
                hint = _hint(analysis, constant.weight, origin, lattice, steps)
        found.append(LayerExplanation(name, node.op, became[name], activation, weights, sums, reason, hint))
    return found


def _steps_text(analysis: Analysis, steps: Steps) -> str:
    root = steps.chain.root
    mac = analysis.integer.get(root)
    ops = [node.op for node in steps.chain.nodes if node.op != "Transpose"]
    source = f"the sums of {mac.node}" if mac is not None else f"the floats of '{root}'"
    return f"'{steps.chain.result}' is {steps.levels.describe()}: {_names(ops)} on {source}"


def _names(ops: list[str]) -> str:
    if len(ops) <= 6:
        return ", ".join(ops)
    common = ", ".join(f"{count} {op}" for op, count in Counter(ops).most_common(3))
    return f"{len(ops)} ops ({common}, ...)"


def _lattice_text(lattice: WeightLattice) -> str:
    values = "{" + ", ".join(str(value) for value in lattice.values) + "}"
    low, high = float(np.min(lattice.scale)), float(np.max(lattice.scale))
    if high - low <= TOLERANCE * high:
        return values if abs(high - 1.0) <= TOLERANCE else f"{high:.6g} * {values}"
    return f"{values} times a scale per output channel, {low:.3g} to {high:.3g}"


def _weights_text(weight: Array, lattice: WeightLattice | str) -> str:
    if isinstance(lattice, WeightLattice):
        return _lattice_text(lattice)
    count = np.unique(weight).size
    zeros = float(np.mean(weight == 0.0))
    return f"{count} distinct values of {weight.size}" + (f", {zeros:.0%} zeros" if zeros else "")


def _sums_text(mac: IntegerMac) -> str:
    low, high = int(mac.integers[0]), int(mac.integers[-1])
    return f"{low} to {high}" + (f" in steps of {mac.step}" if mac.step != 1 else "")


def _hint(analysis: Analysis, weight: Array, origin: str, lattice: WeightLattice | str, steps: Steps | str) -> str:
    if isinstance(lattice, WeightLattice):
        return "" if isinstance(steps, Steps) else _activation_hint(analysis, origin, lattice)
    miss = _distance_from_signs(weight)
    if TOLERANCE < miss <= _NEARLY:
        return (
            f"each filter's weights are +-s within {miss:.1g} of s, but {TOLERANCE:g} is asked for: were they stored "
            "in float16, or is the sign a smooth one (tanh)? Export sign(W) in float32"
        )
    if not isinstance(steps, Steps):
        return ""
    count = np.unique(weight).size
    if count <= _FEW_VALUES and 2 * count <= weight.size:
        return (
            f"the weights are quantized to {count} values; bit planes take -{MAX_WEIGHT_LEVEL} to {MAX_WEIGHT_LEVEL}, "
            f"or {MAX_LEVELS} whole numbers in a row, times a scale per filter"
        )
    return (
        "the activation has few values, the weights have many: if training binarizes them in the forward pass, "
        "export what the forward pass uses (sign(W)), not the latent weights"
    )


def _activation_hint(analysis: Analysis, origin: str, lattice: WeightLattice) -> str:
    if origin in analysis.rounded:
        return f"a quantizer of up to {MAX_LEVELS} levels (4 bits) in front of this layer would make it low-bit"
    if lattice.values != (-1, 1):  # a filter of equal weights is a mean, not a binary layer
        return ""
    producer = analysis.graph.producer(origin)
    if producer is None:
        return "first layers usually read floats; their share of the work is small"
    clamp = f"{producer} limits the range, it does not round; " if _is_clamp(analysis, producer) else ""
    return (
        f"{clamp}a sign that assigns to .data is not recorded by exporters: write it as an autograd.Function or as "
        "torch.where, and export again"
    )


def _is_clamp(analysis: Analysis, node: Node) -> bool:
    if node.op in ("Tanh", "HardSigmoid"):
        return True
    bounds = [analysis.graph.constants.get(name) for name in node.inputs[1:]]
    return node.op == "Clip" and len(bounds) == 2 and all(bound is not None for bound in bounds)


def _distance_from_signs(weight: Array) -> float:
    """How far the weights are from +-s with one s per output channel, relative to s: the largest of all channels."""
    magnitudes = np.abs(np.asarray(weight, np.float64).reshape(weight.shape[0], -1))
    low, high = magnitudes.min(axis=1), magnitudes.max(axis=1)
    middle = (low + high) / 2
    usable = middle > 0
    return float(np.max((high - low)[usable] / middle[usable] / 2, initial=0.0)) if usable.all() else 1.0
