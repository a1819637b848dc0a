"""Elementwise chains and the step functions that they are.

A chain is every elementwise node between one root tensor and a result. It is understood by evaluating it, with ONNX
semantics in float32, never by its spelling: on an integer accumulator at every value that can occur, on a float root by
bisection over the float32 line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from .evaluate import evaluate_node
from .graph import Array, Graph, Node
from .qonnx_ops import threshold_axis
from .values import MAX_LEVELS, TOLERANCE, Levels, distinct_values, lattice_of, small_lattice

ELEMENTWISE = frozenset(
    """Abs Add And BatchNormalization BipolarQuant Cast Ceil Clip DequantizeLinear Div Elu Equal Erf Exp Floor Greater
    GreaterOrEqual HardSigmoid HardSwish LeakyRelu Less LessOrEqual Max Min Mul MultiThreshold Neg Not Or PRelu Pow
    Quant QuantizeLinear Reciprocal Relu Round Selu Sigmoid Sign Softplus Softsign Sqrt Sub Tanh ThresholdedRelu Trunc
    Where Xor""".split()
)
# One of them is in every quantizer of more than a few levels.
_ROUNDING = frozenset("Cast Ceil Floor MultiThreshold Quant QuantizeLinear Round Trunc".split())
# Those whose inputs all broadcast alike; the others have parameters that run along an axis.
POINTWISE = ELEMENTWISE - {"BatchNormalization", "DequantizeLinear", "MultiThreshold", "QuantizeLinear"}
Reader = Callable[[Array], Levels | str]
_CHUNK = 1 << 22  # values evaluated at a time
# (sign(x) - x) + x misses +-1 by the rounding of a number as large as x: that many half units in its last place.
_ROUNDINGS = 8
# Rounding beyond this share of the largest level leaves open which level is meant.
_DECIDABLE = 1e-3
_NEVER = float(np.iinfo(np.int32).max)  # a threshold that no sum reaches
# The longest quantizer seen in an export has 34 nodes (ApproxSign with its detach trick). Without limits, a network of
# n elementwise nodes would be evaluated over all n**2 / 2 chains in it.
MAX_CHAIN_NODES = 128
MAX_ROOTS = 16


@dataclass(frozen=True)
class Chain:
    """Nodes from ``root`` to ``result`` in order, with any Transposes and at most one MaxPool (an identity per value).

    ``channel_axis`` is the root's axis along which constants differ, ``result_axis`` the same axis at the result. In a
    ``free`` chain no constant differs along any axis; its channel axis is whichever the reader of the result wants.
    """

    root: str
    result: str
    nodes: tuple[Node, ...]
    pool: Node | None
    channel_axis: int
    result_axis: int
    free: bool


def trace(graph: Graph, result: str, *, stop: Callable[[str], bool], through_pool: bool) -> Iterator[Chain]:
    """The chains that end in ``result``, longest first, from at most MAX_ROOTS roots, the nearest.

    ``stop(tensor)``: it is a root, however it was made, and nothing in front of it is.
    """
    nodes: list[Node] = []  # from the result backwards
    pool: Node | None = None
    frontier = {result}
    # Take the latest node of the frontier apart until a single tensor remains that is a root or cannot be taken apart.
    # The frontier is one tensor wide at every possible root.
    roots: list[tuple[str, int, Node | None]] = []
    while True:
        if len(frontier) == 1:
            tensor = next(iter(frontier))
            if nodes:
                roots.append((tensor, len(nodes), pool))
            if tensor != result and stop(tensor):
                break
        candidates = [node for node in map(graph.producer, frontier) if node is not None]
        if not candidates or len(nodes) == MAX_CHAIN_NODES:
            break
        node = max(candidates, key=lambda item: graph.positions[id(item)])
        if node.output not in frontier or (len(frontier) > 1 and stop(node.output)):
            break
        if node.op == "MaxPool" and through_pool and pool is None and len(frontier) == 1 and nodes:
            pool = node
        elif not _is_elementwise(graph, node):
            break
        nodes.append(node)
        frontier.discard(node.output)
        frontier |= {name for name in node.inputs if name and not graph.is_constant(name)}
    if roots and stop(roots[-1][0]):
        del roots[MAX_ROOTS - 1 : -1]
    for root, count, its_pool in reversed(roots[:MAX_ROOTS]):
        chain = _chain(graph, root, result, tuple(reversed(nodes[:count])), its_pool)
        if chain is not None:
            yield chain


def _chain(graph: Graph, root: str, result: str, nodes: tuple[Node, ...], pool: Node | None) -> Chain | None:
    axes = _channel_axes(graph, root, nodes)
    if axes is None or (pool is not None and not _pools_the_map(graph, root, nodes, pool)):
        return None
    free = not _has_channel_constants(graph, nodes, len(graph.shapes[root]))
    chain = Chain(root, result, nodes, pool, axes[0], axes[1][result], free)
    if _keeps_order(graph, chain):
        return chain
    return with_result_axis(graph, chain, len(graph.shapes[root]) - 1) if free else None


def with_result_axis(graph: Graph, chain: Chain, axis: int) -> Chain | None:
    """A free chain read with its channels on ``axis`` of the result; None if they cannot be packed along it."""
    moved = replace(chain, channel_axis=axis_order(graph, chain)[axis], result_axis=axis)
    return moved if _keeps_order(graph, moved) else None


def _pools_the_map(graph: Graph, root: str, nodes: tuple[Node, ...], pool: Node) -> bool:
    """Whether ``pool`` pools the root's own last two axes: behind a transpose to NHWC it would pool channels."""
    permutations = _permutations(graph, root, nodes)
    return permutations is not None and permutations[pool.output] == permutations[root]


