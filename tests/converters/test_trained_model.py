"""The trained network that is shipped in models/, on real photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tac_engine.converters.evaluate import ReferenceModel

import tac_engine

MODELS = Path(__file__).parents[2] / "models"
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[tac_engine.converters.ConversionReport, Path]:
    target = tmp_path_factory.mktemp("vgg9a") / "vgg9a.tacbin"
    return tac_engine.convert(MODELS / "vgg9a_tac.onnx", target, mean=MEAN, std=STD), target


@pytest.fixture(scope="module")
def photos() -> tuple[np.ndarray, list[int]]:
    """uint8 [10, 32, 32, 3] and the labels in the file names."""
    paths = sorted((MODELS / "cifar10_samples").glob("*.png"))
    return np.stack([np.asarray(Image.open(path)) for path in paths]), [int(path.name[:2]) for path in paths]


def test_every_layer_takes_the_bits_it_was_trained_for(
    converted: tuple[tac_engine.converters.ConversionReport, Path],
) -> None:
    report, target = converted
    kinds = [layer.kind for layer in report.layers]
    assert kinds.count("binary conv") == 5
    assert kinds.count("codebook linear") == 3
    assert kinds.count("float conv") == 1
    assert "float linear" not in kinds
    assert target.stat().st_size * 15 < report.float_bytes


@pytest.mark.parametrize("threads", [1, 2])
def test_photographs_get_the_classes_of_the_onnx_file(
    converted: tuple[tac_engine.converters.ConversionReport, Path], photos: tuple[np.ndarray, list[int]], threads: int
) -> None:
    pixels, labels = photos
    x = (pixels.astype(np.float32) * np.float32(1 / 255) - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    expected = ReferenceModel(MODELS / "vgg9a_tac.onnx").run({"input": x})["logits"]
    for backend in tac_engine.backends()["runnable"]:
        engine = tac_engine.load(converted[1], threads=threads, backend=backend)
        logits = engine.run(pixels)
        np.testing.assert_array_equal(logits, engine.run(x), err_msg=backend)
        np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1), err_msg=backend)
        assert (logits.argmax(1) == labels).sum() == 7  # models/vgg9a_tac.md names the others


def test_the_shipped_tacbin_is_the_shipped_onnx_file(
    converted: tuple[tac_engine.converters.ConversionReport, Path], photos: tuple[np.ndarray, list[int]]
) -> None:
    shipped = tac_engine.load(MODELS / "vgg9a_tac.tacbin").run(photos[0])
    np.testing.assert_array_equal(shipped, tac_engine.load(converted[1]).run(photos[0]))
