"""Data sets in the layouts that they are published in, and files that are not what they say."""

from __future__ import annotations

import gzip
import lzma
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic import CLASSES, idx, write_digits

from tac_engine.errors import FormatError, InvalidInputError
from tac_engine.train.data import load_data

RNG = np.random.default_rng(30)
CIFAR_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def cifar10(count: int = 4) -> dict[str, tuple[Any, Any]]:
    return {
        name: (RNG.integers(0, 256, (count, 3, 32, 32), np.uint8), RNG.integers(0, 10, count, np.uint8))
        for name in CIFAR_FILES
    }


def records(images: Any, *labels: Any) -> bytes:
    return np.concatenate([*(label[:, None] for label in labels), images.reshape(len(images), -1)], 1).tobytes()


def same(split: Any, *parts: tuple[Any, Any]) -> None:
    np.testing.assert_array_equal(split.images, np.concatenate([images for images, _ in parts]))
    np.testing.assert_array_equal(split.labels, np.concatenate([labels for _, labels in parts]))
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)], ids=["plain", "gz", "xz"]
)
def test_cifar10_binary(suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    batches = cifar10()
    for name, (images, labels) in batches.items():
        (tmp_path / f"{name}.bin{suffix}").write_bytes(pack(records(images, labels)))
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    data = load_data(tmp_path)
    same(data.train, *(batches[name] for name in CIFAR_FILES[:5]))
    same(data.test, batches["test_batch"])
    assert (data.name, data.classes, data.flip, data.input_shape) == ("CIFAR-10", list("abcdefghij"), True, (3, 32, 32))
    pixels = data.train.images.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(1), atol=5.1e-5)
    np.testing.assert_allclose(data.std, pixels.std(1), atol=5.1e-5)


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10_python(protocol: int, tmp_path: Path) -> None:
    batches = cifar10()
    for name, (images, labels) in batches.items():
        content = {b"batch_label": b"x", b"data": images.reshape(-1, 3072), b"labels": labels.tolist()}
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"n%d" % i for i in range(10)]}, protocol))
    data = load_data(tmp_path)
    same(data.train, *(batches[name] for name in CIFAR_FILES[:5]))
    same(data.test, batches["test_batch"])
    assert data.classes == [f"n{i}" for i in range(10)]


def test_cifar10_python_as_python_2_wrote_it(tmp_path: Path) -> None:
    """Protocol 2 of numpy 1: byte strings, and the module that numpy 2 warns about."""
    pixels = bytes(range(256)) * 24
    head = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    head += b"(K\x01K\x02M\x00\x0c\x86"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    body = b"T" + len(pixels).to_bytes(4, "little") + pixels + b"tbU\x06labels](K\x03K\x07eu."
    for name in CIFAR_FILES:
        (tmp_path / name).write_bytes(head + dtype + body)
    data = load_data(tmp_path)
    assert data.train.images.tobytes() == 5 * pixels
    assert data.test.labels.tolist() == [3, 7]


@pytest.mark.parametrize("layout", ["binary", "python"])
def test_cifar100_takes_the_fine_labels(layout: str, tmp_path: Path) -> None:
    images, coarse, fine = RNG.integers(0, 256, (3, 3, 32, 32), np.uint8), np.uint8([1, 2, 3]), np.uint8([99, 0, 50])
    for name in ("train", "test"):
        if layout == "binary":
            (tmp_path / f"{name}.bin").write_bytes(records(images, coarse, fine))
        else:
            content = {b"data": images.reshape(3, -1), b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}
            (tmp_path / name).write_bytes(pickle.dumps(content, 2))
    data = load_data(tmp_path)
    same(data.train, (images, fine))
    assert (data.name, len(data.classes)) == ("CIFAR-100", 100)


