"""AdaMix: a mixture of adapters, drawn at random, averaged after training (arXiv:2205.12410)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..adapters import Bottleneck, Lora
from ..core import Card, Paper, Site
from ..core.checks import at_least, one_of
from ..mixtures.over import OverMethod
from ..mixtures.routed import RoutedCell, draw_apart, two_sided
from ..mixtures.soup import SoupLinear

SHARES = ("down", "up", "none")


@dataclass(frozen=True)
class Adamix(OverMethod):
    """N dense copies of an adapter's projections; each forward trains some, the mean is kept.

    over: the adapter that is copied; experts: N; active: how many a draw trains, 1 in the paper;
    share: the side that all experts have in common, "down", "up" or "none";
    draw: "batch" (the paper) or "sample"; noise: sigma of a Gaussian on each copy, by which copies
    differ at the start (else they only part by their draws); where they start at zero, as those of
    share="down", the adapter then does something before it is trained.

    Raises: ConfigError on a setting that cannot be.
    Source: paper, sections 3.1-3.3. Train it with `two_pass`, its consistency loss.
    Not for tight memory: it stores and trains N copies of what is not shared.
    """

    over: Bottleneck | Lora = field(default_factory=lambda: Bottleneck(activation="gelu"))
    experts: int = 4
    active: int = 1
    share: str = "down"
    draw: str = "batch"
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings of the mixture before anything is built.

        Raises: ConfigError for an unknown `share`, negative noise, or experts that cannot be drawn.
        """
        one_of("share", self.share, SHARES)
        at_least("noise", self.noise, 0, "Try 0.01.")
        # the router says what else can be wrong
        draw_apart(self.experts, self.active, self.draw, generator=torch.Generator())

    def build(self, site: Site, *, generator: torch.Generator) -> RoutedCell:
        """Build an adapter whose unshared projections exist in N copies; a forward uses some.

        site: the host module, with its input and output widths; generator: the source of first
          weights, noise and draws of experts. The copies' mean is used in evaluation.
        """
        # Copies replace the projections of one ordinary adapter, so that activation and norm exist
        # once.
        body = two_sided(self.over.build(site, generator=generator))
        # The shared side stays one projection.
        sides = [side for side in ("down", "up") if side != self.share]
        # SoupLinear: N weights in one tensor, whose mean is used in evaluation (section 3.3).
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
        # Each side draws its copies by itself (section 3.1).
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
