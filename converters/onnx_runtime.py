"""An ONNX model in ONNX Runtime, for `tac-engine bench --against`."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
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
        """Returns a function from inputs by name to outputs by name; a file with a fixed batch runs batch by batch.

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
        shapes = {source.name: source.shape for source in session.get_inputs()}
        halves = {source.name for source in session.get_inputs() if source.type == "tensor(float16)"}
        batches = {shape[0] for shape in shapes.values() if shape and isinstance(shape[0], int)}
        fixed = batches.pop() if len(batches) == 1 else None

        def run_once(feeds: dict[str, Array]) -> list[Array]:
            try:
                given = {name: x.astype(np.float16) if name in halves else x for name, x in feeds.items()}
                outputs: list[Array] = session.run(None, given)
            except Exception as error:
                raise InvalidInputError(f"{self._path}: ONNX Runtime does not run it: {_first_line(error)}") from None
            return outputs

        def run(feeds: dict[str, Array]) -> dict[str, Array]:
            if feeds.keys() != shapes.keys():
                raise InvalidInputError(
                    f"{self._path}: its inputs are {sorted(shapes)}, of the .tacbin {sorted(feeds)}: another model"
                )
            count = len(next(iter(feeds.values()), ()))
            if fixed is None or count == fixed:
                return dict(zip(names, run_once(feeds), strict=True))
            if count % fixed != 0:
                raise InvalidInputError(
                    f"{self._path}: its batch is fixed at {fixed}, {count} samples are no multiple of it"
                )
            pieces = [
                run_once({name: x[first : first + fixed] for name, x in feeds.items()})
                for first in range(0, count, fixed)
            ]
            return {name: np.concatenate(parts) for name, parts in zip(names, zip(*pieces, strict=True), strict=True)}

        return run


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
