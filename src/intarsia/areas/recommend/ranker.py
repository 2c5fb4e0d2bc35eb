"""Base of recommenders of known users: each user's items, negative samples, and data sets."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from ...core.errors import DataError
from ...data.interactions import Interactions
from ...train.tasks import HeldOut
from .recommender import Recommender, Settings, refuse_history, seen_rows

DRAWS = 8  # of a negative item, before one that the user has taken is accepted


class Ranker(Recommender):
    """Recommender for users of its training events.  users (B,) -> scores (B, items + 1).

    seen: (users, items + 1) bool, items of each user in the training events; they score -inf.
    Raises: DataError for no training event.
    """

    def __init__(self, settings: Settings, events: Interactions) -> None:
        super().__init__(settings, events)
        if not len(events):
            fix = "Give it the training part."
            raise DataError("training events", got="none", want="one at least", fix=fix)
        self.seen: Tensor
        self.register_buffer("seen", seen_rows(events), persistent=False)

    @property
    def task(self) -> HeldOut:
        return HeldOut()

    def samples(self, events: Interactions) -> Dataset[Any]:
        return UserItems(torch.from_numpy(events.users), torch.from_numpy(events.items) + 1)

    def questions(self, events: Interactions) -> Dataset[Any]:
        """Return pairs of a user and a held-out, new item.  Raises: DataError for no such pair."""
        users, items = torch.from_numpy(events.users), torch.from_numpy(events.items) + 1
        new = ~self.seen.cpu()[users, items]
        if not bool(new.any()):
            got, want = "events with known items only", "an item that its user had not taken"
            raise DataError("held-out events", got=got, want=want, fix="Split once more.")
        return UserItems(users[new], items[new])

    def forward(self, users: Tensor, items: Tensor | None = None) -> Any:
        """Compute the scores of users or, with the items that they have chosen, the named losses.

        users: (B,), their numbers; items: (B,), one of each user, None = compute scores.  -> (B,
          items + 1), or losses by name.
        """
        if items is not None:
            return self.losses(users, items)
        scores = self.all_scores(users).masked_fill(self.seen[users], -torch.inf)
        scores[:, 0] = -torch.inf
        return scores

    @abc.abstractmethod
    def losses(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """Compute named losses, means over the batch.  users (B,), items (B,) that they took."""

    @abc.abstractmethod
    def all_scores(self, users: Tensor) -> Tensor:
        """Score all items, seen or not.  users (B,) -> (B, items + 1)."""

    @abc.abstractmethod
    def scores_of_history(self, history: Sequence[int]) -> Tensor | None:
        """Score all items for an unknown user, (items + 1,); None if the model cannot."""

    def not_taken(self, users: Tensor) -> Tensor:
        """Draw for each user an item that the user has not had in training.

        users: (B,).  -> (B,), numbers of items from 1. If she has taken all of 8 draws, the last
          one is returned.
        """
        count = self.seen.shape[1]
        drawn = torch.randint(1, count, users.shape, device=users.device)
        for _ in range(DRAWS - 1):
            # redraw where the user has taken the item already
            again = torch.randint(1, count, users.shape, device=users.device)
            drawn = torch.where(self.seen[users, drawn], again, drawn)
        return drawn

    def scores(self, user: int | None, history: Sequence[int]) -> Tensor:
        """Score all items for a known user or, where the model can, for a history, (items + 1,).

        Raises: ConfigError for an unknown user if the model cannot read histories.
        """
        if user is not None:
            return self.all_scores(torch.tensor([user], device=self.seen.device))[0]
        by_history = self.scores_of_history(history)
        if by_history is None:
            raise refuse_history(self)
        return by_history


class UserItems(TensorDataset):
    """Data set of users (n,) and items (n,).  digests: the identity of each sample, both ids."""

    @property
    def digests(self) -> list[str]:
        users, items = (part.tolist() for part in self.tensors)
        return [f"{user}:{item}" for user, item in zip(users, items, strict=True)]
