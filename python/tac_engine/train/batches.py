"""Batches of normalised, cropped and mirrored images, made where the network runs, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .data import Data, Split


class Normaliser:
    """uint8 [N, C, H, W] to the float32 input of a network, channels last in memory."""

    def __init__(self, data: Data, device: torch.device) -> None:
        self._mean = (255 * torch.tensor(data.mean)).view(1, -1, 1, 1).to(device)
        self._std = (255 * torch.tensor(data.std)).view(1, -1, 1, 1).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().sub_(self._mean).div_(self._std).contiguous(memory_format=torch.channels_last)


class TrainingBatches:
    """The batches of every epoch: which images, how cropped and mirrored, depends on the seed and the epoch alone.

    A run that resumes in the middle of an epoch so sees what it would have seen.
    """

    def __init__(
        self,
        data: Data,
        normalise: Normaliser,
        device: torch.device,
        *,
        batch_size: int,
        crop: int,
        flip: bool,
        seed: int,
    ) -> None:
        self._images, self._labels = tensors(data.train, device)
        self._normalise = normalise
        self.batch_size = min(batch_size, len(data.train))
        self._crop, self._flip, self._seed = crop, flip, seed
        self._device = device

    def __len__(self) -> int:
        return len(self._labels) // self.batch_size

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels of epoch `number`, from step `first` on."""
        count = len(self._labels)
        # On the CPU on every machine: a GPU draws other numbers.
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        order = torch.randperm(count, generator=generator)
        offsets = torch.randint(0, 2 * self._crop + 1, (count, 2), generator=generator)
        mirrored = torch.rand(count, generator=generator) < (0.5 if self._flip else 0.0)
        order, offsets, mirrored = (drawn.to(self._device) for drawn in (order, offsets, mirrored))
        for start in range(first * self.batch_size, len(self) * self.batch_size, self.batch_size):
            here = slice(start, start + self.batch_size)
            chosen = order[here]
            images = self._normalise(self._images[chosen])
            if self._crop:
                images = _crop(images, offsets[here], self._crop)
            if self._flip:
                images = torch.where(mirrored[here].view(-1, 1, 1, 1), images.flip(3), images)
            yield images.contiguous(memory_format=torch.channels_last), self._labels[chosen]


def _crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Pad with the mean colour, which normalises to 0, and take the window at offsets [N, 2] (down, right)."""
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view
    samples = torch.arange(len(images), device=images.device)
    return windows[samples, :, offsets[:, 0], offsets[:, 1]]


def tensors(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return images and labels on `device`."""
    return torch.tensor(split.images).to(device), torch.tensor(split.labels).to(device)
