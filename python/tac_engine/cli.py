"""The command line: parse, call, print."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import zipfile
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
EXIT_STOPPED = 3


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
        self._shown = 0


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
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
        raise argparse.ArgumentTypeError(f"expected a number or a fraction such as 1/255, got '{text}'")
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
        raise argparse.ArgumentTypeError(f"expected NAME:D,D,..., for example input:N,3,32,32, got '{text}'")
    return name, tuple(int(dim) if dim.strip().isdigit() else None for dim in dims.split(","))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="tac-engine",
        description="Runs low-bit neural networks on CPUs.",
        epilog="Exit status: 0 done; 1 verify, bench or train found a difference, or compress lost too much; 2 error; "
        "3 train was stopped by --stop-after.",
    )
    parser.add_argument("--version", action="version", version=f"tac-engine {tac_engine.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--json", action="store_true", help="print JSON instead of text")
        added.set_defaults(function=function)
        return added

    backend_help = "amx, avx512, avx512vnni, avx512bw, avx2 or scalar (default: the best that this CPU runs)"

    def engine_options(added: argparse.ArgumentParser) -> None:
        added.add_argument("--threads", type=positive, default=1, help="threads to run with (default 1)")
        added.add_argument("--backend", help=backend_help)

    convert = command("convert", _convert, "Convert an ONNX model into a .tacbin file.")
    convert.add_argument("model", type=Path, help="ONNX file")
    convert.add_argument(
        "target",
        type=Path,
        nargs="?",
        help="file to write (default: the model's name with .tacbin)",
    )
    convert.add_argument("-o", "--output", type=Path, help="the same as the positional target")
    images = convert.add_argument_group("pictures", "with any of these the converted model takes uint8 pictures")
    images.add_argument(
        "--mean",
        type=number,
        nargs="+",
        metavar="M",
        help="subtracted per channel, after the scale",
    )
    images.add_argument("--std", type=number, nargs="+", metavar="S", help="divided by, per channel")
    images.add_argument("--scale", type=number, help="factor of the pixels, a number or fraction (default 1/255)")
    images.add_argument("--input-layout", choices=("NCHW", "NHWC"), help="layout of the model's own input")
    compress = convert.add_argument_group("compression of float fully connected layers (changes their weights)")
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
        "--fc-precision",
        choices=("i16", "f32"),
        default="i16",
        help="sums of codebook layers: inputs of 16 and weights of 15 bits, exact integer sums (default; a layer that "
        "does not gain or fit keeps float32), or float32",
    )
    convert.add_argument(
        "--conv-precision",
        choices=("i16", "f32"),
        default="f32",
        help="sums of convolutions that stay float, such as the first layer: float32 (default), or inputs and weights "
        "rounded to integers, which is faster; a layer is then within a few 1e-4 of its largest output, and signs "
        "behind it flip where it is as near to 0",
    )
    convert.add_argument(
        "--input-shape",
        type=named_shape,
        action="append",
        metavar="NAME:D,D,...",
        help="shape of an input with dynamic axes, for example input:N,3,32,32",
    )

    convert.add_argument(
        "--explain",
        action="store_true",
        help="print the values that each layer's weights, inputs and sums can take, and why a float layer is float",
    )

    importer = command(
        "import-deep-compression",
        _import_deep_compression,
        "Put the weights of a file in Deep Compression's AlexNet format into an ONNX model of the same layers.",
    )
    importer.add_argument("file", type=Path, help="the compressed network")
    importer.add_argument("--model", type=Path, required=True, help="ONNX file with these layers, weights of any value")
    importer.add_argument("-o", "--output", type=Path, required=True, help="ONNX file to write")

    inspect = command("inspect", _inspect, "Show the layers of a .tacbin file.")
    inspect.add_argument("model", type=Path)

    run = command(
        "run",
        _run,
        "Run a model on pictures or arrays; print the largest outputs or save them all.",
    )
    run.add_argument("model", type=Path)
    run.add_argument("inputs", type=Path, nargs="+", help=".npy, .png or .jpg files, or folders of them")
    run.add_argument("--labels", type=Path, help="text file with one class name a line")
    run.add_argument("--top", type=positive, default=3, help="classes to print (default 3)")
    run.add_argument("--output", type=Path, help="save the outputs to this .npy (one output) or .npz file")
    run.add_argument("--batch", type=positive, default=32, help="samples run at once at most (default 32)")
    run.add_argument("--resize", action="store_true", help="scale pictures to the model's size")
    engine_options(run)

    verify = command("verify", _verify, "Compare a .tacbin file with the ONNX model it came from.")
    verify.add_argument("onnx", type=Path, help="the ONNX file")
    verify.add_argument("model", type=Path, help="the .tacbin file")
    verify.add_argument("--data", type=Path, help=".npy array of inputs [N, ...] (default: random ones)")
    verify.add_argument("--samples", type=positive, help="how many samples (default: all of the data, or 64)")
    verify.add_argument("--backend", help=backend_help)

    profile = command("profile", _profile, "Time every layer of a model.")
    profile.add_argument("model", type=Path)
    profile.add_argument("input", type=Path, nargs="?", help=".npy, .png or .jpg file (default: random input)")
    profile.add_argument("--runs", type=positive, default=20, help="runs to time (default 20)")
    profile.add_argument("--batch", type=positive, default=1, help="samples of the random input (default 1)")
    profile.add_argument("--resize", action="store_true", help="scale a picture to the model's size")
    engine_options(profile)

    bench = command(
        "bench",
        _bench,
        "Time a model: loading, batches, threads; beside ONNX Runtime if wished, where half of 16 samples must agree "
        "within 1e-3 of the largest output.",
    )
    bench.add_argument("model", type=Path)
    bench.add_argument("--against", type=Path, metavar="ONNX", help="the ONNX file, run in ONNX Runtime in turn")
    bench.add_argument("--batch", type=positive, nargs="+", default=[1, 16], help="batch sizes (default 1 16)")
    bench.add_argument("--threads", type=positive, nargs="+", default=[1], help="numbers of threads (default 1)")
    bench.add_argument("--seconds", type=number, default=1.0, help="time for each measurement (default 1)")
    bench.add_argument("--backend", help=backend_help)

    squeeze = command(
        "compress",
        _compress,
        "Prune and cluster the fully connected layers of an ONNX model without training, and measure what each costs.",
    )
    squeeze.add_argument("model", type=Path, help="ONNX file")
    squeeze.add_argument("-o", "--output", type=Path, required=True, help="ONNX file to write")
    squeeze.add_argument(
        "--prune", type=number, default=0.75, metavar="SHARE", help="of the smallest weights, set to 0 (default 0.75)"
    )
    squeeze.add_argument(
        "--bits", type=positive, default=4, help="of the codebook: 2**bits - 1 values and zero (default 4)"
    )
    squeeze.add_argument("--skip", nargs="+", default=[], metavar="LAYER", help="leave these nodes alone")
    squeeze.add_argument(
        "--data",
        type=Path,
        help="what to measure on: a .npy array of inputs, or a folder as for train, whose test images are taken "
        "(default: random inputs)",
    )
    squeeze.add_argument("--labels", type=Path, help=".npy array with the class of each input of a .npy file")
    squeeze.add_argument("--samples", type=positive, help="how many of the data (default: all)")
    squeeze.add_argument(
        "--max-loss", type=number, default=1.0, help="points of accuracy that may be lost, else status 1 (default 1)"
    )
    squeeze.add_argument("--mean", type=number, nargs="+", metavar="M", help="as for convert")
    squeeze.add_argument("--std", type=number, nargs="+", metavar="S", help="as for convert")
    squeeze.add_argument("--scale", type=number, help="as for convert")

    _add_train(command("train", _train, "Train a network on labelled images and make a .tacbin of it (extra [train])."))

    command("backends", _backends, "List the kernel sets and say which this CPU runs.")
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    from tac_engine.train import recipe

    train.add_argument("--arch", choices=recipe.ARCHITECTURES, required=True)
    train.add_argument(
        "--data", type=Path, required=True, help="folder of CIFAR-10, CIFAR-100 or MNIST files, or of pictures by class"
    )
    train.add_argument(
        "--out", type=Path, required=True, help="folder of the run; one that was stopped or killed goes on from there"
    )
    train.add_argument(
        "--variant",
        choices=recipe.VARIANTS,
        default="tac",
        help="binary convolutions and compressed FC layers, the first step of that alone, a fully binary network or a "
        "float one (default tac)",
    )
    train.add_argument(
        "--single-step", action="store_true", help="the control: compress the FC layers while the convolutions train"
    )
    train.add_argument("--width", type=number, default=1.0, help="factor of filters and FC units (default 1)")
    train.add_argument("--epochs", type=positive, default=100, help="of step 1 (default 100)")
    train.add_argument(
        "--compress-epochs", type=positive, default=2, help="after each pruning and of the codebooks (default 2)"
    )
    train.add_argument(
        "--prune-rates", type=number, nargs="*", default=recipe.PRUNE_RATES, help="shares of zeros, round by round"
    )
    train.add_argument(
        "--centroids",
        type=positive,
        default=15,
        help="codebook values beside zero, 1 to 16; with 16 weights take 5 bits (default 15)",
    )
    train.add_argument("--optimizer", choices=recipe.OPTIMIZERS, default="adam", help="(default adam)")
    train.add_argument("--lr", type=number, help="peak learning rate of step 1 (default adam 0.002, sgd 0.1)")
    train.add_argument("--compress-lr", type=number, help="that of step 2 (default adam 0.0003, sgd 0.01)")
    train.add_argument("--weight-decay", type=number, help="(default adam 0.05, decoupled; sgd 0.0005)")
    train.add_argument("--warmup-epochs", type=number, default=2.0, help="of step 1 (default 2)")
    train.add_argument("--activation-ste", default="approx_sign", help="identity, clip, approx_sign (default) or ede")
    train.add_argument("--weight-ste", default="identity", help="identity (default), clip, approx_sign or ede")
    train.add_argument("--normalise", default="centre", help="latent weights: none, centre (default) or standardise")
    train.add_argument("--label-smoothing", type=number, default=0.0, help="share spread over all classes (default 0)")
    train.add_argument("--batch-size", type=positive, default=128, help="(default 128)")
    train.add_argument(
        "--precision", choices=recipe.PRECISIONS, help="of step 1 (default bfloat16 on GPUs that have it, else float32)"
    )
    train.add_argument("--crop", type=int, default=4, help="pixels of padding for random crops (default 4)")
    train.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, help="mirror images at random (default: but for digits)"
    )
    train.add_argument("--image-size", type=positive, help="scale the pictures of a folder to this side")
    train.add_argument("--train-images", type=positive, help="only so many training images, for a trial")
    train.add_argument("--seed", type=int, default=1, help="(default 1)")
    train.add_argument("--device", help="cpu, cuda, cuda:1, ... (default cuda if there is one)")
    train.add_argument("--threads", type=positive, help="CPU threads (default PyTorch's)")
    train.add_argument(
        "--stop-after", type=number, metavar="SECONDS", help="stop then with status 3; the same command goes on"
    )
    train.add_argument("--checkpoint-seconds", type=number, default=60.0, help="between checkpoints (default 60)")
    train.add_argument(
        "--slim-checkpoints",
        action="store_true",
        help="a third of the size, for carrying; a resumed run is as good, but not bit-identical",
    )
    train.add_argument(
        "--compile", action="store_true", help="torch.compile what trains: a minute more, then faster on a GPU"
    )
    train.add_argument(
        "--test-every", type=positive, default=1, metavar="EPOCHS", help="between measurements of accuracy (default 1)"
    )
    train.add_argument("--exporter", choices=("dynamo", "legacy"), default="dynamo", help="PyTorch's (default dynamo)")
    train.add_argument(
        "--verify-images", type=positive, default=64, help="test images to verify on, node by node (default 64)"
    )


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int]) -> str:
    """Align `rows` in columns; the columns of `right` to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, tuple("-" * width for width in widths), *rows):
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


