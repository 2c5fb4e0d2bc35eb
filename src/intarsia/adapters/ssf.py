"""Scaling and shifting your features, SSF (arXiv:2210.08823)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Card, Cell, Method, Paper, Site
from ..core.schema import check, setting


@dataclass(frozen=True)
class Ssf(Method):
    """Scale and shift the output of every layer, y' = gamma * y + beta (Lian et al. 2022, eq. 2).

    Raises: ConfigError on a negative std.
    Not with another adapter that reads the host's LayerNorms (norm="residual").
    """

    roles: tuple[str, ...] = setting(
        ("linear", "norm", "embedding"),
        'The host\'s layers that are scaled: "linear" (linear maps and convolutions of the '
        'blocks), "norm" and "embedding" (patches, and layers between stages); the paper has '
        "all of them.",
    )
    std: float = setting(
        0.0,
        "The standard deviation of the first gamma ~ N(1, std) and beta ~ N(0, std); 0 leaves "
        "the model as it is, and the released code has 0.02.",
        least=0,
        fix="Try 0 or 0.02.",
    )

    position = "sequential"

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "roles", tuple(self.roles))

    def build(self, site: Site, *, generator: torch.Generator) -> SsfCell:
        return SsfCell(self, site, generator=generator)


class SsfCell(Cell):
    """(gamma - 1) * y + beta, with scale = gamma - 1 and shift = beta.  (..., d) -> (..., d)."""

    def __init__(self, config: Ssf, site: Site, *, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        # scale = gamma - 1 and shift = beta, (d,) each
        self.scale = nn.Parameter(torch.zeros(site.outputs))
        self.shift = nn.Parameter(torch.zeros(site.outputs))
        # zeros leave the model unchanged at the start
        if config.std:
            for parameter in (self.scale, self.shift):
                nn.init.normal_(parameter, std=config.std, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.cast(x), self.scale)  # eq. 2, minus the host's y

    def affine(self) -> tuple[Tensor, Tensor]:
        return self.scale, self.shift


CARD = Card(
    "ssf",
    kind="adapter",
    config=Ssf,
    paper=Paper(
        "2210.08823",
        2022,
        "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning",
    ),
    tags=frozenset({"folds", "zero_start"}),
    tiny={},
    summary="A scale and a shift for each channel of every layer's output.",
    family="adapters",
    names=("Scaling and shifting features",),
)
