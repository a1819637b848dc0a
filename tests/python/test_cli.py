"""The command line, from its arguments to what it prints and its exit status."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from PIL import Image

import tac_engine
from tac_engine import _core, cli

CLASSES = 3


def write_model(path: Path, *, images: bool) -> Path:
    """Write y[o] = sum of w[o] * x over an 1x2x2 input; w picks pixel 0, pixel 1 and the sum."""
    writer = _core.ModelWriter()
    x = writer.add_tensor("x", [1, 2, 2])
    flat = writer.add_tensor("flat", [4])
    y = writer.add_tensor("scores", [CLASSES])
    lut = np.arange(256, dtype=np.float32)[None] if images else None
    writer.add_input(x, lut, True)
    weights = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]], np.float32)
    fields = {"weights": weights.ravel(), "bias": np.zeros(CLASSES, np.float32)}
    writer.add_op("reshape", {"input": x, "output": flat}, "flatten")
    writer.add_op("linear", {"input": flat, "output": y, **fields}, "fc")
    writer.add_output(y)
    writer.save(path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m.tacbin", images=True)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[10, 250], [1, 2]], np.uint8)).save(path)
    return path


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(*arguments) == cli.EXIT_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tac-engine: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_run_prints_the_largest_scores(
    model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nsum\n")
    assert run("run", model, picture, "--labels", labels, "--top", 2) == 0
    assert capsys.readouterr().out.split() == [str(picture), "sum", "263", "dog", "250"]


def test_run_gives_json(model: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", model, picture, "--json", "--top", 1) == 0
    expected = [{"input": str(picture), "top": [{"class": 2, "label": "2", "score": 263.0}]}]
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_run_keeps_the_order_of_a_folder_for_every_batch(
    model: Path, tmp_path: Path, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    floats = np.arange(20, dtype=np.float32).reshape(5, 1, 2, 2)
    images = np.arange(28, dtype=np.uint8).reshape(7, 2, 2, 1)
    np.save(folder / "a.npy", floats)
    np.save(folder / "b.npy", images)
    np.save(folder / "c.npy", floats[4])  # a single sample without batch axis
    np.save(folder / "d.npy", images[6])
    out = tmp_path / "out.npy"
    assert run("run", model, folder, "--batch", batch, "--output", out) == 0
    assert str(out) in capsys.readouterr().out
    values = np.concatenate(
        [floats.reshape(5, 4), images.reshape(7, 4), floats[4:].reshape(1, 4), images[6:].reshape(1, 4)]
    ).astype(np.float32)
    expected = np.stack([values[:, 0], values[:, 1], values.sum(axis=1)], axis=1)
    np.testing.assert_array_equal(np.load(out), expected)


def test_run_resizes_only_when_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = tmp_path / "big.png"
    Image.fromarray(np.full((8, 6, 3), 7, np.uint8)).save(big)
    message = error_of(capsys, "run", model, big)
    assert "2x2" in message
    assert "6x8" in message
    assert "--resize" in message
    assert run("run", model, big, "--resize", "--json", "--top", 1) == 0
    assert json.loads(capsys.readouterr().out)[0]["top"][0]["score"] == 28.0


def test_errors_name_the_thing(model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    empty = tmp_path / "empty"
    empty.mkdir()
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{}], object), allow_pickle=True)
    labels = tmp_path / "two.txt"
    labels.write_text("a\nb\n")
    plain = write_model(tmp_path / "plain.tacbin", images=False)
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.zeros((1, 1, 3, 3), np.float32))

    assert "broken.png: not a readable picture" in error_of(capsys, "run", model, broken)
    assert "empty: no .npy" in error_of(capsys, "run", model, empty)
    assert "pickled.npy: not a .npy array" in error_of(capsys, "run", model, pickled)
    empty = tmp_path / "empty.npy"
    empty.touch()
    assert "empty.npy: not a .npy array" in error_of(capsys, "run", model, empty)
    assert "2 labels for 3 classes" in error_of(capsys, "run", model, picture, "--labels", labels)
    assert "takes no pictures" in error_of(capsys, "run", plain, picture)
    os.mkfifo(tmp_path / "pipe.npy")
    assert "found a pipe or device" in error_of(capsys, "run", model, tmp_path / "pipe.npy")
    assert "gone.png: no such file" in error_of(capsys, "run", model, tmp_path / "gone.png")
    assert "expected shape" in error_of(capsys, "run", model, wrong)
    assert "gone.tacbin" in error_of(capsys, "run", tmp_path / "gone.tacbin", picture)
    assert "magic" in error_of(capsys, "inspect", broken)
    assert "nope" in error_of(capsys, "profile", model, "--backend", "nope")
    assert ".npy" in error_of(capsys, "run", model, picture, "--output", tmp_path / "x.txt")
    assert "give the file to write once" in error_of(capsys, "convert", "a.onnx", "b", "-o", "c")
    assert "gone.onnx" in error_of(capsys, "convert", tmp_path / "gone.onnx")


def test_missing_pillow_is_a_sentence(
    model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert "tac_engine[images]" in error_of(capsys, "run", model, picture)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["run", "m"],
        ["run", "m", "x", "--batch", "0"],
        ["convert", "m", "--mean", "nan"],
        ["convert", "m", "--scale", "1/0"],
        ["convert", "m", "--input-shape", "3,4"],
        ["convert", "m", "--input-layout", "CHW"],
        ["nonsense"],
    ],
)
def test_bad_arguments_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_numbers_may_be_fractions() -> None:
    assert cli.number("1/255") == 1 / 255
    assert cli.number("-0.5") == -0.5
    assert cli.named_shape("a:b:N,3,32") == ("a:b", (None, 3, 32))


def test_convert_passes_every_option_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, object] = {}

    class Report:
        def to_json(self) -> dict[str, int]:
            return {"file_bytes": 1}

    def convert(model: object, output: object, **options: object) -> Report:
        seen.update(options, model=model, output=output)
        return Report()

    monkeypatch.setattr(tac_engine, "convert", convert)
    options = "--mean 0.5 0.4 0.3 --std 1 --scale 1/255 --input-layout NCHW --json"
    options += " --fc-prune 0.75 --fc-bits 4 --fc-precision f32 --conv-precision i16 --explain"
    assert run("convert", "net.onnx", *options.split(), "--input-shape", "x:N,3,32,32") == 0
    assert json.loads(capsys.readouterr().out) == {"file_bytes": 1}
    assert seen == {
        "model": Path("net.onnx"),
        "output": Path("net.tacbin"),
        "mean": [0.5, 0.4, 0.3],
        "std": [1.0],
        "scale": 1 / 255,
        "input_layout": "NCHW",
        "fc_prune": 0.75,
        "fc_bits": 4,
        "fc_precision": "f32",
        "conv_precision": "i16",
        "input_shapes": {"x": (None, 3, 32, 32)},
        "explain": True,
        "progress": None,
    }


def test_inspect_says_what_is_inside(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", model) == 0
    text = capsys.readouterr().out
    assert "input   x: 1x2x2 f32, or uint8 pictures" in text
    assert "fc" in text
    assert f"file {model.stat().st_size} bytes" in text
    assert run("inspect", model, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    # 12 weights and 3 biases of 4 bytes.
    assert [layer["float32_bytes"] for layer in data["layers"]] == [0, 60]
    assert data["float32_bytes"] == 60


def test_inspect_counts_low_bit_weights_as_floats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bits.tacbin"
    writer = _core.ModelWriter()
    binary = {"kind": "linear", "lo": 1, "step": -2, "n_levels": 2}
    x = writer.add_tensor("x", [4, 4, 32])
    bits = writer.add_tensor("bits", [4, 4, 32], "bits", binary)
    y = writer.add_tensor("y", [4, 4, 8])
    writer.add_input(x)
    thresholds = np.zeros(1, np.float32)
    writer.add_op("quantize", {"input": x, "output": bits, "thresholds": thresholds}, "sign")
    window = {"kernel": [3, 3], "strides": [1, 1], "dilations": [1, 1], "pads": [1, 1, 1, 1]}
    fields = {
        "groups": 1,
        "pad_level": 0,
        "weights": np.zeros(8 * 9, np.uint32),
        "w_coefs": [1],
        "w_shift": 0,
        "scale": np.ones(8, np.float32),
        "bias": np.zeros(8, np.float32),
    }
    writer.add_op("binary_conv", {"input": bits, "output": y, **window, **fields}, "conv")
    writer.add_output(y)
    writer.save(path)
    assert run("inspect", path, "--json") == 0
    layer = json.loads(capsys.readouterr().out)["layers"][1]
    assert layer["bits"] == "1 x 1"
    assert layer["output"] == "4x4x8 f32"
    assert layer["float32_bytes"] == 4 * 8 * 9 * 32
    assert layer["bytes"] == 8 * 9 * 4 + 2 * 8 * 4


def write_onnx(path: Path, weight: float) -> Path:
    text = f"""<ir_version: 9, opset_import: ["" : 20]>
    gemm (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {{{weight}, 0.5, -0.25, 3}}> {{ y = MatMul(x, w) }}"""
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_convert_and_verify_an_onnx_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_onnx(tmp_path / "net.onnx", 1.25)
    assert run("convert", source) == 0
    assert "net.tacbin" in capsys.readouterr().out
    target = tmp_path / "net.tacbin"
    assert run("verify", source, target) == 0
    assert "'y': ok" in capsys.readouterr().out
    assert run("verify", source, target, "--json", "--samples", 5) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 5


def test_verify_exits_1_for_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_onnx(tmp_path / "net.onnx", 1.25)
    other = write_onnx(tmp_path / "other.onnx", 1.5)
    assert run("convert", other, "-o", tmp_path / "other.tacbin", "--json") == 0
    assert json.loads(capsys.readouterr().out)["file_bytes"] == (tmp_path / "other.tacbin").stat().st_size
    data = tmp_path / "x.npy"
    np.save(data, np.ones((3, 2), np.float32))
    assert run("verify", source, tmp_path / "other.tacbin", "--data", data, "--json") == cli.EXIT_DIFFERS
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"]
    assert report["samples"] == 3


def test_profile_times_every_layer(model: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profile", model, "--runs", 2, "--batch", 3) == 0
    assert "fc" in capsys.readouterr().out
    assert run("profile", model, picture, "--runs", 2, "--json") == 0
    assert "fc" in json.dumps(json.loads(capsys.readouterr().out))


def test_backends_lists_the_oracle(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("backends", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "scalar" in found["runnable"]
    assert run("backends") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == found["compiled"]
    assert f"{found['active']:8} active" in lines


def test_progress_draws_one_line_and_clears_it() -> None:
    stream = io.StringIO()
    progress = cli.Progress(stream)
    progress("reading", 0.0)
    progress("ok", 0.5)
    progress.clear()
    drawn = stream.getvalue().split("\r")
    assert drawn[1] == f"[{'.' * 30}]   0 % reading"
    assert drawn[2].rstrip() == f"[{'#' * 15}{'.' * 15}]  50 % ok"
    assert len(drawn[2]) == len(drawn[1])
    assert drawn[3].strip() == ""
    # What is written in between has the line to itself, and the next stage is not padded to a line that is gone.
    progress("on", 0.5)
    assert stream.getvalue().endswith(f"\r\r[{'#' * 15}{'.' * 15}]  50 % on")


def test_progress_is_for_terminals_only(model: Path, picture: Path) -> None:
    command = [sys.executable, "-m", "tac_engine", "run", str(model), str(picture)]
    piped = subprocess.run(command, capture_output=True, check=True)
    assert piped.stderr == b""
    leader, follower = pty.openpty()
    try:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=follower, check=True)
        assert b"100 % running" in os.read(leader, 4096)
    finally:
        os.close(leader)
        os.close(follower)


def test_closed_pipe_is_quiet(model: Path, picture: Path) -> None:
    command = f"{sys.executable} -m tac_engine inspect {model} --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert b"Traceback" not in done.stderr
