"""EASE: a linear model of items by items with a closed form (arXiv:1905.03375)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core import Card, Paper
from ...core.errors import DataError
from ...core.schema import check, setting
from ...data.interactions import Interactions
from .item_weights import ItemWeights, taken_matrix
from .recommender import Settings

MOST = 40_000  # items: the table of all pairs has 6 GB then, the solution takes 26


@dataclass(frozen=True)
class Ease(Settings):
    """Model min_B ||X - X B||^2 + reg ||B||^2 with diag(B) = 0; a user's scores are x B.

    X: users by items, 1 for each item taken.  B_ij = -P_ij / P_jj for P = (X^T X + reg I)^-1.

    model = Ease().fit(events);  model.recommend("u1");  model.recommend(["item 3", "item 7"])
    Raises: ConfigError for a reg that is not above 0; DataError for more than 40,000 items.
    Not for more items than that: the inverse takes their square in memory, their cube in time.
    Source: paper, equations 1 to 8.
    """

    reg: float = setting(
        250.0,
        "The weight lambda of the penalty; more of it makes weights smaller and popular items "
        "likelier.",
        above=0,
    )

    data_of: ClassVar[str] = "ranking"
    training: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __post_init__(self) -> None:
        check(self)

    def build(self, data: Interactions, *, seed: int = 0) -> EaseModel:
        return EaseModel(self, data)


class EaseModel(ItemWeights):
    """Model of `Ease`.  users (B,) -> scores (B, items + 1).

    Raises: DataError for too many items.
    """

    settings: Ease

    def __init__(self, settings: Ease, events: Interactions) -> None:
        if (items := len(events.item_ids)) > MOST:
            got = f"{items:,} items, whose pairs take {4e-9 * items**2:,.0f} GB"
            fix = "Use itemknn, which keeps each item's nearest, or lightgcn."
            raise DataError("items", got=got, want=f"at most {MOST:,}", fix=fix)
        super().__init__(settings, events, items + 1)

    def solve(self, events: Interactions) -> None:
        """Compute B from the events, in double precision."""
        x = taken_matrix(events)
        table = self.weights.weight
        gram = torch.from_numpy((x.T @ x).toarray()).to(table.device)  # G = X^T X
        gram.diagonal().add_(self.settings.reg)
        p = torch.cholesky_inverse(torch.linalg.cholesky(gram))  # eq. 6
        b = p / -p.diagonal()  # eq. 8: column j over -P_jj
        b.fill_diagonal_(0)
        table[1:, 1:] = b.to(table.dtype)

    def scores_of_histories(self, histories: Tensor) -> Tensor:
        return histories @ self.weights.weight


CARD = Card(
    "ease",
    kind="model",
    config=Ease,
    paper=Paper("1905.03375", 2019, "Embarrassingly Shallow Autoencoders for Sparse Data"),
    tiny={"reg": 1.0},
    summary="Every item as a linear function of the others, solved in closed form in seconds.",
    family="recommenders",
    names=("EASE^R", "EASE"),
    exceptions={"is_an_estimator": "events are no table of rows; its `fit` takes them"},
)
