"""Importing ONNX files: normal forms, shapes with a symbolic batch, constant folding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import floats, parse
from tac_engine.converters.evaluate import ReferenceModel, evaluate_node
from tac_engine.converters.graph import Array, Batch, Graph
from tac_engine.converters.onnx_import import import_model

from tac_engine.errors import InvalidInputError, UnsupportedModelError

N = Batch()
IMAGE = "float[N, 3, 8, 8] x"


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def run_graph(graph: Graph, feeds: dict[str, Array]) -> dict[str, Array]:
    values = {**graph.constants, **feeds}
    for node in graph.nodes:
        inputs = [values[name] if name else None for name in node.inputs]
        values.update(zip(node.outputs, evaluate_node(node, inputs, graph.opset), strict=False))
    return {name: values[name] for name in graph.outputs}


def assert_same_results(model: onnx.ModelProto, x: Array) -> Graph:
    """The imported graph computes what the file says, and every shape is the one that comes out."""
    graph = import_model(model)
    expected = ReferenceModel(model).run({"x": x})
    found = run_graph(graph, {"x": x})
    for name in graph.outputs:
        np.testing.assert_array_equal(found[name], expected[name])
        shape = tuple(dim.factor * x.shape[0] if isinstance(dim, Batch) else dim for dim in graph.shapes[name])
        assert found[name].shape == shape
        assert found[name].dtype == graph.dtypes[name]
    return graph


def test_every_tensor_has_shape_and_dtype() -> None:
    model = parse(
        "c = Conv (x, w) b = Less (c, z) f = Cast <to=1> (b) y = GlobalAveragePool (f)",
        inputs=IMAGE,
        constants={"w": floats(5, 3, 3, 3), "z": np.float32(0)},
    )
    graph = assert_same_results(model, floats(2, 3, 8, 8))
    assert graph.shapes["c"] == (N, 5, 6, 6)
    assert graph.dtypes["b"] == np.bool_
    assert graph.shapes["y"] == (N, 5, 1, 1)
    names = {name for node in graph.nodes for name in (*node.inputs, *node.outputs) if name}
    assert names <= set(graph.shapes)
    assert set(graph.shapes) == set(graph.dtypes)


def test_conv_form_is_explicit() -> None:
    model = parse(
        'y = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (x, w)', inputs=IMAGE, constants={"w": floats(2, 3, 3, 3)}
    )
    (node,) = import_model(model).nodes
    assert node.inputs == ["x", "w", ""]
    assert node.attrs == {
        "kernel_shape": [3, 3],
        "strides": [2, 2],
        "pads": [0, 0, 1, 1],
        "dilations": [1, 1],
        "group": 1,
    }


FLATTENS = [
    "y = Flatten (x)",
    "y = Reshape (x, minus)",
    "y = Reshape (x, zero)",
    "s = Shape (x) n = Gather <axis=0> (s, i0) u = Unsqueeze (n, a0) t = Concat <axis=0> (u, m1) y = Reshape (x, t)",
    "s = Shape <start=0, end=1> (x) t = Concat <axis=0> (s, m1) y = Reshape (x, t)",
    "s = Shape (x) n = Slice (s, a0, a1) t = Concat <axis=0> (n, k) y = Reshape (x, t)",
    "s = Shape (x) n, r = Split <axis=0> (s, halves) p = ReduceProd <keepdims=1> (r) y = Flatten (x)",
]
SHAPE_CONSTANTS = {
    "minus": np.array([-1, 192]),
    "zero": np.array([0, -1]),
    "i0": np.array(0),
    "a0": np.array([0]),
    "a1": np.array([1]),
    "m1": np.array([-1]),
    "k": np.array([192]),
    "halves": np.array([1, 3]),
}


@pytest.mark.parametrize("body", FLATTENS)
def test_every_spelling_of_flatten_is_one_reshape(body: str) -> None:
    graph = assert_same_results(parse(body, inputs=IMAGE, constants=SHAPE_CONSTANTS), floats(2, 3, 8, 8))
    assert ops(graph) == ["Reshape"]
    assert graph.nodes[0].attrs == {"shape": (N, 192)}
    assert graph.constants == {}


@pytest.mark.parametrize(
    ("target", "expected"),
    [([1, 192], (N, 192)), ([1, -1], (N, 192)), ([-1, 192], (N, 192)), ([1, 3, 64], (N, 3, 64))],
)
def test_literal_batch_in_a_reshape_becomes_n(target: list[int], expected: tuple[object, ...]) -> None:
    model = parse("y = Reshape (x, t)", inputs="float[1, 3, 8, 8] x", constants={"t": np.array(target)})
    graph = import_model(model)
    assert graph.inputs[0].shape == (N, 3, 8, 8)
    assert graph.shapes["y"] == expected
    assert run_graph(graph, {"x": floats(4, 3, 8, 8)})["y"].shape[0] == 4


def test_literal_batch_larger_than_one() -> None:
    model = parse("y = Reshape (x, t)", inputs="float[8, 6] x", constants={"t": np.array([16, 3])})
    assert import_model(model).shapes["y"] == (Batch(2), 3)


def test_reshape_that_fixes_a_dynamic_batch_is_named() -> None:
    model = parse("y = Reshape (x, t)", inputs="float[N, 6] x", constants={"t": np.array([1, 6])})
    with pytest.raises(UnsupportedModelError, match=r"Reshape.*fixes the batch size"):
        import_model(model)


def test_reshape_that_mixes_samples_is_named() -> None:
    model = parse("t = Transpose <perm=[1,0]> (x) y = Reshape (t, s)", constants={"s": np.array([-1, 4])})
    with pytest.raises(UnsupportedModelError, match="mixes the samples of a batch"):
        import_model(model)


def test_latent_weights_and_constant_nodes_are_folded() -> None:
    model = parse(
        "one = Constant <value_float=1.0> () s = Sign (w) t = Mul (s, one) y = MatMul (x, t)",
        constants={"w": floats(4, 2)},
    )
    graph = assert_same_results(model, floats(3, 4))
    assert ops(graph) == ["MatMul"]
    np.testing.assert_array_equal(graph.constants["t"], np.sign(floats(4, 2)))


def test_identity_and_dropout_disappear_and_output_names_stay() -> None:
    graph = assert_same_results(parse("a = Relu (x) b = Dropout (a) y = Identity (b)"), floats(3, 4))
    assert ops(graph) == ["Relu"]
    assert graph.nodes[0].outputs == ["y"]


def test_identity_between_two_outputs_stays_as_reshape() -> None:
    model = parse("a = Relu (x) y = Identity (a)", outputs="float[N, 4] a, float[N, 4] y")
    graph = assert_same_results(model, floats(3, 4))
    assert ops(graph) == ["Relu", "Reshape"]


def test_identity_from_input_to_output_stays_as_reshape() -> None:
    assert ops(assert_same_results(parse("y = Identity (x)"), floats(3, 4))) == ["Reshape"]


def test_full_shape_bias_is_collapsed_per_channel() -> None:
    bias = np.broadcast_to(np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1), (1, 3, 8, 8)).copy()
    graph = assert_same_results(parse("y = Add (x, b)", inputs=IMAGE, constants={"b": bias}), floats(2, 3, 8, 8))
    assert graph.constants[graph.nodes[0].inputs[1]].shape == (1, 3, 1, 1)


def test_bias_that_varies_is_kept() -> None:
    graph = import_model(parse("y = Add (x, b)", inputs=IMAGE, constants={"b": floats(1, 3, 8, 8)}))
    assert graph.nodes[0].inputs[1] == "b"


def test_constant_that_gives_the_result_its_shape_is_kept() -> None:
    graph = assert_same_results(parse("y = Add (x, b)", constants={"b": np.ones((3, 1, 4), np.float32)}), floats(2, 4))
    assert graph.constants[graph.nodes[0].inputs[1]].shape == (3, 1, 4)
    assert graph.shapes["y"] == (3, N, 4)


def test_bias_expanded_to_the_shape_of_the_data() -> None:
    model = parse("s = Shape (x) e = Expand (b, s) y = Add (x, e)", inputs=IMAGE, constants={"b": floats(1, 3, 1, 1)})
    graph = assert_same_results(model, floats(2, 3, 8, 8))
    assert ops(graph) == ["Add"]
    assert graph.constants[graph.nodes[0].inputs[1]].shape == (1, 3, 1, 1)


def test_where_with_ones_like() -> None:
    model = parse(
        "s = Shape (x) o = ConstantOfShape <value = float[1] {1.0}> (s) m = Neg (o) c = GreaterOrEqual (x, z)"
        " y = Where (c, o, m)",
        constants={"z": np.float32(0)},
    )
    graph = assert_same_results(model, floats(3, 4))
    assert ops(graph) == ["GreaterOrEqual", "Where"]


MASK = "c = Less (x, z) p = NonZero (c) q = Transpose <perm=[1, 0]> (p)"
COUNT = "f = Reshape (c, minus) i = Cast <to=7> (f) n = ReduceSum <keepdims=1> (i) u = Expand (v, n)"
MASK_CONSTANTS = {"z": np.float32(0), "minus": np.array([-1]), "v": np.float32(-1)}


def test_assignment_to_a_mask_is_a_where() -> None:
    ones = np.ones((1, 3, 8, 8), np.float32)
    body = f"{MASK} {COUNT} y = ScatterND (o, q, u)"
    model = parse(body, inputs="float[1, 3, 8, 8] x", constants={**MASK_CONSTANTS, "o": ones})
    assert ops(assert_same_results(model, floats(1, 3, 8, 8))) == ["Less", "Where"]


def test_assignment_to_a_mask_of_run_time_data_is_a_where() -> None:
    body = f"r = Relu (x) {MASK} {COUNT} y = ScatterND (r, q, u)"
    model = parse(body, inputs="float[N, 3, 8, 8] x", constants=MASK_CONSTANTS)
    assert ops(assert_same_results(model, floats(2, 3, 8, 8))) == ["Relu", "Less", "Where"]


def test_a_mask_of_rows_is_no_where() -> None:
    """Where would broadcast the mask; the scatter writes the first column only."""
    body = f"h = Slice (x, from, to, axes) {MASK.replace('(x, z)', '(h, z)')} {COUNT} y = ScatterND (x, q, u)"
    slices = {"from": np.array([0]), "to": np.array([1]), "axes": np.array([1])}
    model = parse(body, constants={**MASK_CONSTANTS, **slices})
    with pytest.raises(
        UnsupportedModelError, match=r"a mask of shape \[N, 1\] selects from a tensor of shape \[N, 4\]"
    ):
        import_model(model)


def test_values_computed_at_run_time_are_no_where() -> None:
    body = f"{MASK} u = Reshape (x, minus) y = ScatterND (x, q, u)"
    with pytest.raises(UnsupportedModelError, match=r"NonZero.*only y\[mask\] = constant"):
        import_model(parse(body, constants=MASK_CONSTANTS))


@pytest.mark.parametrize(
    ("activation", "params", "expected"),
    [
        ("Relu", "", ["Conv", "Add", "Relu"]),
        ("Clip", ", activation_params=[-0.5, 0.5]", ["Conv", "Add", "Clip"]),
        ("LeakyRelu", ", activation_params=[0.25]", ["Conv", "Add", "LeakyRelu"]),
        ("HardSigmoid", ", activation_params=[0.2, 0.5]", ["Conv", "Add", "HardSigmoid"]),
    ],
)
def test_fused_conv_of_onnx_runtime(activation: str, params: str, expected: list[str]) -> None:
    body = f'y = com.microsoft.FusedConv <activation="{activation}"{params}, pads=[1, 1, 1, 1]> (x, w, b, x)'
    constants = {"w": floats(3, 3, 3, 3), "b": floats(3, seed=1)}
    model = parse(body, inputs=IMAGE, outputs="float[N, 3, 8, 8] y", constants=constants)
    graph = assert_same_results(model, floats(2, 3, 8, 8))
    assert ops(graph) == expected
    x = floats(2, 3, 8, 8)
    plain = parse("c = Conv <pads=[1, 1, 1, 1]> (x, w, b) y = Add (c, x)", inputs=IMAGE, constants=constants)
    total = ReferenceModel(plain).run({"x": x})["y"]
    ideal = {
        "Relu": np.maximum(total, 0),
        "Clip": np.clip(total, -0.5, 0.5),
        "LeakyRelu": np.where(total < 0, np.float32(0.25) * total, total),
        "HardSigmoid": np.clip(np.float32(0.2) * total + np.float32(0.5), 0, 1),
    }
    np.testing.assert_allclose(run_graph(graph, {"x": x})["y"], ideal[activation], rtol=0, atol=1e-6)


def test_fused_gemm_of_onnx_runtime() -> None:
    body = 'y = com.microsoft.FusedGemm <activation="LeakyRelu", activation_alpha=0.5, alpha=2.0> (x, w, b)'
    constants = {"w": floats(4, 2), "b": floats(2, seed=1)}
    graph = assert_same_results(parse(body, constants=constants), floats(3, 4))
    assert ops(graph) == ["Gemm", "LeakyRelu"]
    assert graph.nodes[0].attrs["alpha"] == 2.0
    assert graph.nodes[1].attrs["alpha"] == 0.5


def test_ones_of_an_unknown_batch() -> None:
    body = "s = Shape (x) o = Expand (one, s) m = Neg (o) c = GreaterOrEqual (x, z) y = Where (c, o, m)"
    model = parse(body, constants={"z": np.float32(0), "one": np.float32(1)})
    assert ops(assert_same_results(model, floats(3, 4))) == ["GreaterOrEqual", "Where"]


def test_pad_chain_is_folded_into_attributes() -> None:
    model = parse(
        "p = Concat <axis=0> (a, b) q = Cast <to=7> (p) y = Pad (x, q, v)",
        inputs=IMAGE,
        constants={"a": np.array([0, 0, 1, 2]), "b": np.array([0, 0, 3, 4]), "v": np.float32(-1)},
    )
    graph = assert_same_results(model, floats(2, 3, 8, 8))
    (node,) = graph.nodes
    assert node.attrs == {"pads": [0, 0, 1, 2, 0, 0, 3, 4], "mode": "constant"}
    assert node.inputs == ["x", "v"]
    assert graph.shapes["y"] == (N, 3, 12, 14)


NORMAL_FORMS = [
    ("y = Clip <min=-1.0, max=1.0> (x)", 9, "Clip", {}),
    ("y = Softmax <axis=-1> (x)", 13, "Softmax", {"axis": 1}),
    ("y = Softmax (x)", 9, "Softmax", {"axis": 1}),
    ("y = ReduceMean <axes=[-1], keepdims=0> (x)", 13, "ReduceMean", {"axes": [1], "keepdims": 0}),
    ("y = ArgMax <axis=-1> (x)", 11, "ArgMax", {"axis": 1, "keepdims": 1, "select_last_index": 0}),
    ("y = Unsqueeze <axes=[-1]> (x)", 11, "Reshape", {"shape": (N, 4, 1)}),
    ("y = LeakyRelu (x)", 9, "LeakyRelu", {"alpha": pytest.approx(0.01)}),
    (
        "y = Slice <axes=[1], starts=[-3], ends=[100]> (x)",
        9,
        "Slice",
        {"axes": [1], "starts": [1], "ends": [4], "steps": [1]},
    ),
    ("y = Concat <axis=-1> (x, x)", 11, "Concat", {"axis": 1}),
    ("y = Transpose (x)", 11, "Transpose", {"perm": [1, 0]}),
]


@pytest.mark.parametrize(("body", "opset", "op", "attrs"), NORMAL_FORMS)
def test_normal_forms(body: str, opset: int, op: str, attrs: dict[str, object]) -> None:
    graph = import_model(parse(body, opset=opset))
    (node,) = graph.nodes
    assert node.op == op
    assert node.attrs == attrs
    values = run_graph(graph, {"x": floats(3, 4)})
    np.testing.assert_array_equal(values["y"], ReferenceModel(parse(body, opset=opset)).run({"x": floats(3, 4)})["y"])


def test_qonnx_domains_are_one_even_undeclared() -> None:
    for domain in ("onnx.brevitas", "finn.custom_op.general", "finn", "qonnx.custom_op.general"):
        node = helper.make_node("BipolarQuant", ["x", "s"], ["y"], domain=domain)
        model = parse("t = Relu (x)", constants={"s": np.float32(1)})
        del model.graph.node[:]
        model.graph.node.append(node)
        graph = import_model(model)
        assert (graph.nodes[0].domain, graph.nodes[0].op) == ("qonnx", "BipolarQuant")


def test_int_quant_is_quant_with_upper_case_rounding() -> None:
    attrs = {"signed": 1, "narrow": 1, "rounding_mode": "round"}
    node = helper.make_node("IntQuant", ["x", "s", "z", "b"], ["y"], domain="qonnx.custom_op.general", **attrs)
    model = parse("t = Relu (x)", constants={"s": np.float32(1), "z": np.float32(0), "b": np.float32(2)})
    del model.graph.node[:]
    model.graph.node.append(node)
    (imported,) = import_model(model).nodes
    assert imported.op == "Quant"
    assert imported.attrs == {"signed": 1, "narrow": 1, "rounding_mode": "ROUND"}


def test_initializers_may_be_listed_as_inputs() -> None:
    model = parse("y = MatMul (x, w)", inputs="float[N, 4] x, float[4, 2] w", constants={"w": floats(4, 2)})
    assert [item.name for item in import_model(model).inputs] == ["x"]


def test_model_functions_are_inlined() -> None:
    text = """<ir_version: 8, opset_import: ["": 18, "local": 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = local.twice (x) }
        <domain: "local", opset_import: ["": 18]> twice (a) => (b) { b = Add (a, a) }"""
    graph = assert_same_results(onnx.parser.parse_model(text), floats(2, 4))
    assert ops(graph) == ["Add"]


def test_dead_nodes_are_dropped() -> None:
    graph = import_model(parse("a = Neg (x) y = Relu (x)"))
    assert ops(graph) == ["Relu"]
    assert "a" not in graph.shapes


def test_unsorted_nodes_are_sorted() -> None:
    model = parse("a = Neg (x) y = Relu (a)")
    nodes = [model.graph.node[1], model.graph.node[0]]
    del model.graph.node[:]
    model.graph.node.extend(onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes)
    assert ops(import_model(model)) == ["Neg", "Relu"]


def test_input_shapes_resolve_dynamic_axes() -> None:
    model = parse("y = Flatten (x)", inputs="float[N, 3, H, W] x")
    with pytest.raises(
        UnsupportedModelError, match=r"input 'x'.*axes 2 and 3 are dynamic.*input_shapes=\{'x'"
    ) as caught:
        import_model(model)
    assert "--input-shape 'x:N,3,...,...'" in str(caught.value)
    assert import_model(model, input_shapes={"x": (None, 3, 4, 4)}).shapes["y"] == (N, 48)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (None, 4)}, "names 'z', but the model's inputs are 'x'"),
        ({"x": (None, 5)}, r"but the model's input has shape \[N, 4\]"),
        ({"x": (None, 4, 4)}, "but the model's input has shape"),
        ({"x": (None, 0)}, "neither None nor a positive integer"),
    ],
)
def test_wrong_input_shapes_are_named(shapes: dict[str, tuple[int | None, ...]], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        import_model(parse("y = Relu (x)"), input_shapes=shapes)


def test_import_from_a_path_names_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(parse("y = Relu (x)"), path)
    assert import_model(path).source == str(path)


def test_bfloat16_constant_feeding_a_cast() -> None:
    model = parse("c = Cast <to=1> (w) y = MatMul (x, c)")
    tensor = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    raw = np.full(8, 0x3F80, np.uint16)
    tensor.data_type, tensor.raw_data = TensorProto.BFLOAT16, raw.tobytes()
    model.graph.initializer.append(tensor)
    graph = import_model(model)
    np.testing.assert_array_equal(graph.constants["c"], np.ones((4, 2), np.float32))
