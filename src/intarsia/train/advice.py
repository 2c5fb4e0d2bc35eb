"""Lines about a run that went wrong in a common way, each with what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .scores import Metrics, Scores

FALLS = 0.98  # of the first epoch's loss, which the last has to be below
FEWEST = 30  # scored pictures, below which shares say nothing
APART = 0.2  # accuracy above balanced accuracy, from which rare classes are not answered


def advice(
    record: Mapping[str, Any], history: Sequence[Mapping[str, Any]], scores: Scores | None
) -> list[str]:
    """Return lines about a training that did not learn, or answers the common classes alone.

    scores: of the test part, or of the validation part where there is no test.
    """
    lines = _flat_loss(record, history)
    if not isinstance(scores, Metrics) or len(scores.labels) < FEWEST:
        return lines
    counts = torch.bincount(scores.labels)
    share = int(counts.max()) / len(scores.labels)
    right = f"{100 * scores.accuracy:.1f} %"
    if scores.accuracy <= share:
        return [
            *lines,
            f"{right} are right, and always answering the commonest class would have "
            f"{100 * share:.1f} %: {_lower_rate(record)}, or begin with --method linear.",
        ]
    if scores.accuracy - scores.balanced_accuracy > APART:
        balanced = f"{100 * scores.balanced_accuracy:.1f} %"
        lines.append(
            f"{right} are right, but {balanced} as the mean over classes: rare classes are missed. "
            "Try --class-weights balanced."
        )
    return lines


def _flat_loss(record: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line if the training loss of the last epoch is not below the first's."""
    train = [line for line in history if line.get("split") == "train" and "loss" in line]
    epochs = sorted({line["epoch"] for line in train})
    if len(epochs) < 2:
        return []
    first, last = (
        sum(values) / len(values)
        for values in (
            [x["loss"] for x in train if x["epoch"] == e] for e in (epochs[0], epochs[-1])
        )
    )
    if last < FALLS * first:
        return []
    text = (
        f"The training loss did not fall ({first:.3g} in the first epoch, {last:.3g} in the last)"
    )
    return [f"{text}: {_lower_rate(record)}."]


def _lower_rate(record: Mapping[str, Any]) -> str:
    """Return the advice to try a third of a run's learning rate."""
    rate = record["training"].get("lr")
    return "try another --lr" if not rate else f"try --lr {rate / 3:.1g} (it had {rate:g})"
