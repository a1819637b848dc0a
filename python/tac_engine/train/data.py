"""Labelled images from a folder: CIFAR-10 and -100 in either official layout, MNIST's IDX files, or a folder a class.

Files may be compressed with gzip or xz. Everything is held in memory as uint8. Knows numpy only.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._images import IMAGE_SUFFIXES, read_image
from ..errors import FormatError, InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.decompress, ".xz": lzma.decompress}
_CIFAR_PIXELS = 3 * 32 * 32
_CIFAR10_TRAIN = [f"data_batch_{i}" for i in range(1, 6)]
# How a folder of images calls its two halves.
_TEST_FOLDERS = ("test", "val")


@dataclass(frozen=True)
class Split:
    """`images` uint8 [N, C, H, W] and `labels` int64 [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> Split:
        return self if count is None else Split(self.images[:count], self.labels[:count])


@dataclass(frozen=True)
class Data:
    """A training and a test set, and what images are normalised by: ``(pixel / 255 - mean) / std`` per channel."""

    name: str
    train: Split
    test: Split
    classes: list[str]
    flip: bool  # whether mirrored images are images of the same class
    mean: list[float]
    std: list[float]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return int(channels), int(height), int(width)

    def fingerprint(self) -> str:
        """Return a SHA-256 of all images and labels: which data exactly a network was trained on."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels).data)
        return digest.hexdigest()


def load_data(folder: Path, *, image_size: int | None = None, train_images: int | None = None) -> Data:
    """Read the data set in `folder`, whichever it is.

    Args:
        folder: where the files lie, not above.
        image_size: side that the images of a folder a class are scaled to; they must have one size without it.
        train_images: only the first so many training images; of a folder a class, that many of each class in turn.

    Raises:
        InvalidInputError: there is no data set, or an argument does not fit it.
        FormatError: a file is not what its name says.
    """
    if not folder.is_dir():
        raise InvalidInputError(f"{folder}: no such folder")
    for read in (_read_cifar10, _read_cifar100, _read_mnist):
        found = read(folder)
        if found is not None:
            if image_size is not None:
                raise InvalidInputError(f"image size is for folders of images, {folder} holds {found[0]}")
            return _finish(folder, train_images, *found)
    if (folder / "train").is_dir():
        return _finish(folder, train_images, *_read_folders(folder, image_size))
    raise InvalidInputError(
        f"{folder}: no data set found; expected data_batch_1 to 5 and test_batch (CIFAR-10, .bin or Python), train and "
        "test (CIFAR-100, .bin or Python), *train-images?idx3-ubyte and the other three (MNIST), plain, .gz or .xz, or "
        "the folders train and test (or val) with a folder of pictures for each class"
    )


def _finish(
    folder: Path, train_images: int | None, name: str, train: Split, test: Split, classes: list[str], flip: bool
) -> Data:
    if train_images is not None and not 1 <= train_images <= len(train):
        raise InvalidInputError(f"{train_images} training images are asked for, {folder} has {len(train)}")
    train = train.first(train_images)
    for what, split in (("training", train), ("test", test)):
        if not len(split):
            raise InvalidInputError(f"{folder}: no {what} images")
        if int(split.labels.max()) >= len(classes):
            raise FormatError(f"{folder}: a {what} label is {split.labels.max()}, there are {len(classes)} classes")
    mean, std = _statistics(train.images)
    return Data(name, train, test, classes, flip, mean, std)


def _statistics(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of pixel / 255 per channel, to four digits."""
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = np.bincount(images[:, channel].ravel(), minlength=256)
        values = np.arange(256) / 255
        average = float(counts @ values / counts.sum())
        deviation = float(np.sqrt(counts @ (values - average) ** 2 / counts.sum()))
        mean.append(round(average, 4))
        std.append(round(deviation, 4) or 1.0)  # a channel that never changes
    return mean, std


# --- files ----------------------------------------------------------------------------------


def _find(folder: Path, name: str) -> Path | None:
    """Return the file called `name`, plain or compressed."""
    for suffix in COMPRESSIONS:
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    return None


def _need(folder: Path, name: str, whole: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise InvalidInputError(f"{folder}: {name} is missing (plain, .gz or .xz), the other files are of {whole}")
    return path


def _read(path: Path) -> bytes:
    decompress = COMPRESSIONS.get(path.suffix, bytes)
    try:
        return decompress(path.read_bytes())
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise FormatError(f"{path}: cannot be read: {error}") from error


# --- CIFAR ----------------------------------------------------------------------------------

Found = tuple[str, Split, Split, list[str], bool]


def _read_cifar10(folder: Path) -> Found | None:
    for suffix, read in ((".bin", _cifar_binary), ("", _cifar_python)):
        if _find(folder, f"data_batch_1{suffix}") is None:
            continue
        train, test = [
            _joined([read(_need(folder, f"{name}{suffix}", "CIFAR-10"), 1) for name in names])
            for names in (_CIFAR10_TRAIN, ["test_batch"])
        ]
        return (
            "CIFAR-10",
            train,
            test,
            _class_names(folder, ("batches.meta.txt",), "batches.meta", b"label_names", 10),
            True,
        )
    return None


def _read_cifar100(folder: Path) -> Found | None:
    for suffix, read in ((".bin", _cifar_binary), ("", _cifar_python)):
        if _find(folder, f"train{suffix}") is None:
            continue
        paths = [_need(folder, f"{name}{suffix}", "CIFAR-100") for name in ("train", "test")]
        train, test = (read(path, 2) for path in paths)
        names = _class_names(folder, ("fine_label_names.txt",), "meta", b"fine_label_names", 100)
        return "CIFAR-100", train, test, names, True
    return None


def _cifar_binary(path: Path, labels: int) -> Split:
    """Records of 1 label (CIFAR-10) or a coarse and a fine one (CIFAR-100) and 3072 pixels: planes R, G, B."""
    data = np.frombuffer(_read(path), np.uint8)
    record = labels + _CIFAR_PIXELS
    if not data.size or data.size % record:
        raise FormatError(f"{path}: {data.size} bytes are no whole number of records of {record} bytes")
    records = data.reshape(-1, record)
    return Split(records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1].astype(np.int64))


def _cifar_python(path: Path, labels: int) -> Split:
    """A pickled dict: b"data" uint8 [N, 3072] in planes R, G, B, and b"labels" or b"fine_labels"."""
    content = _unpickle(path)
    key = b"labels" if labels == 1 else b"fine_labels"
    try:
        images = np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        found = Split(images, np.asarray(content[key], np.int64))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: no CIFAR batch: expected b'data' [N, 3072] and {key!r} ({error!r})") from error
    if found.labels.shape != (len(images),):
        raise FormatError(f"{path}: {len(images)} images, but labels of shape {list(found.labels.shape)}")
    return found


# numpy moved it to another module, and warns where the old one is named.
_RECONSTRUCT = np.empty(0).__reduce__()[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Makes numpy arrays and plain values only: a pickle may otherwise run any code."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _RECONSTRUCT if name == "_reconstruct" else super().find_class(module, name)


def _unpickle(path: Path) -> dict[bytes, Any]:
    try:
        content = _ArrayUnpickler(io.BytesIO(_read(path)), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise FormatError(f"{path}: no CIFAR batch: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path}: no CIFAR batch: expected a dict, found {type(content).__name__}")
    return content


def _class_names(folder: Path, texts: tuple[str, ...], meta: str, key: bytes, count: int) -> list[str]:
    for name in texts:
        path = _find(folder, name)
        if path is not None:
            lines = [line.strip() for line in _read(path).decode().splitlines() if line.strip()]
            if len(lines) != count:
                raise FormatError(f"{path}: {len(lines)} class names, expected {count}")
            return lines
    path = _find(folder, meta)
    if path is None:
        return [str(label) for label in range(count)]
    names = _unpickle(path).get(key, [])
    if len(names) != count:
        raise FormatError(f"{path}: {len(names)} class names in {key!r}, expected {count}")
    return [name.decode() for name in names]


def _joined(parts: list[Split]) -> Split:
    return Split(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))


# --- MNIST ----------------------------------------------------------------------------------


def _read_mnist(folder: Path) -> Found | None:
    """The four IDX files, whatever stands in front of their usual names (mnist_, emnist-letters-)."""
    halves = {}
    for half in ("train", "t10k"):
        images, labels = (_find_idx(folder, f"{half}-{what}") for what in ("images", "labels"))
        if images is None or labels is None:
            if half == "t10k" and "train" in halves:
                raise InvalidInputError(f"{folder}: t10k-images or t10k-labels of MNIST is missing")
            return None
        pixels = _idx(images, 3)
        halves[half] = Split(pixels[:, None], _idx(labels, 1).astype(np.int64))
        if len(pixels) != len(halves[half].labels):
            raise FormatError(f"{images} has {len(pixels)} images, {labels} {len(halves[half].labels)} labels")
    count = 1 + max(int(split.labels.max()) for split in halves.values())
    return "MNIST", halves["train"], halves["t10k"], [str(label) for label in range(count)], False


def _find_idx(folder: Path, name: str) -> Path | None:
    pattern = f"*{name}?idx[13]-ubyte"
    found = sorted(path for suffix in COMPRESSIONS for path in folder.glob(pattern + suffix))
    if len(found) > 1:
        raise InvalidInputError(f"{folder}: several files are {name}: {', '.join(path.name for path in found)}")
    return found[0] if found else None


def _idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """An IDX file of bytes: 0, 0, 8, rank, the dimensions as big-endian 32-bit numbers, the elements."""
    data = np.frombuffer(_read(path), np.uint8)
    header = 4 + 4 * rank
    if data.size < header or list(data[:4]) != [0, 0, 8, rank]:
        raise FormatError(f"{path}: not an IDX file of {rank} dimensions of bytes: it begins {data[:4].tolist()}")
    dims = [int(dim) for dim in data[4:header].view(">u4")]
    if data.size - header != int(np.prod(dims, dtype=object)):
        raise FormatError(f"{path}: {data.size - header} bytes of elements, but dimensions {dims}")
    return data[header:].reshape(dims)


# --- folders of pictures ----------------------------------------------------------------------


def _read_folders(folder: Path, image_size: int | None) -> Found:
    test = next((folder / name for name in _TEST_FOLDERS if (folder / name).is_dir()), None)
    if test is None:
        raise InvalidInputError(f"{folder}: has a folder train, but none called {' or '.join(_TEST_FOLDERS)}")
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    if not classes:
        raise InvalidInputError(f"{folder / 'train'}: no folders, one for each class is expected")
    extra = sorted(path.name for path in test.iterdir() if path.is_dir() and path.name not in classes)
    if extra:
        raise InvalidInputError(f"{test}: no such class in train: {', '.join(extra)}")
    shape = None if image_size is None else (image_size, image_size)
    splits = []
    for half in (folder / "train", test):
        found: list[tuple[int, int, Path]] = []
        for label, name in enumerate(classes):
            inside = (half / name).iterdir() if (half / name).is_dir() else iter(())
            pictures = sorted(path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES)
            found += [(position, label, path) for position, path in enumerate(pictures)]
        if not found:
            raise InvalidInputError(f"{half}: no .png or .jpg file in the folders of its classes")
        # Class by class in turn: the first few are a fair sample.
        found.sort(key=lambda entry: entry[:2])
        if shape is None:
            shape = _picture_size(found[0][2])
        images = np.empty((len(found), 3, *shape), np.uint8)
        for index, (_, _, path) in enumerate(found):
            images[index] = read_image(path, (*shape, 3), resize=image_size is not None).transpose(2, 0, 1)
        splits.append(Split(images, np.array([label for _, label, _ in found], np.int64)))
    return folder.resolve().name, splits[0], splits[1], classes, True


def _picture_size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as picture:
        return picture.height, picture.width
