"""Train a TAC network (arXiv 1907.05271) on CIFAR-10 and export it to ONNX.

The network is VGG-9 form B at reduced width: a float first convolution, five convolutions with
1-bit weights and 1-bit activations, and three fully connected layers.  Step 1 trains it with
float fully connected layers.  Step 2 prunes those by magnitude in several rounds with retraining,
and then shares the surviving weights through a 4-bit codebook per layer (15 centroids and zero),
whose centroids are fine-tuned by summed gradients (Deep Compression, arXiv 1510.00149).

A run writes a checkpoint after each epoch and resumes from it when started again.

Needs torch, numpy, onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F  # noqa: N812 - what everybody calls it
from onnx import numpy_helper
from torch import Tensor, nn

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
RECORD_BYTES = 1 + 3 * 32 * 32
CODEBOOK_SIZE = 16
PRUNING_RATES = (0.2, 0.4, 0.6, 0.7, 0.75)


# --- data -----------------------------------------------------------------------------------


def read_batch(directory: Path, name: str) -> np.ndarray:
    """Read the records of one CIFAR-10 binary batch, plain or compressed with xz or gzip."""
    openers: dict[str, Callable[..., Any]] = {"": open, ".xz": lzma.open, ".gz": gzip.open}
    for suffix, opener in openers.items():
        path = directory / f"{name}.bin{suffix}"
        if path.exists():
            with opener(path, "rb") as stream:
                return np.frombuffer(stream.read(), np.uint8).reshape(-1, RECORD_BYTES)
    raise FileNotFoundError(f"no {name}.bin, {name}.bin.xz or {name}.bin.gz in {directory}")


def load_images(directory: Path, names: list[str]) -> tuple[Tensor, Tensor]:
    """Return uint8 images [N, 3, 32, 32] and int64 labels [N] of the named batches."""
    records = torch.from_numpy(np.concatenate([read_batch(directory, name) for name in names]))
    return records[:, 1:].reshape(-1, 3, 32, 32).contiguous(), records[:, 0].long()


def normalize(images: Tensor) -> Tensor:
    """Map uint8 pixels to the float32 network input, in channels-last memory format."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD).view(1, 3, 1, 1) * 255
    return images.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


class AugmentedLoader:
    """Shuffled batches with random crops (padding 4) and flips, a whole batch at once."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int) -> None:
        mean = torch.tensor(MEAN).mul(255).round().to(torch.uint8).view(1, 3, 1, 1)
        padded = mean.expand(len(images), 3, 40, 40).clone()
        padded[:, :, 4:36, 4:36] = images
        self.crops = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # [N, 3, 9, 9, 32, 32], a view
        self.labels = labels
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            index = order[start : start + self.batch_size]
            dy, dx = torch.randint(0, 9, (2, len(index)))
            batch = self.crops[index, :, dy, dx]
            flip = torch.rand(len(index)) < 0.5
            batch[flip] = batch[flip].flip(3)
            yield normalize(batch), self.labels[index]


# --- network --------------------------------------------------------------------------------


class SignApprox(torch.autograd.Function):
    """Sign with the ApproxSign gradient 2 - 2|x| of Bi-Real Net, for activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (2 - 2 * x.abs()).clamp_(min=0)


class SignStraightThrough(torch.autograd.Function):
    """Sign with an identity gradient, for weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class SignActivation(nn.Module):
    """1-bit activation."""

    def forward(self, x: Tensor) -> Tensor:
        return SignApprox.apply(x)


class BinaryConv2d(nn.Conv2d):
    """3x3 convolution with weights alpha * sign(w - mean(w)), alpha = mean|w - mean(w)|."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        alpha = centred.detach().abs().mean((1, 2, 3), keepdim=True)
        weight = SignStraightThrough.apply(centred) * alpha
        return F.conv2d(x, weight, padding=1)


