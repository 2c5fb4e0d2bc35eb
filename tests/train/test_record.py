"""What a run says of itself."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from intarsia.train.record import forget_peak, peak_bytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can forget a peak")
def test_the_peak_counts_from_where_it_was_forgotten() -> None:
    held = np.ones(40_000_000)  # 320 MB
    del held
    before = peak_bytes()["resident"]
    forget_peak()
    after = peak_bytes()["resident"]
    assert after < before - 200e6
