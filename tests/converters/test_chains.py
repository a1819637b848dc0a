from __future__ import annotations

import numpy as np
import pytest
from graphs import elementwise_graph, scalar
from tac_engine.converters.chains import Steps, accumulator_steps, evaluate_chain, float_steps, trace
from tac_engine.converters.graph import Array, Graph, Node
from tac_engine.converters.values import Table, small_lattice

FULL = np.ones((1, 4, 5, 5), np.float32)
DENORMAL = np.float32(1e-45)
Spelling = tuple[list[Node], dict[str, Array]]

# Spellings of a sign seen in exports: the levels, and the thresholds on x.
SIGNS: dict[str, tuple[Spelling, tuple[int, ...], list[float]]] = {
    "Sign": (([Node("Sign", "s", ["x"], ["y"])], {}), (-1, 0, 1), [0.0, DENORMAL]),
    "GreaterOrEqual, Where of full maps": (
        (
            [Node("GreaterOrEqual", "a", ["x", "z"], ["c"]), Node("Where", "b", ["c", "p", "m"], ["y"])],
            {"z": scalar(0), "p": FULL, "m": -FULL},
        ),
        (-1, 1),
        [0.0],
    ),
    "Greater, Where": (
        (
            [Node("Greater", "a", ["x", "z"], ["c"]), Node("Where", "b", ["c", "p", "m"], ["y"])],
            {"z": scalar(0), "p": scalar(1), "m": scalar(-1)},
        ),
        (-1, 1),
        [DENORMAL],
    ),
    "Cast * 2 - 1": (
        (
            [
                Node("GreaterOrEqual", "a", ["x", "z"], ["c"]),
                Node("Cast", "k", ["c"], ["d"], {"to": 1}),
                Node("Mul", "m", ["d", "two"], ["e"]),
                Node("Sub", "n", ["e", "one"], ["y"]),
            ],
            {"z": scalar(0), "two": scalar(2), "one": scalar(1)},
        ),
        (-1, 1),
        [0.0],
    ),
    "GreaterOrEqual - Less": (
        (
            [
                Node("GreaterOrEqual", "a", ["x", "z"], ["c"]),
                Node("Cast", "k", ["c"], ["d"], {"to": 1}),
                Node("Less", "l", ["x", "z"], ["e"]),
                Node("Cast", "k2", ["e"], ["f"], {"to": 1}),
                Node("Sub", "n", ["d", "f"], ["y"]),
            ],
            {"z": scalar(0)},
        ),
        (-1, 1),
        [0.0],
    ),
    "Sign, Add, Sign": (
        (
            [Node("Sign", "s", ["x"], ["a"]), Node("Add", "q", ["a", "c"], ["b"]), Node("Sign", "t", ["b"], ["y"])],
            {"c": scalar(0.1)},
        ),
        (-1, 1),
        [0.0],
    ),
    "Clip, Sign": (
        (
            [Node("Clip", "c", ["x", "lo", "hi"], ["a"]), Node("Sign", "s", ["a"], ["y"])],
            {"lo": scalar(-1), "hi": scalar(1)},
        ),
        (-1, 0, 1),
        [0.0, DENORMAL],
    ),
    "detach: (sign - clip) + clip": (
        (
            [
                Node("Clip", "c", ["x", "lo", "hi"], ["c"]),
                Node("Sign", "s", ["x"], ["s"]),
                Node("Sub", "d", ["s", "c"], ["d"]),
                Node("Add", "e", ["d", "c"], ["y"]),
            ],
            {"lo": scalar(-1), "hi": scalar(1)},
        ),
        (-1, 0, 1),
        [0.0, DENORMAL],
    ),
    "larq ste_tern": (
        (
            [
                Node("Add", "a", ["x", "t"], ["a"]),
                Node("Sign", "s", ["a"], ["b"]),
                Node("Sub", "c", ["x", "t"], ["c"]),
                Node("Sign", "u", ["c"], ["d"]),
                Node("Add", "z", ["b", "d"], ["e"]),
                Node("Sign", "v", ["e"], ["y"]),
            ],
            {"t": scalar(0.5)},
        ),
        (-1, 0, 1),
        [float(np.nextafter(np.float32(-0.5), np.float32(0))), 0.5],
    ),
    "Relu, Sign (heaviside)": (
        ([Node("Relu", "r", ["x"], ["a"]), Node("Sign", "s", ["a"], ["y"])], {}),
        (0, 1),
        [DENORMAL],
    ),
}


