"""Input files of the command line: pictures and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def find_inputs(paths: list[Path]) -> list[Path]:
    """Return the pictures and arrays that `paths` name, those of a folder sorted by name."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in {".npy", *IMAGE_SUFFIXES})
            if not inside:
                raise InvalidInputError(f"{path}: no .npy, .png or .jpg file in this folder")
            found += inside
        elif not path.exists():
            raise InvalidInputError(f"{path}: no such file")
        elif path.suffix.lower() in {".npy", *IMAGE_SUFFIXES}:
            if not path.is_file():
                raise InvalidInputError(f"{path}: expected a file or folder, found a pipe or device")
            found.append(path)
        else:
            raise InvalidInputError(f"{path}: expected a .npy, .png or .jpg file or a folder of them")
    return found


def read_array(path: Path) -> NDArray[Any]:
    """Read one array of a .npy file; files that would run code are refused."""
    if path.exists() and not path.is_file():
        raise InvalidInputError(f"{path}: expected a .npy file, found a folder, pipe or device")
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        # Without numpy's own words, which advise to load other files unsafely.
        raise InvalidInputError(f"{path}: not a .npy array of numbers, or it is truncated") from error
    if not isinstance(array, np.ndarray):
        raise InvalidInputError(f"{path}: expected one .npy array, found an archive of several")
    return array


def read_image(path: Path, shape: tuple[int, int, int], *, resize: bool = False) -> NDArray[np.uint8]:
    """Read a picture as uint8 of `shape` (height, width, channels)."""
    height, width, channels = shape
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise InvalidInputError(f"{path}: reading pictures needs Pillow: pip install 'tac_engine[images]'") from None
    if channels not in _MODES:
        raise InvalidInputError(f"{path}: a picture has 1, 3 or 4 channels, the model wants {channels}")
    try:
        with Image.open(path) as file:
            image = file.convert(_MODES[channels])
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InvalidInputError(f"{path}: not a readable picture: {error}") from error
    if image.size != (width, height):
        if not resize:
            raise InvalidInputError(
                f"{path}: the model takes {width}x{height} pictures, this one is "
                f"{image.width}x{image.height}; --resize scales it"
            )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(shape)
