"""Loading and running models."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from . import _core
from .errors import InvalidInputError
from .profile import Profile

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: as in the ONNX model.
        dtype: "float32", or "int64" for an ArgMax output.
        shape: None for the batch axis, always the first; the other sizes are fixed.
        image_shape: (height, width, channels) of the uint8 images that an input also takes, or None.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    image_shape: tuple[int, int, int] | None = None


class Backends(TypedDict):
    """Names of kernel sets, best first, and the one that an Engine would use now."""

    compiled: list[str]
    runnable: list[str]
    active: str


def backends() -> Backends:
    """Return which kernel sets are compiled in, which this CPU runs, and which is used by default.

    Raises:
        InvalidInputError: the environment variable TAC_BACKEND names one that cannot run here.
    """
    found = _core.backends()
    return Backends(compiled=found["compiled"], runnable=found["runnable"], active=found["active"])


def load(path: str | os.PathLike[str], threads: int = 1, backend: str | None = None) -> Engine:
    """Load a ``.tacbin`` file.

    Args:
        path: the file. It is not needed any more once it is loaded.
        threads: how many threads a run uses, 1..1024, that of the caller included. Results do not
            depend on it.
        backend: "amx", "avx512", "avx512vnni", "avx512bw", "avx2" or "scalar". None: what the
            environment variable TAC_BACKEND names, or else the best one that this CPU runs.

    Raises:
        FormatError: the file cannot be read, or is damaged.
        InvalidInputError: `threads` is out of range, or the backend cannot run here.
    """
    return Engine(path, threads, backend)


class Engine:
    """A loaded model; see :func:`load` for the arguments.

    Any number of Python threads may use one Engine at once. The GIL is released while it runs.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1, backend: str | None = None) -> None:
        self._path = os.fspath(path)
        if backend == "":
            raise InvalidInputError("backend is '', expected a name or None")
        self._core = _core.Engine(self._path, operator.index(threads), backend or "")
        self._inputs = tuple(_spec(*spec) for spec in self._core.inputs)
        self._outputs = tuple(_spec(*spec) for spec in self._core.outputs)
        self._output_dims = [dims for _, _, dims, _ in self._core.outputs]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""
        return self._outputs

    @property
    def backend(self) -> str:
        """Name of the kernel set in use."""
        return self._core.backend

    @property
    def threads(self) -> int:
        """How many threads a run uses."""
        return self._core.threads

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return self._core.file_bytes

    @property
    def metadata(self) -> str:
        """What the converter noted in the file: JSON, or empty."""
        return self._core.metadata

    def peak_bytes(self, batch: int = 1) -> int:
        """Return the bytes that hold the parameters and one run of `batch` samples.

        A large batch is run in parts, so the figure stops growing at some batch size. Pruned codebook layers have
        their weights in a second form for batches; asking for such a batch makes it, as its first run does, and the
        engine keeps it. The figure for a batch that does not use it leaves it out.

        Raises:
            InvalidInputError: `batch` is negative, too large for the address space, or memory does not suffice.
        """
        n_samples = operator.index(batch)
        if n_samples < 0:
            raise InvalidInputError(f"batch is {n_samples}, expected 0 or more")
        try:
            return self._core.peak_bytes(n_samples)
        except TypeError:
            raise InvalidInputError(f"batch is {n_samples}, which is too large") from None

    def run(
        self,
        x: NDArray[Any] | Mapping[str, NDArray[Any]],
        out: NDArray[Any] | Mapping[str, NDArray[Any]] | None = None,
    ) -> Any:
        """Run a batch.

        Args:
            x: the input of a model with one input, or a dict of all inputs by name. Each is a
                C-contiguous float32 array of the stated shape [N, ...], N >= 0 being the same for
                all. Where the model has a preprocessing (``inputs[i].image_shape``), an input may
                also be uint8 images [N, H, W, C], or one image [H, W, C], which is a batch of 1.
            out: where to write: an array for a model with one output, or a dict of all outputs by
                name. C-contiguous arrays of exactly the outputs' shapes and dtypes that overlap no
                other array. Nothing is allocated then for a batch size seen before.

        Returns:
            The output [N, ...]; the batch axis is there even for a single image. A dict by name
            if `x` is a dict or the model has several outputs. `out` itself if it is given.

        Raises:
            InvalidInputError: an array is not as stated, or an input holds a NaN.
        """
        arrays, n_samples = self._input_arrays(x)
        if out is None:
            results = [
                np.empty((n_samples, *dims), spec.dtype)
                for spec, dims in zip(self._outputs, self._output_dims, strict=True)
            ]
        else:
            results = self._output_arrays(out, n_samples)
        self._core.run(arrays, results, n_samples)
        if out is not None:
            return out
        if len(results) == 1 and not isinstance(x, Mapping):
            return results[0]
        return {spec.name: result for spec, result in zip(self._outputs, results, strict=True)}

    def profile(self, x: NDArray[Any] | Mapping[str, NDArray[Any]], runs: int = 20) -> Profile:
        """Time every layer.

        Args:
            x: as for :meth:`run`, at least one sample.
            runs: how many runs to take the median of, at least 1.

        Raises:
            InvalidInputError: as for :meth:`run`, or the batch is empty, or `runs` is less than 1.
        """
        n_runs = operator.index(runs)
        if n_runs < 1:
            raise InvalidInputError(f"runs is {n_runs}, expected at least 1")
        arrays, n_samples = self._input_arrays(x)
        rows = self._core.profile(arrays, n_samples, n_runs)
        return Profile.from_rows(rows, backend=self.backend, threads=self.threads, batch=n_samples, runs=n_runs)

    def intermediates(self, x: NDArray[Any] | Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return every tensor that the model computes, by name, for looking into it.

        The file is read again, and all tensors are held at once. A packed tensor is given by its levels (-1 and +1,
        say) in float32. Images have the layout that the engine uses, [N, H, W, C].

        Raises:
            FormatError: the file cannot be read any more.
            InvalidInputError: as for :meth:`run`.
        """
        arrays, n_samples = self._input_arrays(x)
        return _core.run_intermediates(self._path, arrays, n_samples, self.threads, self.backend)

    def __repr__(self) -> str:
        def text(specs: tuple[TensorSpec, ...]) -> str:
            return ", ".join(
                f"{spec.name}: {spec.dtype}[{', '.join(['N', *map(str, spec.shape[1:])])}]" for spec in specs
            )

        return (
            f"<tac_engine.Engine {os.fsdecode(self._path)!r} ({text(self._inputs)}) -> "
            f"({text(self._outputs)}), backend {self.backend}, threads {self.threads}>"
        )

    def _input_arrays(self, x: NDArray[Any] | Mapping[str, NDArray[Any]]) -> tuple[list[NDArray[Any]], int]:
        given = _by_name(x, self._inputs, "input")
        arrays = []
        n_samples = None
        for spec, array in zip(self._inputs, given, strict=True):
            where = f"input '{spec.name}'"
            _check_is_array(array, where)
            if array.dtype == np.uint8 and spec.image_shape is not None:
                if array.ndim == 3:
                    array = array[np.newaxis]
                hint = "; uint8 is for pictures, channels last" if array.shape[1:] == spec.shape[1:] else ""
                _check_shape(array, (None, *spec.image_shape), f"{where}, as images", hint)
            else:
                if array.dtype != np.float32:
                    raise InvalidInputError(_dtype_message(where, array, spec))
                is_image = spec.image_shape is not None and array.shape[-3:] == spec.image_shape
                _check_shape(array, spec.shape, where, "; pictures, channels last, are uint8" if is_image else "")
            _check_layout(array, where)
            if n_samples is None:
                n_samples = len(array)
            elif n_samples != len(array):
                raise InvalidInputError(
                    f"{where}: expected a batch of {n_samples} like input '{self._inputs[0].name}', found {len(array)}"
                )
            arrays.append(array)
        assert n_samples is not None  # a model has at least one input
        return arrays, n_samples

    def _output_arrays(self, out: NDArray[Any] | Mapping[str, NDArray[Any]], n_samples: int) -> list[NDArray[Any]]:
        arrays = _by_name(out, self._outputs, "output")
        for spec, array in zip(self._outputs, arrays, strict=True):
            where = f"output '{spec.name}'"
            _check_is_array(array, where)
            if array.dtype != spec.dtype:
                raise InvalidInputError(f"{where}: expected dtype {spec.dtype}, found {array.dtype}")
            _check_shape(array, (n_samples, *spec.shape[1:]), where)
            if not array.flags.writeable:
                raise InvalidInputError(f"{where}: expected a writable array, found a read-only one")
            if not (array.flags.c_contiguous and array.flags.aligned):
                raise InvalidInputError(f"{where}: expected a C-contiguous array, found strides {array.strides}")
        return arrays


def _spec(name: str, dtype: str, dims: tuple[int, ...], image: tuple[int, int, int] | None) -> TensorSpec:
    return TensorSpec(name, dtype, (None, *dims), image)


def _by_name(
    given: NDArray[Any] | Mapping[str, NDArray[Any]], specs: tuple[TensorSpec, ...], kind: str
) -> list[NDArray[Any]]:
    """Put one array, or a dict of them, into the order of `specs`."""
    names = [spec.name for spec in specs]
    listed = ", ".join(f"'{name}'" for name in names)
    if not isinstance(given, Mapping):
        if len(specs) != 1:
            raise InvalidInputError(
                f"the model has {len(specs)} {kind}s: expected a dict with {listed}, found {type(given).__name__}"
            )
        return [given]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise InvalidInputError(f"no {kind} is named {unknown[0]!r}: expected {listed}")
    missing = [name for name in names if name not in given]
    if missing:
        raise InvalidInputError(f"{kind} '{missing[0]}' is missing: expected {listed}")
    return [given[name] for name in names]


def _check_is_array(array: object, where: str) -> None:
    if not isinstance(array, np.ndarray):
        raise InvalidInputError(f"{where}: expected a numpy array, found {type(array).__name__}")


def _dtype_message(where: str, array: NDArray[Any], spec: TensorSpec) -> str:
    expected = "float32" if spec.image_shape is None else "float32 or uint8 (images)"
    message = f"{where}: expected dtype {expected}, found {array.dtype}"
    if array.dtype == np.uint8:
        return message + "; the model was converted without a preprocessing for images (mean, std or scale)"
    return message + "; pass x.astype(numpy.float32)"


def _check_shape(array: NDArray[Any], shape: tuple[int | None, ...], where: str, hint: str = "") -> None:
    if array.ndim == len(shape) and all(
        size is None or size == found for size, found in zip(shape, array.shape, strict=True)
    ):
        return
    expected = ", ".join("N" if size is None else str(size) for size in shape)
    found = ", ".join(map(str, array.shape))
    if array.shape == shape[1:]:
        hint = "; the batch axis is missing, pass x[numpy.newaxis]"
    raise InvalidInputError(f"{where}: expected shape [{expected}], found [{found}]{hint}")


def _check_layout(array: NDArray[Any], where: str) -> None:
    if not (array.flags.c_contiguous and array.flags.aligned):
        raise InvalidInputError(
            f"{where}: expected a C-contiguous array, found strides {array.strides} for shape "
            f"{array.shape}; pass numpy.ascontiguousarray(x)"
        )
