"""What a model costs on this machine: loading, memory, time per batch and threads, beside another engine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from .engine import load
from .errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .engine import Engine

Arrays = dict[str, "NDArray[Any]"]
Key = TypeVar("Key", bound=Hashable)

_TURNS = 10
_MIN_RUNS = 3
_LOADS = 5
# Threads of an engine spin a while before they sleep; on the CPUs that the next one wants.
_PAUSE_S = 0.02

_CHECKED = 16
# What float sums in another order may change. Where they move a sign, a sample differs by far more; the others tell.
_TOLERANCE = 1e-3


class Rival(Protocol):
    """Another engine with the same model; ``load`` returns what runs it."""

    name: str
    version: str

    def load(self, threads: int) -> Callable[[Arrays], Arrays]:
        """Return a function from inputs by name to outputs by name."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock times in milliseconds; `spread_ms` is the distance of the quartiles."""

    median_ms: float
    best_ms: float
    spread_ms: float
    runs: int

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Timing:
        """Summarise `times_ms`."""
        low, median, high = np.percentile(times_ms, [25, 50, 75])
        return cls(float(median), min(times_ms), float(high - low), len(times_ms))


@dataclass(frozen=True)
class Measurement:
    """One batch size and number of threads.

    Attributes:
        scaling: times as fast as with the fewest threads measured.
        rival: the other engine in the same run, None without one.
        speedup: times as fast as the rival, by medians.
    """

    batch: int
    threads: int
    timing: Timing
    samples_per_s: float
    peak_bytes: int
    scaling: float
    rival: Timing | None = None
    speedup: float | None = None


@dataclass(frozen=True)
class Answers:
    """How many of the compared samples agree; the largest difference is relative to the largest output."""

    samples: int
    agreeing: int
    max_rel_diff: float

    @property
    def ok(self) -> bool:
        """Most samples agree."""
        return 2 * self.agreeing >= self.samples


@dataclass(frozen=True)
class BenchReport:
    """Result of `bench`; ``str()`` is a table. Bytes are None where the system does not tell.

    Attributes:
        load: from the file, in the caches of the file system, to the first answer for one sample.
        resident_bytes: what the process holds after that.
        added_bytes: what of it came with the model.
        measurements: empty where the answers differ: a wrong answer is not timed.
    """

    model: str
    version: str
    backend: str
    cpu: str
    file_bytes: int
    load: Timing
    resident_bytes: int | None
    added_bytes: int | None
    rival: str | None
    answers: Answers | None
    measurements: tuple[Measurement, ...]

    @property
    def ok(self) -> bool:
        """Nothing to compare with, or the answers agree."""
        return self.answers is None or self.answers.ok

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data for ``json.dumps``."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        lines = [
            f"{self.model}: {self.file_bytes / 1e3:.1f} kB, tac_engine {self.version} ({self.backend}), {self.cpu}",
            f"file to first answer {self.load.median_ms:.2f} ms (best {self.load.best_ms:.2f})",
        ]
        if self.resident_bytes is not None and self.added_bytes is not None:
            lines[-1] += (
                f"; resident {self.resident_bytes / 1e6:.1f} MB, {self.added_bytes / 1e6:.1f} MB of it the model's"
            )
        if self.answers is not None:
            lines.append(
                f"{self.answers.agreeing} of {self.answers.samples} random samples agree with {self.rival}, "
                f"largest difference {self.answers.max_rel_diff:.2g} of the largest output"
            )
            if not self.ok:
                lines.append("the answers differ: nothing was timed; `tac-engine verify` says where they part")
        if self.measurements:
            lines += ["", *self._table()]
        return "\n".join(lines)

    def _table(self) -> list[str]:
        header = ["batch", "threads", "ms", "best", "quartiles", "runs", "samples/s", "scaling", "peak kB"]
        if self.rival is not None:
            header += [f"{self.rival}, ms", "speed-up"]
        rows = [header]
        for item in self.measurements:
            row = [
                str(item.batch),
                str(item.threads),
                f"{item.timing.median_ms:.3f}",
                f"{item.timing.best_ms:.3f}",
                f"{item.timing.spread_ms:.3f}",
                str(item.timing.runs),
                f"{item.samples_per_s:.1f}",
                f"{item.scaling:.2f}",
                f"{item.peak_bytes / 1e3:.1f}",
            ]
            if item.rival is not None and item.speedup is not None:
                row += [f"{item.rival.median_ms:.3f}", f"{item.speedup:.2f}"]
            rows.append(row)
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def bench(
    path: str | os.PathLike[str],
    *,
    batches: Sequence[int] = (1, 16),
    threads: Sequence[int] = (1,),
    backend: str | None = None,
    rival: Rival | None = None,
    seconds: float = 1.0,
    progress: Callable[[str, float], None] | None = None,
) -> BenchReport:
    """Measure the model in the file `path` on random inputs.

    Args:
        path: .tacbin file.
        batches: batch sizes to time.
        threads: numbers of threads to time.
        backend: as for ``load``.
        rival: another engine that runs the same model, turn and turn about; its answers are compared first.
        seconds: how long each engine runs for each batch and number of threads.
        progress: called with a stage and the share done.

    Raises:
        FormatError: the file cannot be read.
        InvalidInputError: an argument is out of range, or the rival cannot run the model.
    """
    report_progress = progress or (lambda stage, share: None)
    for name, values in (("batches", batches), ("threads", threads)):
        if not values or min(values) < 1:
            raise InvalidInputError(f"{name} must be one or more numbers of at least 1, got {list(values)}")
    if not 0.0 <= seconds < float("inf"):
        raise InvalidInputError(f"seconds must be 0 or more, got {seconds}")
    report_progress("loading", 0.0)
    np.random.default_rng(0)  # numpy loads this late: it is not the model's
    before = _resident_bytes()
    loading = [_load_and_answer(path, backend)]
    resident = _resident_bytes()
    loading += [_load_and_answer(path, backend) for _ in range(_LOADS - 1)]
    engine = load(path, threads=threads[0], backend=backend)
    answers = None
    if rival is not None:
        report_progress(f"comparing with {rival.name}", 0.0)
        answers = _compare(engine, rival.load(threads[0]))
    measurements: list[Measurement] = []
    if answers is None or answers.ok:
        for done, (count, batch) in enumerate((count, batch) for count in threads for batch in batches):
            report_progress(f"batch {batch}, threads {count}", done / (len(threads) * len(batches)))
            measurements.append(_measure(load(path, threads=count, backend=backend), rival, batch, seconds))
    return BenchReport(
        model=os.fspath(path),
        version=_version(),
        backend=engine.backend,
        cpu=cpu_name(),
        file_bytes=engine.file_bytes,
        load=Timing.of(loading),
        resident_bytes=resident,
        added_bytes=None if resident is None or before is None else max(0, resident - before),
        rival=None if rival is None else f"{rival.name} {rival.version}",
        answers=answers,
        measurements=_with_scaling(measurements),
    )


