"""ItemKNN: items that are taken by the same users, by a shrunk cosine (arXiv:1907.06902)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...core import Card, Paper
from ...core.schema import check, setting
from ...data.interactions import Interactions
from .item_weights import ItemWeights, taken_matrix
from .recommender import Settings

ROWS = 1024  # items for which similarities are computed at a time


@dataclass(frozen=True)
class ItemKnn(Settings):
    """Model score(u, j) = sum of s_ij over what u has taken, for the nearest neighbours i of j.

    s_ij = n_ij / (sqrt(n_i n_j) + shrink): n_ij users have both items, n_i the first.

    model = ItemKnn().fit(events);  model.recommend("u1");  model.recommend(["item 3", "item 7"])
    Not for items that nobody has taken: they have no neighbours.
    Raises: ConfigError for a setting out of range.
    Source: Deshpande and Karypis, Item-based top-N recommendation algorithms, 2004; with the
    shrunk cosine of the paper, section 3.2.
    """

    neighbours: int = setting(
        100, "The number of the most similar items that count for an item.", least=1
    )
    shrink: float = setting(
        10.0,
        "The users that are added below, which lowers the similarity of items with few users.",
        least=0,
    )

    data_of: ClassVar[str] = "ranking"
    training: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __post_init__(self) -> None:
        check(self)

    def build(self, data: Interactions, *, seed: int = 0) -> ItemKnnModel:
        return ItemKnnModel(self, data)


class ItemKnnModel(ItemWeights):
    """Model of `ItemKnn`.  users (B,) -> scores (B, items + 1).

    weights: (items + 1, neighbours), 0 = no neighbour; places: numbers of the neighbours.
    """

    settings: ItemKnn

    def __init__(self, settings: ItemKnn, events: Interactions) -> None:
        super().__init__(settings, events, min(settings.neighbours, len(events.item_ids)))
        self.places: Tensor
        self.register_buffer("places", torch.zeros(self.weights.weight.shape, dtype=torch.int64))

    def solve(self, events: Interactions) -> None:
        """Find the nearest neighbours of each item, some items at a time."""
        x = taken_matrix(events).tocsc()
        length = np.sqrt(np.asarray(x.sum(0)).ravel())  # sqrt(n_i)
        table, count = self.weights.weight, self.weights.weight.shape[1]
        for first in range(0, x.shape[1], ROWS):
            part = slice(first, min(first + ROWS, x.shape[1]))
            both = (x[:, part].T @ x).toarray()  # n_ij
            similar = both / (np.outer(length[part], length) + self.settings.shrink + 1e-9)
            similar[np.arange(len(similar)), np.arange(part.start, part.stop)] = 0  # no item itself
            best = torch.from_numpy(similar).topk(count)
            rows = slice(part.start + 1, part.stop + 1)
            table[rows] = best.values.to(table)
            self.places[rows] = (best.indices + 1).to(table.device)

    def scores_of_histories(self, histories: Tensor) -> Tensor:
        # (B, items + 1, neighbours) would not fit: one user's row at a time
        return torch.stack([(row[self.places] * self.weights.weight).sum(1) for row in histories])


CARD = Card(
    "itemknn",
    kind="model",
    config=ItemKnn,
    paper=Paper(
        "1907.06902",
        2019,
        "Are We Really Making Much Progress? A Worrying Analysis of Recent Neural Recommendation "
        "Approaches",
    ),
    tiny={"neighbours": 4},
    summary="Items that the same users took, by a shrunk cosine; nothing is trained.",
    family="recommenders",
    names=("item-kNN", "ItemKNN-CF"),
    exceptions={"is_an_estimator": "events are no table of rows; its `fit` takes them"},
)
