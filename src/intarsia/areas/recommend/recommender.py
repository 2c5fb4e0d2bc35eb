"""Base of all recommenders: known items and events, and the k best items of a query."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ...core.checks import at_least
from ...core.errors import ConfigError, DataError
from ...core.modes import evaluating
from ...data.interactions import Interactions, ItemField, as_interactions
from ...train.run import Finish, Run
from ...train.tasks import Task
from .learning import train_recommender

Sets = tuple[Dataset[Any], Dataset[Any], Dataset[Any]]


class Recommendation(NamedTuple):
    """Recommended item: its id, and its score, comparable within one answer; larger is better."""

    item: str
    score: float


class Settings(abc.ABC):
    """Settings of a recommender.

    data_of: "sessions" or "ranking", the kind of events it is trained on.  training: its keywords
    of `fit`.  tables: the layers that a schedule of masks applies to, see `SparseSchedule`.
    """

    data_of: ClassVar[str]
    training: ClassVar[Mapping[str, Any]]
    tables: ClassVar[tuple[str, ...]] = ("tables",)
    _fitted: ClassVar[Recommender | None] = None

    @property
    def reads(self) -> int | None:
        """The last items of a history that the model looks at; None stands for all of them."""
        return None

    @abc.abstractmethod
    def build(self, data: Interactions, *, seed: int = 0) -> Recommender:
        """Build an untrained model of the training events' items and, for "ranking", users."""

    def restore(self, data: Interactions, stored: Mapping[str, Tensor]) -> Recommender:
        """Build a model that fits the stored weights of one that was built of these events."""
        return self.build(data, seed=0)

    def fit(
        self, events: Any, val: Interactions | None = None, *, seed: int = 0, **options: Any
    ) -> Recommender:
        """Train a model on events and return it: `LightGcn().fit(events).recommend("u1")`.

        The settings' own `recommend` answers by the newest model that they have trained.

        events: `Interactions`, a DataFrame, or rows (user, item) with a time and a rating if there
          are; val: held-out ones, None = the last epoch is kept; options: keywords of
          `intarsia.fit`; the settings' own `training` is the default.
        Raises: as `fit`, and DataError for events that are none.
        """
        data = as_interactions(events)
        model = self.build(data, seed=seed)
        defaults = {**self.training, "trackers": (), "seed": seed}
        model.learn(data, val, **defaults | options)
        object.__setattr__(self, "_fitted", model.eval())  # no field: settings stay equal
        return model

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the settings by name, as an estimator of scikit-learn does."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore

    def recommend(
        self, query: str | int | Sequence[str], k: int = 10, *, exclude_seen: bool = True
    ) -> list[Recommendation]:
        """Return the k best items by the newest model that `fit` has trained, see `Recommender`.

        query: a user's id, or ids of items; exclude_seen: leave out the items of the user.
        Raises: ConfigError before `fit`; DataError as the model's `recommend`.
        """
        if self._fitted is not None:
            return self._fitted.recommend(query, k, exclude_seen=exclude_seen)
        name, want = type(self).__name__, "the model that its `fit` returns"
        fix = f'For example: model = {name}().fit(events); model.recommend("u1")'
        raise ConfigError(name, got="settings, which know no events", want=want, fix=fix)


