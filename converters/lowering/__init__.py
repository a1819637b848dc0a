"""From analysed graphs to ops of a .tacbin."""

from __future__ import annotations

from .lower import Lowering, lower

__all__ = ["Lowering", "lower"]
