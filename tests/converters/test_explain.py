"""What `convert(explain=True)` says of each layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import Array, Net, convert
from tac_engine.converters.explain import LayerExplanation

from tac_engine.cli import main


def explanations(net: Net, output: str, folder: Path, **options: Any) -> list[LayerExplanation]:
    return convert(net.model(output), folder, explain=True, **options)[0].explanations


def last_layer(activation: str, weight: Array, folder: Path) -> LayerExplanation:
    """One convolution behind ``activation`` (an op name, "" for none) of the input."""
    net = Net(("N", 4, 6, 6))
    x = "x"
    if activation == "Clip":
        x = net.op("Clip", x, net.constant(-1.0), net.constant(1.0))
    elif activation:
        x = net.op(activation, x)
    return explanations(net, net.conv(x, weight), folder)[-1]


def test_a_binary_layer_shows_its_value_sets(tmp_path: Path) -> None:
    net = Net(("N", 4, 6, 6))
    scale = np.linspace(0.5, 2.0, 8, dtype=np.float32).reshape(-1, 1, 1, 1)
    first = net.conv(net.op("Sign", "x"), net.signs(8, 4, 3, 3) * scale)
    second = net.conv(net.op("Sign", net.batch_norm(first, 8)), net.signs(8, 8, 1, 1))
    found = explanations(net, second, tmp_path)
    assert [entry.op for entry in found] == ["Conv", "Conv"]
    assert found[0].weights == "{-1, 1} times a scale per output channel, 0.5 to 2"
    assert found[0].activation.endswith("is {-1, 0, 1}: Sign on the floats of 'x'")
    assert found[0].sums == "-36 to 36"
    assert found[1].weights == "{-1, 1}"
    assert "BatchNormalization, Sign on the sums of Conv 'Conv_1'" in found[1].activation
    assert all(not entry.reason and not entry.hint for entry in found)


def test_a_dropped_sign_is_named(tmp_path: Path) -> None:
    found = last_layer("Relu", Net(("N", 4, 6, 6)).signs(8, 4, 3, 3), tmp_path)
    assert found.became.startswith("float conv")
    assert "producer Relu 'Relu_0' has no quantizer" in found.reason
    assert "the exporter dropped their sign" in found.reason
    assert "assigns to .data" in found.hint
    assert "limits the range" not in found.hint


def test_a_clamp_is_no_sign(tmp_path: Path) -> None:
    found = last_layer("Clip", Net(("N", 4, 6, 6)).signs(8, 4, 3, 3), tmp_path)
    assert "Clip 'Clip_0' limits the range, it does not round" in found.hint


@pytest.mark.parametrize("moves", ["Flatten", "MaxPool", "Pad", "Transpose", "Squeeze"])
def test_a_missing_sign_is_looked_for_behind_what_moves_values(moves: str, tmp_path: Path) -> None:
    net = Net(("N", 4, 6, 6))
    x = net.op("GlobalAveragePool", "x") if moves == "Squeeze" else "x"
    x = net.op("Clip", x, net.constant(-1.0), net.constant(1.0))
    if moves in ("Flatten", "Transpose"):
        x = net.op("Transpose", x, perm=[0, 2, 3, 1]) if moves == "Transpose" else x
        output = net.op("MatMul", net.op("Flatten", x), net.constant(net.signs(144, 8)))
    elif moves == "Squeeze":
        output = net.op("MatMul", net.op("Squeeze", x, net.constant([2, 3], np.int64)), net.constant(net.signs(4, 8)))
    else:
        pads = net.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
        x = net.op("Pad", x, pads) if moves == "Pad" else net.op("MaxPool", x, kernel_shape=[2, 2])
        output = net.conv(x, net.signs(8, 4, 3, 3))
    found = explanations(net, output, tmp_path)[-1]
    assert "its producer Clip 'Clip_" in found.activation
    assert "limits the range, it does not round" in found.hint
    assert "assigns to .data" in found.hint


def test_an_image_is_looked_for_behind_a_flattening(tmp_path: Path) -> None:
    net = Net(("N", 4, 6, 6))
    found = explanations(net, net.op("MatMul", net.op("Flatten", "x"), net.constant(net.signs(144, 8))), tmp_path)[-1]
    assert "a model input is not a quantizer" in found.activation
    assert "first layers usually read floats" in found.hint


def dorefa(net: Net, bits: int) -> str:
    top = net.constant(2.0**bits - 1)
    clipped = net.op("Clip", "x", net.constant(0.0), net.constant(1.0))
    return net.op("Div", net.op("Round", net.op("Mul", clipped, top)), top)


@pytest.mark.parametrize("pooled", [False, True], ids=["", "pooled"])
@pytest.mark.parametrize("bits", [5, 8])
def test_a_quantizer_too_wide_for_bit_planes_is_named(bits: int, pooled: bool, tmp_path: Path) -> None:
    net = Net(("N", 4, 6, 6))
    x = dorefa(net, bits)
    x = net.op("MaxPool", x, kernel_shape=[2, 2]) if pooled else x
    found = explanations(net, net.conv(x, net.signs(8, 4, 3, 3)), tmp_path)[-1]
    assert f"producer Div 'Div_3' rounds to {2**bits} values, bit planes take 16 at most" in found.reason
    assert "dropped their sign" not in found.reason
    assert "up to 16 levels (4 bits)" in found.hint


def test_a_straight_through_estimator_does_not_hide_a_wide_quantizer(tmp_path: Path) -> None:
    net = Net(("N", 4, 6, 6))
    clipped = net.op("Clip", "x", net.constant(0.0), net.constant(1.0))
    quantized = net.op("Div", net.op("Round", net.op("Mul", clipped, net.constant(255.0))), net.constant(255.0))
    x = net.op("Add", net.op("Sub", quantized, clipped), clipped)
    found = explanations(net, net.conv(x, net.signs(8, 4, 3, 3)), tmp_path)[-1]
    assert "producer Add 'Add_5' rounds to 256 values" in found.reason


def test_a_quantizer_that_fits_bit_planes_has_no_hint(tmp_path: Path) -> None:
    net = Net(("N", 4, 6, 6))
    found = explanations(net, net.conv(dorefa(net, 4), net.signs(8, 4, 3, 3)), tmp_path)[-1]
    assert (found.reason, found.hint) == ("", "")


def test_rounding_without_end_is_a_wide_quantizer(tmp_path: Path) -> None:
    found = last_layer("Round", Net(("N", 4, 6, 6)).signs(8, 4, 3, 3), tmp_path)
    assert "rounds to more than 256 values" in found.reason


def test_a_mean_is_no_binary_layer(tmp_path: Path) -> None:
    found = last_layer("Relu", np.full((8, 4, 3, 3), 1 / 36, np.float32), tmp_path)
    assert found.reason
    assert found.hint == ""


def test_latent_weights_are_named(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    found = last_layer("Sign", weight, tmp_path)
    assert found.weights == "288 distinct values of 288"
    assert "weights are not few-valued" in found.reason
    assert "not the latent weights" in found.hint


def test_weights_quantized_to_many_levels_are_not_latent(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).integers(-50, 50, (64, 4, 3, 3)).astype(np.float32) / 64
    found = last_layer("Sign", weight, tmp_path)
    assert "weights are not few-valued" in found.reason
    assert "quantized to 100 values" in found.hint
    assert "latent" not in found.hint


def test_weights_rounded_to_float16_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.choice([-0.3, 0.3], (8, 4, 3, 3)) * (1 + 1e-4 * rng.uniform(-1, 1, (8, 4, 3, 3)))
    found = last_layer("Sign", weight.astype(np.float32), tmp_path)
    assert "float16" in found.hint
    assert "0.0001 of s" in found.hint


def test_a_first_layer_is_no_mistake(tmp_path: Path) -> None:
    found = last_layer("", Net(("N", 4, 6, 6)).signs(8, 4, 3, 3), tmp_path)
    assert "a model input is not a quantizer" in found.reason
    assert "first layers usually read floats" in found.hint


def test_float_layers_on_floats_have_a_reason_and_no_hint(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    found = last_layer("Relu", weight, tmp_path)
    assert "weights are not few-valued" in found.reason
    assert found.activation.startswith("real: ")
    assert found.hint == ""


def test_the_command_line_prints_it(tmp_path: Path, capsys: Any) -> None:
    net = Net(("N", 4, 6, 6))
    model = net.model(net.conv(net.op("Relu", "x"), net.signs(8, 4, 3, 3)))
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["convert", str(tmp_path / "m.onnx")]) == 0
    assert "why float:" not in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "m.onnx"), "--explain"]) == 0
    out = capsys.readouterr().out
    assert "why float:  activation 't0' is real" in out
    assert "hint:" in out
    assert main(["convert", str(tmp_path / "m.onnx"), "--explain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["explanations"][0]["op"] == "Conv"
