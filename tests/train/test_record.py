"""What a run says of itself."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from intarsia.train.record import forget_peak, peak_bytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can forget a peak")
def test_the_peak_counts_from_where_it_was_forgotten() -> None:
    array = np.ones(40_000_000)  # 320 MB
    del array
    before = peak_bytes(0)["resident"]
    start = forget_peak()
    assert peak_bytes(start)["resident"] < before - 200e6
    further = np.ones(20_000_000)  # 160 MB
    del further
    assert 150e6 < peak_bytes(start)["grown"] < 200e6
