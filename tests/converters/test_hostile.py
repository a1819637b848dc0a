"""Files made to hurt: ``convert`` refuses each with a reason, in little memory and time, and leaves no file behind."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import floats, parse
from tac_engine.converters.evaluate import ReferenceModel
from tac_engine.converters.graph import Array

import tac_engine
from tac_engine.errors import FormatError, TacError, UnsupportedModelError

MEMORY = 3 << 30  # bytes of addresses beside what the process has already
SECONDS = 30  # of CPU time; what takes that long took minutes before it was mended, or never ended
IMAGE = "float[N, 1, 8, 8] x"
HUGE = 1 << 40


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """An allocation bomb fails with MemoryError, a hang with Failed."""

    def stop(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"more than {SECONDS} seconds of CPU time")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, limits[1]))
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)


def convert(model: onnx.ModelProto, folder: Path) -> None:
    """What ``tac_engine.convert`` does with the model, in an empty folder."""
    source = folder / "in" / "model.onnx"
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(model.SerializeToString())
    tac_engine.convert(source, folder / "model.tacbin")


def refused(model: onnx.ModelProto, folder: Path) -> str:
    with pytest.raises(TacError) as caught:
        convert(model, folder)
    assert [path.name for path in folder.iterdir()] == ["in"], "something was left behind"
    return str(caught.value)


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


def number(value: float) -> Array:
    return np.asarray(value, np.float32)


# Constants that would be enormous. Every body makes "c".
FOLDED: dict[str, tuple[str, dict[str, Array], str]] = {
    "ConstantOfShape": ("c = ConstantOfShape (s)", {"s": ints(HUGE)}, "bytes, at most"),
    "Expand": ("c = Expand (o, s)", {"o": ones(1), "s": ints(1 << 20, 1 << 20)}, "bytes, at most"),
    "Tile": ("c = Tile (o, s)", {"o": ones(1, 1), "s": ints(1 << 20, 1 << 20)}, "bytes, at most"),
    "Pad": ("c = Pad (o, p)", {"o": ones(1), "p": ints(HUGE, 0)}, "bytes, at most"),
    "Pad of one axis": ("c = Pad (o, p, , a)", {"o": ones(1, 1), "p": ints(HUGE, 0), "a": ints(-1)}, "bytes, at most"),
    "Range": ("c = Range (a, b, d)", {"a": number(0), "b": number(1e12), "d": number(1)}, "bytes, at most"),
    "Range of tiny steps": ("c = Range (a, b, d)", {"a": number(0), "b": number(1), "d": number(1e-30)}, "bytes"),
    "endless Range": ("c = Range (a, b, d)", {"a": number(0), "b": number(np.inf), "d": number(1)}, "bytes, at most"),
    "OneHot": ("c = OneHot (i, d, v)", {"i": ints(0), "d": ints(HUGE), "v": number([0, 1])}, "bytes, at most"),
    "Gather": ("c = Gather (o, i)", {"o": ones(1, 1 << 16), "i": np.zeros(1 << 18, np.int64)}, "bytes, at most"),
    "GatherND": (
        "c = GatherND (o, i)",
        {"o": ones(1, 1 << 16), "i": np.zeros((1 << 18, 1), np.int64)},
        "bytes, at most",
    ),
    "MatMul": ("c = MatMul (a, b)", {"a": ones(1 << 17, 1), "b": ones(1, 1 << 17)}, "bytes, at most"),
    "MatMul that takes hours": (
        "a = Expand (o, s) b = Expand (o, s) c = MatMul (a, b)",
        {"o": ones(1, 1), "s": ints(5792, 5792)},
        "products",
    ),
    "Concat": (f"c = Concat <axis=0> ({', '.join(['o'] * 4000)})", {"o": ones(1 << 20)}, "bytes, at most"),
    "Where": (
        "c = Where (w, a, a)",
        {"w": np.ones((1 << 14, 1, 1), bool), "a": ones(1 << 14, 1 << 6)},
        "bytes, at most",
    ),
    "ReduceSum of nothing": (
        "c = ReduceSum (o, a)",
        {"o": np.ones((1 << 31, 0), np.float32), "a": ints(1)},
        "larger than",
    ),
    "Resize": (
        "c = Resize (o, , s)",
        {"o": ones(1, 1, 2, 2), "s": number([1, 1, 1e6, 1e6])},
        "not computed on constants",
    ),
    "HannWindow": ("c = HannWindow (n)", {"n": np.asarray(HUGE)}, "not computed on constants"),
    "Einsum": ('c = Einsum <equation="i,j->ij"> (a, a)', {"a": ones(1 << 17)}, "not computed on constants"),
    "Conv": (
        "c = Conv <pads=[60000,60000,60000,60000]> (o, w)",
        {"o": ones(1, 1, 2, 2), "w": ones(1, 1, 1, 1)},
        "not computed on constants",
    ),
    "thousand Expands": (
        " ".join(f"c{i} = Expand (o, s) d{i} = ReduceMax <keepdims=0> (c{i})" for i in range(1000))
        + f" c = Sum ({', '.join(f'd{i}' for i in range(1000))})",
        {"o": ones(1), "s": ints(1 << 24)},
        "constants computed up to here",
    ),
    "Expands that are all needed": (
        " ".join(f"c{i} = Expand (o{i}, s)" for i in range(60)) + f" c = Sum ({', '.join(f'c{i}' for i in range(60))})",
        {"s": ints(1 << 25), **{f"o{i}": ones(1) for i in range(60)}},
        "constants computed up to here",
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_constants_are_measured_before_they_are_computed(name: str, tmp_path: Path) -> None:
    body, constants, reason = FOLDED[name]
    model = parse(f"{body} k = Cast <to=1> (c) m = ReduceMax <keepdims=0> (k) y = Add (x, m)", constants=constants)
    assert reason in refused(model, tmp_path)
    with pytest.raises(UnsupportedModelError):
        ReferenceModel(model).run({"x": floats(1, 4)})


@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ("kernel_shape=[2147483648,1]", "kernel_shape"),
        ("pads=[1099511627776,0,0,0]", "pads"),
        ("pads=[-1,0,0,0]", "pads"),
        ("pads=[5]", "pads"),
        ("strides=[0,1]", "strides"),
        ("strides=[9223372036854775807,1]", "strides"),
        ("dilations=[1099511627776,1]", "dilations"),
        ("dilations=[0,0]", "dilations"),
        ("pads=[30000,30000,30000,30000]", "padding only|elements"),
        ('auto_pad="SAME_UPPER", strides=[4611686018427387904,1]', "strides"),
        ('auto_pad="FOO"', "unknown auto_pad 'FOO'"),
        ("group=0", "group"),
        ("group=4611686018427387904", "group"),
    ],
)
def test_absurd_windows(op: str, attributes: str, reason: str, tmp_path: Path) -> None:
    kernel = "" if op == "Conv" or "kernel_shape" in attributes else "kernel_shape=[3,3], "
    inputs = "x, w" if op == "Conv" else "x"
    model = parse(f"y = {op} <{kernel}{attributes}> ({inputs})", inputs=IMAGE, constants={"w": floats(2, 1, 3, 3)})
    found = refused(model, tmp_path)
    assert f"{op}_y" in found
    assert any(word in found for word in reason.split("|"))


@pytest.mark.parametrize(
    ("body", "inputs", "reason"),
    [
        ("y = Relu (x)", "float[N, 9223372036854775807, 2] x", "x"),
        ("y = Transpose <perm=[0,3,1,2]> (x)", "float[N, 65536, 65536, 65536] x", "x"),
        ("y = Conv (x, w)", "float[N, 1, 40000, 40000] x", "'Conv_y' .*: its result .* elements a sample"),
        (
            "y = MaxPool <kernel_shape=[65536,1], pads=[65535,0,65535,0]> (x)",
            "float[N, 1, 1, 70000] x",
            "elements a sample",
        ),
        ("y = GlobalAveragePool (x)", "float[N, 1, 1000000, 1000000] x", "x"),
        ("y = Pad (x, p)", "float[N, 4] x", "elements a sample"),
        ("y = Gather <axis=1> (x, i)", "float[N, 4, 1000000] x", "elements a sample"),
        ("y = Expand (x, e)", "float[N, 1, 4] x", "elements a sample"),
        ("y = Resize (x, , f)", "float[N, 4] x", "elements a sample"),
        ("y = Reshape (x, r)", "float[N, 4] x", "cannot be reshaped"),
        ("s = Shape <start=1> (x) q = Mul (s, h) z = Mul (q, h) y = Reshape (x, z)", "float[N, 4] x", "Reshape_y"),
        ("y = Slice (x, a, b, c)", "float[N, 4] x", r"axes \[1, 1\] repeat"),
        ("y = MatMul (x, n)", "float[N, 4] x", r"'MatMul_y' \(MatMul\): its result \[N, 0\] is empty"),
        ("y = Flatten <axis=9223372036854775807> (x)", "float[N, 4] x", "axis 9223372036854775807 does not exist"),
        ("y = Softmax <axis=-9223372036854775808> (x)", "float[N, 4] x", "does not exist"),
        ("y = Unsqueeze (x, u)", "float[N, 4] x", "rank"),
        ("y = Add (x, k)", "float[N, 4] x", "'k': rank 60, at most 32"),
    ],
)
def test_absurd_shapes(body: str, inputs: str, reason: str, tmp_path: Path) -> None:
    constants = {
        "w": floats(64, 1, 1, 1),
        "p": ints(0, HUGE, 0, HUGE),
        "i": np.zeros(1 << 12, np.int64),
        "e": ints(1, HUGE, 4),
        "r": ints(0, 1 << 62, 1 << 62),
        "f": number([1, 1e12]),
        "h": ints(1 << 62),
        "a": ints(0, 1),
        "b": ints(2, 3),
        "c": ints(1, 1),
        "n": ones(4, 0),
        "u": ints(*range(2, 40)),
        "k": ones(*[1] * 59, 4),
    }
    used = {name: value for name, value in constants.items() if f" {name})" in body or f" {name}," in body}
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(refused(parse(body, inputs=inputs, constants=used), tmp_path))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = MatMul (x, w)", "its weights or its bias are not finite"),
        ("s = Sign (x) y = MatMul (s, w)", "its weights or its bias are not finite"),
        ("y = Gemm <alpha=1e38> (x, v)", "its weights or its bias are not finite"),
        ("y = BatchNormalization (x, v4, v4, v4, m)", "its scale or shift is not finite"),
        ("y = BatchNormalization <epsilon=0.0> (x, v4, v4, v4, z)", "its scale or shift is not finite"),
    ],
)
def test_parameters_that_are_not_finite(body: str, reason: str, tmp_path: Path) -> None:
    constants = {"w": ones(4, 2) * np.inf, "v": ones(4, 2) * 1e30, "v4": ones(4), "m": -ones(4), "z": np.zeros(4)}
    used = {name: np.asarray(value, np.float32) for name, value in constants.items() if f" {name}" in body}
    assert reason in refused(parse(body, constants=used), tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        "y = LeakyRelu <alpha=0.5> (x)",
        "y = Gemm <alpha=0.5> (x, w)",
        "y = BatchNormalization <epsilon=0.5> (x, v, v, v, v)",
    ],
)
def test_attributes_that_are_nan(body: str, tmp_path: Path) -> None:
    model = parse(body, constants={"w": floats(4, 2), "v": ones(4)})
    model.graph.node[0].attribute[0].f = np.nan
    assert f"attribute '{model.graph.node[0].attribute[0].name}' is NaN" in refused(model, tmp_path)


# Many nodes -----------------------------------------------------------------------------------------------------------


def chain(kinds: list[str], count: int = 10_000) -> onnx.ModelProto:
    """``count`` nodes one after the other; "Add" adds a tensor to itself."""
    model = parse("y = Relu (x)")
    del model.graph.node[:]
    before = "x"
    for place in range(count):
        kind, after = kinds[place % len(kinds)], "y" if place == count - 1 else f"t{place}"
        inputs = [before] * (2 if kind == "Add" else 1)
        model.graph.node.append(helper.make_node(kind, inputs, [after], name="the same"))
        before = after
    return model


@pytest.mark.parametrize("kinds", [["Relu"], ["Identity"], ["Add"], ["Sign"], ["Relu", "Neg", "Add"]], ids="-".join)
def test_ten_thousand_nodes(kinds: list[str], tmp_path: Path) -> None:
    convert(chain(kinds), tmp_path)
    tac_engine.load(tmp_path / "model.tacbin")


def test_ten_thousand_nodes_in_reverse_order(tmp_path: Path) -> None:
    model = chain(["Relu"])
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    convert(model, tmp_path)


def test_ten_thousand_nodes_that_are_no_quantizers(tmp_path: Path) -> None:
    """Each is searched for a step function in the nodes before it."""
    body = " ".join(
        f"g{i} = Greater (t{i}, z) r{i} = LeakyRelu (t{i}) t{i + 1} = Where (g{i}, t{i}, r{i})" for i in range(3000)
    )
    model = parse(f"t0 = Relu (x) {body} y = Neg (t3000)", constants={"z": number(0.5)})
    with contextlib.suppress(UnsupportedModelError):
        convert(model, tmp_path)


def test_diamonds_are_not_walked_path_by_path(tmp_path: Path) -> None:
    body = " ".join(
        f"a{i} = Relu ({'x' if i == 0 else f'c{i - 1}'}) b{i} = Neg ({'x' if i == 0 else f'c{i - 1}'}) "
        f"c{i} = Add (a{i}, b{i})"
        for i in range(60)
    )
    convert(parse(f"{body} s = Sign (c59) y = MatMul (s, w)", constants={"w": ones(4, 2)}), tmp_path)


def test_a_cycle_of_many_nodes(tmp_path: Path) -> None:
    model = chain(["Relu"], 5000)
    model.graph.node[0].input[0] = "y"
    assert "the graph has a cycle through node 'the same'" in refused(model, tmp_path)


def test_thousands_of_outputs(tmp_path: Path) -> None:
    model = parse(" ".join(f"y{i} = Relu (x)" for i in range(3000)) + " y = Relu (x)")
    model.graph.output.extend(onnx.ValueInfoProto(name=f"y{i}") for i in range(3000))
    convert(model, tmp_path)


def with_functions(bodies: list[list[onnx.NodeProto]]) -> onnx.ModelProto:
    """The last of the functions F0, F1, ... of the domain "my", applied to x."""
    model = parse("y = Relu (x)")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]
    for number, body in enumerate(bodies):
        model.functions.append(helper.make_function("my", f"F{number}", ["a"], ["b"], body, opsets))
    model.graph.node[0].op_type, model.graph.node[0].domain = f"F{len(bodies) - 1}", "my"
    model.opset_import.append(opsets[1])
    return model


def test_functions(tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["a"], ["b"])
    convert(with_functions([[relu]]), tmp_path)
    calls = [helper.make_node("F0", ["a"], ["b"], domain="my")]
    (tmp_path / "model.tacbin").unlink()
    assert "function 'F0' calls itself" in refused(with_functions([calls]), tmp_path)


def test_functions_that_double(tmp_path: Path) -> None:
    bodies = [[helper.make_node("Relu", ["a"], ["b"])]]
    for number in range(40):
        called = f"F{number}"
        bodies.append([helper.make_node(called, [a], [b], domain="my") for a, b in (("a", "t"), ("t", "b"))])
    assert f"its functions stand for {2**40} nodes" in refused(with_functions(bodies), tmp_path)


def test_functions_with_subgraphs(tmp_path: Path) -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["a"], ["r"])], "b", [], [onnx.ValueInfoProto(name="r")])
    node = helper.make_node("If", ["a"], ["b"], then_branch=branch, else_branch=branch)
    assert "control flow and subgraphs" in refused(with_functions([[node]]), tmp_path)


# Names, types and files -----------------------------------------------------------------------------------------------


def test_names_that_a_file_cannot_hold(tmp_path: Path) -> None:
    model = parse("a = Relu (x) y = Neg (a)")
    model.graph.node[1].output[0] = model.graph.output[0].name = "two\nlines"
    assert "has the control character 10 at byte 3" in refused(model, tmp_path)
    assert "bytes long, limit" in refused(parse(f"{'a' * 5000} = Relu (x) y = Neg ({'a' * 5000})"), tmp_path)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (TensorProto.STRING, "element type 8 is not supported"),
        (999, "element type 999 is not supported"),
    ],
)
def test_initializers_of_other_types(kind: int, reason: str, tmp_path: Path) -> None:
    model = parse("y = Relu (x)")
    model.graph.initializer.append(TensorProto(name="w", data_type=kind, dims=[1]))
    assert f"initializer 'w': {reason}" in refused(model, tmp_path)


def test_a_graph_without_anything(tmp_path: Path) -> None:
    assert "it holds no graph" in refused(onnx.ModelProto(ir_version=8), tmp_path)
    model = parse("y = Relu (x)")
    del model.graph.node[:]
    assert "output 'y' is not written" in refused(model, tmp_path)


def test_files_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FormatError, match="it is a pipe, socket or device"):
            tac_engine.convert(path, tmp_path / "model.tacbin")


def test_a_header_of_two_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 31)  # sparse
    with pytest.raises(FormatError, match="2147483648 bytes, at most"):
        tac_engine.convert(path, tmp_path / "model.tacbin")
    path.write_bytes(b"\x3a\xff\xff\xff\xff\x07" + bytes(100))  # graph, 2 GiB - 1 long
    with pytest.raises(FormatError, match="is not an ONNX model"):
        tac_engine.convert(path, tmp_path / "model.tacbin")


def external(names: dict[str, dict[str, str]]) -> onnx.ModelProto:
    """MatMuls by [4, 4] weights that lie in files."""
    body = " ".join(f"t{place} = MatMul (x, {name})" for place, name in enumerate(names))
    model = parse(f"{body} y = Sum ({', '.join(f't{place}' for place in range(len(names)))})")
    for name, entries in names.items():
        tensor = TensorProto(name=name, dims=[4, 4], data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        model.graph.initializer.append(tensor)
    return model


def test_external_data_may_be_shared_and_may_not_overlap(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/w.bin").write_bytes(floats(4, 4).tobytes() + b"more")
    whole = {"location": "w.bin", "length": "64", "checksum": "0" * 40}
    convert(external({"a": whole, "b": whole}), tmp_path)
    (tmp_path / "model.tacbin").unlink()
    shifted = {"location": "w.bin", "offset": "4", "length": "64"}
    assert "'w.bin' are those of other tensors too" in refused(external({"a": whole, "b": shifted}), tmp_path)


def test_external_data_in_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in/w.bin")
    assert "'w.bin': it is a pipe, socket or device" in refused(external({"w": {"location": "w.bin"}}), tmp_path)


# Mutations ------------------------------------------------------------------------------------------------------------


def layered() -> onnx.ModelProto:
    return parse(
        "s = Sign (x) c = Conv <pads=[1,1,1,1]> (s, w) n = BatchNormalization (c, v, v, v, v) q = Sign (n) "
        "p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (q) f = Flatten (p) y = Gemm <transB=1> (f, g)",
        inputs=IMAGE,
        constants={"w": np.sign(floats(2, 1, 3, 3)), "v": ones(2), "g": floats(3, 32)},
    )


def shaped() -> onnx.ModelProto:
    return parse(
        "s = Shape (x) g = Gather (s, z) u = Unsqueeze (g, z1) t = Concat <axis=0> (u, m) r = Reshape (x, t) "
        "a = Slice (r, b, e, k) l = LeakyRelu <alpha=0.25> (a) o = Concat <axis=1> (l, a) y = Softmax <axis=1> (o)",
        inputs=IMAGE,
        constants={"z": np.asarray(0), "z1": ints(0), "m": ints(-1), "b": ints(3), "e": ints(9), "k": ints(1)},
    )


@pytest.mark.parametrize("made", [layered, shaped])
@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_are_refused_or_converted(made: Callable[[], onnx.ModelProto], seed: int, tmp_path: Path) -> None:
    data = made().SerializeToString()
    random = np.random.default_rng(seed)
    source, target = tmp_path / "model.onnx", tmp_path / "model.tacbin"
    for _ in range(50):
        changed = bytearray(data)
        for _ in range(random.integers(1, 4)):
            place = int(random.integers(len(changed)))
            kind = random.integers(3)
            if kind == 0:
                changed[place] = int(random.integers(256))
            elif kind == 1:
                changed[place] ^= 1 << int(random.integers(8))
            else:
                del changed[place : place + int(random.integers(1, 9))]
        source.write_bytes(changed)
        try:
            tac_engine.convert(source, target)
        except TacError:
            continue
        finally:
            left = {path.name for path in tmp_path.iterdir()} - {"model.onnx", "model.tacbin"}
            assert not left, changed.hex()
        tac_engine.load(target)
