"""Values of a run for each item that it was scored on: a picture, or a row of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..sheet import ItemValues, paired
from ..statistics import PairedInterval

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class RunItems:
    """A run's items.  values: by the score that is their mean; empty for other kinds of outputs.

    part: a digest of the part that was scored.  numbered: whether the run has stored which item is
    which; else they are numbered in the part's order.
    """

    part: str
    numbered: bool
    values: Mapping[str, ItemValues]


def run_items(tensors: Tensors, part: str) -> RunItems:
    """Return what each item, a picture or a text, contributes to a run's scores.

    Returns for each score that is a mean over items (accuracy, loss) the value of every item; none
    where a picture may have several labels.
    """
    values: dict[str, ItemValues] = {}
    if "tokens" in tensors:
        values = _text_values(tensors)
    elif "logits" in tensors and tensors["labels"].shape == tensors["logits"].shape[:1]:
        values = _picture_values(tensors["logits"].astype(float), tensors["labels"])
    # the samples of some data sets have no numbers
    if "items" not in tensors:
        return RunItems(part, False, values)
    items = tensors["items"]
    if "tokens" in tensors:
        items = items[tensors["tokens"] > 0]
    return RunItems(part, True, {name: replace(v, items=items) for name, v in values.items()})


def _picture_values(logits: np.ndarray, labels: np.ndarray) -> dict[str, ItemValues]:
    """Return what each of n pictures contributes to the scores, by the score's name."""
    # logits: (n, classes); labels: (n,). Balanced accuracy weighs a picture by 1 / the size of its
    # class; loss is -log softmax, in nats
    order, right = np.arange(len(labels)), logits.argmax(1) == labels
    _, place, size = np.unique(labels, return_inverse=True, return_counts=True)
    loss = np.logaddexp.reduce(logits, axis=1) - logits[order, labels]
    return {
        "accuracy": ItemValues(order, right),
        "balanced_accuracy": ItemValues(order, right, 1 / size[place]),
        "loss": ItemValues(order, loss),
    }


def _text_values(tensors: Tensors) -> dict[str, ItemValues]:
    """Return what each text contributes to the scores: score's name -> values of the texts."""
    some = tensors["tokens"] > 0
    tokens = tensors["tokens"][some].astype(float)
    order = np.arange(len(tokens))
    return {
        name: ItemValues(order, tensors[key][some] / tokens, tokens)
        for name, key in (("accuracy", "hits"), ("loss", "loss"))
    }


def interval_of(
    ours: Mapping[int, RunItems | None], theirs: Mapping[int, RunItems | None], score: str
) -> tuple[PairedInterval | None, str]:
    """Return the 95 % interval of a score's difference between two methods, and "".

    If there can be none, return None and a text that names the missing part. The interval counts
    the chance in test items and in seeds together. ours, theirs: seed -> a run's values of each
    item, None for a run that stored none.
    """
    # only seeds that both have can be paired
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None, "no seed in common"
    runs = [(ours[seed], theirs[seed]) for seed in seeds]
    all_items = [run for pair in runs for run in pair if run is not None]
    if len(all_items) < 2 * len(seeds):
        return None, "the runs kept no predictions"
    # F1, for example, is no mean over items, so that items say nothing of its spread
    if not all(score in run.values for run in all_items):
        return None, f"{score.replace('_', ' ')} is no mean over items"
    # without numbers the items are known to be the same only if the parts are
    if not all(run.numbered for run in all_items) and _are_several(run.part for run in all_items):
        return None, _UNNUMBERED
    mine, base = (
        {seed: run.values[score] for seed in seeds if (run := items[seed])}
        for items in (ours, theirs)
    )
    interval = paired(mine, base)
    return interval, "" if interval else "the methods were not scored on the same items"


_UNNUMBERED = (
    "each seed has a test part of its own, and the samples of this data set have no numbers by "
    "which the items of two runs could be paired"
)


def _are_several(parts: Iterable[str]) -> bool:
    return len(set(parts)) > 1
