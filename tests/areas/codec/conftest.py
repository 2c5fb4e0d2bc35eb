"""A codec that was trained for a moment, and waves for it to code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from intarsia.areas.codec.codec import Recombiner
from intarsia.areas.codec.recombiner import CARD, RecombinerSettings

TINY = RecombinerSettings(**CARD.tiny)


def waves(seed: int, *sizes: int) -> Any:
    """A smooth colour picture, or frames of one."""
    random = np.random.default_rng(seed)
    coordinates = np.stack(np.meshgrid(*(np.linspace(0, 1, n) for n in sizes), indexing="ij"), -1)
    values = np.sin(coordinates @ random.normal(0, 4, (len(sizes), 3)) + random.uniform(0, 6, 3))
    return np.rint((values + 1) / 2 * 255).astype(np.uint8)


@pytest.fixture(scope="session")
def codec() -> Recombiner:
    pictures = [waves(i, 20, 24) for i in range(12)]
    return Recombiner.train(pictures, 0.4, TINY, crops=24, steps=75)
