from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tac_engine import FormatError, _core


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
