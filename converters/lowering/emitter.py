"""Writes ops through ``_core.ModelWriter`` and keeps track of how each ONNX tensor is stored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import _core
from ..graph import Array, Graph, Node, Offender
from ..report import LayerReport
from ..values import Encoding


class NotLowered(Exception):
    """A node that no rule can lower; carries the reason."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(reason)
        self.offender = Offender(node.name, node.op, reason)


@dataclass(frozen=True)
class Stored:
    """A float tensor of the .tacbin that holds an ONNX tensor.

    ``layout``: "plain" has the ONNX axes without the batch; "nhwc" stores an ONNX [N, C, H, W] as [H, W, C]; "flat"
    stores an ONNX [N, C * H * W] in (H, W, C) order, ``map_dims`` = (H, W, C).
    """

    tensor: int
    dims: tuple[int, ...]
    layout: str = "plain"
    map_dims: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class StoredBits:
    """A packed tensor: ``dims`` is [H, W, C] or [C]; ``text`` names its bits in the report."""

    tensor: int
    dims: tuple[int, ...]
    encoding: Encoding
    text: str


class _Names:
    """Hands out names, each once; one that is taken gets a number behind it."""

    def __init__(self, taken: frozenset[str] = frozenset()) -> None:
        self._taken = set(taken)
        self._counts: dict[str, int] = {}

    def unique(self, name: str) -> str:
        result, count = name, self._counts.get(name, 0)
        while result in self._taken:
            count += 1
            result = f"{name}#{count}"
        self._counts[name] = count
        self._taken.add(result)
        return result


