"""PyTorch: the TorchScript exporter ("legacy") and the torch.export exporter ("dynamo").

Networks are a few channels wide, with seeded weights and BatchNorm statistics of trained scale, gammas of both signs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from . import Recorded, fixture, register, samples

Tensor = torch.Tensor
EXPORTERS = ("legacy", "dynamo")


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Parameters and statistics as after training; BatchNorm of a sum of K signs sees a variance of about K."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                if module.affine:
                    module.weight.copy_(normal(module.weight))
                    module.bias.copy_(normal(module.bias))
                module.running_mean.copy_(normal(module.running_mean) * 3)
                module.running_var.copy_(20 + 10 * torch.rand(module.running_var.shape, generator=generator))
            elif isinstance(module, nn.PReLU):
                module.weight.copy_(0.25 + 0.1 * normal(module.weight))
            elif isinstance(module, LearnableBias):
                module.bias.copy_(normal(module.bias))
            elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                module.weight.copy_(normal(module.weight) * 0.2)
                if module.bias is not None:
                    module.bias.copy_(normal(module.bias))
    return model.eval()


def export(
    model: nn.Module, x: Tensor, path: Path, exporter: str, *, batch: str = "", opset: int = 17, external: bool = False
) -> None:
    """``batch`` names a dynamic batch axis; without it the file fixes the batch to 1, as by default."""
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "legacy":
            axes = {"x": {0: batch}, "y": {0: batch}} if batch else None
            torch.onnx.export(model, (x,), path, dynamo=False, opset_version=opset, dynamic_axes=axes, **names)
        else:
            shapes = ({0: torch.export.Dim(batch)},) if batch else None
            torch.onnx.export(
                model, (x,), path, dynamo=True, dynamic_shapes=shapes, external_data=external, verbose=False, **names
            )


def record(
    model: nn.Module,
    path: Path,
    exporter: str,
    shape: tuple[int, ...],
    *,
    count: int = 4,
    step: float = 0.0,
    **options: Any,
) -> Recorded:
    """Exports ``model`` for inputs [1, *shape] ([2, *shape] with a dynamic batch) and runs it on ``count`` samples."""
    x = torch.from_numpy(samples(count, *shape, seed=7, step=step))
    export(model, x[:2] if options.get("batch") else x[:1], path, exporter, **options)
    with torch.no_grad():
        return Recorded([x.numpy()], [model(x).numpy()])


def add(
    name: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    *,
    exporters: tuple[str, ...] = EXPORTERS,
    prepare: Callable[[Any], nn.Module] = lambda model: model,
    **options: Any,
) -> None:
    """Registers ``<name>_<exporter>`` for each exporter. ``prepare`` sees the model with its weights."""
    for exporter in exporters:

        def write(path: Path, exporter: str = exporter) -> Recorded:
            return record(prepare(randomise(make(), seed=1)), path, exporter, shape, **options)

        register("pytorch", f"{name}_{exporter}", write)


# How users write the sign of an activation ----------------------------------------------------------------------------


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def sign_function(x: Tensor) -> Tensor:
    return StraightThrough.apply(x)


def sign_where_ge(x: Tensor) -> Tensor:
    return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))


def sign_where_gt(x: Tensor) -> Tensor:
    return torch.where(x > 0, 1.0, -1.0)


def sign_cast(x: Tensor) -> Tensor:
    return (x >= 0).float() * 2 - 1


def sign_two_casts(x: Tensor) -> Tensor:
    return (x >= 0).type_as(x) - (x < 0).type_as(x)


def sign_plus_epsilon(x: Tensor) -> Tensor:
    return torch.sign(x + 1e-6)


def sign_add_sign(x: Tensor) -> Tensor:
    return x.sign().add(0.01).sign()


def sign_hardtanh(x: Tensor) -> Tensor:
    return torch.sign(F.hardtanh(x))


def sign_masked(x: Tensor) -> Tensor:
    y = torch.ones_like(x)
    y[x < 0] = -1
    return y


def sign_detach(x: Tensor) -> Tensor:
    """Values miss +-1 by the rounding of (s - c) + c."""
    clipped = torch.clamp(x, -1.0, 1.0)
    return (torch.sign(x) - clipped).detach() + clipped


def sign_detach_unclipped(x: Tensor) -> Tensor:
    """Misses +-1 by the rounding of a number as large as x."""
    return x + (torch.sign(x) - x).detach()


def sign_approximated(x: Tensor) -> Tensor:
    """Bi-Real and ReActNet: forward the sign, backward a piecewise polynomial."""
    out_forward = torch.sign(x)
    mask1, mask2, mask3 = x < -1, x < 0, x < 1
    out1 = (-1) * mask1.type(torch.float32) + (x * x + 2 * x) * (1 - mask1.type(torch.float32))
    out2 = out1 * mask2.type(torch.float32) + (-x * x + 2 * x) * (1 - mask2.type(torch.float32))
    out3 = out2 * mask3.type(torch.float32) + 1 * (1 - mask3.type(torch.float32))
    return out_forward.detach() - out3.detach() + out3


def sign_zero_replaced(x: Tensor) -> Tensor:
    y = torch.sign(x)
    y[y == 0] = 1
    return y


def sign_masked_fill(x: Tensor) -> Tensor:
    return torch.sign(x).masked_fill(x == 0, 1.0)


def sign_heaviside(x: Tensor) -> Tensor:
    return torch.heaviside(x, torch.ones(())) * 2 - 1


def sign_hard_sigmoid(x: Tensor) -> Tensor:
    """BinaryNet's own: round half of a hard sigmoid to even, so 0 becomes -1."""
    return 2 * torch.round(torch.clamp((x + 1) / 2, 0, 1)) - 1


