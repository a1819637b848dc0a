"""The registry of fixtures: real exports of small networks, one module per producer.

A producer module imports its tools at the top; where they are missing, its fixtures are skipped. Each fixture is a
function that writes the .onnx file and gives what the original framework computed:

    @fixture("pytorch")
    def my_export(path: Path) -> Recorded: ...

The file is ``tests/data/pytorch/my_export.onnx``. What each of its layers must become stands in
``tests/data/pytorch/expected.json``, written by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Recorded(NamedTuple):
    """Samples, in the order of the ONNX inputs and outputs; the outputs are the original framework's own."""

    inputs: list[Array]
    outputs: list[Array]


Writer = Callable[[Path], Recorded]


@dataclass(frozen=True)
class Fixture:
    producer: str
    name: str
    write: Writer


FIXTURES: list[Fixture] = []


def register(producer: str, name: str, write: Writer) -> None:
    if any(known.producer == producer and known.name == name for known in FIXTURES):
        raise ValueError(f"fixture {producer}/{name} is registered twice")
    FIXTURES.append(Fixture(producer, name, write))


def fixture(producer: str) -> Callable[[Writer], Writer]:
    """Registers a function under its own name."""

    def decorate(write: Writer) -> Writer:
        register(producer, write.__name__, write)
        return write

    return decorate


def samples(*shape: int, seed: int = 0, step: float = 0.0) -> Array:
    """Standard normal float32; with ``step``, on a grid of that step, so that exact zeros occur."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return (np.rint(values / step) * step).astype(np.float32) if step else values
