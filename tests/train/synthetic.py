"""A small data set that can be learned, in the files of MNIST: every class a pattern, shifted and under noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIZE, CLASSES = 12, 6


def idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return the bytes of an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_digits(folder: Path, train: int = 1280, test: int = 300) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20)
    patterns = rng.integers(0, 2, (CLASSES, SIZE // 2, SIZE // 2)).repeat(2, 1).repeat(2, 2) * 140.0
    for half, count in (("train", train), ("t10k", test)):
        labels = rng.integers(0, CLASSES, count)
        images = patterns[labels] + rng.normal(50, 30, (count, SIZE, SIZE))
        images = np.stack(
            [
                np.roll(image, shift, (0, 1))
                for image, shift in zip(images, rng.integers(-1, 2, (count, 2)), strict=True)
            ]
        )
        (folder / f"{half}-images-idx3-ubyte").write_bytes(idx(np.clip(images, 0, 255).astype(np.uint8)))
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(idx(labels.astype(np.uint8)))
    return folder
