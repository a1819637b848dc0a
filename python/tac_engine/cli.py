"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

import tac_engine
from tac_engine import _core, _images
from tac_engine.errors import InvalidInputError, TacError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tac_engine.engine import Engine

EXIT_DIFFERS = 1
EXIT_ERROR = 2


class Progress:
    """One line on a terminal that says what is going on and how far it is."""

    width = 30

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = 0

    def __call__(self, stage: str, share: float) -> None:
        done = round(self.width * min(max(share, 0.0), 1.0))
        line = f"[{'#' * done}{'.' * (self.width - done)}] {100 * share:3.0f} % {stage}"
        self._stream.write("\r" + line.ljust(self._shown))
        self._stream.flush()
        self._shown = len(line)

    def clear(self) -> None:
        self._stream.write("\r" + " " * self._shown + "\r")
        self._stream.flush()


@contextmanager
def progress_bar() -> Iterator[Callable[[str, float], None] | None]:
    """Yield a progress function where someone watches standard error, None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    progress = Progress(sys.stderr)
    try:
        yield progress
    finally:
        progress.clear()


# --- arguments ------------------------------------------------------------------------------


def number(text: str) -> float:
    """Read a finite number, plain or as a fraction such as 1/255."""
    try:
        value = float(Fraction(text)) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(
            f"expected a number or a fraction such as 1/255, got '{text}'"
        )
    return value


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return value


def named_shape(text: str) -> tuple[str, tuple[int | None, ...]]:
    """Read NAME:N,3,32,32; an axis that is no number stays dynamic."""
    name, separator, dims = text.rpartition(":")
    if not separator or not name or not dims:
        raise argparse.ArgumentTypeError(
            f"expected NAME:D,D,..., for example input:N,3,32,32, got '{text}'"
        )
    return name, tuple(int(dim) if dim.strip().isdigit() else None for dim in dims.split(","))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="tac-engine",
        description="Runs low-bit neural networks on CPUs.",
        epilog="Exit status: 0 done, 1 verify found a difference, 2 error.",
    )
    parser.add_argument(
        "--version", action="version", version=f"tac-engine {tac_engine.__version__}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--json", action="store_true", help="print JSON instead of text")
        added.set_defaults(function=function)
        return added

    def engine_options(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "--threads", type=positive, default=1, help="threads to run with (default 1)"
        )
        added.add_argument(
            "--backend", help="avx512, avx2 or scalar (default: the best that this CPU runs)"
        )

    convert = command("convert", _convert, "Convert an ONNX model into a .tacbin file.")
    convert.add_argument("model", type=Path, help="ONNX file")
    convert.add_argument(
        "target",
        type=Path,
        nargs="?",
        help="file to write (default: the model's name with .tacbin)",
    )
    convert.add_argument("-o", "--output", type=Path, help="the same as the positional target")
    images = convert.add_argument_group(
        "pictures", "with any of these the converted model takes uint8 pictures"
    )
    images.add_argument(
        "--mean",
        type=number,
        nargs="+",
        metavar="M",
        help="subtracted per channel, after the scale",
    )
    images.add_argument(
        "--std", type=number, nargs="+", metavar="S", help="divided by, per channel"
    )
    images.add_argument(
        "--scale", type=number, help="factor of the pixels, a number or fraction (default 1/255)"
    )
    images.add_argument(
        "--input-layout", choices=("NCHW", "NHWC"), help="layout of the model's own input"
    )
    compress = convert.add_argument_group(
        "compression of float fully connected layers (changes their weights)"
    )
    compress.add_argument(
        "--fc-prune",
        type=number,
        metavar="SHARE",
        help="set this share of the smallest weights to 0",
    )
    compress.add_argument(
        "--fc-bits",
        type=positive,
        metavar="BITS",
        help="cluster the others into a codebook, 1 to 4 bits",
    )
    convert.add_argument(
        "--input-shape",
        type=named_shape,
        action="append",
        metavar="NAME:D,D,...",
        help="shape of an input with dynamic axes, for example input:N,3,32,32",
    )

    inspect = command("inspect", _inspect, "Show the layers of a .tacbin file.")
    inspect.add_argument("model", type=Path)

    run = command(
        "run",
        _run,
        "Run a model on pictures or arrays; print the largest outputs or save them all.",
    )
    run.add_argument("model", type=Path)
    run.add_argument(
        "inputs", type=Path, nargs="+", help=".npy, .png or .jpg files, or folders of them"
    )
    run.add_argument("--labels", type=Path, help="text file with one class name a line")
    run.add_argument("--top", type=positive, default=3, help="classes to print (default 3)")
    run.add_argument(
        "--output", type=Path, help="save the outputs to this .npy (one output) or .npz file"
    )
    run.add_argument(
        "--batch", type=positive, default=32, help="samples run at once at most (default 32)"
    )
    run.add_argument("--resize", action="store_true", help="scale pictures to the model's size")
    engine_options(run)

    verify = command("verify", _verify, "Compare a .tacbin file with the ONNX model it came from.")
    verify.add_argument("onnx", type=Path, help="the ONNX file")
    verify.add_argument("model", type=Path, help="the .tacbin file")
    verify.add_argument("--data", type=Path, help=".npy array of inputs (default: random ones)")

    profile = command("profile", _profile, "Time every layer of a model.")
    profile.add_argument("model", type=Path)
    profile.add_argument(
        "input", type=Path, nargs="?", help=".npy, .png or .jpg file (default: random input)"
    )
    profile.add_argument("--runs", type=positive, default=20, help="runs to time (default 20)")
    profile.add_argument(
        "--batch", type=positive, default=1, help="samples of the random input (default 1)"
    )
    profile.add_argument(
        "--resize", action="store_true", help="scale a picture to the model's size"
    )
    engine_options(profile)

    command("backends", _backends, "List the kernel sets and say which this CPU runs.")
    return parser


# --- commands -------------------------------------------------------------------------------


def _print_result(result: Any, as_json: bool) -> None:
    print(json.dumps(result.to_json(), indent=2) if as_json else result)


def _convert(args: argparse.Namespace) -> int:
    if args.target is not None and args.output is not None:
        raise InvalidInputError("give the file to write once: as second argument or with --output")
    target = args.target or args.output or args.model.with_suffix(".tacbin")
    with progress_bar() as progress:
        report = tac_engine.convert(
            args.model,
            target,
            mean=args.mean,
            std=args.std,
            scale=args.scale,
            input_layout=args.input_layout,
            fc_prune=args.fc_prune,
            fc_bits=args.fc_bits,
            input_shapes=dict(args.input_shape) if args.input_shape else None,
            progress=progress,
        )
    _print_result(report, args.json)
    return 0


def _verify(args: argparse.Namespace) -> int:
    try:
        from tac_engine.converters.verify import verify
    except ImportError as error:
        raise InvalidInputError(
            f"verify needs onnx and onnxruntime ({error}): pip install 'tac_engine[convert]'"
        ) from None
    data = None if args.data is None else _images.read_array(args.data)
    with progress_bar() as progress:
        report = verify(args.onnx, args.model, data=data, progress=progress)
    _print_result(report, args.json)
    return 0 if report.ok else EXIT_DIFFERS


def _backends(args: argparse.Namespace) -> int:
    found = tac_engine.backends()
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    for name in found["compiled"]:
        state = (
            "active"
            if name == found["active"]
            else "runnable"
            if name in found["runnable"]
            else "not on this CPU"
        )
        print(f"{name:8} {state}")
    return 0


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int]
) -> str:
    """Align `rows` in columns; the columns of `right` to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, tuple("-" * width for width in widths), *rows):
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = build_parser().parse_args(argv)
    try:
        status: int = args.function(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read us has had enough; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_ERROR
    except KeyboardInterrupt:
        return 130
    except (TacError, OSError) as error:
        print(f"tac-engine: error: {error}", file=sys.stderr)
        return EXIT_ERROR
