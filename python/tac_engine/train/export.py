"""PyTorch networks to ONNX files that ``tac_engine.convert`` reads at full bit savings."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from ..errors import InvalidInputError

EXPORTERS = ("dynamo", "legacy")


def bake(model: nn.Module) -> nn.Module:
    """Return a copy of `model` on the CPU in eval mode whose layers hold their low-bit weights, nothing latent."""
    baked = copy.deepcopy(model).cpu().eval()
    if hasattr(baked, "baked"):
        return baked.baked().eval()
    for parent in list(baked.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "baked"):
                setattr(parent, name, child.baked().eval())
    return baked


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    input_shape: Sequence[int],
    *,
    exporter: str = "dynamo",
) -> None:
    """Write `model`, baked, as an ONNX file: `input` [N, *input_shape] float32, `logits` [N, ...].

    Args:
        model: any network of PyTorch's layers and those of this package.
        path: the file to write; replaced in one step.
        input_shape: shape of one sample.
        exporter: "dynamo", PyTorch's current one (needs onnxscript), or "legacy", the one before.

    Raises:
        InvalidInputError: there is no exporter of that name.
        ImportError: onnxscript is missing.
    """
    if exporter not in EXPORTERS:
        raise InvalidInputError(f"no exporter '{exporter}'; there are {', '.join(EXPORTERS)}")
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    # Two samples: PyTorch takes an axis of size 1 for a constant.
    example = torch.zeros(2, *input_shape)
    options: dict[str, Any]
    if exporter == "dynamo":
        _need_onnxscript()
        options = {"dynamic_shapes": ({0: torch.export.Dim("N")},), "external_data": False, "verbose": False}
    else:
        options = {"dynamic_axes": {"input": {0: "N"}, "logits": {0: "N"}}}
    with torch.no_grad(), _quiet():
        torch.onnx.export(
            bake(model),
            (example,),
            str(temporary),
            input_names=["input"],
            output_names=["logits"],
            dynamo=exporter == "dynamo",
            **options,
        )
    _remove_traces(temporary)
    temporary.replace(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporters announce: changes of PyTorch to come, a missing torchvision. Errors still raise."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)


def _need_onnxscript() -> None:
    try:
        import onnxscript  # noqa: F401 - torch.onnx imports it
    except ImportError as error:
        raise ImportError(
            f"PyTorch's exporter needs onnxscript ({error}): pip install 'tac_engine[train]', or take the legacy one"
        ) from None


def _remove_traces(path: Path) -> None:
    """Remove the stack traces, with paths of this machine, that the dynamo exporter writes."""
    model = onnx.load(path)
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        del item.metadata_props[:]
    onnx.save(model, path)
