"""Pairs that belong together: retrieval, with the other pairs of the batch as negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.checks import above, at_least
from ..order import Batch, Inputs, pair, stack
from ..outcome import TargetLoss, kl, wide
from ..scores import Named, rank_of, ranking
from .task import Task, refuse_output

ROWS = 1024  # queries compared with all documents at a time


@dataclass(frozen=True)
class Pairs(Task):
    """Symmetric InfoNCE: cross-entropy of cos(q_i, d_j) / temperature, both ways, in a batch.

    Samples are (query, document), both of one form; the model reads the queries and documents of a
    batch in one forward, and gives one vector each. The negatives are the other pairs of the batch,
    or of groups of `group` pairs: a batch can be taken in parts (accumulate, several processes)
    only if groups are given, and stay whole.
    Scores: `loss` and, of each query among all documents, `hit_rate_k`, `ndcg_k` and
    `reciprocal_rank`.  Not for sets where several documents answer a query.
    Raises: ConfigError on a setting that cannot be.
    Source: InfoNCE (arXiv:1807.03748); symmetric as in CLIP (arXiv:2103.00020).
    """

    labelled: ClassVar[bool] = False

    temperature: float = 0.05
    group: int | None = None
    k: int = 10

    def __post_init__(self) -> None:
        above("temperature", self.temperature, 0)
        at_least("k", self.k, 1)
        if self.group is not None:
            at_least("group", self.group, 2, fix="A pair needs another one as its negative.")

    @property
    def whole(self) -> bool:
        return self.group is None

    def collate(self, items: Sequence[Any]) -> tuple[Inputs, Any]:
        """Collate (query, document) pairs into one batch: all queries, then all documents."""
        pairs = [pair(item) for item in items]
        return stack([(q, 0) for q, _ in pairs] + [(d, 0) for _, d in pairs])

    def batch(self, inputs: Inputs, target: Any) -> Batch:
        """Return the batch; a batch of B pairs has 2 B inputs and a target of zeros, (B,)."""
        rows = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
        # the right document of a query follows from its place
        return inputs, torch.zeros(len(rows) // 2, dtype=torch.int64)

    def seen(self, output: Tensor, batch: Batch) -> Pairs:
        if output.ndim != 2 or len(output) != 2 * len(batch[1]):
            refuse_output(output, batch[1], "one vector for each query and document")
        return self

    def loss_of(self, batch: Batch) -> TargetLoss:
        return TargetLoss(self._info_nce, batch[1], divergence=self._divergence)

    def _groups(self, output: Tensor) -> list[Tensor]:
        """Return the similarities (g, g) of queries and documents / temperature, by group."""
        # output: (2B, d), vectors of the queries, then of the documents
        queries, documents = F.normalize(wide(output), dim=-1).chunk(2)
        size = self.group or max(1, len(queries))
        both = zip(queries.split(size), documents.split(size), strict=True)
        # a half type would round cosines by more than small temperatures tell apart
        with torch.autocast(output.device.type, enabled=False):
            return [q @ d.T / self.temperature for q, d in both]

    def _info_nce(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute InfoNCE in both directions, with the other pairs of a group as negatives."""
        # output: (2B, d), vectors of the queries, then of the documents
        total = output.new_zeros(())
        for similarity in self._groups(output):
            # the right document of query i is document i of its group
            index = torch.arange(len(similarity), device=similarity.device)
            by_query = F.cross_entropy(similarity, index)
            by_document = F.cross_entropy(similarity.T, index)
            total = total + (by_query + by_document) / 2 * (len(similarity) / len(target))
        return total

    def _divergence(self, target: Tensor, output: Tensor, *, detach: bool = True) -> Tensor:
        """Compute the mean KL divergence of a query's distribution over its group's documents."""
        # target, output: (2B, d), vectors of two passes
        count = len(output) // 2
        groups = zip(self._groups(target), self._groups(output), strict=True)
        parts = [
            kl(target_group, output_group, detach=detach) * (len(output_group) / count)
            for target_group, output_group in groups
        ]
        return torch.stack(parts).sum()

    def rows(self, output: Tensor, batch: Batch) -> tuple[Tensor, ...]:
        return F.normalize(wide(output), dim=-1).chunk(2)

    def scores(self, *rows: Tensor) -> Named:
        """Compute the scores of a whole dataset: each query ranks all documents."""
        queries, documents = rows
        losses, ranks = [], []
        for first in range(0, len(queries), ROWS):
            # all documents, some queries at a time: (n, n) would not fit into memory
            near = queries[first : first + ROWS] @ documents.T
            similarity = near.diagonal(first)
            ranks.append(rank_of(similarity, near))
            logits = near.double() / self.temperature
            losses.append(logits.logsumexp(1) - similarity.double() / self.temperature)
        values = {"loss": float(torch.cat(losses).mean())} | ranking(torch.cat(ranks), self.k)
        return Named(values, f"ndcg_{self.k}", {"queries": queries, "documents": documents})