def sign_of_comparison(x: Tensor) -> Tensor:
    return torch.ge(x, 0).to(x.dtype).sub(0.5).sign()


def sign_bucketed(x: Tensor) -> Tensor:
    return 2.0 * torch.bucketize(x, torch.tensor([0.0]), right=True).to(x.dtype) - 1.0


def sign_softsign(x: Tensor) -> Tensor:
    """A surrogate around the sign, as differentiable binarizers export it."""
    return torch.sign(torch.tanh(2 * F.softsign(x)))


# Exact at ties: 0 reaches the sign, and its value there must be the framework's.
EXACT_SIGNS: tuple[Callable[[Tensor], Tensor], ...] = (
    sign_function,
    sign_where_ge,
    sign_where_gt,
    sign_cast,
    sign_two_casts,
    sign_plus_epsilon,
    sign_add_sign,
    sign_hardtanh,
    sign_masked,
    sign_zero_replaced,
    sign_masked_fill,
    sign_heaviside,
    sign_hard_sigmoid,
    sign_of_comparison,
    sign_bucketed,
    sign_softsign,
)
# Their sums miss the integers by rounding, so a sign of a bare sum that should be 0 would be noise.
ROUNDED_SIGNS = (sign_detach, sign_detach_unclipped, sign_approximated)


