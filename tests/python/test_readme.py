"""What README.md tells a new user to type does work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    (tmp_path / "models").symlink_to(ROOT / "models")
    return tmp_path


def test_python_quick_start_runs(workplace: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=workplace, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "binary conv" in done.stdout
    assert "GMAC/s" in done.stdout


def test_command_lines_run_in_order(workplace: Path) -> None:
    lines = re.findall(r"^    tac-engine (.*)$", TEXT, re.MULTILINE)
    assert [line.split()[0] for line in lines] == [
        "convert",
        "run",
        "inspect",
        "verify",
        "profile",
        "bench",
        "backends",
    ]
    for line in lines:
        command = [sys.executable, "-m", "tac_engine", *shlex.split(line)]
        done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert done.stdout


def test_the_systems_are_those_of_the_tested_ones() -> None:
    """The README's table is that of docs/systems.md, whose rows are tests."""
    header = "| weights x activations | systems | become |"
    page = (ROOT / "docs/systems.md").read_text(encoding="utf-8")
    summary, detailed = page.split("## What each system becomes")
    short, shown = (text[text.index(header) :].split("\n\n")[0].splitlines() for text in (summary, TEXT))
    assert shown == short
    named = [name for line in shown[2:] for name in line.split("|")[2].strip().split(", ")]
    tested = [line.split("|")[1].strip() for line in detailed.splitlines() if "arxiv.org" in line or "CVPR" in line]
    assert len(tested) >= 20
    for row in tested:
        assert any(row.startswith(name) for name in named), f"the README does not name {row}"
    for name in named:
        assert any(name in row for row in tested), f"no row of docs/systems.md is about {name}"
