"""Uniform random routing (THOR, arXiv:2110.04260): AdaMix (arXiv:2205.12410) draws for each batch,
as does MoSA (arXiv:2312.02923); a draw for each sample has the same law."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import Card, Paper, Routing
from ..core.checks import at_least, between, one_of
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..gating.random_source import RandomSource


class RandomRouter(RandomSource):
    """k of E experts, uniformly without replacement, for the whole batch or for each sample.

    x: (B, ...) -> Routing of shape (B, E), weight 1 at the k drawn experts; in evaluation every
    expert has the weight k / E, and nothing is drawn: a mixture gives its expected output.

    Draws are held, stacked and shared among ranks as in `RandomSource`. `fixed`: k may not change,
    for mixtures with a merge that depends on it.

    Raises: ConfigError unless 1 <= active <= experts; ShapeError where `RandomSource` does.
    """

    def __init__(
        self, experts: int, active: int, per: str, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__(generator)
        at_least("experts", experts, 1, "Try 4.")
        one_of("draw", per, ("batch", "sample"))
        self.experts, self.per = experts, per
        self.fixed = False
        self.active = active

    @property
    def active(self) -> int:
        """k, how many experts a draw selects; a schedule may set it."""
        return self._active

    @active.setter
    def active(self, k: int) -> None:
        self.check_active(k)
        self._active = k

    def check_active(self, k: int) -> None:
        """Raise ConfigError unless k experts may be drawn from now on.

        k: 1 ... E; where a merge of the experts depends on it, only the k of the settings.
        """
        fix = "k = 1 is the paper, k = experts is the plain adapter."
        between("active", k, 1, self.experts, fix)
        if self.fixed and k != self._active:
            want = f"{self._active}, as built: the merge depends on it"
            fix = "Use scaling='inverted', whose merge holds for every k."
            raise ConfigError("active", got=k, want=want, fix=fix)

    def _draw(self, rows: int) -> Tensor:
        """Draw k experts for each of `rows` samples.  (rows, k) int64."""
        size = 1 if self.per == "batch" else rows
        # the k largest of E uniforms are a uniform k-subset
        index = self.uniform(size, self.experts).topk(self.active).indices
        return index.expand(rows, -1) if self.per == "batch" else index

    def forward(self, x: Tensor, state: Tensor | None = None) -> Routing:
        """Return k random experts of weight 1 for each sample; in evaluation all, of weight k / E.

        x: (B, ...); only B and the type are read. state: unused; routers that pass a state
          from layer to layer need it. Returns a Routing of shape (B, E).
        """
        if not self.training:
            # the mean over all draws, without a draw
            all_experts = torch.arange(self.experts, device=x.device).expand(len(x), -1)
            share = torch.full_like(all_experts, self.active / self.experts, dtype=x.dtype)
            return Routing.from_topk(all_experts, share, self.experts)
        index = self.drawn(x.shape[0], self._draw).to(x.device, non_blocking=True)  # (B, k)
        return Routing.from_topk(index, torch.ones_like(index, dtype=x.dtype), self.experts)


@dataclass(frozen=True)
class RandomRouting:
    """G = 1 at k of N experts, drawn uniformly; in evaluation k / N at all. See RandomRouter.

    Not where evaluation must be sparse: there all N experts run.
    Raises: ConfigError for a setting out of range.
    Source: THOR (arXiv:2110.04260); AdaMix (arXiv:2205.12410) draws for each batch.
    """

    experts: int = setting(4, "The number N of experts.", least=1, fix="Try 4.")
    active: int = setting(
        1,
        "The number k of experts that a draw selects.",
        least=1,
        fix="k = 1 is the paper, k = experts is the plain adapter.",
    )
    draw: str = setting(
        "sample",
        'The samples that share a draw: "sample", each has its own k experts; "batch", one draw '
        "for all.",
        choices=("sample", "batch"),
    )

    def __post_init__(self) -> None:
        check(self)
        # the router checks the settings against each other
        self.build(1, generator=torch.Generator())

    def build(self, width: int, *, generator: torch.Generator | None = None) -> RandomRouter:
        """Return a router for tokens of any width.  generator: source of the draws."""
        return RandomRouter(self.experts, self.active, self.draw, generator=generator)


def random_routers(model: nn.Module) -> dict[str, RandomRouter]:
    """Return every random router inside a model, by path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, RandomRouter)}


CARD = Card(
    "random",
    kind="router",
    config=RandomRouting,
    paper=Paper(
        "2110.04260", 2021, "Taming Sparsely Activated Transformer with Stochastic Experts"
    ),
    tags=frozenset({"sparse", "stochastic"}),
    summary="Experts drawn uniformly at random, for each sample or for the whole batch.",
    family="stochastic routing",
    names=("THOR", "Stochastic experts"),
)