@pytest.mark.parametrize("prefix", ["", "mnist_"])
def test_mnist(prefix: str, tmp_path: Path) -> None:
    images, labels = RNG.integers(0, 256, (5, 7, 9), np.uint8), np.uint8([0, 1, 2, 3, 9])
    for half in ("train", "t10k"):
        (tmp_path / f"{prefix}{half}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{prefix}{half}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    data = load_data(tmp_path, train_images=3)
    same(data.train, (images[:3, None], labels[:3]))
    same(data.test, (images[:, None], labels))
    assert (data.name, data.flip, data.input_shape, len(data.classes)) == ("MNIST", False, (1, 7, 9), 10)


def write_picture(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.mark.parametrize("test", ["test", "val"])
def test_folders_of_pictures(test: str, tmp_path: Path) -> None:
    for half in ("train", test):
        for label, name in enumerate(("ant", "bee")):
            for i in range(2):
                write_picture(tmp_path / half / name / f"{i}.png", (6, 4), (label, 10 * i, 100))
    data = load_data(tmp_path)
    assert (data.classes, data.input_shape) == (["ant", "bee"], (3, 4, 6))
    # The classes in turn.
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert data.train.images[:, :, 0, 0].tolist() == [[0, 0, 100], [1, 0, 100], [0, 10, 100], [1, 10, 100]]
    assert load_data(tmp_path, image_size=5).input_shape == (3, 5, 5)


def test_pictures_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    for half in ("train", "test"):
        write_picture(tmp_path / half / "ant" / "0.png", (6, 4), (0, 0, 0))
        write_picture(tmp_path / half / "ant" / "1.png", (6, 5), (0, 0, 0))
    with pytest.raises(InvalidInputError, match=r"takes 6x4 pictures, this one is 6x5"):
        load_data(tmp_path)


def test_first_images_and_fingerprint(tmp_path: Path) -> None:
    write_digits(tmp_path, 20, 10)
    one, other = load_data(tmp_path), load_data(tmp_path, train_images=19)
    assert len(other.train) == 19
    assert one.fingerprint() == load_data(tmp_path).fingerprint() != other.fingerprint()
    assert len(one.classes) == CLASSES


def broken_batch(folder: Path, content: bytes, name: str = "data_batch_1.bin") -> None:
    for other in CIFAR_FILES:
        (folder / f"{other}{Path(name).suffix}").write_bytes(content)


class Evil:
    def __reduce__(self) -> Any:
        return os.getcwd, ()


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        (lambda folder: None, InvalidInputError, "no data set found; expected data_batch_1"),
        (lambda folder: (folder / "data_batch_1.bin").write_bytes(b""), FormatError, "0 bytes are no whole number"),
        (
            lambda folder: broken_batch(folder, bytes(3074)),
            FormatError,
            "3074 bytes are no whole number of records of 3073",
        ),
        (lambda folder: broken_batch(folder, b"\x0b" + bytes(3072)), FormatError, "label is 11, there are 10 classes"),
        (lambda folder: (folder / "data_batch_1.bin.xz").write_bytes(b"xz"), FormatError, "cannot be read"),
        (lambda folder: broken_batch(folder, pickle.dumps(Evil()), "x"), FormatError, r"asks for posix\.getcwd"),
        (lambda folder: broken_batch(folder, b"junk", "x"), FormatError, "no CIFAR batch"),
        (lambda folder: broken_batch(folder, pickle.dumps([1]), "x"), FormatError, "expected a dict, found list"),
        (lambda folder: broken_batch(folder, pickle.dumps({b"data": []}), "x"), FormatError, "expected b'data'"),
        (lambda folder: (folder / "train").write_bytes(b""), InvalidInputError, "test is missing"),
        (lambda folder: (folder / "train" / "a").mkdir(parents=True), InvalidInputError, "none called test or val"),
    ],
)
def test_what_is_wrong_is_said(
    write: Callable[[Path], Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(error, match=message):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", idx(np.zeros((2, 3), np.uint8)), "not an IDX file of 3 dimensions"),
        ("train-images-idx3-ubyte", idx(np.zeros((20, 12, 12), np.uint8))[:-1], "2879 bytes of elements"),
        ("train-labels-idx1-ubyte", idx(np.zeros(19, np.uint8)), "20 images, .* 19 labels"),
    ],
)
def test_broken_idx_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    write_digits(tmp_path, 20, 10)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=message):
        load_data(tmp_path)


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    write_digits(tmp_path, 20, 10)
    with pytest.raises(InvalidInputError, match="image size is for folders"):
        load_data(tmp_path, image_size=8)
    with pytest.raises(InvalidInputError, match=r"21 training images are asked for, .* has 20"):
        load_data(tmp_path, train_images=21)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InvalidInputError, match="t10k-images or t10k-labels of MNIST is missing"):
        load_data(tmp_path)
    with pytest.raises(InvalidInputError, match="no such folder"):
        load_data(tmp_path / "none")
