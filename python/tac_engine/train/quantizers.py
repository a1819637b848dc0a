"""Maps from real weights and activations to few values, with gradients to train through them.

The derivative of a step is zero almost everywhere; a straight-through estimator (STE) puts another in its place.
``ste`` names one of STES, with x the input of the sign:

- ``identity``: 1.
- ``clip``: 1 for ``|x| <= 1``, else 0 (hard tanh; BinaryNet, arXiv 1602.02830).
- ``approx_sign``: ``max(2 - 2 |x|, 0)``, from a piecewise quadratic (Bi-Real Net, arXiv 1808.00278).
- ``ede``: ``k t (1 - tanh(t x)^2)``, ``k = max(1 / t, 1)``; t grows from 0.1 to 10 with the progress of the training
  (IR-Net, arXiv 1909.10788), which :func:`set_progress` tells.

A sign is +1 at zero: activations then need one bit, not three values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError

STES = ("identity", "clip", "approx_sign", "ede")

# HWGQ's quantizer of a half-wave rectified standard normal to 2 bits (arXiv 1702.00953), minimal mean square error.
HWGQ_STEP = 0.538
HWGQ_LEVELS = 3

_TERNARY_THRESHOLD = 0.7  # of the mean magnitude (TWN, arXiv 1605.04711, section 2.2)


def ste_temperature(progress: float) -> float:
    """Return the t of ``ede`` when ``progress`` of the training, 0 to 1, is done."""
    return float(10.0 ** (2.0 * progress - 1.0))


def ste_derivative(x: Tensor, ste: str, temperature: float = 1.0) -> Tensor:
    """Return what stands for the derivative of the sign at `x`, of its shape and dtype."""
    if ste == "identity":
        return torch.ones_like(x)
    if ste == "clip":
        return (x.abs() <= 1).to(x.dtype)
    if ste == "approx_sign":
        return (2 - 2 * x.abs()).clamp_(min=0)
    if ste == "ede":
        factor = max(1 / temperature, 1.0) * temperature
        return factor * (1 - torch.tanh(temperature * x).square())
    raise _unknown_ste(ste)


def _unknown_ste(ste: str) -> InvalidInputError:
    return InvalidInputError(f"no straight-through estimator '{ste}'; there are {', '.join(STES)}")


def _step(x: Tensor) -> Tensor:
    one = torch.ones((), dtype=x.dtype, device=x.device)
    return torch.where(x >= 0, one, -one)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ste: str, temperature: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ste, ctx.temperature = ste, temperature
        return _step(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return gradient * ste_derivative(x, ctx.ste, ctx.temperature), None, None


def sign(x: Tensor, ste: str, temperature: float = 1.0) -> Tensor:
    """Return +1 where `x` >= 0 and -1 elsewhere; gradients pass as `ste` says."""
    return _Sign.apply(x, ste, temperature) if torch.is_grad_enabled() else _step(x)


class _HalfWave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _half_wave(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * ((x > 0) & (x <= HWGQ_STEP * HWGQ_LEVELS)).to(gradient.dtype)


def _half_wave(x: Tensor) -> Tensor:
    # The lowest step is at 0, the others halfway between two levels.
    code = (x > 0).to(x.dtype)
    for level in range(1, HWGQ_LEVELS):
        code = code + (x > (level + 0.5) * HWGQ_STEP).to(x.dtype)
    return code * HWGQ_STEP


class _Ternarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        magnitude = weight.abs()
        kept = magnitude > _TERNARY_THRESHOLD * magnitude.mean()
        scale = (magnitude * kept).sum() / kept.sum().clamp(min=1)
        return torch.sign(weight) * kept * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _SteModule(nn.Module):
    """What `set_progress` finds: a module with an STE of some temperature."""

    def __init__(self, ste: str) -> None:
        super().__init__()
        if ste not in STES:
            raise _unknown_ste(ste)
        self.ste = ste
        self.temperature = ste_temperature(0.0)

    def extra_repr(self) -> str:
        return f"ste={self.ste}"


class SignActivation(_SteModule):
    """Activations of +-1: +1 where x >= 0."""

    def __init__(self, ste: str = "approx_sign") -> None:
        super().__init__(ste)

    def forward(self, x: Tensor) -> Tensor:
        return sign(x, self.ste, self.temperature)


class HwgqActivation(nn.Module):
    """Activations of 2 bits, {0, 1, 2, 3} x 0.538, of inputs with about unit variance (HWGQ, arXiv 1702.00953).

    Steps at 0, 0.807 and 1.345. The gradient passes within (0, 1.614], that of a clipped ReLU.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _HalfWave.apply(x) if torch.is_grad_enabled() else _half_wave(x)


class BinaryWeight(_SteModule):
    """Weights of +-1 times one scale per filter, the mean magnitude (XNOR-Net, arXiv 1603.05279, section 3.1).

    `weight` is [filters, ...]. The scale takes no gradient (Bi-Real Net). With `scaled` False it is 1.

    Args:
        ste: name of the straight-through estimator.
        normalise: "none"; "centre", the mean of each filter is taken off first; or "standardise", the filter is also
            divided by its standard deviation (weight standardisation, as in IR-Net), n - 1 in the divisor.
        scaled: whether filters have a scale.
    """

    NORMALISATIONS = ("none", "centre", "standardise")

    def __init__(self, ste: str = "identity", normalise: str = "none", *, scaled: bool = True) -> None:
        super().__init__(ste)
        if normalise not in self.NORMALISATIONS:
            raise InvalidInputError(f"no normalisation '{normalise}'; there are {', '.join(self.NORMALISATIONS)}")
        self.normalise = normalise
        self.scaled = scaled

    def forward(self, weight: Tensor) -> Tensor:
        axes = tuple(range(1, weight.ndim))
        if self.normalise != "none":
            weight = weight - weight.mean(axes, keepdim=True)
        if self.normalise == "standardise":
            weight = weight / weight.std(axes, keepdim=True)
        signs = sign(weight, self.ste, self.temperature)
        return signs * weight.detach().abs().mean(axes, keepdim=True) if self.scaled else signs

    def extra_repr(self) -> str:
        return f"ste={self.ste}, normalise={self.normalise}, scaled={self.scaled}"


class TernaryWeight(nn.Module):
    """Weights of {-a, 0, a} (TWN, arXiv 1605.04711): zero up to 0.7 times the mean magnitude of the layer.

    a is the mean magnitude of the others. The gradient passes unchanged.
    """

    def forward(self, weight: Tensor) -> Tensor:
        return _Ternarize.apply(weight)


def set_progress(model: nn.Module, progress: float) -> None:
    """Tell every STE in `model` that `progress` of the training, 0 to 1, is done; "ede" depends on it."""
    for module in model.modules():
        # Compiled code is for one temperature: those that have no use for it keep theirs.
        if isinstance(module, _SteModule) and module.ste == "ede":
            module.temperature = ste_temperature(progress)
