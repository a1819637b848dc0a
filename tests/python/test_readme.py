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