class SignConv(nn.Conv2d):
    """A convolution with the signs of its latent weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, torch.sign(self.weight), None, self.stride, self.padding)


class SignNet(nn.Module):
    """Three binary convolutions: the signs of an input, of bare sums (where 0 occurs) and of a BatchNorm."""

    def __init__(self, sign: Callable[[Tensor], Tensor], bare: bool) -> None:
        super().__init__()
        self.sign = sign
        self.conv1 = SignConv(4, 6, 3, padding=1, bias=False)
        self.bn1 = nn.Identity() if bare else nn.BatchNorm2d(6)
        self.conv2 = SignConv(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv3 = SignConv(6, 4, 3, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 2 * 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(self.sign(x)))
        x = self.bn2(self.conv2(self.sign(x)))
        x = F.relu(self.bn3(self.conv3(self.sign(x))))
        return self.fc(torch.flatten(x, 1))


# The legacy exporter has no heaviside.
DYNAMO_ONLY = (sign_heaviside,)

for sign in EXACT_SIGNS:
    exporters = ("dynamo",) if sign in DYNAMO_ONLY else EXPORTERS
    add(sign.__name__, lambda sign=sign: SignNet(sign, bare=True), (4, 6, 6), step=0.5, exporters=exporters)
for sign in ROUNDED_SIGNS:
    add(sign.__name__, lambda sign=sign: SignNet(sign, bare=False), (4, 6, 6), step=0.5)


# How weights become few values ----------------------------------------------------------------------------------------


def weight_sign(w: Tensor) -> Tensor:
    return torch.sign(w)


def weight_bireal(w: Tensor) -> Tensor:
    """Bi-Real and ReActNet: scaled signs, and a detached copy for the gradient."""
    scale = torch.mean(torch.mean(torch.mean(abs(w), dim=3, keepdim=True), dim=2, keepdim=True), dim=1, keepdim=True)
    binary = scale.detach() * torch.sign(w)
    clipped = torch.clamp(w, -1.0, 1.0)
    return binary.detach() - clipped.detach() + clipped


def weight_mean_abs(w: Tensor) -> Tensor:
    return torch.sign(w) * w.abs().mean(dim=(1, 2, 3), keepdim=True)


def weight_irnet(w: Tensor) -> Tensor:
    """IR-Net: standardised, then signs times a power of two."""
    flat = w.view(w.size(0), -1)
    flat = flat - flat.mean(-1, keepdim=True)
    flat = flat / flat.std(-1, keepdim=True)
    shift = torch.pow(2.0, torch.round(torch.log2(flat.abs().mean(-1, keepdim=True))))
    return (torch.sign(flat) * shift).view_as(w)


def weight_ternary(w: Tensor) -> Tensor:
    """TWN: zeros below 0.7 of the mean magnitude, the mean of the others as scale."""
    magnitude = w.abs()
    mask = (magnitude > 0.7 * magnitude.mean(dim=(1, 2, 3), keepdim=True)).float()
    alpha = (magnitude * mask).sum(dim=(1, 2, 3), keepdim=True) / mask.sum(dim=(1, 2, 3), keepdim=True)
    return alpha * mask * torch.sign(w)


WEIGHTS = (weight_sign, weight_bireal, weight_mean_abs, weight_irnet, weight_ternary)


class WeightNet(nn.Module):
    """Convolutions with quantized weights, bias or none, BatchNorm behind them (exporters may fold it)."""

    def __init__(self, quantize: Callable[[Tensor], Tensor], baked: bool = False) -> None:
        super().__init__()
        self.quantize = quantize
        self.baked = baked
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=True)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 16, 5)

    def bake(self) -> WeightNet:
        """Replaces the latent weights by what the forward pass makes of them, once."""
        with torch.no_grad():
            for conv in (self.conv2, self.conv3):
                conv.weight.copy_(self.quantize(conv.weight))
        self.baked = True
        return self

    def convolve(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return conv(x) if self.baked else F.conv2d(x, self.quantize(conv.weight), conv.bias, conv.stride, conv.padding)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.convolve(self.conv2, torch.sign(x)))
        x = F.hardtanh(self.bn3(self.convolve(self.conv3, torch.sign(x))))
        return self.fc(torch.flatten(x, 1))


for quantize in WEIGHTS:
    add(quantize.__name__, lambda quantize=quantize: WeightNet(quantize), (3, 8, 8))
add("weight_sign_baked", lambda: WeightNet(weight_sign), (3, 8, 8), prepare=WeightNet.bake, exporters=("legacy",))
add("weight_bireal_baked", lambda: WeightNet(weight_bireal), (3, 8, 8), prepare=WeightNet.bake, exporters=("legacy",))
add("weight_ternary_baked", lambda: WeightNet(weight_ternary), (3, 8, 8), prepare=WeightNet.bake, exporters=("legacy",))


# Padding, pooling, fully connected layers, dynamic batches, weights outside the file ----------------------------------


class PadNet(nn.Module):
    """F.pad of the signs with ``value`` in front of convolutions without padding; the second one pads one side more."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.conv1 = SignConv(4, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = SignConv(8, 6, 3, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.pad(sign_where_ge(x), (1, 1, 1, 1), value=self.value))
        return self.conv2(F.pad(sign_where_ge(self.bn1(x)), (0, 1, 0, 1), value=self.value))


add("pad_minus_one", lambda: PadNet(-1.0), (4, 8, 8), step=0.5)
add("pad_plus_one", lambda: PadNet(1.0), (4, 8, 8), step=0.5)
add("pad_zero", lambda: PadNet(0.0), (4, 8, 8), step=0.5)
add("pad_minus_one_dynamic_batch", lambda: PadNet(-1.0), (4, 8, 8), step=0.5, batch="batch")


class SignLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch.sign(self.weight), self.bias)


