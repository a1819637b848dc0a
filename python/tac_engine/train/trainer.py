"""Runs the stages of a recipe, from wherever the last run was stopped or killed."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..bench import cpu_name
from ..errors import InvalidInputError
from .batches import Normaliser, TrainingBatches, tensors
from .checkpoint import load_checkpoint, save_checkpoint
from .compression import CodebookLinear, compress_linears, linears, prune_linears
from .data import Data
from .layers import QuantizedConv2d, QuantizedLinear
from .networks import build_network
from .quantizers import set_progress
from .recipe import Recipe, Stage

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
COLUMNS = ("stage", "epoch", "seconds", "lr", "loss", "train_accuracy", "test_accuracy")
_EVALUATION_BATCH = 500
_SECONDS_BETWEEN_LINES = 0.5


@dataclass
class State:
    """Where a run stands.

    `history` has a row of COLUMNS for each epoch, its test accuracy None where it was not measured; the sums are those
    of the current epoch; `trained_on` has every device that the run has been on, in order.
    """

    stage: int = 0
    begun: bool = False  # whether the stage has pruned or shared what it prunes or shares
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    trained_on: list[str] = field(default_factory=list)


class Trainer:
    """A run in the folder `out`, resumed if it holds a checkpoint.

    Args:
        recipe: what to do.
        data: what on.
        out: folder of the run, made if missing.
        device: where the network trains.
        checkpoint_seconds: time between two checkpoints; stages end with one as well.
        slim: whether checkpoints are of the slim form (tac_engine.train.checkpoint).
        compiled: whether torch.compile makes the convolutions and what is between them, where they train. It takes a
            minute, and rounds otherwise.
        test_every: epochs between two measurements of test accuracy; stages end with one as well.
        say: called with a line for each epoch.
        progress: called with what is going on and the share of the run that is done.

    Raises:
        InvalidInputError: the checkpoint in `out` is of another recipe or other data, or the estimator "ede" is to be
            compiled.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        out: Path,
        *,
        device: torch.device | str = "cpu",
        checkpoint_seconds: float = 60.0,
        slim: bool = False,
        compiled: bool = False,
        test_every: int = 1,
        say: Callable[[str], None] = lambda line: None,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        if compiled and "ede" in (recipe.activation_ste, recipe.weight_ste):
            raise InvalidInputError("ede changes from epoch to epoch, and would be compiled anew for each")
        self.recipe, self.data, self.out = recipe, data, out
        self.device = torch.device(device)
        self.stages = recipe.stages()
        self.state = State()
        self._checkpoint_seconds, self._slim, self._test_every = checkpoint_seconds, slim, test_every
        self._say, self._progress = say, progress
        self._fingerprint = data.fingerprint()
        self._optimizer_state: dict[str, Any] | None = None
        self._members: list[tuple[CodebookLinear, Tensor]] = []
        # Float32 is float32 on every device, in tests as well; what may be rounded says so (precision).
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        # All batches have one shape, so the search for the fastest convolutions pays.
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(recipe.seed)
        self.model = build_network(recipe, data.input_shape, len(data.classes))
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"{out}: no folder can be made there: {error.strerror}") from None
        if (out / CHECKPOINT).exists():
            self._resume(load_checkpoint(out / CHECKPOINT))
        self.model.to(self.device, memory_format=torch.channels_last)
        # The FC layers change from stage to stage, each change would be compiled anew.
        features = self.model.features
        self._training_features = torch.compile(features, dynamic=False) if compiled else features
        self.flip = data.flip if recipe.flip is None else recipe.flip
        normalise = Normaliser(data, self.device)
        self._batches = TrainingBatches(
            data,
            normalise,
            self.device,
            batch_size=recipe.batch_size,
            crop=recipe.crop,
            flip=self.flip,
            seed=recipe.seed,
        )
        self._normalise = normalise
        self._test = tensors(data.test, self.device)
        self._tensorboard = _tensorboard(out, len(self.state.history))
        if self._tensorboard is None:
            say("no TensorBoard logs: tensorboard is not installed")
        self._write_log()

    @property
    def finished(self) -> bool:
        return self.state.stage == len(self.stages)

    # --- checkpoints ------------------------------------------------------------------------

    def _resume(self, content: dict[str, Any]) -> None:
        differences = self.recipe.differences(Recipe.from_json(content["recipe"]))
        if differences:
            raise InvalidInputError(
                f"{self.out} holds a run of another recipe ({'; '.join(differences)}); give the same, or another folder"
            )
        if content["data"] != self._fingerprint:
            raise InvalidInputError(f"{self.out} holds a run on other data than {self.data.name} as it is now")
        self.state = State(**content["state"])
        begun = self.stages[: self.state.stage + self.state.begun]
        if any(stage.prune is not None for stage in begun):
            prune_linears(self.model.classifier, 0.0)
        if any(stage.share for stage in begun):
            compress_linears(self.model.classifier, self.recipe.centroids)
        self.model.load_state_dict(content["model"])
        self._optimizer_state = content["optimizer"]
        torch.set_rng_state(content["rng"])
        if self.device.type == "cuda" and content["cuda_rng"] is not None:
            torch.cuda.set_rng_state(content["cuda_rng"], self.device)

    def _save(self, optimizer: torch.optim.Optimizer | None) -> None:
        content = {
            "recipe": self.recipe.to_json(),
            "data": self._fingerprint,
            "state": asdict(self.state),
            "model": self.model.state_dict(),
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        save_checkpoint(self.out / CHECKPOINT, content, slim=self._slim)

    def _write_log(self) -> None:
        """Write all rows anew: a run that was killed may have logged more than its checkpoint knows."""
        path = self.out / LOG
        temporary = path.with_name(path.name + ".part")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.state.history)
        temporary.replace(path)

    # --- training ---------------------------------------------------------------------------

    def run(self, stop_after: float | None = None) -> bool:
        """Train until everything is done (True) or `stop_after` seconds have passed (False); then call it again."""
        if not self.finished and (here := _describe(self.device)) not in self.state.trained_on:
            self.state.trained_on.append(here)
        self._deadline = math.inf if stop_after is None else time.monotonic() + stop_after
        self._saved_at = self._clock = time.monotonic()
        while not self.finished:
            stage = self.stages[self.state.stage]
            if not self.state.begun:
                self._begin(stage)
            optimizer = self._optimizer(stage)
            while self.state.epoch < stage.epochs:
                if not self._epoch(stage, optimizer):
                    self._save(optimizer)
                    return False
            self.state.stage += 1
            self.state.epoch, self.state.begun = 0, False
            self._save(None)
        return True

    def _begin(self, stage: Stage) -> None:
        if stage.prune is not None:
            prune_linears(self.model.classifier, stage.prune)
        if stage.share:
            compress_linears(self.model.classifier, self.recipe.centroids)
        self.state.begun = True

    def _optimizer(self, stage: Stage) -> torch.optim.Optimizer:
        """Return one for what the stage trains; weights decay, but with Adam not latent ones."""
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        for module in (self.model.classifier if stage.frozen else self.model).modules():
            latent = isinstance(module, (QuantizedConv2d, QuantizedLinear))
            for parameter in module.parameters(recurse=False):
                decays = parameter.ndim >= 2 and not (latent and self.recipe.optimizer == "adam")
                (decayed if decays else others).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        fused = self.device.type == "cuda"
        if self.recipe.optimizer == "adam":
            optimizer = torch.optim.AdamW(groups, lr=stage.lr, fused=fused)
        else:
            optimizer = torch.optim.SGD(groups, lr=stage.lr, momentum=0.9, fused=fused)
        layers = linears(self.model.classifier) if self.recipe.optimizer == "sgd" else []
        self._members = [(layer, layer.members().clamp(min=1)) for layer in layers if isinstance(layer, CodebookLinear)]
        if self._optimizer_state is not None:
            # The checkpoint may be of another device. Before loading, which puts what is fused onto the GPU.
            for group in self._optimizer_state["param_groups"]:
                group["fused"] = fused
            optimizer.load_state_dict(self._optimizer_state)
            self._optimizer_state = None
        return optimizer

    def _epoch(self, stage: Stage, optimizer: torch.optim.Optimizer) -> bool:
        """Train to the end of the epoch (True) or until time is up."""
        state, steps = self.state, len(self._batches)
        self.model.train()
        if stage.frozen:
            self.model.features.eval()
        set_progress(self.model, 1.0 if stage.frozen else (stage.begin + state.epoch) / stage.span)
        loss_sum = torch.tensor(state.loss_sum, dtype=torch.float64, device=self.device)
        correct = torch.tensor(state.correct, device=self.device)

        def remember() -> None:
            now = time.monotonic()
            state.seconds += now - self._clock
            self._clock = now
            state.loss_sum, state.correct = loss_sum.item(), int(correct.item())

        number = sum(earlier.epochs for earlier in self.stages[: state.stage]) + state.epoch
        shown = time.monotonic()
        for images, labels in self._batches.epoch(number, state.step):
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate(state.epoch + (state.step + 1) / steps)
            loss, logits = self._step(stage, optimizer, images, labels)
            loss_sum += loss.detach()
            correct += (logits.detach().argmax(1) == labels).sum()
            state.step += 1
            now = time.monotonic()
            if self._progress is not None and now - shown >= _SECONDS_BETWEEN_LINES:
                shown = now
                self._show(stage, loss_sum.item() / state.step)
            if now >= self._deadline:
                remember()
                return False
            if now - self._saved_at >= self._checkpoint_seconds:
                remember()
                self._save(optimizer)
                self._saved_at = time.monotonic()
        count = steps * self._batches.batch_size
        last = state.epoch + 1 == stage.epochs
        tested = last or (len(state.history) + 1) % self._test_every == 0
        test_accuracy = round(self.accuracy(), 4) if tested else None
        remember()
        loss_mean = state.loss_sum / steps
        if not math.isfinite(loss_mean):
            raise InvalidInputError(
                f"{stage.name}: the loss is {loss_mean} in epoch {state.epoch + 1}; lower the learning rate"
            )
        state.epoch += 1
        row = {
            "stage": stage.name,
            "epoch": state.epoch,
            "seconds": round(state.seconds, 2),
            "lr": stage.learning_rate(state.epoch - 0.5),
            "loss": round(loss_mean, 6),
            "train_accuracy": round(100 * state.correct / count, 4),
            "test_accuracy": test_accuracy,
        }
        state.history.append(row)
        state.step, state.loss_sum, state.correct = 0, 0.0, 0
        self._write_log()
        if self._tensorboard is not None:
            for name in ("lr", "loss", "train_accuracy", "test_accuracy"):
                if row[name] is not None:
                    self._tensorboard.add_scalar(name, row[name], len(state.history))
            self._tensorboard.flush()
        self._say(
            f"{state.seconds:8.1f} s  {stage.name}  epoch {state.epoch}/{stage.epochs}  lr {row['lr']:.2e}  "
            f"loss {loss_mean:.4f}  train {row['train_accuracy']:.2f} %"
            + ("" if test_accuracy is None else f"  test {test_accuracy:.2f} %")
        )
        return True

    def _step(
        self, stage: Stage, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        low = self.recipe.precision == "bfloat16" and not stage.frozen
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            with torch.set_grad_enabled(not stage.frozen):
                features = (self.model.features if stage.frozen else self._training_features)(images)
            logits = self.model.classifier(features).float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        # With SGD a centroid moves by the mean of what its weights would, a dense step projected onto the codebook: a
        # sum of 100,000 gradients times a rate meant for one weight overshoots. Adam's step does not depend on scale.
        for layer, members in self._members:
            layer.centroids.grad.div_(members)
        optimizer.step()
        return loss, logits

    def _show(self, stage: Stage, loss: float) -> None:
        assert self._progress is not None
        state, steps = self.state, len(self._batches)
        total = steps * sum(each.epochs for each in self.stages)
        done = steps * (len(state.history)) + state.step
        elapsed = time.monotonic() - self._clock + state.seconds
        left = round(elapsed / done * (total - done))
        text = (
            f"{stage.name} {state.epoch + 1}/{stage.epochs}, step {state.step}/{steps}, loss {loss:.3f}, "
            f"left {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        )
        self._progress(text, done / total)

    @torch.no_grad()
    def predict(self, model: nn.Module | None = None) -> Tensor:
        """Return the class of each test image, int64 [N], by `model`, or the network as it is."""
        model = self.model if model is None else model
        training = model.training
        model.eval()
        found = [model(self._normalise(part)).argmax(1) for part in self._test[0].split(_EVALUATION_BATCH)]
        model.train(training)
        return torch.cat(found)

    def accuracy(self) -> float:
        """Return the percentage of the test images that the network classifies correctly, in float32."""
        return 100 * (self.predict() == self._test[1]).double().mean().item()


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{cpu_name()}, {threads} CPU thread{'s' * (threads > 1)}"
    return f"{name} (PyTorch {torch.__version__})"


def _tensorboard(out: Path, rows: int) -> Any:
    """Return a writer of TensorBoard logs where that is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(os.fspath(out / "tensorboard"), purge_step=rows + 1)
