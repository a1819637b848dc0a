"""What can go wrong. All errors derive from TacError."""

from __future__ import annotations

from ._core import FormatError, InvalidInputError, TacError, UnsupportedModelError

__all__ = ["FormatError", "InvalidInputError", "TacError", "UnsupportedModelError"]
