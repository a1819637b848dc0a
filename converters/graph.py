"""The converter's own graph: ONNX nodes with constants, shapes and dtypes resolved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """A dimension that is ``factor`` times the batch size N."""

    factor: int = 1

    def __str__(self) -> str:
        return "N" if self.factor == 1 else f"{self.factor}*N"


Dim = int | Batch
Shape = tuple[Dim, ...]


@dataclass
class Node:
    """One ONNX node.

    ``domain`` is "" for ONNX itself and "qonnx" for every alias of the QONNX domain. ``attrs`` holds Python values:
    int, float, str, list or numpy array. A left-out optional input is the empty string.
    """

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    domain: str = ""

    @property
    def output(self) -> str:
        return self.outputs[0]

    def __str__(self) -> str:
        return f"{self.op} '{self.name}'"


@dataclass(frozen=True)
class GraphInput:
    name: str
    dtype: np.dtype[Any]
    shape: Shape  # the batch axis is Batch()


@dataclass(frozen=True)
class StepOf:
    """Levels that stand for the values of a tensor of the model: value v has ``levels[number of middles <= v]``."""

    tensor: str
    middles: tuple[float, ...]  # ascending
    levels: tuple[int, ...]  # one more


@dataclass
class Graph:
    """Nodes in topological order, each tensor with a name of its own.

    ``constants`` has every initializer and every folded result. ``shapes`` and ``dtypes`` cover every tensor. ``opset``
    is the version of the ONNX domain "". ``source`` is the path that the model came from, for messages. ``leveled``:
    tensors whose levels are no multiples of the values that the model has there, for ``verify``. ``half_types``: the
    16-bit floats of the file, float32 here. ``views``: tensors that have an axis of size 1 more than the one of the
    model that they stand for, by their name.

    ``producers`` and ``positions`` are made when first asked for; passes, which change nodes, do not ask, and rewrites
    call :meth:`replace_nodes`.
    """

    nodes: list[Node]
    constants: dict[str, Array]
    inputs: list[GraphInput]
    outputs: list[str]
    shapes: dict[str, Shape]
    dtypes: dict[str, np.dtype[Any]]
    opset: int
    source: str = ""
    leveled: dict[str, StepOf] = field(default_factory=dict)
    half_types: tuple[str, ...] = ()
    views: dict[str, str] = field(default_factory=dict)

    def producer(self, tensor: str) -> Node | None:
        """The node that writes ``tensor``; None for inputs and constants."""
        return self.producers.get(tensor)

    def add_view(self, tensor: str, of: str) -> None:
        self.views[tensor] = self.views.get(of, of)

    def is_constant(self, tensor: str) -> bool:
        return tensor in self.constants

    @cached_property
    def producers(self) -> dict[str, Node]:
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def positions(self) -> dict[int, int]:
        """Place of each node in ``nodes`` by its id()."""
        return {id(node): place for place, node in enumerate(self.nodes)}

    def replace_nodes(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        for name in ("producers", "positions"):
            self.__dict__.pop(name, None)

    def live_nodes(self) -> list[Node]:
        """The nodes that an output depends on, in topological order."""
        wanted = set(self.outputs)
        live: list[Node] = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                live.append(node)
                wanted.update(name for name in node.inputs if name)
        return live[::-1]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)


@dataclass(frozen=True)
class Offender:
    """A node that cannot be converted, and why."""

    node: str
    op: str
    reason: str

    def __str__(self) -> str:
        return f"node '{self.node}' ({self.op}): {self.reason}"


def describe_offenders(source: str, offenders: Sequence[Offender]) -> str:
    lines = "\n".join(f"  - {offender}" for offender in offenders)
    count = len(offenders)
    return f"cannot convert {source}: {count} unsupported {'node' if count == 1 else 'nodes'}\n{lines}"
