"""What is added, and where."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """A place in a host model with a declared input and output width.

    `module` is the host's module at `path` (a Linear, an MLP, a whole block). With `position`
    "parallel" the cell reads the module's input, y = f(x) + cell(x); with "sequential" its output,
    y = f(x) + cell(f(x)). `channels` says which axis carries the width ("last" or "first").
    `norm` holds weight and bias of the host's LayerNorm that feeds the module, if there is one.
    """

    path: str
    inputs: int
    outputs: int
    position: str = "parallel"
    channels: str = "last"
    norm: tuple[Tensor, Tensor] | None = None

    @property
    def reads(self) -> int:
        """The width of what the cell reads."""
        return self.inputs if self.position == "parallel" else self.outputs

    def at(self, position: str) -> Site:
        return replace(self, position=position)


class Cell(nn.Module, abc.ABC):
    """What is added at a site: y = site(x) + cell(x).

    A cell never merges itself into a host; it says what it would add.
    """

    @abc.abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The addition.  x: (..., inputs) -> (..., outputs)."""

    def delta(self) -> Tensor | None:
        """The weight change (outputs, inputs) if the cell is linear in x, else None."""
        return None

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """(s, t), both (outputs,), if the cell adds s * y + t to the y that it reads, else None."""
        return None

    def merged(self) -> Cell:
        """The deterministic cell that stands for this one after training; most cells are that."""
        return self

    def cast(self, x: Tensor) -> Tensor:
        """x in the cell's own dtype, unless autocast will see to it."""
        device = x.device.type  # the meta device knows no autocast
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return x
        dtype = next((p.dtype for p in self.parameters()), x.dtype)
        return x.to(dtype)


class Method(Protocol):
    """What every adapter's config offers: where its cells go, and how one is built.

    roles: which of the host's modules ("mlp", "attention", "block", "qkv", "qv", "projection",
    "mlp_linear"; "linear", every linear map or convolution in a block, "norm", every norm, and
    "embedding", the layers before and between the blocks); position: "parallel" or "sequential".
    All random numbers come from `generator`.
    """

    @property
    def roles(self) -> tuple[str, ...]: ...

    @property
    def position(self) -> str: ...

    def build(self, site: Site, *, generator: torch.Generator) -> Cell: ...
