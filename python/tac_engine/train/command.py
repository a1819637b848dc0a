"""``tac-engine train``: from the arguments of the command line to a trained, converted and checked network."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidInputError
from .card import finish
from .data import load_data
from .recipe import Recipe
from .trainer import Trainer


def run(
    args: argparse.Namespace, progress: Callable[[str, float], None] | None, say: Callable[[str], None]
) -> dict[str, Any] | None:
    """Train what `args` asks for and return the model card, or None when time is up first.

    Raises:
        InvalidInputError: an argument or the data do not fit.
        FormatError: a file of the data or the checkpoint is broken.
    """
    device = _device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    options = {field.name: getattr(args, field.name) for field in fields(Recipe)}
    options["prune_rates"] = tuple(args.prune_rates)
    if args.precision is None:
        low = device.type == "cuda" and torch.cuda.is_bf16_supported()
        options["precision"] = "bfloat16" if low else "float32"
    recipe = Recipe(**options)
    data = load_data(args.data, image_size=recipe.image_size, train_images=recipe.train_images)
    with _alone_in(args.out):
        trainer = Trainer(
            recipe,
            data,
            args.out,
            device=device,
            checkpoint_seconds=args.checkpoint_seconds,
            slim=args.slim_checkpoints,
            compiled=args.compile,
            test_every=args.test_every,
            say=say,
            progress=progress,
        )
        if not trainer.run(args.stop_after):
            return None
        if progress is not None:
            progress("exporting, converting, verifying", 1.0)
        command = shlex.join(["tac-engine", *sys.argv[1:]])
        return finish(trainer, exporter=args.exporter, verify_images=args.verify_images, command=command)


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Make the folder of a run if it is missing and keep other runs out of it.

    Where folders cannot be locked, on Windows and on some network file systems, nobody is kept out.

    Raises:
        InvalidInputError: another run is at work there, or no folder can be made.
    """
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(f"{out}: no folder can be made there: {error.strerror}") from None
    lock = None
    try:
        lock = _lock(out)
        yield
    finally:
        if lock is not None:
            os.close(lock)
        if made:
            with suppress(OSError):  # what holds anything stays
                out.rmdir()


def _lock(folder: Path) -> int | None:
    """Return the file descriptor that holds the lock, or None where folders cannot be locked."""
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InvalidInputError(f"{folder}: another run is at work there") from None
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInputError(f"device '{name}': {str(error).splitlines()[0]}") from None
    return device
