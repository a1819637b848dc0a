"""Builds the networks of the model benchmark as ONNX files: `python networks.py OUTDIR [NAME ...]`.

Weights are random from a fixed seed. Every node is computed with numpy while it is added, on four pictures, and
BatchNormalization takes its statistics from what it sees there: signs are balanced and nothing explodes with depth.

NAME has binary convolutions where the published network has them, fully connected layers on a pruned 4-bit codebook
(VGG-9 and AlexNet, after TAC, arXiv 1907.05271), everything else float. NAME_binary has every layer binary but the
first and the last; its fully connected layers are written as convolutions. LAYERS are single layers; what one takes
inside a network is the difference of a chain of CHAIN and one alone, divided.

Stem weights and the pictures of `pictures()` lie on a grid of powers of two: stem sums are exact in whatever order an
engine adds, so engines agree on the first signs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float32]

SEED = 20190711
OPSET = 17
CODEBOOK_ZEROS = 0.75


def pictures(count: int, shape: tuple[int, ...], seed: int = SEED) -> Array:
    """Return normalized pictures [count, *shape] of noise, on a grid of 1/32."""
    noise = np.random.default_rng(seed).normal(size=(count, *shape))
    return (np.round(np.clip(noise, -4, 4) * 32) / 32).astype(np.float32)


class Net:
    """A graph under construction; `value` is what its last node gives for the calibration pictures."""

    def __init__(self, name: str, shape: tuple[int, int, int]) -> None:
        self.name = name
        self.rng = np.random.default_rng(SEED)
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.values: dict[str, Array] = {"input": pictures(4, shape, SEED + 1)}
        self.last = "input"

    @property
    def value(self) -> Array:
        return self.values[self.last]

    @property
    def channels(self) -> int:
        return int(self.value.shape[1])

    def add(self, kind: str, constants: list[npt.NDArray[Any]], value: Array, *others: str, **attributes: Any) -> Net:
        """Append a node that reads the last result, then `others`, then constants."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        inputs = [self.last, *others]
        for position, constant in enumerate(constants):
            inputs.append(f"{name}.{position}")
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(constant), inputs[-1]))
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.values[name] = value.astype(np.float32)
        self.last = name
        return self

    # --- layers -----------------------------------------------------------------------------

    def conv(self, weight: Array, stride: int = 1, pad: int | None = None, groups: int = 1) -> Net:
        size = weight.shape[2]
        pad = size // 2 if pad is None else pad
        return self.add(
            "Conv",
            [weight],
            _conv(self.value, weight, stride, pad, groups),
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[pad] * 4,
            group=groups,
        )

    def stem(self, filters: int, size: int, stride: int, pad: int | None = None) -> Net:
        """Float convolution of pictures; weights on a grid, see above."""
        fan_in = self.channels * size * size
        weight = np.round(self.rng.normal(size=(filters, self.channels, size, size)) * 64 / fan_in**0.5) / 64
        return self.conv(weight.astype(np.float32), stride, pad)

    def float_conv(self, filters: int, size: int = 1) -> Net:
        fan_in = self.channels * size * size
        weight = self.rng.normal(size=(filters, self.channels, size, size)) / fan_in**0.5
        return self.conv(weight.astype(np.float32))

    def depthwise(self, kernel: npt.NDArray[Any], stride: int) -> Net:
        """Give every channel the convolution with `kernel`, [H, W] or [C, 1, H, W]."""
        weight = np.broadcast_to(kernel, (self.channels, 1, *kernel.shape[-2:])).astype(np.float32)
        return self.conv(weight, stride, groups=self.channels)

    def binary_conv(self, filters: int, size: int = 3, stride: int = 1, pad: int | None = None) -> Net:
        """Sign of what is there, convolved with weights of +-1; padding adds nothing."""
        self.add("Sign", [], np.sign(self.value))
        weight = self.rng.choice(np.asarray([-1, 1], np.float32), (filters, self.channels, size, size))
        return self.conv(weight, stride, pad)

    def batch_norm(self) -> Net:
        """BatchNormalization with the statistics of what is there, gamma and beta near 1 and 0."""
        count = self.channels
        gamma = self.rng.uniform(0.8, 1.2, count)
        beta = self.rng.normal(size=count) * 0.2
        mean = self.value.mean(axis=(0, 2, 3)) + self.rng.normal(size=count) * 1e-3
        variance = self.value.var(axis=(0, 2, 3), dtype=np.float64) + 1e-3
        if self.value.shape[2] == 1:  # four samples say nothing
            mean, variance = np.zeros(count), np.full(count, np.mean(np.square(self.value, dtype=np.float64)))
        parameters = [values.astype(np.float32) for values in (gamma, beta, mean, variance)]
        scale = parameters[0] / np.sqrt(parameters[3] + np.float32(1e-5))
        value = self.value * scale[:, None, None] + (parameters[1] - parameters[2] * scale)[:, None, None]
        return self.add("BatchNormalization", list(parameters), value, epsilon=1e-5)

    def max_pool(self, size: int, stride: int, pad: int = 0) -> Net:
        value = _windows(self.value, size, stride, pad, -np.inf).max(axis=(-2, -1))
        return self.add("MaxPool", [], value, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def average_pool(self, size: int) -> Net:
        value = _windows(self.value, size, size, 0, 0.0).mean(axis=(-2, -1))
        return self.add("AveragePool", [], value, kernel_shape=[size] * 2, strides=[size] * 2)

    def global_pool(self) -> Net:
        return self.add("GlobalAveragePool", [], self.value.mean(axis=(2, 3), keepdims=True))

    def relu(self) -> Net:
        return self.add("Relu", [], np.maximum(self.value, 0))

    def hardtanh(self) -> Net:
        return self.add("Clip", [np.float32(-1).reshape(()), np.float32(1).reshape(())], np.clip(self.value, -1, 1))

    def flatten(self) -> Net:
        return self.add("Flatten", [], self.value.reshape(self.value.shape[0], -1), axis=1)

    def plus(self, other: str) -> Net:
        return self.add("Add", [], self.value + self.values[other], other)

    def linear(self, outputs: int, codebook: bool = True) -> Net:
        """Fully connected layer; its bias takes away what all pictures share, which is much in a random network."""
        shape = (outputs, self.channels)
        if codebook:
            # 15 values with a hole around zero, as k-means over pruned weights gives them.
            values = np.concatenate([-np.geomspace(0.5, 2.0, 7), np.geomspace(0.45, 2.1, 8)]).astype(np.float32)
            kept = self.rng.random(shape, np.float32) >= CODEBOOK_ZEROS
            weight = np.where(kept, values[self.rng.integers(0, 15, shape, np.uint8)], np.float32(0))
        else:
            weight = self.rng.standard_normal(shape, np.float32)
        weight *= np.float32(1 / np.std(self.value @ weight.T))
        sums = self.value @ weight.T
        bias = (self.rng.normal(size=outputs) * 0.1 - sums.mean(axis=0)).astype(np.float32)
        return self.add("Gemm", [weight, bias], sums + bias, transB=1)

    # --- result -----------------------------------------------------------------------------

    def model(self) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *self.shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", *self.value.shape[1:]])],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def _windows(x: Array, size: int, stride: int, pad: int, fill: float) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), (2, 3))[:, :, ::stride, ::stride]


def _conv(x: Array, weight: Array, stride: int, pad: int, groups: int) -> Array:
    windows = _windows(x, weight.shape[2], stride, pad, 0.0)
    if groups == x.shape[1]:
        return np.asarray(np.einsum("nchwij,cij->nchw", windows, weight[:, 0]))
    batch, _, height, width = windows.shape[:4]
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(batch * height * width, -1)
    result = columns @ weight.reshape(weight.shape[0], -1).T
    return result.reshape(batch, height, width, -1).transpose(0, 3, 1, 2)


# --- networks ---------------------------------------------------------------------------------


def vgg9(net: Net, binary: bool) -> None:
    """VGG-9 A for CIFAR-10: 128-128-P-256-256-P-512-512-P-1024-1024-10."""
    net.stem(128, 3, 1).batch_norm()
    for filters, pooled in ((128, True), (256, False), (256, True), (512, False), (512, True)):
        net.binary_conv(filters)
        if pooled:
            net.max_pool(2, 2)
        net.batch_norm()
    if binary:
        net.binary_conv(1024, 4, pad=0).batch_norm().binary_conv(1024, 1).batch_norm()
        net.hardtanh().flatten().linear(10, codebook=False)
    else:
        net.hardtanh().flatten().linear(1024).relu().linear(1024).relu().linear(10)


def alexnet(net: Net, binary: bool) -> None:
    """AlexNet without groups, every binary layer in the order of XNOR-Net: norm, sign, convolution, pool."""
    net.stem(96, 11, 4, pad=2).batch_norm().relu().max_pool(3, 2).batch_norm()
    net.binary_conv(256, 5).max_pool(3, 2).batch_norm()
    net.binary_conv(384).batch_norm()
    net.binary_conv(384).batch_norm()
    net.binary_conv(256).max_pool(3, 2).batch_norm()
    if binary:
        net.binary_conv(4096, 6, pad=0).batch_norm().binary_conv(4096, 1).batch_norm()
        net.relu().flatten().linear(1000, codebook=False)
    else:
        net.relu().flatten().linear(4096).relu().linear(4096).relu().linear(1000)


def bireal18(net: Net, binary: bool) -> None:
    """Bi-Real ResNet-18: every 3x3 convolution has a float shortcut of its own."""
    net.stem(64, 7, 2, pad=3).batch_norm().max_pool(3, 2, pad=1)
    for section, filters in enumerate((64, 128, 256, 512)):
        for layer in range(4):
            before = net.last
            down = section > 0 and layer == 0
            net.binary_conv(filters, stride=2 if down else 1).batch_norm()
            branch = net.last
            net.last = before
            if down:
                net.average_pool(2)
                net = net.binary_conv(filters, 1) if binary else net.float_conv(filters)
                net.batch_norm()
            net.plus(branch)
    net.global_pool().flatten().linear(1000, codebook=False)


def quicknet(net: Net, binary: bool) -> None:
    """QuickNet-like: the layers of Larq's QuickNet (4 blocks a section), padded with zeros."""
    net.stem(16, 3, 2).batch_norm().relu()
    net.depthwise(net.rng.normal(size=(16, 1, 3, 3)) / 3, 2).batch_norm().float_conv(64).batch_norm()
    blur = np.outer([1, 2, 1], [1, 2, 1]) / 16
    for filters in (64, 128, 256, 512):
        if filters != net.channels:
            if not binary:  # of ReLU's outputs every sign is +1
                net.relu()
            net.max_pool(3, 1, pad=1).depthwise(blur, 2)
            net = net.binary_conv(filters, 1) if binary else net.float_conv(filters)
            net.batch_norm()
        for _ in range(4):
            before = net.last
            net.binary_conv(filters).relu().batch_norm().plus(before)
    net.relu().global_pool().flatten().linear(1000, codebook=False)


CHAIN = 5
# Kernel, channels, pixels.
BINARY_CHAINS = [(3, 64, 56), (3, 128, 28), (3, 256, 14), (3, 512, 7), (3, 128, 32), (3, 256, 16), (3, 512, 8)]
BINARY_CHAINS += [(1, 256, 14), (1, 512, 7)]
FLOAT_CHAINS = [(3, 128, 16), (1, 128, 28), (1, 512, 7)]
STEMS = [(7, 64, 224, 2), (11, 96, 224, 4), (3, 128, 32, 1)]  # kernel, channels out, pixels, stride; 3 channels in
LINEARS = [(512, 1000), (4096, 1000), (8192, 1024)]
CODEBOOKS = [(1024, 1024), (8192, 1024), (4096, 4096)]
CODEBOOK_BATCHES = [1, 8, 16, 64]


def chain_name(kind: str, kernel: int, channels: int, pixels: int, depth: int) -> str:
    """Return the name of a chain of `depth` convolutions, `kind` "binary" or "float"."""
    return f"layer_{kind}_{kernel}x{kernel}_{channels}_{pixels}_{depth}"


def stem_name(kernel: int, channels: int, pixels: int, stride: int) -> str:
    """Return the name of the network of one float convolution of pictures, its output averaged over the map."""
    return f"layer_stem_{kernel}x{kernel}_{channels}_{pixels}_{stride}"


def linear_name(inputs: int, outputs: int, *, codebook: bool = False) -> str:
    """Return the name of the network of one fully connected layer."""
    return f"layer_{'codebook' if codebook else 'linear'}_{inputs}_{outputs}"


def _chain(kind: str, kernel: int, channels: int, depth: int) -> Callable[[Net, bool], None]:
    def build(net: Net, binary: bool) -> None:
        if kind == "binary":  # a sign of 0, which not every engine takes, is not met
            off_grid = np.float32(1 / 64)
            net.add("Add", [off_grid.reshape(())], net.value + off_grid)
        for _ in range(depth):
            if kind == "binary":
                net.binary_conv(channels, kernel).batch_norm()
            else:
                net.float_conv(channels, kernel).relu()
        net.global_pool().flatten()

    return build


def _stem(kernel: int, channels: int, stride: int) -> Callable[[Net, bool], None]:
    def build(net: Net, binary: bool) -> None:
        net.stem(channels, kernel, stride).global_pool().flatten()

    return build


def _linear(outputs: int, *, codebook: bool) -> Callable[[Net, bool], None]:
    def build(net: Net, binary: bool) -> None:
        net.flatten().linear(outputs, codebook=codebook)

    return build


_Builder = tuple[Callable[[Net, bool], None], tuple[int, int, int]]

_BUILDERS: dict[str, _Builder] = {
    "vgg9": (vgg9, (3, 32, 32)),
    "alexnet": (alexnet, (3, 224, 224)),
    "bireal18": (bireal18, (3, 224, 224)),
    "quicknet": (quicknet, (3, 224, 224)),
}
NAMES = (*_BUILDERS, *(f"{name}_binary" for name in _BUILDERS))

_LAYER_BUILDERS: dict[str, _Builder] = {
    chain_name(kind, kernel, channels, pixels, depth): (
        _chain(kind, kernel, channels, depth),
        (channels, pixels, pixels),
    )
    for kind, chains in (("binary", BINARY_CHAINS), ("float", FLOAT_CHAINS))
    for kernel, channels, pixels in chains
    for depth in (1, CHAIN)
}
_LAYER_BUILDERS |= {
    stem_name(kernel, channels, pixels, stride): (_stem(kernel, channels, stride), (3, pixels, pixels))
    for kernel, channels, pixels, stride in STEMS
}
_LAYER_BUILDERS |= {
    linear_name(inputs, outputs, codebook=codebook): (_linear(outputs, codebook=codebook), (inputs, 1, 1))
    for codebook, layers in ((False, LINEARS), (True, CODEBOOKS))
    for inputs, outputs in layers
}
LAYERS = tuple(_LAYER_BUILDERS)


def _builder(name: str) -> _Builder:
    return _LAYER_BUILDERS[name] if name in _LAYER_BUILDERS else _BUILDERS[name.removesuffix("_binary")]


def shape_of(name: str) -> tuple[int, int, int]:
    """Return the shape of the pictures that the network called `name` takes."""
    return _builder(name)[1]


def build(name: str) -> onnx.ModelProto:
    """Return the network called `name`, one of NAMES or LAYERS."""
    builder = _builder(name)[0]
    net = Net(name, shape_of(name))
    builder(net, name.endswith("_binary"))
    return net.model()


def write(name: str, folder: Path) -> Path:
    """Write the network called `name` into `folder` and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.onnx"
    path.write_bytes(build(name).SerializeToString())
    return path


def main() -> None:
    """Write the networks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", type=Path)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"any of {' '.join(NAMES)} (default: all), or of LAYERS"
    )
    args = parser.parse_args()
    for name in args.names:
        if name not in (*NAMES, *LAYERS):
            parser.error(f"no network '{name}'; there are {', '.join((*NAMES, *LAYERS))}")
    for name in args.names or NAMES:
        path = write(name, args.outdir)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
