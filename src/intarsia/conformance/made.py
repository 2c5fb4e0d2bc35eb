"""What the laws are tried on: numbers of a seed, moved weights, tensors read from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from .verdict import require

M = TypeVar("M", bound=nn.Module)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers, the same for a seed."""
    return torch.randn(shape, generator=seeded(seed))


@torch.no_grad()
def moved(model: M, by: float = 0.1, seed: int = 2) -> M:
    """Return the model with every trained weight moved, as training would."""
    generator = seeded(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return model


def read_again(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors after a safetensors file."""
    return safetensors.torch.load(
        safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    )


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Inside, torch's own generator has this seed; afterwards it is where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def require_own_draws(make: Callable[[], Iterable[Tensor]], got: str, fix: str) -> None:
    """What is made twice is the same bits, whatever torch's own generator does."""
    found: list[list[Tensor]] = []
    for seed in (3, 4):
        with torch_seed(seed):
            found.append(list(make()))
    same = all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    require(same, got, "the same bits from one seed", fix)
