"""A small data set that can be learned, in the files of MNIST: every class a pattern, shifted and under noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIZE, CLASSES = 12, 6
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def idx(array: Bytes) -> bytes:
    """Return the bytes of an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_idx(folder: Path, images: Bytes, labels: Bytes, train: int) -> Path:
    """Write MNIST's four files: the first `train` images [N, H, W] to train on, the others to test."""
    folder.mkdir(parents=True, exist_ok=True)
    for half, part in (("train", slice(train)), ("t10k", slice(train, None))):
        (folder / f"{half}-images-idx3-ubyte").write_bytes(idx(images[part]))
        (folder / f"{half}-labels-idx1-ubyte").write_bytes(idx(labels[part]))
    return folder


def write_digits(folder: Path, train: int = 1280, test: int = 300) -> Path:
    """Write the data set and return its folder."""
    rng = np.random.default_rng(20)
    count = train + test
    patterns = rng.integers(0, 2, (CLASSES, SIZE // 2, SIZE // 2)).repeat(2, 1).repeat(2, 2) * 140.0
    labels = rng.integers(0, CLASSES, count)
    images = patterns[labels] + rng.normal(50, 30, (count, SIZE, SIZE))
    shifts = rng.integers(-1, 2, (count, 2))
    images = np.stack([np.roll(image, shift, (0, 1)) for image, shift in zip(images, shifts, strict=True)])
    return write_idx(folder, np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.uint8), train)
