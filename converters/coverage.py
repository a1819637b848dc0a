"""Which ONNX operators are converted, and how: read off the tables that do it."""

from __future__ import annotations

import onnx

from .analysis import MAC_OPS
from .chains import ELEMENTWISE
from .lowering import floats, logic, moves, quantizers
from .passes.expand_integer_ops import INTEGER_OPS
from .passes.shape_rules import RULES as SHAPE_RULES

LAYER = "integer layer where weights and activations have few values, float layer elsewhere"
FLOAT = "runs on floats, or as part of a quantizer"
MOVE = "runs, or moves packed bits"
QUANTIZER = "as part of a quantizer only"
REWRITTEN = "becomes other operators, or a constant"

# Normalisation and shape inference leave none of them.
_RESOLVED = frozenset(
    """CastLike Constant ConstantOfShape ConvTranspose DepthToSpace Dropout DynamicQuantizeLinear Expand Flatten
    GroupNormalization Identity InstanceNormalization LayerNormalization Mean Resize Shape Size SpaceToDepth Split
    Squeeze Sum Unsqueeze Upsample""".split()
)
# Each element of the result is made of the elements at its place.
ELEMENTWISE_OPS = (frozenset(floats.RULES) - {"BatchNormalization", "LRN"}) | frozenset(logic.RULES) | {"Mean", "Sum"}


def claimed_ops() -> dict[str, str]:
    """How each operator of the default domain is served where its input depends on the data."""
    served = dict.fromkeys(_RESOLVED | {op for op in INTEGER_OPS if onnx.defs.has(op)}, REWRITTEN)
    served |= dict.fromkeys(ELEMENTWISE - {"BipolarQuant", "MultiThreshold", "Quant", "Trunc"}, QUANTIZER)
    served |= dict.fromkeys(moves.RULES, MOVE)
    for rules in (floats.RULES, logic.RULES, quantizers.RULES):
        served |= dict.fromkeys((op for op in rules if ("qonnx", op) not in SHAPE_RULES), FLOAT)
    served |= dict.fromkeys(MAC_OPS, LAYER)
    return dict(sorted(served.items()))
