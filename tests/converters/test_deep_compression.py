from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import Array, Net, save
from tac_engine.converters.deep_compression import LayerShape, import_deep_compression, read_layers
from tac_engine.converters.evaluate import ReferenceModel

import tac_engine
from tac_engine import FormatError, InvalidInputError, UnsupportedModelError
from tac_engine.cli import main

SHAPES = [
    LayerShape("conv1", (8, 3, 3, 3)),
    LayerShape("conv2", (12, 4, 3, 3)),
    LayerShape("fc1", (20, 192)),
    LayerShape("fc2", (10, 20)),
]


def nibbles(values: list[int]) -> bytes:
    padded = [*values, 0] if len(values) % 2 else values
    return bytes(low | high << 4 for low, high in zip(padded[::2], padded[1::2], strict=True))


def encode_layer(codebook: Array, codes: Array, bias: Array, bits: int) -> tuple[int, bytes]:
    """(entries, bytes) of a layer whose weights, flattened, are ``codebook[codes]``; code 0 is not listed."""
    entries: list[tuple[int, int]] = []
    last = -1
    for place in np.flatnonzero(codes):
        while place - last > 16:
            entries.append((15, 0))
            last += 16
        entries.append((int(place) - last - 1, int(codes[place])))
        last = int(place)
    gaps, listed = [gap for gap, _ in entries], [code for _, code in entries]
    stream = bytes(listed) if bits == 8 else nibbles(listed)
    return len(entries), codebook.astype("<f4").tobytes() + bias.astype("<f4").tobytes() + stream + nibbles(gaps)


def encode(seed: int, kept: float) -> tuple[bytes, list[tuple[Array, Array]]]:
    """A file of layers like SHAPES with a share ``kept`` of their weights, and what they hold."""
    rng = np.random.default_rng(seed)
    counts: list[int] = []
    body = b""
    layers: list[tuple[Array, Array]] = []
    for shape in SHAPES:
        codebook = rng.normal(size=1 << shape.bits).astype(np.float32)
        codebook[0] = 0.0
        size = int(np.prod(shape.weight))
        codes = rng.integers(1, 1 << shape.bits, size) * (rng.random(size) < kept)
        bias = rng.normal(size=shape.weight[0]).astype(np.float32)
        count, data = encode_layer(codebook, codes, bias, shape.bits)
        counts.append(count)
        body += data
        layers.append((codebook[codes].reshape(shape.weight), bias))
    return np.asarray(counts, "<u4").tobytes() + body, layers


