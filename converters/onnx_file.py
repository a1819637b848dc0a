"""Reading an .onnx file safely: every size, name and path is checked before it is used."""

from __future__ import annotations

import heapq
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper

from ..errors import FormatError, UnsupportedModelError
from .graph import Array, Node
from .passes.base import Problems
from .result_size import MAX_RANK, elements_of

MAX_INLINED_NODES = 1 << 20
# protobuf's own limit; larger models keep their weights in external files.
MAX_PROTO_BYTES = 2**31 - 1
MAX_TENSOR_BYTES = 2**31 - 1

# Older names of one and the same domain, see qonnx.custom_op.registry.
CHANNELS_LAST_DOMAIN = "qonnx.custom_op.channels_last"  # ONNX operators on [N, ..., C]
QONNX_DOMAINS = ("onnx.brevitas", "finn.custom_op.general", "finn", "qonnx")
# What is read as float32: floats of 16 bits, whose every value is one.
HALF_TYPES = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}
MIN_OPSET = 7
MAX_OPSET = onnx.defs.onnx_opset_version()


# How files begin that are taken for models.
_FORMATS = {
    b"PK\3\4": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89HDF\r\n": "an HDF5 file (Keras; tf2onnx exports its models)",
    b"\x93NUMPY": "a NumPy array",
    b"TACBIN": "a .tacbin file, which is converted already",
    b"version https://git-lfs": "a Git LFS pointer, whose file was not fetched (git lfs pull)",
    b"{": "a JSON file",
    b"<": "an HTML or XML file",
}


@dataclass
class RawInput:
    name: str
    dtype: np.dtype[Any]
    shape: list[int | str | None] | None  # None: the file does not say


@dataclass
class RawGraph:
    """The file's nodes in topological order, as they are written, with weights read and domains normalised.

    Tensors of ``half_types`` are float32 here, weights and everything that is computed.
    """

    nodes: list[Node]
    constants: dict[str, Array]
    inputs: list[RawInput]
    outputs: list[str]
    opset: int
    source: str
    half_types: tuple[str, ...]


def load_model(source: str | os.PathLike[str] | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None, str]:
    """The parsed model, the folder of its external data (None without a file) and the name to use in messages."""
    if isinstance(source, onnx.ModelProto):
        _check_names(source, "model")
        return source, None, source.graph.name or "model"
    path = Path(source)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"cannot read {path}: it is {_kind(status)}, an .onnx file is expected")
        size = status.st_size
        if size > MAX_PROTO_BYTES:
            raise FormatError(f"cannot read {path}: {size} bytes, at most {MAX_PROTO_BYTES} are possible")
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        what = _looks_like(data) or "an .onnx file is expected, this is another one or truncated"
        raise FormatError(f"{path} is not an ONNX model: {what}") from error
    if not model.graph.node and not model.graph.output:
        what = _looks_like(data) or f"it holds no graph ({size} bytes)"
        raise FormatError(f"{path} is not an ONNX model: {what}")
    _check_names(model, str(path))
    return model, path.parent, str(path)


def save_model(model: onnx.ModelProto, target: str | os.PathLike[str]) -> None:
    """Writes an ONNX file, its weights inside; ``target`` is replaced in one step. Raises FormatError."""
    path = check_target(target)
    temporary = path.with_name(f"{path.name}.part")
    try:
        temporary.write_bytes(model.SerializeToString())
        temporary.replace(path)
    except (OSError, ValueError) as error:
        temporary.unlink(missing_ok=True)
        raise FormatError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def check_target(target: str | os.PathLike[str]) -> Path:
    """A path that a file can be moved to: nothing is there, or a file that it replaces. Raises FormatError."""
    path = Path(target)
    try:
        status = path.stat()
    except OSError:
        return path
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"cannot write {path}: it is {_kind(status)}, the name of a file is expected")
    return path


def _kind(status: os.stat_result) -> str:
    return "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"