class BinaryNet(nn.Module):
    """VGG as BinaryNet has it: everything binary, MaxPool in front of BatchNorm, BatchNorm behind the last layer."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.conv1 = SignConv(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = SignConv(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc1 = SignLinear(8 * 16, 8, bias=bias)
        self.bn3 = nn.BatchNorm1d(8)
        self.fc2 = SignLinear(8, 5, bias=bias)
        self.bn4 = nn.BatchNorm1d(5, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardtanh(self.bn1(self.conv1(x)))
        x = F.hardtanh(self.bn2(F.max_pool2d(self.conv2(torch.sign(x)), 2)))
        x = torch.sign(x).view(x.size(0), -1)
        x = F.hardtanh(self.bn3(self.fc1(x)))
        return F.log_softmax(self.bn4(self.fc2(torch.sign(x))), dim=1)


add("binarynet", lambda: BinaryNet(bias=True), (3, 8, 8))
add("binarynet_no_bias", lambda: BinaryNet(bias=False), (3, 8, 8), exporters=("legacy",))
add("binarynet_dynamic_batch", lambda: BinaryNet(bias=True), (3, 8, 8), batch="batch")
add("binarynet_opset_9", lambda: BinaryNet(bias=True), (3, 8, 8), exporters=("legacy",), opset=9)
add("external_data", lambda: BinaryNet(bias=True), (3, 8, 8), exporters=("dynamo",), external=True)


class Mlp(nn.Module):
    """Fully connected layers alone: MatMul, Gemm, bias or none."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = SignLinear(24, 16, bias=False)
        self.bn1 = nn.BatchNorm1d(16)
        self.fc2 = SignLinear(16, 16)
        self.bn2 = nn.BatchNorm1d(16)
        self.weight = nn.Parameter(torch.sin(torch.arange(80.0) + 0.5).view(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.fc1(sign_where_ge(x)))
        x = self.bn2(self.fc2(sign_where_ge(x)))
        return torch.matmul(sign_where_ge(x), torch.sign(self.weight))


add("mlp", Mlp, (24,), step=0.5)


# Blocks of published networks -----------------------------------------------------------------------------------------


class XnorBlock(nn.Module):
    """XNOR-Net with its map K: the mean magnitude over the channels, smoothed by a box filter."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(x)
        box = torch.full((1, 1, 3, 3), 1 / 9)
        k = F.conv2d(x.abs().mean(dim=1, keepdim=True), box, padding=1)
        alpha = self.conv.weight.abs().mean(dim=(1, 2, 3)).view(1, -1, 1, 1)
        return F.conv2d(torch.sign(x), torch.sign(self.conv.weight), padding=1) * k * alpha


class XnorNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.block1 = XnorBlock(6, 8)
        self.block2 = XnorBlock(8, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block2(F.relu(self.block1(F.relu(self.conv(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


add("xnornet_k_map", XnorNet, (3, 8, 8))


class BiRealConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, weight_bireal(self.weight), None, self.stride, self.padding)


class BiRealBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = BiRealConv(inputs, outputs, 3, stride, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(2, 2), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(sign_approximated(x))) + self.shortcut(x)


class BiRealNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.layers = nn.Sequential(BiRealBlock(6, 6, 1), BiRealBlock(6, 8, 2), BiRealBlock(8, 8, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.bn(self.conv(x)), 3, 2, 1)
        return self.fc(self.layers(x).mean(dim=(2, 3)))


add("bireal_net", BiRealNet, (3, 16, 16), exporters=("legacy",))
add("bireal_net_dynamic_batch", BiRealNet, (3, 16, 16), batch="batch", exporters=("dynamo",))


class LearnableBias(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.expand_as(x)


class ReActBlock(nn.Module):
    """RSign, 3x3 binary convolution, shortcut, RPReLU; then the same with 1x1 convolutions that double the channels."""

    def __init__(self, channels: int, stride: int, double: bool) -> None:
        super().__init__()
        self.move11, self.move12, self.move13 = (LearnableBias(channels) for _ in range(3))
        self.conv1 = BiRealConv(channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.PReLU(channels)
        self.pool = nn.AvgPool2d(2, 2) if stride == 2 else nn.Identity()
        outputs = 2 * channels if double else channels
        self.move21, self.move22, self.move23 = LearnableBias(channels), LearnableBias(outputs), LearnableBias(outputs)
        self.conv2 = nn.ModuleList(BiRealConv(channels, channels, 1, bias=False) for _ in range(1 + double))
        self.bn2 = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(1 + double))
        self.act2 = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(sign_approximated(self.move11(x)))) + self.pool(x)
        y = self.move13(self.act1(self.move12(y)))
        binary = sign_approximated(self.move21(y))
        z = torch.cat([bn(conv(binary)) + y for conv, bn in zip(self.conv2, self.bn2, strict=True)], dim=1)
        return self.move23(self.act2(self.move22(z)))


class ReActNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.layers = nn.Sequential(ReActBlock(4, 1, True), ReActBlock(8, 2, False))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.bn(self.conv(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))


add("reactnet", ReActNet, (3, 16, 16))


def quantize_lsq(x: Tensor) -> Tensor:
    """LSQ: round(clip(x / s)) * s, 2 bits, unsigned."""
    return torch.round(torch.clamp(x / 0.37, 0, 3)) * 0.37


def quantize_round_detach(x: Tensor) -> Tensor:
    """A straight-through rounding: x / s stays in the graph."""
    x = torch.clamp(x / 0.37, 0, 3)
    return ((torch.round(x) - x).detach() + x) * 0.37


def quantize_pact(x: Tensor) -> Tensor:
    """PACT's clipping written with magnitudes, then 2 bits."""
    clipped = 0.5 * (torch.abs(x) - torch.abs(x - 1.5) + 1.5)
    return torch.round(clipped * (3 / 1.5)) * (1.5 / 3)


def quantize_hwgq(x: Tensor) -> Tensor:
    """HWGQ: {0, .538, 1.076, 1.614}."""
    y = torch.where(x > 0, 0.538, 0.0)
    y = torch.where(x > 0.807, 1.076, y)
    return torch.where(x > 1.345, 1.614, y)


def quantize_ternary(x: Tensor) -> Tensor:
    return torch.where(x.abs() > 0.6, torch.sign(x), torch.zeros_like(x))


def quantize_ternary_masked(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[x > 0.6] = 1
    y[x < -0.6] = -1
    return y


def quantize_offset(x: Tensor) -> Tensor:
    """AdaBin: two values that are not opposite, 0.3 +- 0.7."""
    return 0.7 * sign_where_ge((x - 0.3) / 0.7) + 0.3


def quantize_thermometer(x: Tensor) -> Tensor:
    """ABC-Net with equal scales: a mean of three shifted signs."""
    return sum(sign_where_ge(x + shift) for shift in (-0.8, 0.0, 0.8)) / 3


QUANTIZERS = (
    quantize_lsq,
    quantize_round_detach,
    quantize_pact,
    quantize_hwgq,
    quantize_ternary,
    quantize_ternary_masked,
    quantize_offset,
    quantize_thermometer,
)


class QuantizerNet(nn.Module):
    """A quantizer behind an image's BatchNorm and behind the sums of a layer of signs."""

    def __init__(self, quantize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.quantize = quantize
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = SignConv(6, 6, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = SignLinear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.quantize(self.bn1(self.conv1(x)))
        x = self.quantize(self.bn2(self.conv2(x)))
        return self.fc(torch.flatten(x, 1))


for quantize in QUANTIZERS:
    add(quantize.__name__, lambda quantize=quantize: QuantizerNet(quantize), (3, 6, 6))


class Convolutional1d(nn.Module):
    """A network for sound or sensors: one-dimensional convolutions and pools."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv1d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(8)
        self.conv3 = nn.Conv1d(8, 8, 3, stride=2, bias=False)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = F.conv1d(sign_where_ge(x), torch.sign(self.conv2.weight), padding=1)
        x = self.bn2(F.max_pool1d(x, 2))
        x = F.conv1d(sign_where_ge(x), torch.sign(self.conv3.weight), stride=2)
        return self.fc(F.relu(x).mean(dim=-1))


add("conv1d", Convolutional1d, (4, 32))


class Between(nn.Module):
    """Something between the sums of one binary convolution and the signs of the next."""

    def __init__(self, between: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = SignConv(4, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.between = between
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = SignConv(channels, 6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.bn1(self.conv1(sign_where_ge(x))))
        return self.conv2(sign_where_ge(self.bn2(x)))


class MirroredSigns(nn.Module):
    """Signs padded by their own mirror image."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(sign_where_ge(x), (1, 2, 2, 1), mode="reflect")


add("upsample_nearest", lambda: Between(nn.Upsample(scale_factor=2)), (4, 6, 6), step=0.5)
add("upsample_bilinear", lambda: Between(nn.Upsample(scale_factor=2, mode="bilinear")), (4, 6, 6), step=0.5)
add("conv_transpose", lambda: Between(nn.ConvTranspose2d(8, 8, 3, 2, 1, 1)), (4, 6, 6), step=0.5)
add("pixel_shuffle", lambda: Between(nn.PixelShuffle(2), 2), (4, 6, 6), step=0.5)
add("pixel_unshuffle", lambda: Between(nn.PixelUnshuffle(2), 32), (4, 6, 6), step=0.5)
add("group_norm", lambda: Between(nn.GroupNorm(2, 8)), (4, 6, 6), step=0.5)
add("layer_norm", lambda: Between(nn.LayerNorm((8, 6, 6))), (4, 6, 6), step=0.5)
add("mirrored_signs", lambda: Between(MirroredSigns()), (4, 6, 6), step=0.5)


class DoReFaNet(nn.Module):
    """DoReFa: k-bit weights by tanh, k-bit activations of [0, 1]."""

    def __init__(self, weight_bits: int, bits: int) -> None:
        super().__init__()
        self.weight_bits, self.bits = weight_bits, bits
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 6, 3, stride=2, bias=False)
        self.fc = nn.Linear(6 * 9, 5)

    def activate(self, x: Tensor) -> Tensor:
        levels = 2**self.bits - 1
        return torch.round(torch.clamp(x, 0, 1) * levels) / levels

    def weights(self, w: Tensor) -> Tensor:
        if self.weight_bits == 1:
            return torch.sign(w) * w.abs().mean()
        levels = 2**self.weight_bits - 1
        w = torch.tanh(w)
        w = w / (2 * w.abs().max()) + 0.5
        return 2 * torch.round(w * levels) / levels - 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.activate(self.bn1(self.conv1(x)))
        x = self.activate(self.bn2(F.conv2d(x, self.weights(self.conv2.weight), padding=1)))
        x = F.relu(F.conv2d(x, self.weights(self.conv3.weight), stride=2))
        return self.fc(torch.flatten(x, 1))


add("dorefa_1_2", lambda: DoReFaNet(1, 2), (3, 8, 8))
add("dorefa_2_2", lambda: DoReFaNet(2, 2), (3, 8, 8))
add("dorefa_3_3", lambda: DoReFaNet(3, 3), (3, 8, 8))


class JoinedSigns(nn.Module):
    """Signs that are concatenated, shuffled between groups and added up before a convolution reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = SignConv(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = SignConv(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = SignConv(8, 6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        signs = sign_where_ge(x)
        both = torch.cat([signs, sign_where_ge(self.bn1(self.conv1(signs)))], dim=1)
        n, c, h, w = both.shape
        shuffled = both.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.conv3(sign_where_ge(self.bn2(self.conv2(shuffled))) + shuffled)


add("joined_signs", JoinedSigns, (4, 8, 8), step=0.5)


def sign_linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """A layer of BiT and its like: signs of shifted activations, signs of weights with a scale for the layer."""
    weight = layer.weight.abs().mean() * torch.sign(layer.weight)
    return F.linear(torch.sign(x), weight, layer.bias)


class TransformerBlock(nn.Module):
    """Attention and MLP on binary layers, float products of matrices and float shortcuts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        qkv = sign_linear(self.norm1(x), self.qkv).reshape(n, t, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = self.attend(q, k, v).transpose(1, 2).reshape(n, t, c)
        x = x + sign_linear(y, self.proj)
        y = F.gelu(sign_linear(self.norm2(x), self.fc1))
        return x + sign_linear(y - 0.2, self.fc2)


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 16, heads: int = 2, patch: int = 4, tokens: int = 9) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.linspace(-1, 1, width).reshape(1, 1, width))
        positions = torch.sin(torch.arange((tokens + 1) * width) * 0.37).reshape(1, tokens + 1, width)
        self.positions = nn.Parameter(positions)
        self.blocks = nn.Sequential(TransformerBlock(width, heads), TransformerBlock(width, heads))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


add("vision_transformer", VisionTransformer, (3, 12, 12))
add("vision_transformer_dynamic_batch", VisionTransformer, (3, 12, 12), batch="batch")


# Files that exporters get wrong ---------------------------------------------------------------------------------------


class DataAssignment(nn.Module):
    """The classic ``input.data = sign(input.data)``: tracing does not see it, and the file has no sign."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x.data = torch.sign(x.data)
        self.conv2.weight.data = torch.sign(self.conv2.weight.data)
        return self.conv2(x)


@fixture("broken")
def dropped_sign(path: Path) -> Recorded:
    return record(randomise(DataAssignment(), seed=1), path, "legacy", (3, 8, 8))
