"""LightGCN: users and items as means over their neighbours in the graph (arXiv:2002.02126)."""

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


@dataclass(frozen=True)
class LightGcn(Settings):
    """Model E^(k+1) = D^-1/2 A D^-1/2 E^k, each vector the mean of E^0 ... E^K; a score is u . i.

    Bayesian personalised ranking: softplus(s_neg - s_pos) for a random item the user has not
    taken, + reg ||E^0||^2 / (2 B) of the batch.  A is the graph of the training events.

    model = LightGcn().build(train)
    fit(model, *model.sets(train, val, test)[:2], task=model.task, objective=own_losses)
    Raises: ConfigError for a setting out of range.
    Not for new users or items without training again.
    Source: paper, equations 3, 4, 7 and 15. A sparse E^0 (`Dsl`) saves training memory and the
    file; after K propagations the table that is served is dense.
    """

    width: int = setting(64, "The length of the users' and items' vectors.", least=1)
    layers: int = setting(3, "The number K of propagations.", least=0)
    reg: float = setting(1e-4, "The weight of the penalty on the vectors of the batch.", least=0)

    data_of: ClassVar[str] = "ranking"
    training: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"epochs": 30, "batch_size": 2048, "lr": 1e-2, "weight_decay": 0.0}
    )

    def __post_init__(self) -> None:
        check(self)

    def build(self, data: Interactions, *, seed: int = 0) -> LightGcnModel:
        return LightGcnModel(self, data, generator=torch.Generator().manual_seed(seed))


class LightGcnModel(Ranker):
    """Model of `LightGcn`.  users (B,) -> scores (B, items + 1)."""

    settings: LightGcn

    def __init__(
        self, settings: LightGcn, events: Interactions, *, generator: torch.Generator
    ) -> None:
        super().__init__(settings, events)
        users, items = len(events.user_ids), len(events.item_ids) + 1
        self.user, self.item = (nn.Embedding(n, settings.width) for n in (users, items))
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1, generator=generator)
        pairs = self.seen.nonzero()  # (n, 2), each user and item once
        user, item = pairs[:, 0], pairs[:, 1] + users
        # A is symmetric: each event is an edge from the user to the item, and one back
        index = torch.stack([torch.cat([user, item]), torch.cat([item, user])])
        degree = torch.bincount(index[0], minlength=users + items).float()
        weight = (degree[index[0]] * degree[index[1]]).rsqrt()  # eq. 3
        graph = torch.sparse_coo_tensor(
            index, weight, (users + items,) * 2, check_invariants=False
        ).coalesce()
        self.edges: Tensor
        self.edge_weights: Tensor
        self.register_buffer("edges", graph.indices(), persistent=False)
        self.register_buffer("edge_weights", graph.values(), persistent=False)

    def tables(self) -> tuple[Tensor, Tensor]:
        """Propagate and return the vectors of users (users, width) and items (items + 1, width)."""
        # users and items are nodes of one graph
        start = torch.cat([self.user.weight, self.item.weight])
        size = (len(start),) * 2
        graph = torch.sparse_coo_tensor(
            self.edges, self.edge_weights, size, is_coalesced=True, check_invariants=False
        )
        layer, total = start, start
        # autocast's sparse product has no gradient
        with torch.autocast(start.device.type, enabled=False):
            for _ in range(self.settings.layers):
                layer = torch.sparse.mm(graph, layer)
                total = total + layer
        mean = total / (self.settings.layers + 1)  # eq. 4
        return mean[: len(self.user.weight)], mean[len(self.user.weight) :]

    def losses(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """Compute "ranking", the loss against random items, and "norm", the norms' penalty."""
        negatives = self.not_taken(users)
        all_users, all_items = self.tables()
        u, positive, negative = all_users[users], all_items[items], all_items[negatives]
        ranking = F.softplus((u * negative).sum(1) - (u * positive).sum(1)).mean()  # eq. 15
        # the penalty is on E^0, the only parameters
        first = self.user(users), self.item(items), self.item(negatives)
        norm = sum((vectors.square().sum() for vectors in first), start=ranking.new_zeros(()))
        return {"ranking": ranking, "norm": self.settings.reg * norm / (2 * len(users))}

    def all_scores(self, users: Tensor) -> Tensor:
        all_users, all_items = self.tables()
        return all_users[users] @ all_items.T

    def scores_of_history(self, history: Sequence[int]) -> Tensor | None:
        return None  # a user who was not in the training has no vector


CARD = Card(
    "lightgcn",
    kind="model",
    config=LightGcn,
    paper=Paper(
        "2002.02126",
        2020,
        "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation",
    ),
    tiny={"width": 4, "layers": 1},
    summary="Users and items as means over their neighbours; taken items rank above the rest.",
    family="recommenders",
    exceptions={"is_an_estimator": "events are no table of rows; intarsia.fit trains it"},
)
