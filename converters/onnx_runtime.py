"""An ONNX model in ONNX Runtime, for `tac-engine bench --against`."""

from __future__ import annotations

import os
from collections.abc import Callable

import onnxruntime

from ..errors import FormatError, InvalidInputError
from .graph import Array


class OnnxRuntimeModel:
    """The float32 model as ONNX Runtime's CPU kernels run it."""

    name = "onnxruntime"
    version: str = onnxruntime.__version__

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)

    def load(self, threads: int) -> Callable[[dict[str, Array]], dict[str, Array]]:
        """Returns a function from inputs by name to outputs by name.

        Raises:
            FormatError: ONNX Runtime does not take the file.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what is wrong comes as an exception
        try:
            session = onnxruntime.InferenceSession(self._path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own exceptions share no other base
            raise FormatError(f"{self._path}: ONNX Runtime does not load it: {_first_line(error)}") from None
        names = [output.name for output in session.get_outputs()]

        def run(feeds: dict[str, Array]) -> dict[str, Array]:
            try:
                return dict(zip(names, session.run(None, feeds), strict=True))
            except Exception as error:
                raise InvalidInputError(f"{self._path}: ONNX Runtime does not run it: {_first_line(error)}") from None

        return run


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