# --- commands -------------------------------------------------------------------------------


def _print_result(result: Any, as_json: bool) -> None:
    if not as_json:
        print(result)
        return
    data = result.to_json()
    print(data if isinstance(data, str) else json.dumps(data, indent=2))


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
            fc_precision=args.fc_precision,
            conv_precision=args.conv_precision,
            input_shapes=dict(args.input_shape) if args.input_shape else None,
            explain=args.explain,
            progress=progress,
        )
    _print_result(report, args.json)
    return 0


def _import_deep_compression(args: argparse.Namespace) -> int:
    try:
        from tac_engine.converters.deep_compression import import_deep_compression
    except ImportError as error:
        raise InvalidInputError(f"the import needs onnx ({error}): pip install 'tac_engine[convert]'") from None
    layers = import_deep_compression(args.file, args.model, args.output)
    rows = [(layer.name, layer.weight.shape, int(np.count_nonzero(layer.weight))) for layer in layers]
    if args.json:
        listed = [{"name": name, "shape": list(shape), "kept": kept} for name, shape, kept in rows]
        print(json.dumps({"target": str(args.output), "layers": listed}, indent=2))
        return 0
    cells = [(name, "x".join(map(str, shape)), f"{kept / math.prod(shape):.1%}") for name, shape, kept in rows]
    print(format_table(("layer", "weights", "kept"), cells, frozenset({2})))
    print(f"{len(rows)} layers of {args.file} -> {args.output}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    try:
        from tac_engine.converters.verify import verify
    except ImportError as error:
        raise InvalidInputError(f"verify needs onnx ({error}): pip install 'tac_engine[convert]'") from None
    data = None if args.data is None else _images.read_array(args.data)
    with progress_bar() as progress:
        report = verify(args.onnx, args.model, data=data, samples=args.samples, backend=args.backend, progress=progress)
    _print_result(report, args.json)
    return 0 if report.ok else EXIT_DIFFERS


# What a layer's weights would take as float32, for the ops that store them in fewer bits.
def _float_bytes(op: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]]) -> int:
    fields = op["fields"]
    if op["kind"] == "binary_conv":
        outputs = tensors[fields["output"]]["dims"][-1]
        inputs = tensors[fields["input"]]["dims"][-1] // fields["groups"]
        return 4 * int(outputs * inputs * math.prod(fields["kernel"]))
    if op["kind"] in ("coded_conv", "integer_conv"):
        outputs = tensors[fields["output"]]["dims"][-1]
        inputs = tensors[fields["input"]]["dims"][-1] // fields["groups"]
        return 4 * int(outputs * inputs * math.prod(fields["kernel"])) + int(fields["bias"]["bytes"])
    if op["kind"] in ("codebook_linear", "coded_linear"):
        outputs = tensors[fields["output"]]["dims"][-1]
        inputs = tensors[fields["input"]]["dims"][-1]
        return 4 * int(outputs * inputs) + int(fields["bias"]["bytes"])
    return int(op["bytes"])


