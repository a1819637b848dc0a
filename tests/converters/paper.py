"""Networks built twice at once: as ONNX nodes, and as float64 numpy arrays that follow a paper's formulas.

Nothing of the ONNX graph is evaluated for the second: what an exporter spells in ten nodes is one formula there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from nets import Array, Net, convert
from tac_engine.converters import ConversionReport
from tac_engine.converters.report import LayerReport
from tac_engine.converters.verify import verify

import tac_engine


def conv64(x: Array, weight: Array, stride: int = 1, pad: int = 0, group: int = 1) -> Array:
    """Cross-correlation of [N, C, H, W] with [O, C / group, kh, kw], zeros around the map."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    windows = windows[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, group, axis=1), np.split(weight, group), strict=True)
    return np.concatenate([np.einsum("ncyxij,ocij->noyx", part, rows, optimize=True) for part, rows in parts], axis=1)


def pool64(x: Array, size: int, stride: int, pad: int = 0) -> Array:
    """Maximum over windows; padding never wins."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(2, 3))
    return np.asarray(windows[:, :, ::stride, ::stride].max(axis=(-2, -1)))


@dataclass(frozen=True)
class Pair:
    """A tensor of the ONNX graph and what the paper says it is."""

    name: str
    value: Array  # float64


class PaperNet(Net):
    """A :class:`Net` whose methods on pairs add nodes and compute the paper's value beside them.

    The input is standard normal unless given; ``x`` is the pair that stands for it.
    """

    def __init__(self, shape: Sequence[int], seed: int, batch: int = 3, image: Array | None = None) -> None:
        super().__init__(("N", *shape), seed)
        self.image = self.rng.normal(size=(batch, *shape)).astype(np.float32) if image is None else image
        self.x = Pair("x", self.image.astype(np.float64))

    def normal(self, *shape: int) -> Array:
        return self.rng.normal(size=shape)

    def pair(self, value: Array, kind: str, *inputs: str, **attributes: Any) -> Pair:
        return Pair(self.op(kind, *inputs, **attributes), value)

    def convolve(
        self, x: Pair, weight: Array, bias: Array | None = None, *, stride: int = 1, pad: int = 0, group: int = 1
    ) -> Pair:
        value = conv64(x.value, weight, stride, pad, group)
        if bias is not None:
            value = value + bias.reshape(-1, 1, 1)
        name = self.conv(x.name, weight, bias, strides=[stride] * 2, pads=[pad] * 4, group=group)
        return Pair(name, value)

    def linear(self, x: Pair, weight: Array, bias: Array | None = None) -> Pair:
        """A Gemm with weight [O, K], as PyTorch writes it."""
        inputs = [x.name, self.constant(weight)] + ([] if bias is None else [self.constant(bias)])
        value = x.value @ weight.T + (0.0 if bias is None else bias)
        return self.pair(value, "Gemm", *inputs, transB=1)

    def norm(self, x: Pair, *, positive: bool = False) -> Pair:
        """BatchNormalization with statistics near those of ``x``, gammas of both signs unless ``positive``."""
        channels = x.value.shape[1]
        axes = tuple(axis for axis in range(x.value.ndim) if axis != 1)
        gamma, beta = self.rng.uniform(0.5, 1.5, channels), self.rng.normal(size=channels) * 0.3
        if not positive:
            gamma *= self.rng.choice([-1.0, 1.0], channels)
        mean = x.value.mean(axis=axes) + self.rng.normal(size=channels) * 0.1
        variance = x.value.var(axis=axes) + 0.1
        parameters = [value.astype(np.float32) for value in (gamma, beta, mean, variance)]
        gamma, beta, mean, variance = (value.astype(np.float64) for value in parameters)
        column = (-1,) + (1,) * (x.value.ndim - 2)
        scale = gamma / np.sqrt(variance + 1e-5)
        value = scale.reshape(column) * (x.value - mean.reshape(column)) + beta.reshape(column)
        names = [self.constant(parameter) for parameter in parameters]
        return self.pair(value, "BatchNormalization", x.name, *names, epsilon=1e-5)

    def relu(self, x: Pair) -> Pair:
        return self.pair(np.maximum(x.value, 0.0), "Relu", x.name)

    def sign(self, x: Pair) -> Pair:
        """+1 for x >= 0, else -1."""
        condition = self.op("GreaterOrEqual", x.name, self.constant(0.0))
        name = self.op("Where", condition, self.constant(1.0), self.constant(-1.0))
        return Pair(name, np.where(x.value >= 0.0, 1.0, -1.0))

    def max_pool(self, x: Pair, size: int = 2, stride: int = 2, pad: int = 0) -> Pair:
        attributes = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        return self.pair(pool64(x.value, size, stride, pad), "MaxPool", x.name, **attributes)

    def average_pool(self, x: Pair) -> Pair:
        value = conv64(x.value, np.full((x.value.shape[1], 1, 2, 2), 0.25), 2, 0, x.value.shape[1])
        return self.pair(value, "AveragePool", x.name, kernel_shape=[2, 2], strides=[2, 2])

    def global_pool(self, x: Pair) -> Pair:
        return Pair(self.op("Flatten", self.op("GlobalAveragePool", x.name)), x.value.mean(axis=(2, 3)))

    def flatten(self, x: Pair) -> Pair:
        return self.pair(x.value.reshape(len(x.value), -1), "Flatten", x.name)

    def add(self, x: Pair, y: Pair) -> Pair:
        return self.pair(x.value + y.value, "Add", x.name, y.name)

    def add_constant(self, x: Pair, constant: Array | float) -> Pair:
        return self.pair(x.value + constant, "Add", x.name, self.constant(constant))

    def scale(self, x: Pair, constant: Array | float) -> Pair:
        return self.pair(x.value * constant, "Mul", x.name, self.constant(constant))

    def concat(self, *parts: Pair) -> Pair:
        value = np.concatenate([part.value for part in parts], axis=1)
        return self.pair(value, "Concat", *(part.name for part in parts), axis=1)

    def classifier(self, x: Pair, classes: int = 5) -> Pair:
        """Global pooling and a float layer."""
        pooled = self.global_pool(x) if x.value.ndim == 4 else x
        return self.linear(pooled, self.normal(classes, pooled.value.shape[1]), self.normal(classes))


@dataclass(frozen=True)
class Ran:
    """What came of a network: the report, and the largest error over the largest output of all backends."""

    report: ConversionReport
    error: float
    model: onnx.ModelProto

    @property
    def layers(self) -> list[tuple[str, str]]:
        """(kind, bits) of every layer with weights."""
        return [(layer.kind, layer.bits) for layer in self._with_weights()]

    @property
    def smaller(self) -> list[float]:
        """How many times as small each of these layers is in the file, biases and tables included."""
        return [layer.bytes_before / layer.bytes_after for layer in self._with_weights()]

    def _with_weights(self) -> list[LayerReport]:
        return [layer for layer in self.report.layers if " x " in layer.bits and not layer.bits.startswith("-")]


def run(net: PaperNet, output: Pair, folder: Path, *, bound: float, **options: Any) -> Ran:
    """Converts, runs every backend and compares with the paper's values: within ``bound`` of the largest one.

    0 asks for equality. ``verify`` must accept the file as well.
    """
    model = net.model(output.name)
    report, target = convert(model, folder, **options)
    largest = float(np.max(np.abs(output.value)))
    worst = 0.0
    for backend in tac_engine.backends()["runnable"]:
        found = tac_engine.load(target, backend=backend).run({"x": net.image})[output.name]
        assert found.shape == output.value.shape
        worst = max(worst, float(np.max(np.abs(found - output.value))) / largest)
    assert worst <= bound
    assert verify(folder / "model.onnx", target, net.image).ok
    return Ran(report, worst, model)
