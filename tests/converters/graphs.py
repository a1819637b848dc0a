"""Hand-made converter graphs for tests of single passes."""

from __future__ import annotations

import numpy as np
from tac_engine.converters.graph import Array, Batch, Graph, GraphInput, Node, Shape

N = Batch()


def scalar(value: float) -> Array:
    return np.asarray(value, np.float32)


def elementwise_graph(nodes: list[Node], constants: dict[str, Array], shape: Shape = (N, 4, 5, 5)) -> Graph:
    """A graph of shape-preserving nodes from input "x" to the last node's output."""
    shapes: dict[str, Shape] = {"x": shape, **{node.output: shape for node in nodes}}
    shapes |= {name: value.shape for name, value in constants.items()}
    dtypes = {name: np.dtype(np.float32) for name in shapes}
    inputs = [GraphInput("x", np.dtype(np.float32), shape)]
    return Graph(nodes, constants, inputs, [nodes[-1].output], shapes, dtypes, 20)