def _bits(op: Mapping[str, Any], tensors: Sequence[Mapping[str, Any]]) -> str:
    """Return planes of weights x planes of activations of the ops that have low-bit weights."""
    if op["kind"] == "binary_conv":
        planes = tensors[op["fields"]["input"]]["encoding"]["planes"]
        return f"{len(op['fields']['w_coefs'])} x {planes}"
    if op["kind"] == "codebook_linear":
        return f"{op['fields']['code_bits']} x {16 if op['fields']['levels']['bytes'] else 32}"
    if op["kind"] in ("coded_conv", "coded_linear"):
        return f"{op['fields']['code_bits'] or 32} x 32"
    if op["kind"] == "integer_conv":
        width = 8 if op["fields"]["input_unit"] else 16
        return f"{op['fields']['code_bits'] or width} x {width}"
    return ""


def _dims(tensor: Mapping[str, Any]) -> str:
    kind = tensor["dtype"]
    if tensor["encoding"] is not None:
        kind = f"{tensor['encoding']['n_levels']} levels"
    return f"{'x'.join(map(str, tensor['dims'])) or 'scalar'} {kind}"


def _inspect(args: argparse.Namespace) -> int:
    model = _core.inspect(args.model)
    tensors = model["tensors"]
    layers = [
        {
            "name": op["name"],
            "kind": op["kind"],
            "bits": _bits(op, tensors),
            "output": _dims(tensors[op["fields"]["output"]]),
            "bytes": op["bytes"],
            "float32_bytes": _float_bytes(op, tensors),
        }
        for op in model["ops"]
    ]
    constants = sum(tensor["bytes"] for tensor in tensors)
    float_bytes = constants + sum(layer["float32_bytes"] for layer in layers)
    if args.json:
        summary = {"layers": layers, "float32_bytes": float_bytes, "constant_bytes": constants}
        print(json.dumps({**model, **summary}, indent=2))
        return 0
    for entry in model["inputs"]:
        tensor = tensors[entry["tensor"]]
        note = ", or uint8 pictures" if entry["has_preprocess"] else ""
        print(f"input   {tensor['name']}: {_dims(tensor)}{note}")
    for index in model["outputs"]:
        print(f"output  {tensors[index]['name']}: {_dims(tensors[index])}")
    print()
    header = ("layer", "op", "w x a bits", "output per sample", "bytes", "as float32")
    rows = [
        (
            layer["name"],
            layer["kind"],
            layer["bits"],
            layer["output"],
            str(layer["bytes"] or "-"),
            str(layer["float32_bytes"] or "-"),
        )
        for layer in layers
    ]
    print(format_table(header, rows, frozenset({4, 5})))
    size = model["file_bytes"]
    ratio = float_bytes / size
    print(f"\nfile {size} bytes; constants as float32 {float_bytes} bytes ({ratio:.1f} x)")
    return 0


