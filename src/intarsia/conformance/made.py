"""Material of the laws: numbers of a seed, moved weights, tensors read from a file."""

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
    """Return a generator of this seed."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Return normal numbers of this shape, the same for a seed."""
    return torch.randn(shape, generator=seeded(seed))


@torch.no_grad()
def moved(model: M, scale: float = 0.1, seed: int = 2) -> M:
    """Add noise to every trained weight of a model, as training would; return the model."""
    generator = seeded(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # a start at zero would hide what the rest of a method does
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    return model


def read_again(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as they come back from a safetensors file."""
    return safetensors.torch.load(
        safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    )


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Set the seed of torch's own generator inside the `with` block, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def require_own_draws(make: Callable[[], Iterable[Tensor]], got: str, fix: str) -> None:
    """Require that two calls of `make` give the same bits, whatever torch's generator does."""
    runs: list[list[Tensor]] = []
    # the method's own generator has one seed; torch's has two
    for seed in (3, 4):
        with torch_seed(seed):
            runs.append(list(make()))
    equal = all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    require(equal, got, "the same bits from one seed", fix)
