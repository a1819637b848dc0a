"""Lowers trained ONNX networks to .tacbin files. Needs the extra ``[convert]``; running a model does not."""

from __future__ import annotations

from .convert import convert
from .report import ConversionReport, LayerReport

__all__ = ["ConversionReport", "LayerReport", "convert"]