def _image_shape(engine: Engine, path: Path) -> tuple[int, int, int]:
    spec = engine.inputs[0]
    if spec.image_shape is None:
        raise InvalidInputError(
            f"{path}: input '{spec.name}' of this model takes no pictures; "
            "give a .npy array, or convert the model with --mean, --std or --scale"
        )
    return spec.image_shape


def _read_input(engine: Engine, path: Path, resize: bool) -> NDArray[Any]:
    """Read one file as a batch of samples for the model's only input."""
    if len(engine.inputs) != 1:
        names = ", ".join(spec.name for spec in engine.inputs)
        raise InvalidInputError(f"the model has {len(engine.inputs)} inputs ({names}), the command feeds one")
    if path.suffix.lower() != ".npy":
        return _images.read_image(path, _image_shape(engine, path), resize=resize)[None]
    array = _images.read_array(path)
    spec = engine.inputs[0]
    image_rank = 3 if array.dtype == np.uint8 and spec.image_shape is not None else None
    sample_rank = image_rank or len(spec.shape) - 1
    return np.ascontiguousarray(array[None] if array.ndim == sample_rank else array)


def _batches(
    engine: Engine, args: argparse.Namespace, files: Sequence[Path]
) -> Iterator[tuple[int, list[str], NDArray[Any]]]:
    """Yield files read so far, sample names and inputs of at most --batch samples, in order."""
    names: list[str] = []
    parts: list[NDArray[Any]] = []
    for read, path in enumerate(files):
        array = _read_input(engine, path, args.resize)
        for start in range(0, len(array), args.batch):
            piece = array[start : start + args.batch]
            fits = not parts or (piece.dtype == parts[0].dtype and piece.shape[1:] == parts[0].shape[1:])
            if names and (not fits or len(names) + len(piece) > args.batch):
                yield read, names, np.concatenate(parts)
                names, parts = [], []
            parts.append(piece)
            numbered = len(array) > 1
            names += [f"{path}[{start + i}]" if numbered else str(path) for i in range(len(piece))]
    if parts:
        yield len(files), names, np.concatenate(parts)