def template(folder: Path, trans_b: bool = True) -> Path:
    """A network of these layers with other weights."""
    net = Net(("N", 3, 8, 8), seed=1)

    def layer(shape: LayerShape) -> list[str]:
        weight = net.rng.normal(size=shape.weight)
        if len(shape.weight) == 2 and not trans_b:
            weight = weight.T
        return [net.constant(weight), net.constant(np.zeros(shape.weight[0]))]

    x = net.op("Relu", net.op("Conv", "x", *layer(SHAPES[0]), kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    x = net.op("Relu", net.op("Conv", x, *layer(SHAPES[1]), kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=2))
    x = net.op("Flatten", net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    x = net.op("Relu", net.op("Gemm", x, *layer(SHAPES[2]), transB=int(trans_b)))
    x = net.op("Gemm", x, *layer(SHAPES[3]), transB=int(trans_b))
    return save(net.model(x), folder)


@pytest.mark.parametrize("kept", [0.02, 0.09, 0.35, 1.0])
def test_layers_come_back(kept: float, tmp_path: Path) -> None:
    data, expected = encode(3, kept)
    (tmp_path / "net.bin").write_bytes(data)
    layers = read_layers(tmp_path / "net.bin", SHAPES)
    for layer, shape, (weight, bias) in zip(layers, SHAPES, expected, strict=True):
        assert layer.name == shape.name
        np.testing.assert_array_equal(layer.weight, weight)
        np.testing.assert_array_equal(layer.bias, bias)
        assert layer.listed >= np.count_nonzero(weight)


@pytest.mark.parametrize("trans_b", [True, False])
def test_a_compressed_network_runs(trans_b: bool, tmp_path: Path) -> None:
    data, expected = encode(4, 0.2)
    compressed, target = tmp_path / "net.bin", tmp_path / "imported.onnx"
    compressed.write_bytes(data)
    import_deep_compression(compressed, template(tmp_path, trans_b), target)
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    imported = onnx.load(target)
    reference = ReferenceModel(imported).run({"x": x})
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in imported.graph.initializer}
    for node, (weight, bias) in zip(
        (node for node in imported.graph.node if node.op_type in ("Conv", "Gemm")), expected, strict=True
    ):
        got = held[node.input[1]]
        np.testing.assert_array_equal(got if node.op_type == "Conv" or trans_b else got.T, weight)
        np.testing.assert_array_equal(held[node.input[2]], bias)

    report = tac_engine.convert(target, tmp_path / "net.tacbin", fc_precision="f32")
    assert [(row.kind, row.op) for row in report.layers if row.bytes_before] == [
        ("float conv", "coded_conv"),
        ("float conv", "coded_conv"),
        ("codebook linear", "codebook_linear"),
        ("codebook linear", "codebook_linear"),
    ]
    result = tac_engine.load(tmp_path / "net.tacbin").run({"x": x})
    for name, value in reference.items():
        np.testing.assert_allclose(result[name], value, rtol=0, atol=1e-5 * float(np.max(np.abs(value))))


def test_the_command_line_imports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.bin").write_bytes(encode(5, 0.3)[0])
    model, target = template(tmp_path), tmp_path / "imported.onnx"
    arguments = ["import-deep-compression", str(tmp_path / "net.bin"), "--model", str(model), "-o", str(target)]
    assert main(arguments) == 0
    assert "4 layers" in capsys.readouterr().out
    assert onnx.load(target).graph.node
    assert main([*arguments[:4], "-o", str(model)]) == 2
    assert "is also read" in capsys.readouterr().err


def at_codebook(layer: int) -> int:
    """Offset of a layer's codebook in a file of no entries but those of layer 0, of which there are 2."""
    offset = 4 * len(SHAPES)
    for index, shape in enumerate(SHAPES[:layer]):
        offset += 4 * (1 << shape.bits) + 4 * shape.weight[0] + (3 if index == 0 else 0)
    return offset


def small_file() -> bytearray:
    counts = np.asarray([2, 0, 0, 0], "<u4").tobytes()
    body = b""
    for index, shape in enumerate(SHAPES):
        codebook = np.zeros(1 << shape.bits, "<f4")
        codebook[1] = 0.5
        body += codebook.tobytes() + np.ones(shape.weight[0], "<f4").tobytes()
        if index == 0:
            body += bytes([1, 1]) + nibbles([3, 15])
    return bytearray(counts + body)


def test_the_small_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "net.bin").write_bytes(small_file())
    first = read_layers(tmp_path / "net.bin", SHAPES)[0]
    assert np.flatnonzero(first.weight.ravel()).tolist() == [3, 19]


def put(data: bytearray, offset: int, value: bytes) -> None:
    data[offset : offset + len(value)] = value


def with_odd_count(data: bytearray) -> None:
    """Layer 0 with three entries whose fourth gap is not 0."""
    put(data, 0, np.asarray([3], "<u4").tobytes())
    streams = at_codebook(1) - 3
    data[streams : streams + 3] = bytes([1, 1, 1]) + nibbles([3, 0, 0, 7])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.extend(b"\0"), "1 bytes behind the last layer"),
        (lambda d: put(d, 0, b"\xff\xff\xff\xff"), "layer 'conv1' lists 4294967295 weights, it has 216"),
        (lambda d: put(d, 8, b"\x01\x0f\0\0"), "layer 'fc1' lists 3841 weights, it has 3840"),
        (lambda d: put(d, at_codebook(1), np.float32(0.25).tobytes()), "'conv2' has a codebook that begins with 0.25"),
        (lambda d: put(d, at_codebook(2) + 4, np.float32(np.nan).tobytes()), "layer 'fc1' has a codebook or bias that"),
        (lambda d: put(d, at_codebook(1) - 7, np.float32(np.inf).tobytes()), "layer 'conv1'"),
        (with_odd_count, "layer 'conv1' has gaps behind the last one"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(edit: Any, message: str, tmp_path: Path) -> None:
    data = small_file()
    edit(data)
    (tmp_path / "net.bin").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        read_layers(tmp_path / "net.bin", SHAPES)


def test_entries_beyond_a_layer_are_refused(tmp_path: Path) -> None:
    shape = LayerShape("fc", (2, 8))
    data = np.asarray([2], "<u4").tobytes() + np.zeros(16 + 2, "<f4").tobytes() + nibbles([1, 1]) + nibbles([9, 6])
    (tmp_path / "net.bin").write_bytes(data)
    with pytest.raises(FormatError, match="layer 'fc' lists a weight at 16, it has 16"):
        read_layers(tmp_path / "net.bin", [shape])


def test_every_truncation_is_a_format_error(tmp_path: Path) -> None:
    whole = encode(6, 0.01)[0]
    path = tmp_path / "net.bin"
    for length in [*range(60), *range(60, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match="are left"):
            read_layers(path, SHAPES)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda n: n.op("Relu", "x"), "no Conv and no Gemm"),
        (lambda n: n.op("Gemm", "x", n.constant(np.ones((4, 3)))), "'Gemm_0' .*both must be initializers"),
        (lambda n: n.op("Gemm", "x", n.constant(np.ones((4, 3))), n.constant([0.0] * 3), alpha=2.0), "must be 1"),
        (lambda n: n.op("Gemm", "x", n.constant(np.ones((4, 3))), n.constant([0.0])), r"shape \[3, 4\] with a bias"),
    ],
)
def test_templates_that_cannot_take_the_layers_say_why(build: Any, message: str, tmp_path: Path) -> None:
    net = Net(("N", 4))
    model = save(net.model(build(net)), tmp_path)
    (tmp_path / "net.bin").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match=message):
        import_deep_compression(tmp_path / "net.bin", model, tmp_path / "out.onnx")


def test_missing_files_and_overwriting_are_refused(tmp_path: Path) -> None:
    model = template(tmp_path)
    with pytest.raises(FormatError, match=r"cannot read .*nothing\.bin"):
        import_deep_compression(tmp_path / "nothing.bin", model, tmp_path / "out.onnx")
    with pytest.raises(InvalidInputError, match="is also read"):
        import_deep_compression(tmp_path / "nothing.bin", model, model)