def interleave(
    functions: Mapping[Key, Callable[[], object]], seconds: float, *, pause: float = 0.0
) -> dict[Key, list[float]]:
    """Run `functions` in turn until each took `seconds`; return their times in milliseconds.

    In turn, so that whatever happens to the machine happens to all. Every turn starts with a run that is not timed.
    """
    times: dict[Key, list[float]] = {key: [] for key in functions}
    for turn in range(1, _TURNS + 1):
        for key, function in functions.items():
            if pause:
                time.sleep(pause)
            function()
            taken = times[key]
            while sum(taken) < 1e3 * seconds * turn / _TURNS or len(taken) < _MIN_RUNS:
                start = time.perf_counter()
                function()
                taken.append(1e3 * (time.perf_counter() - start))
    return times


def cpu_name() -> str:
    """Return what the operating system calls the CPU."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version() -> str:
    from . import __version__

    return __version__


def _inputs(engine: Engine, batch: int) -> Arrays:
    random = np.random.default_rng(0)
    return {
        spec.name: random.standard_normal((batch, *(dim or 1 for dim in spec.shape[1:])), np.float32)
        for spec in engine.inputs
    }


def _load_and_answer(path: str | os.PathLike[str], backend: str | None) -> float:
    start = time.perf_counter()
    engine = load(path, backend=backend)
    loaded = time.perf_counter()
    x = _inputs(engine, 1)
    made = time.perf_counter()
    engine.run(x)
    return 1e3 * (time.perf_counter() - made + loaded - start)


def _compare(engine: Engine, other: Callable[[Arrays], Arrays]) -> Answers:
    x = _inputs(engine, _CHECKED)
    ours, theirs = engine.run(x), other(x)
    agrees = np.ones(_CHECKED, bool)
    largest = 0.0
    for name, values in ours.items():
        if name not in theirs or theirs[name].shape != values.shape:
            raise InvalidInputError(f"the ONNX model has no output '{name}' of shape {list(values.shape)}")
        a, b = (np.asarray(array, np.float64).reshape(_CHECKED, -1) for array in (values, theirs[name]))
        difference = np.where(a == b, 0.0, np.abs(a - b)).max(axis=1) / max(float(np.abs(b).max()), 1e-30)
        agrees &= difference <= _TOLERANCE
        largest = float(np.maximum(largest, difference.max()))  # NaN wins
    return Answers(_CHECKED, int(agrees.sum()), largest)


def _measure(engine: Engine, rival: Rival | None, batch: int, seconds: float) -> Measurement:
    x = _inputs(engine, batch)
    functions: dict[str, Callable[[], object]] = {"engine": lambda: engine.run(x)}
    if rival is not None:
        other = rival.load(engine.threads)
        functions["rival"] = lambda: other(x)
    pause = _PAUSE_S if rival is not None and engine.threads > 1 else 0.0
    times = {key: Timing.of(taken) for key, taken in interleave(functions, seconds, pause=pause).items()}
    ours, theirs = times["engine"], times.get("rival")
    return Measurement(
        batch=batch,
        threads=engine.threads,
        timing=ours,
        samples_per_s=1e3 * batch / ours.median_ms,
        peak_bytes=engine.peak_bytes(batch),
        scaling=1.0,
        rival=theirs,
        speedup=None if theirs is None else theirs.median_ms / ours.median_ms,
    )


def _with_scaling(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    fewest = {
        item.batch: item.timing.median_ms for item in sorted(measurements, key=lambda item: item.threads, reverse=True)
    }
    return tuple(
        Measurement(**{**item.__dict__, "scaling": fewest[item.batch] / item.timing.median_ms}) for item in measurements
    )


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