def _read_labels(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: not a UTF-8 text file: {error}") from error


def _top(scores: NDArray[Any], count: int, labels: Sequence[str] | None) -> list[dict[str, Any]]:
    order = np.argsort(-scores, kind="stable")[:count]
    return [{"class": int(i), "label": labels[i] if labels else str(i), "score": float(scores[i])} for i in order]


def _run(args: argparse.Namespace) -> int:
    engine = tac_engine.load(args.model, threads=args.threads, backend=args.backend)
    suffix = ".npy" if len(engine.outputs) == 1 else ".npz"
    if args.output is not None and args.output.suffix != suffix:
        raise InvalidInputError(f"--output {args.output}: {len(engine.outputs)} outputs are saved as {suffix}")
    labels = None if args.labels is None else _read_labels(args.labels)
    files = _images.find_inputs(args.inputs)
    names: list[str] = []
    results: dict[str, list[NDArray[Any]]] = {spec.name: [] for spec in engine.outputs}
    with progress_bar() as progress:
        for read, batch_names, batch in _batches(engine, args, files):
            found = engine.run(batch)
            outputs = found if isinstance(found, dict) else {engine.outputs[0].name: found}
            for name, value in outputs.items():
                results[name].append(value)
            names += batch_names
            if progress is not None:
                progress("running", read / len(files))
    arrays = {name: np.concatenate(parts) for name, parts in results.items()}
    if args.output is not None:
        if suffix == ".npy":
            np.save(args.output, next(iter(arrays.values())))
        else:
            # Not np.savez: an output may have the name of one of its parameters.
            with zipfile.ZipFile(args.output, "w") as archive:
                for name, value in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, value, allow_pickle=False)
        saved = {name: list(value.shape) for name, value in arrays.items()}
        if args.json:
            print(json.dumps({"output": str(args.output), "shapes": saved}))
        else:
            print(f"{args.output}:", *(f"{name} {shape}" for name, shape in saved.items()))
        return 0
    first, scores = next(iter(arrays.items()))
    if scores.ndim != 2:
        raise InvalidInputError(
            f"output '{first}' has shape {scores.shape}, not a score a class; save it with --output"
        )
    if labels is not None and len(labels) != scores.shape[1]:
        raise InvalidInputError(f"{args.labels}: {len(labels)} labels for {scores.shape[1]} classes")
    ranked: list[dict[str, Any]] = [
        {"input": name, "top": _top(row, args.top, labels)} for name, row in zip(names, scores, strict=True)
    ]
    if args.json:
        print(json.dumps(ranked, indent=2))
        return 0
    width = max(len(name) for name in names)
    for entry in ranked:
        shown = "  ".join(f"{top['label']} {top['score']:.4g}" for top in entry["top"])
        print(f"{entry['input']:{width}}  {shown}")
    return 0


