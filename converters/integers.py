"""Integer element types, those of 2 and 4 bits among them, which numpy knows only through ml_dtypes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

MAX_EXACT_FLOAT = 1 << 24  # float32 holds every integer up to here
_SMALL = tuple(np.dtype(kind) for kind in (ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.int4, ml_dtypes.uint4))


def integer_limits(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """Least and greatest value of an integer type; None for any other."""
    if dtype in _SMALL:
        info: Any = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
        return int(info.min), int(info.max)
    if dtype.kind not in "iu":
        return None
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)
