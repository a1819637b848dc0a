"""Brevitas: ``export_qonnx`` and ``export_onnx_qcdq`` of small quantized networks.

The outputs are those of the Brevitas modules in PyTorch. Latent weights are normal numbers, as after training.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import torch
from brevitas.core.function_wrapper import TensorClamp
from brevitas.core.restrict_val import RestrictValueType
from brevitas.export import export_onnx_qcdq, export_qonnx
from brevitas.inject.enum import ScalingImplType, ScalingPerOutputType, StatsOp
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    Int8WeightPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
    SignedBinaryActPerTensorConst,
    SignedBinaryWeightPerTensorConst,
    SignedTernaryActPerTensorConst,
    SignedTernaryWeightPerTensorConst,
    TruncTo8bit,
    Uint8ActPerTensorFloat,
)
from torch import nn

from . import Recorded, register, samples

PRODUCER = "brevitas"


class SignWeight(SignedBinaryWeightPerTensorConst):
    scaling_const = 1.0


class Sign(SignedBinaryActPerTensorConst):
    """Brevitas clamps to its range and then takes the sign: +-1."""


class ChannelSign(SignedBinaryWeightPerTensorConst):
    """+-the mean magnitude of each output channel. The clamp in place, Brevitas' default, would change the weights."""

    tensor_clamp_impl = TensorClamp
    scaling_impl_type = ScalingImplType.STATS
    scaling_stats_op = StatsOp.AVE
    scaling_per_output_type = ScalingPerOutputType.CHANNEL


class SmallSign(SignedBinaryActPerTensorConst):
    min_val, max_val = -0.1, 0.1


class TernaryWeight(SignedTernaryWeightPerTensorConst):
    scaling_const = 0.1
    threshold = 0.5


