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

    ``flips`` of the first levels of each block, ``shift`` of the float in front of the first one, towards 0.
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
        y = self.reference.run(x)["y"].copy()
        y[0, 0] += np.float32(self.logits)
        return {"y": y}

    def intermediates(self, x: Mapping[str, Array]) -> dict[str, Array]:
        values = self.reference.run(x, intermediates=True)
        conv = values["c"].transpose(0, 2, 3, 1).copy()
        conv[0, 0, 0, 0] -= np.copysign(np.float32(self.shift), conv[0, 0, 0, 0])
        levels = values["g"].transpose(0, 2, 3, 1).copy()
        levels.reshape(-1)[: self.flips] *= -1
        return {"t0": conv, "t1": levels, "t2": values["s"].transpose(0, 2, 3, 1).reshape(len(conv), -1).copy()}


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


def test_a_rounding_flip_is_counted_and_its_sample_not_judged() -> None:
    result = report(FakeEngine(flips=1, shift=1e-5, logits=100, kind="quantize"), 16, near=True)
    assert result.ok
    assert result.rounding_flips == 1
    assert "in 1 of 16 samples" in str(result)
    assert "first in 'quantize' (1 flipped)" in str(result)
    # What follows a flip is no difference: the others agree in every layer.
    assert result.first_divergence is None
    assert result.flips == 0
    assert [(layer.elements, layer.rounding_flips) for layer in result.layers] == [(320, 0), (300, 1), (300, 0)]
    assert "all 3 agree" in str(result)


def test_the_first_difference_is_one_of_a_judged_sample() -> None:
    """The first sample has a rounding flip, the second a wrong level in a layer behind it."""

    class Wrong(FakeEngine):
        def intermediates(self, x: Mapping[str, Array]) -> dict[str, Array]:
            tensors = super().intermediates(x)
            tensors["t2"][1, 3] += 1
            return tensors

    result = report(Wrong(flips=1, shift=1e-5, kind="quantize"), 16, near=True)
    first = result.first_divergence
    assert first is not None
    assert (first.op, first.elements_differing) == ("flatten", 1)
    assert result.rounding_flips == 1


def test_nothing_is_proven_where_every_sample_has_a_flip() -> None:
    result = report(FakeEngine(flips=1, shift=1e-5, logits=100, kind="quantize"), 1, near=True)
    assert result.rounding_flips == 1
    assert not result.decided
    assert not result.ok
    assert "UNDECIDED" in str(result)
    assert "agree as far as they are judged" in str(result)
    assert result.to_json()["decided"] is False


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
    assert data["ok"] is True
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
