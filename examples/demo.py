"""Convert the trained network, classify pictures, time it beside ONNX Runtime, which runs the file in float32.

Run by `make demo`. Exits 1 if the two disagree on the class of a picture.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

import tac_engine
from tac_engine.bench import cpu_name

ROOT = Path(__file__).resolve().parent.parent
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities of one row of logits."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


def normalize(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the float input [1, C, H, W] that the ONNX model takes."""
    scaled = image.astype(np.float32) * np.float32(1 / 255)
    normal = (scaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1)[None])


def milliseconds(function, argument) -> float:  # type: ignore[no-untyped-def]
    """Return how long one call takes."""
    start = time.perf_counter()
    function(argument)
    return (time.perf_counter() - start) * 1000


def main() -> int:
    """Run the demonstration and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "models/vgg9a_tac.onnx")
    parser.add_argument("--images", type=Path, default=ROOT / "models/cifar10_samples")
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of every picture (default 20)")
    args = parser.parse_args()
    labels = (args.images / "labels.txt").read_text().split()
    files = sorted(args.images.glob("*.png"))
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    if not args.model.exists() or not files:
        print(f"error: {args.model} or the pictures in {args.images} are missing", file=sys.stderr)
        return 2

    with tempfile.TemporaryDirectory() as folder:
        tacbin = Path(folder) / f"{args.model.stem}.tacbin"
        start = time.perf_counter()
        report = tac_engine.convert(args.model, tacbin, mean=MEAN, std=STD)
        seconds = time.perf_counter() - start
        print(str(report).replace(str(ROOT) + "/", "").replace(folder + "/", ""))
        print(f"converted in {seconds:.1f} s\n")

        engine = tac_engine.load(tacbin, threads=1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(args.model, options, providers=["CPUExecutionProvider"])
        input_name = session.get_inputs()[0].name

        def run_onnxruntime(x: NDArray[np.float32]) -> NDArray[np.float32]:
            return session.run(None, {input_name: x})[0]

        print(f"{'file':18} {'true':12} {'tac_engine':12} probability  ONNX Runtime")
        differing = 0
        for file, image in zip(files, images, strict=True):
            ours = engine.run(image).reshape(-1)
            theirs = run_onnxruntime(normalize(image)).reshape(-1)
            best, best_theirs = int(ours.argmax()), int(theirs.argmax())
            differing += best != best_theirs
            true = labels[int(file.stem.split("_")[0])]
            print(
                f"{file.name:18} {true:12} {labels[best]:12} {softmax(ours)[best]:10.1%}   "
                f"{labels[best_theirs]}{'' if best == best_theirs else '  <-- differs'}"
            )

        # Interleaved, so that a change of the clock frequency hits both alike.
        inputs = [normalize(image) for image in images]
        timed: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.rounds):
            for image, x in zip(images, inputs, strict=True):
                timed[0].append(milliseconds(engine.run, image))
                timed[1].append(milliseconds(run_onnxruntime, x))
        ours_ms, theirs_ms = (statistics.median(times) for times in timed)
        # ONNX Runtime unpacks what the file keeps packed, and runs it in float32.
        ours_bytes, theirs_bytes = report.file_bytes, report.float_bytes
        print(f"\n{cpu_name()}, 1 thread each, median of {len(timed[0])} interleaved runs")
        header = (
            f"tac_engine {tac_engine.__version__} ({engine.backend})",
            f"ONNX Runtime {onnxruntime.__version__}",
        )
        print(f"{'':16} {header[0]:>26} {header[1]:>22}")
        print(f"{'ms per picture':16} {ours_ms:26.3f} {theirs_ms:22.3f}   {theirs_ms / ours_ms:.1f} times as fast")
        print(f"{'input':16} {'uint8, normalised inside':>26} {'float32, ready-made':>22}")
        print(
            f"{'weights, kB':16} {ours_bytes / 1000:26.1f} {theirs_bytes / 1000:22.1f}   "
            f"{theirs_bytes / ours_bytes:.1f} times smaller"
        )
    if differing:
        print(
            f"\n{differing} of {len(files)} pictures got another class than in ONNX Runtime",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
