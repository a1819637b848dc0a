"""Benchmarks measure what they say, refuse wrong answers, and fail in one sentence. No test depends on a time."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import tac_engine
from tac_engine import cli
from tac_engine.bench import BenchReport, Timing, bench, interleave

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--seconds", "0", "--batch", "1", "3")


def write_pair(folder: Path, weight: float = 1.0, batch: str = "N") -> tuple[Path, Path]:
    """Write y = x W as ONNX and as .tacbin; the .tacbin has the weights of `weight` 1."""
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[BATCH, 4] x) => (float[BATCH, 2] y)
        <float[4, 2] w = {1, 2, -3, 4, 5, -6, 7, WEIGHT}>
        { y = MatMul(x, w) }
    """.replace("BATCH", batch)
    source, target = folder / "m.onnx", folder / "m.tacbin"
    onnx.save(onnx.parser.parse_model(text.replace("WEIGHT", "1")), source)
    tac_engine.convert(source, target)
    onnx.save(onnx.parser.parse_model(text.replace("WEIGHT", str(weight))), source)
    return source, target


def run(*arguments: object) -> int:
    return cli.main(["bench", *(str(argument) for argument in arguments)])


def test_interleave_runs_in_turn_and_times_all_but_the_first_run_of_a_turn() -> None:
    calls: list[str] = []
    times = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, seconds=0)
    assert "".join(calls[:8]) == "aaaabbbb"
    assert {name: calls.count(name) - 10 for name in "ab"} == {name: len(times[name]) for name in "ab"}


def test_timing_is_of_the_quartiles() -> None:
    assert Timing.of([4.0, 1.0, 2.0, 3.0, 100.0]) == Timing(3.0, 1.0, 2.0, 5)


def test_report_has_a_row_for_each_batch_and_number_of_threads(tmp_path: Path) -> None:
    _, model = write_pair(tmp_path)
    report = bench(model, batches=(1, 3), threads=(1, 2), seconds=0)
    assert [(item.threads, item.batch) for item in report.measurements] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    assert [item.scaling for item in report.measurements[:2]] == [1.0, 1.0]
    for item in report.measurements:
        assert item.timing.runs >= 3
        assert item.timing.best_ms <= item.timing.median_ms
        assert item.peak_bytes == tac_engine.load(model, threads=item.threads).peak_bytes(item.batch)
    assert report.ok
    assert report.file_bytes == model.stat().st_size


def test_json_has_the_fields_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, model = write_pair(tmp_path)
    assert run(model, "--against", source, *QUICK, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {*BenchReport.__dataclass_fields__, "ok"}
    assert data["answers"] == {"samples": 16, "agreeing": 16, "max_rel_diff": data["answers"]["max_rel_diff"]}
    assert data["rival"].startswith("onnxruntime ")
    for item in data["measurements"]:
        assert set(item["rival"]) == set(Timing.__dataclass_fields__)
        assert item["speedup"] == pytest.approx(item["rival"]["median_ms"] / item["timing"]["median_ms"])


def test_text_names_both_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, model = write_pair(tmp_path)
    assert run(model, "--against", source, *QUICK) == 0
    out = capsys.readouterr().out
    assert "16 of 16 random samples agree with onnxruntime" in out
    assert len(out.splitlines()) == 7


def test_wrong_answers_are_not_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, model = write_pair(tmp_path, weight=8.0)
    assert run(model, "--against", source, *QUICK) == cli.EXIT_DIFFERS
    out = capsys.readouterr().out
    assert "nothing was timed" in out
    assert "samples/s" not in out


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no model", "ONNX Runtime does not load it"), (None, "ONNX Runtime does not load it")],
)
def test_unreadable_onnx_file_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, reason: str
) -> None:
    source, model = write_pair(tmp_path)
    source.unlink()
    if content is not None:
        source.write_bytes(content)
    assert run(model, "--against", source) == cli.EXIT_ERROR
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("batch", "status"), [("1", 0), ("3", cli.EXIT_ERROR)])
def test_onnx_file_of_a_fixed_batch_runs_in_pieces(
    batch: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model = write_pair(tmp_path, batch=batch)
    assert run(model, "--against", source, *QUICK) == status
    output = capsys.readouterr()
    if status == 0:
        assert "16 of 16 random samples agree" in output.out
    else:
        assert "its batch is fixed at 3, 16 samples are no multiple of it" in output.err


def test_missing_onnxruntime_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = write_pair(tmp_path)
    monkeypatch.delitem(sys.modules, "tac_engine.converters.onnx_runtime", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run(model, "--against", source) == cli.EXIT_ERROR
    err = capsys.readouterr().err
    assert "pip install 'tac_engine[convert,demo]'" in err
    assert err.count("\n") == 1


def test_bench_alone_needs_neither_onnx_nor_onnxruntime(tmp_path: Path) -> None:
    _, model = write_pair(tmp_path)
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None; from tac_engine.cli import main;"
        f"sys.exit(main(['bench', {str(model)!r}, '--seconds', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- benchmarks/models ----------------------------------------------------------------------------


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/models"))
    return ROOT / "benchmarks/models"


def load_script(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_model_benchmark_runs_once(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, str(models / "bench_models.py"), "--out", str(out), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text())
    (entry,) = data["networks"].values()
    assert entry["failed"] == {}
    assert {timing["contender"] for timing in entry["timings"]} == {"onnxruntime float32", "tac_engine"}
    assert all(timing["error"] <= data["criteria"]["float32_error"] for timing in entry["timings"])
    text = load_script(models / "report.py").markdown(load_script(models / "report.py").Results(data))
    assert "| tac_engine |" in text


@pytest.mark.slow
def test_layer_benchmark_runs_once(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "layers.json"
    chain = ["layer_binary_1x1_512_7_1", "layer_binary_1x1_512_7_5"]
    command = [sys.executable, str(models / "bench_models.py"), "--out", str(out), "--layers"]
    command += ["--networks", *chain, "layer_linear_512_1000", "layer_codebook_1024_1024", "--contenders", "tac_engine"]
    command += ["--rounds", "2", "--seconds", "0.05"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text())
    assert all(entry["failed"] == {} for entry in data["networks"].values())
    report = load_script(models / "report.py")
    one, five = (data["networks"][name]["timings"][1]["median_ms"] for name in chain)
    row = f"| binary 1x1, 512 at 7 x 7 | {report.figure(1e3 * (five - one) / 4)} |"
    markdown = report.markdown(report.Results(data))
    assert row in markdown
    last = data["networks"]["layer_codebook_1024_1024"]["timings"][-1]
    assert (last["contender"], last["batch"]) == ("tac_engine", 64)
    assert f"| 1024 -> 1024, batch 64 | {report.figure(1e3 * last['median_ms'] / 64)} |" in markdown


def test_contender_that_is_missing_or_wrong_is_listed(models: Path) -> None:
    script = load_script(models / "bench_models.py")
    good = np.arange(32, dtype=np.float32).reshape(16, 2)
    other = np.where(np.arange(16)[:, None] < 4, good, -good)
    same = {"error": 0.0, "agreeing": 1.0, "same_top1": 1.0, "correlation": pytest.approx(1.0)}
    assert script.compare(good, good) == same
    assert script.compare(other, good)["agreeing"] == 0.25
    with pytest.raises(script.Failed, match="--larq-python"):
        script.Process("larq compute engine", "vgg9", models, None).ask("build")
