"""From analysed graphs to ops of a .tacbin."""

from __future__ import annotations

from .lower import lower

__all__ = ["lower"]
