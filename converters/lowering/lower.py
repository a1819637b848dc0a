"""Drives the lowering: every tensor that is wanted is made once, as bits or as floats, in topological order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import UnsupportedModelError
from ..analysis import FLOAT_ELEMENTWISE, MAC_OPS, Analysis
from ..chains import ELEMENTWISE, Steps
from ..graph import Array, Node, Offender, Shape, describe_offenders
from . import floats, integer, logic, macs, moves, quantizers
from .emitter import Emitter, NotLowered, Stored, StoredBits

Rule = Callable[["Lowering", Node], Stored]

# They give one of their operands: right for integers that are kept as floats.
_ORDER_ONLY = frozenset({"Clip", "Max", "Min", "Relu"})


class Lowering:
    """State of one lowering. ``floats`` and ``bits`` map ONNX tensors to what holds them."""

    def __init__(
        self,
        analysis: Analysis,
        luts: dict[str, Array],
        channels_first: dict[str, bool],
        fc_precision: str,
        conv_precision: str,
    ) -> None:
        self.analysis = analysis
        self.fc_precision = fc_precision
        self.conv_precision = conv_precision
        self.graph = analysis.graph
        self.emit = Emitter(analysis.graph)
        self.floats: dict[str, Stored] = {}
        self.bits: dict[str, StoredBits] = {}
        self._luts = luts
        self._channels_first = channels_first

    def dims(self, tensor: str) -> tuple[int, ...]:
        """Per-sample dims of an ONNX tensor."""
        return static_dims(self.graph.shapes[tensor])

    def float_of(self, tensor: str, node: Node) -> Stored:
        """``tensor`` as floats, unpacked from bits if that is how it is stored; ``node`` wants it."""
        if tensor in self.floats:
            return self.floats[tensor]
        if tensor in self.bits:
            self.floats[tensor] = integer.dequantize(self, tensor, node)
            return self.floats[tensor]
        raise NotLowered(node, f"its input '{tensor}' could not be converted")

    def run(self) -> None:
        graph = self.graph
        for source in graph.inputs:
            if source.dtype != np.float32:
                raise UnsupportedModelError(f"input '{source.name}' is {source.dtype}, expected float32")
            dims = static_dims(source.shape)
            tensor: int = self.emit.writer.add_tensor(
                self.emit.unique(source.name), list(dims), dtype="f32", encoding=None
            )
            self.emit.writer.add_input(
                tensor, lut=self._luts.get(source.name), channels_first=self._channels_first.get(source.name, True)
            )
            self.floats[source.name] = Stored(tensor, dims)
        offenders: list[Offender] = []
        broken: set[str] = set()
        for node in self.graph.live_nodes():
            if broken.intersection(node.inputs):
                broken.update(node.outputs)  # named by its own offender already
                continue
            try:
                self._node(node)
            except NotLowered as error:
                offenders.append(error.offender)
                broken.update(node.outputs)
        if offenders:
            raise UnsupportedModelError(describe_offenders(graph.source, offenders))
        for name in graph.outputs:
            self.emit.writer.add_output(self._output(name))

    def _output(self, name: str) -> int:
        """The tensor that is handed out for an ONNX output: its own axes, its own name."""
        node = self.graph.producer(name)
        if node is None:
            raise UnsupportedModelError(f"output '{name}' is a model input or a constant")
        stored = self.float_of(name, node)
        if stored.layout != "plain":
            return self.emit.plain(stored, node, holds=name).tensor
        if name in self.emit.holding:
            return stored.tensor
        return self.emit.op("reshape", node, {"input": stored.tensor}, stored.dims, holds=name, helper=True)

    def _node(self, node: Node) -> None:
        analysis = self.analysis
        output = node.output
        if output in analysis.integer and output in analysis.want_float and output not in self.floats:
            self.floats[output] = integer.float_layer(self, analysis.integer[output])
        if output in analysis.want_bits:
            self.bits[output] = integer.bits_of(self, output, node)
        if output not in analysis.want_float or output in self.floats or output in self.bits:
            return
        self.floats[output] = self._float_rule(node)(self, node)

    def _float_rule(self, node: Node) -> Rule:
        dtype = self.graph.dtypes[node.output]
        if dtype != np.float32 and node.op in floats.RULES and node.op not in _ORDER_ONLY:
            raise NotLowered(node, f"arithmetic on {dtype} wraps around; only float32 runs")
        if node.op in MAC_OPS and not node.domain:
            return macs.RULES[node.op]
        for rules in (floats.RULES, logic.RULES, quantizers.RULES, moves.RULES):
            if node.op in rules:
                return rules[node.op]
        if node.op in ELEMENTWISE and node.op not in FLOAT_ELEMENTWISE:
            steps = self.analysis.steps_of(node.output)
            reason = steps if not isinstance(steps, Steps) else "it has no float lowering"
            raise NotLowered(node, f"it runs only as part of a quantizer, and it is none: {reason}")
        raise NotLowered(node, "this op is not supported")


def static_dims(shape: Shape) -> tuple[int, ...]:
    """Dims behind the batch axis."""
    dims = shape[1:]
    if not all(isinstance(dim, int) for dim in dims):
        raise UnsupportedModelError(
            f"a tensor has shape {[str(dim) for dim in shape]}: only the first axis may be the batch"
        )
    return tuple(dim for dim in dims if isinstance(dim, int))


def lower(lowering: Lowering) -> Emitter:
    """Builds the model. Raises UnsupportedModelError with every offender."""
    lowering.run()
    lowering.emit.writer.set_metadata(lowering.emit.metadata())
    return lowering.emit
