"""Which layers are integer layers, and what every tensor has to be at run time: packed bits, floats or both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from .chains import (
    ELEMENTWISE,
    Chain,
    Reader,
    Steps,
    accumulator_steps,
    float_steps,
    rounded_values,
    trace,
    with_result_axis,
)
from .graph import Array, Graph, Node, Shape, StepOf
from .integers import MAX_EXACT_FLOAT
from .value_sets import few_values
from .values import (
    MAX_LEVELS,
    Encoding,
    Table,
    WeightLattice,
    distinct_values,
    encode_levels,
    small_lattice,
    weight_lattice,
)

MAC_OPS = frozenset({"Conv", "Gemm", "MatMul"})
# Elementwise ops that run on floats as they are; the others of ELEMENTWISE must turn out to be step functions.
FLOAT_ELEMENTWISE = frozenset(
    """Abs Add BatchNormalization Ceil Clip DequantizeLinear Div Elu Erf Exp Floor HardSigmoid HardSwish LeakyRelu Max
    Min Mul Neg PRelu Pow Quant QuantizeLinear Reciprocal Relu Round Selu Sigmoid Sign Softplus Softsign Sqrt Sub Tanh
    ThresholdedRelu""".split()
)
_MOVES = frozenset({"MaxPool", "Pad", "Reshape", "Transpose"})  # what packed bits pass on their way to a layer
_STEPS_ONLY = ELEMENTWISE - FLOAT_ELEMENTWISE
# Sums that a chain is evaluated at: every one, or where they are more a sample, dense around 0.
_ALL_SUMS = 1 << 17
_SAMPLED_SUMS = 1 << 13
# Values of a quantizer up to here are all met by sampling it.
_COUNTED_VALUES = 256
# Each costs a search, and one is enough to refuse the model.
_MAX_NO_QUANTIZERS = 16


@dataclass(frozen=True)
class MacWeights:
    """Constant side of a Conv, Gemm or MatMul: weight [O, C / groups, kh, kw] or [O, K], bias float32 [O]."""

    weight: Array
    bias: Array
    activation: str


def mac_weights(graph: Graph, node: Node) -> MacWeights | str:
    """Reads the weights of a MAC node, or says why it is not a layer with constant, finite weights."""
    with np.errstate(over="ignore", invalid="ignore"):
        constant = _constant_weights(graph, node)
    if isinstance(constant, MacWeights) and not all(
        np.isfinite(part).all() for part in (constant.weight, constant.bias)
    ):
        return "its weights or its bias are not finite"
    return constant


def _constant_weights(graph: Graph, node: Node) -> MacWeights | str:
    if node.op == "Conv":
        if not graph.is_constant(node.inputs[1]):
            return f"its weight '{node.inputs[1]}' is computed at run time"
        weight = graph.constants[node.inputs[1]]
        bias = _bias(graph, node, weight.shape[0])
        return bias if isinstance(bias, str) else MacWeights(weight, bias, node.inputs[0])
    left, right = node.inputs[0], node.inputs[1]
    if not graph.is_constant(right):
        which = "left" if graph.is_constant(left) else "neither"
        return f"{which} of its inputs is constant; the right one must be"
    weight = graph.constants[right]
    if weight.ndim != 2:
        return f"its weight has rank {weight.ndim}, expected 2"
    if node.op == "MatMul":
        return MacWeights(np.ascontiguousarray(weight.T), np.zeros(weight.shape[1], np.float32), left)
    if node.attrs.get("transA", 0):
        return "Gemm with transA=1"
    if not node.attrs.get("transB", 0):
        weight = weight.T
    alpha, beta = np.float32(node.attrs.get("alpha", 1.0)), np.float32(node.attrs.get("beta", 1.0))
    if alpha != 1.0:
        weight = weight * alpha
    bias = _bias(graph, node, weight.shape[0])
    return bias if isinstance(bias, str) else MacWeights(np.ascontiguousarray(weight), bias * beta, left)


def _bias(graph: Graph, node: Node, outputs: int) -> Array | str:
    if len(node.inputs) < 3 or not node.inputs[2]:
        return np.zeros(outputs, np.float32)
    if not graph.is_constant(node.inputs[2]):
        return f"its bias '{node.inputs[2]}' is computed at run time"
    bias = graph.constants[node.inputs[2]].astype(np.float32)
    if bias.size not in (1, outputs):
        return f"its bias has shape {list(bias.shape)}, expected [{outputs}]"
    return np.array(np.broadcast_to(bias.reshape(-1), (outputs,)))


@dataclass(frozen=True)
class BitSource:
    """Where an integer layer's input comes from: ``steps`` made the bits, ``moves`` (in order) only moved them.

    ``pads`` [top, left, bottom, right] and ``pad_level`` are a Pad node's, absorbed by the layer.
    """

    steps: Steps
    encoding: Encoding
    moves: tuple[Node, ...]
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_level: int = 0


@dataclass(frozen=True)
class IntegerMac:
    """A layer whose sums are integers: ``value = float32(scale[o] * acc) + bias[o]``."""

    node: Node
    weights: WeightLattice
    source: BitSource
    scale: Array  # float64 [O], weight scale times activation scale
    bias: Array  # float32 [O]
    integers: Array  # int64, ascending, every value that acc can take or a sample of them with both ends
    step: int  # acc takes every step-th value

    def root_values(self, integers: Array) -> Array:
        """What the ONNX node gives at accumulator values [M, O] or [M, 1]: float32 [M, O]."""
        return (integers.astype(np.float64) * self.scale).astype(np.float32) + self.bias


@dataclass(frozen=True)
class IntegerSums:
    """A float layer on integers: its inputs are up to ``limit`` in magnitude, its sums up to ``bound``."""

    limit: int
    bound: int

    def describe(self) -> str:
        """For the report, of sums in float32."""
        if self.bound <= MAX_EXACT_FLOAT:
            return "integers in float32: every sum is exact"
        times = self.bound / MAX_EXACT_FLOAT
        return f"integers in float32: exact while sums stay below 2^24, of which the bound is {times:.1f} times as much"


@dataclass
class Analysis:
    graph: Graph
    integer: dict[str, IntegerMac] = field(default_factory=dict)  # by output tensor
    reasons: dict[str, str] = field(default_factory=dict)  # why a MAC output is not integer
    integer_sums: dict[str, IntegerSums] = field(default_factory=dict)  # of MAC outputs that are floats
    steps: dict[str, Steps | str] = field(default_factory=dict)
    want_bits: set[str] = field(default_factory=set)
    want_float: set[str] = field(default_factory=set)
    rounded: set[str] = field(default_factory=set)  # quantizers too wide for bit planes
    quantized: dict[str, set[str]] = field(default_factory=dict)  # what of want_bits is made of each root

    def pack(self, tensor: str) -> str:
        """Marks a step function as wanted in packed form; returns its root."""
        steps = self.steps[tensor]
        assert isinstance(steps, Steps)
        self.want_bits.add(tensor)
        self.quantized.setdefault(steps.chain.root, set()).add(tensor)
        return steps.chain.root

    def is_fused(self, root: str) -> bool:
        """Whether the integer layer writing ``root`` gives bits only, for a single consumer chain."""
        return root not in self.want_float and len(self.quantized.get(root, ())) == 1

    def steps_of(self, tensor: str) -> Steps | str:
        """The steps of a tensor whose values lie on a lattice, or why it has none."""
        if tensor not in self.steps:
            self.steps[tensor] = self._find_steps(tensor, small_lattice)
        steps = self.steps[tensor]
        if isinstance(steps, Steps) and isinstance(steps.levels, Table):
            return f"its {len(steps.levels.levels)} values are not multiples of one scale"
        return steps

    def value_steps_of(self, tensor: str) -> Steps | str:
        """The steps of a tensor with few values of any kind, whose codes serve to look the values up."""
        if isinstance(self.steps_of(tensor), str) and isinstance(self.steps[tensor], str):
            steps = self._find_steps(tensor, Table.read)
            if isinstance(steps, Steps) and isinstance(steps.levels, Table):
                self.steps[tensor] = steps
                self.graph.leveled[tensor] = StepOf(tensor, steps.levels.middles, steps.levels.levels)
        return self.steps[tensor]

    def _find_steps(self, tensor: str, read: Reader) -> Steps | str:
        graph = self.graph
        node = graph.producer(tensor)
        if node is None or node.op not in ELEMENTWISE:
            made_by = f"its producer {node.op} '{node.name}' is not" if node else "a model input is not"
            return f"{made_by} a quantizer"
        chain = next(trace(graph, tensor, stop=lambda name: name in self.integer, through_pool=True), None)
        if chain is not None and chain.root in self.integer and chain.channel_axis == 1:
            mac = self.integer[chain.root]
            result = accumulator_steps(graph, chain, mac.integers, mac.step, mac.root_values, read)
            if isinstance(result, Steps) and encode_levels(result.levels.levels) is not None:
                return result
        producer = f"its producer {node.op} '{node.name}'"
        reason = f"{producer} has no quantizer"
        for chain in self._float_chains(tensor):
            result = float_steps(graph, chain, read)
            if isinstance(result, Steps):
                if encode_levels(result.levels.levels) is not None:
                    return result
                result = f"takes {len(result.levels.levels)} levels"
            if tensor in self.rounded:
                continue
            count = rounded_values(graph, chain)
            if count is not None:
                self.rounded.add(tensor)
                values = str(count) if count <= _COUNTED_VALUES else f"more than {_COUNTED_VALUES}"
                reason = f"{producer} rounds to {values} values, bit planes take {MAX_LEVELS} at most"
            elif not result.startswith("takes many"):
                reason = f"{producer} has no quantizer for bit planes: {result}"
        return reason

    def _float_chains(self, tensor: str) -> Iterator[Chain]:
        """Longest first. The sums of an integer layer are no root: their steps are found exhaustively or not at all."""
        chains = trace(self.graph, tensor, stop=lambda name: name in self.integer, through_pool=False)
        floats = (chain for chain in chains if self.graph.dtypes[chain.root] == np.float32)
        return (chain for chain in floats if chain.root not in self.integer)


def analyse(graph: Graph) -> Analysis:
    """Finds the integer layers front to back, then what each tensor is wanted as, back to front."""
    _drop_packing(graph)
    analysis = Analysis(graph)
    for node in graph.live_nodes():
        if node.op in MAC_OPS and not node.domain:
            activation = node.inputs[0]
            found = _integer_mac(analysis, node)
            if isinstance(found, IntegerMac):
                analysis.integer[node.output] = found
            else:
                node.inputs[0] = activation  # not what _packed_again has put in front
                analysis.reasons[node.output] = found
    _mark(analysis)
    return analysis


def _mark(analysis: Analysis) -> None:
    graph = analysis.graph
    pending = [*graph.outputs]
    done: set[str] = set()
    no_quantizers = in_vain = 0

    def want_bits(tensor: str) -> None:
        root = analysis.pack(tensor)
        if root not in analysis.integer:
            pending.append(root)

    for mac in analysis.integer.values():
        want_bits(mac.source.steps.chain.result)
    while pending:
        tensor = pending.pop()
        if tensor in done or graph.is_constant(tensor):
            continue
        done.add(tensor)
        node = graph.producer(tensor)
        if tensor in analysis.want_bits or node is None:
            continue  # unpacked from the bits; or a model input
        steps_only = node.op in _STEPS_ONLY
        if steps_only and no_quantizers >= _MAX_NO_QUANTIZERS:
            analysis.steps.setdefault(tensor, f"none was found in the {_MAX_NO_QUANTIZERS} nodes behind it")
        elif steps_only or (in_vain < _MAX_NO_QUANTIZERS and _has_comparison(analysis, tensor)):
            if isinstance(analysis.value_steps_of(tensor), Steps):
                want_bits(tensor)
                continue
            no_quantizers += steps_only
            in_vain += not steps_only
        analysis.want_float.add(tensor)
        if tensor not in analysis.integer:
            pending.extend(name for name in node.inputs if name)
    # A layer fuses one quantizer; several share its floats.
    for root in analysis.integer:
        if len(analysis.quantized.get(root, ())) > 1:
            analysis.want_float.add(root)


def _is_real(constant: MacWeights, why: str) -> str:
    return f"activation '{constant.activation}' is real: {why}"


def _has_comparison(analysis: Analysis, tensor: str) -> bool:
    """Whether ``tensor`` is made by elementwise ops some of which do not run on floats."""
    chains = trace(analysis.graph, tensor, stop=lambda name: name in analysis.integer, through_pool=False)
    return any(node.op in _STEPS_ONLY for chain in itertools.islice(chains, 1) for node in chain.nodes)


def _integer_mac(analysis: Analysis, node: Node) -> IntegerMac | str:
    graph = analysis.graph
    constant = mac_weights(graph, node)
    if isinstance(constant, str):
        return constant
    weights = weight_lattice(constant.weight)
    rank = len(graph.shapes[constant.activation])
    if rank not in (2, 4) or (node.op != "Conv" and rank != 2):
        if isinstance(weights, str):
            return weights
        real = analysis.steps_of(constant.activation)
        return _is_real(constant, real) if isinstance(real, str) else f"its input has rank {rank}"
    if node.op == "Conv" and node.attrs["group"] > 1 and constant.weight.shape[1] == 1:
        return "a depthwise layer: its bits would fill one of 64 places of a word, floats are ten times as fast"
    if isinstance(weights, str):
        few = distinct_values(constant.weight[0], MAX_LEVELS) is not None
        source = bit_source(analysis, constant.activation) if few else None
        return _is_real(constant, source) if isinstance(source, str) else weights
    source = bit_source(analysis, constant.activation)
    if isinstance(source, str):
        packed = _packed_again(analysis, node, constant.activation)
        source = source if packed is None else packed
    if isinstance(source, str):
        hint = ""
        origin = moved_from(graph, constant.activation)
        is_image = graph.producer(origin) is None  # which nobody expects to be signs
        if weights.values == (-1, 1) and not is_image and origin not in analysis.rounded:
            hint = " (the weights are +-1: if the activations should be too, the exporter dropped their sign)"
        return _is_real(constant, f"{source}{hint}")
    if source.pads != (0, 0, 0, 0) and node.op != "Conv":
        return "a padded tensor feeds a fully connected layer"
    if any(source.pads) and any(node.attrs["pads"]) and source.pad_level != 0:
        return "a Pad node with a value other than 0 meets padding of the convolution itself"
    bound, step = _sums(node, weights, source)
    if bound > MAX_EXACT_FLOAT:
        return "the accumulator can exceed 2^24"
    scale = weights.scale * source.steps.levels.scale
    return IntegerMac(node, weights, source, scale, constant.bias, _some_of(bound, step), step)


def _drop_packing(graph: Graph) -> None:
    """Takes out what an analysis before has put in: imported graphs have no Identity."""
    sources = {node.output: node.inputs[0] for node in graph.nodes if node.op == "Identity"}
    if sources:
        for node in graph.nodes:
            node.inputs = [sources.get(name, name) for name in node.inputs]
        graph.replace_nodes([node for node in graph.nodes if node.op != "Identity"])


def _packed_again(analysis: Analysis, node: Node, tensor: str) -> BitSource | None:
    """A quantizer in front of ``node`` that changes nothing, where its input holds few values but is no packed tensor.

    The values of a quantizer that were joined, shuffled or added up are floats at run time, and few: each lies between
    two thresholds.
    """
    graph = analysis.graph
    rank = len(graph.shapes[tensor])
    name = f"{tensor}/packed"
    if not isinstance(analysis.steps.get(name), Steps):
        values = few_values(graph, tensor, analysis.steps_of) if rank in (2, 4) else None
        levels = None if values is None or values.dtype != np.float32 else small_lattice(values)
        if values is None or levels is None or isinstance(levels, str) or encode_levels(levels.levels) is None:
            return None
        identity = Node("Identity", f"{graph.producers[tensor].name}/packed", [tensor], [name])
        place = graph.positions[id(graph.producers[tensor])] + 1
        graph.replace_nodes([*graph.nodes[:place], identity, *graph.nodes[place:]])
        graph.shapes[name], graph.dtypes[name] = graph.shapes[tensor], graph.dtypes[tensor]
        chain = Chain(tensor, name, (identity,), None, 1, 1, True)
        ascending = np.sort(values)[np.newaxis]
        middles = (ascending[:, :-1].astype(np.float64) + ascending[:, 1:]) / 2
        never = np.zeros(1, bool)
        analysis.steps[name] = Steps(chain, levels, middles.astype(np.float32), never, never, ascending[0])
    node.inputs[0] = name
    source = bit_source(analysis, name)
    return None if isinstance(source, str) else source


def moved_from(graph: Graph, tensor: str) -> str:
    """The tensor whose values ``tensor`` holds in other places: the one that has to be a quantizer's."""
    node = graph.producer(tensor)
    while node is not None and node.op in _MOVES:
        node = graph.producer(tensor := node.inputs[0])
    return tensor


