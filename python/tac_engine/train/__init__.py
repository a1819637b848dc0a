"""Trains low-bit networks in PyTorch and makes .tacbin files of them. Needs the extra ``[train]``.

Layers for networks of one's own::

    from tac_engine.train import BinaryConv2d, SignActivation, export_onnx

    block = nn.Sequential(SignActivation(), BinaryConv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64))

``tac-engine train`` runs the recipe of TAC (arXiv 1907.05271) on the networks of ``networks``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compression import CodebookLinear, PrunedLinear, compress_linears, linears, prune_linears
    from .export import bake, export_onnx
    from .layers import BinaryConv2d, BinaryLinear, QuantizedConv2d, QuantizedLinear, TernaryConv2d, TernaryLinear
    from .quantizers import BinaryWeight, HwgqActivation, SignActivation, TernaryWeight, set_progress

# What is imported on first use, so that the recipe's names can be read without torch.
_WHERE = {
    "BinaryConv2d": "layers",
    "BinaryLinear": "layers",
    "BinaryWeight": "quantizers",
    "CodebookLinear": "compression",
    "HwgqActivation": "quantizers",
    "PrunedLinear": "compression",
    "QuantizedConv2d": "layers",
    "QuantizedLinear": "layers",
    "SignActivation": "quantizers",
    "TernaryConv2d": "layers",
    "TernaryLinear": "layers",
    "TernaryWeight": "quantizers",
    "bake": "export",
    "compress_linears": "compression",
    "export_onnx": "export",
    "linears": "compression",
    "prune_linears": "compression",
    "set_progress": "quantizers",
}

__all__ = [
    "BinaryConv2d",
    "BinaryLinear",
    "BinaryWeight",
    "CodebookLinear",
    "HwgqActivation",
    "PrunedLinear",
    "QuantizedConv2d",
    "QuantizedLinear",
    "SignActivation",
    "TernaryConv2d",
    "TernaryLinear",
    "TernaryWeight",
    "bake",
    "compress_linears",
    "export_onnx",
    "linears",
    "prune_linears",
    "set_progress",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
