"""The order of the passes."""

from __future__ import annotations

from ..graph import Graph
from .base import Pass, PassContext
from .batch_first import BatchFirst
from .collapse_broadcasts import CollapseBroadcasts
from .decompose import Decompose
from .expand_integer_ops import ExpandDynamicQuantization, ExpandIntegerOps
from .fold_constants import FoldConstants
from .infer_shapes import InferShapes
from .lowered_convolutions import LoweredConvolutions
from .masked_scatters import MaskedScatters
from .remove_dead_nodes import RemoveDeadNodes
from .remove_identities import RemoveIdentities
from .split_to_slices import SplitToSlices

PASSES: tuple[Pass, ...] = (
    FoldConstants(),
    MaskedScatters(),
    ExpandDynamicQuantization(),
    ExpandIntegerOps(),
    InferShapes(),
    LoweredConvolutions(),
    SplitToSlices(),
    RemoveIdentities(),
    CollapseBroadcasts(),
    RemoveDeadNodes(),
    Decompose(),
    BatchFirst(),
)

# Each round resolves one more level of "a shape that follows from a constant that follows from a shape".
MAX_ROUNDS = 32


def run_passes(graph: Graph, context: PassContext) -> None:
    """Repeats all passes until none changes anything. With a problem found, one round lists the others."""
    for _ in range(MAX_ROUNDS):
        modified = False
        for each in PASSES:
            modified |= each.run(graph, context).modified
        if context.problems or not modified:
            return
    context.problems.add(
        f"shapes that follow from constants that follow from shapes, more than {MAX_ROUNDS} levels deep"
    )
