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

from . import Recorded, register, samples

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
                module.weight.copy_(normal(module.weight))
                module.bias.copy_(normal(module.bias))
                module.running_mean.copy_(normal(module.running_mean) * 3)
                module.running_var.copy_(20 + 10 * torch.rand(module.running_var.shape, generator=generator))
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
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
    seed: int = 1,
    exporters: tuple[str, ...] = EXPORTERS,
    **options: Any,
) -> None:
    """Registers ``<name>_<exporter>`` for each exporter."""
    for exporter in exporters:

        def write(path: Path, exporter: str = exporter) -> Recorded:
            return record(randomise(make(), seed), path, exporter, shape, **options)

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


SIGNS: tuple[Callable[[Tensor], Tensor], ...] = (sign_function, sign_where_ge, sign_where_gt)


class SignConv(nn.Conv2d):
    """A convolution with the signs of its latent weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, torch.sign(self.weight), None, self.stride, self.padding)


class SignNet(nn.Module):
    """Three binary convolutions: the signs of an input, of bare sums (where 0 occurs) and of a BatchNorm."""

    def __init__(self, sign: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.sign = sign
        self.conv1 = SignConv(4, 8, 3, padding=1, bias=False)
        self.conv2 = SignConv(8, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = SignConv(8, 6, 3, stride=2, bias=False)
        self.bn3 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.sign(x))
        x = self.bn2(self.conv2(self.sign(x)))
        x = F.relu(self.bn3(self.conv3(self.sign(x))))
        return self.fc(torch.flatten(x, 1))


for sign in SIGNS:
    add(sign.__name__, lambda sign=sign: SignNet(sign), (4, 8, 8), step=0.5)
