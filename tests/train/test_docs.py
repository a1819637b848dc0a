"""What docs/training.md tells a user to type does work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import tac_engine
from tac_engine.cli import build_parser

TEXT = (Path(__file__).parents[2] / "docs/training.md").read_text(encoding="utf-8")


def test_commands_are_understood() -> None:
    commands = re.findall(r"^    (tac-engine [^#\n]*)", TEXT, re.MULTILINE)
    pieces = re.findall(r"^piece (--arch .*)$", TEXT, re.MULTILINE)
    (common,) = re.findall(r"piece\(\) { until (tac-engine train .*?) \"\$@\"", TEXT, re.DOTALL)
    commands += [f"{common} {piece}".replace("\\\n", "") for piece in pieces]
    assert len(commands) >= 5
    for command in commands:
        _, *arguments = shlex.split(command)
        assert build_parser().parse_args(arguments).arch


def test_layers_of_the_example_convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra [train]")
    pytest.importorskip("onnxscript", reason="needs the extra [train]")
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(12)
    names: dict[str, Any] = {}
    exec(code, names)
    kinds = [layer.kind for layer in tac_engine.convert("model.onnx", "model.tacbin").layers]
    assert (kinds.count("binary conv"), kinds.count("codebook linear")) == (1, 1)
