"""The node tests of onnx.backend.test, each case through convert and run."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests
from tac_engine.converters.coverage import ELEMENTWISE_OPS, claimed_ops
from tac_engine.converters.graph import Array
from tac_engine.converters.onnx_file import HALF_TYPES

import tac_engine
from tac_engine.errors import TacError

# Positions that networks have constants at: shapes, axes, weights and parameters. The tests feed all of them. (Where
# MatMul's second operand has more than two axes, it is that of attention and no weight.)
_CONSTANT_INPUTS: dict[str, frozenset[int]] = dict.fromkeys(
    """BatchNormalization Clip Conv ConvInteger ConvTranspose DequantizeLinear Dropout Expand Gather Gemm
    GroupNormalization InstanceNormalization LayerNormalization MatMul MatMulInteger PRelu Pad QLinearConv QLinearMatMul
    QuantizeLinear ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Reshape Resize ScatterND Slice Split Squeeze Unsqueeze""".split(),
    frozenset(range(1, 10)),
)
_HALVES = {onnx.helper.tensor_dtype_to_np_dtype(kind) for kind in HALF_TYPES}

_OPSET = 13  # of cases that nodes are added to, at least where their own operators are the same there


_FLOAT = (onnx.TensorProto.FLOAT, *HALF_TYPES, onnx.TensorProto.UNDEFINED)  # undefined: a sequence, which stays one
_INT64 = onnx.TensorProto.INT64


@dataclass(frozen=True)
class Outcome:
    """``status``: "passed", "refused" with the reason, or "failed" with what went wrong."""

    op: str
    case: str
    status: str
    reason: str = ""


def run_all(folder: Path) -> list[Outcome]:
    """Every case of every claimed operator, in a folder for its files."""
    claimed = claimed_ops()
    return [run_case(op, case, folder) for op, case in cases() if op in claimed]


def cases() -> list[tuple[str, TestCase]]:
    """The cases with the operator that each is about; an operator spelled out as a function is about that operator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx computes some expected results with infinities
        found = load_model_tests(kind="node")
    about = {case.name: case.model.graph.node[0].op_type for case in found if "_expanded" not in case.name}
    return [(about[case.name.split("_expanded")[0]], case) for case in found]


def run_case(op: str, case: TestCase, folder: Path) -> Outcome:
    try:
        model, feeds, expected = as_network(op, case)
        source, target = folder / "case.onnx", folder / "case.tacbin"
        source.write_bytes(model.SerializeToString())
        tac_engine.convert(source, target, fc_precision="f32")
        result = tac_engine.load(target).run(feeds)
    except TacError as error:
        return Outcome(op, case.name, "refused", reason_of(str(error)))
    except Exception as error:
        return Outcome(op, case.name, "failed", f"{type(error).__name__}: {error}")
    try:
        for name, array in expected.items():
            np.testing.assert_allclose(result[name], array, tolerance(case), case.atol, err_msg=name)
            assert result[name].shape == array.shape, f"shape {array.shape} is expected, found {result[name].shape}"
    except AssertionError as error:
        return Outcome(op, case.name, "failed", str(error).strip())
    return Outcome(op, case.name, "passed")


def tolerance(case: TestCase) -> float:
    """The case's, or the rounding of its 16-bit floats, which are float32 here."""
    kinds = {item.type.tensor_type.elem_type for item in (*case.model.graph.input, *case.model.graph.output)}
    return max(
        [case.rtol, *(2.0 ** -(7 if kind == onnx.TensorProto.BFLOAT16 else 10) for kind in kinds & set(HALF_TYPES))]
    )


def as_network(op: str, case: TestCase) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, Array]]:
    """The case as a network would have it: (model, inputs, expected outputs).

    Parameters become initializers, and so does an operand of lower rank than another, which has no batch axis. The
    inputs of an elementwise operator that have no batch axis and one more are given axes of size 1 in front.
    """
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    arrays, results = ([_as_array(value) for value in values] for values in case.data_sets[0])
    feeds = dict(zip((item.name for item in model.graph.input), arrays, strict=True))
    expected = dict(zip((item.name for item in model.graph.output), results, strict=True))
    nodes = model.graph.node
    rank = max((array.ndim for array in feeds.values()), default=0)
    for position, name in enumerate(nodes[0].input if len(nodes) == 1 else list(feeds)):
        if name not in feeds:
            continue
        is_constant = position in _CONSTANT_INPUTS.get(op, ()) and not (op == "MatMul" and feeds[name].ndim > 2)
        if is_constant or feeds[name].ndim < rank:
            model.graph.initializer.append(numpy_helper.from_array(feeds.pop(name), name))
    if len(nodes) == 1 and op in ELEMENTWISE_OPS and rank < 2:
        feeds = {name: array.reshape(1, -1) for name, array in feeds.items()}
        expected = {name: array.reshape(1, -1) for name, array in expected.items()}
    feeds, expected = {name: np.ascontiguousarray(array) for name, array in feeds.items()}, dict(expected)
    inputs = [item for item in model.graph.input if item.name in feeds]
    del model.graph.input[:]
    for item in inputs:
        kind = item.type.tensor_type.elem_type
        model.graph.input.append(onnx.helper.make_tensor_value_info(item.name, kind, feeds[item.name].shape))
    _cast_to_float(model, feeds, expected)
    return model, feeds, expected


