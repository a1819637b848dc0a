"""Recipes: stages, learning rates, what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tac_engine.errors import InvalidInputError
from tac_engine.train.recipe import PRUNE_RATES, Recipe, Stage


def test_tac_is_two_steps() -> None:
    first, *pruned, shared = Recipe("vgg9a", epochs=50, compress_epochs=3).stages()
    assert (first.epochs, first.frozen, first.prune, first.share) == (50, False, None, False)
    assert [stage.prune for stage in pruned] == [0.2, 0.4, 0.6, 0.7, 0.75]
    assert shared.share
    assert all(stage.frozen and stage.epochs == 3 for stage in (*pruned, shared))


@pytest.mark.parametrize("variant", ["step1", "binary", "float"])
def test_other_variants_are_one_stage(variant: str) -> None:
    (stage,) = Recipe("vgg9a", variant, epochs=7).stages()
    assert (stage.epochs, stage.frozen, stage.prune, stage.share) == (7, False, None, False)


@pytest.mark.parametrize(("epochs", "each"), [(50, 2), (3, 1), (1, 1)])
def test_control_trains_everything_for_as_long_in_one_schedule(epochs: int, each: int) -> None:
    stages = Recipe("vgg9a", single_step=True, epochs=epochs, compress_epochs=each).stages()
    total = epochs + 6 * each
    assert sum(stage.epochs for stage in stages) == total
    assert {stage.span for stage in stages} == {total}
    assert [stage.begin for stage in stages] == [sum(s.epochs for s in stages[:i]) for i in range(len(stages))]
    assert not any(stage.frozen for stage in stages)
    assert stages[-1].share
    assert stages[-2].prune == PRUNE_RATES[-1]
    # One curve: where a stage ends, the next begins.
    for one, other in pairwise(stages):
        assert one.learning_rate(one.epochs) == pytest.approx(other.learning_rate(0))


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    stage = Stage("s", 10, 0.1, span=10, warmup=2)
    assert [round(stage.learning_rate(at), 6) for at in (0, 1, 2, 6, 10)] == [0.0, 0.05, 0.1, 0.05, 0.0]


def test_defaults_follow_the_optimizer() -> None:
    assert (Recipe("vgg9a").lr, Recipe("vgg9a", optimizer="sgd").lr) == (2e-3, 0.1)
    assert Recipe("vgg9a", lr=0.5).lr == 0.5


def test_recipe_goes_through_json() -> None:
    recipe = Recipe("alexnet", "binary", width=0.5, flip=False)
    assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "vgg"}, "'vgg'; there are vgg9a, vgg9b"),
        ({"variant": "ternary"}, "'ternary'; there are tac, step1, binary, float"),
        ({"optimizer": "lion"}, "'lion'; there are adam, sgd"),
        ({"precision": "float16"}, "'float16'; there are float32, bfloat16"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"centroids": 17}, "centroids must be at most 16, got 17"),
        ({"prune_rates": (0.4, 0.2)}, r"rise within \(0, 1\), got 0.4, 0.2"),
        ({"prune_rates": (0.4, 1.0)}, r"rise within \(0, 1\), got 0.4, 1.0"),
        ({"width": 0.0}, "width must be positive, got 0.0"),
        ({"crop": -1}, "crop must not be negative, got -1"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"single_step": True, "variant": "float"}, "single_step compresses FC layers, which variant 'float' does not"),
    ],
)
def test_bad_recipes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Recipe(**{"arch": "vgg9a", **options})
