"""Pruned and weight-sharing fully connected layers, after Deep Compression (arXiv 1510.00149).

nn.Linear -> PrunedLinear, pruned again and again with training between -> CodebookLinear, whose codes stay
what they are while its centroids train.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..converters.codebook import kmeans
from ..errors import InvalidInputError

MAX_CENTROIDS = 16


class PrunedLinear(nn.Linear):
    """A fully connected layer with a mask: what is pruned is zero, whatever the optimizer does to its weight."""

    mask: Tensor  # bool [out_features, in_features]

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("mask", torch.ones(out_features, in_features, dtype=torch.bool))

    @classmethod
    def of(cls, layer: nn.Linear) -> PrunedLinear:
        """Return a layer with the parameters of `layer`, nothing pruned yet."""
        pruned = cls(layer.in_features, layer.out_features, layer.bias is not None).to(layer.weight.device)
        pruned.weight, pruned.bias = layer.weight, layer.bias
        return pruned

    def masked_weight(self) -> Tensor:
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.masked_weight(), self.bias)

    @torch.no_grad()
    def prune(self, share: float) -> None:
        """Prune the `share` of the weights that is smallest in magnitude, what was pruned before included.

        Raises:
            InvalidInputError: `share` is not within [0, 1), or less than what is pruned already.
        """
        if not 0.0 <= share < 1.0:
            raise InvalidInputError(f"the share to prune must be in [0, 1), got {share}")
        count = round(share * self.mask.numel())
        pruned = int((~self.mask).sum())
        if count < pruned:
            raise InvalidInputError(f"{pruned} weights are pruned already, a share of {share} would be {count}")
        # Pruned before surviving, then by magnitude; a stable order makes ties the same everywhere.
        rank = torch.where(self.mask, self.weight.abs(), -1.0).flatten().argsort(stable=True)
        self.mask.view(-1)[rank[:count]] = False

    @torch.no_grad()
    def baked(self) -> nn.Linear:
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None).to(self.weight.device)
        layer.weight.copy_(self.masked_weight())
        if self.bias is not None:
            layer.bias.copy_(self.bias)
        return layer


class _Lookup(torch.autograd.Function):
    """Weights of a codebook; the gradient of a centroid is the sum over its weights (Deep Compression, section 3.3)."""

    @staticmethod
    def forward(ctx: Any, centroids: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.count = centroids.numel()
        table = torch.cat([centroids.new_zeros(1), centroids])
        return table[codes.long()]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (codes,) = ctx.saved_tensors
        sums = _sums_counted if gradient.device.type == "cpu" else _sums_masked
        return sums(gradient, codes, ctx.count), None


def _sums_counted(gradient: Tensor, codes: Tensor, count: int) -> Tensor:
    """Sum `gradient` over each code from 1 to `count`, in one pass; on a GPU in an order that differs each time."""
    return torch.bincount(codes.flatten(), gradient.double().flatten(), count + 1)[1:].to(gradient.dtype)


def _sums_masked(gradient: Tensor, codes: Tensor, count: int) -> Tensor:
    """Do the same in one pass for each code, always in the same order."""
    return torch.stack([torch.where(codes == code, gradient, 0.0).sum() for code in range(1, count + 1)])


class CodebookLinear(nn.Module):
    """A fully connected layer with at most 16 weight values and zero: code 0 is zero, code k centroid k - 1.

    Computed as a MatMul and an Add: PyTorch's exporter folds a following BatchNormalization into a Gemm, and so would
    give every output a codebook of its own.
    """

    codes: Tensor  # uint8 [out_features, in_features]

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, centroids: int = 15) -> None:
        super().__init__()
        if not 1 <= centroids <= MAX_CENTROIDS:
            raise InvalidInputError(f"a codebook has 1 to {MAX_CENTROIDS} centroids beside zero, got {centroids}")
        self.in_features, self.out_features = in_features, out_features
        self.centroids = nn.Parameter(torch.zeros(centroids))
        self.register_buffer("codes", torch.zeros(out_features, in_features, dtype=torch.uint8))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    @classmethod
    @torch.no_grad()
    def of(cls, layer: nn.Linear, centroids: int = 15) -> CodebookLinear:
        """Cluster the weights of `layer` that are not zero by k-means, starting linearly from smallest to largest."""
        shared = cls(layer.in_features, layer.out_features, layer.bias is not None, centroids=centroids)
        shared.to(layer.weight.device)
        shared.bias = layer.bias
        weight = (layer.masked_weight() if isinstance(layer, PrunedLinear) else layer.weight).cpu().numpy()
        alive = weight != 0
        codes = np.zeros(weight.shape, np.uint8)
        if alive.any():
            found, nearest = kmeans(weight[alive].astype(np.float64), centroids)
            codes[alive] = 1 + nearest.astype(np.uint8)
            shared.centroids.copy_(torch.from_numpy(found))
        shared.codes.copy_(torch.from_numpy(codes))
        return shared

    def members(self) -> Tensor:
        """Return how many weights each centroid stands for, int64 [centroids]."""
        return torch.bincount(self.codes.flatten(), minlength=len(self.centroids) + 1)[1:]

    def shared_weight(self) -> Tensor:
        return _Lookup.apply(self.centroids, self.codes)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(x, self.shared_weight().t())
        return y if self.bias is None else y + self.bias

    def baked(self) -> nn.Module:
        return _MatMul(self.shared_weight().detach(), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, centroids={len(self.centroids)}"


class _MatMul(nn.Module):
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        y = torch.matmul(x, self.weight.t())
        return y if self.bias is None else y + self.bias


# --- whole networks -------------------------------------------------------------------------


def linears(model: nn.Module) -> list[nn.Module]:
    """Return the fully connected layers of `model` that compress: float, pruned or with a codebook, in order."""
    return [layer for _, _, layer in _linears(model)]


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) in (nn.Linear, PrunedLinear, CodebookLinear):
                yield parent, name, child


def prune_linears(model: nn.Module, share: float) -> None:
    """Prune the fully connected layers of `model` to `share` of zeros each; float ones become PrunedLinear."""
    for parent, name, layer in list(_linears(model)):
        if isinstance(layer, CodebookLinear):
            raise InvalidInputError(f"'{name}' has a codebook already; pruning comes first")
        pruned = layer if isinstance(layer, PrunedLinear) else PrunedLinear.of(layer)
        pruned.prune(share)
        setattr(parent, name, pruned)


def compress_linears(model: nn.Module, centroids: int = 15) -> None:
    """Give every fully connected layer of `model` a codebook of its own."""
    for parent, name, layer in list(_linears(model)):
        if not isinstance(layer, CodebookLinear):
            setattr(parent, name, CodebookLinear.of(layer, centroids))
