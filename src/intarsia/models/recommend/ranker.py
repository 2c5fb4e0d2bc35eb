"""What the models of users share: each user's items, negatives, and sets for `fit`."""

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

DRAWS = 8  # of a negative, before one that the user has taken is accepted


class Ranker(Recommender):
    """A recommender of users that it was trained with.  users (B,) -> scores (B, items + 1).

    seen: (users, items + 1) bool, what each has taken in the training events; these are -inf.
    Raises: DataError for no training event.
    """

    def __init__(self, settings: Settings, known: Interactions) -> None:
        super().__init__(settings, known)
        if not len(known):
            fix = "Give it the training part."
            raise DataError("training events", got="none", want="one at least", fix=fix)
        self.seen: Tensor
        self.register_buffer("seen", seen_rows(known), persistent=False)

    @property
    def task(self) -> HeldOut:
        return HeldOut()

    def samples(self, events: Interactions) -> Dataset[Any]:
        """Each user with each item that she took."""
        return UserItems(torch.from_numpy(events.users), torch.from_numpy(events.items) + 1)

    def questions(self, events: Interactions) -> Dataset[Any]:
        """Held-out items of users; those that a user has taken before are no question."""
        users, items = torch.from_numpy(events.users), torch.from_numpy(events.items) + 1
        new = ~self.seen.cpu()[users, items]
        if not bool(new.any()):
            got, want = "events with known items only", "an item that its user had not taken"
            raise DataError("held-out events", got=got, want=want, fix="Split once more.")
        return UserItems(users[new], items[new])

    def forward(self, users: Tensor, items: Tensor | None = None) -> Any:
        """Scores; with the items that were taken (B,) the named losses."""
        if items is not None:
            return self.losses(users, items)
        found = self.all_scores(users).masked_fill(self.seen[users], -torch.inf)
        found[:, 0] = -torch.inf
        return found

    @abc.abstractmethod
    def losses(self, users: Tensor, items: Tensor) -> dict[str, Tensor]:
        """Named losses of a batch: means over it."""

    @abc.abstractmethod
    def all_scores(self, users: Tensor) -> Tensor:
        """(B,) -> (B, items + 1)."""

    @abc.abstractmethod
    def of_history(self, history: Sequence[int]) -> Tensor | None:
        """Scores (items + 1,) for items that nobody known has taken; None = it cannot."""

    def not_taken(self, users: Tensor) -> Tensor:
        """A random item for each user that she has not taken.  (B,) -> (B,)

        After 8 draws that she has all taken, the last one stands.
        """
        count = self.seen.shape[1]
        found = torch.randint(1, count, users.shape, device=users.device)
        for _ in range(DRAWS - 1):
            again = torch.randint(1, count, users.shape, device=users.device)
            found = torch.where(self.seen[users, found], again, found)
        return found

    def scores(self, user: int | None, history: Sequence[int]) -> Tensor:
        if user is not None:
            return self.all_scores(torch.tensor([user], device=self.seen.device))[0]
        found = self.of_history(history)
        if found is None:
            raise refuse_history(self)
        return found


class UserItems(TensorDataset):
    """Users (n,) and items (n,).  digests: what makes two samples the same, both of them."""

    @property
    def digests(self) -> list[str]:
        users, items = (part.tolist() for part in self.tensors)
        return [f"{user}:{item}" for user, item in zip(users, items, strict=True)]
