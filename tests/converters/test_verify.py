"""verify: what it reports for equal and for different models, and where it says they part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import Net, save
from onnx_models import floats, parse
from tac_engine.converters import convert
from tac_engine.converters.evaluate import ReferenceModel
from tac_engine.converters.graph import Array
from tac_engine.converters.verify import VerifyReport, compare, verify

from tac_engine.errors import InvalidInputError

SCALE = np.float32(0.25)


def model() -> onnx.ModelProto:
    """Chain x -> Conv -> c -> sign * 0.25 -> s -> Flatten -> MatMul -> y."""
    return parse(
        "c = Conv (x, w) g = Sign (c) s = Mul (g, q) f = Flatten (s) y = MatMul (f, v)",
        inputs="float[N, 2, 4, 4] x",
        outputs="float[N, 3] y",
        constants={"w": floats(5, 2, 3, 3, seed=1), "q": SCALE, "v": floats(20, 3, seed=2)},
    )


class FakeEngine:
    """An engine that computes the reference, in the engine's layouts, with faults put in on purpose.

    ``flips`` of the first levels of each block, which all that follows goes on with; ``shift`` of the float in front of
    the first one, towards 0; ``logits`` on the first output of each block.
    """

    def __init__(self, flips: int = 0, shift: float = 0.0, logits: float = 0.0, kind: str = "") -> None:
        self.reference = ReferenceModel(model())
        self.flips, self.shift, self.logits = flips, shift, logits
        layers = [
            {"op": "conv", "tensor": "t0", "onnx_tensor": "c", "layout": "nhwc"},
            {"op": "quantize", "tensor": "t1", "onnx_tensor": "s", "layout": "nhwc", "kind": kind, "low_bit": True}
            | {"root": "c"},
            {"op": "flatten", "tensor": "t2", "onnx_tensor": "f", "layout": "flat", "map_dims": [2, 2, 5]},
            {"op": "folded", "tensor": "t9", "onnx_tensor": "nowhere", "layout": "plain"},
        ]
        self.metadata = json.dumps({"layers": layers})

    def run(self, x: Mapping[str, Array]) -> dict[str, Array]:
        y = self._behind_the_flips("y", x).copy()
        y[0, 0] += np.float32(self.logits)
        return {"y": y}

    def intermediates(self, x: Mapping[str, Array]) -> dict[str, Array]:
        conv = self.reference.run(x, intermediates=True)["c"].transpose(0, 2, 3, 1).copy()
        conv[0, 0, 0, 0] -= np.copysign(np.float32(self.shift), conv[0, 0, 0, 0])
        scaled = self._behind_the_flips("s", x).transpose(0, 2, 3, 1)
        return {"t0": conv, "t1": np.sign(scaled), "t2": scaled.reshape(len(conv), -1).copy()}

    def _behind_the_flips(self, name: str, x: Mapping[str, Array]) -> Array:
        levels = self.reference.run(x, intermediates=True)["g"].transpose(0, 2, 3, 1).copy()
        levels.reshape(-1)[: self.flips] *= -1
        return self.reference.recompute(name, x, {"g": levels.transpose(0, 3, 1, 2)})


def report(engine: FakeEngine, samples: int = 40, *, near: bool = False) -> VerifyReport:
    """``near``: the first float in front of a sign is next to 0."""
    x = floats(samples, 2, 4, 4)
    if near:
        x[0, :, :3, :3] *= np.float32(1e-7)
    outputs, layers, flips = compare(engine.reference, engine, {"x": x})
    return VerifyReport("a.onnx", "a.tacbin", samples, "given", 1e-4, outputs, layers, flips)


def test_equal_models_agree_in_every_layer() -> None:
    result = report(FakeEngine())
    assert result.ok
    assert result.first_divergence is None
    assert [layer.op for layer in result.layers] == ["conv", "quantize", "flatten"]
    assert [layer.low_bit for layer in result.layers] == [False, True, False]
    assert result.layers[0].elements == 40 * 5 * 4
    output = result.outputs[0]
    assert (output.samples, output.max_abs_diff, output.top1_agree, output.top1_total) == (40, 0.0, 40, 40)
    assert "all 3 agree" in str(result)


def test_flips_are_counted_in_the_first_layer_that_has_them() -> None:
    result = report(FakeEngine(flips=3))
    first = result.first_divergence
    assert first is not None
    # Three flips in each of the three blocks of at most 16 samples.
    assert (first.op, first.onnx_tensor, first.low_bit, first.elements_differing) == ("quantize", "s", True, 9)
    assert first.max_abs_diff == pytest.approx(0.5)
    assert result.flips == 9
    assert "9 of 800 elements flipped" in str(result)


def test_floats_beyond_the_tolerance_are_the_first_difference() -> None:
    largest = float(np.abs(ReferenceModel(model()).run({"x": floats(16, 2, 4, 4)}, intermediates=True)["c"]).max())
    assert report(FakeEngine(shift=0.5e-4 * largest), 16).first_divergence is None
    first = report(FakeEngine(shift=2e-4 * largest), 16).first_divergence
    assert first is not None
    assert (first.op, first.elements_differing) == ("conv", 1)


def test_output_difference_and_top1() -> None:
    result = report(FakeEngine(logits=100.0), 16)
    output = result.outputs[0]
    assert not result.ok
    assert output.max_abs_diff == pytest.approx(100, rel=1e-5)
    assert output.top1_agree is not None
    assert output.top1_agree >= 15
    assert "DIFFERS" in str(result)


def test_the_reference_goes_on_with_a_rounding_flip() -> None:
    result = report(FakeEngine(flips=1, shift=1e-5, kind="quantize"), 16, near=True)
    assert result.ok
    assert result.rounding_flips == 1
    assert "in 1 of 16 samples" in str(result)
    assert "in 'quantize' (1 flipped)" in str(result)
    assert result.first_divergence is None
    assert result.flips == 0
    assert [(layer.elements, layer.rounding_flips) for layer in result.layers] == [(320, 0), (320, 1), (320, 0)]
    assert "all 3 agree" in str(result)
    # The outputs are those of the other side, and are told apart from those of the model as it is.
    (output,) = result.outputs
    assert output.judged_rel_diff == 0.0
    assert output.max_rel_diff > 0.01


@pytest.mark.parametrize("samples", [1, 16])
def test_what_follows_a_rounding_flip_is_judged(samples: int) -> None:
    """Faults behind the flip, in the same sample."""

    class Wrong(FakeEngine):
        def intermediates(self, x: Mapping[str, Array]) -> dict[str, Array]:
            tensors = super().intermediates(x)
            tensors["t2"][0, 3] += 1
            return tensors

    wrong_layer = report(Wrong(flips=1, shift=1e-5, kind="quantize"), samples, near=True)
    first = wrong_layer.first_divergence
    assert first is not None
    assert (first.op, first.elements_differing) == ("flatten", 1)
    assert wrong_layer.rounding_flips == 1
    wrong_output = report(FakeEngine(flips=1, shift=1e-5, logits=0.1, kind="quantize"), samples, near=True)
    assert wrong_output.rounding_flips == 1
    assert wrong_output.first_divergence is None
    assert not wrong_output.ok


def test_rounding_flips_behind_rounding_flips_are_followed(tmp_path: Path) -> None:
    """Residual blocks of signs whose sums, added up in another order, fall on either side again and again."""
    net = Net(("N", 8, 6, 6), seed=3)
    x = net.conv("x", floats(16, 8, 3, 3), pads=[1, 1, 1, 1])
    for _ in range(4):
        signs = net.op("Sign", net.op("Mul", x, net.constant(1e-9)))
        x = net.op("Add", x, net.conv(signs, np.float32(0.37) * net.signs(16, 16, 3, 3), pads=[1, 1, 1, 1]))
    y = net.op("MatMul", net.op("Flatten", x), net.constant(floats(576, 5)))
    source, target = save(net.model(y), tmp_path), tmp_path / "model.tacbin"
    convert(source, target, conv_precision="i16")
    result = verify(source, target, samples=40)
    assert result.ok, str(result)
    assert sum(layer.rounding_flips > 0 for layer in result.layers) >= 2
    # Of another network nothing is excused.
    other = onnx.load(source)
    for constant in other.graph.initializer:
        if constant.dims == [16, 16, 3, 3]:
            values = onnx.numpy_helper.to_array(constant).copy()
            values[0, 0, 0, 0] *= -1
            constant.CopyFrom(onnx.numpy_helper.from_array(values, constant.name))
    onnx.save(other, tmp_path / "other.onnx")
    assert not verify(tmp_path / "other.onnx", target, samples=40).ok


@pytest.mark.parametrize(("precision", "scale"), [("f32", 5e-5), ("i16", 5e-4)])
def test_a_small_channel_that_is_all_wrong_is_no_rounding(precision: str, scale: float, tmp_path: Path) -> None:
    """Its values are within the tolerance of the tensor that they are in, its signs are not."""
    net = Net(("N", 4, 6, 6), seed=5)
    weight = floats(16, 4, 3, 3, seed=6)
    weight[3] *= np.float32(scale)
    hidden = net.op("Sign", net.conv("x", weight, pads=[1, 1, 1, 1]))
    source = save(net.model(net.conv(hidden, net.signs(8, 16, 3, 3))), tmp_path)
    convert(source, tmp_path / "model.tacbin", conv_precision=precision)
    assert verify(source, tmp_path / "model.tacbin").ok
    other = onnx.load(source)
    constant = next(item for item in other.graph.initializer if item.dims == [16, 4, 3, 3])
    weight[3] *= -1
    constant.CopyFrom(onnx.numpy_helper.from_array(weight, constant.name))
    onnx.save(other, tmp_path / "other.onnx")
    result = verify(tmp_path / "other.onnx", tmp_path / "model.tacbin")
    assert not result.ok
    assert result.flips > 100


def test_sums_that_others_take_as_floats_meet_thresholds_too(tmp_path: Path) -> None:
    """A sign of integer sums that are wanted as floats as well; the float sums of the file fall to either side of 0."""
    net = Net(("N", 8, 6, 6), seed=4)
    sums = net.conv(net.op("Sign", "x"), np.float32(0.0137) * net.signs(16, 8, 3, 3))
    y = net.op("Add", net.conv(net.op("Sign", sums), net.signs(16, 16, 1, 1)), net.constant(1))
    source = save(net.model(y, outputs=(net.op("Relu", sums),)), tmp_path)
    convert(source, tmp_path / "model.tacbin")
    result = verify(source, tmp_path / "model.tacbin")
    assert result.ok, str(result)
    assert result.rounding_flips > 0


def test_infinities_widen_no_tolerance(tmp_path: Path) -> None:
    results = []
    for factor in (200.0, -600.0):
        net = Net(("N", 6))
        onnx.save(net.model(net.op("Exp", net.op("Mul", "x", net.constant(factor)))), tmp_path / f"{factor}.onnx")
        convert(tmp_path / f"{factor}.onnx", tmp_path / "model.tacbin")
        results.append(verify(tmp_path / "200.0.onnx", tmp_path / "model.tacbin"))
    assert [result.ok for result in results] == [True, False]


@pytest.mark.parametrize(
    "faults",
    [
        {"kind": "binary_conv", "shift": 1e-5},
        {"kind": "quantize", "shift": 1.0},
        {"kind": "quantize"},
        {"kind": "quantize", "shift": 1e-9},
        {"kind": "quantize", "shift": 1e-5, "near": False},
        {"kind": "quantize", "shift": 1e-5, "flips": 2},
    ],
    ids=["integer layer", "wrong float", "right float", "same side", "far from the threshold", "another element"],
)
def test_a_flip_without_excuse_is_judged(faults: dict[str, Any]) -> None:
    near = faults.pop("near", True)
    result = report(FakeEngine(**{"flips": 1, "logits": 100, **faults}), 16, near=near)
    assert not result.ok
    assert result.rounding_flips == 0
    assert result.flips >= 1


def test_nan_is_a_difference() -> None:
    assert not report(FakeEngine(logits=float("nan")), 16).ok


def test_report_is_plain_data() -> None:
    data: dict[str, Any] = json.loads(json.dumps(report(FakeEngine(flips=1)).to_json()))
    assert data["ok"] is False
    assert data["first_divergence"]["op"] == "quantize"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "m.onnx", tmp_path / "m.tacbin"
    onnx.save(model(), source)
    convert(source, target)
    return source, target


def test_converted_model_is_verified(files: tuple[Path, Path]) -> None:
    stages: list[float] = []
    result = verify(*files, samples=20, progress=lambda _, share: stages.append(share))
    assert result.ok
    assert result.samples == 20
    assert result.first_divergence is None
    assert len(result.layers) >= 4
    assert stages[-1] == 1.0


def test_packed_layers_are_compared_level_by_level(tmp_path: Path) -> None:
    net = Net(("N", 4, 6, 6), seed=1)
    hidden = net.batch_norm(net.conv(net.op("Sign", "x"), net.signs(8, 4, 3, 3), pads=[1, 1, 1, 1]), 8, 6)
    output = net.op("MatMul", net.op("Flatten", net.op("Sign", hidden)), net.constant(net.signs(288, 3)))
    source, target = tmp_path / "m.onnx", tmp_path / "m.tacbin"
    onnx.save(net.model(output), source)
    convert(source, target)
    result = verify(source, target, samples=20)
    assert result.ok
    assert [layer.low_bit for layer in result.layers] == [True, True, False]
    assert result.fused == ["Conv_1"]
    assert "with thresholds inside, compared by the bits that they give: 'Conv_1'" in str(result)
    assert [layer.integer_sums for layer in result.layers] == ["", "", "MatMul_5"]
    assert "integer layers compared by their sums: 'MatMul_5'" in str(result)


def test_file_of_another_model_is_told_apart(files: tuple[Path, Path], tmp_path: Path) -> None:
    other = model()
    other.graph.initializer[0].raw_data = floats(5, 2, 3, 3, seed=9).tobytes()
    onnx.save(other, tmp_path / "other.onnx")
    result = verify(tmp_path / "other.onnx", files[1])
    assert not result.ok
    first = result.first_divergence
    assert first is not None
    assert first.onnx_tensor in ("c", "g", "s")


def test_given_data_are_used_and_checked(files: tuple[Path, Path]) -> None:
    assert verify(*files, data=floats(7, 2, 4, 4)).samples == 7
    assert verify(*files, data={"x": floats(7, 2, 4, 4)}, samples=3).samples == 3
    with pytest.raises(InvalidInputError, match=r"shape \['N', 2, 4, 4\] is expected"):
        verify(*files, data=floats(7, 4, 4, 2))
    with pytest.raises(InvalidInputError, match="samples is 0"):
        verify(*files, samples=0)


def _ties(folder: Path, shift: float, pooled: bool = False) -> tuple[Path, Path]:
    """Signs of sums of +-0.0137, with a threshold ``shift`` from 0, which those sums meet."""
    folder.mkdir()
    net = Net(("N", 8, 6, 6))
    weight = np.float32(0.0137) * net.signs(16, 8, 3, 3)
    x = net.conv(net.op("Where", net.op("Less", "x", net.constant(0)), net.constant(-1), net.constant(1)), weight)
    if pooled:
        x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Add", x, net.constant(shift))
    x = net.op("Where", net.op("Less", x, net.constant(0)), net.constant(-1), net.constant(1))
    source, target = save(net.model(net.conv(x, net.signs(4, 16, 1, 1))), folder), folder / "model.tacbin"
    convert(source, target)
    return source, target


@pytest.mark.parametrize("pooled", [False, True])
def test_sums_that_meet_a_threshold_are_no_difference_but_other_sums_are(tmp_path: Path, pooled: bool) -> None:
    onnx_path, target = _ties(tmp_path / "at zero", 0.0, pooled)
    result = verify(onnx_path, target)
    assert result.rounding_flips > 0
    assert all(layer.ok for layer in result.layers)
    # A threshold two steps of the sums away is no rounding.
    _, other = _ties(tmp_path / "beside", 3 * 0.0137, pooled)
    result = verify(onnx_path, other)
    assert not result.ok
    assert not all(layer.ok for layer in result.layers)
