"""Rewrites of the analysed graph that turn float layers into layers of bits; each is one idea in its own file."""

from __future__ import annotations

from .integer_sums import integer_sums
from .split_layers import SplitResult, split_layers
from .token_layers import token_layers

__all__ = ["SplitResult", "integer_sums", "split_layers", "token_layers"]
