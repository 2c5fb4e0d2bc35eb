"""Selection of exactly the K largest scores over all tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..core import Partition
from ..core.checks import between
from ..core.errors import ConfigError

CHUNK = 2**22  # scores per step
HALF = 2**16


def keep_top(scores: Mapping[str, Tensor], count: int) -> Partition:
    """Select the `count` largest scores over all tensors, as a partition with one part.

    scores: tensor's name -> a score of each weight, compared as float32. Exactly `count` are
    selected; of equal scores the first, in the order of the mapping and of the entries.
    Two histograms of the scores' bits give one threshold for all tensors, without sorting and
    without copying more than a few million scores at a time.

    Raises: ConfigError for a negative count, fewer scores than `count`, or a NaN.
    Source: LT-SFT (arXiv:2110.07560); its released code selects all scores at the threshold.
    """
    total = sum(score.numel() for score in scores.values())
    between("count", count, 0, total, fix=f"There are {total} weights to choose from.")
    label = {n: torch.full(s.shape, -1, dtype=torch.int8) for n, s in scores.items()}
    if count:
        threshold, ties = _threshold(scores, count)
        for name, score in scores.items():
            flat = label[name].view(-1)
            for start, keys in _keys(score):
                selected = keys > threshold
                equal = (keys == threshold).nonzero().flatten()[:ties]
                selected[equal] = True
                ties -= len(equal)
                flat[start : start + len(keys)] = selected.to(torch.int8).cpu() - 1
    return Partition(label, 1)


def keep_random(
    shapes: Mapping[str, Sequence[int]], count: int, *, generator: torch.Generator
) -> Partition:
    """Select `count` of all weights at random, all equally likely, as a partition with one part.

    shapes: parameter's name -> its shape; generator: source of the draw.
    Raises: ConfigError for a negative count, or more than there are weights.
    """
    scores = {n: torch.rand(tuple(s), generator=generator) for n, s in shapes.items()}
    return keep_top(scores, count)


def entries(partition: Partition, part: int = 0) -> dict[str, Tensor]:
    """Return where the weights of a part lie in each flattened parameter, (n,) int64, increasing.

    partition: a label for each weight of each parameter; part: which label.
    """
    return {
        name: partition.mask(name, part).flatten().nonzero().flatten() for name in partition.label
    }


def _threshold(scores: Mapping[str, Tensor], count: int) -> tuple[int, int]:
    """Find the count-th largest score; return its key, and how many scores equal to it to take."""
    # the upper 16 bits of the threshold first, then the lower ones among the scores of that bin
    high = _histogram(keys // HALF for score in scores.values() for _, keys in _keys(score))
    top, above = _bin_of_rank(high, count)
    low = _histogram(
        keys[keys // HALF == top] % HALF for score in scores.values() for _, keys in _keys(score)
    )
    rest, above_low = _bin_of_rank(low, count - above)
    return top * HALF + rest, count - above - above_low


def _bin_of_rank(histogram: Tensor, count: int) -> tuple[int, int]:
    """Find the histogram's bin with the count-th largest score; count the scores in higher bins."""
    reached = histogram.flip(0).cumsum(0)  # [i]: scores in the i + 1 highest bins
    place = int((reached < count).sum())
    above = int(reached[place - 1]) if place else 0
    return HALF - 1 - place, above


def _histogram(parts: Iterator[Tensor]) -> Tensor:
    """Count how often each number 0 ... 2^16 - 1 occurs in several tensors.  (2^16,) int64."""
    total = torch.zeros(HALF, dtype=torch.int64)
    for part in parts:
        total += torch.bincount(part, minlength=HALF).cpu()
    return total


def _keys(score: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the scores in chunks, as whole numbers (keys) in the same order as the scores."""
    flat = score.detach().reshape(-1)
    for start in range(0, len(flat), CHUNK):
        chunk = flat[start : start + CHUNK].float()
        if bool(chunk.isnan().any()):
            fix = "Check for a diverged training, and lower its learning rate."
            raise ConfigError("scores", got="NaN", want="numbers", fix=fix)
        # bits of positive floats sort as they are, bits of negative ones the other way round
        bits = (chunk + 0.0).view(torch.int32).long()  # + 0.0: -0 is 0
        yield start, torch.where(bits < 0, -1 - (bits & 0x7FFFFFFF), bits) + 2**31
