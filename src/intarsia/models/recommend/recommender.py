"""What all recommenders share: the items and events they know, and the first k for somebody."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...core.checks import at_least
from ...core.errors import ConfigError, DataError
from ...core.modes import evaluating
from ...data.interactions import Interactions, ItemField
from ...train.tasks import Task

Sets = tuple[Dataset[Any], Dataset[Any], Dataset[Any]]


class Recommendation(NamedTuple):
    """An item by its id, and its score: larger is better, within one answer."""

    item: str
    score: float


class Settings(abc.ABC):
    """Settings of a recommender.

    data_of: "sessions" or "ranking", what it learns from.  training: its keywords of `fit`.
    tables: the layers that a schedule of masks is about, see `SparseSchedule`.
    """

    data_of: ClassVar[str]
    training: ClassVar[Mapping[str, Any]]
    tables: ClassVar[tuple[str, ...]] = ("tables",)

    @property
    def reads(self) -> int | None:
        """The last items of a history that the model looks at; None stands for all of them."""
        return None

    @abc.abstractmethod
    def build(self, data: Interactions, *, seed: int = 0) -> Recommender:
        """An untrained model of the items, and of ranking the users, of the training events."""

    def restore(self, data: Interactions, stored: Mapping[str, Tensor]) -> Recommender:
        """A model that takes the weights of one that was built of these events."""
        return self.build(data, seed=0)


class Recommender(nn.Module, abc.ABC):
    """A model that ranks items.  Places of items count from 1 in its tensors; 0 is none.

    known: ids, fields and events.  In training model(x, target) gives named losses (the objective
    `own_losses`), in evaluation model(x) the scores (B, items + 1).
    """

    settings: Settings
    takes_items: ClassVar[bool] = False  # has `add_items`
    explains: ClassVar[bool] = False  # has `reasons`
    writes_sessions: ClassVar[bool] = False  # has `session`

    def __init__(self, settings: Settings, known: Interactions) -> None:
        super().__init__()
        self.settings, self.known = settings, known

    @property
    @abc.abstractmethod
    def task(self) -> Task:
        """What `fit` learns it by."""

    @abc.abstractmethod
    def samples(self, events: Interactions) -> Dataset[Any]:
        """What of these events it is trained on."""

    @abc.abstractmethod
    def questions(self, events: Interactions) -> Dataset[Any]:
        """What of these events it is scored by."""

    @abc.abstractmethod
    def scores(self, user: int | None, history: Sequence[int]) -> Tensor:
        """Scores of all items for somebody.  user: a place; history: places from 1.  -> (n + 1,)"""

    @property
    def codes(self) -> np.ndarray | None:
        """Semantic ids of the items, (items, levels), of a model that writes them."""
        return None

    def add_items(self, ids: Sequence[str], fields: Mapping[str, ItemField]) -> None:
        """Know more items, by their fields alone.  Raises: ConfigError where that cannot be."""
        got, want = f"{type(self).__name__}, which learns a vector for each", "a model of fields"
        raise ConfigError("new items", got=got, want=want, fix="Use m2trec, or train anew.")

    def reasons(
        self, who: str | int | Sequence[str], items: Sequence[str]
    ) -> list[dict[str, float]]:
        """What each field adds to the score of each item.  Raises: ConfigError without fields."""
        got, fix = type(self).__name__, "Leave --why out, or ask a run of m2trec."
        raise ConfigError("--why", got=got, want="a model of fields", fix=fix)

    def session(
        self, who: str | int | Sequence[str], items: int | None = None, *, exclude_seen: bool = True
    ) -> list[Recommendation]:
        """A whole session, in its order.  Raises: ConfigError for a model that writes none."""
        got, fix = type(self).__name__, "Leave --session out, or ask a run of onerec."
        raise ConfigError("--session", got=got, want="a generator", fix=fix)

    def recommend(
        self, who: str | int | Sequence[str], k: int = 10, *, exclude_seen: bool = True
    ) -> list[Recommendation]:
        """The k best items, best first.

        who: a user's id, or ids of items in the order they were taken. Of items that are not known
        there is nothing to learn; they are left out with a warning.
        exclude_seen: leave out what the user or the session has taken.
        Raises: DataError for a user that is not known, and where no item is left.
        """
        at_least("k", k, 1)
        user, history = self.read(who)
        with evaluating(self), torch.no_grad():
            found = self.scores(user, history).clone()
        found[0] = -torch.inf
        if exclude_seen:
            found[list(history)] = -torch.inf
        found = found.masked_fill(found.isnan(), -torch.inf)
        left = int((found > -torch.inf).sum())
        if not left:
            fix = "Call it with exclude_seen=False, or add items."
            raise DataError("recommendations", got="no item left", want="one", fix=fix)
        best = found.topk(min(k, left))
        ids = self.known.item_ids
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Recommendation(ids[place - 1], score) for place, score in pairs]

    def ranked(self, x: Tensor, k: int, hidden: Tensor | None = None) -> Tensor:
        """Places of the k best items for what the model reads.  (B, ...) -> (B, k)

        hidden: (B, items + 1) bool, what is left out.
        """
        scores = self(x).clone()
        scores[:, 0] = -torch.inf
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        return scores.topk(min(k, scores.shape[1] - 1)).indices

    def read(self, who: str | int | Sequence[str]) -> tuple[int | None, list[int]]:
        """A user's place and history, or nobody's history of those items.  Raises: DataError."""
        if isinstance(who, str | int):
            user = self.known.user(who)
            return user, (self.known.items[self.known.users == user] + 1).tolist()
        places = {name: i for i, name in enumerate(self.known.item_ids, 1)}
        found = [places[str(one)] for one in who if str(one) in places]
        strange = [str(one) for one in who if str(one) not in places]
        if strange:
            warnings.warn(
                f"{len(strange)} of {len(who)} items are not known, as {strange[0]!r}: "
                + ("they are left out." if found else "this is an answer to an empty session."),
                stacklevel=3,
            )
        return None, found

    def sets(self, train: Interactions, val: Interactions, test: Interactions) -> Sets:
        """What `fit` takes as train, val and test."""
        return self.samples(train), self.questions(val), self.questions(test)


def grown(known: Interactions, ids: Sequence[str], fields: Mapping[str, ItemField]) -> Interactions:
    """The same with more items, of which there are no events.

    Raises: DataError for an id that is there, a field that is missing or of another length.
    """
    there = set(known.item_ids)
    for one in ids:
        if one in there:
            fix = "Leave it out: what is known of an item does not change."
            raise DataError("new items", got=f"{one!r}, which is known", want="new ids", fix=fix)
    joined: dict[str, ItemField] = {}
    for name, old in known.fields.items():
        new = fields.get(name)
        if new is None or len(new.values) != len(ids) or new.kind != old.kind:
            got = "none" if new is None else f"{len(new.values)} values of kind {new.kind}"
            want = f"{len(ids)} values of kind {old.kind}"
            fix = "Give the new items the fields of the old ones; a value may be empty."
            raise DataError(f"field {name!r} of new items", got=got, want=want, fix=fix)
        joined[name] = replace(old, values=old.values + tuple(new.values))
    return replace(known, item_ids=(*known.item_ids, *map(str, ids)), fields=joined)


def seen_rows(events: Interactions) -> Tensor:
    """Which items each user has taken.  -> (users, items + 1) bool, place 0 never."""
    found = torch.zeros(len(events.user_ids), len(events.item_ids) + 1, dtype=torch.bool)
    users, items = torch.from_numpy(events.users), torch.from_numpy(events.items)
    found[users, items + 1] = True
    return found


def refuse_history(model: object) -> ConfigError:
    """A model of users cannot read a session."""
    got, want = "items in the place of a user", "a user of the training events"
    fix = "Use a model of sessions (m2trec, onerec) or MultVae, which read histories."
    return ConfigError(type(model).__name__, got=got, want=want, fix=fix)
