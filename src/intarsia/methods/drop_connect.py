"""DropConnect of an adapter: each sample drops other weights (Wan et al. 2013)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..adapters import Bottleneck, Lora
from ..core import Card, Paper, Site
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..mixtures.noisy import DroppedWeights
from ..mixtures.over import OverMethod
from ..mixtures.routed import two_sided

SIDES = ("up", "down")


@dataclass(frozen=True)
class DropConnect(OverMethod):
    """An adapter with weights w m / (1 - p) in one projection while it trains, P(m = 0) = p.

    m is drawn for each sample and entry; evaluation is the adapter itself, which for the
    up-projection is the mean over draws. With p = 1 - 1/N an entry is there as often as in MoSA
    with one of N parts (arXiv:2312.02923), but entries are drawn apart and the bias is one.

    Raises: ConfigError on a setting that cannot be.
    Source: Wan et al., ICML 2013, section 3. p=0 is the adapter, bit for bit.
    Not for ample data: it regularises.
    """

    over: Bottleneck | Lora = setting(
        help="The adapter with the dropped weights, a Bottleneck or a Lora.",
        factory=lambda: Bottleneck(activation="gelu"),
    )
    p: float = setting(
        0.5, "The share p of the weights that is dropped.", least=0, below=1, fix="Try 0.5."
    )
    side: str = setting("up", "The projection that loses weights.", choices=SIDES)

    def __post_init__(self) -> None:
        """Check the settings, and that the adapter has two projections.  Raises: ConfigError."""
        check(self)
        if not isinstance(self.over, Bottleneck | Lora):
            got, fix = type(self.over).__name__, "Pass the adapter whose weights are dropped."
            raise ConfigError("over", got=got, want="Bottleneck or Lora", fix=fix)

    def build(self, site: Site, *, generator: torch.Generator) -> DroppedWeights:
        """Build an adapter that drops random weights of one projection while it trains."""
        # The same weights with and without noise: in evaluation the mask is the whole matrix.
        body = two_sided(self.over.build(site, generator=generator))
        return DroppedWeights(body, self.side, self.p, generator)


CARD = Card(
    "drop_connect",
    kind="adapter",
    config=DropConnect,
    paper=Paper(
        "1906.04569",
        2019,
        "DropConnect Is Effective in Modeling Uncertainty of Bayesian Deep Networks",
    ),
    tags=frozenset({"stochastic", "folds", "zero_start"}),
    tiny={"over": Bottleneck(4, activation="gelu")},
    summary="An adapter with weights dropped at random in training, differently for each sample.",
    family="noise",
    names=("DropConnect", "Drop-connect"),
)
