"""The Python Engine: arrays in and out, errors that say what is wrong, threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tac_engine
from tac_engine import InvalidInputError, _core

BINARY = {"kind": "linear", "lo": 1, "step": -2, "n_levels": 2}
CHANNELS, CLASSES = 3, 5
SIZE = 6


def signs(x: NDArray[Any]) -> NDArray[np.float64]:
    return np.where(x >= 0, 1.0, -1.0)


class ImageModel:
    """[3, 6, 6] -> sign -> 3x3 binary convolution to 40 channels -> float -> 5 logits."""

    def __init__(self, path: Path, lut: NDArray[np.float32] | None = None) -> None:
        random = np.random.default_rng(1)
        self.path = path
        self.kernel = random.choice([-1, 1], (40, 3, 3, CHANNELS))
        self.scale = random.integers(1, 4, 40).astype(np.float32)
        self.weights = random.integers(-2, 3, (CLASSES, SIZE * SIZE * 40)).astype(np.float32)
        writer = _core.ModelWriter()
        x = writer.add_tensor("image", [CHANNELS, SIZE, SIZE])
        nhwc = writer.add_tensor("nhwc", [SIZE, SIZE, CHANNELS])
        bits = writer.add_tensor("bits", [SIZE, SIZE, CHANNELS], "bits", BINARY)
        sums = writer.add_tensor("sums", [SIZE, SIZE, 40])
        flat = writer.add_tensor("flat", [SIZE * SIZE * 40])
        logits = writer.add_tensor("logits", [CLASSES])
        writer.add_op("transpose", {"input": x, "output": nhwc, "perm": [1, 2, 0]}, "transpose")
        # Level +1 is the upper one: x >= 0 reaches it.
        thresholds = np.zeros(1, np.float32)
        writer.add_op("quantize", {"input": nhwc, "output": bits, "thresholds": thresholds}, "sign")
        window = {"kernel": [3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1]}
        rows = (self.kernel.reshape(40, -1) < 0).astype(np.uint8)
        writer.add_op(
            "binary_conv",
            {
                "input": bits,
                "output": sums,
                **window,
                "groups": 1,
                "pad_level": 0,
                "weights": _core.pack_bits(rows),
                "w_coefs": [1],
                "w_shift": 0,
                "scale": self.scale,
                "bias": np.zeros(40, np.float32),
            },
            "conv",
        )
        writer.add_op("reshape", {"input": sums, "output": flat}, "flatten")
        fields = {"input": flat, "output": logits, "weights": self.weights, "bias": np.zeros(CLASSES, np.float32)}
        writer.add_op("linear", fields, "fc")
        writer.add_input(x, lut, True)
        writer.add_output(logits)
        writer.set_metadata('{"producer": "test"}')
        writer.save(path)

    def expected(self, x: NDArray[Any]) -> NDArray[np.float32]:
        padded = np.pad(signs(x), ((0, 0), (0, 0), (1, 1), (1, 1)))
        sums = np.zeros((len(x), SIZE, SIZE, 40))
        for dy in range(3):
            for dx in range(3):
                patch = padded[:, :, dy : dy + SIZE, dx : dx + SIZE]
                sums += np.einsum("nchw,oc->nhwo", patch, self.kernel[:, dy, dx])
        logits = (sums * self.scale).reshape(len(x), SIZE * SIZE * 40) @ self.weights.T.astype(np.float64)
        return logits.astype(np.float32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    return ImageModel(tmp_path_factory.mktemp("model") / "image.tacbin")


@pytest.fixture(scope="module")
def two_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inputs a, b [4]; outputs "sum" [4] and "best" [], the index of the largest of a - b."""
    writer = _core.ModelWriter()
    a = writer.add_tensor("a", [4])
    b = writer.add_tensor("b", [4])
    total = writer.add_tensor("sum", [4])
    difference = writer.add_tensor("difference", [4])
    best = writer.add_tensor("best", [], "i64")
    writer.add_op("binary", {"a": a, "b": b, "output": total, "kind": "add"}, "add")
    writer.add_op("binary", {"a": a, "b": b, "output": difference, "kind": "sub"}, "sub")
    writer.add_op("arg_max", {"input": difference, "output": best, "axis": 0, "select_last": False}, "best")
    writer.add_input(a)
    writer.add_input(b)
    writer.add_output(total)
    writer.add_output(best)
    path = tmp_path_factory.mktemp("model") / "two.tacbin"
    writer.save(path)
    return path