def axis_order(graph: Graph, chain: Chain) -> list[int]:
    """The root's axis behind each axis of the result."""
    permutations = _permutations(graph, chain.root, chain.nodes)
    assert permutations is not None  # a chain that mixes positions was never made
    return list(permutations[chain.result])


def _permutations(graph: Graph, root: str, nodes: tuple[Node, ...]) -> dict[str, tuple[int, ...]] | None:
    """The root's axis behind each axis of every tensor; None where branches meet that were transposed differently.

    x + transpose(x) has the shape of x if two axes are alike, but an element of it depends on two elements of x.
    """
    found: dict[str, tuple[int, ...]] = {root: tuple(range(len(graph.shapes[root])))}
    for node in nodes:
        orders = {found[name] for name in node.inputs if name in found}
        if len(orders) != 1:
            return None
        order = orders.pop()
        found[node.output] = tuple(order[axis] for axis in node.attrs["perm"]) if node.op == "Transpose" else order
    return found


def _keeps_order(graph: Graph, chain: Chain) -> bool:
    """Whether packing along the channels gives the root and the result the same place in memory.

    The channels are on axis 1 of a map or on the last axis, at both ends, and the other axes never change places.
    """
    order = axis_order(graph, chain)
    ends = (1, 3) if len(order) == 4 else (len(order) - 1,)
    rest = [axis for axis in order if axis != chain.channel_axis]
    return chain.channel_axis in ends and chain.result_axis in ends and rest == sorted(rest)


def _is_elementwise(graph: Graph, node: Node) -> bool:
    if node.op == "Transpose":
        return node.attrs["perm"][0] == 0 and not graph.is_constant(node.inputs[0])
    if node.op not in ELEMENTWISE:
        return False
    live = [name for name in node.inputs if name and not graph.is_constant(name)]
    return bool(live) and all(graph.shapes[name] == graph.shapes[node.output] for name in live)


