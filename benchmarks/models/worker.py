"""One contender in a process of its own: reads requests, answers each with a line of JSON (see bench_models.py).

Runs in the contender's Python environment, so it needs numpy and contenders.py alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from contenders import CONTENDERS, Array, Contender

CPUS = sorted(os.sched_getaffinity(0))
COLD_MS = 100  # a run as long as this gains nothing from another before it


def main() -> None:
    """Serve the contender named on the command line until standard input ends."""
    # Libraries print what they like: the answers have the real standard output to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder, network, name = sys.argv[1:]
    worker: Worker | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            worker = worker or Worker(CONTENDERS[name](Path(folder), network))
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # whatever a foreign library raises is the reason in the results
            answer = {"error": f"{type(error).__name__}: {error}".strip().split("\n")[0][:300]}
        print(json.dumps(answer), file=answers, flush=True)


class Worker:
    """The requests; every method is one."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.pictures: Array = np.empty(0)
        self.x: Array = np.empty(0)
        self.last_ms = 0.0

    def build(self) -> dict[str, Any]:
        # What is timed at the same time by somebody else is likely on the last CPUs, as it is here.
        pin(CPUS[:-1] or CPUS)
        self.contender.build()
        pin(CPUS)
        return {
            "version": self.contender.version(),
            "installed_bytes": self.contender.installed_bytes(),
            "import_ms": self.contender.import_ms,
            "file_bytes": self.contender.file.stat().st_size,
        }

    def prepare(self, pictures: str, batch: int, threads: int) -> dict[str, Any]:
        self.pictures = np.load(pictures)
        self.x = self.pictures[:batch]
        pin(CPUS)
        self.contender.prepare(batch if self.contender.batches else 1, threads)
        pin(CPUS[-threads:])
        return {"detail": self.contender.detail, **self.contender.facts(batch)}

    def answer(self, path: str, count: int) -> dict[str, Any]:
        """Save the logits of `count` pictures, computed in the batches that are timed."""
        timed, batch = self.x, len(self.x)
        answers = []
        for start in range(0, max(count, batch) - batch + 1, batch):
            self.x = self.pictures[start : start + batch]
            answers.append(self.run().reshape(batch, -1).copy())
        self.x = timed
        np.save(path, np.concatenate(answers))
        return {}

    def load(self, pictures: str, runs: int) -> dict[str, Any]:
        """Time the way from the file to the first answer."""
        x = np.load(pictures)[:1]
        pin(CPUS[-1:])
        before = resident_bytes()
        memory = 0
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            self.contender.prepare(1, 1)
            self.contender.run(x)
            times.append(1e3 * (time.perf_counter() - start))
            memory = memory or resident_bytes()
        return {"ms": times, "resident_bytes": memory, "added_bytes": memory - before}

    def time(self, ms: float) -> dict[str, Any]:
        """Time runs for about `ms`, one at least, with what they read in the caches as far as it fits."""
        if self.last_ms < COLD_MS:
            self.run()
        times: list[float] = []
        while sum(times) < ms:
            start = time.perf_counter()
            self.run()
            times.append(1e3 * (time.perf_counter() - start))
        self.last_ms = times[-1]
        return {"ms": times}

    def run(self) -> Array:
        if self.contender.batches:
            return self.contender.run(self.x)
        return np.concatenate([self.contender.run(self.x[i : i + 1]) for i in range(len(self.x))])


def pin(cpus: list[int]) -> None:
    """Keep every thread of this process on `cpus`."""
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # a thread that has ended meanwhile
            os.sched_setaffinity(int(task.name), cpus)


def resident_bytes() -> int:
    """Return what this process holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
