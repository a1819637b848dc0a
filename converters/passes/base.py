"""What every pass shares: its result, and the place where problems are collected instead of raised one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..graph import Array, Graph, Node, Offender
from ..result_size import Budget


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
    """``literal_batch``: the batch size that the file fixes (1 in a [1, 3, 32, 32] input), None if it is symbolic.

    ``budget`` is that of folding constants, from its first round on.
    """

    problems: Problems
    literal_batch: int | None = None
    budget: Budget | None = None


@dataclass(frozen=True)
class PassResult:
    modified: bool


class Pass(Protocol):
    name: str

    def run(self, graph: Graph, context: PassContext) -> PassResult: ...


@dataclass
class NodeBuilder:
    """Builds the nodes that stand for ``node``; ``fresh`` gives an unused tensor name close to the one wanted."""

    node: Node
    fresh: Callable[[str], str]
    constants: dict[str, Array]
    nodes: list[Node] = field(default_factory=list)

    def constant(self, value: Array) -> str:
        name = self.fresh(f"{self.node.output}__constant")
        self.constants[name] = value
        return name

    def add(self, op: str, *inputs: str, output: str = "", **attrs: Any) -> str:
        """Adds an operator of ONNX; returns its output, a new tensor unless it is named."""
        count = len(self.nodes)
        output = output or self.fresh(f"{self.node.output}__{count}")
        self.nodes.append(Node(op, f"{self.node.name}__{count}", list(inputs), [output], attrs))
        return output

    def end(self, op: str, *inputs: str, **attrs: Any) -> list[Node]:
        """Adds the operator that takes over the node's name and output, and returns all."""
        return [*self.nodes, Node(op, self.node.name, list(inputs), list(self.node.outputs), attrs)]


class RuleError(ValueError):
    """A rule cannot accept its node; the text is the reason that the user sees."""


def with_defaults(node: Node, defaults: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an operator with one output, those left out at their defaults; any type fits a default of None.

    Raises RuleError where the node has others, or of other types.
    """
    if len(node.outputs) != 1:
        raise RuleError(f"1 output is expected, found {len(node.outputs)}")
    unknown = sorted(set(node.attrs) - set(defaults))
    if unknown:
        raise RuleError(f"unknown attribute '{unknown[0]}'")
    for name, value in node.attrs.items():
        default = defaults[name]
        if default is not None and not isinstance(value, (int, float) if isinstance(default, float) else type(default)):
            raise RuleError(f"attribute '{name}' has the wrong type: {value!r}")
    return {**defaults, **node.attrs}


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
