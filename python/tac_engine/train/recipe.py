"""What a training run is asked to do: the network, the two steps of TAC, the stages that follow. Knows no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import InvalidInputError

ARCHITECTURES = ("vgg9a", "vgg9b", "vgg_small", "alexnet", "birealnet18")
# step1: that of TAC, nothing compressed.
VARIANTS = ("tac", "step1", "binary", "float")
OPTIMIZERS = ("adam", "sgd")
PRECISIONS = ("float32", "bfloat16")
# Iterative pruning of TAC (arXiv 1907.05271).
PRUNE_RATES = (0.2, 0.4, 0.6, 0.7, 0.75)

# Of the optimizers: learning rate of step 1 and of step 2, weight decay.
_ADAM = (2e-3, 3e-4, 0.05)
_SGD = (0.1, 0.01, 5e-4)


@dataclass(frozen=True)
class Stage:
    """A part of a run that trains one set of parameters.

    Attributes:
        name: as reports call it.
        epochs: how many.
        lr: peak of its learning rate schedule.
        begin, span: where the stage begins in the schedule and how long that is, in epochs: 0 and `epochs` for a
            schedule of its own.
        warmup: epochs of linear warm-up at the beginning of the schedule.
        prune: share of zeros that the FC layers get first, or None.
        share: whether the FC layers get a codebook first.
        frozen: whether everything in front of the FC layers stays as it is.
    """

    name: str
    epochs: int
    lr: float
    begin: int = 0
    span: int = 0
    warmup: float = 0.0
    prune: float | None = None
    share: bool = False
    frozen: bool = False

    def learning_rate(self, epoch: float) -> float:
        """Return the learning rate `epoch` epochs into the stage: a linear warm-up, then half a cosine down to 0."""
        at = self.begin + epoch
        if at < self.warmup:
            return self.lr * at / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (at - self.warmup) / max(self.span - self.warmup, 1e-9)))


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights of a run depend on, but for the data themselves and how sums are rounded.

    Attributes:
        arch: one of ARCHITECTURES.
        variant: "tac", binary convolutions and compressed FC layers; "step1", its first step alone; "binary", binary FC
            layers as well; "float".
        single_step: prune and share from the start of training on, while the convolutions train (the control).
        width: factor of the number of filters and FC units.
        epochs: of step 1.
        compress_epochs: after each round of pruning, and of the codebook's centroids.
        prune_rates: shares of zeros in the FC layers, round by round.
        centroids: values of a codebook beside zero, at most 16.
        optimizer: "adam" (AdamW) or "sgd" (momentum 0.9).
        lr, compress_lr: peak learning rates of step 1 and of each stage of step 2; centroids train at a third of that.
        weight_decay: of weights, not of biases, BatchNormalization and centroids; with adam decoupled and not of latent
            weights either, whose magnitude is what makes signs stable; with sgd as L2.
        warmup_epochs: of step 1.
        activation_ste, weight_ste: straight-through estimators, see tac_engine.train.quantizers.
        normalise: of latent weights before their sign: "none", "centre" or "standardise".
        label_smoothing: share of each label that is spread over all classes.
        batch_size: images a step; what is left over at the end of an epoch is left out.
        precision: of the forward pass in step 1; step 2 is float32.
        crop: pixels that images are padded by before they are cropped to their size again.
        flip: whether images are mirrored at random; None: as is usual for the data.
        image_size: side that the images of a folder are scaled to.
        train_images: only so many of them, the first ones; None: all.
        seed: of everything random.
    """

    arch: str
    variant: str = "tac"
    single_step: bool = False
    width: float = 1.0
    epochs: int = 100
    compress_epochs: int = 2
    prune_rates: tuple[float, ...] = PRUNE_RATES
    centroids: int = 15
    optimizer: str = "adam"
    lr: float | None = None
    compress_lr: float | None = None
    weight_decay: float | None = None
    warmup_epochs: float = 2.0
    activation_ste: str = "approx_sign"
    weight_ste: str = "identity"
    normalise: str = "centre"
    label_smoothing: float = 0.0
    batch_size: int = 128
    precision: str = "float32"
    crop: int = 4
    flip: bool | None = None
    image_size: int | None = None
    train_images: int | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        require_one_of("architecture", self.arch, ARCHITECTURES)
        require_one_of("variant", self.variant, VARIANTS)
        require_one_of("optimizer", self.optimizer, OPTIMIZERS)
        require_one_of("precision", self.precision, PRECISIONS)
        for name in ("epochs", "compress_epochs", "batch_size", "centroids"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width <= 0:
            raise InvalidInputError(f"width must be positive, got {self.width}")
        for name in ("crop", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise InvalidInputError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise InvalidInputError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        if self.centroids > 16:
            raise InvalidInputError(f"centroids must be at most 16, got {self.centroids}")
        rates = self.prune_rates
        if any(not 0.0 < rate < 1.0 for rate in rates) or list(rates) != sorted(set(rates)):
            raise InvalidInputError(f"prune_rates must rise within (0, 1), got {', '.join(map(str, rates))}")
        if self.single_step and self.variant != "tac":
            raise InvalidInputError(f"single_step compresses FC layers, which variant '{self.variant}' does not")
        default = _ADAM if self.optimizer == "adam" else _SGD
        for name, value in zip(("lr", "compress_lr", "weight_decay"), default, strict=True):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
            elif getattr(self, name) < 0:
                raise InvalidInputError(f"{name} must not be negative, got {getattr(self, name)}")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        return cls(**{**data, "prune_rates": tuple(data["prune_rates"])})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "prune_rates": list(self.prune_rates)}

    def differences(self, other: Recipe) -> list[str]:
        """Return what differs from `other`, as "name: mine, not its"."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return [f"{name}: {mine}, not {its}" for name, mine, its in pairs if mine != its]

    def stages(self) -> list[Stage]:
        """Return the stages in order.

        TAC: step 1, one stage for each pruning rate with everything in front of the FC layers frozen, and one for the
        codebook. The control takes as many epochs, pruning in equal parts of their first half, the codebook in the
        second; one learning rate schedule spans them, and everything trains throughout.
        """
        assert self.lr is not None
        assert self.compress_lr is not None
        warmup = min(self.warmup_epochs, self.epochs / 2)
        name = self.variant if self.variant in ("binary", "float") else "float FC"
        first = Stage(name, self.epochs, self.lr, span=self.epochs, warmup=warmup)
        if self.variant != "tac":
            return [first]
        names = [f"pruned {100 * rate:g} %" for rate in self.prune_rates]
        last = f"codebook of {self.centroids}"
        each = self.compress_epochs
        if not self.single_step:
            pruning = [
                Stage(name, each, self.compress_lr, span=each, prune=rate, frozen=True)
                for name, rate in zip(names, self.prune_rates, strict=True)
            ]
            return [first, *pruning, Stage(last, each, self.compress_lr / 3, span=each, share=True, frozen=True)]
        total = self.epochs + each * (len(names) + 1)
        # At least an epoch each; there is one left for the codebook.
        half = max(total // 2, len(names))
        edges = [i * half // len(names) for i in range(len(names))] + [half] if names else [0]
        stages = [
            Stage(name, end - begin, self.lr, begin, total, warmup, prune=rate)
            for name, rate, begin, end in zip(names, self.prune_rates, edges[:-1], edges[1:], strict=True)
        ]
        return [*stages, Stage(last, total - edges[-1], self.lr, edges[-1], total, warmup, share=True)]


def require_one_of(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidInputError(f"no {what} '{value}'; there are {', '.join(choices)}")
