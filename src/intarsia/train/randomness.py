"""Every random state that a step can touch: saved, restored, seeded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..gating import random_sources


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def global_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's global random generators."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    # torch's uint32 has few operations: int64 holds the same numbers
    numbers = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    return {
        "python": random.getstate(),
        "numpy": (str(name), numbers, int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_global_state(state: Mapping[str, Any]) -> None:
    """Set the global random generators to a state that `global_state` returned."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def global_kept() -> Iterator[None]:
    """Restore the global random generators at the end of the context to their state before it."""
    before = global_state()
    try:
        yield
    finally:
        set_global_state(before)


@contextmanager
def seeded_cpu(seed: int) -> Iterator[None]:
    """Seed the global CPU generators inside the context; restore them afterwards.

    It is cheap, and safe in a forked worker process.
    """
    python, array, tensor = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # the CPU's generator alone: torch.manual_seed also seeds every accelerator
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(tensor)


def generator_states(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of the random generator of each module that draws, by path."""
    return {name: draws.generator.get_state() for name, draws in random_sources(model).items()}


def set_generator_states(model: nn.Module, states: Mapping[str, Tensor]) -> None:
    for name, draws in random_sources(model).items():
        draws.generator.set_state(states[name])
