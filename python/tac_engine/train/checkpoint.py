"""Checkpoints: everything that a run needs to go on, in one file that is always whole.

The full form resumes to the very same weights on a CPU. The slim form is for carrying: large layers as float16, moments
of the optimizer as 8-bit integers in blocks that share a scale. The run goes on from it, but not to the same bits.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FormatError

FORMAT = 1
_LARGE = 4096  # elements; smaller tensors (BatchNorm, biases, codebooks) stay what they are
_BLOCK = 256
# AdamW's second moment divides: its root is kept, rounded up, so that no step becomes larger than it would have been.
_SQUARED = "exp_avg_sq"


def save_checkpoint(path: Path, content: dict[str, Any], *, slim: bool) -> None:
    """Write `content` and have it on the disk before it takes the place of the checkpoint before."""
    content = {"format": FORMAT, "slim": slim, **content}
    if slim:
        content["model"] = {name: _half(value) for name, value in content["model"].items()}
        if content["optimizer"] is not None:
            content["optimizer"] = _pack_optimizer(content["optimizer"])
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; tensors come to the CPU.

    Raises:
        FormatError: the file is no checkpoint, or one of another version.
    """
    # What is no archive is taken for an old format, whose reader fails in many ways.
    if not zipfile.is_zipfile(path):
        raise FormatError(f"{path}: not a checkpoint of a training run")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        raise FormatError(f"{path}: not a checkpoint of a training run: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FormatError(f"{path}: not a checkpoint of format {FORMAT}")
    if content["slim"]:
        content["model"] = {name: _whole(value) for name, value in content["model"].items()}
        if content["optimizer"] is not None:
            content["optimizer"] = _unpack_optimizer(content["optimizer"])
    return content


def _half(value: Tensor) -> Tensor:
    return value.half() if value.dtype == torch.float32 and value.numel() >= _LARGE else value


def _whole(value: Tensor) -> Tensor:
    return value.float() if value.dtype == torch.float16 else value


def _pack_optimizer(state: dict[str, Any]) -> dict[str, Any]:
    moments = {
        index: {name: _pack(value, squared=name == _SQUARED) for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": moments}


def _unpack_optimizer(state: dict[str, Any]) -> dict[str, Any]:
    moments = {
        index: {name: _unpack(value, squared=name == _SQUARED) for name, value in entry.items()}
        for index, entry in state["state"].items()
    }
    return {**state, "state": moments}


def _pack(value: Any, *, squared: bool) -> Any:
    if not isinstance(value, Tensor) or value.numel() < _LARGE:
        return value
    flat = value.detach().cpu().flatten()
    if squared:
        flat = flat.sqrt()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
    scales = blocks.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    codes = (
        (blocks / scales * 255).ceil().to(torch.uint8) if squared else (blocks / scales * 127).round().to(torch.int8)
    )
    return {"codes": codes, "scales": scales, "shape": list(value.shape)}


def _unpack(value: Any, *, squared: bool) -> Any:
    if not isinstance(value, dict):
        return value
    blocks = value["codes"].float() * value["scales"] / (255 if squared else 127)
    shape = torch.Size(value["shape"])
    flat = blocks.flatten()[: shape.numel()]
    return (flat.square() if squared else flat).view(shape)