def _cast_to_float(model: onnx.ModelProto, feeds: dict[str, Array], expected: dict[str, Array]) -> None:
    """Gives a case of other element types float32 inputs and outputs, by nodes in front of it and behind it.

    Left as it is where float32 does not hold every one of its numbers.
    """
    inputs = [item for item in model.graph.input if item.type.tensor_type.elem_type not in _FLOAT]
    outputs = [item for item in model.graph.output if item.type.tensor_type.elem_type not in (*_FLOAT, _INT64)]
    if not (inputs or outputs) or not all(map(_is_exact, (*feeds.values(), *expected.values()))):
        return
    opset = model.opset_import[0]
    if opset.version < _OPSET and all(_is_the_same(node.op_type, opset.version) for node in model.graph.node):
        opset.version = _OPSET
    before, after = [], []
    for item in inputs:
        source = f"{item.name}/float"
        before.append(_from_float(model, source, item.name, item.type.tensor_type.elem_type))
        feeds[source] = feeds.pop(item.name).astype(np.float32)
        item.name, item.type.tensor_type.elem_type = source, onnx.TensorProto.FLOAT
    for item in outputs:
        result = f"{item.name}/float"
        after.append(onnx.helper.make_node("Cast", [item.name], [result], to=onnx.TensorProto.FLOAT))
        expected[result] = expected.pop(item.name).astype(np.float32)
        item.name, item.type.tensor_type.elem_type = result, onnx.TensorProto.FLOAT
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _is_the_same(op: str, opset: int) -> bool:
    """Whether the operator has not changed up to _OPSET."""
    versions = (onnx.defs.get_schema(op, version).since_version for version in (opset, _OPSET))
    return len(set(versions)) == 1


def _from_float(model: onnx.ModelProto, source: str, result: str, kind: int) -> onnx.NodeProto:
    """A Cast; for small integers a QuantizeLinear, as networks have it."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    if dtype.kind not in "iu" or dtype.itemsize > 2 or model.opset_import[0].version < _OPSET:
        return onnx.helper.make_node("Cast", [source], [result], to=kind)
    names = [f"{source}/scale", f"{source}/zero_point"]
    values = (np.asarray(1, np.float32), np.zeros((), dtype))
    model.graph.initializer.extend(numpy_helper.from_array(*pair) for pair in zip(values, names, strict=True))
    return onnx.helper.make_node("QuantizeLinear", [source, *names], [result])


def _is_exact(array: Array) -> bool:
    if array.dtype.kind not in "biuf":
        return False
    with np.errstate(all="ignore"):
        return bool(
            np.array_equal(array.astype(np.float32).astype(array.dtype), array, equal_nan=array.dtype.kind == "f")
        )


def _as_array(value: Any) -> Array:
    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    return array.astype(np.float32) if array.dtype in _HALVES else array


def reason_of(message: str) -> str:
    """The first reason of an error, without the names and numbers of the case."""
    lines = [line.strip() for line in message.splitlines()]
    text = next((line[2:] for line in lines if line.startswith("- ")), lines[0])
    text = re.sub(r"^node '[^']*' \([\w.]*\): ", "", text)
    text = re.sub(r"input '[^']*': element type float32 is expected, .*", "an input that is not float32", text)
    text = re.sub(r"input '[^']*': a batch axis and at .*", "an input without a batch axis and one more", text)
    text = re.sub(r"'[^']*'", "'...'", text)
    text = re.sub(r"\[[^\]]*\]", "[...]", text)
    return re.sub(r"(?<![-\w])-?\d[\d.e+]*\b(?!-D)", "n", text)


def document(outcomes: list[Outcome]) -> str:
    """docs/coverage.md."""
    count = Counter(outcome.status for outcome in outcomes)
    served = claimed_ops()
    lines = [
        "# Operators",
        "",
        "Which ONNX operators are converted, how, and how the node tests of `onnx.backend.test` fare. Written by",
        "`python tools/coverage.py`; a test compares it with what the tests give.",
        "",
        f"onnx {onnx.__version__}: {len(outcomes)} cases of {len(served)} operators, {count['passed']} pass,"
        f" {count['refused']} are refused with a reason, {count['failed']} fail.",
        "",
        "- A case runs through `convert` and an Engine with the tolerance that the case states, its first axis being",
        "  the batch. Every input must be float32 with a batch axis, and nothing may mix the samples of a batch: most",
        "  refusals are cases of other element types, of vectors and scalars, or of work along the first axis.",
        "- A case whose inputs or outputs are integers, booleans or doubles gets float32 ones where float32 holds",
        "  each of its numbers: a Cast in front (for 8- and 16-bit integers a QuantizeLinear of scale 1)",
        "  and one behind. Its own operator keeps the case's element types. A case of an opset before 13 moves to 13",
        "  for that if its operators are the same there.",
        "- Where a test feeds shapes, axes, weights or other parameters as inputs they are made initializers, as",
        "  networks have them; so is an operand of lower rank than another.",
        "- Vectors and scalars of an elementwise operator are given axes of size 1 in front.",
        "- An operator spelled out as an ONNX function (`..._expanded`) counts as a case of that operator.",
        "- On constants alone many more operators are computed while converting (`converters/result_size.py`).",
        "- The operators of QONNX and of ONNX Runtime have tests of their own in `tests/converters/`.",
        "",
        "| operator | how | passed | refused | most frequent reasons |",
        "|---|---|---|---|---|",
    ]
    for op, how in served.items():
        own = [outcome for outcome in outcomes if outcome.op == op]
        status = Counter(outcome.status for outcome in own)
        refused = Counter(outcome.reason for outcome in own if outcome.status == "refused")
        ordered = sorted(refused.items(), key=lambda item: (-item[1], item[0]))[:2]
        reasons = "; ".join(f"{reason} ({number})" for reason, number in ordered).replace("|", "\\|")
        lines.append(f"| {op} | {how} | {status['passed']} | {status['refused']} | {reasons} |")
    return "\n".join(lines) + "\n"