def bit_source(analysis: Analysis, tensor: str) -> BitSource | str:
    graph = analysis.graph
    moves: list[Node] = []
    while True:
        steps = analysis.steps_of(tensor)
        if isinstance(steps, Steps):
            break
        node = graph.producer(tensor)
        if node is None or node.op not in _MOVES:
            return steps
        moves.append(node)
        tensor = node.inputs[0]
    encoding = encode_levels(steps.levels.levels)
    assert encoding is not None  # steps_of only returns encodable levels
    moves.reverse()
    pads, pad_level = (0, 0, 0, 0), 0
    rank = len(graph.shapes[tensor])
    if steps.chain.free and steps.chain.root not in analysis.integer and rank == 4:
        chain = with_result_axis(graph, steps.chain, _wanted_axis(moves))
        if chain is None:
            return f"the channels of tensor '{tensor}' are moved in a way that packed bits are not"
        steps = replace(steps, chain=chain)
        analysis.steps[tensor] = steps
    axis = steps.chain.result_axis
    if rank not in (2, 4):
        return f"tensor '{tensor}' of rank {rank} has few values, but only rank 2 and 4 are packed"
    if rank == 2 and axis != 1:
        return "its channel axis is not the last"
    order = list(range(rank))
    for position, move in enumerate(moves):
        shape = graph.shapes[move.output]
        if move.op == "Transpose":
            axis = move.attrs["perm"].index(axis)
            order = [order[old] for old in move.attrs["perm"]]
            rest = [old for place, old in enumerate(order) if place != axis]
            if rest != sorted(rest) or axis not in (1, rank - 1):
                return f"Transpose '{move.name}' does more than move the channels"
        elif move.op == "MaxPool" and (axis != 1 or rank != 4):
            return f"MaxPool '{move.name}' does not pool the two axes behind the channels"
        elif move.op == "Reshape":
            if not _flattens(graph.shapes[move.inputs[0]], shape):
                return f"Reshape '{move.name}' does more than flatten each sample"
            rank = 2
        elif move.op == "Pad":
            padding = _pad_of(graph, move, axis, steps)
            if isinstance(padding, str):
                return padding
            if any(later.op not in ("Transpose",) for later in moves[position + 1 :]):
                return f"Pad '{move.name}' is not directly in front of the layer"
            pads, pad_level = padding
    if rank == 4 and axis != 1:
        return "its channels are not on axis 1"
    return BitSource(steps, encoding, tuple(moves), pads, pad_level)