def _channel_axes(graph: Graph, root: str, nodes: tuple[Node, ...]) -> tuple[int, dict[str, int]] | None:
    """(channel axis of the root, channel axis of each tensor). None if constants vary along two different axes."""
    rank = len(graph.shapes[root])
    permutation = _permutations(graph, root, nodes)
    if permutation is None:
        return None
    found: set[int] = set()
    for node in nodes:
        axes = permutation[node.output]
        if node.op == "Transpose":
            continue
        along = _vector_axis(node, rank)
        if along is not None:
            if _has_vectors(graph, node):
                found.add(axes[along])
            continue
        for name in node.inputs:
            if name and graph.is_constant(name):
                found |= {axes[axis] for axis in _varying_axes(graph.constants[name], rank)}
    if len(found) > 1 or 0 in found:
        return None
    # Without per-channel constants the channel axis is where a convolution has it: 1.
    channel = found.pop() if found else (1 if rank != 3 else 2)
    if channel >= rank:
        return None
    return channel, {name: axes.index(channel) for name, axes in permutation.items()}


def _vector_axis(node: Node, rank: int) -> int | None:
    """The axis along which a node's constants [C] or [C, ...] run whatever their own shape; None if they broadcast."""
    if node.op == "BatchNormalization":
        return 1
    if node.op in ("QuantizeLinear", "DequantizeLinear"):
        return int(node.attrs.get("axis", 1))
    return threshold_axis(node.attrs["data_layout"], rank) if node.op == "MultiThreshold" else None


def _has_vectors(graph: Graph, node: Node) -> bool:
    return node.op == "BatchNormalization" or graph.constants[node.inputs[1]].shape[:1] not in ((), (1,))


def _varying_axes(constant: Array, rank: int) -> set[int]:
    padded = constant.reshape((1,) * (rank - constant.ndim) + constant.shape) if constant.ndim <= rank else constant
    return {
        axis
        for axis in range(padded.ndim)
        if padded.shape[axis] > 1 and not np.array_equal(padded, np.broadcast_to(padded.take([0], axis), padded.shape))
    }


def evaluate_chain(graph: Graph, chain: Chain, probes: Array, stages: tuple[str, ...] = ()) -> tuple[Array, ...]:
    """Values of ``chain.result`` (and of ``stages``) at ``probes`` [P, C] of the root, each [P, C] float32."""
    rank = len(graph.shapes[chain.root])
    shape = [1] * rank
    shape[0], shape[chain.channel_axis] = probes.shape
    values: dict[str, Array] = {chain.root: probes.reshape(shape)}
    wanted = (chain.result, *stages)
    for node in chain.nodes:
        if node is chain.pool:
            values[node.output] = values[node.inputs[0]]
            continue
        arguments: list[Array | None] = []
        for name in node.inputs:
            if not name:
                arguments.append(None)
            elif name in values:
                arguments.append(values[name])
            elif _vector_axis(node, rank) is not None:
                arguments.append(graph.constants[name])
            else:
                arguments.append(_collapse(graph.constants[name], rank))
        with np.errstate(all="ignore"):
            values[node.output] = evaluate_node(node, arguments, graph.opset)[0]
    return tuple(np.asarray(values[name], np.float32).reshape(probes.shape) for name in wanted)


def _collapse(constant: Array, rank: int) -> Array:
    """Drops the axes along which a constant only repeats itself ([1, C, H, W] back to [1, C, 1, 1])."""
    if constant.ndim == 0 or constant.ndim > rank:
        return constant
    varying = _varying_axes(constant, rank)
    offset = rank - constant.ndim
    for axis in range(constant.ndim):
        if constant.shape[axis] > 1 and axis + offset not in varying:
            constant = constant.take([0], axis)
    return constant