class MatMulLinear(nn.Linear):
    """Linear layer without bias that exports as MatMul.

    The dynamo exporter folds a BatchNormalization into a Gemm before it, which scales each row of
    the weights and so destroys their codebook; it leaves MatMul and BatchNormalization alone.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.weight.t())


class Vgg9(nn.Module):
    """VGG-9 form B: six convolutions of `width` to 4 `width` filters and three FC layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w1, w2, w3, hidden = width, 2 * width, 4 * width, 8 * width
        self.features = nn.Sequential(
            nn.Conv2d(3, w1, 3, padding=1, bias=False),
            nn.BatchNorm2d(w1),
            SignActivation(),
            BinaryConv2d(w1, w1),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(w1),
            SignActivation(),
            BinaryConv2d(w1, w2),
            nn.BatchNorm2d(w2),
            SignActivation(),
            BinaryConv2d(w2, w2),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(w2),
            SignActivation(),
            BinaryConv2d(w2, w3),
            nn.BatchNorm2d(w3),
            SignActivation(),
            BinaryConv2d(w3, w3),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(w3),
            nn.Hardtanh(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            MatMulLinear(w3 * 16, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            MatMulLinear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))

    def fc_layers(self) -> list[nn.Linear]:
        """The fully connected layers, in order."""
        return [module for module in self.classifier if isinstance(module, nn.Linear)]


def evaluate(predict: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """Accuracy in percent of `predict`, a function from input batch to logits."""
    return 100 * (predict_labels(predict, images) == labels).double().mean().item()


@torch.no_grad()
def predict_labels(predict: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Predicted class of each uint8 image."""
    return torch.cat([predict(normalize(batch)).argmax(1) for batch in images.split(500)])


# --- pruning and weight sharing -------------------------------------------------------------


@torch.no_grad()
def prune_by_magnitude(layer: nn.Linear, rate: float) -> Tensor:
    """Zero the `rate` smallest weights of a layer and return the mask of the surviving ones."""
    magnitude = layer.weight.abs().flatten()
    mask = torch.ones_like(magnitude)
    mask[magnitude.argsort()[: round(rate * magnitude.numel())]] = 0
    mask = mask.view_as(layer.weight)
    layer.weight.mul_(mask)
    return mask


@torch.no_grad()
def share_weights(layer: nn.Linear, iterations: int = 100) -> tuple[Tensor, Tensor]:
    """Cluster the non-zero weights of a layer by k-means, initialised linearly from min to max.

    Returns the centroids and, for each weight, its code: 0 for a pruned weight, else 1 + the
    index of its centroid.  Clusters that end up empty are dropped.
    """
    surviving = layer.weight != 0
    values = layer.weight[surviving].double()
    centroids = torch.linspace(values.min().item(), values.max().item(), CODEBOOK_SIZE - 1, dtype=torch.double)
    for _ in range(iterations):
        nearest = torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, values)
        counts = torch.bincount(nearest, minlength=len(centroids))
        updated = (sums / counts)[counts > 0]
        if len(updated) == len(centroids) and torch.equal(updated, centroids):
            break
        centroids = updated
    codes = torch.zeros(layer.weight.shape, dtype=torch.long)
    codes[surviving] = 1 + torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)
    return centroids.float(), codes


@torch.no_grad()
def apply_codebook(layer: nn.Linear, centroids: Tensor, codes: Tensor) -> None:
    """Set the weights of a layer from its codebook: code 0 is exactly zero."""
    layer.weight.copy_(torch.cat([torch.zeros(1), centroids])[codes])


# --- training -------------------------------------------------------------------------------


@dataclass
class State:
    """Where a run stands; all of it goes into the checkpoint."""

    stage: int = 0
    epoch: int = 0
    masks: list[Tensor] = field(default_factory=list)
    centroids: list[nn.Parameter] = field(default_factory=list)
    codes: list[Tensor] = field(default_factory=list)
    accuracies: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe: how long, how fast, and what it does to the FC layers first."""

    name: str
    epochs: int
    lr: float
    warmup_epochs: int = 0
    pruning_rate: float = 0.0
    share: bool = False

    @property
    def features_frozen(self) -> bool:
        return self.share or self.pruning_rate > 0


def build_stages(args: argparse.Namespace) -> list[Stage]:
    """Step 1, the pruning rounds and the centroid fine-tuning."""
    stages = [Stage("float FC", args.epochs, args.lr, warmup_epochs=2)]
    stages += [Stage(f"pruned {rate:g}", args.prune_epochs, args.prune_lr, pruning_rate=rate) for rate in PRUNING_RATES]
    stages.append(Stage("4-bit codebook", args.codebook_epochs, args.codebook_lr, share=True))
    return stages


def save_checkpoint(path: Path, model: Vgg9, optimizer: torch.optim.Optimizer | None, state: State) -> None:
    """Write a checkpoint atomically."""
    temporary = path.with_suffix(".tmp")
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict() if optimizer else None,
            "state": vars(state),
            "rng": torch.get_rng_state(),
        },
        temporary,
    )
    temporary.replace(path)


def shared_layers(model: Vgg9, state: State) -> Iterator[tuple[nn.Linear, nn.Parameter, Tensor]]:
    """Each FC layer with its centroids and codes."""
    return zip(model.fc_layers(), state.centroids, state.codes, strict=True)


def begin_stage(stage: Stage, model: Vgg9, state: State) -> None:
    """Prune the FC layers or share their weights, as the stage asks."""
    if stage.pruning_rate > 0:
        state.masks = [prune_by_magnitude(fc, stage.pruning_rate) for fc in model.fc_layers()]
    if stage.share:
        shared = [share_weights(fc) for fc in model.fc_layers()]
        state.centroids = [nn.Parameter(centroids) for centroids, _ in shared]
        state.codes = [codes for _, codes in shared]
        for fc, centroids, codes in shared_layers(model, state):
            apply_codebook(fc, centroids, codes)


def make_optimizer(stage: Stage, model: Vgg9, state: State, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over what the stage trains; only FC weights decay."""
    fc_weights: list[nn.Parameter] = [fc.weight for fc in model.fc_layers()]
    trained = model.classifier if stage.features_frozen else model
    others = [p for p in trained.parameters() if all(p is not weight for weight in fc_weights)]
    if stage.share:
        groups = [{"params": [*others, *state.centroids], "weight_decay": 0.0}]
    else:
        groups = [
            {"params": fc_weights, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(groups, lr=stage.lr)


def learning_rate(stage: Stage, progress: float) -> float:
    """Linear warm-up, then cosine to zero; `progress` is in epochs."""
    if progress < stage.warmup_epochs:
        return stage.lr * progress / stage.warmup_epochs
    rest = (progress - stage.warmup_epochs) / max(stage.epochs - stage.warmup_epochs, 1)
    return stage.lr * 0.5 * (1 + math.cos(math.pi * rest))


def train_epoch(
    stage: Stage,
    model: Vgg9,
    optimizer: torch.optim.Optimizer,
    loader: AugmentedLoader,
    state: State,
    bf16: bool,
) -> float:
    """Train for one epoch and return the mean loss."""
    model.train()
    if stage.features_frozen:
        model.features.eval()
    total = torch.zeros(())
    for step, (images, labels) in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(stage, state.epoch + (step + 1) / len(loader))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            with torch.set_grad_enabled(not stage.features_frozen):
                features = model.features(images)
            logits = model.classifier(features)
        loss = F.cross_entropy(logits.float(), labels)
        model.zero_grad()
        loss.backward()
        if stage.share:
            for fc, centroids, codes in shared_layers(model, state):
                sums = torch.zeros(1 + len(centroids))
                sums.index_add_(0, codes.flatten(), fc.weight.grad.flatten())
                centroids.grad = sums[1:]
        optimizer.step()
        if stage.share:
            for fc, centroids, codes in shared_layers(model, state):
                apply_codebook(fc, centroids, codes)
        elif state.masks:
            for fc, mask in zip(model.fc_layers(), state.masks, strict=True):
                fc.weight.data.mul_(mask)
        total += loss.detach()
    return total.item() / len(loader)


def train(args: argparse.Namespace, model: Vgg9, test: tuple[Tensor, Tensor]) -> State:
    """Run all stages, resuming from the checkpoint if there is one."""
    names = [f"data_batch_{i}" for i in range(1, 6)]
    loader = AugmentedLoader(*load_images(args.data, names), args.batch_size)
    checkpoint_path = args.out / "checkpoint.pt"
    state, optimizer_state = State(), None
    if checkpoint_path.exists():
        checkpoint = torch.load(checkpoint_path, weights_only=False)
        model.load_state_dict(checkpoint["model"])
        state = State(**checkpoint["state"])
        optimizer_state = checkpoint["optimizer"]
        torch.set_rng_state(checkpoint["rng"])
    stages = build_stages(args)
    while state.stage < len(stages):
        stage = stages[state.stage]
        if state.epoch == 0:
            begin_stage(stage, model, state)
        optimizer = make_optimizer(stage, model, state, args.weight_decay)
        if optimizer_state:
            optimizer.load_state_dict(optimizer_state)
            optimizer_state = None
        while state.epoch < stage.epochs:
            start = time.perf_counter()
            bf16 = args.bf16 and not stage.features_frozen
            loss = train_epoch(stage, model, optimizer, loader, state, bf16)
            accuracy = evaluate(model.eval(), *test)
            state.epoch += 1
            state.seconds += time.perf_counter() - start
            state.accuracies[stage.name] = accuracy
            print(
                f"{state.seconds:7.1f} s  {stage.name}  epoch {state.epoch}/{stage.epochs}"
                f"  lr {learning_rate(stage, state.epoch - 0.5):.2e}  loss {loss:.4f}"
                f"  test {accuracy:.2f} %",
                flush=True,
            )
            save_checkpoint(checkpoint_path, model, optimizer, state)
        state.stage += 1
        state.epoch = 0
        save_checkpoint(checkpoint_path, model, None, state)
    return state


# --- export ---------------------------------------------------------------------------------


def export_onnx(model: Vgg9, path: Path, dynamo: bool) -> None:
    """Export with torch.onnx: input [N, 3, 32, 32] of normalised pixels, output logits [N, 10]."""
    example = torch.zeros(2, 3, 32, 32)
    if dynamo:
        axes: dict[str, Any] = {"dynamic_shapes": {"x": {0: torch.export.Dim("N")}}}
        axes["external_data"] = False
    else:
        axes = {"dynamic_axes": {"input": {0: "N"}, "logits": {0: "N"}}}
    torch.onnx.export(
        model.eval(),
        (example,),
        str(path),
        dynamo=dynamo,
        input_names=["input"],
        output_names=["logits"],
        **axes,
    )


def strip_stack_traces(path: Path) -> None:
    """Remove the stack traces, with their source paths, that the dynamo exporter writes."""
    model = onnx.load(path)
    for item in (*model.graph.node, *model.graph.value_info):
        kept = [prop for prop in item.metadata_props if not prop.key.endswith("stack_trace")]
        del item.metadata_props[:]
        item.metadata_props.extend(kept)
    onnx.save(model, path)


def fc_statistics(path: Path) -> list[dict[str, Any]]:
    """Shape, distinct values and sparsity of each weight that a MatMul or Gemm node reads."""
    graph = onnx.load(path).graph
    weights = {init.name: numpy_helper.to_array(init) for init in graph.initializer}
    statistics = []
    for node in graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            weight = weights[node.input[1]]
            if len(np.unique(weight)) > CODEBOOK_SIZE:
                raise ValueError(f"{path.name}: {node.name} has lost its codebook")
            statistics.append(
                {
                    "op": node.op_type,
                    "shape": list(weight.shape),
                    "distinct": len(np.unique(weight)),
                    "sparsity": round(float((weight == 0).mean()), 4),
                }
            )
    return statistics


def check_export(path: Path, model: Vgg9, test: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Compare an exported file under ONNX Runtime with the network in PyTorch."""
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def predict(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"input": batch.contiguous().numpy()})[0])

    labels = predict_labels(predict, test[0])
    agreement = (labels == predict_labels(model.eval(), test[0])).double().mean().item()
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "accuracy": 100 * (labels == test[1]).double().mean().item(),
        "agreement": 100 * agreement,
        "nodes": [node.op_type for node in onnx.load(path).graph.node],
        "fc": fc_statistics(path),
    }