def images(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, CHANNELS, SIZE, SIZE)).astype(np.float32)


@pytest.mark.parametrize("backend", tac_engine.backends()["runnable"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_run_equals_numpy(model: ImageModel, backend: str, threads: int) -> None:
    engine = tac_engine.load(model.path, threads=threads, backend=backend)
    assert engine.backend == backend
    assert engine.threads == threads
    for n in (0, 1, 2, 7):
        y = engine.run(images(n))
        assert y.dtype == np.float32
        assert y.shape == (n, CLASSES)
        np.testing.assert_array_equal(y, model.expected(images(n)))


def test_load_takes_text_and_paths(model: ImageModel) -> None:
    x = images(1)
    for path in (model.path, str(model.path), os.fsencode(model.path)):
        np.testing.assert_array_equal(tac_engine.Engine(path).run(x), model.expected(x))  # type: ignore[arg-type]


def test_file_may_go_once_it_is_loaded(tmp_path: Path) -> None:
    model = ImageModel(tmp_path / "gone.tacbin")
    engine = tac_engine.load(model.path)
    model.path.unlink()
    np.testing.assert_array_equal(engine.run(images(2)), model.expected(images(2)))


def test_facts_about_the_engine(model: ImageModel) -> None:
    engine = tac_engine.load(model.path, backend="scalar")
    assert engine.inputs == (tac_engine.TensorSpec("image", "float32", (None, CHANNELS, SIZE, SIZE)),)
    assert engine.outputs == (tac_engine.TensorSpec("logits", "float32", (None, CLASSES)),)
    assert engine.file_bytes == model.path.stat().st_size
    assert json.loads(engine.metadata) == {"producer": "test"}
    step = engine.peak_bytes(2) - engine.peak_bytes(1)
    assert step > 4 * SIZE * SIZE * 40  # the sums of the convolution
    assert engine.peak_bytes(10) - engine.peak_bytes(1) == 9 * step
    assert engine.peak_bytes(0) > model.weights.nbytes
    assert repr(engine) == (
        f"<tac_engine.Engine {str(model.path)!r} (image: float32[N, 3, 6, 6]) -> "
        "(logits: float32[N, 5]), backend scalar, threads 1>"
    )


def test_dict_in_dict_out(model: ImageModel) -> None:
    x = images(2)
    y = tac_engine.load(model.path).run({"image": x})
    assert list(y) == ["logits"]
    np.testing.assert_array_equal(y["logits"], model.expected(x))


def test_several_inputs_and_outputs(two_by_two: Path) -> None:
    engine = tac_engine.load(two_by_two)
    assert engine.outputs[1] == tac_engine.TensorSpec("best", "int64", (None,))
    a = np.array([[1, 2, 3, 4], [9, 0, 0, 0]], np.float32)
    b = np.array([[0, 5, 0, 0], [0, 0, 0, 1]], np.float32)
    y = engine.run({"b": b, "a": a})
    np.testing.assert_array_equal(y["sum"], a + b)
    assert y["best"].dtype == np.int64
    np.testing.assert_array_equal(y["best"], [3, 0])


def test_out_is_written_and_returned(model: ImageModel, two_by_two: Path) -> None:
    engine = tac_engine.load(model.path)
    x = images(3)
    out = np.empty((3, CLASSES), np.float32)
    assert engine.run(x, out=out) is out
    np.testing.assert_array_equal(out, model.expected(x))
    out[:] = 0
    named = {"logits": out}
    assert engine.run(x, out=named) is named
    np.testing.assert_array_equal(out, model.expected(x))
    part = np.zeros((9, CLASSES), np.float32)
    engine.run(x, out=part[3:6])
    np.testing.assert_array_equal(part[3:6], model.expected(x))
    assert not part[:3].any()
    assert not part[6:].any()
    both = {"sum": np.empty((1, 4), np.float32), "best": np.empty(1, np.int64)}
    ones = np.ones((1, 4), np.float32)
    tac_engine.load(two_by_two).run({"a": ones, "b": ones}, out=both)
    np.testing.assert_array_equal(both["sum"], 2 * ones)


def test_images_go_through_the_preprocessing(tmp_path: Path) -> None:
    lut = (np.arange(256, dtype=np.float32)[None] - np.array([[100], [128], [30]], np.float32)).astype(np.float32)
    model = ImageModel(tmp_path / "lut.tacbin", lut)
    engine = tac_engine.load(model.path, threads=2)
    assert engine.inputs[0].image_shape == (SIZE, SIZE, CHANNELS)
    pictures = np.random.default_rng(3).integers(0, 256, (4, SIZE, SIZE, CHANNELS), np.uint8)
    floats = (pictures - np.array([100, 128, 30], np.float32)).transpose(0, 3, 1, 2)
    expected = model.expected(floats)
    np.testing.assert_array_equal(engine.run(pictures), expected)
    np.testing.assert_array_equal(engine.run(np.ascontiguousarray(floats, np.float32)), expected)
    one = engine.run(pictures[2])
    assert one.shape == (1, CLASSES)
    np.testing.assert_array_equal(one[0], expected[2])
    assert engine.run(pictures[:0]).shape == (0, CLASSES)
    with pytest.raises(
        InvalidInputError, match=r"input 'image', as images: expected shape \[N, 6, 6, 3\], found.*channels last"
    ):
        engine.run(np.zeros((1, 3, 6, 6), np.uint8))
    with pytest.raises(InvalidInputError, match=r"expected shape \[N, 3, 6, 6\], found .*; pictures.* are uint8"):
        engine.run(np.zeros((1, 6, 6, 3), np.float32))
    with pytest.raises(InvalidInputError, match=r"expected dtype float32 or uint8 \(images\), found int8"):
        engine.run(np.zeros((1, 6, 6, 3), np.int8))


def with_nan() -> NDArray[np.float32]:
    x = images(2)
    x[1, 2, 0, 5] = np.nan
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images(1).astype(np.float64), "input 'image': expected dtype float32, found float64; pass x.astype"),
        (images(1).astype(">f4"), "expected dtype float32, found >f4"),
        (np.zeros((1, SIZE, SIZE, 3), np.uint8), "found uint8; the model was converted without a preprocessing"),
        (images(1)[0], r"expected shape \[N, 3, 6, 6\], found \[3, 6, 6\]; the batch axis is missing"),
        (np.zeros((1, 3, 6, 7), np.float32), r"expected shape \[N, 3, 6, 6\], found \[1, 3, 6, 7\]$"),
        (np.float32(1), "input 'image': expected a numpy array, found float32"),
        (images(1).tolist(), "expected a numpy array, found list"),
        (None, "expected a numpy array, found NoneType"),
        (images(4)[::2], r"pass numpy.ascontiguousarray\(x\)"),
        (np.asfortranarray(images(2)), "expected a C-contiguous array, found strides"),
        (with_nan(), r"tensor 'image': expected numbers, found NaN at index \[1, 2, 0, 5\]"),
        ({"picture": images(1)}, "no input is named 'picture': expected 'image'"),
        ({}, "input 'image' is missing: expected 'image'"),
        ({"image": [1]}, "input 'image': expected a numpy array, found list"),
    ],
)
def test_bad_input_says_what_is_wrong(model: ImageModel, x: Any, message: str) -> None:
    engine = tac_engine.load(model.path)
    with pytest.raises(InvalidInputError, match=message):
        engine.run(x)
    with pytest.raises(InvalidInputError, match=message):
        engine.profile(x)


