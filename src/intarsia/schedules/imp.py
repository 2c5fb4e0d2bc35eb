"""Iterative magnitude pruning: prune, train again, prune further (arXiv:1506.02626)."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import nn

from ..core import Card, Paper, Partition
from ..core.schema import check, setting
from ..partitions.topk import keep_top
from .fixed_mask import FixedMask
from .masked import STORES
from .masked_layers import masked_weights
from .phases import Phase


@dataclass(frozen=True)
class Imp:
    """`rounds` times: the smallest weights left become 0, then the model is trained with its zeros.

    `intarsia.fit_in_phases` carries it out on a trained model; each round has the epochs that were
    asked for.

    Not for an untrained model: the weights that go are the smallest of a trained one.
    Raises: ConfigError on settings that cannot be.
    Source: Han et al. (2015), section 3; the global share of Sparse Model Soups (arXiv:2306.16788).
    """

    density: float = setting(
        0.1,
        "The share of the weights that is kept at the end; each round keeps density^(1/rounds) "
        "of the weights left, over all layers at once.",
        above=0,
        most=1,
        fix="Try 0.1.",
    )
    rounds: int = setting(3, "The number of rounds of pruning and training.", least=1)
    layers: tuple[str, ...] | None = setting(
        None,
        'The layers with masks, as globs of paths, "1x1" for pointwise convolutions; None = all '
        "linear maps and convolutions that are not grouped.",
    )
    store: str = setting(
        "dense",
        'The optimiser\'s memory: "dense", or "vectors", an optimiser that remembers the kept '
        "weights only.",
        choices=STORES,
    )

    def __post_init__(self) -> None:
        check(self)

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, Partition]:
        """Prune the model before each round, and yield the round's training.

        model: a trained one; seed: unused, because nothing is drawn. Returns the masks of the last
          round.
        """
        masks: Partition | None = None
        for number in range(1, self.rounds + 1):
            # equal shares of the remaining weights: density^(i / rounds) after round i
            masks = prune(model, self.density ** (number / self.rounds), self.layers, masks)
            fixed = FixedMask(layers=self.layers, store=self.store)
            schedule = fixed if masks.density() < 1 else None
            yield Phase(f"round-{number}", last=number == self.rounds, schedule=schedule)
        assert masks is not None
        return masks


@torch.no_grad()
def prune(
    model: nn.Module,
    density: float,
    layers: tuple[str, ...] | None = None,
    within: Partition | None = None,
) -> Partition:
    """Set all but round(density n) of the n weights of some layers to 0, the smallest first.

    model: changed in place; density: share to keep, over all layers together; layers: globs of
      layers, None = all linear maps and convolutions; within: masks of an earlier call, outside
      which nothing is kept. Returns the masks as a partition of one part.
    Raises: ConfigError as `masked_weights` does.
    """
    weights = masked_weights(model, layers)
    scores = {n: w.detach().abs() for n, w in weights.items()}
    if within is not None:
        # outside earlier masks a weight scores below every other
        scores = {n: s.masked_fill((within[n] < 0).to(s.device), -1) for n, s in scores.items()}
    # one threshold for all layers
    masks = keep_top(scores, round(density * sum(w.numel() for w in weights.values())))
    for name, weight in weights.items():
        weight.masked_fill_(~masks.mask(name, 0).to(weight.device), 0)
    return masks


CARD = Card(
    "imp",
    kind="training",
    config=Imp,
    paper=Paper("1506.02626", 2015, "Learning both Weights and Connections for Efficient Networks"),
    summary="Prune the smallest weights, train, prune further, and so on.",
    family="sparse training",
    names=("IMP", "Iterative magnitude pruning"),
    tiny={"density": 0.4, "rounds": 2},
)