def _looks_like(data: bytes) -> str:
    """What a file that is no ONNX model seems to be, and what to do; "" if nothing is known."""
    head, listing = data[:512], data[-65536:]
    is_torch_zip = head.startswith(b"PK\3\4") and (b"data.pkl" in listing or b"serialization_id" in listing)
    if is_torch_zip or head[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"):  # the latter is a pickle
        return "it looks like a PyTorch file; export the network with torch.onnx.export and give the .onnx file"
    for start, what in _FORMATS.items():
        if head.startswith(start):
            return f"it looks like {what}; an .onnx file is expected"
    if head[4:8] == b"TFL3":
        return "it looks like a TensorFlow Lite model; an .onnx file is expected (tf2onnx reads them)"
    is_text = head and all(byte >= 32 or byte in b"\t\n\r" for byte in head)
    return "it looks like a text file; an .onnx file is expected" if is_text else ""


def _check_names(message: Message, source: str) -> None:
    """Every string must be UTF-8; protobuf hands out bytes where one is not."""
    for field, value in message.ListFields():
        repeated = not hasattr(value, "ListFields") and not isinstance(value, str | bytes)
        if field.type == field.TYPE_STRING:
            for text in value if repeated else [value]:
                if not isinstance(text, str):
                    raise FormatError(
                        f"{source} is not an ONNX model: {field.full_name} is {text!r}, which is not UTF-8"
                    )
        elif field.type == field.TYPE_MESSAGE:
            for part in value if repeated else [value]:
                _check_names(part, source)


def read_graph(model: onnx.ModelProto, base_dir: Path | None, source: str) -> RawGraph:
    """Decodes ``model``. Raises UnsupportedModelError with everything that is wrong with it."""
    problems = Problems()
    opset = _opset(model, problems)
    if model.functions:
        model = _inline_functions(model, source)
    graph = model.graph
    external = ExternalData(base_dir)
    for sparse in graph.sparse_initializer:
        problems.add(f"initializer '{sparse.values.name}': sparse initializers are not supported")
    constants: dict[str, Array] = {}
    for tensor in graph.initializer:
        if tensor.name in constants:
            problems.add(f"initializer '{tensor.name}' occurs more than once")
            continue
        array = _read_tensor(tensor, f"initializer '{tensor.name}'", external, problems)
        if array is not None:
            constants[tensor.name] = array
    initializer_names = {tensor.name for tensor in graph.initializer}
    inputs = [
        decoded
        for value in graph.input
        if value.name not in initializer_names
        for decoded in _read_input(value, problems)
    ]
    names: dict[str, int] = {}
    nodes = [_read_node(proto, names, external, problems) for proto in graph.node]
    outputs = [value.name for value in graph.output]
    for missing, wanted in external.missing.items():
        more = f" and {len(wanted) - 1} more lie" if len(wanted) > 1 else " lies"
        problems.add(f"{missing}; {wanted[0]}{more} in it")
    if not inputs:
        problems.add("the model has no input")
    if not outputs:
        problems.add("the model has no output")
    for kind, listed in (("input", [value.name for value in inputs]), ("output", outputs)):
        for name in sorted(name for name, count in Counter(listed).items() if count > 1):
            problems.add(f"{kind} '{name}' is listed more than once")
    known = {value.name for value in inputs} | initializer_names
    nodes = _sorted_nodes(nodes, known, problems)
    for node in nodes:
        known.update(node.outputs)
    for name in outputs:
        if name not in known:
            problems.add(f"output '{name}' is not written by any node")
    if problems:
        raise UnsupportedModelError(problems.describe(source))
    return RawGraph(nodes, constants, inputs, outputs, opset, source, _half_types(graph))


def _half_types(graph: onnx.GraphProto) -> tuple[str, ...]:
    """The names of those of HALF_TYPES in which the model computes: its inputs, its casts or its weights have them."""
    found = {value.type.tensor_type.elem_type for value in graph.input}
    found.update(tensor.data_type for tensor in graph.initializer)
    found.update(attribute.t.data_type for node in graph.node for attribute in node.attribute)
    found.update(a.i for node in graph.node for a in node.attribute if a.name in _ELEMENT_TYPES)
    return tuple(HALF_TYPES[kind] for kind in sorted(found & HALF_TYPES.keys()))


def _opset(model: onnx.ModelProto, problems: Problems) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions:
        problems.add("the model does not say its ONNX opset (opset_import lacks the default domain)")
        return MAX_OPSET
    version = max(versions)
    if not MIN_OPSET <= version <= MAX_OPSET:
        problems.add(
            f"ONNX opset {version}: opsets {MIN_OPSET} to {MAX_OPSET} are supported; export the model again, or "
            "convert it with onnx.version_converter"
        )
    return int(version)


def _inline_functions(model: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The model without functions. 40 functions that call the one before twice are 2**40 nodes: they are counted."""
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise UnsupportedModelError(
                f"cannot convert {source}: node '{node.name}' ({node.op_type}): "
                "control flow and subgraphs are not supported"
            )
    bodies = {(function.domain, function.name): function.node for function in model.functions}
    counts: dict[tuple[str, str], int] = {}
    pending = [(node.domain, node.op_type) for node in model.graph.node]
    waiting: set[tuple[str, str]] = set()  # for the functions that they call
    while pending:
        key = pending[-1]
        called = {(node.domain, node.op_type) for node in bodies.get(key, ())} & bodies.keys()
        if key in counts or key not in bodies or called <= counts.keys():
            body = bodies.get(key, ())
            counts[key] = sum(counts.get((node.domain, node.op_type), 1) for node in body) if body else 1
            waiting.discard(pending.pop())
            continue
        if key in waiting:
            raise UnsupportedModelError(f"cannot convert {source}: function '{key[1]}' calls itself")
        waiting.add(key)
        pending += called - counts.keys()
    total = sum(counts[node.domain, node.op_type] for node in model.graph.node)
    if total > MAX_INLINED_NODES:
        raise UnsupportedModelError(
            f"cannot convert {source}: its functions stand for {total} nodes, at most {MAX_INLINED_NODES} are supported"
        )
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # the binding raises RuntimeError, ValueError and its own types
        raise UnsupportedModelError(f"cannot convert {source}: its functions cannot be inlined: {error}") from error


def _read_input(value: onnx.ValueInfoProto, problems: Problems) -> Iterator[RawInput]:
    if value.type.WhichOneof("value") != "tensor_type":
        kind = value.type.WhichOneof("value") or "nothing"
        problems.add(f"input '{value.name}': a tensor is expected, its type is {kind}")
        return
    tensor = value.type.tensor_type
    dtype = _numpy_dtype(_as_float32(tensor.elem_type))
    if dtype is None:
        problems.add(f"input '{value.name}': unknown element type {tensor.elem_type}")
        return
    shape: list[int | str | None] | None = None
    if tensor.HasField("shape"):
        shape = []
        for dim in tensor.shape.dim:
            if dim.HasField("dim_value"):
                # Zero and negative values are how some exporters write "unknown".
                shape.append(int(dim.dim_value) if dim.dim_value > 0 else None)
            else:
                shape.append(dim.dim_param or None)
    yield RawInput(value.name, dtype, shape)


def _read_node(proto: onnx.NodeProto, names: dict[str, int], external: ExternalData, problems: Problems) -> Node:
    """``names`` has the names given so far, each with the number of the last copy."""
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    if domain in QONNX_DOMAINS or (domain.startswith("qonnx.") and domain != CHANNELS_LAST_DOMAIN):
        domain = "qonnx"
    wanted = proto.name or f"{proto.op_type}_{next((name for name in proto.output if name), len(names))}"
    name = wanted
    while name in names:
        names[wanted] += 1
        name = f"{wanted}_{names[wanted]}"
    names[name] = 1
    node = Node(proto.op_type, name, list(proto.input), list(proto.output), {}, domain)
    for attribute in proto.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            problems.add_node(node, "control flow and subgraphs are not supported")
        elif attribute.ref_attr_name:
            problems.add_node(node, f"attribute '{attribute.name}' refers to a function's attribute outside a function")
        else:
            value = _read_attribute(attribute, node, external, problems)
            if value is not None:
                is_type = attribute.name in _ELEMENT_TYPES
                node.attrs[attribute.name] = _as_float32(value) if is_type else value
    if domain == "" and proto.op_type == "Constant":
        _check_constant(node, problems)
    return node


def _read_attribute(attribute: onnx.AttributeProto, node: Node, external: ExternalData, problems: Problems) -> Any:
    kind = onnx.AttributeProto
    if attribute.type == kind.TENSOR:
        return _read_tensor(attribute.t, f"node '{node.name}' ({node.op}), {attribute.name}", external, problems)
    if attribute.type not in (kind.FLOAT, kind.INT, kind.STRING, kind.FLOATS, kind.INTS, kind.STRINGS):
        type_name = kind.AttributeType.Name(attribute.type)
        problems.add_node(node, f"attribute '{attribute.name}' has type {type_name}, which is not supported")
        return None
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.type in (kind.FLOAT, kind.FLOATS) and np.isnan(value).any():
        problems.add_node(node, f"attribute '{attribute.name}' is NaN")
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type == kind.STRINGS:
        return [text.decode("utf-8", "replace") for text in value]
    return list(value) if attribute.type in (kind.FLOATS, kind.INTS) else value


def _check_constant(node: Node, problems: Problems) -> None:
    if "sparse_value" in node.attrs or "value_string" in node.attrs or "value_strings" in node.attrs:
        problems.add_node(node, "sparse and string constants are not supported")


# Attributes that hold the element type of a result.
_ELEMENT_TYPES = frozenset({"to", "dtype", "output_dtype"})


def _as_float32(elem_type: int) -> int:
    return onnx.TensorProto.FLOAT if elem_type in HALF_TYPES else elem_type


def _numpy_dtype(elem_type: int) -> np.dtype[Any] | None:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except (KeyError, TypeError, ValueError):
        return None


def _read_tensor(tensor: onnx.TensorProto, what: str, external: ExternalData, problems: Problems) -> Array | None:
    dtype = _numpy_dtype(tensor.data_type)
    if dtype is None or tensor.data_type == onnx.TensorProto.STRING:
        problems.add(f"{what}: element type {tensor.data_type} is not supported")
        return None
    shape = tuple(tensor.dims)
    if any(dim < 0 for dim in shape):
        problems.add(f"{what}: impossible shape {list(shape)}")
        return None
    if len(shape) > MAX_RANK:
        problems.add(f"{what}: rank {len(shape)}, at most {MAX_RANK} is supported")
        return None
    elements = elements_of(shape)
    item_bytes = 4 if tensor.data_type in HALF_TYPES else dtype.itemsize
    if elements * item_bytes > MAX_TENSOR_BYTES:
        problems.add(f"{what}: shape {list(shape)} of {dtype} is larger than {MAX_TENSOR_BYTES} bytes")
        return None
    try:
        is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
        array = external.read(tensor) if is_external else _to_array(tensor)
    except _MissingFileError as error:
        external.missing.setdefault(str(error), []).append(what)
        return None
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        problems.add(f"{what}: {error}")
        return None
    if np.issubdtype(array.dtype, np.floating):
        count = int(np.isnan(array).sum())
        if count:
            problems.add(f"{what}: {count} of {array.size} values are NaN")
            return None
    return array


def _to_array(tensor: onnx.TensorProto) -> Array:
    array = numpy_helper.to_array(tensor)
    return array.astype(np.float32) if tensor.data_type in HALF_TYPES else array


class _MissingFileError(ValueError):
    """A file with external data is not there."""


class ExternalData:
    """Reads tensors from the files beside a model; those of the same bytes are one array.

    What is read from a file adds up to its size at most: a thousand initializers of one and the same gigabyte, each
    shifted by a byte, are refused. ``missing``: what each file that is not there was needed for.
    """

    def __init__(self, base_dir: Path | None) -> None:
        self._base_dir = base_dir
        self._arrays: dict[tuple[Any, ...], Array] = {}
        self._bytes_left: dict[Path, int] = {}
        self.missing: dict[str, list[str]] = {}

    def read(self, tensor: onnx.TensorProto) -> Array:
        """Raises ValueError or OSError."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if self._base_dir is None:
            raise ValueError(f"its data lies in the file '{location}', but the model was not given as a file")
        path = _external_path(location, self._base_dir)
        size = path.stat().st_size
        offset = _byte_count(entries, "offset", 0)
        length = _byte_count(entries, "length", size - offset)
        if offset > size or length > size - offset:
            raise ValueError(
                f"bytes {offset} to {offset + length} of '{location}' are needed, the file has {size} bytes"
            )
        if length > MAX_TENSOR_BYTES:
            raise ValueError(f"{length} bytes of '{location}' are more than {MAX_TENSOR_BYTES}")
        key = (path, offset, length, tensor.data_type, tuple(tensor.dims))
        if key not in self._arrays:
            left = self._bytes_left.setdefault(path, size) - length
            if left < 0:
                raise ValueError(
                    f"its bytes {offset} to {offset + length} of '{location}' are those of other tensors too"
                )
            self._bytes_left[path] = left
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(length)
            inline = onnx.TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=data)
            self._arrays[key] = _to_array(inline)
        return self._arrays[key]


def _external_path(location: str, base_dir: Path) -> Path:
    """The file meant by ``location``, which must lie in or below the model's folder, links followed."""
    parts = PurePosixPath(location)
    if not location or "\0" in location:
        raise ValueError(f"external data without a usable location ({location!r})")
    if parts.is_absolute() or Path(location).is_absolute() or ":" in location or "\\" in location:
        raise ValueError(f"external data '{location}': a path relative to the model's folder is expected")
    if ".." in parts.parts:
        raise ValueError(f"external data '{location}': '..' is not allowed")
    path = base_dir / parts
    real_base, real_path = base_dir.resolve(), path.resolve()
    if not real_path.is_relative_to(real_base):
        raise ValueError(f"external data '{location}' leads outside the model's folder through a symbolic link")
    if not real_path.exists():
        raise _MissingFileError(f"external data file '{location}' is missing from folder {base_dir.absolute()}")
    status = real_path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"external data '{location}': it is {_kind(status)}, a file is expected")
    return real_path