@dataclass(frozen=True)
class Steps:
    """A chain that takes few values: level index as a step function of the root.

    ``thresholds`` [C or 1, T] ascending: ``n = count(x >= t)``, ``index = T - n if descending else n``. int64 on an
    accumulator, float32 on a float root. ``take_min``: channels whose part behind the chain's MaxPool descends.
    ``values`` [L] float32 are what the chain gives at each level, to the bit.
    """

    chain: Chain
    levels: Levels
    thresholds: Array
    descending: Array
    take_min: Array
    values: Array

    def zero_is_a_point(self) -> bool:
        """Of levels (-1, 0, 1): whether 0 is met at one value of the root (within rounding), as a Sign meets it.

        A ternary quantizer is 0 over a range.
        """
        if self.levels.levels != (-1, 0, 1):
            return False
        low, high = np.asarray(self.thresholds, np.float64).T
        is_integer = self.thresholds.dtype.kind == "i"
        reached = (np.abs(low) < _NEVER) & (np.abs(high) < _NEVER)
        if is_integer:
            return bool(np.all(high[reached] - low[reached] <= 2))  # sums of signs go in steps of 2
        scale = float(np.max(np.abs(self.thresholds[reached]), initial=0.0))
        return bool(np.all(high[reached] - low[reached] <= max(1e-5 * scale, 1e-30)))