def whole_chain(graph: Graph) -> Steps | str:
    chain = next(trace(graph, graph.outputs[0], stop=lambda name: False, through_pool=False))
    assert chain.root == "x"
    return float_steps(graph, chain)


@pytest.mark.parametrize("name", SIGNS)
def test_every_spelling_of_a_sign_is_its_step_function(name: str) -> None:
    (nodes, constants), levels, thresholds = SIGNS[name]
    steps = whole_chain(elementwise_graph(nodes, constants))
    assert isinstance(steps, Steps), steps
    assert steps.levels.levels == levels
    assert steps.levels.scale == 1.0
    np.testing.assert_array_equal(steps.thresholds, np.asarray([thresholds], np.float32))


def batch_norm(channels: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "g": rng.normal(size=channels).astype(np.float32),
        "b": rng.normal(size=channels).astype(np.float32),
        "m": rng.normal(size=channels).astype(np.float32),
        "v": rng.uniform(0.5, 2, channels).astype(np.float32),
    }


NORMALISE = Node("BatchNormalization", "bn", ["x", "g", "b", "m", "v"], ["h"], {"epsilon": 1e-5})


def test_batch_norm_before_a_sign_gives_a_threshold_per_channel_and_direction() -> None:
    constants = batch_norm(4, 3)
    graph = elementwise_graph([NORMALISE, Node("Sign", "s", ["h"], ["y"])], constants)
    steps = whole_chain(graph)
    assert isinstance(steps, Steps)
    np.testing.assert_array_equal(steps.descending, constants["g"] < 0)
    exact = constants["m"] - constants["b"] * np.sqrt(constants["v"] + 1e-5) / constants["g"]
    np.testing.assert_allclose(steps.thresholds[:, 0], exact, rtol=1e-5)
    chain = steps.chain
    for row in range(4):  # the step is where float32 arithmetic has it, to the last bit
        at = steps.thresholds[row, 0]
        below = np.nextafter(at, np.float32(-np.inf))
        values = evaluate_chain(graph, chain, np.repeat([[below], [at]], 4, axis=1).reshape(2, 4))[0]
        assert np.sign(values[0, row]) != np.sign(values[1, row])


def test_sums_that_all_give_one_level_have_no_threshold() -> None:
    graph = elementwise_graph([Node("Abs", "a", ["x"], ["h"]), Node("Sign", "s", ["h"], ["y"])], {})
    chain = next(trace(graph, "y", stop=lambda name: False, through_pool=True))
    steps = accumulator_steps(
        graph, chain, np.array([-3, 5]), 8, lambda at: np.repeat(at, 4, axis=1).astype(np.float32)
    )
    assert isinstance(steps, Steps)
    assert steps.thresholds.shape == (4, 0)
    np.testing.assert_array_equal(steps.values, [1.0])


def test_quantizer_levels_and_half_even_ties() -> None:
    nodes = [
        Node("Clip", "c", ["x", "lo", "hi"], ["c"]),
        Node("Mul", "m", ["c", "three"], ["d"]),
        Node("Round", "r", ["d"], ["e"]),
        Node("Mul", "k", ["e", "third"], ["y"]),
    ]
    constants = {"lo": scalar(0), "hi": scalar(1), "three": scalar(3), "third": scalar(1 / 3)}
    steps = whole_chain(elementwise_graph(nodes, constants))
    assert isinstance(steps, Steps)
    assert steps.levels.levels == (0, 1, 2, 3)
    # 0.5 rounds down to 0, 1.5 up to 2, 2.5 down to 2: only the middle threshold is the tie itself.
    assert steps.thresholds[0, 0] > np.float32(1 / 6)
    assert steps.thresholds[0, 1] == np.float32(0.5)
    assert steps.thresholds[0, 2] > np.float32(5 / 6) - 1e-7


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh", "Abs"])
def test_a_smooth_function_is_not_a_step_function(op: str) -> None:
    assert isinstance(whole_chain(elementwise_graph([Node(op, "n", ["x"], ["y"])], {})), str)


