"""`compress_model`: which layers it takes, what it writes, what it measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_models import floats, parse
from tac_engine.converters.compress import compress_model
from tac_engine.converters.evaluate import ReferenceModel

import tac_engine
from tac_engine import cli
from tac_engine.errors import InvalidInputError

TWO_LAYERS = "h = Gemm <transB = 1> (x, w1, b1) r = Relu(h) y = MatMul(r, w2)"


def constants() -> dict[str, Any]:
    return {"w1": floats(40, 20, seed=1), "b1": floats(40, seed=2), "w2": floats(40, 5, seed=3)}


def two_layers(path: Path, **changes: Any) -> Path:
    model = parse(TWO_LAYERS, inputs="float[N, 20] x", outputs="float[N, 5] y", constants={**constants(), **changes})
    model.graph.node[0].name, model.graph.node[2].name = "first", "second"
    onnx.save(model, path)
    return path


def weights(path: Path) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_layers_get_zeros_and_few_values_and_the_effect_is_that_of_the_file(tmp_path: Path) -> None:
    source, target = two_layers(tmp_path / "a.onnx"), tmp_path / "b.onnx"
    x = floats(300, 20, seed=4)
    labels = np.arange(300) % 5
    report = compress_model(source, target, prune=0.6, bits=3, inputs=x, labels=labels)
    assert [(layer.name, layer.shape) for layer in report.layers] == [("first", (40, 20)), ("second", (40, 5))]
    found = weights(target)
    for name in ("w1", "w2"):
        w = found[name]
        assert (w == 0).mean() == pytest.approx(0.6, abs=0.005)
        assert np.unique(w[w != 0]).size <= 7
        # What survives lies near what it was, and the smallest are those that went.
        original = constants()[name]
        assert np.abs(original[w == 0]).max() <= np.abs(original[w != 0]).min()
        assert np.corrcoef(original[w != 0], w[w != 0])[0, 1] > 0.95
    np.testing.assert_array_equal(found["b1"], constants()["b1"])
    before, after = (ReferenceModel(path).run({"x": x})["y"] for path in (source, target))
    assert report.effect.output_error == pytest.approx(
        np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-4
    )
    assert report.effect.same_class == pytest.approx((after.argmax(1) == before.argmax(1)).mean())
    assert report.effect.accuracy == pytest.approx((after.argmax(1) == labels).mean())
    assert report.accuracy_before == pytest.approx((before.argmax(1) == labels).mean())
    assert report.tacbin_bytes < report.tacbin_bytes_before
    assert {row.kind for row in tac_engine.convert(target, tmp_path / "b.tacbin").layers} >= {"codebook linear"}


def test_sensitivity_is_that_of_one_layer_alone(tmp_path: Path) -> None:
    source, x = two_layers(tmp_path / "a.onnx"), floats(100, 20, seed=4)
    report = compress_model(source, tmp_path / "all.onnx", inputs=x)
    alone = compress_model(source, tmp_path / "one.onnx", inputs=x, skip=["second"])
    assert alone.skipped == {"second": "as asked"}
    assert alone.effect == alone.layers[0].effect == report.layers[0].effect
    np.testing.assert_array_equal(weights(tmp_path / "one.onnx")["w2"], constants()["w2"])


def test_nothing_to_lose_loses_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    values = np.array([-2, -1, 1, 2], np.float32)
    w1 = np.where(rng.random((40, 20)) < 0.75, 0, rng.choice(values, (40, 20)) * rng.uniform(0.9999, 1.0001, (40, 20)))
    source = two_layers(tmp_path / "a.onnx", w1=w1.astype(np.float32))
    report = compress_model(source, tmp_path / "b.onnx", prune=0.7, skip=["second"])
    assert report.effect.output_error < 1e-3
    assert report.data == "standard normal, seed 0"
    assert report.samples == 64


def test_weights_are_found_behind_transposes_and_in_constants(tmp_path: Path) -> None:
    model = parse("t = Transpose <perm = [1, 0]> (w) i = Identity(t) y = MatMul(x, i)", constants={"w": floats(30, 4)})
    onnx.save(model, tmp_path / "a.onnx")
    compress_model(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert (weights(tmp_path / "b.onnx")["w"] == 0).mean() == pytest.approx(0.75)

    model = parse("y = MatMul(x, w)", constants={})
    node = onnx.helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(floats(4, 30), "w"))
    model.graph.node.insert(0, node)
    onnx.save(model, tmp_path / "a.onnx")
    compress_model(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert (numpy_helper.to_array(onnx.load(tmp_path / "b.onnx").graph.node[0].attribute[0].t) == 0).mean() == 0.75


def test_external_data_come_into_the_file(tmp_path: Path) -> None:
    model = onnx.load(two_layers(tmp_path / "a.onnx"))
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    compress_model(tmp_path / "e.onnx", tmp_path / "b.onnx")
    (tmp_path / "e.data").unlink()
    assert (weights(tmp_path / "b.onnx")["w1"] == 0).mean() == pytest.approx(0.75)
    np.testing.assert_array_equal(weights(tmp_path / "b.onnx")["b1"], constants()["b1"])


@pytest.mark.parametrize(
    ("body", "extra", "reason"),
    [
        ("y = MatMul(x, w)", {"w": np.sign(floats(6, 30))}, "y: its weight has 2 values already"),
        ("s = Sign(w) y = MatMul(x, s)", {"w": floats(6, 30)}, "y: its weight 's' is computed"),
        ("y = MatMul(x, w)", {"w": floats(2, 6, 30)}, "float32 of rank 3, not float32 of rank 2"),
        ("m = MatMul(x, w) y = Add(m, w)", {"w": floats(6, 6)}, "its weight is also read by 'y'"),
        ("y = Relu(x)", {}, "it has none"),
    ],
)
def test_layers_that_are_left_alone_have_a_reason(
    body: str, extra: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    onnx.save(parse(body, inputs="float[N, 6] x", constants=extra), tmp_path / "a.onnx")
    with pytest.raises(InvalidInputError, match=f"no fully connected layer to compress .*{reason}"):
        compress_model(tmp_path / "a.onnx", tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune": 1.0}, r"prune must be in \[0, 1\), got 1\.0"),
        ({"bits": 5}, "bits must be 1, 2, 3 or 4, got 5"),
        ({"skip": ["third"]}, "no fully connected layer is called third; there are first, second"),
        ({"labels": np.zeros(3, np.int64)}, "labels are given, but no inputs"),
        ({"inputs": floats(0, 20)}, "inputs are empty"),
        (
            {"inputs": floats(3, 20), "labels": np.zeros(2, np.int64)},
            r"labels are int64 \[2\], expected integers \[3\]",
        ),
        ({"inputs": floats(3, 20), "labels": floats(3)}, r"labels are float32 \[3\], expected integers \[3\]"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        compress_model(two_layers(tmp_path / "a.onnx"), tmp_path / "b.onnx", **options)


def test_the_model_itself_is_not_overwritten(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "a.onnx")
    with pytest.raises(InvalidInputError, match=r"a\.onnx is the model itself"):
        compress_model(source, source)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = two_layers(tmp_path / "a.onnx")
    x = floats(200, 20, seed=6)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", ReferenceModel(source).run({"x": x})["y"].argmax(1))
    given = ["compress", str(source), "-o", str(tmp_path / "b.onnx"), "--data", str(tmp_path / "x.npy")]
    given += ["--labels", str(tmp_path / "labels.npy")]
    assert cli.main([*given, "--max-loss", "99", "--prune", "0.5"]) == 0
    assert "accuracy before 100.00%" in capsys.readouterr().out
    assert cli.main([*given, "--prune", "0.95", "--json"]) == cli.EXIT_DIFFERS
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["accuracy_loss"] > 1
    assert cli.main([*given, "--samples", "7", "--max-loss", "100"]) == 0
    assert "7 samples (given)" in capsys.readouterr().out


def test_command_line_measures_on_the_test_images_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for half in ("train", "t10k"):
        header = bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 4, 0, 0, 0, 5])
        (tmp_path / f"{half}-images-idx3-ubyte").write_bytes(header + bytes(range(180)))
        (tmp_path / f"{half}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9, *range(9)]))
    model = parse(
        "f = Flatten(x) y = MatMul(f, w)",
        inputs="float[N, 1, 4, 5] x",
        outputs="float[N, 9] y",
        constants={"w": floats(20, 9)},
    )
    onnx.save(model, tmp_path / "a.onnx")
    given = ["compress", str(tmp_path / "a.onnx"), "-o", str(tmp_path / "b.onnx"), "--data", str(tmp_path)]
    assert cli.main(given) == cli.EXIT_ERROR
    assert "say by --mean, --std or --scale how the model takes them" in capsys.readouterr().err
    assert cli.main([*given, "--scale", "1/255", "--max-loss", "100"]) == 0
    assert "9 samples (given)" in capsys.readouterr().out