def _profile(args: argparse.Namespace) -> int:
    engine = tac_engine.load(args.model, threads=args.threads, backend=args.backend)
    x: NDArray[Any] | dict[str, NDArray[Any]]
    if args.input is not None:
        x = _read_input(engine, _images.find_inputs([args.input])[0], args.resize)
    else:
        random = np.random.default_rng(0)
        x = {
            spec.name: random.standard_normal((args.batch, *(d or 1 for d in spec.shape[1:])), np.float32)
            for spec in engine.inputs
        }
    _print_result(engine.profile(x, runs=args.runs), args.json)
    return 0


def _bench(args: argparse.Namespace) -> int:
    from tac_engine.bench import bench

    rival = None
    if args.against is not None:
        try:
            from tac_engine.converters.onnx_runtime import OnnxRuntimeModel
        except ImportError as error:
            raise InvalidInputError(
                f"--against needs onnx and onnxruntime ({error}): pip install 'tac_engine[convert,demo]'"
            ) from None
        rival = OnnxRuntimeModel(args.against)
    with progress_bar() as progress:
        report = bench(
            args.model,
            batches=args.batch,
            threads=args.threads,
            backend=args.backend,
            rival=rival,
            seconds=args.seconds,
            progress=progress,
        )
    _print_result(report, args.json)
    return 0 if report.ok else EXIT_DIFFERS