class Emitter:
    """One conversion: the writer, the tensors made so far, the report rows and the map from ONNX tensors for verify."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.writer = _core.ModelWriter()
        self.rows: list[LayerReport] = []
        self.layers: list[dict[str, Any]] = []
        self.fused: list[str] = []  # integer layers that give bits: their sums are no tensor
        self.holding: set[str] = set()  # names of the tensors that hold an ONNX tensor
        self._outputs = frozenset(graph.outputs)
        self._tensor_names, self._op_names = _Names(self._outputs), _Names()

    def unique(self, name: str, holds: str = "") -> str:
        """A tensor's name; that of a model output is left to the tensor that ``holds`` it."""
        if name == holds and name in self._outputs and name not in self.holding:
            return name
        return self._tensor_names.unique(name)

    def op(
        self,
        kind: str,
        node: Node,
        fields: dict[str, Any],
        dims: tuple[int, ...],
        *,
        dtype: str = "f32",
        encoding: Encoding | None = None,
        holds: str = "",
        layout: str = "plain",
        origin: str = "",
        helper: bool = False,
        map_dims: tuple[int, int, int] | None = None,
        arithmetic: str = "",
        root: str = "",
    ) -> int:
        """Adds an op and its output tensor.

        ``holds`` is the ONNX tensor that the output equals, if any, stored in ``layout`` ("flat": of ``map_dims``). A
        ``helper`` op only prepares or hands on what the node's own op computes; it does not take the node's name.
        ``arithmetic`` is that of the sums, where an op has more than one. ``root`` is the ONNX tensor that a quantizer
        reads.
        """
        tensor_name = self.unique(self._tensor_name(node, kind, holds, layout, dtype), holds)
        spec = None if encoding is None else encoding.spec()
        tensor: int = self.writer.add_tensor(tensor_name, list(dims), dtype=dtype, encoding=spec)
        name = self._op_names.unique((node.name or node.output) + (f"/{kind}" if helper else ""))
        self.writer.add_op(kind, {**fields, "output": tensor}, name, origin or f"{node.op} {node.name}")
        if holds:
            self.holding.add(tensor_name)
            layer: dict[str, Any] = {
                "op": name,
                "kind": kind,
                "tensor": tensor_name,
                "onnx_tensor": self._of_model(holds),
                "layout": layout,
                "low_bit": dtype == "bits",
            }
            if map_dims is not None:
                layer["map_dims"] = list(map_dims)
            if arithmetic:
                layer["arithmetic"] = arithmetic
            if root:
                layer["root"] = self._of_model(root)
            if dtype == "bits" and holds in self.graph.leveled:
                step = self.graph.leveled[holds]
                layer |= {"onnx_tensor": self._of_model(step.tensor), "middles": step.middles, "levels": step.levels}
            self.layers.append(layer)
        return tensor

    def mark_quantizer(self, root: str) -> None:
        """Says that the op added last holds a quantizer's result, made element by element from the ONNX tensor."""
        self.layers[-1]["root"] = self._of_model(root)

    def mark_thresholds(self, root: str) -> None:
        """Says that the op added last gives the sums that the ONNX tensor holds, compared with integer thresholds."""
        self.layers[-1]["thresholds_on"] = self._of_model(root)

    def mark_sums(self, layer: str) -> None:
        """Says that the op added last holds the sums of the integer layer of that name, scaled."""
        self.layers[-1]["sums"] = layer

    def _of_model(self, tensor: str) -> str:
        return self.graph.views.get(tensor, tensor)

    def _tensor_name(self, node: Node, kind: str, holds: str, layout: str, dtype: str) -> str:
        if not holds:
            return f"{node.output}/{kind}"
        # A model output's own name is kept for the tensor that is handed out.
        inner = holds in self._outputs and (layout != "plain" or dtype == "bits")
        return f"{holds}/{layout}" if inner else holds

    def row(
        self,
        node: Node,
        op: str,
        kind: str,
        dims: tuple[int, ...],
        bits: str,
        before: int,
        after: int,
        reason: str = "",
    ) -> None:
        shape = "x".join(str(dim) for dim in dims)
        self.rows.append(LayerReport(node.name or node.output, kind, op, bits, shape, before, after, reason))

    def metadata(self) -> str:
        # Not where it lay: files of the same network are the same, and tell nobody's folders.
        noted = {"source": Path(self.graph.source).name, "layers": self.layers, "fused": self.fused}
        return json.dumps(noted, separators=(",", ":"))

    # Layouts ----------------------------------------------------------------------------------------------------------

    def plain(self, stored: Stored, node: Node, *, holds: str = "") -> Stored:
        """The same tensor with its axes in ONNX order."""
        if stored.layout == "plain":
            return stored
        height, width, channels = stored.dims if stored.layout == "nhwc" else stored.map_dims
        as_map = stored.tensor
        if stored.layout == "flat":
            as_map = self.op("reshape", node, {"input": stored.tensor}, stored.map_dims, helper=True)
        dims = (channels, height, width)
        last = holds if stored.layout == "nhwc" else ""
        if height == 1 and width == 1:
            chw = self.op("reshape", node, {"input": as_map}, dims, holds=last, helper=True)
        else:
            fields = {"input": as_map, "perm": [2, 0, 1]}
            chw = self.op("transpose", node, fields, dims, holds=last, helper=True)
        if stored.layout == "nhwc":
            return Stored(chw, dims)
        flat = self.op("reshape", node, {"input": chw}, stored.dims, holds=holds, helper=True)
        return Stored(flat, stored.dims)

    def nhwc(self, stored: Stored, node: Node) -> Stored:
        """An ONNX [N, C, H, W] as [H, W, C]."""
        if stored.layout == "nhwc":
            return stored
        channels, height, width = stored.dims
        dims = (height, width, channels)
        if (height == 1 and width == 1) or channels == 1:
            return Stored(self.op("reshape", node, {"input": stored.tensor}, dims, helper=True), dims, "nhwc")
        fields = {"input": stored.tensor, "perm": [1, 2, 0]}
        return Stored(self.op("transpose", node, fields, dims, helper=True), dims, "nhwc")


def feature_order(map_dims: tuple[int, int, int]) -> Array:
    """For "flat" storage: ONNX feature number (C, H, W order) of each stored position (H, W, C order)."""
    height, width, channels = map_dims
    order: Array = np.arange(height * width * channels).reshape(channels, height, width)
    return np.ravel(np.transpose(order, (1, 2, 0)))
