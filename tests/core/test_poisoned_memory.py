"""Memory that nobody wrote is seen."""

from __future__ import annotations

import torch


def test_uninitialised_memory_is_nan() -> None:
    assert torch.empty(7).isnan().all()
    assert torch.zeros(7).new_empty(3).isnan().all()
