"""Writing files: whole or not at all, and only where a file is or will be."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx_models import floats, parse
from tac_engine.converters import convert
from tac_engine.converters.compress import compress_model
from tac_engine.converters.onnx_file import save_model

from tac_engine.errors import FormatError

WRITERS: list[Callable[[Path, Path], Any]] = [convert, compress_model]


def model() -> onnx.ModelProto:
    return parse("y = MatMul (x, w)", constants={"w": floats(4, 8)}, outputs="float[N, 8] y")


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"old")
    save_model(model(), target)
    assert onnx.load(target) == model()
    assert list(tmp_path.iterdir()) == [target]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "m.onnx"
    target.write_bytes(b"old")

    def write_half(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(FormatError, match=r"cannot write .*m\.onnx: No space left on device"):
        save_model(model(), target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("write", WRITERS, ids=["convert", "compress"])
def test_a_pipe_or_folder_is_not_replaced(write: Callable[[Path, Path], Any], tmp_path: Path) -> None:
    source, pipe = tmp_path / "m.onnx", tmp_path / "pipe"
    onnx.save(model(), source)
    os.mkfifo(pipe)
    with pytest.raises(FormatError, match="pipe: it is a pipe, socket or device, the name of a file is expected"):
        write(source, pipe)
    assert pipe.is_fifo()
    with pytest.raises(FormatError, match="it is a directory"):
        write(source, tmp_path)