def test_a_band_pass_is_refused_because_it_is_not_monotone() -> None:
    nodes = [
        Node("Abs", "a", ["x"], ["a"]),
        Node("Greater", "g", ["a", "one"], ["g"]),
        Node("Cast", "c", ["g"], ["y"], {"to": 1}),
    ]
    reason = whole_chain(elementwise_graph(nodes, {"one": scalar(1)}))
    assert isinstance(reason, str)
    assert "monotone" in reason


def test_a_chain_that_overflows_far_out_is_a_step_function() -> None:
    """0 * x^2 + sign(x) is NaN where x^2 is infinite, beyond 1.8e19."""
    nodes = [
        Node("Mul", "m", ["x", "x"], ["q"]),
        Node("Mul", "z", ["q", "zero"], ["n"]),
        Node("Sign", "s", ["x"], ["s"]),
        Node("Add", "a", ["n", "s"], ["y"]),
    ]
    steps = whole_chain(elementwise_graph(nodes, {"zero": scalar(0)}))
    assert isinstance(steps, Steps)
    assert steps.levels.levels == (-1, 0, 1)
    np.testing.assert_array_equal(steps.thresholds[0], [0.0, DENORMAL])


def test_straight_through_by_detach_is_a_sign_up_to_rounding() -> None:
    """(sign(x) - x) + x is off +-1 by 3e-5 at x = 1000, and nothing but 0 at 1e9."""
    nodes = [Node("Sign", "s", ["x"], ["s"]), Node("Sub", "d", ["s", "x"], ["d"]), Node("Add", "a", ["d", "x"], ["y"])]
    steps = whole_chain(elementwise_graph(nodes, {}))
    assert isinstance(steps, Steps)
    assert steps.levels.levels == (-1, 0, 1)
    np.testing.assert_array_equal(steps.thresholds[0], [0.0, DENORMAL])
    np.testing.assert_array_equal(steps.values, [-1, 0, 1])


@pytest.mark.parametrize("slope", [1e-6, 1e-4])
def test_a_slope_is_not_rounding(slope: float) -> None:
    nodes = [
        Node("Sign", "s", ["x"], ["s"]),
        Node("Mul", "m", ["x", "slope"], ["m"]),
        Node("Add", "a", ["s", "m"], ["y"]),
    ]
    assert isinstance(whole_chain(elementwise_graph(nodes, {"slope": scalar(slope)})), str)


def test_a_value_beside_a_level_of_a_table_ends_the_search() -> None:
    """The quotient h / (|h| + 1e-12) nears +-1 in steps too small to be levels of their own."""
    nodes = [
        NORMALISE,
        Node("Abs", "s", ["h"], ["size"]),
        Node("Add", "a", ["size", "tiny"], ["sum"]),
        Node("Div", "d", ["h", "sum"], ["y"]),
    ]
    graph = elementwise_graph(nodes, {**batch_norm(4, 3), "tiny": scalar(1e-12)})
    chain = next(trace(graph, "y", stop=lambda name: False, through_pool=False))
    for read in (small_lattice, Table.read):
        assert float_steps(graph, chain, read) == "takes values off its lattice between the sampled points"


@pytest.mark.parametrize("op", ["Exp", "Reciprocal"])
def test_a_chain_that_overflows_near_or_at_zero_is_none(op: str) -> None:
    nodes = [
        Node(op, "e", ["x"], ["e"]),
        Node("Mul", "z", ["e", "zero"], ["n"]),
        Node("Sign", "s", ["x"], ["s"]),
        Node("Add", "a", ["n", "s"], ["y"]),
    ]
    assert whole_chain(elementwise_graph(nodes, {"zero": scalar(0)})) == "takes many values"


def test_constants_that_differ_within_a_map_end_the_chain() -> None:
    spatial = np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5)
    nodes = [
        NORMALISE,
        Node("Add", "a", ["h", "c"], ["i"]),
        Node("Sign", "s", ["i"], ["y"]),
    ]
    graph = elementwise_graph(nodes, {**batch_norm(4, 0), "c": spatial})
    assert [chain.root for chain in trace(graph, "y", stop=lambda name: False, through_pool=False)] == ["i"]