def settle(model: nn.Module, shape: tuple[int, ...], seed: int) -> nn.Module:
    """Weights and statistics as after training; two passes in training mode let activation scales settle."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.5)
                module.momentum = 1.0  # statistics of the last batch
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                # Spread evenly enough that two bits use all their levels.
                module.weight.copy_(0.1 * torch.tanh(2 * torch.randn(module.weight.shape, generator=generator)))
                if module.bias is not None:
                    module.bias.copy_(torch.randn(module.bias.shape, generator=generator))
    model.train()
    with torch.no_grad():
        for step in range(2):
            model(torch.from_numpy(samples(16, *shape, seed=seed + step)))
    return model.eval()


def export(model: nn.Module, x: torch.Tensor, path: Path, form: str) -> None:
    names: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if form.startswith("qcdq"):
            options: dict[str, Any] = (
                {"dynamo": True} if form == "qcdq_dynamo" else {"dynamo": False, "opset_version": 13}
            )
            export_onnx_qcdq(model, args=x, export_path=str(path), **options, **names)
        else:
            export_qonnx(model, args=x, export_path=str(path), dynamo=form == "dynamo", **names)


def add(name: str, make: Callable[[], nn.Module], shape: tuple[int, ...], *, forms: tuple[str, ...]) -> None:
    """Registers one fixture per form: "qonnx" and "qcdq" by the TorchScript exporter, "dynamo" and "qcdq_dynamo"."""
    for form in forms:

        def write(path: Path, form: str = form) -> Recorded:
            torch.manual_seed(0)
            model = settle(make(), shape, seed=5)
            x = torch.from_numpy(samples(4, *shape, seed=7))
            export(model, x[:1], path, form)
            with torch.no_grad():
                y = model(x)
            return Recorded([x.numpy()], [(y.value if hasattr(y, "value") else y).numpy()])

        register(PRODUCER, f"{name}_{form}", write)


def binary(weight: Any = SignWeight, act: Any = Sign) -> nn.Module:
    """Conv, BN, sign, MaxPool, Flatten, Linear: every layer binary."""
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=act),
        qnn.QuantConv2d(3, 8, 3, padding=1, bias=False, weight_quant=weight),
        nn.BatchNorm2d(8),
        qnn.QuantIdentity(act_quant=act),
        nn.MaxPool2d(2),
        nn.Flatten(),
        qnn.QuantLinear(8 * 4 * 4, 10, bias=False, weight_quant=weight),
    )


def relu_net(
    act_bits: int, weight_bits: int, *, first: Any = None, weight: Any = Int8WeightPerTensorFloat
) -> nn.Module:
    """Unsigned activations behind a ReLU; the image is quantized to 8 bits unless ``first`` says otherwise."""
    bits = {"bit_width": act_bits}
    return nn.Sequential(
        first or qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True),
        qnn.QuantConv2d(3, 8, 3, padding=1, weight_quant=weight, weight_bit_width=weight_bits),
        nn.BatchNorm2d(8),
        qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, return_quant_tensor=True, **bits),
        qnn.QuantConv2d(8, 8, 3, stride=2, weight_quant=weight, weight_bit_width=weight_bits, bias=False),
        nn.BatchNorm2d(8),
        qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, return_quant_tensor=True, **bits),
        nn.MaxPool2d(2),
        nn.Flatten(),
        qnn.QuantLinear(32, 10, bias=True, weight_quant=weight, weight_bit_width=weight_bits),
    )


def per_channel() -> nn.Module:
    return relu_net(2, 3, weight=Int8WeightPerChannelFloat)


def signed_net(bits: int, narrow: bool) -> nn.Module:
    """Signed activations, narrow or not, on both sides of fully connected layers."""
    act: dict[str, Any] = {"act_quant": Int8ActPerTensorFloat, "bit_width": bits, "narrow_range": narrow}
    weights: dict[str, Any] = {
        "weight_quant": Int8WeightPerTensorFloat,
        "weight_bit_width": bits,
        "weight_narrow_range": narrow,
    }
    return nn.Sequential(
        qnn.QuantIdentity(**act, return_quant_tensor=True),
        qnn.QuantLinear(24, 16, bias=False, **weights),
        nn.BatchNorm1d(16),
        qnn.QuantHardTanh(min_val=-1.0, max_val=1.0, **act, return_quant_tensor=True),
        qnn.QuantLinear(16, 12, bias=True, **weights),
        nn.BatchNorm1d(12),
        qnn.QuantIdentity(**act),
        qnn.QuantLinear(12, 5, bias=True, **weights),
    )


def ternary() -> nn.Module:
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=SignedTernaryActPerTensorConst),
        qnn.QuantConv2d(4, 8, 3, padding=1, bias=False, weight_quant=TernaryWeight),
        nn.BatchNorm2d(8),
        qnn.QuantIdentity(act_quant=SignedTernaryActPerTensorConst),
        qnn.QuantConv2d(8, 6, 1, bias=True, weight_quant=TernaryWeight),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def shifted() -> nn.Module:
    """Activations and weights with zero points."""
    return nn.Sequential(
        qnn.QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat, bit_width=3, return_quant_tensor=True),
        qnn.QuantConv2d(
            3, 8, 3, padding=1, bias=False, weight_quant=ShiftedUint8WeightPerTensorFloat, weight_bit_width=2
        ),
        nn.BatchNorm2d(8),
        qnn.QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat, bit_width=4, return_quant_tensor=True),
        qnn.QuantConv2d(8, 4, 3, bias=False, weight_quant=ShiftedUint8WeightPerTensorFloat, weight_bit_width=3),
    )


class Residual(nn.Module):
    """One quantizer shared by both branches, so that their sum is quantized too."""

    def __init__(self) -> None:
        super().__init__()
        act: dict[str, Any] = {"act_quant": Int8ActPerTensorFloat, "bit_width": 4, "return_quant_tensor": True}
        weight: dict[str, Any] = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": 3, "bias": False}
        self.shared = qnn.QuantIdentity(**act)
        self.conv = qnn.QuantConv2d(4, 4, 3, padding=1, groups=2, **weight)
        self.bn = nn.BatchNorm2d(4)
        self.last = qnn.QuantIdentity(**act)
        self.head = qnn.QuantConv2d(4, 6, 1, **weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.shared(x)
        right = self.shared(self.bn(self.conv(left)))
        result: torch.Tensor = self.head(self.last(left + right))
        return result


def truncated() -> nn.Module:
    """Average pooling that drops low bits (Trunc in the file)."""
    return nn.Sequential(
        qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat, bit_width=4, return_quant_tensor=True),
        qnn.TruncAvgPool2d(2, trunc_quant=TruncTo8bit, bit_width=4, return_quant_tensor=True),
        qnn.QuantConv2d(3, 6, 3, bias=False, weight_quant=Int8WeightPerTensorFloat, weight_bit_width=2),
    )


def fixed_point() -> nn.Module:
    """Scales that are powers of two: sums meet the rounding ties of the next quantizer exactly."""
    act: dict[str, Any] = {"act_quant": Uint8ActPerTensorFloat, "bit_width": 3, "return_quant_tensor": True}
    act |= {"restrict_scaling_type": RestrictValueType.POWER_OF_TWO}
    weight: dict[str, Any] = {"weight_quant": Int8WeightPerTensorFixedPoint, "weight_bit_width": 3, "bias": False}
    return nn.Sequential(
        qnn.QuantReLU(**act),
        qnn.QuantConv2d(3, 8, 3, padding=1, **weight),
        qnn.QuantReLU(**act),
        qnn.QuantConv2d(8, 8, 3, **weight),
        qnn.QuantReLU(**act),
        qnn.QuantConv2d(8, 4, 1, **weight),
    )


BOTH = ("qonnx", "dynamo")
add("binary", binary, (3, 8, 8), forms=BOTH)
add("binary_scale_0_1", lambda: binary(SignedBinaryWeightPerTensorConst, SmallSign), (3, 8, 8), forms=BOTH)
RELU_FORMS: dict[int, tuple[str, ...]] = {
    2: (*BOTH, "qcdq", "qcdq_dynamo"),
    3: ("qonnx", "qcdq"),
    4: ("qonnx", "qcdq"),
    8: (*BOTH, "qcdq"),
}
add("binary_per_channel", lambda: binary(ChannelSign), (3, 8, 8), forms=BOTH)
for bits in RELU_FORMS:
    add(f"relu_w{bits}a{bits}", lambda bits=bits: relu_net(bits, bits), (3, 9, 9), forms=RELU_FORMS[bits])
for bits, narrow in ((2, False), (3, True), (4, True), (4, False)):
    name = f"signed_{bits}bit_{'narrow' if narrow else 'full'}"
    add(name, lambda bits=bits, narrow=narrow: signed_net(bits, narrow), (24,), forms=("qonnx", "qcdq"))
add(
    "per_channel_w3a2",
    per_channel,
    (3, 9, 9),
    forms=("qonnx", "qcdq"),
)
add("ternary", ternary, (4, 6, 6), forms=("qonnx", "qcdq"))
add("shifted", shifted, (3, 6, 6), forms=("qonnx", "qcdq"))
add("residual", Residual, (4, 6, 6), forms=("qonnx", "qcdq"))
add("truncated", truncated, (3, 8, 8), forms=("qonnx",))
add("fixed_point", fixed_point, (3, 7, 7), forms=("qonnx", "qcdq"))
