"""Learning rates of a training after pruning (arXiv:2306.16788; arXiv:2111.00843)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..core.checks import above, at_least, below_one, between, one_of

RETRAIN = ("llr", "allr", "clr", "slr", "lrw", "ft", "own")

Factor = Callable[[int, int], float]


@dataclass(frozen=True)
class Retrain:
    """The learning rate of a training after pruning, as a multiple of lr at a share of its steps.

    kind: "llr", linear from lr to 0; "allr", linear from lr max(d1, d2), d1 = |W - W_pruned| /
    (|W| sqrt s) with s the share that was pruned, d2 = share; "clr", cosine; "slr", the original
    steps compressed; "lrw", the original's last `share` replayed; "ft", its last rate; "own", the
    rate of `fit`.  original: multiples of the first training's lr, equally long; share: the length
    of a retraining over the original's, above 0 and at most 1.  warmup: the share of the steps in
    which the rate rises along half a cosine first, as released; not of "lrw", "ft" and "own".
    "clr" ends at 0, in the released code at the smallest rate of the original.
    Source: arXiv:2306.16788, appendix; arXiv:2111.00843 for LLR and ALLR.
    """

    kind: str = "llr"
    original: tuple[float, ...] = (1.0, 0.1, 0.01)
    share: float = 0.1
    warmup: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "original", tuple(self.original))
        one_of("kind", self.kind, RETRAIN)
        at_least("original", len(self.original), 1)
        above("share", self.share, 0, fix="Try 0.1.")
        between("share", self.share, 0, 1, fix="Try 0.1.")
        below_one("warmup", self.warmup)

    def factor(self, moved: float = 1.0) -> Factor | None:
        """Return the function (step, steps) -> multiple of lr; None = the learning rates of `fit`.

        moved: d1, the relative distance by which pruning moved the weights; used by "allr" alone.
        """
        if self.kind == "own":
            return None
        # where in the original's rates it begins: at their start, at the last share, at their end
        start = {"slr": 0.0, "lrw": 1 - self.share, "ft": 1.0}.get(self.kind)
        # a factor of its own, a line, or a part of the original's rates
        if self.kind == "clr":
            after: Factor = _cosine
        elif start is None:
            after = partial(_linear, top=1.0 if self.kind == "llr" else max(moved, self.share))
        else:
            after = partial(_stepwise, original=self.original, start=start)
        # replayed rates, as published, begin without a warm-up
        if self.kind in ("lrw", "ft"):
            return after
        return partial(_warm, after=after, share=self.warmup)


def _warm(step: int, steps: int, *, after: Factor, share: float) -> float:
    """Return the factor of a schedule with a warm-up: half a cosine from 0 to its first value."""
    # the rest of the schedule is stretched over the steps that the warm-up leaves
    rise = int(share * steps)
    if not rise:
        return after(step, steps)
    if step <= rise:
        return after(0, steps - rise) * (1 - math.cos(math.pi * step / rise)) / 2
    return after(step - rise - 1, steps - rise)


def _linear(step: int, steps: int, *, top: float) -> float:
    """Return a factor that falls linearly from `top` to 0 over the steps."""
    return top * (1 - step / max(1, steps))


def _cosine(step: int, steps: int) -> float:
    """Return a factor that falls along half a cosine from 1 to 0 over the steps."""
    return (1 + math.cos(math.pi * step / max(1, steps))) / 2


def _stepwise(step: int, steps: int, *, original: tuple[float, ...], start: float) -> float:
    """Return the multiple of lr that the original training had at a later share of its steps."""
    # where in the original's training, 0 ... 1
    position = start + (1 - start) * step / max(1, steps)
    return original[min(len(original) - 1, int(position * len(original)))]
