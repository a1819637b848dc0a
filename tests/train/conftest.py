"""Settings of the tests that need PyTorch."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums have the same order on every machine; small networks gain nothing from more."""
    try:
        import torch
    except ImportError:
        return  # the tests of what needs no PyTorch run without
    torch.set_num_threads(1)
