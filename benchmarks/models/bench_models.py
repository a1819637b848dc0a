"""Times the networks of networks.py in tac_engine and in every engine that a user could pick instead.

    python bench_models.py --out results.json [--larq-python PYTHON] [--networks NAME ...] [--contenders NAME ...]
    python bench_models.py --out layers.json --layers

Contenders run in turn, each in a process of its own and on the same CPUs, a few runs a turn, so that what happens to
the machine happens to all of them. Before anything is timed its answers are compared with those of onnxruntime in
float32. What is not installed, fails or answers wrongly is listed with the reason. report.py makes tables and plots of
the results.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import networks
import numpy as np
from contenders import CONTENDERS, Array, Plain

from tac_engine.bench import Timing, cpu_name

HERE = Path(__file__).resolve().parent
REFERENCE = "onnxruntime float32"

PICTURES = 16  # that answers are compared on
# An engine in float32 must give the logits of the reference to this share of the largest one. Not for every picture:
# where a float sum lies within rounding of 0 its sign depends on the order of adding, and a network of random signs
# carries that on to every logit. An engine that computes something else agrees for none. The share is reported.
FLOAT32_ERROR = 1e-4
AGREEING = 0.125
# In the same way such a network amplifies what int8 rounds until nothing is left of float32 answers. So int8 is held
# against its QDQ file computed node by node, where even another way of rounding halves is amplified: an engine that
# computes something else has a correlation of about 0.
INT8_CORRELATION = 0.25

# Who runs the networks that are binary all through.
BINARY_CONTENDERS = (REFERENCE, "tac_engine", "tac_engine avx2", "openvino binary", "larq compute engine")

# And single layers.
LAYER_CONTENDERS = (REFERENCE, "tac_engine", "tac_engine avx2", "openvino float32")
FLOAT_LAYER_CONTENDERS = (*LAYER_CONTENDERS, "tac_engine i16")
BINARY_LAYER_CONTENDERS = (*LAYER_CONTENDERS, "openvino binary")
CODEBOOK_LAYER_CONTENDERS = (*LAYER_CONTENDERS, "onnxruntime int8", "openvino int8")

# Which network is timed with more batches, on one thread.
SWEEP = ("vgg9", (4, 64))

TURN_MS = 60.0
LOADS = 5


class Failed(Exception):
    """What a contender answered instead of a result."""


class Process:
    """A contender at work (worker.py)."""

    def __init__(self, name: str, network: str, folder: Path, larq_python: str | None) -> None:
        self.name = name
        self.kind = CONTENDERS[name]
        python = sys.executable if self.kind.environment == "main" else larq_python
        self.process: subprocess.Popen[str] | None = None
        if python is not None:
            self.process = subprocess.Popen(
                [python, str(HERE / "worker.py"), str(folder), network, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=(folder / f"{name.replace(' ', '_')}.log").open("w"),
                text=True,
            )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        if self.process is None:
            raise Failed("needs --larq-python, a Python with larq-compute-engine and tensorflow")
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": f"died with status {self.process.wait()}"}
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def end(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            self.process.wait()


class Contest:
    """All contenders on one network; `results` is its part of the JSON."""

    def __init__(self, network: str, folder: Path, args: argparse.Namespace) -> None:
        self.args = args
        self.network = network
        self.onnx = folder / f"{network}.onnx"
        self.pictures = folder / f"{network}.pictures.npy"
        if not self.onnx.exists() or self.onnx.stat().st_mtime < Path(networks.__file__).stat().st_mtime:
            networks.write(network, folder)
        Plain.of(self.onnx).save(self.onnx.with_suffix(".npz"))
        self.sweep = SWEEP[1] if network == SWEEP[0] and not args.quick else ()
        codebook = args.layers and network.startswith("layer_codebook")
        self.batches = networks.CODEBOOK_BATCHES if codebook else args.batches
        count = max(PICTURES, *self.batches, *self.sweep)
        np.save(self.pictures, networks.pictures(count, networks.shape_of(network)))
        names = [name for name in args.contenders if name in takes_part(network)]
        self.processes = [self.start(name) for name in names]
        self.contenders: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, str] = {}
        self.timings: list[dict[str, Any]] = []

    def start(self, name: str) -> Process:
        return Process(name, self.network, self.onnx.parent, self.args.larq_python)

    @property
    def results(self) -> dict[str, Any]:
        return {
            "onnx_bytes": self.onnx.stat().st_size,
            "contenders": self.contenders,
            "failed": self.failed,
            "timings": self.timings,
        }

    def run(self) -> None:
        try:
            for process in self.processes:
                with self.noting_failure(process):
                    self.contenders[process.name] = process.ask("build")
            for threads in self.args.threads:
                for batch in self.batches:
                    self.measure(batch, threads)
            for batch in self.sweep:
                self.measure(batch, 1)
        finally:
            for process in self.processes:
                process.end()
        if self.network in networks.NAMES and not self.network.endswith("_binary"):
            for process in self.live:
                if process.kind.loads_plainly:
                    self.load(process.name)

    @property
    def live(self) -> list[Process]:
        return [process for process in self.processes if process.name not in self.failed]

    @contextlib.contextmanager
    def noting_failure(self, process: Process) -> Iterator[None]:
        try:
            yield
        except Failed as error:
            print(f"  {process.name}: {error}", flush=True)
            if process.name == REFERENCE:
                raise SystemExit(f"{REFERENCE}, the reference, fails: {error}") from None
            self.failed[process.name] = str(error)

    def measure(self, batch: int, threads: int) -> None:
        """Check and time the contenders for one batch and number of threads."""
        reference: Array | None = None
        prepared: dict[str, dict[str, Any]] = {}
        for process in self.live:
            with self.noting_failure(process):
                facts = process.ask("prepare", pictures=str(self.pictures), batch=batch, threads=threads)
                answers = self.answers(process)
                if reference is None:
                    reference = answers
                check = self.judge(process, answers, reference)
                self.contenders[process.name]["detail"] = facts.pop("detail")
                prepared[process.name] = {**facts, **check}
        times = self.take_turns(threads)
        for name, taken in times.items():
            timing = {
                "contender": name,
                "batch": batch,
                "threads": threads,
                **asdict(Timing.of(taken)),
                **prepared[name],
            }
            self.timings.append(timing)
            print(
                f"  batch {batch:2}, {threads} threads: {name:23} {timing['median_ms']:9.3f} ms (best"
                f" {timing['best_ms']:9.3f}, quartiles {timing['spread_ms']:7.3f} apart, {timing['runs']:3} runs);"
                f" {timing['agreeing']:4.0%} of the answers agree, error {timing['error']:.1e}",
                flush=True,
            )

    def answers(self, process: Process) -> Array:
        """Return the logits of PICTURES pictures, or of one batch if that is more."""
        with tempfile.TemporaryDirectory() as folder:
            process.ask("answer", path=f"{folder}/y.npy", count=PICTURES)
            return np.asarray(np.load(f"{folder}/y.npy"))

    def judge(self, process: Process, y: Array, reference: Array) -> dict[str, Any]:
        """Return how near answers are to the reference's; raises Failed where that is too far."""
        check = compare(y, reference)
        if process.kind.check == "int8":
            expected = np.load(self.onnx.with_suffix(".int8.npy"))
            check["int8_correlation"] = compare(y[:PICTURES], expected[: min(len(y), PICTURES)])["correlation"]
            if check["int8_correlation"] < INT8_CORRELATION:
                raise Failed(
                    f"answers have a correlation of {check['int8_correlation']:.2f} with those of the QDQ file"
                )
        elif process.kind.check == "float32" and check["agreeing"] < AGREEING:
            raise Failed(f"answers to {1 - check['agreeing']:.0%} of the pictures are wrong")
        return check

    def take_turns(self, threads: int) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {process.name: [] for process in self.live}
        for _ in range(self.args.rounds):
            for process in self.live:
                taken = times[process.name]
                if sum(taken) < 1e3 * self.args.seconds or len(taken) < 3:
                    if threads > 1:
                        time.sleep(0.02)  # the threads of the one before spin a while before they sleep
                    with self.noting_failure(process):
                        taken.extend(process.ask("time", ms=TURN_MS)["ms"])
        return {process.name: times[process.name] for process in self.live}

    def load(self, name: str) -> None:
        """Time loading in a fresh process, the file in the caches of the file system."""
        process = self.start(name)
        with self.noting_failure(process):
            process.ask("build")
            loaded = process.ask("load", pictures=str(self.pictures), runs=LOADS)
            self.contenders[name] |= {"load": asdict(Timing.of(loaded.pop("ms"))), **loaded}
        process.end()


