"""The table of several runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tac_engine import _core
from tac_engine.train.recipe import Recipe
from tac_engine.train.table import main


def write_run(folder: Path, accuracy: float, first: str = "float FC", **recipe: Any) -> str:
    folder.mkdir()
    card = {
        "recipe": Recipe("vgg9a", **recipe).to_json(),
        "data": {"name": "CIFAR-10", "sha256": "0"},
        "stages": [{"name": first, "test_accuracy": accuracy + 1}, {"name": "last", "test_accuracy": accuracy}],
        "tacbin_test_accuracy": accuracy,
        "tacbin_bytes": 2500,
        "float32_bytes": 56000,
    }
    (folder / "model_card.json").write_text(json.dumps(card))
    writer = _core.ModelWriter()
    x, y = writer.add_tensor("x", [2]), writer.add_tensor("y", [2])
    writer.add_input(x, None, True)
    fields = {"weights": np.ones(4, np.float32), "bias": np.zeros(2, np.float32)}
    writer.add_op("linear", {"input": x, "output": y, **fields}, "fc")
    writer.add_output(y)
    writer.save(folder / "model.tacbin")
    return str(folder)


def test_seeds_share_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        write_run(tmp_path / "a", 90.0, seed=1),
        write_run(tmp_path / "b", 85.0, "binary", variant="binary", width=0.5),
        write_run(tmp_path / "c", 91.0, seed=2),
        write_run(tmp_path / "d", 88.0, "pruned 20 %", single_step=True),
    ]
    assert main([*runs, "--seconds", "0.01"]) == 0
    header, rule, *rows = [line.strip("|").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert len(header) == len(rule) == 7
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[:6] for row in cells] == [
        [
            "vgg9a, TAC, 100 epochs, CIFAR-10",
            "1, 2",
            "91.50 % (91.00 to 92.00)",
            "90.50 % (90.00 to 91.00)",
            "2.5",
            "56.0",
        ],
        ["vgg9a x 0.5, fully binary, 100 epochs, CIFAR-10", "1", "", "85.00 %", "2.5", "56.0"],
        ["vgg9a, TAC in a single step, 100 epochs, CIFAR-10", "1", "", "88.00 %", "2.5", "56.0"],
    ]
    assert all(float(row[6]) > 0 for row in cells)


def test_a_run_is_not_counted_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write_run(tmp_path / "a", 90.0), write_run(tmp_path / "b", 91.0), "--seconds", "0.01"]) == 2
    assert "are one run twice" in capsys.readouterr().err


def test_runs_that_are_not_finished_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no model_card.json, so no finished run" in capsys.readouterr().err
    (tmp_path / "model_card.json").write_text('{"recipe": {"arch": "vgg9a"}}')
    assert main([str(tmp_path)]) == 2
