"""Everything an import refuses, and how it says so."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import floats, parse
from tac_engine.converters.onnx_import import import_model

from tac_engine.errors import FormatError, UnsupportedModelError


def refused(model: onnx.ModelProto) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        import_model(model)
    return str(caught.value)


def zipped(member: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(member, b"content")
    return buffer.getvalue()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"absent\.onnx: No such file"):
        import_model(tmp_path / "absent.onnx")


def test_directory(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="it is a directory"):
        import_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64, b"PK\x03\x04zip"])
def test_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="is not an ONNX model"):
        import_model(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (zipped("net/data.pkl"), "a PyTorch file; export the network with torch.onnx.export"),
        (zipped("net/.data/serialization_id"), "a PyTorch file"),
        (pickle.dumps({"weight": [1.0]}, 2), "a PyTorch file"),
        (zipped("net.onnx"), "a zip archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), "a PNG picture"),
        (b"\xff\xd8\xff\xe0" + bytes(64), "a JPEG picture"),
        (b'{"layers": []}', "a JSON file"),
        (b"\x89HDF\r\n\x1a\n" + b"0" * 64, "an HDF5 file"),
        (b"\x1c\0\0\0TFL3" + bytes(64), "a TensorFlow Lite model"),
        (b"TACBIN\r\n" + bytes(64), "a .tacbin file, which is converted already"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"words and words\n", "a text file"),
    ],
)
def test_another_kind_of_file_is_told_apart(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=f"x.onnx is not an ONNX model: it looks like {re.escape(what)}") as caught:
        import_model(path)
    assert "onnx file" in str(caught.value)


def test_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    data = parse("y = MatMul (x, w)", constants={"w": floats(4, 2)}).SerializeToString()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises((FormatError, UnsupportedModelError), match=r"x\.onnx"):
            import_model(path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Foo (x)", "Foo.*opset 18 has no operator of this name"),
        ('y = Einsum <equation="ij->ji"> (x)', "Einsum.*this operator is not supported"),
        ("y = RandomNormalLike (x)", "random operators"),
        ("y = Relu <colour=1> (x)", "unknown attribute 'colour'"),
        ("y = Relu (x, x)", "1 inputs are expected, found 2"),
        ("y = Transpose <perm=[0,0]> (x)", r"perm \[0, 0\] is no order"),
        ("y = Transpose <perm=1> (x)", "attribute 'perm' has the wrong type"),
        ("y = ReduceSum <keepdims=0> (x)", "reducing the batch axis"),
        ("y = Concat <axis=0> (x, x)", "joining along the batch axis"),
        ("y = Concat <axis=5> (x, x)", "axis 5 does not exist"),
        ("y = MatMul (x, x)", r"\[N, 4\] and \[N, 4\] cannot be multiplied"),
        ("s = Shape (x) i = Cast <to=7> (x) y = Reshape (x, i)", "is computed from the data"),
        ("y = Add (x, missing)", "input 'missing' is not written"),
        ("a = Add (x, b) b = Relu (a) y = Relu (b)", "cycle through node 'Add_a', node 'Relu_b'"),
        ("a = Relu (x) a = Neg (x) y = Relu (a)", "writes tensor 'a', which node 'Relu_a' already defines"),
        ("x = Relu (x) y = Neg (x)", "which an input or initializer already defines"),
        ("y, m = Dropout (x) z = Not (m)", "the mask of a Dropout"),
        ("c = Cast <to=11> (x) y = Add (c, x)", "one element type are expected, found float32 and float64"),
        ("y = Cast <to=8> (x)", "strings are not supported"),
    ],
)
def test_faulty_nodes_are_named(body: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        import_model(parse(body))


def test_all_problems_are_listed_and_only_root_causes() -> None:
    text = refused(parse('a = Foo (x) b = Relu (a) c = ReduceSum <keepdims=0> (x) y = Einsum <equation="i->i"> (x)'))
    assert "3 problems" in text
    assert "'Foo_a' (Foo)" in text
    assert "'ReduceSum_c' (ReduceSum)" in text
    assert "'Einsum_y' (Einsum)" in text
    assert "Relu" not in text


def test_unknown_domain() -> None:
    model = parse("y = ai.onnx.ml.Scaler (x)", domains=', "ai.onnx.ml": 1')
    assert "operators of the domain 'ai.onnx.ml' are not known" in refused(model)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("Gelu (x)", "this operator of ONNX Runtime is not known"),
        ("QLinearSigmoid (x, s, z)", "5 inputs are expected, found 3"),
        ("QLinearSigmoid <beta=1.0> (x, s, z, s, z)", "unknown attribute 'beta'"),
        ("QLinearLeakyRelu <alpha='a'> (x, s, z, s, z)", "attribute 'alpha' has the wrong type: 'a'"),
        ("QLinearConcat (s, z, x, s, z)", "attribute 'axis' is missing"),
        ("QLinearGlobalAveragePool <channels_last=1> (x, s, z, s, z)", "channels_last = 1 is not supported"),
        ("QLinearSoftmax <opset=12> (x, s, z, s, z)", "the softmax of opsets before 13 is not supported"),
        ("QLinearAveragePool <kernel_shape=[2, 2], auto_pad='SAME_UPPER'> (x, s, z, s, z)", "auto_pad"),
        ("MatMulNBits <K=4, N=2> (x, z, s)", "attribute 'block_size' must be a positive integer"),
        ("MatMulNBits <K=4, N=2, block_size=16> (x, x, s)", "its input 'x' is computed at run time"),
        ("MatMulNBits <K=4, N=2, block_size=16> (x, z, s)", "packed weights uint8[] do not fit K=4, N=2, 4 bits"),
        ("MatMulNBits <K=4, N=2, block_size=16> (x, z, s, z, z)", "a g_idx input is not supported"),
    ],
)
def test_operators_of_onnx_runtime(node: str, reason: str) -> None:
    constants = {"s": np.float32(1), "z": np.uint8(3)}
    text = f"y = com.microsoft.{node}".replace("'", '"')
    assert reason in refused(parse(text, domains=', "com.microsoft": 1', constants=constants))


def test_the_range_of_a_whole_batch_as_an_output() -> None:
    model = parse("q, s, z = DynamicQuantizeLinear (x) y = Relu (s)", outputs="float[] y, float[] s")
    assert "'s', which has no batch axis, is a model output" in refused(model)


def test_unknown_qonnx_operator_and_rounding() -> None:
    model = parse("y = qonnx.custom_op.general.FloatQuant (x)", domains=', "qonnx.custom_op.general": 1')
    assert "qonnx.FloatQuant): this QONNX operator is not known" in refused(model)
    model = parse(
        'y = qonnx.custom_op.general.Quant <rounding_mode="ODD"> (x, s, s, s)',
        domains=', "qonnx.custom_op.general": 1',
        constants={"s": np.float32(1)},
    )
    assert "unknown rounding_mode 'ODD'" in refused(model)


def test_control_flow() -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "b", [], [onnx.ValueInfoProto(name="r")])
    model = parse("y = Relu (x)", inputs="float[N, 4] x, bool[N, 1] c")
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch))
    assert "node 'choice' (If): control flow and subgraphs are not supported" in refused(model)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ("float x", "found a scalar"),
        ("float[4] x", r"found shape \[4\]"),
        ("double[N, 4] x", "element type float32 is expected, found float64"),
        ("int64[N, 4] x", "found int64"),
        ("float[N, 4, W] x", "axis 2 is dynamic"),
    ],
)
def test_unusable_inputs(inputs: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"input 'x'.*{reason}"):
        import_model(parse("y = Relu (x)", inputs=inputs))


def test_input_without_shape_can_be_given_one() -> None:
    model = parse("y = Relu (x)")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    assert "input 'x' has no shape" in refused(model)
    assert str(import_model(model, input_shapes={"x": (None, 4)}).shapes["y"][0]) == "N"


def test_inputs_with_different_batch_sizes() -> None:
    model = parse("y = Add (x, z)", inputs="float[1, 4] x, float[2, 4] z")
    assert "different batch sizes: 1 ('x'), 2 ('z')" in refused(model)


def test_constant_output() -> None:
    model = parse("y = Relu (x) z = Neg (w)", outputs="float[N, 4] y, float[2] z", constants={"w": floats(2)})
    assert "output 'z' does not depend on any input" in refused(model)


def test_output_that_nothing_writes() -> None:
    assert "output 'q' is not written" in refused(parse("y = Relu (x)", outputs="float[N, 4] y, float[N, 4] q"))


@pytest.mark.parametrize(("opset", "word"), [(6, "opset 6"), (4000, "opset 4000")])
def test_opset_out_of_range(opset: int, word: str) -> None:
    model = parse("y = Relu (x)")
    model.opset_import[0].version = opset
    assert word in refused(model)


def test_model_without_opset() -> None:
    model = parse("y = Relu (x)")
    del model.opset_import[:]
    assert "does not say its ONNX opset" in refused(model)


def test_nan_weight_is_named() -> None:
    weight = floats(4, 2)
    weight[1, 1] = np.nan
    assert "initializer 'w': 1 of 8 values are NaN" in refused(parse("y = MatMul (x, w)", constants={"w": weight}))


def test_folding_to_nan_is_named() -> None:
    model = parse("d = Div (w, w) y = Add (x, d)", constants={"w": np.zeros(4, np.float32)})
    assert "'Div_d' (Div): its constant inputs cannot be folded: the result has NaN" in refused(model)


@pytest.mark.parametrize(
    "body",
    [
        "c = ConstantOfShape (big) y = Add (x, c)",
        "c = Expand (one, big) y = Add (x, c)",
        "c = Tile (one, big) y = Add (x, c)",
        "c = MatMul (column, row) y = Add (x, c)",
    ],
)
def test_folding_may_not_ask_for_any_memory(body: str) -> None:
    constants = {
        "big": np.array([1 << 20, 1 << 20]),
        "one": np.ones((1, 1), np.float32),
        "column": np.ones((1 << 16, 1), np.float32),
        "row": np.ones((1, 1 << 16), np.float32),
    }
    assert "bytes, at most" in refused(parse(body, constants=constants))


def test_sparse_and_duplicate_initializers() -> None:
    model = parse("y = MatMul (x, w)", constants={"w": floats(4, 2)})
    model.graph.initializer.append(numpy_helper.from_array(floats(4, 2), "w"))
    sparse = model.graph.sparse_initializer.add()
    sparse.values.name = "s"
    text = refused(model)
    assert "initializer 'w' occurs more than once" in text
    assert "initializer 's': sparse" in text


def test_initializer_with_too_few_bytes() -> None:
    model = parse("y = MatMul (x, w)", constants={"w": floats(4, 2)})
    model.graph.initializer[0].raw_data = b"1234"
    assert "initializer 'w':" in refused(model)


def test_initializer_of_impossible_size() -> None:
    model = parse("y = MatMul (x, w)", constants={"w": floats(4, 2)})
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]
    assert "is larger than" in refused(model)
    model.graph.initializer[0].dims[:] = [-4, 2]
    assert "impossible shape" in refused(model)


def test_training_mode_is_refused() -> None:
    constants = {name: np.ones(4, np.float32) for name in "sbmv"}
    model = parse("y = BatchNormalization <training_mode=1> (x, s, b, m, v)", constants=constants)
    assert "training_mode is set" in refused(model)


# External data -------------------------------------------------------------------------------------------------------


def external_model(path: Path, **entries: str) -> Path:
    """MatMul of x with w, w: [4, 2] in an external file."""
    model = parse("y = MatMul (x, w)")
    tensor = TensorProto(name="w", dims=[4, 2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_are_read_at_their_offset(tmp_path: Path) -> None:
    weight = floats(4, 2)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/w.bin").write_bytes(b"x" * 64 + weight.tobytes() + b"rest")
    path = external_model(tmp_path / "m.onnx", location="sub/w.bin", offset="64", length="32")
    np.testing.assert_array_equal(import_model(path).constants["w"], weight)


def absolute(folder: Path) -> dict[str, str]:
    return {"location": str(folder / "w.bin")}


def dotted(folder: Path) -> dict[str, str]:
    return {"location": f"../{folder.name}/w.bin"}


def symlink(folder: Path) -> dict[str, str]:
    (folder / "link").symlink_to("/etc/hostname")
    return {"location": "link"}


def symlinked_folder(folder: Path) -> dict[str, str]:
    (folder / "out").symlink_to(folder.parent)
    return {"location": f"out/{folder.name}-outside.bin"}


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (absolute, "a path relative to the model's folder is expected"),
        (dotted, r"'\.\.' is not allowed"),
        (symlink, "leads outside the model's folder"),
        (symlinked_folder, "leads outside the model's folder"),
        (lambda folder: {"location": "none.bin"}, "is missing"),
        (lambda folder: {"location": "."}, "it is a directory"),
        (lambda folder: {"location": ""}, "without a usable location"),
        (lambda folder: {"location": "C:\\w.bin"}, "a path relative"),
        (lambda folder: {"location": "w.bin", "offset": "4"}, "initializer 'w'"),
        (lambda folder: {"location": "w.bin", "offset": "40"}, "bytes 40 to"),
        (lambda folder: {"location": "w.bin", "length": "33"}, "bytes 0 to 33 .*the file has 32"),
        (lambda folder: {"location": "w.bin", "offset": "-1"}, "offset '-1': a non-negative integer"),
        (lambda folder: {"location": "w.bin", "length": "9" * 30}, "a non-negative integer"),
        (lambda folder: {"location": "w.bin", "offset": "9" * 19}, "bytes 9999999999999999999"),
    ],
)
def test_external_data_attacks(tmp_path: Path, entries: Callable[[Path], dict[str, str]], reason: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "model-outside.bin").write_bytes(floats(4, 2).tobytes())
    (folder / "w.bin").write_bytes(floats(4, 2).tobytes())
    path = external_model(folder / "m.onnx", **entries(folder))
    with pytest.raises(UnsupportedModelError, match=reason):
        import_model(path)


def test_a_missing_data_file_is_one_problem(tmp_path: Path) -> None:
    constants = {name: floats(4, 4) for name in "abc"}
    model = parse("h = MatMul (x, a) i = MatMul (h, b) y = MatMul (i, c)", constants=constants)
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(UnsupportedModelError) as caught:
        import_model(path)
    assert str(caught.value).splitlines()[1:] == [
        f"  - external data file 'm.onnx.data' is missing from folder {tmp_path}; initializer 'a' and 2 more lie in it"
    ]


@pytest.mark.parametrize(
    ("body", "weights", "node"),
    [
        ("y = MatMul (x, w)", "float[4, 2] w", "MatMul"),
        ("y = Gemm (x, w, b)", "float[4, 2] w, float[2] b", "Gemm"),
        ("y = BatchNormalization (x, w, w, w, w)", "float[4] w", "BatchNormalization"),
    ],
)
def test_parameters_that_were_not_exported_are_named(body: str, weights: str, node: str) -> None:
    message = refused(parse(body, inputs=f"float[N, 4] x, {weights}"))
    assert "1 problem\n" in message
    assert f"({node}): 'w'" in message
    assert "an initializer is expected, found a model input; export the model with its parameters" in message


def test_a_model_without_batch_axis_is_told_so() -> None:
    constants = {"axes": np.array([0]), "w": floats(8, 3, 3, 3)}
    model = parse("u = Unsqueeze (x, axes) y = Conv (u, w)", inputs="float[3, 8, 8] x", constants=constants)
    assert "axis 0 of input 'x' [3, 8, 8] is taken for the batch axis; where it is none, export" in refused(model)
    assert "with a batch axis in front" in refused(parse("y = Relu (x)", inputs="float[4] x", outputs="float[4] y"))


def test_external_data_need_a_file() -> None:
    model = parse("y = MatMul (x, w)")
    tensor = TensorProto(name="w", dims=[4, 2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    model.graph.initializer.append(tensor)
    assert "the model was not given as a file" in refused(model)


def test_double_precision_is_named() -> None:
    model = parse("h = Cast <to=11> (x) p = MatMul (h, w) y = Cast <to=1> (p)", constants={"w": np.ones((4, 2), "f8")})
    assert "it computes in float64; export the model in float32" in refused(model)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = com.microsoft.nchwc.Conv (x, w)", "laid this model out for one machine"),
        ("y = com.microsoft.Attention (x, w)", "Attention.*save the model without its optimisations"),
        ('y = com.microsoft.FusedGemm <activation="Swish"> (x, w)', "the activation 'Swish' is not known"),
        ('y = com.microsoft.FusedConv <activation="Clip", activation_params=[1.0]> (x, w)', "Clip has 2 parameters"),
    ],
)
def test_what_onnx_runtime_fused_and_nobody_else_reads(body: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        import_model(parse(body, constants={"w": floats(4, 2)}))