def takes_part(network: str) -> tuple[str, ...]:
    """Return who runs the network."""
    if network.startswith("layer_binary"):
        return BINARY_LAYER_CONTENDERS
    if network.startswith("layer_codebook"):
        return CODEBOOK_LAYER_CONTENDERS
    if network in networks.LAYERS:
        return FLOAT_LAYER_CONTENDERS
    return BINARY_CONTENDERS if network.endswith("_binary") else tuple(CONTENDERS)


def compare(y: Array, reference: Array) -> dict[str, Any]:
    """Return how near `y` is to `reference`, [N, classes] each; `error` is the median over the pictures."""
    errors = np.abs(y - reference).max(axis=1) / np.abs(reference).max()
    return {
        "error": float(np.median(errors)),
        "agreeing": float(np.mean(errors <= FLOAT32_ERROR)),
        "same_top1": float(np.mean(y.argmax(axis=1) == reference.argmax(axis=1))),
        "correlation": float(np.corrcoef(y.ravel(), reference.ravel())[0, 1]),
    }


def commit() -> str:
    """Return the commit of the tree that this file is in, with a + if files have changed since."""
    git = ["git", "-C", str(HERE)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Return where, when and how the results come about."""
    return {
        "cpu": cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "criteria": {"float32_error": FLOAT32_ERROR, "agreeing": AGREEING, "int8_correlation": INT8_CORRELATION},
        "batches": args.batches,
        "threads": args.threads,
        "networks": {},
    }


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--networks", nargs="+", choices=(*networks.NAMES, *networks.LAYERS), metavar="NAME")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10, help="turns that each contender has at most")
    parser.add_argument("--seconds", type=float, default=0.6, help="time after which a contender has no more turns")
    parser.add_argument(
        "--layers", action="store_true", help="single layers, one picture and batches of codebook layers, one thread"
    )
    parser.add_argument("--quick", action="store_true", help="a short run of tac_engine on the smallest network")
    parser.add_argument("--larq-python", help="interpreter of an environment with larq-compute-engine and tensorflow")
    parser.add_argument("--folder", type=Path, help="keep models here and use them again (default: a temporary one)")
    args = parser.parse_args()
    if args.quick:
        args.networks, args.contenders = ["vgg9"], ["tac_engine"]
        args.batches, args.threads, args.rounds, args.seconds = [1, 2], [1], 2, 0.1
    if args.layers:
        args.batches, args.threads = [1], [1]
    args.networks = args.networks or list(networks.LAYERS if args.layers else networks.NAMES)
    # The reference first: the others are compared with it.
    args.contenders = sorted(
        {REFERENCE, *args.contenders}, key=lambda name: (name != REFERENCE, list(CONTENDERS).index(name))
    )
    results = machine(args)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for network in args.networks:
            print(f"{network}, {datetime.datetime.now():%H:%M:%S}", flush=True)
            contest = Contest(network, folder, args)
            contest.run()
            results["networks"][network] = contest.results
            args.out.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
