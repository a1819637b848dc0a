"""Convolutions and fully connected layers that train a real weight and compute with a low-bit one.

The quantizer maps the one to the other in each forward pass; optimizers see the real, latent weight. `baked` gives the
plain layer with the low-bit weight, which is what gets exported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .quantizers import BinaryWeight, TernaryWeight


class QuantizedConv2d(nn.Conv2d):
    """A convolution whose weight goes through `quantizer`; everything else is nn.Conv2d's."""

    def __init__(self, *args: Any, quantizer: nn.Module, **options: Any) -> None:
        super().__init__(*args, **options)
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.quantizer(self.weight), self.bias)

    @torch.no_grad()
    def baked(self) -> nn.Conv2d:
        layer = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias is not None,
            self.padding_mode,
        )
        return _copied(layer, self.quantizer(self.weight), self.bias)


class QuantizedLinear(nn.Linear):
    """A fully connected layer whose weight goes through `quantizer`; everything else is nn.Linear's."""

    def __init__(self, *args: Any, quantizer: nn.Module, **options: Any) -> None:
        super().__init__(*args, **options)
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.quantizer(self.weight), self.bias)

    @torch.no_grad()
    def baked(self) -> nn.Linear:
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        return _copied(layer, self.quantizer(self.weight), self.bias)


def _copied(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    layer.to(weight.device)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    return layer


class BinaryConv2d(QuantizedConv2d):
    """A convolution with weights of +-1 and a scale per filter: BinaryWeight(ste, normalise)."""

    def __init__(self, *args: Any, ste: str = "identity", normalise: str = "none", **options: Any) -> None:
        super().__init__(*args, quantizer=BinaryWeight(ste, normalise), **options)


class BinaryLinear(QuantizedLinear):
    """A fully connected layer with weights of +-1 and a scale per output: BinaryWeight(ste, normalise)."""

    def __init__(self, *args: Any, ste: str = "identity", normalise: str = "none", **options: Any) -> None:
        super().__init__(*args, quantizer=BinaryWeight(ste, normalise), **options)


class TernaryConv2d(QuantizedConv2d):
    """A convolution with weights of {-a, 0, a}: TernaryWeight."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, quantizer=TernaryWeight(), **options)


class TernaryLinear(QuantizedLinear):
    """A fully connected layer with weights of {-a, 0, a}: TernaryWeight."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, quantizer=TernaryWeight(), **options)
