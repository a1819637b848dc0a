"""What comes out of a run: ONNX and .tacbin files, a check of one against the other, a model card and a report."""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import tac_engine

from ..converters import ConversionReport
from ..converters.compact import compact_onnx
from ..converters.verify import VerifyReport, verify
from .compression import CodebookLinear
from .export import bake, export_onnx
from .table import CARD as CARD_JSON
from .table import TACBIN, markdown_table
from .trainer import LOG, Trainer

ONNX, COMPACT = "model.onnx", "model_compact.onnx"
CARD, REPORT, CURVES = "model_card.md", "report.md", "curves.png"
_RUN_BATCH = 250


def finish(trainer: Trainer, *, exporter: str, verify_images: int, command: str) -> dict[str, Any]:
    """Export, convert and check the trained network, write card and report into the run's folder, return the card.

    Args:
        trainer: a run that is finished.
        exporter: see `export_onnx`.
        verify_images: so many test images go through the ONNX file, node by node in numpy, and through the .tacbin.
        command: what the user typed, for the card.
    """
    out, data = trainer.out, trainer.data
    export_onnx(trainer.model, out / ONNX, data.input_shape, exporter=exporter)
    onnx.save(compact_onnx(onnx.load(out / ONNX)), out / COMPACT)
    conversion = tac_engine.convert(out / ONNX, out / TACBIN, mean=data.mean, std=data.std)
    images = data.test.images
    mean, std = (np.float32(255) * np.array(values, np.float32)[:, None, None] for values in (data.mean, data.std))
    sample = (images[:verify_images].astype(np.float32) - mean) / std
    verification = verify(out / ONNX, out / TACBIN, data=np.ascontiguousarray(sample))

    engine = tac_engine.load(out / TACBIN)
    pictures = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    parts = [engine.run(pictures[first : first + _RUN_BATCH]) for first in range(0, len(pictures), _RUN_BATCH)]
    classes = np.concatenate([np.asarray(part).argmax(1) for part in parts])
    trained = trainer.predict(bake(trainer.model).to(trainer.device)).cpu().numpy()
    card = {
        "name": f"{trainer.recipe.arch}_{trainer.recipe.variant}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "command": command,
        "recipe": {**trainer.recipe.to_json(), "flip": trainer.flip},
        "data": {
            "name": data.name,
            "sha256": data.fingerprint(),
            "training_images": len(data.train),
            "test_images": len(data.test),
            "input_shape": list(data.input_shape),
            "classes": data.classes,
            "mean": data.mean,
            "std": data.std,
        },
        "stages": _stages(trainer),
        "seconds": round(trainer.state.seconds, 1),
        "test_accuracy": _percent(trained == data.test.labels),
        "tacbin_test_accuracy": _percent(classes == data.test.labels),
        "tacbin_agrees_with_pytorch": _percent(classes == trained),
        "verify": _verification(verification),
        "onnx_bytes": (out / ONNX).stat().st_size,
        "compact_onnx_bytes": (out / COMPACT).stat().st_size,
        "tacbin_bytes": conversion.file_bytes,
        "float32_bytes": conversion.float_bytes,
        "codebooks": [_codebook(m) for m in trainer.model.modules() if isinstance(m, CodebookLinear)],
        "layers": [{"name": row.name, "kind": row.kind, "bits": row.bits} for row in conversion.layers],
        "environment": {
            "tac_engine": tac_engine.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "trained_on": trainer.state.trained_on,
        },
    }
    (out / CARD_JSON).write_text(json.dumps(card, indent=1) + "\n")
    curves = _draw_curves(trainer.state.history, out / CURVES)
    (out / CARD).write_text(_card_text(card))
    (out / REPORT).write_text(_report_text(card, conversion, verification, curves))
    return card