def _byte_count(entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise ValueError(f"external data {key} '{text}': a non-negative integer is expected")
    return int(text)


def _sorted_nodes(nodes: list[Node], known: set[str], problems: Problems) -> list[Node]:
    """Nodes in topological order; names written twice, missing tensors and cycles are reported."""
    writer: dict[str, Node] = {}
    for node in nodes:
        for name in node.outputs:
            if not name:
                continue
            if name in writer or name in known:
                other = f"node '{writer[name].name}'" if name in writer else "an input or initializer"
                problems.add_node(node, f"writes tensor '{name}', which {other} already defines")
            writer.setdefault(name, node)
    for node in nodes:
        for name in node.inputs:
            if name and name not in known and name not in writer:
                problems.add_node(node, f"input '{name}' is not written by any node, input or initializer")
    # Of the nodes that are ready, the first in the file comes next: a sorted file keeps its order.
    missing: list[int] = []
    readers: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        needed = {name for name in node.inputs if name in writer and name not in known}
        missing.append(len(needed))
        for name in needed:
            readers.setdefault(name, []).append(place)
    ready = [place for place, count in enumerate(missing) if count == 0]
    ordered: list[Node] = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        ordered.append(node)
        for name in node.outputs:
            for reader in readers.pop(name, []):
                missing[reader] -= 1
                if missing[reader] == 0:
                    heapq.heappush(ready, reader)
    if len(ordered) < len(nodes):
        blocked = [node for node, count in zip(nodes, missing, strict=True) if count]
        problems.add("the graph has a cycle through " + ", ".join(f"node '{node.name}'" for node in blocked[:8]))
    return ordered