def export_all(model: Vgg9, out: Path, test: tuple[Tensor, Tensor]) -> list[dict[str, Any]]:
    """Write both exports and return what the checks on them found."""
    results = []
    for name, dynamo in (("vgg9b_tac.onnx", True), ("vgg9b_tac_legacy.onnx", False)):
        export_onnx(model, out / name, dynamo)
        strip_stack_traces(out / name)
        results.append(check_export(out / name, model, test))
    return results


def parse_arguments() -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with the CIFAR-10 binary batches")
    add("--out", type=Path, required=True, help="folder for the checkpoint and the exports")
    add("--epochs", type=int, default=50, help="epochs of step 1")
    add("--seed", type=int, default=1)
    add("--threads", type=int, default=2)
    add("--width", type=int, default=48, help="filters of the first convolution")
    add("--batch-size", type=int, default=128)
    add("--lr", type=float, default=2e-3, help="peak learning rate of step 1")
    add("--weight-decay", type=float, default=0.05, help="of the FC weights, decoupled")
    add("--prune-epochs", type=int, default=2, help="epochs after each pruning round")
    add("--prune-lr", type=float, default=3e-4)
    add("--codebook-epochs", type=int, default=2, help="epochs of centroid fine-tuning")
    add("--codebook-lr", type=float, default=1e-4)
    add("--bf16", action="store_true", help="run step 1 under bfloat16 autocast")
    return parser.parse_args()


def main() -> None:
    """Train, export and report."""
    args = parse_arguments()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    test = load_images(args.data, ["test_batch"])
    model = Vgg9(args.width).to(memory_format=torch.channels_last)
    state = train(args, model, test)
    report = {
        "seconds": state.seconds,
        "stages": state.accuracies,
        "torch": evaluate(model.eval(), *test),
        "exports": export_all(model, args.out, test),
    }
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
