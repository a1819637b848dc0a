"""Checks who may know what, over the files that git tracks or would track.

- Only C++ knows the bytes of a model file: no struct, no int.to_bytes or from_bytes in Python.
- The converters import onnx and onnxruntime, the engine never does; converters build through ModelWriter only.
- Only the training package imports torch, and nothing but the command line imports the training package.
- The core includes the standard library and itself; POSIX headers only in base/ and format/.
- Intrinsics headers appear only in csrc/kernels/*/<isa>.cc and benchmarks/kernels/limits/<isa>.cc.
- Sources are ASCII.

Run as a script: prints one line per offence and exits 1 if there is any.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

INTRINSICS = re.compile(r"(?:^|/)(?:\w*intrin|arm_neon|arm_sve|x86gprintrin|cpuid)\.h$")
CORE_LIBRARIES = ("pybind11/", "Python.h", "gtest/", "gmock/", "benchmark/")
# Standard headers have no slash and no extension; these few are what the operating system adds.
SYSTEM_HEADERS = re.compile(r"^(?:sys/\w+|fcntl|pthread|sched|unistd)\.h$")
CPU_QUERY = "csrc/base/cpu_features.cc"
TRAINING = "python/tac_engine/train/"
COMMAND_LINE = "python/tac_engine/cli.py"
ISA_FILES = ("avx2.cc", "avx512bw.cc", "avx512vnni.cc", "avx512.cc", "amx.cc", "neon.cc")
WRITER_NAMES = frozenset({"ModelWriter", "op_specs", "pack_bits"})
TEXT_SUFFIXES = frozenset({".cc", ".h", ".inc", ".def", ".py", ".pyi", ".sh", ".toml", ".cmake"})


def check_python(path: str, text: str) -> Iterator[str]:
    """Yield the offences of one Python file of the two packages."""
    in_engine = path.startswith("python/")
    in_training = path.startswith(TRAINING)
    if not in_engine and not path.startswith("converters/"):
        return
    for node in ast.walk(ast.parse(text, path)):
        modules: list[str] = []
        names: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            names = [alias.name for alias in node.names]
            if (node.level or modules[0] == "tac_engine") and "train" in names:
                modules.append("tac_engine.train")
        elif isinstance(node, ast.Attribute) and node.attr in {"to_bytes", "from_bytes"}:
            yield f"{path}:{node.lineno}: {node.attr}: only C++ knows the bytes of a model file"
        elif isinstance(node, ast.Attribute) and not in_engine:
            is_core = isinstance(node.value, ast.Name) and node.value.id == "_core"
            if is_core and node.attr not in WRITER_NAMES:
                yield f"{path}:{node.lineno}: converters reach into _core.{node.attr}"
        for module in modules:
            where = f"{path}:{node.lineno}"  # type: ignore[attr-defined]
            top = module.split(".")[0]
            if top == "struct":
                yield f"{where}: struct: only C++ knows the bytes of a model file"
            if in_training:
                continue
            if in_engine and top in {"onnx", "onnxruntime"}:
                yield f"{where}: the engine imports {top}; that belongs into converters/"
            if top == "torch":
                yield f"{where}: torch outside {TRAINING}"
            if "train" in module.split(".") and path != COMMAND_LINE:
                yield f"{where}: the engine and the converters do without the training package"
            if not in_engine and (module.endswith("._core") or module == "_core"):
                for name in sorted(set(names or ["*"]) - WRITER_NAMES):
                    yield f"{where}: converters reach into _core.{name}"


def check_cpp(path: str, text: str) -> Iterator[str]:
    """Yield the offences of one C++ file."""
    parts = PurePosixPath(path).parts
    in_core = parts[0] == "csrc" and parts[1] not in {"bindings", "reference"}
    is_kernel = parts[:2] == ("csrc", "kernels") or parts[:3] == ("benchmarks", "kernels", "limits")
    may_use_intrinsics = is_kernel and len(parts) == 4 and parts[3] in ISA_FILES
    for number, line in enumerate(text.splitlines(), 1):
        match = re.match(r'\s*#\s*include\s*(<[^>]+>|"[^"]+")', line)
        if not match:
            continue
        header = match[1][1:-1]
        where = f"{path}:{number}"
        if INTRINSICS.search(header):
            if not may_use_intrinsics and path != CPU_QUERY:
                yield f"{where}: {header} outside csrc/kernels/*/<isa>.cc"
        elif in_core and match[1][0] == "<":
            is_standard = re.fullmatch(r"[a-z_]+|(?:math|string|limits|float|std\w+)\.h", header) is not None
            is_system = SYSTEM_HEADERS.match(header) and parts[1] in {"base", "format"}
            if not is_standard and not is_system:
                yield f"{where}: the core includes {header}; it has the standard library only"
        elif in_core and header.startswith(CORE_LIBRARIES):
            yield f"{where}: the core includes {header}; it has the standard library only"


def check(path: str, text: str) -> Iterator[str]:
    """Yield the offences of one file, `path` relative to the repository with forward slashes."""
    suffix = PurePosixPath(path).suffix
    if suffix in TEXT_SUFFIXES:
        for number, line in enumerate(text.splitlines(), 1):
            if not line.isascii():
                yield f"{path}:{number}: not ASCII"
    if suffix == ".py":
        yield from check_python(path, text)
    elif suffix in {".cc", ".h"}:
        yield from check_cpp(path, text)


def source_files(root: Path) -> list[str]:
    """Return the files that git tracks, or would track if they were added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return sorted(set(done.stdout.splitlines()))


def offences(root: Path, paths: Iterable[str] | None = None) -> list[str]:
    """Return the offences of `paths`, or of the whole tree at `root`."""
    found: list[str] = []
    for path in source_files(root) if paths is None else paths:
        file = root / path
        if file.suffix in TEXT_SUFFIXES and file.is_file():
            found.extend(check(path, file.read_text(encoding="utf-8")))
    return found


def main() -> int:
    """Check the tree that this script stands in."""
    found = offences(Path(__file__).resolve().parent.parent)
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
