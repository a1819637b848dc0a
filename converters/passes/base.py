"""What every pass shares: its result, and the place where problems are collected instead of raised one by one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from ..graph import Graph, Node, Offender


@dataclass
class Problems:
    """Everything found wrong with a model. Nodes that depend on a faulty one are skipped: root causes are listed."""

    entries: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)

    def add(self, text: str) -> None:
        if text not in self._seen:
            self._seen.add(text)
            self.entries.append(text)

    def add_node(self, node: Node, reason: str) -> None:
        op = f"{node.domain}.{node.op}" if node.domain else node.op
        self.add(str(Offender(node.name, op, reason)))

    def __bool__(self) -> bool:
        return bool(self.entries)

    def describe(self, source: str) -> str:
        count = len(self.entries)
        lines = "\n".join(f"  - {entry}" for entry in self.entries)
        return f"cannot convert {source}: {count} {'problem' if count == 1 else 'problems'}\n{lines}"


@dataclass
class PassContext:
    """``literal_batch``: the batch size that the file fixes (1 in a [1, 3, 32, 32] input), None if it is symbolic."""

    problems: Problems
    literal_batch: int | None = None


@dataclass(frozen=True)
class PassResult:
    modified: bool


class Pass(Protocol):
    name: str

    def run(self, graph: Graph, context: PassContext) -> PassResult: ...


class RuleError(Exception):
    """A rule cannot accept its node; the text is the reason that the user sees."""


def tensor_names(graph: Graph) -> set[str]:
    names = set(graph.constants) | {graph_input.name for graph_input in graph.inputs}
    return names.union(*(node.inputs for node in graph.nodes), *(node.outputs for node in graph.nodes))


def fresh_name(used: set[str], wanted: str) -> str:
    """``wanted``, or ``wanted_2``, ...: a name that is not in ``used``, and is from now on."""
    name, count = wanted, 1
    while name in used:
        count += 1
        name = f"{wanted}_{count}"
    used.add(name)
    return name
