"""Settings of the tests that need PyTorch."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Sums have the same order on every machine; small networks gain nothing from more."""
    pytest.importorskip("torch").set_num_threads(1)
