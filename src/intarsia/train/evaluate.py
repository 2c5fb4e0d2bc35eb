"""How good is a model on a set: loss, accuracy, and the logits they come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..core.errors import ConfigError, DataError
from ..core.modes import evaluating
from .objectives import logits_of, wide
from .order import IGNORED, Key, Reader, check_range, read, size_of, to_device
from .precision import autocast, compute_dtype
from .processes import processes


@dataclass(frozen=True)
class Metrics:
    """Scores of a set of n images, in its own order.

    loss: mean cross-entropy; accuracy: share of right answers; balanced_accuracy: mean over the
    classes that occur of the share of right answers.  logits: (n, classes); labels: (n,).
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    logits: Tensor
    labels: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Metrics:
        """Scores of logits (n, classes) against labels (n,)."""
        right = (logits.argmax(1) == labels).double()
        count = torch.bincount(labels, minlength=logits.shape[1]).double()
        hits = torch.bincount(labels, right, minlength=logits.shape[1])
        seen = count > 0
        return cls(
            loss=float(F.cross_entropy(logits.double(), labels)),
            accuracy=float(right.mean()),
            balanced_accuracy=float((hits[seen] / count[seen]).mean()),
            logits=logits,
            labels=labels,
        )

    def scores(self) -> dict[str, float]:
        """The three numbers, for JSON."""
        names = ("loss", "accuracy", "balanced_accuracy")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class TokenMetrics:
    """Scores of texts: of the tokens that have a label, each predicted from all before it.

    loss: mean cross-entropy in nats; accuracy: share of tokens that are the likeliest one;
    exact_match: share of texts with every such token right, which is what greedy generation from
    the text before them would give; tokens: how many.
    """

    loss: float
    accuracy: float
    exact_match: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))

    def scores(self) -> dict[str, float]:
        """The numbers, for JSON."""
        names = ("loss", "perplexity", "accuracy", "exact_match", "tokens")
        return {name: getattr(self, name) for name in names}


Scores = Metrics | TokenMetrics


def evaluate(
    model: nn.Module, dataset: Dataset[Any], *, batch_size: int = 64, workers: int = 0
) -> Scores:
    """Score a model in evaluation mode, in the type its frozen weights are held in.

    Random experts are merged there, so one forward says everything. With several processes each
    takes its share, and all get the scores of the whole set. A set with labels (B, T) is scored as
    text, see TokenMetrics.
    Raises: ConfigError for a batch_size below 1; DataError for an empty set, or labels outside the
    model's classes.
    """
    if batch_size < 1:
        raise ConfigError("batch_size", got=batch_size, want="at least 1", fix="Try 64.")
    if is_text(dataset):
        return score_tokens(model, dataset, batch_size=batch_size, workers=workers)
    logits, labels = predict(model, dataset, batch_size=batch_size, workers=workers)
    check_range(labels, logits.shape[1])
    return Metrics.of(logits, labels)


def predict(
    model: nn.Module, dataset: Dataset[Any], *, batch_size: int = 64, workers: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) float32 and labels (n,), on the CPU, in the set's order."""
    logits, labels = each(model, dataset, lambda z, y: (z, y), batch_size, workers)
    return logits, labels


def score_tokens(
    model: nn.Module, dataset: Dataset[Any], *, batch_size: int = 8, workers: int = 0
) -> TokenMetrics:
    """Score a model that predicts the next token; logits are forgotten as soon as they are scored.

    Raises: DataError for an empty set, or one without a label to predict.
    """

    def sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        check_range(labels, logits.shape[-1])
        target = labels[:, 1:]
        known = target != IGNORED
        picked, wanted = wide(logits[:, :-1][known]), target[known]
        loss = F.cross_entropy(picked, wanted, reduction="none").double()
        counts = torch.stack(
            [loss, torch.ones_like(loss), (picked.argmax(-1) == wanted).double()], 1
        )
        row = known.nonzero()[:, 0]
        return counts.new_zeros(len(labels), 3).index_add_(0, row, counts), labels[:, 0]

    loss, tokens, hits = each(model, dataset, sums, batch_size, workers)[0].unbind(1)
    if not bool(tokens.any()):
        raise DataError(
            "evaluation texts", got="no token that has a label", want="at least one",
            fix="Label the answers; -100 is for what is not to be predicted.",
        )  # fmt: skip
    asked = tokens > 0
    return TokenMetrics(
        loss=float(loss.sum() / tokens.sum()),
        accuracy=float(hits.sum() / tokens.sum()),
        exact_match=float((hits == tokens)[asked].double().mean()),
        tokens=int(tokens.sum()),
    )


@torch.no_grad()
def each(
    model: nn.Module,
    dataset: Dataset[Any],
    of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    batch_size: int,
    workers: int,
) -> tuple[Tensor, Tensor]:
    """Two rows for each sample out of its batch's logits and labels, on the CPU, in order.

    With several processes each takes its share, and all get the rows of the whole set.
    """
    count = size_of(dataset)
    if not count:
        raise DataError("evaluation samples", got=0, want="at least 1", fix="Give it some.")
    device, dtype = device_of(model), compute_dtype(model)
    state = processes()
    share = -(-count // state.num_processes)
    # the last shares repeat the last sample, so that all have one size to gather
    first = share * state.process_index
    mine = [min(i, count - 1) for i in range(first, first + share)]
    keys: list[Key] = [(0, tuple(mine[i : i + batch_size])) for i in range(0, share, batch_size)]
    found: list[tuple[Tensor, Tensor]] = []
    with evaluating(model):
        for x, y in read(Reader(dataset, seed=0), keys, workers):
            with autocast(device, dtype):
                logits = logits_of(model, to_device(x, device))
            found.append(of(logits, y.to(device)))
    both = torch.cat([a for a, _ in found]), torch.cat([b for _, b in found])
    if state.num_processes > 1:
        both = gather(both[0]), gather(both[1])
    return both[0][:count].cpu(), both[1][:count].cpu()


def is_text(dataset: Dataset[Any]) -> bool:
    """Whether each sample has a label for every token."""
    return size_of(dataset) > 0 and Reader(dataset, seed=0)[(0, (0,))][1].ndim == 2


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Which predictions are right, of those asked for.  (B, C), (B,) or (B, T, V), (B, T)."""
    if labels.ndim == 1:
        return logits.argmax(-1) == labels
    target = labels[:, 1:]
    known = target != IGNORED
    return logits[:, :-1][known].argmax(-1) == target[known]


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
