"""NeuMF: a product of user and item vectors next to a network of them (arXiv:1708.05031)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core import Card, Paper
from ...core.schema import check, setting
from ...data.interactions import Interactions
from .ranker import Ranker
from .recommender import Settings

ROWS = 2**18  # pairs that are scored at a time


@dataclass(frozen=True)
class NeuMf(Settings):
    """Model score = w [p_u * q_i | MLP([p'_u | q'_i])], trained by binary cross-entropy.

    Each item that a user took comes with items that she did not, drawn at random.

    Raises: ConfigError for a setting out of range.
    Not for many items: each pair passes the network, where a product of tables ranks all at once.
    Source: paper, section 3.4; trained at once, without pretraining of the halves.
    """

    width: int = setting(
        32, "The length of the vectors, of the product and of the network each.", least=2
    )
    negatives: int = setting(4, "The items not taken that are drawn for each item taken.", least=1)

    data_of: ClassVar[str] = "ranking"
    training: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"epochs": 10, "batch_size": 1024, "lr": 1e-3, "weight_decay": 0.0}
    )

    def __post_init__(self) -> None:
        check(self)

    def build(self, data: Interactions, *, seed: int = 0) -> NeuMfModel:
        return NeuMfModel(self, data, generator=torch.Generator().manual_seed(seed))


class NeuMfModel(Ranker):
    """Model of `NeuMf`.  users (B,) -> scores (B, items + 1)."""

    settings: NeuMf

    def __init__(
        self, settings: NeuMf, events: Interactions, *, generator: torch.Generator
    ) -> None:
        """Draw the layers, and two vectors for each user and item: for product and network."""
        super().__init__(settings, events)
        users, items, w = len(events.user_ids), len(events.item_ids) + 1, settings.width
        self.user, self.user_mlp = nn.Embedding(users, w), nn.Embedding(users, w)
        self.item, self.item_mlp = nn.Embedding(items, w), nn.Embedding(items, w)
        self.hidden = nn.ModuleList([nn.Linear(2 * w, w), nn.Linear(w, w // 2)])
        # the last layer reads both halves: the product and the network's output
        self.last = nn.Linear(w + w // 2, 1)
        for table in (self.user, self.user_mlp, self.item, self.item_mlp):
            nn.init.normal_(table.weight, std=0.05, generator=generator)
        for layer in (*self.hidden, self.last):
            nn.init.xavier_uniform_(layer.weight, generator=generator)  # pyright: ignore
            nn.init.zeros_(layer.bias)  # pyright: ignore

    def score_pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Score pairs of a user and an item.  users (N,), items (N,) -> (N,)."""
        product = self.user(users) * self.item(items)
        x = torch.cat([self.user_mlp(users), self.item_mlp(items)], 1)
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.last(torch.cat([product, x], 1))[:, 0]

    def losses(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """Compute "pairs", the cross-entropy of taken pairs (label 1) and random ones (label 0)."""
        # each user once with her item, and `negatives` times with one that she has not taken
        again = users.repeat(self.settings.negatives)
        all_items = torch.cat([items, self.not_taken(again)])
        logits = self.score_pairs(torch.cat([users, again]), all_items)
        labels = torch.zeros_like(logits)
        labels[: len(users)] = 1
        return {"pairs": F.binary_cross_entropy_with_logits(logits, labels)}

    def all_scores(self, users: Tensor) -> Tensor:
        """Score every item, also 0 (no item), a few users at a time: (B,) -> (B, items + 1)."""
        count = self.item.num_embeddings
        items = torch.arange(count, device=users.device)
        # users at a time, so that about `ROWS` pairs are scored at once
        rows = max(1, ROWS // count)
        scores = [
            self.score_pairs(part.repeat_interleave(count), items.repeat(len(part))).view(-1, count)
            for part in users.split(rows)
        ]
        return torch.cat(scores)

    def scores_of_history(self, history: Sequence[int]) -> Tensor | None:
        return None  # a user who was not in the training has no vector


CARD = Card(
    "neumf",
    kind="model",
    config=NeuMf,
    paper=Paper("1708.05031", 2017, "Neural Collaborative Filtering"),
    tiny={"width": 4, "negatives": 2},
    summary="A product of a user's and an item's vectors next to a network of them.",
    family="recommenders",
    names=("Neural collaborative filtering",),
    exceptions={"is_an_estimator": "events are no table of rows; intarsia.fit trains it"},
)
