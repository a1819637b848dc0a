"""Networks in the byte format of Deep Compression's AlexNet, put into an ONNX model of the same layers.

The format is that of the reader in github.com/songhan/Deep-Compression-AlexNet (Han et al., Deep Compression, 2016),
little-endian::

    uint32  n[layers]                    listed weights of each layer, padding included
    per layer:
      float32 codebook[2**bits]          bits: 8 in convolutions, 4 in fully connected layers
      float32 bias[outputs]
      uint8   codes[ceil(n * bits / 8)]  of 4 bits: two in a byte, the first in the low half
      uint8   gaps[ceil(n / 2)]          4 bits each, the first in the low half

Entry i stands ``gap[i] + 1`` positions behind entry i - 1 in the flattened weights, the first at ``gap[0]``, and has
the value ``codebook[code[i]]``; a longer gap is bridged by entries with code 0. Weights that are not listed have code 0
too, so ``codebook[0]`` is 0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import FormatError, InvalidInputError, UnsupportedModelError
from .convert import PathLike
from .graph import Array
from .onnx_file import load_model, save_model

CONV_BITS, LINEAR_BITS = 8, 4


@dataclass(frozen=True)
class LayerShape:
    """What the file does not say: the shape of ``weight``, [O, C / groups, kh, kw] of a convolution or [O, K]."""

    name: str
    weight: tuple[int, ...]

    @property
    def bits(self) -> int:
        return CONV_BITS if len(self.weight) == 4 else LINEAR_BITS


@dataclass(frozen=True)
class StoredLayer:
    """``weight`` float32 of the layer's shape, ``bias`` float32 [O]; ``listed`` entries in the file."""

    name: str
    weight: Array
    bias: Array
    listed: int


class _Reader:
    def __init__(self, source: str, data: bytes) -> None:
        self.source, self._data, self._at = source, data, 0

    def take(self, dtype: str, count: int, what: str) -> Array:
        size = np.dtype(dtype).itemsize * count
        left = len(self._data) - self._at
        if size > left:
            raise FormatError(f"{self.source}: {what} takes {size} bytes at offset {self._at}, {left} are left")
        values = np.frombuffer(self._data, dtype, count, self._at)
        self._at += size
        return values

    def finish(self) -> None:
        if self._at != len(self._data):
            raise FormatError(f"{self.source}: {len(self._data) - self._at} bytes behind the last layer")


def read_layers(path: PathLike, shapes: Sequence[LayerShape]) -> list[StoredLayer]:
    """Reads the layers of ``path``, which are those of ``shapes`` in their order.

    Raises:
        FormatError: the file cannot be read, is truncated or longer than its layers, or holds entries outside a layer.
    """
    source = os.fspath(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"cannot read {source}: {error.strerror or error}") from error
    reader = _Reader(source, data)
    counts = reader.take("<u4", len(shapes), f"the counts of {len(shapes)} layers")
    layers = [_read_layer(reader, shape, int(count)) for shape, count in zip(shapes, counts, strict=True)]
    reader.finish()
    return layers


def _read_layer(reader: _Reader, shape: LayerShape, count: int) -> StoredLayer:
    where = f"layer '{shape.name}'"
    size = int(np.prod(shape.weight))
    if count > size:
        raise FormatError(f"{reader.source}: {where} lists {count} weights, it has {size}")
    codebook = reader.take("<f4", 1 << shape.bits, f"{where}, the codebook")
    bias = reader.take("<f4", shape.weight[0], f"{where}, the bias")
    if not (np.all(np.isfinite(codebook)) and np.all(np.isfinite(bias))):
        raise FormatError(f"{reader.source}: {where} has a codebook or bias that is not finite")
    if codebook[0] != 0.0:
        raise FormatError(
            f"{reader.source}: {where} has a codebook that begins with {codebook[0]:g}, expected 0, the value of "
            "weights that are not listed"
        )
    codes = reader.take("u1", -(-count * shape.bits // 8), f"{where}, the codes")
    gaps = _halves(reader, reader.take("u1", -(-count // 2), f"{where}, the gaps"), count, where, "gaps")
    if shape.bits == LINEAR_BITS:
        codes = _halves(reader, codes, count, where, "codes")
    places = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if count and places[-1] >= size:
        raise FormatError(f"{reader.source}: {where} lists a weight at {int(places[-1])}, it has {size}")
    weight = np.zeros(size, np.float32)
    weight[places] = codebook[codes]
    return StoredLayer(shape.name, weight.reshape(shape.weight), bias.astype(np.float32), count)


def _halves(reader: _Reader, stream: Array, count: int, where: str, what: str) -> Array:
    """The 4-bit numbers of ``stream``, low half first."""
    halves = np.stack([stream & 15, stream >> 4], axis=1).ravel()
    if np.any(halves[count:]):
        raise FormatError(f"{reader.source}: {where} has {what} behind the last one")
    return halves[:count]


def import_deep_compression(source: PathLike, template: PathLike, target: PathLike) -> list[StoredLayer]:
    """Writes the ONNX model ``template`` with the weights and biases of ``source`` to ``target``.

    The layers of the file are the Conv and Gemm nodes of the template, in its order; their weights may be anything.

    Raises:
        FormatError: a file cannot be read or written, or `source` does not fit the layers.
        UnsupportedModelError: the template has a layer that cannot take the weights; it is named.
        InvalidInputError: `target` is one of the inputs.
    """
    for given in (source, template):
        if Path(target).exists() and Path(given).exists() and Path(target).samefile(given):
            raise InvalidInputError(f"{os.fspath(target)} is also read; name another file to write")
    model, folder, name = load_model(template)
    if folder is not None:
        onnx.load_external_data_for_model(model, str(folder))
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("Conv", "Gemm") and node.domain in ("", "ai.onnx")]
    if not nodes:
        raise UnsupportedModelError(f"{name}: it has no Conv and no Gemm")
    shapes = [_shape(node, tensors, name) for node in nodes]
    layers = read_layers(source, shapes)
    for node, layer in zip(nodes, layers, strict=True):
        transposed = node.op_type == "Gemm" and not _attribute(node, "transB", 0)
        weight = np.ascontiguousarray(layer.weight.T) if transposed else layer.weight
        tensors[node.input[1]].CopyFrom(numpy_helper.from_array(weight, node.input[1]))
        tensors[node.input[2]].CopyFrom(numpy_helper.from_array(layer.bias, node.input[2]))
    save_model(model, target)
    return layers


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return float(onnx.helper.get_attribute_value(attribute))
    return default


def _shape(node: onnx.NodeProto, tensors: dict[str, onnx.TensorProto], source: str) -> LayerShape:
    def refuse(reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{source}: node '{node.name}' ({node.op_type}): {reason}")

    if len(node.input) < 3 or node.input[1] not in tensors or node.input[2] not in tensors:
        raise refuse("a layer of the format has a weight and a bias; both must be initializers")
    weight, bias = tuple(tensors[node.input[1]].dims), tuple(tensors[node.input[2]].dims)
    if node.op_type == "Gemm":
        if _attribute(node, "alpha", 1.0) != 1.0 or _attribute(node, "beta", 1.0) != 1.0:
            raise refuse("alpha and beta must be 1")
        if not _attribute(node, "transB", 0):
            weight = weight[::-1]
    if len(weight) != (4 if node.op_type == "Conv" else 2) or bias != weight[:1]:
        raise refuse(f"a weight of shape {list(weight)} with a bias of shape {list(bias)}")
    return LayerShape(node.name or node.output[0], weight)