def _wanted_axis(moves: list[Node]) -> int:
    """Channel axis in front of ``moves`` so that it is 1 behind them, or behind those before a flattening."""
    axis = 1
    for move in reversed(moves):
        if move.op == "Reshape":
            axis = 1
        elif move.op == "Transpose":
            axis = move.attrs["perm"][axis]
    return axis


def _flattens(before: Shape, after: Shape) -> bool:
    return len(after) == 2 and before[0] == after[0]


def _pad_of(graph: Graph, node: Node, axis: int, steps: Steps) -> tuple[tuple[int, int, int, int], int] | str:
    pads = list(node.attrs["pads"])
    if node.attrs.get("mode", "constant") != "constant" or len(pads) != 8 or min(pads) < 0:
        return f"Pad '{node.name}' is not a constant padding of a map"
    begin, end = pads[:4], pads[4:]
    spatial = [2, 3] if axis == 1 else [1, 2]
    if any(begin[i] or end[i] for i in range(4) if i not in spatial):
        return f"Pad '{node.name}' pads the batch or the channels"
    if not any(pads):
        return (0, 0, 0, 0), 0
    value = float(graph.constants[node.inputs[1]].reshape(())) if len(node.inputs) > 1 and node.inputs[1] else 0.0
    level = round(value / steps.levels.scale) if math.isfinite(value) else MAX_LEVELS + 1
    if abs(level * steps.levels.scale - value) > 1e-6 * steps.levels.scale or abs(level) > MAX_LEVELS:
        return f"Pad '{node.name}' writes {value}, which is not a level of the tensor"
    low, high = min(0, *steps.levels.levels), max(0, *steps.levels.levels)
    if not low <= level <= high:
        return f"Pad '{node.name}' writes {value}, outside the tensor's levels"
    return (begin[spatial[0]], begin[spatial[1]], end[spatial[0]], end[spatial[1]]), level


def _sums(node: Node, weights: WeightLattice, source: BitSource) -> tuple[int, int]:
    """(bound, step): accumulators are -bound, -bound + step, ..., bound. Sums of +-1 keep their parity."""
    top = max(abs(level) for level in source.steps.levels.levels)
    bound = int(np.abs(weights.levels).reshape(weights.levels.shape[0], -1).sum(axis=1).max()) * top
    pads_zero = node.op == "Conv" and (any(node.attrs["pads"]) or (any(source.pads) and source.pad_level == 0))
    keeps_parity = (
        source.encoding.levels == [-1, 1]
        and weights.values in ((-1, 1), (-1,), (1,))
        and (not pads_zero or weights.levels.shape[1] % 2 == 0)
    )
    return bound, 2 if keeps_parity else 1


def _some_of(bound: int, step: int) -> Array:
    if 2 * bound // step < _ALL_SUMS:
        return np.arange(-bound, bound + 1, step)
    places = np.linspace(0, 2 * bound // step, _SAMPLED_SUMS).astype(np.int64)
    dense = bound // step + np.arange(-_SAMPLED_SUMS // 2, _SAMPLED_SUMS // 2)
    return -bound + step * np.unique(np.concatenate([places, dense]))
