"""The node tests of onnx.backend.test: none of a claimed operator fails, and docs/coverage.md says how they fare."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_backend import Outcome, as_network, cases, document, run_all, tolerance
from tac_engine.converters.coverage import claimed_ops
from tac_engine.converters.evaluate import ReferenceModel

from tac_engine.errors import TacError

COVERAGE = Path(__file__).parents[2] / "docs/coverage.md"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    return run_all(tmp_path_factory.mktemp("cases"))


def test_no_case_of_a_claimed_operator_fails(outcomes: list[Outcome]) -> None:
    failed = [f"{outcome.case}: {outcome.reason}" for outcome in outcomes if outcome.status == "failed"]
    assert not failed, "\n".join(failed)
    assert sum(outcome.status == "passed" for outcome in outcomes) > 440


def test_a_case_of_integers_keeps_its_operator_behind_floats() -> None:
    found = {case.name: as_network(op, case) for op, case in cases() if case.name in ("test_and2d", "test_less_int8")}
    for model, feeds, expected in found.values():
        assert all(array.dtype == np.float32 for array in (*feeds.values(), *expected.values()))
        assert [item.type.tensor_type.elem_type for item in model.graph.input] == [onnx.TensorProto.FLOAT] * 2
    types = {name: [node.op_type for node in model.graph.node] for name, (model, _, _) in found.items()}
    assert types == {
        "test_and2d": ["Cast", "Cast", "And", "Cast"],
        "test_less_int8": ["QuantizeLinear", "QuantizeLinear", "Less", "Cast"],
    }
    assert found["test_less_int8"][0].graph.initializer[1].data_type == onnx.TensorProto.INT8


def test_refusals_have_reasons(outcomes: list[Outcome]) -> None:
    assert all(outcome.reason for outcome in outcomes if outcome.status == "refused")


def test_the_document_is_what_the_tests_give(outcomes: list[Outcome]) -> None:
    text = COVERAGE.read_text()
    version = re.search(r"^onnx (\S+):", text, re.MULTILINE)
    assert version is not None
    if version[1] != onnx.__version__:
        pytest.skip(f"docs/coverage.md is about onnx {version[1]}, this is {onnx.__version__}")
    assert text == document(outcomes), "run python tools/coverage.py and commit docs/coverage.md"


def test_the_reference_gives_what_the_cases_expect() -> None:
    """What verify compares with, on its own."""
    agreeing = 0
    for op, case in cases():
        if op not in claimed_ops():
            continue
        model, feeds, expected = as_network(op, case)
        try:
            found = ReferenceModel(model).run(feeds, batch_size=1 << 20)
        except TacError:
            continue
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, tolerance(case), case.atol, err_msg=case.name)
            assert found[name].shape == array.shape, case.name
        agreeing += 1
    assert agreeing > 500
