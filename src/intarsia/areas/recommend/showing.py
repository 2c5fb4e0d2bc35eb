"""Answers of a recommender for display: past items, recommended items, and explanations."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...core.errors import IntarsiaError
from ...data.interactions import ItemField
from .item_fields import TEXT, FieldCoding
from .recommender import Recommendation, Recommender

TITLES = ("title", "name")
LISTED = 50  # past items that an answer lists, the latest ones
DATED = 6.3e8  # seconds since 1970 from which a number is taken for a date: 1990


def _title(model: Recommender, place: int) -> str:
    """Return an item's title, from the first field that is a title; "" if the items have none."""
    field = next((f for n, f in model.known.fields.items() if _is_title(n, f)), None)
    return " ".join(field.values[place]) if field else ""


def _is_title(name: str, field: ItemField) -> bool:
    return any(word in name for word in TITLES) and field.kind != "float"


def recommend_with_warnings(
    model: Recommender,
    query: str | Sequence[str],
    k: int = 10,
    *,
    include_seen: bool = False,
    session: bool = False,
) -> tuple[list[Recommendation], list[str]]:
    """Return a model's recommendations, and the texts of its warnings.

    query: id of a user, or ids of the items of a history; include_seen: items of the history may be
      recommended.
    Raises: ConfigError for a session of a model that generates none; otherwise as `recommend`.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if session:
            items = model.session(query, exclude_seen=not include_seen)
        else:
            items = model.recommend(query, k, exclude_seen=not include_seen)
    return items, [str(line.message) for line in caught]


def new_ranks(
    model: Recommender,
    query: str | Sequence[str],
    added: Sequence[str],
    *,
    include_seen: bool = False,
) -> list[dict[str, Any]]:
    """Return item, rank from 1, of how many, and score of new items, the best one first."""
    count = len(model.known.item_ids)
    ranked, _ = recommend_with_warnings(model, query, count, include_seen=include_seen)
    wanted = set(added)
    return [
        {"item": hit.item, "rank": rank, "of": len(ranked), "score": hit.score}
        for rank, hit in enumerate(ranked, 1)
        if hit.item in wanted
    ]


def item_rows(
    model: Recommender, query: str | Sequence[str], items: Sequence[Recommendation], explain: bool
) -> list[dict[str, Any]]:
    """Return rows of items with title, score, semantic id, and what each field adds to the score.

    query: id of a user, or ids of the items of a history.  Raises: ConfigError if the model has no
      fields to explain by.
    """
    has_events = model.known.popularity() > 0
    places = [model.known.item(recommendation.item) for recommendation in items]
    names = [recommendation.item for recommendation in items]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `recommend` has issued them already
        explanations = model.reasons(query, names) if explain else [{}] * len(items)
    codes = model.codes
    return [
        {
            "item": recommendation.item,
            "title": _title(model, place),
            "score": recommendation.score,
            "new": not has_events[place],
            "why": reason,
        }
        | ({} if codes is None else {"code": codes[place].tolist()})
        for recommendation, place, reason in zip(items, places, explanations, strict=True)
    ]


class RecommenderPage:
    """Recommender behind a web page, one request at a time.  Answers are ready for JSON."""

    def __init__(self, model: Recommender) -> None:
        self.model, self._lock = model, threading.Lock()
        events = model.known
        self.titles = [_title(model, place) for place in range(len(events.item_ids))]
        self.popular = events.popularity()
        self._places = {name: i for i, name in enumerate(events.item_ids)}
        self._fields = {n: f for n, f in events.fields.items() if not _is_title(n, f)}
        self._joints = {
            n: " " if FieldCoding.of(n, f).kind == TEXT else ", " for n, f in self._fields.items()
        }
        self._explains = model.explains
        self._reads = self._reads_histories()

    def about(self) -> dict[str, Any]:
        """Return what the model can do, and examples: the users and items of most events."""
        events, model = self.model.known, self.model
        counts = np.bincount(events.users, minlength=len(events.user_ids))
        return {
            "users": [events.user_ids[i] for i in np.argsort(-counts, kind="stable")[:3]],
            "items": [self._item(i) for i in np.argsort(-self.popular, kind="stable")[:3]],
            "histories": self._reads,
            "session": model.writes_sessions,
            "why": self._explains,
            "new": int((self.popular == 0).sum()),
        }

    def _reads_histories(self) -> bool:
        """Return True if the model answers for items instead of a user, which is tried."""
        try:
            self.model.recommend(self.model.known.item_ids[:1], 1, exclude_seen=False)
        except IntarsiaError:
            return False
        return True

    def find(self, text: str, k: int = 8) -> dict[str, Any]:
        """Find users with an id that begins with a text, and items by words of the title or by id.

        k: results of each kind at most; items of most events come first.
        """
        events, low = self.model.known, text.strip().lower()
        words = low.split()
        users = [user for user in events.user_ids if low and user.lower().startswith(low)]
        places = [
            i
            for i, title in enumerate(self.titles)
            if words
            and (events.item_ids[i].lower() == low or all(w in title.lower() for w in words))
        ]
        places.sort(key=lambda i: (events.item_ids[i].lower() != low, -self.popular[i]))
        users.sort(key=len)  # a user of just this id comes first
        return {"users": users[:k], "items": [self._item(i) for i in places[:k]]}

    def answer(
        self,
        query: str | Sequence[str],
        k: int = 10,
        *,
        include_seen: bool = False,
        session: bool = False,
        new: bool = False,
    ) -> dict[str, Any]:
        """Answer a query: past items and recommendations.

        query: a user's id or ids of items; new: only items without events. Returns taken (past
          items, the latest first, at most 50), total (their number), reads (how many of them the
          model uses, None = all), items, told (warnings) and milliseconds. Raises: as
          `recommend_with_warnings`.
        """
        with self._lock:  # warnings are caught for one question at a time
            start = time.perf_counter()
            # for new items alone rank all items, and filter afterwards
            count = len(self.titles) if new else k
            items, messages = recommend_with_warnings(
                self.model, query, count, include_seen=include_seen, session=session
            )
            if new:
                items = [
                    recommendation
                    for recommendation in items
                    if not self.popular[self._places[recommendation.item]]
                ][:k]
            listed = item_rows(self.model, query, items, self._explains)
        seconds = time.perf_counter() - start
        past = self._taken(query)
        return {
            "taken": past[:LISTED],
            "total": len(past),
            "reads": self.model.settings.reads,
            "items": [row | self._item(self._places[row["item"]]) for row in listed],
            "told": messages,
            "milliseconds": 1e3 * seconds,
        }

    def _taken(self, query: str | Sequence[str]) -> list[dict[str, Any]]:
        """Return the past items of a query, the latest first."""
        events = self.model.known
        if not isinstance(query, str):
            places = self._places
            return [self._item(places[item]) for item in reversed(query) if item in places]
        indices = np.flatnonzero(events.users == events.user(query))[::-1]
        return [self._item(int(events.items[i])) | self._event(int(i)) for i in indices.tolist()]

    def _event(self, index: int) -> dict[str, Any]:
        """Return the day of an event, "" where times are no dates, and its rating."""
        seconds, rating = (
            float(self.model.known.times[index]),
            float(self.model.known.ratings[index]),
        )
        day = time.strftime("%Y-%m-%d", time.gmtime(seconds)) if DATED < seconds < 4e9 else ""
        return {"day": day, "rating": None if np.isnan(rating) else rating}

    def _item(self, place: int) -> dict[str, Any]:
        """Return an item's id, title and fields, and True under "new" if it has no event."""
        return {
            "item": self.model.known.item_ids[place],
            "title": self.titles[place],
            "fields": self._words(place),
            "new": not self.popular[place],
        }

    def _words(self, place: int) -> Mapping[str, str]:
        """Return the text of each field of an item that has a value, without the title."""
        words: dict[str, str] = {}
        for name, field in self._fields.items():
            value = field.values[place]
            if field.kind == "float":
                words[name] = "" if np.isnan(value) else f"{value:g}"
            else:
                words[name] = self._joints[name].join(value)
        return {name: text for name, text in words.items() if text}