def _stages(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the last row of the log of each stage, and its epochs."""
    last: dict[str, dict[str, Any]] = {}
    for row in trainer.state.history:
        last[row["stage"]] = row
    names = ("loss", "train_accuracy", "test_accuracy")
    return [
        {"name": name, "epochs": row["epoch"], **{key: round(row[key], 4) for key in names}}
        for name, row in last.items()
    ]


def _percent(right: Any) -> float:
    return round(100 * float(np.mean(right)), 4)


def _verification(report: VerifyReport) -> dict[str, Any]:
    (output,) = report.outputs
    return {
        "ok": report.ok,
        "images": report.samples,
        "largest_difference": output.max_abs_diff,
        "same_class": output.top1_agree,
        "flips": report.flips,
        "rounding_flips": report.rounding_flips,
    }


def _codebook(layer: CodebookLinear) -> dict[str, Any]:
    weight = layer.shared_weight().detach().cpu().numpy()
    return {
        "shape": list(weight.shape),
        "zeros": round(float(np.mean(weight == 0)), 4),
        "values": int(np.unique(weight[weight != 0]).size),
    }


# --- text -----------------------------------------------------------------------------------


def _stage_table(card: dict[str, Any]) -> str:
    rows = [
        (s["name"], s["epochs"], f"{s['train_accuracy']:.2f} %", f"{s['test_accuracy']:.2f} %") for s in card["stages"]
    ]
    return markdown_table(("after", "epochs", "training accuracy, augmented", "test accuracy"), rows)


def _size_table(card: dict[str, Any]) -> str:
    rows = [
        ("constants as float32", card["float32_bytes"]),
        (ONNX, card["onnx_bytes"]),
        (f"{COMPACT}, the same values packed", card["compact_onnx_bytes"]),
        (TACBIN, card["tacbin_bytes"]),
    ]
    return markdown_table(("what", "bytes"), rows)


def _agreement(card: dict[str, Any]) -> str:
    found = card["verify"]
    verdict = "agree" if found["ok"] else "DIFFER"
    excused = found["rounding_flips"]
    rounding = f" (in {excused} images a float sum fell on the other side of a threshold)" if excused else ""
    return (
        f"On {found['images']} test images `{TACBIN}` and `{ONNX}` {verdict}: same class for {found['same_class']}, "
        f"largest difference of an output {found['largest_difference']:.2g}, {found['flips']} values of low-bit layers "
        f"flipped{rounding}. On all test images `{TACBIN}` gives PyTorch's class for "
        f"{card['tacbin_agrees_with_pytorch']:.2f} %."
    )


def _card_text(card: dict[str, Any]) -> str:
    data, recipe, environment = card["data"], card["recipe"], card["environment"]
    channels, height, width = data["input_shape"]
    # Checkpoints of before this was recorded have none.
    trained_on = "; then ".join(environment["trained_on"]) or "an unrecorded device"
    settings = markdown_table(
        ("setting", "value"), [(key, value) for key, value in recipe.items() if value is not None]
    )
    codebooks = [
        (f"FC {i}", " x ".join(map(str, c["shape"])), f"{100 * c['zeros']:.0f} %", c["values"])
        for i, c in enumerate(card["codebooks"])
    ]
    parts = [
        f"# {card['name']}: {data['name']}, {card['tacbin_test_accuracy']:.2f} % of the test images",
        f"- Date: {card['date']}. Made by `{card['command']}`, as called last.\n"
        f"- Data: {data['name']}, {data['training_images']} training and {data['test_images']} test images of "
        f"{height} x {width} x {channels}, {len(data['classes'])} classes; SHA-256 of all {data['sha256']}.\n"
        f"- Input `input` [N, {channels}, {height}, {width}] float32: `(pixel / 255 - mean) / std`, mean "
        f"{', '.join(map(str, data['mean']))}, std {', '.join(map(str, data['std']))}; `{TACBIN}` takes uint8 pictures "
        f"[N, {height}, {width}, {channels}] too. Output `logits` [N, {len(data['classes'])}].\n"
        "- No epoch was chosen by test accuracy: each stage keeps its last one.\n"
        f"- Trained for {card['seconds']:.0f} s on {trained_on}. Exported with PyTorch "
        f"{environment['torch']}, tac_engine {environment['tac_engine']}, Python {environment['python']}.",
        "## Accuracy",
        _stage_table(card),
        f"The network as exported: {card['test_accuracy']:.2f} % in PyTorch, {card['tacbin_test_accuracy']:.2f} % as "
        f"`{TACBIN}`.",
        "## Files",
        _size_table(card),
        _agreement(card),
    ]
    if codebooks:
        parts += ["## Codebooks", markdown_table(("layer", "weights", "zeros", "other values"), codebooks)]
    parts += ["## Recipe", settings]
    return "\n\n".join(parts) + "\n"


def _report_text(card: dict[str, Any], conversion: ConversionReport, verification: VerifyReport, curves: bool) -> str:
    shown = (
        f"![accuracy and loss by epoch]({CURVES})"
        if curves
        else f"No curves: matplotlib is not installed; `{LOG}` has all."
    )
    parts = [
        f"# Training of {card['name']} on {card['data']['name']}",
        f"{card['tacbin_test_accuracy']:.2f} % of {card['data']['test_images']} test images, "
        f"{card['tacbin_bytes'] / 1000:.1f} kB, {card['float32_bytes'] / card['tacbin_bytes']:.1f} times smaller than "
        "float32.",
        shown,
        _stage_table(card),
        _agreement(card),
        f"```\n{conversion}\n```",
        f"```\n{verification}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _draw_curves(history: list[dict[str, Any]], path: Path) -> bool:
    """Draw loss and accuracies by epoch, stages side by side; False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(9, 4), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    losses.plot(epochs, [row["loss"] for row in history], marker=".")
    losses.set(xlabel="epoch", ylabel="training loss")
    accuracies.plot(epochs, [row["train_accuracy"] for row in history], marker=".", label="training, augmented")
    tested = [(epoch, row["test_accuracy"]) for epoch, row in enumerate(history, 1) if row["test_accuracy"] is not None]
    accuracies.plot(*zip(*tested, strict=True), marker=".", label="test")
    accuracies.set(xlabel="epoch", ylabel="accuracy, %")
    accuracies.legend()
    for at in range(1, len(history)):
        if history[at]["stage"] != history[at - 1]["stage"]:
            for axes in (losses, accuracies):
                axes.axvline(at + 0.5, color="0.8", linewidth=0.8, zorder=0)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True
