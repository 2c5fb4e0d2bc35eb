"""PACE: noise on an adapter's output, and two draws that should agree (arXiv:2409.17137)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from ..adapters import Bottleneck
from ..core import Card, Method, Paper, Site
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..mixtures.noisy import ScaledOutput
from ..mixtures.over import OverMethod
from ..train.objectives import Objective, pace
from ..train.one_pass import OnePass


@dataclass(frozen=True)
class Pace(OverMethod):
    """Any adapter with its output times (1 + sigma e) in training, e ~ N(0, 1), and `pace`.

    e is drawn for each sample and output, the same at all tokens; evaluation is the adapter.
    The loss is CE(z1) + weight * mean |z1 - z2|^2 of two draws. The command line chooses it; in
    Python: intarsia.fit(model, train, objective=method.trained_by)

    Raises: ConfigError on a setting below its least, an `over` that is no adapter, or one pass with
    a second one every few steps.
    Source: paper, section 3; released code. sigma=0 is the adapter, bit for bit.
    Not for tight time but with one_pass: a step with two draws costs twice one of the adapter.
    """

    over: Method = setting(
        help="The adapter with the noisy output.", factory=lambda: Bottleneck(activation="gelu")
    )
    sigma: float = setting(
        1.0,
        "The standard deviation of the noise, the same in all blocks; in the released code it "
        "falls linearly with depth and the first block has none: here any block may be the "
        "first that is adapted.",
        least=0,
        fix="Try 1.",
    )
    weight: float | None = setting(
        None,
        "The weight of the distance of the two draws; 0 is the noise alone. None = 1, or 0.03 "
        "in one pass, where 1 holds the logits where they were an epoch ago; the release, too, "
        "asks for less.",
        least=0,
        fix="Try 1.",
    )
    every: int = setting(
        1, "The period N: only each N-th step has the second pass (PACE_lazy).", least=1
    )
    one_pass: bool = setting(
        False,
        "Take the sample's own draw of the epoch before as the second, see `OnePass` (PACE_fast).",
    )

    def __post_init__(self) -> None:
        """Check the settings: one pass and a second pass every few steps exclude each other."""
        check(self)
        self.refuse_shared()
        if self.one_pass and self.every > 1:
            got, want = f"every={self.every} with one_pass", "one of them"
            raise ConfigError("every", got=got, want=want, fix="Leave every at 1.")

    @property
    def trained_by(self) -> Objective | OnePass:
        """The objective that goes with the noise: `pace`, or `OnePass` where one_pass is set."""
        if self.one_pass:
            # In one pass the second draw is last epoch's, and a weight of its own suits it.
            return OnePass() if self.weight is None else OnePass(self.weight)
        # Two passes in one step: z1 and z2 with independent noise (section 3).
        weight = 1.0 if self.weight is None else self.weight
        return partial(pace, weight=weight, every=self.every)

    def build(self, site: Site, *, generator: torch.Generator) -> ScaledOutput:
        """Build an adapter with noise on its output while it trains."""
        # The noise multiplies the output, so that an adapter that adds nothing yet stays silent.
        body = self.over.build(site, generator=generator)
        return ScaledOutput(body, self.sigma, generator)


CARD = Card(
    "pace",
    kind="adapter",
    config=Pace,
    paper=Paper(
        "2409.17137",
        2024,
        "PACE: marrying generalization in PArameter-efficient fine-tuning with "
        "Consistency rEgularization",
    ),
    tags=frozenset({"stochastic", "folds", "zero_start"}),
    tiny={"over": Bottleneck(4, activation="gelu")},
    summary="Noise on an adapter's output while it trains, and a loss that lets two draws agree.",
    family="noise",
    names=("PACE",),
)