def _measured_on(args: argparse.Namespace) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Return inputs and labels that `compress` measures on."""
    if args.data is None or not args.data.is_dir():
        inputs = None if args.data is None else _images.read_array(args.data)
        return inputs, None if args.labels is None else _images.read_array(args.labels)
    if args.labels is not None:
        raise InvalidInputError(f"--labels is for a .npy array, {args.data} has its own")
    if args.mean is None and args.std is None and args.scale is None:
        raise InvalidInputError(f"{args.data} holds pictures: say by --mean, --std or --scale how the model takes them")
    from tac_engine.train.data import load_data

    test = load_data(args.data).test
    return np.ascontiguousarray(test.images.transpose(0, 2, 3, 1)), test.labels


def _compress(args: argparse.Namespace) -> int:
    try:
        from tac_engine.converters.compress import compress_model
    except ImportError as error:
        raise InvalidInputError(f"compress needs onnx ({error}): pip install 'tac_engine[convert]'") from None
    inputs, labels = _measured_on(args)
    with progress_bar() as progress:
        report = compress_model(
            args.model,
            args.output,
            prune=args.prune,
            bits=args.bits,
            skip=args.skip,
            inputs=inputs if inputs is None else inputs[: args.samples],
            labels=labels if labels is None else labels[: args.samples],
            max_loss=args.max_loss,
            mean=args.mean,
            std=args.std,
            scale=args.scale,
            progress=progress,
        )
    _print_result(report, args.json)
    return 0 if report.ok else EXIT_DIFFERS


def _train(args: argparse.Namespace) -> int:
    try:
        from tac_engine.train.command import run
    except ImportError as error:
        raise InvalidInputError(f"training needs PyTorch and onnx ({error}): pip install 'tac_engine[train]'") from None
    with progress_bar() as progress:

        def say(line: str) -> None:
            if progress is not None:
                progress.clear()
            if not args.json:
                print(line, flush=True)

        card = run(args, progress, say)
    if card is None:
        print("stopped; the same command goes on", file=sys.stderr)
        return EXIT_STOPPED
    if args.json:
        print(json.dumps(card, indent=2))
    else:
        print(f"{args.out}: {card['tacbin_test_accuracy']:.2f} % of the test images, {card['tacbin_bytes']} bytes")
    if card["verify"]["ok"]:
        return 0
    print(f"{args.out}: model.tacbin and model.onnx differ, or no sample decides: report.md", file=sys.stderr)
    return EXIT_DIFFERS


def _backends(args: argparse.Namespace) -> int:
    found = tac_engine.backends()
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    for name in found["compiled"]:
        state = "active" if name == found["active"] else "runnable" if name in found["runnable"] else "not on this CPU"
        print(f"{name:8} {state}")
    return 0


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
    except (TacError, ImportError, OSError, MemoryError) as error:
        # ImportError: an extra is missing, and the message names it.
        print(f"tac-engine: error: {error}", file=sys.stderr)
        return EXIT_ERROR
