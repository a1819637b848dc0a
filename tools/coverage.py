"""Writes docs/coverage.md from a run of the ONNX node tests: python tools/coverage.py."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/converters"))

from onnx_backend import document, run_all  # noqa: E402

with tempfile.TemporaryDirectory() as folder:
    (ROOT / "docs/coverage.md").write_text(document(run_all(Path(folder))))
