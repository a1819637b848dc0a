from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tac_engine import FormatError, TacError, UnsupportedModelError, _core


def small_writer() -> _core.ModelWriter:
    writer = _core.ModelWriter()
    x = writer.add_tensor("x", [4])
    y = writer.add_tensor("y", [2])
    fields = {"input": x, "output": y, "weights": np.arange(8, dtype=np.float32), "bias": np.zeros(2, np.float32)}
    writer.add_op("linear", fields, "fc", "Gemm fc")
    writer.add_input(x)
    writer.add_output(y)
    writer.set_metadata("{}")
    return writer


def test_the_op_table_of_the_documentation_is_the_one_of_the_core() -> None:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text().split("## Ops")[1]
    documented = {
        int(code): (name, [tuple(field.split(" ")) for field in fields.split(", ")])
        for code, name, fields in re.findall(r"^\| (\d+) \| (\w+) \| (.+) \|$", text, re.MULTILINE)
    }
    actual = {
        spec["code"]: (spec["name"], [(field["name"], field["type"]) for field in spec["fields"]])
        for spec in _core.op_specs()
    }
    assert documented == actual


def test_inspect_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "m.tacbin"
    small_writer().save(path)
    model = _core.inspect(path)
    assert [op["name"] for op in model["ops"]] == ["fc"]
    assert model["ops"][0]["fields"]["weights"] == {"type": "f32[]", "size": 8, "bytes": 32}
    assert model["ops"][0]["bytes"] == 40
    assert model["tensors"][0] == {
        "name": "x",
        "dtype": "f32",
        "dims": [4],
        "encoding": None,
        "is_constant": False,
        "bytes": 0,
    }
    assert model["file_bytes"] == path.stat().st_size == len(small_writer().to_bytes())


def test_every_truncation_is_a_format_error(tmp_path: Path) -> None:
    whole = small_writer().to_bytes()
    path = tmp_path / "m.tacbin"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            _core.inspect(path)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("linear", {"input": 0, "output": 1, "weight": np.zeros(8, np.float32)}, "'weight': no such field"),
        ("linear", {"input": 0}, "'output': missing"),
        ("linear", {"input": 0, "output": 1, "weights": np.zeros(8)}, "expected a C-contiguous array of float32"),
        ("linear", {"input": "x", "output": 1}, "'input': cannot take"),
        ("pool", {"input": 0, "output": 1, "kind": "median"}, "no such kind 'median'"),
        ("spline", {}, "no such kind 'spline'"),
    ],
)
def test_a_wrong_field_is_named(kind: str, fields: dict[str, object], message: str) -> None:
    writer = _core.ModelWriter()
    with pytest.raises(TypeError, match=re.escape(message)):
        writer.add_op(kind, fields, "op")


def test_an_invalid_model_is_not_written(tmp_path: Path) -> None:
    writer = small_writer()
    writer.add_op("affine", {"input": 0, "output": 1}, "again")
    with pytest.raises(FormatError, match="op 'again', tensor 'y': it is written twice"):
        writer.save(tmp_path / "m.tacbin")
    assert list(tmp_path.iterdir()) == []


def test_errors_carry_their_parts(tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        _core.inspect(tmp_path / "missing.tacbin")
    assert caught.value.code == "io"
    assert "No such file or directory" in str(caught.value)


def test_pack_bits_layout() -> None:
    bits = np.zeros((2, 40), np.uint8)
    bits[0, 33] = bits[1, 0] = 1
    np.testing.assert_array_equal(_core.pack_bits(bits), np.asarray([[0, 2], [1, 0]], np.uint32))
    np.testing.assert_array_equal(_core.pack_bits(bits.astype(np.bool_)), _core.pack_bits(bits))


@pytest.mark.parametrize("bits", [np.zeros((1, 4), np.float32), np.zeros(4, np.uint8), np.zeros((4, 2), np.uint8).T])
def test_pack_bits_takes_rows_of_bytes_alone(bits: NDArray[Any]) -> None:
    with pytest.raises(TypeError, match="pack_bits: expected"):
        _core.pack_bits(bits)


def test_pack_bits_refuses_a_2() -> None:
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        _core.pack_bits(np.full((1, 1), 2, np.uint8))


@pytest.mark.parametrize(
    ("encoding", "error", "message"),
    [
        ({"kind": "log"}, ValueError, "kind 'log', expected 'linear' or 'sign_zero'"),
        ({"lo": 0}, TypeError, "'kind' is missing"),
        ({"kind": "linear", "lo": 0, "step": 1}, TypeError, "'n_levels' is missing"),
        ({"kind": "linear", "lo": 0.5, "step": 1, "n_levels": 2}, TypeError, "'lo' cannot be 0.5"),
        ({"kind": "sign_zero", "lo": 0}, TypeError, "a sign_zero encoding has 1 keys"),
    ],
)
def test_a_wrong_encoding_is_named(encoding: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        _core.ModelWriter().add_tensor("b", [8], "bits", encoding)


def test_a_preprocessing_table_has_256_columns() -> None:
    writer = _core.ModelWriter()
    x = writer.add_tensor("x", [3, 2, 2])
    with pytest.raises(TypeError, match=re.escape("lut: expected shape [C, 256], found (256, 3)")):
        writer.add_input(x, np.zeros((256, 3), np.float32))


def test_a_name_that_no_file_could_hold_is_refused() -> None:
    writer = small_writer()
    writer.add_tensor("n" * 5000, [1])
    with pytest.raises(FormatError, match="the name of tensor #2 is 5000 bytes long, limit 4096"):
        writer.to_bytes()


def test_a_path_that_is_not_utf8_still_gets_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="No such file or directory"):
        _core.inspect(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tacbin"))


def test_errors_raised_in_python_have_the_same_attributes() -> None:
    error = UnsupportedModelError("no")
    assert isinstance(error, TacError)
    assert (error.code, error.op, error.tensor, error.detail) == ("", "", "", "")