def test_misaligned_input_is_refused(model: ImageModel) -> None:
    raw = np.zeros(images(1).nbytes + 1, np.uint8)
    x = raw[1:].view(np.float32).reshape(1, CHANNELS, SIZE, SIZE)
    assert not x.flags.aligned
    with pytest.raises(InvalidInputError, match="input 'image'"):
        tac_engine.load(model.path).run(x)


def test_bad_out_says_what_is_wrong(model: ImageModel) -> None:
    engine = tac_engine.load(model.path)
    x = images(2)
    read_only = np.zeros((2, CLASSES), np.float32)
    read_only.flags.writeable = False
    for out, message in [
        (np.zeros((2, CLASSES)), "output 'logits': expected dtype float32, found float64"),
        (np.zeros((3, CLASSES), np.float32), r"output 'logits': expected shape \[2, 5\], found \[3, 5\]"),
        (np.zeros((2, 2 * CLASSES), np.float32)[:, ::2], "expected a C-contiguous array"),
        (read_only, "expected a writable array"),
        (x.reshape(-1)[7 : 7 + 2 * CLASSES].reshape(2, CLASSES), "overlaps the array of input 'image'"),
        ({"scores": np.zeros((2, CLASSES), np.float32)}, "no output is named 'scores'"),
        ([0.0], "output 'logits': expected a numpy array, found list"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            engine.run(x, out=out)  # type: ignore[arg-type]


def test_bad_dicts_say_what_is_wrong(two_by_two: Path) -> None:
    engine = tac_engine.load(two_by_two)
    a = np.ones((2, 4), np.float32)
    with pytest.raises(InvalidInputError, match="the model has 2 inputs: expected a dict with 'a', 'b', found ndarray"):
        engine.run(a)
    with pytest.raises(InvalidInputError, match="input 'b' is missing: expected 'a', 'b'"):
        engine.run({"a": a})
    with pytest.raises(InvalidInputError, match="input 'b': expected a batch of 2 like input 'a', found 3"):
        engine.run({"a": a, "b": np.ones((3, 4), np.float32)})
    with pytest.raises(InvalidInputError, match="the model has 2 outputs: expected a dict"):
        engine.run({"a": a, "b": a}, out=np.zeros((2, 4), np.float32))
    shared = np.zeros(16, np.float32)
    overlapping = {"sum": shared[:8].reshape(2, 4), "best": shared[4:8].view(np.int64)}
    with pytest.raises(InvalidInputError, match="overlaps the array of output 'sum'"):
        engine.run({"a": a, "b": a}, out=overlapping)


def test_bad_options_say_what_is_wrong(model: ImageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for threads in (0, -1, 1025):
        with pytest.raises(InvalidInputError, match=rf"threads is {threads}, expected 1\.\.1024"):
            tac_engine.load(model.path, threads=threads)
    with pytest.raises(TypeError):
        tac_engine.load(model.path, threads=1.5)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="unknown backend 'sse9'; there are amx, avx512"):
        tac_engine.load(model.path, backend="sse9")
    with pytest.raises(InvalidInputError, match="backend is ''"):
        tac_engine.load(model.path, backend="")
    with pytest.raises(tac_engine.FormatError, match="no_such"):
        tac_engine.load(tmp_path / "no_such.tacbin")
    (tmp_path / "text.tacbin").write_text("hello" * 100)
    with pytest.raises(tac_engine.FormatError):
        tac_engine.load(tmp_path / "text.tacbin")
    engine = tac_engine.load(model.path)
    with pytest.raises(InvalidInputError, match="batch is -1"):
        engine.peak_bytes(-1)
    for batch in (1 << 60, 1 << 100):
        with pytest.raises(InvalidInputError):
            engine.peak_bytes(batch)
    with pytest.raises(InvalidInputError, match="runs is 0, expected at least 1"):
        engine.profile(images(1), runs=0)
    with pytest.raises(InvalidInputError, match="an empty batch"):
        engine.profile(images(0))
    monkeypatch.setenv("TAC_BACKEND", "sse9")
    with pytest.raises(InvalidInputError, match="TAC_BACKEND"):
        tac_engine.load(model.path)


def test_environment_names_the_backend(model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAC_BACKEND", "scalar")
    assert tac_engine.load(model.path).backend == "scalar"
    assert tac_engine.backends()["active"] == "scalar"
    best = tac_engine.backends()["runnable"][0]
    assert tac_engine.load(model.path, backend=best).backend == best


def test_core_checks_arrays_on_its_own(model: ImageModel) -> None:
    core = _core.Engine(model.path)
    x, y = images(2), np.zeros((2, CLASSES), np.float32)
    for inputs, outputs, n in [
        ([x.astype(np.float64)], [y], 2),
        ([x[:, ::-1]], [y], 2),
        ([x], [y], 3),
        ([x], [y[:1]], 2),
        ([x], [], 2),
        ([], [y], 2),
        ([x], [y], 1 << 62),
    ]:
        with pytest.raises(InvalidInputError):
            core.run(inputs, outputs, n)
    with pytest.raises(InvalidInputError):
        core.profile([], 1, 1)


def test_profile_shows_every_layer(model: ImageModel) -> None:
    profile = tac_engine.load(model.path, backend="scalar").profile(images(4), runs=3)
    assert [row.name for row in profile.rows] == ["image", "transpose", "sign", "conv", "fc"]
    assert [row.kind for row in profile.rows] == ["input", "transpose", "quantize", "binary_conv", "linear"]
    conv = profile.rows[3]
    assert conv.kernel == "bconv_b1_i32/scalar"
    assert conv.macs == 4 * SIZE * SIZE * 40 * 9 * CHANNELS
    assert conv.gmacs_per_s == pytest.approx(conv.macs / conv.ms / 1e6)
    assert sum(row.share for row in profile.rows) == pytest.approx(1)
    assert profile.ms == pytest.approx(sum(row.ms for row in profile.rows))
    assert (profile.backend, profile.threads, profile.batch, profile.runs) == ("scalar", 1, 4, 3)
    data = json.loads(json.dumps(profile.to_json()))
    assert data["rows"][3]["kernel"] == "bconv_b1_i32/scalar"
    lines = str(profile).splitlines()
    assert len(lines) == 3 + 5 + 1
    assert lines[0] == "backend scalar, 1 thread, batch 4, median of 3 runs"
    column = lines[1].index("kernel")
    assert all(line[column - 2 : column] == "  " for line in lines[3:])
    assert lines[-1].startswith("total")


@pytest.mark.parametrize("threads", [1, 2])
def test_one_engine_serves_many_threads(model: ImageModel, threads: int) -> None:
    engine = tac_engine.load(model.path, threads=threads)
    batches = [images(1 + i % 4, seed=i) for i in range(8)]
    expected = [model.expected(batch) for batch in batches]
    right = [0] * len(batches)

    def work(i: int) -> None:
        for _ in range(40):
            right[i] += np.array_equal(engine.run(batches[i]), expected[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert right == [40] * len(batches)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_running_imports_no_converter() -> None:
    done = run_python(
        "import sys, tac_engine\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('onnx', 'onnxruntime', 'PIL')"
        " or m.startswith('tac_engine.converters')])"
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_convert_without_its_extra_names_it() -> None:
    done = run_python(
        "import sys\nsys.modules['onnx'] = None\nimport tac_engine\n"
        "try:\n    tac_engine.convert('a.onnx', 'b.tacbin')\n"
        "except ImportError as error:\n    print(error)"
    )
    assert done.stdout.startswith("converting needs the extra: pip install 'tac_engine[convert]'"), done


def test_missing_extension_is_a_sentence() -> None:
    done = run_python(
        "import sys\nsys.modules['tac_engine._core'] = None\n"
        "try:\n    import tac_engine\nexcept ImportError as error:\n    print(error)"
    )
    assert "cannot load its compiled part tac_engine._core" in done.stdout, done


def test_forked_child_runs_alone(model: ImageModel) -> None:
    done = run_python(
        "import os, sys, numpy as np, tac_engine\n"
        f"engine = tac_engine.load({str(model.path)!r}, threads=3)\n"
        f"x = np.ones((4, {CHANNELS}, {SIZE}, {SIZE}), np.float32)\n"
        "y = engine.run(x)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if np.array_equal(engine.run(x), y) else 3)\n"
        "print(os.waitpid(child, 0)[1])\n"
    )
    assert done.stdout.strip() == "0", done


def test_public_names() -> None:
    assert all(hasattr(tac_engine, name) for name in tac_engine.__all__)
    assert issubclass(InvalidInputError, tac_engine.TacError)
    assert tac_engine.__version__ == _core.__version__