def accumulator_steps(
    graph: Graph,
    chain: Chain,
    integers: Array,
    step: int,
    root_at: Callable[[Array], Array],
    read: Reader = small_lattice,
) -> Steps | str:
    """Evaluation at each of ``integers`` [M], ascending: all that the root can take, or a sample of every ``step``-th.

    Between two of a sample a step is searched by bisection; values that only turn up there join the sample. ``root_at``
    gives the root, float32 [M, C], at integers [M, 1] or [M, C]; ``read`` makes levels of the values that come out.
    """
    root_values = root_at(integers[:, None])
    count, channels = root_values.shape
    rows = max(1, _CHUNK // max(1, count))
    stages = () if chain.pool is None else (chain.pool.output,)
    results: list[Array] = []
    pooled: list[Array] = []
    for begin in range(0, channels, rows):
        part = _select_channels(graph, chain, begin, min(channels, begin + rows), channels)
        values = evaluate_chain(part[0], part[1], root_values[:, begin : begin + rows], stages)
        results.append(values[0])
        pooled.extend(values[1:])
    outputs = np.concatenate(results, axis=1)
    levels = read(outputs)
    if isinstance(levels, str):
        rounded = _rounded_accumulator_levels(graph, chain, root_values, rows) if read is small_lattice else None
        if rounded is None:
            return levels
        levels, outputs = rounded
    # Fully connected layers have thousands of sums and outputs: bytes, a part of the channels at a time.
    parts = (outputs[:, begin : begin + rows] for begin in range(0, channels, rows))
    index = np.concatenate([levels.index(part).astype(np.int8) for part in parts], axis=1)
    rising = np.all(index[1:] >= index[:-1], axis=0)
    falling = np.all(index[1:] <= index[:-1], axis=0)
    if not np.all(rising | falling):
        return f"not a monotone step function of the accumulator (channel {int(np.argmin(rising | falling))})"
    descending = ~rising
    take_min = np.zeros(channels, bool)
    if chain.pool is not None:
        before = np.concatenate(pooled, axis=1)
        order = np.argsort(before, axis=0, kind="stable")
        behind = np.diff(np.take_along_axis(index, order, 0), axis=0)
        ties = np.diff(np.take_along_axis(before, order, 0), axis=0) == 0
        behind = np.where(ties, 0, behind)
        up, down = np.all(behind >= 0, axis=0), np.all(behind <= 0, axis=0)
        if not np.all(up | down):
            return "the part behind the MaxPool is not monotone"
        take_min = ~up
    steps = len(levels.levels) - 1
    upward = np.where(descending, steps - index, index)  # ascending along the accumulator in every channel
    # The first integer, and the one before it, at which each channel has passed each step: [steps, C].
    first = np.zeros((steps, channels), np.int64)
    for passed in range(steps):
        first[passed] = np.count_nonzero(upward <= passed, axis=0)
    always, never = first == 0, first == len(integers)
    high = integers[np.where(never, 0, first)]
    low = np.where(always | never, high, integers[first - 1])
    while np.any(high - low > step):
        middle = low + (high - low) // step // 2 * step
        (found,) = evaluate_chain(graph, chain, root_at(middle))
        if not np.all(np.isin(levels.nearest(found), levels.levels)) or not levels.holds(found):
            return accumulator_steps(graph, chain, np.union1d(integers, middle), step, root_at, read)
        at = levels.index(found)
        beyond = np.where(descending, steps - at, at) > np.arange(steps)[:, None]
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    limits = np.iinfo(np.int32)
    thresholds = np.where(always, limits.min, np.where(never, limits.max, high)).T
    at_levels = np.asarray([outputs.flat[np.argmax(index == position)] for position in range(steps + 1)], np.float32)
    return Steps(chain, levels, thresholds, descending, take_min, at_levels)


def _rounded_accumulator_levels(
    graph: Graph, chain: Chain, root_values: Array, rows: int
) -> tuple[Levels, Array] | None:
    """The levels that the outputs miss by no more than rounding explains, and the outputs moved onto them."""
    channels = root_values.shape[1]
    parts = []
    for begin in range(0, channels, rows):
        part, cut = _select_channels(graph, chain, begin, min(channels, begin + rows), channels)
        parts.append(_chain_rounding(part, cut, root_values[:, begin : begin + rows]))
    outputs, errors = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    if not np.all(np.isfinite(outputs)):
        return None
    levels = lattice_of(_values_beside_rounding(outputs, errors))
    if isinstance(levels, str):
        return None
    inner = _inside_rounding(levels, outputs, errors)
    if inner is None or inner.size < len(outputs):
        return None
    return levels, (levels.scale * levels.nearest(outputs)).astype(np.float32)


def _select_channels(graph: Graph, chain: Chain, begin: int, end: int, channels: int) -> tuple[Graph, Chain]:
    """The chain with its per-channel constants cut to [begin, end)."""
    if begin == 0 and end == channels:
        return graph, chain
    rank = len(graph.shapes[chain.root])
    axes = _channel_axes(graph, chain.root, chain.nodes)
    assert axes is not None
    constants = dict(graph.constants)
    for node in chain.nodes:
        if node.op in ("Transpose", "MaxPool"):
            continue
        axis = axes[1][node.output]
        for name in node.inputs:
            if not name or not graph.is_constant(name):
                continue
            constant = graph.constants[name]
            if _vector_axis(node, rank) is not None:
                if constant.ndim >= 1 and constant.shape[0] == channels:
                    constants[name] = constant[begin:end]
                continue
            own = axis - (rank - constant.ndim)
            if own >= 0 and constant.shape[own] == channels and channels > 1:
                constants[name] = constant.take(range(begin, end), own)
    part = Graph(
        graph.nodes, constants, graph.inputs, graph.outputs, graph.shapes, graph.dtypes, graph.opset, graph.source
    )
    return part, chain


def _always(levels: Levels) -> Reader:
    return lambda sampled: levels


def _values_beside_rounding(outputs: Array, rounding: Array) -> Array | None:
    """Of each cluster of ``outputs`` the one with the least rounding; None for more than 4 * MAX_LEVELS clusters."""
    exact = rounding <= _DECIDABLE * np.abs(outputs)
    top = float(np.max(np.abs(outputs), where=exact, initial=0.0))
    chosen = rounding <= _DECIDABLE * top
    order = np.argsort(outputs[chosen], kind="stable")
    values, errors = outputs[chosen][order].astype(np.float64), rounding[chosen][order]
    if values.size == 0:
        return None
    starts = np.flatnonzero(np.concatenate([[True], np.diff(values) > 4 * _DECIDABLE * top]))
    if starts.size > 4 * MAX_LEVELS:
        return None
    ends = [*starts[1:], values.size]
    return np.asarray(
        [values[begin:end][np.argmin(errors[begin:end])] for begin, end in zip(starts, ends, strict=True)]
    )


def _chain_rounding(graph: Graph, chain: Chain, probes: Array) -> tuple[Array, Array]:
    """(values, error that a few roundings of the largest number on the way can make of each), float64 errors."""
    stages = tuple(node.output for node in chain.nodes if node.output != chain.result)
    values = evaluate_chain(graph, chain, probes, stages)
    largest = np.abs(values[0])
    for value in values[1:]:
        np.fmax(largest, np.abs(value), out=largest)
    return values[0], _ROUNDINGS * 2.0**-24 * largest.astype(np.float64)


def _to_key(values: Array) -> Array:
    """float32 to integers of the same order; -0.0 and 0.0 share a key."""
    bits = np.ascontiguousarray(values, np.float32).view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def _from_key(keys: Array) -> Array:
    bits = np.where(keys >= 0, keys, (-keys) | 0x80000000).astype(np.uint32)
    return bits.view(np.float32)


_TOP_KEY = int(_to_key(np.asarray([np.finfo(np.float32).max]))[0])
# A chain must be finite up to here; no activation of a network that works comes near.
_WIDE_KEY = int(_to_key(np.asarray([2.0**40]))[0])
# Where a chain on floats is sampled: all over float32, densely where activations lie.
_NEAR_ONE = _to_key(np.linspace(-16, 16, 2049, dtype=np.float32))
_GRID = np.unique(np.concatenate([np.linspace(-_TOP_KEY, _TOP_KEY, 4097).astype(np.int64), [0, 1, -1], _NEAR_ONE]))

# The ranges of the quantizers that rounded_values looks for.
_REACHES = (0.1, 1.0, 4.0, 16.0, 256.0)


def float_steps(graph: Graph, chain: Chain, read: Reader = small_lattice) -> Steps | str:
    """Finds the steps of a chain on floats by bisection; ``read`` makes levels of values that were sampled.

    The chain is evaluated on a grid over all of float32, each change is narrowed down to one float, and the result is
    checked at the neighbours of the thresholds and at random points. Where it overflows (a polynomial beyond 2^40, say,
    inf times a mask of 0) the model has no answer, and the level next to it goes on. A chain that is off its levels by
    no more than rounding explains, as (sign(x) - x) + x is, is read as the steps that it stands for.
    """
    strict = _float_steps(graph, chain, False, read)
    if isinstance(strict, Steps) or read is not small_lattice:
        return strict
    rounded = _float_steps(graph, chain, True, read)
    return rounded if isinstance(rounded, Steps) else strict


def rounded_values(graph: Graph, chain: Chain) -> int | None:
    """About how many values a quantizer with more than MAX_LEVELS takes (its first channel); None if it is none.

    A quantizer stays where it is when its input moves a little; where their range ends other chains do so too.
    Evidence for a message, not a proof.
    """
    dim = graph.shapes[chain.root][chain.channel_axis]
    if not isinstance(dim, int) or not any(node.op in _ROUNDING for node in chain.nodes):
        return None
    points = np.concatenate([np.linspace(-reach, reach, 4001, dtype=np.float32) for reach in _REACHES])[:, None]
    first = _select_channels(graph, chain, 0, 1, dim)
    values, beside = (evaluate_chain(*first, probes)[0] for probes in (points, points * np.float32(1 + 2.0**-16)))
    distinct = distinct_values(values, values.size)
    inside = (values > np.min(values)) & (values < np.max(values))
    if distinct is None or distinct.size <= MAX_LEVELS or not inside.any():
        return None
    stays = np.abs(values - beside) <= TOLERANCE * np.maximum(np.abs(values), np.abs(points))
    return distinct.size if np.mean(stays[inside]) > 0.9 else None


def _float_steps(graph: Graph, chain: Chain, rounded: bool, read: Reader) -> Steps | str:
    shape = graph.shapes[chain.root]
    dim = shape[chain.channel_axis]
    if not isinstance(dim, int):
        return "its channel axis is the batch axis"
    channels = 1 if chain.free else dim
    grid = _GRID

    def outputs_at(keys: Array) -> tuple[Array, Array]:
        if rounded:
            return _chain_rounding(graph, chain, _from_key(keys))
        return evaluate_chain(graph, chain, _from_key(keys))[0], np.zeros(1)

    # Most chains are no quantizers, which a few points tell.
    if rounded:
        few, errors = outputs_at(np.repeat(grid[::64, None], channels, axis=1))
        finite = np.all(np.isfinite(few), axis=1)
        if isinstance(lattice_of(_values_beside_rounding(few[finite], errors[finite])), str):
            return "takes many values"
    else:
        few, _ = outputs_at(np.repeat(_NEAR_ONE[::16, None], channels, axis=1))
        if distinct_values(few[np.isfinite(few)], 4 * MAX_LEVELS) is None:
            return "takes many values"
    sampled, errors = outputs_at(np.repeat(grid[:, None], channels, axis=1))
    finite = np.flatnonzero(np.all(np.isfinite(sampled), axis=1))
    if finite.size == 0 or np.any(np.diff(finite) > 1):
        return "takes many values"
    grid, sampled = grid[finite], sampled[finite]
    if grid[0] > -_WIDE_KEY or grid[-1] < _WIDE_KEY:
        return "takes many values"
    levels = lattice_of(_values_beside_rounding(sampled, errors[finite])) if rounded else read(sampled)
    if isinstance(levels, str):
        return levels
    if rounded:
        inner = _inside_rounding(levels, sampled, errors[finite])
        if inner is None:
            return "takes values off its lattice"
        grid, sampled = grid[inner], sampled[inner]
    at_grid = levels.nearest(sampled)
    moves = np.diff(at_grid, axis=0)
    rising, falling = np.all(moves >= 0, axis=0), np.all(moves <= 0, axis=0)
    if not np.all(rising | falling):
        return "not a monotone step function"
    descending = ~rising

    # Each change between two grid points is an interval (low, high] in which the first key with another level than at
    # `low` is searched; if that is not yet the level at `high`, the search goes on from there.
    changes: list[list[tuple[int, int]]] = [[] for _ in range(channels)]  # (key, level from there on), ascending
    intervals = [[(int(grid[i]), int(grid[i + 1])) for i in np.flatnonzero(moves[:, c])] for c in range(channels)]
    start_level = [[int(at_grid[i, c]) for i in np.flatnonzero(moves[:, c])] for c in range(channels)]
    end_level = [[int(at_grid[i + 1, c]) for i in np.flatnonzero(moves[:, c])] for c in range(channels)]
    seen_values: list[Array] = []
    for _ in range(2 * MAX_LEVELS):
        width = max(len(row) for row in intervals)
        if width == 0:
            break
        low, high, start = (np.zeros((width, channels), np.int64) for _ in range(3))
        for c, row in enumerate(intervals):
            for i, (begin, end) in enumerate(row):
                low[i, c], high[i, c], start[i, c] = begin, end, start_level[c][i]
        while np.any(high - low > 1):
            middle = (low + high) // 2
            values, errors = outputs_at(middle)
            if not levels.holds(values, errors):
                wider = levels.widened(values)
                if wider is None:
                    return "takes values off its lattice between the sampled points"
                return _float_steps(graph, chain, rounded, _always(wider))
            changed = levels.nearest(values) != start
            high = np.where(changed, middle, high)
            low = np.where(changed, low, middle)
        reached_values, _ = outputs_at(high)
        seen_values.append(reached_values.ravel())
        reached = levels.nearest(reached_values)
        for c, row in enumerate(intervals):
            rest: list[tuple[tuple[int, int], int, int]] = []
            for i, (_, end) in enumerate(row):
                level = int(reached[i, c])
                changes[c].append((int(high[i, c]), level))
                if level != end_level[c][i]:
                    rest.append(((int(high[i, c]), end), level, end_level[c][i]))
            intervals[c] = [item[0] for item in rest]
            start_level[c] = [item[1] for item in rest]
            end_level[c] = [item[2] for item in rest]

    seen = {level for row in changes for _, level in row} | set(levels.levels)
    levels = replace(levels, levels=tuple(sorted(seen)))
    steps = len(levels.levels) - 1
    if steps + 1 > MAX_LEVELS:
        return f"takes {steps + 1} values"
    thresholds = np.full((channels, steps), np.inf, np.float32)
    for c in range(channels):
        position = 0
        for key, level in [(-_TOP_KEY - 1, int(at_grid[0, c])), *sorted(changes[c])]:
            index = levels.levels.index(level)
            target = steps - index if descending[c] else index
            if target < position:
                return "not a monotone step function"
            threshold = -np.inf if key < -_TOP_KEY else _from_key(np.asarray([key]))[0]
            thresholds[c, position:target] = threshold
            position = target
    values = _level_values(levels) if rounded else _values_of(levels, np.concatenate([sampled.ravel(), *seen_values]))
    result = Steps(chain, levels, thresholds, descending, np.zeros(channels, bool), values)
    confirmed = _confirmed(result, outputs_at, channels, int(grid[0]), int(grid[-1]))
    return result if confirmed else "not a step function everywhere"


def _inside_rounding(levels: Levels, sampled: Array, errors: Array) -> Array | None:
    """The rows whose level rounding leaves decidable; None where rounding does not explain how far a row is off.

    Rows outside must be as near to the level of the last row inside.
    """
    top = levels.scale * max(1, *(abs(level) for level in levels.levels))
    inner = np.flatnonzero(np.all(errors <= _DECIDABLE * top, axis=1))
    if inner.size == 0 or np.any(np.diff(inner) > 1) or not levels.holds(sampled[inner], errors[inner]):
        return None
    for rows, edge in ((slice(0, inner[0]), inner[0]), (slice(inner[-1] + 1, None), inner[-1])):
        ideal = levels.scale * levels.nearest(sampled[edge])
        if not np.all(np.abs(sampled[rows] - ideal) <= errors[rows] + 1e-6 * top):
            return None
    return inner


def _level_values(levels: Levels) -> Array:
    return np.asarray([levels.scale * level for level in levels.levels], np.float32)


def _values_of(levels: Levels, outputs: Array) -> Array:
    """One of ``outputs`` for each level."""
    flat = outputs.ravel()
    at = levels.nearest(flat)
    return np.asarray([flat[np.argmax(at == level)] for level in levels.levels], np.float32)


def _confirmed(
    steps: Steps, outputs_at: Callable[[Array], tuple[Array, Array]], channels: int, low: int, high: int
) -> bool:
    random = np.random.default_rng(0)
    finite = np.where(np.isfinite(steps.thresholds), steps.thresholds, 0.0)
    keys = _to_key(finite).T  # [T, C]
    probes = [keys, keys - 1, keys + 1, _to_key(random.normal(0, 4, (256, channels)).astype(np.float32))]
    at = np.clip(np.concatenate(probes), low, high)
    values, errors = outputs_at(at)
    if not steps.levels.holds(values, errors):
        return False
    count = (_from_key(at)[:, :, None] >= steps.thresholds[None]).sum(axis=2)
    total = steps.thresholds.shape[1]
    expected = np.where(steps.descending[None], total - count, count)
    return bool(np.array_equal(np.asarray(steps.levels.levels)[expected], steps.levels.nearest(values)))


def _has_channel_constants(graph: Graph, nodes: tuple[Node, ...], rank: int) -> bool:
    for node in nodes:
        if node.op in ("Transpose", "MaxPool"):
            continue
        if _vector_axis(node, rank) is not None:
            if _has_vectors(graph, node):
                return True
            continue
        for name in node.inputs:
            if name and graph.is_constant(name) and _varying_axes(graph.constants[name], rank):
                return True
    return False