def accumulator(
    nodes: list[Node],
    constants: dict[str, Array],
    bound: int,
    channels: int = 4,
    sample: Array | None = None,
) -> tuple[Steps | str, Graph]:
    graph = elementwise_graph(nodes, constants)
    chain = next(trace(graph, "y", stop=lambda name: name == "x", through_pool=True))
    integers = np.arange(-bound, bound + 1) if sample is None else sample

    def root_at(at: Array) -> Array:
        return np.broadcast_to(at.astype(np.float32), (len(at), channels))

    return accumulator_steps(graph, chain, integers, 1, root_at), graph


def test_accumulator_thresholds_equal_float32_evaluation_everywhere() -> None:
    for seed in range(20):
        constants = batch_norm(4, seed)
        constants["m"] *= 20
        steps, graph = accumulator([NORMALISE, Node("Sign", "s", ["h"], ["y"])], constants, 64)
        assert isinstance(steps, Steps)
        integers = np.arange(-64, 65)
        count = (integers[:, None, None] >= steps.thresholds[None]).sum(axis=2)
        total = steps.thresholds.shape[1]
        index = np.where(steps.descending[None], total - count, count)
        expected = evaluate_chain(graph, steps.chain, np.repeat(integers.astype(np.float32)[:, None], 4, axis=1))[0]
        np.testing.assert_array_equal(np.asarray(steps.levels.levels)[index], expected)


def test_a_tie_at_zero_is_a_level_of_its_own_only_where_it_can_be_reached() -> None:
    constants = {"g": np.ones(4), "b": np.zeros(4), "m": np.asarray([0.0, 0.5, 0.5, 0.5]), "v": np.ones(4) - 1e-5}
    floats = {name: value.astype(np.float32) for name, value in constants.items()}
    nodes = [NORMALISE, Node("Sign", "s", ["h"], ["y"])]
    reached, _ = accumulator(nodes, floats, 9)
    assert isinstance(reached, Steps) and reached.levels.levels == (-1, 0, 1)
    floats["m"][0] = 0.5
    missed, _ = accumulator(nodes, floats, 9)
    assert isinstance(missed, Steps) and missed.levels.levels == (-1, 1)


def test_zero_gamma_is_a_constant_channel() -> None:
    constants = batch_norm(4, 1)
    constants["g"][2], constants["b"][2] = 0.0, 1.0
    steps, _ = accumulator([NORMALISE, Node("Sign", "s", ["h"], ["y"])], constants, 9)
    assert isinstance(steps, Steps)
    low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    assert set(steps.thresholds[2].tolist()) <= {low, high}


def test_max_pool_between_sums_and_batch_norm_turns_to_minimum_where_gamma_is_negative() -> None:
    constants = batch_norm(4, 5)
    nodes = [
        Node("Identity", "unused", ["x"], ["unused"]),
        Node("MaxPool", "p", ["x"], ["p"], {"kernel_shape": [2, 2]}),
        Node("BatchNormalization", "bn", ["p", "g", "b", "m", "v"], ["h"], {"epsilon": 1e-5}),
        Node("Sign", "s", ["h"], ["y"]),
    ]
    steps, _ = accumulator(nodes[1:], constants, 9)
    assert isinstance(steps, Steps)
    assert steps.chain.pool is not None
    np.testing.assert_array_equal(steps.take_min, constants["g"] < 0)


def test_steps_between_sampled_sums_are_those_of_all_sums() -> None:
    for seed in range(10):
        constants = batch_norm(4, seed) | {"low": scalar(0.0), "high": scalar(3.0)}
        constants["m"] *= 20
        nodes = [NORMALISE, Node("Clip", "c", ["h", "low", "high"], ["i"]), Node("Round", "r", ["i"], ["y"])]
        every, _ = accumulator(nodes, constants, 300)
        some, _ = accumulator(nodes, constants, 300, sample=np.asarray([-300, -250, *range(-8, 9), 77, 300]))
        assert isinstance(every, Steps) and isinstance(some, Steps)
        np.testing.assert_array_equal(some.thresholds, every.thresholds)
        np.testing.assert_array_equal(some.descending, every.descending)
