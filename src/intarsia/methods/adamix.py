"""AdaMix: a mixture of adapters, drawn at random, averaged after training (arXiv:2205.12410)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..adapters import Bottleneck, Lora
from ..core import Card, Paper, Site
from ..core.schema import check, setting
from ..mixtures.over import OverMethod
from ..mixtures.routed import RoutedCell, draw_apart, two_sided
from ..mixtures.soup import SoupLinear

SHARES = ("down", "up", "none")


@dataclass(frozen=True)
class Adamix(OverMethod):
    """N dense copies of an adapter's projections; each forward trains some, the mean is kept.

    Raises: ConfigError on a setting that cannot be.
    Source: paper, sections 3.1-3.3. Train it with `two_pass`, its consistency loss.
    Not for tight memory: it stores and trains N copies of the unshared projections.
    """

    over: Bottleneck | Lora = setting(
        help="The adapter that is copied.", factory=lambda: Bottleneck(activation="gelu")
    )
    experts: int = setting(4, "The number N of copies.", least=1, fix="Try 4.")
    active: int = setting(
        1,
        "The number of copies that a draw trains, 1 in the paper.",
        least=1,
        fix="k = 1 is the paper, k = experts is the plain adapter.",
    )
    share: str = setting(
        "down", 'The side that all copies have in common: "down", "up" or "none".', choices=SHARES
    )
    draw: str = setting(
        "batch",
        'The samples that share a draw: "batch", all of them (the paper), or "sample", each has '
        "its own.",
        choices=("batch", "sample"),
    )
    noise: float = setting(
        0.0,
        "The standard deviation sigma of a Gaussian on each copy, by which copies differ at the "
        "start (else they only part by their draws); where they start at zero, as with "
        'share="down", the adapter then does something before it is trained.',
        least=0,
        fix="Try 0.01.",
    )

    def __post_init__(self) -> None:
        check(self)
        # the router says what else can be wrong
        draw_apart(self.experts, self.active, self.draw, generator=torch.Generator())

    def build(self, site: Site, *, generator: torch.Generator) -> RoutedCell:
        """Build an adapter with N copies of the unshared projections, in evaluation their mean."""
        # Copies replace the projections of one ordinary adapter, so that activation and norm exist
        # once.
        body = two_sided(self.over.build(site, generator=generator))
        # The shared side stays one projection.
        sides = [side for side in ("down", "up") if side != self.share]
        # SoupLinear: N weights in one tensor; evaluation uses their mean (section 3.3).
        layers = {
            side: SoupLinear(getattr(body, side), self.experts, active=self.active)
            for side in sides
        }
        for layer in layers.values():
            if self.noise and not layer.weights.is_meta:
                # On the meta device, where only shapes are made, there is nothing to draw.
                shape = layer.weights.shape
                with torch.no_grad():
                    layer.weights.add_(torch.randn(shape, generator=generator), alpha=self.noise)
        # Each side draws its copies on its own (section 3.1).
        routers = {
            side: draw_apart(self.experts, self.active, self.draw, generator=generator)
            for side in sides
        }
        return RoutedCell(body, dict(layers), routers)


CARD = Card(
    "adamix",
    kind="adapter",
    config=Adamix,
    paper=Paper(
        "2205.12410", 2022, "AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning"
    ),
    tags=frozenset({"stochastic", "folds", "zero_start"}),
    tiny={"over": Bottleneck(4, activation="gelu")},
    summary="Dense copies of an adapter, trained by random routing and averaged into one.",
    family="adapter mixtures",
    names=("Mixture of adaptations",),
)