class Recommender(nn.Module, abc.ABC):
    """Model that ranks items.  Places of items count from 1 in its tensors; 0 is no item.

    known: ids, fields and training events.  In training model(x, target) gives named losses (the
    objective `own_losses`), in evaluation model(x) the scores (B, items + 1).
    """

    settings: Settings
    takes_items: ClassVar[bool] = False  # has `add_items`
    explains: ClassVar[bool] = False  # has `reasons`
    writes_sessions: ClassVar[bool] = False  # has `session`

    def __init__(self, settings: Settings, events: Interactions) -> None:
        super().__init__()
        self.settings, self.known = settings, events

    @property
    @abc.abstractmethod
    def task(self) -> Task:
        """Task of `fit`: loss and score."""

    @abc.abstractmethod
    def samples(self, events: Interactions) -> Dataset[Any]:
        """Return the training samples of these events."""

    @abc.abstractmethod
    def questions(self, events: Interactions) -> Dataset[Any]:
        """Return the samples of these events that it is evaluated on."""

    @abc.abstractmethod
    def scores(self, user: int | None, history: Sequence[int]) -> Tensor:
        """Score all items, (n + 1,).  history: numbers of the user's items from 1, oldest first."""

    def learn(
        self,
        train: Interactions,
        val: Interactions | None = None,
        *,
        finish: Finish = lambda run: run,
        **options: Any,
    ) -> Run:
        """Train the model in place on the events that it was built of; return the run.

        val: held-out ones; finish, options: as of `intarsia.fit`.
        """
        return train_recommender(self, train, val, finish=finish, **options)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the settings by name."""
        return self.settings.get_params(deep)

    @property
    def codes(self) -> np.ndarray | None:
        """Semantic ids of the items, (items, levels), of a model that writes them."""
        return None

    def add_items(self, ids: Sequence[str], fields: Mapping[str, ItemField]) -> None:
        """Add items by their fields alone; this model cannot.

        fields: name -> values. Raises: ConfigError, as every model that has no fields.
        """
        got, want = f"{type(self).__name__}, which learns a vector for each", "a model of fields"
        raise ConfigError("new items", got=got, want=want, fix="Use m2trec, or train anew.")

    def reasons(
        self, who: str | int | Sequence[str], items: Sequence[str]
    ) -> list[dict[str, float]]:
        """Return how much each field adds to each item's score; this model cannot.

        who: id of a user, or ids of the items of a history.
          Raises: ConfigError, as every model without fields.
        """
        got, fix = type(self).__name__, "Leave --why out, or ask a run of m2trec."
        raise ConfigError("--why", got=got, want="a model of fields", fix=fix)

    def session(
        self, who: str | int | Sequence[str], items: int | None = None, *, exclude_seen: bool = True
    ) -> list[Recommendation]:
        """Recommend a whole session, in its order; this model cannot.

        who: id of a user, or ids of the items of a history; exclude_seen: no item that the user has
          had.
        Raises: ConfigError, as every model that generates no sessions.
        """
        got, fix = type(self).__name__, "Leave --session out, or ask a run of onerec."
        raise ConfigError("--session", got=got, want="a generator", fix=fix)

    def recommend(
        self, query: str | int | Sequence[str], k: int = 10, *, exclude_seen: bool = True
    ) -> list[Recommendation]:
        """Return the k best items, best first.

        query: a user's id, or ids of items in the order in which they were taken; unknown items are
          left out with a warning; exclude_seen: leave out the items of the user or the session.
        Raises: DataError for an unknown user, and where no item is left.
        """
        at_least("k", k, 1)
        user, history = self.read(query)
        with evaluating(self), torch.no_grad():
            scores = self.scores(user, history).clone()
        scores[0] = -torch.inf
        if exclude_seen:
            scores[list(history)] = -torch.inf
        # a model that diverged gives NaN, which must not rank first
        scores = scores.masked_fill(scores.isnan(), -torch.inf)
        available = int((scores > -torch.inf).sum())
        if not available:
            fix = "Call it with exclude_seen=False, or add items."
            raise DataError("recommendations", got="no item left", want="one", fix=fix)
        best = scores.topk(min(k, available))
        ids = self.known.item_ids
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [Recommendation(ids[place - 1], score) for place, score in pairs]

    def ranked(self, x: Tensor, k: int, hidden: Tensor | None = None) -> Tensor:
        """Return the numbers of the k best items, (B, k).

        x: the model's input, (B, ...); hidden: (B, items + 1) bool, items to leave out, None =
          none.
        """
        scores = self(x).clone()
        scores[:, 0] = -torch.inf  # 0 is no item
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        return scores.topk(min(k, scores.shape[1] - 1)).indices

    def read(self, query: str | int | Sequence[str]) -> tuple[int | None, list[int]]:
        """Return a user's number and items, or for ids of items None and their numbers from 1.

        query: a user's id, or ids of the items of a history; unknown ones are left out
          with a warning.  Raises: DataError for an unknown user.
        """
        if isinstance(query, str | int | np.integer):
            user = self.known.user(query if isinstance(query, str) else int(query))
            return user, (self.known.items[self.known.users == user] + 1).tolist()
        # ids of items: a history of a user who is not known
        places = {name: i for i, name in enumerate(self.known.item_ids, 1)}
        history = [places[str(item)] for item in query if str(item) in places]
        unknown = [str(item) for item in query if str(item) not in places]
        if unknown:
            warnings.warn(
                f"{len(unknown)} of {len(query)} items are not known, as {unknown[0]!r}: "
                + ("they are left out." if history else "this is an answer to an empty session."),
                stacklevel=3,
            )
        return None, history

    def sets(self, train: Interactions, val: Interactions, test: Interactions) -> Sets:
        """Return the data sets that `fit` takes as train, val and test."""
        return self.samples(train), self.questions(val), self.questions(test)


def with_new_items(
    events: Interactions, ids: Sequence[str], fields: Mapping[str, ItemField]
) -> Interactions:
    """Return the events with more items, which have no events yet.

    Raises: DataError for an id that exists, a field that is missing or of another length.
    """
    existing = set(events.item_ids)
    for item in ids:
        if item in existing:
            fix = "Leave it out: what is known of an item does not change."
            raise DataError("new items", got=f"{item!r}, which is known", want="new ids", fix=fix)
    joined: dict[str, ItemField] = {}
    for name, old in events.fields.items():
        new = fields.get(name)
        if new is None or len(new.values) != len(ids) or new.kind != old.kind:
            got = "none" if new is None else f"{len(new.values)} values of kind {new.kind}"
            want = f"{len(ids)} values of kind {old.kind}"
            fix = "Give the new items the fields of the old ones; a value may be empty."
            raise DataError(f"field {name!r} of new items", got=got, want=want, fix=fix)
        # new items come after the old ones, which keep their numbers
        joined[name] = replace(old, values=old.values + tuple(new.values))
    return replace(events, item_ids=(*events.item_ids, *map(str, ids)), fields=joined)


def seen_rows(events: Interactions) -> Tensor:
    """Return which items each user has had, (users, items + 1) bool, False in column 0, no item."""
    seen_items = torch.zeros(len(events.user_ids), len(events.item_ids) + 1, dtype=torch.bool)
    users, items = torch.from_numpy(events.users), torch.from_numpy(events.items)
    seen_items[users, items + 1] = True
    return seen_items


def refuse_history(model: object) -> ConfigError:
    """Return the error of a model of users that is given a session."""
    got, want = "items in the place of a user", "a user of the training events"
    fix = "Use ease, itemknn or multvae, or a model of sessions: they read histories."
    return ConfigError(type(model).__name__, got=got, want=want, fix=fix)
