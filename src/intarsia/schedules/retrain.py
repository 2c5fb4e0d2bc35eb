"""Learning rates of a training after pruning (arXiv:2306.16788; arXiv:2111.00843)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..core.checks import above, at_least, between, one_of

RETRAIN = ("llr", "allr", "clr", "slr", "lrw", "ft", "own")

Factor = Callable[[int, int], float]


@dataclass(frozen=True)
class Retrain:
    """The learning rate of a training after pruning, as a multiple of lr at a share of its steps.

    kind: "llr", linear from lr to 0; "allr", linear from lr max(d1, d2), d1 = |W - W_pruned| /
    (|W| sqrt s) with s the share that was pruned, d2 = share; "clr", cosine; "slr", the original
    steps compressed; "lrw", the original's last `share` replayed; "ft", its last rate; "own", what
    `fit` was told.  original: multiples of the first training's lr, equally long; share: the length
    of a retraining over the original's, above 0 and at most 1.
    Source: arXiv:2306.16788, appendix; arXiv:2111.00843 for LLR and ALLR.
    """

    kind: str = "llr"
    original: tuple[float, ...] = (1.0, 0.1, 0.01)
    share: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "original", tuple(self.original))
        one_of("kind", self.kind, RETRAIN)
        at_least("original", len(self.original), 1)
        above("share", self.share, 0, fix="Try 0.1.")
        between("share", self.share, 0, 1, fix="Try 0.1.")

    def factor(self, moved: float = 1.0) -> Factor | None:
        """(step, steps) -> multiple of lr; None = the run's own.  moved: d1."""
        if self.kind == "own":
            return None
        if self.kind == "clr":
            return _cosine
        if self.kind in ("llr", "allr"):
            top = 1.0 if self.kind == "llr" else max(moved, self.share)
            return partial(_linear, top=top)
        start = {"slr": 0.0, "lrw": 1 - self.share, "ft": 1.0}[self.kind]
        return partial(_stepwise, original=self.original, start=start)


def _linear(step: int, steps: int, *, top: float) -> float:
    return top * (1 - step / max(1, steps))


def _cosine(step: int, steps: int) -> float:
    return (1 + math.cos(math.pi * step / max(1, steps))) / 2


def _stepwise(step: int, steps: int, *, original: tuple[float, ...], start: float) -> float:
    at = start + (1 - start) * step / max(1, steps)
    return original[min(len(original) - 1, int(at * len(original)))]
