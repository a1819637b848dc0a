"""The networks of TAC and of the systems it builds on, float, binary, or TAC: binary convolutions, float FC layers.

Convolutions are 3x3 with padding 1 and no bias unless said otherwise; P is a 2x2 max pooling; BN, BatchNormalization,
follows every convolution (its pooling, if there is one) and every fully connected (FC) layer but the last.

- ``vgg9a``: 128 128 P 256 256 P 512 512 P, FC 1024 1024 classes (BinaryNet, arXiv 1602.02830).
- ``vgg9b``: 64 64 P 128 128 P 256 256 P, FC 512 512 classes (stochastic quantization, arXiv 1708.01001).
- ``vgg_small``: the convolutions of vgg9a and one FC layer.
- ``alexnet``: 96 (11x11, stride 4, padding 2) P 256 (5x5) P 384 384 256 P, FC 4096 4096 classes, pooling 3x3 of
  stride 2, no groups; layers in the order of XNOR-Net (arXiv 1603.05279): BN, sign, convolution, pooling.
- ``birealnet18``: Bi-Real ResNet-18 (arXiv 1808.00278): a float shortcut around every binary convolution, with an
  average pooling and a float 1x1 convolution where it down-samples. Images of up to 64 pixels get a
  3x3 stem without pooling.

The first convolution is float in every variant. ``binary`` makes every other layer binary: the FC layers of the VGGs
too, with BN behind the last (BinaryNet); alexnet's last FC layer and birealnet18's only one stay float, as in XNOR-Net
and Bi-Real Net. ``float`` has ReLU for every sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError
from .layers import BinaryConv2d, BinaryLinear
from .quantizers import SignActivation
from .recipe import ARCHITECTURES, Recipe, require_one_of

_SMALL_IMAGE = 64
_VGG = {
    "vgg9a": ((128, 256, 512), (1024, 1024)),
    "vgg9b": ((64, 128, 256), (512, 512)),
    "vgg_small": ((128, 256, 512), ()),
}


class Network(nn.Module):
    """`features`, which step 2 freezes, and the FC layers of `classifier`."""

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def build_network(recipe: Recipe, input_shape: Sequence[int], classes: int) -> Network:
    """Return the untrained network of `recipe` for images of `input_shape` (channels, height, width).

    Raises:
        InvalidInputError: the images are too small for the network.
    """
    require_one_of("architecture", recipe.arch, ARCHITECTURES)
    layers = _Layers(recipe)
    channels, size = input_shape[0], min(input_shape[1:])
    if recipe.arch in _VGG:
        features, hidden = _vgg(layers, recipe.arch, channels)
    elif recipe.arch == "alexnet":
        features, hidden = _alexnet(layers, channels)
    else:
        features, hidden = _birealnet18(layers, channels, size), []
    with torch.no_grad():
        try:
            # One value of shape inference; BN wants no statistics of it.
            inputs = features.eval()(torch.zeros(1, *input_shape)).flatten(1).shape[1]
        except RuntimeError as error:
            raise InvalidInputError(
                f"{recipe.arch} does not take images of {' x '.join(map(str, input_shape[1:]))}: {error}"
            ) from None
    features.train()
    return Network(features, _classifier(layers, inputs, hidden, classes, recipe.arch in _VGG))


class _Layers:
    """Makes layers float or binary, as the variant asks."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.binary_convs = recipe.variant != "float"
        self.binary_linears = recipe.variant == "binary"

    def width(self, filters: int) -> int:
        return max(round(filters * self.recipe.width), 1)

    def conv(self, inputs: int, filters: int, size: int = 3, **options: Any) -> nn.Module:
        options = {"padding": size // 2, "bias": False, **options}
        if not self.binary_convs:
            return nn.Conv2d(inputs, filters, size, **options)
        return BinaryConv2d(
            inputs, filters, size, ste=self.recipe.weight_ste, normalise=self.recipe.normalise, **options
        )

    def activation(self) -> nn.Module:
        """What stands in front of a convolution that may be binary."""
        return SignActivation(self.recipe.activation_ste) if self.binary_convs else nn.ReLU()

    def last_activation(self) -> nn.Module:
        """What stands between the last binary convolution and the FC layers."""
        if self.binary_linears:
            return SignActivation(self.recipe.activation_ste)
        return nn.Hardtanh() if self.binary_convs else nn.ReLU()

    def linear(self, inputs: int, outputs: int, *, binary: bool, bias: bool = False) -> nn.Module:
        if not binary:
            return nn.Linear(inputs, outputs, bias=bias)
        return BinaryLinear(inputs, outputs, bias, ste=self.recipe.weight_ste, normalise=self.recipe.normalise)


def _vgg(layers: _Layers, arch: str, channels: int) -> tuple[nn.Sequential, list[int]]:
    widths, hidden = _VGG[arch]
    modules: list[nn.Module] = []
    before = channels
    for filters in map(layers.width, widths):
        for position in (0, 1):
            if modules:
                modules += [layers.activation(), layers.conv(before, filters)]
            else:
                modules.append(nn.Conv2d(before, filters, 3, padding=1, bias=False))
            if position == 1:
                modules.append(nn.MaxPool2d(2))
            modules.append(nn.BatchNorm2d(filters))
            before = filters
    modules.append(layers.last_activation())
    return nn.Sequential(*modules), [layers.width(units) for units in hidden]


def _alexnet(layers: _Layers, channels: int) -> tuple[nn.Sequential, list[int]]:
    first, *others = map(layers.width, (96, 256, 384, 384, 256))
    modules: list[nn.Module] = [
        nn.Conv2d(channels, first, 11, stride=4, padding=2, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    ]
    before = first
    for filters, size, pooled in zip(others, (5, 3, 3, 3), (True, False, False, True), strict=True):
        if layers.binary_convs:
            modules += [nn.BatchNorm2d(before), layers.activation(), layers.conv(before, filters, size)]
            modules += [nn.MaxPool2d(3, 2)] if pooled else []
        else:
            modules += [layers.conv(before, filters, size), nn.BatchNorm2d(filters), nn.ReLU()]
            modules += [nn.MaxPool2d(3, 2)] if pooled else []
        before = filters
    if layers.binary_convs:
        modules += [
            nn.BatchNorm2d(before),
            SignActivation(layers.recipe.activation_ste) if layers.binary_linears else nn.ReLU(),
        ]
    return nn.Sequential(*modules), [layers.width(4096)] * 2


class _Shortcut(nn.Module):
    """branch(x) + shortcut(x)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


def _birealnet18(layers: _Layers, channels: int, size: int) -> nn.Sequential:
    before = layers.width(64)
    if size <= _SMALL_IMAGE:
        modules: list[nn.Module] = [nn.Conv2d(channels, before, 3, padding=1, bias=False), nn.BatchNorm2d(before)]
    else:
        modules = [
            nn.Conv2d(channels, before, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(before),
            nn.MaxPool2d(3, 2, padding=1),
        ]
    for section, filters in enumerate(map(layers.width, (64, 128, 256, 512))):
        for position in range(4):
            stride = 2 if section > 0 and position == 0 else 1
            branch = nn.Sequential(
                layers.activation(), layers.conv(before, filters, stride=stride), nn.BatchNorm2d(filters)
            )
            shortcut: nn.Module = nn.Identity()
            if stride == 2:
                shortcut = nn.Sequential(
                    nn.AvgPool2d(2), nn.Conv2d(before, filters, 1, bias=False), nn.BatchNorm2d(filters)
                )
            modules.append(_Shortcut(branch, shortcut))
            before = filters
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1))


def _classifier(layers: _Layers, inputs: int, hidden: list[int], classes: int, vgg: bool) -> nn.Sequential:
    binary = layers.binary_linears
    modules: list[nn.Module] = [nn.Flatten()]
    for position, units in enumerate(hidden):
        last_hidden = position == len(hidden) - 1
        signs = binary and (vgg or not last_hidden)
        modules += [layers.linear(inputs, units, binary=binary), nn.BatchNorm1d(units)]
        modules.append(SignActivation(layers.recipe.activation_ste) if signs else nn.ReLU())
        inputs = units
    if binary and vgg:
        return nn.Sequential(*modules, layers.linear(inputs, classes, binary=True), nn.BatchNorm1d(classes))
    return nn.Sequential(*modules, layers.linear(inputs, classes, binary=False, bias=True))
