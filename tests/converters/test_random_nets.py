"""Random small networks: whatever is converted gives on every backend what the ONNX model says."""

from __future__ import annotations

import traceback
from pathlib import Path

import numpy as np
import pytest
from nets import Array, save
from random_nets import Conv, Description, Linear, Move, Pool, Quantize, Weights, build, draw, shrink
from tac_engine.converters.evaluate import ReferenceModel
from tac_engine.converters.verify import compare

import tac_engine

SEEDS = 1000
BLOCK = 50


class Evaluated:
    """A reference model's values for one batch, computed once."""

    fixed_batch = None

    def __init__(self, reference: ReferenceModel, x: Array) -> None:
        self.outputs = reference.outputs
        self.values = reference.run({"x": x}, intermediates=True)
        self.recompute = reference.recompute
        self.exact_sums = reference.exact_sums

    def run(self, feeds: object, **options: object) -> dict[str, Array]:
        return self.values


def check_description(description: Description, folder: Path) -> None:
    model, x = build(description)
    target = folder / "model.tacbin"
    precisions = {"fc_precision": description.fc_precision, "conv_precision": description.conv_precision}
    tac_engine.convert(save(model, folder), target, **precisions)
    expected = Evaluated(ReferenceModel(model), x)
    for backend in tac_engine.backends()["runnable"]:
        engine = tac_engine.load(target, backend=backend)
        outputs, layers, flips = compare(expected, engine, {"x": x})
        text = "\n".join(map(str, [*outputs, *layers]))
        assert all(output.ok for output in outputs), f"{backend}: {flips} rounding flips\n{text}"
        assert all(layer.ok for layer in layers), f"{backend}: {flips} rounding flips\n{text}"
        whole = engine.run({"x": x})
        threaded = tac_engine.load(target, threads=2, backend=backend).run({"x": x})
        single = engine.run({"x": x[:1]})
        for name, value in whole.items():
            np.testing.assert_array_equal(threaded[name], value, err_msg=f"{backend}, two threads")
            np.testing.assert_array_equal(single[name], value[:1], err_msg=f"{backend}, a batch of one")


def fails(description: Description, folder: Path) -> str:
    """What is wrong with what becomes of a description, or ""."""
    try:
        check_description(description, folder)
    except Exception as error:
        return "".join(traceback.format_exception_only(error)).strip()
    return ""


def test_thresholds_are_the_floats_that_the_engine_gives(tmp_path: Path) -> None:
    """The scale of the sums, weight scale times 0.3, rounds: where floats and bits are wanted, they must agree."""
    block = (Quantize("Quant signed 3 bits"), Conv(16, (2, 2), weights=Weights("+-1", "any")), Move("output"))
    for seed in range(20):
        check_description(Description((32, 4, 4), (*block, Quantize("Sign"), Conv(8)), seed=seed), tmp_path)


def test_quantizer_in_front_of_a_pool_is_not_taken_for_what_lies_behind(tmp_path: Path) -> None:
    steps = (Quantize("Sign"), Conv(), Pool(kernel=(1, 2)), Move("output"), Quantize("Cast"))
    check_description(Description((1, 1, 2), steps), tmp_path)


def test_layers_are_compared_in_the_layout_they_have_behind_a_transpose(tmp_path: Path) -> None:
    steps = (Quantize(), Conv(2), Move("layout"), Quantize("x >= 0"), Pool(), Conv())
    check_description(Description((2, 1, 2), steps, seed=184), tmp_path)


def test_a_graph_that_is_analysed_twice_is_packed_once(tmp_path: Path) -> None:
    """Half of the signs are packed anew for the last layer; the first becomes an integer sum in float arithmetic."""
    steps = (Quantize("Quant signed 2 bits"), Move("layout"), Linear(33), Quantize(), Move("half"), Linear())
    check_description(Description((4, 4, 2), steps, seed=20455), tmp_path)


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_random_networks(first: int, tmp_path: Path) -> None:
    """``draw(seed)`` for BLOCK seeds; the first that fails is shrunk."""
    for seed in range(first, first + BLOCK):
        description = draw(seed)
        if fails(description, tmp_path):
            small = shrink(description, lambda smaller: bool(fails(smaller, tmp_path)))
            pytest.fail(f"seed {seed}, shrunk to {small}:\n{fails(small, tmp_path)}")
