"""The tree keeps its layers, and each rule of the check bites."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("check_layering", ROOT / "tools/check_layering.py")
assert _spec is not None
assert _spec.loader is not None
check_layering = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_layering)


def test_tree_keeps_its_layers() -> None:
    paths = [
        path.relative_to(ROOT).as_posix()
        for top in ("csrc", "python", "converters", "tests/cpp", "tools")
        for path in (ROOT / top).rglob("*")
    ]
    assert sum(path.endswith(".cc") for path in paths) > 10
    assert sum(path.endswith(".py") for path in paths) > 10
    assert check_layering.offences(ROOT, paths) == []


@pytest.mark.parametrize(
    ("path", "text", "reason"),
    [
        ("converters/a.py", "import struct\n", "only C++ knows"),
        ("python/tac_engine/a.py", "from struct import pack\n", "only C++ knows"),
        ("converters/a.py", "x = (5).to_bytes(4, 'little')\n", "only C++ knows"),
        ("python/tac_engine/a.py", "import onnx\n", "engine imports onnx"),
        ("python/tac_engine/a.py", "import onnxruntime\n", "engine imports onnxruntime"),
        (
            "python/tac_engine/a.py",
            "def f():\n    from onnx import helper\n",
            "engine imports onnx",
        ),
        ("converters/a.py", "from tac_engine._core import Engine\n", "reach into _core.Engine"),
        (
            "converters/a.py",
            "from .. import _core\n_core.inspect('x')\n",
            "reach into _core.inspect",
        ),
        ("converters/a.py", "import tac_engine._core\n", "reach into _core"),
        ("converters/a.py", "import torch\n", "torch outside python/tac_engine/train/"),
        ("python/tac_engine/a.py", "def f():\n    import torch.nn\n", "torch outside python/tac_engine/train/"),
        ("python/tac_engine/cli.py", "import torch\n", "torch outside python/tac_engine/train/"),
        ("python/tac_engine/a.py", "from .train import bake\n", "without the training package"),
        ("python/tac_engine/a.py", "from . import train\n", "without the training package"),
        ("converters/a.py", "from tac_engine.train.data import load\n", "without the training package"),
        ("python/tac_engine/train/a.py", "import struct\n", "only C++ knows"),
        ("csrc/runtime/a.cc", "#include <immintrin.h>\n", "outside csrc/kernels"),
        ("csrc/kernels/pool/scalar.cc", "#include <arm_neon.h>\n", "outside csrc/kernels"),
        ("csrc/kernels/avx2.cc", "#include <immintrin.h>\n", "outside csrc/kernels"),
        ("benchmarks/kernels/avx2.cc", "#include <immintrin.h>\n", "outside csrc/kernels"),
        ("csrc/runtime/a.cc", "#include <pybind11/pybind11.h>\n", "standard library only"),
        ("csrc/runtime/a.cc", '#include "pybind11/pybind11.h"\n', "standard library only"),
        ("csrc/ir/a.h", "#include <sys/mman.h>\n", "standard library only"),
        ("csrc/ir/a.h", "// 1 \u00b1 2\n", "not ASCII"),
    ],
)
def test_offence_is_found(path: str, text: str, reason: str) -> None:
    found = list(check_layering.check(path, text))
    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("converters/a.py", "import onnx\nfrom tac_engine._core import ModelWriter\n"),
        ("python/tac_engine/a.py", "from ._core import Engine\n"),
        ("python/tac_engine/train/a.py", "import onnx\nimport torch\nfrom .layers import BinaryConv2d\n"),
        ("python/tac_engine/cli.py", "def f():\n    from .train.recipe import Recipe\n"),
        ("csrc/kernels/pool/avx2.cc", "#include <immintrin.h>\n"),
        ("benchmarks/kernels/limits/avx2.cc", "#include <immintrin.h>\n"),
        ("csrc/format/reader.cc", '#include <sys/mman.h>\n#include <vector>\n#include "a.h"\n'),
        ("csrc/bindings/module.cc", "#include <pybind11/pybind11.h>\n"),
        ("docs/a.md", "1 \u00b1 2\n"),
    ],
)
def test_what_is_allowed_passes(path: str, text: str) -> None:
    assert list(check_layering.check(path, text)) == []
