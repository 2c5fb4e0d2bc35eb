"""What a recommender says of somebody, ready for people: the past, what comes next, and why."""

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
SHOWN = 50  # taken items that are listed, the latest ones
DATED = 6.3e8  # seconds from which a time is a date: 1990


def _title(model: Recommender, place: int) -> str:
    field = next((f for n, f in model.known.fields.items() if _is_title(n, f)), None)
    return " ".join(field.values[place]) if field else ""


def _is_title(name: str, field: ItemField) -> bool:
    return any(word in name for word in TITLES) and field.kind != "float"


def found(
    model: Recommender,
    who: str | Sequence[str],
    k: int = 10,
    *,
    seen: bool = False,
    session: bool = False,
) -> tuple[list[Recommendation], list[str]]:
    """What a model recommends, and its warnings.  session: a whole one, by a generator.

    Raises: ConfigError for a session of a model that writes none; otherwise as `recommend`.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if session:
            items = model.session(who, exclude_seen=not seen)
        else:
            items = model.recommend(who, k, exclude_seen=not seen)
    return items, [str(line.message) for line in told]


def rows(
    model: Recommender, who: str | Sequence[str], items: Sequence[Recommendation], why: bool
) -> list[dict[str, Any]]:
    """Items with their titles, semantic ids, and what each field adds to the score.

    Raises: ConfigError for `why` of a model that has no fields.
    """
    taken = model.known.popularity() > 0
    places = [model.known.item(one.item) for one in items]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told when the items were found
        said = model.reasons(who, [one.item for one in items]) if why else [{}] * len(items)
    codes = model.codes
    return [
        {
            "item": one.item,
            "title": _title(model, place),
            "score": one.score,
            "new": not taken[place],
            "why": reason,
        }
        | ({} if codes is None else {"code": codes[place].tolist()})
        for one, place, reason in zip(items, places, said, strict=True)
    ]


class Showing:
    """A recommender behind a page: one question at a time.  What it returns is ready for JSON."""

    def __init__(self, model: Recommender) -> None:
        self.model, self._lock = model, threading.Lock()
        known = model.known
        self.titles = [_title(model, place) for place in range(len(known.item_ids))]
        self.popular = known.popularity()
        self._places = {name: i for i, name in enumerate(known.item_ids)}
        self._fields = {n: f for n, f in known.fields.items() if not _is_title(n, f)}
        self._joints = {
            n: " " if FieldCoding.of(n, f).how == TEXT else ", " for n, f in self._fields.items()
        }
        self._explains = model.explains
        self._reads = self._reads_histories()

    def about(self) -> dict[str, Any]:
        """What the model can do, and some to begin with: the users of most events, and items."""
        known, model = self.model.known, self.model
        counts = np.bincount(known.users, minlength=len(known.user_ids))
        return {
            "users": [known.user_ids[i] for i in np.argsort(-counts, kind="stable")[:3]],
            "items": [self._item(i) for i in np.argsort(-self.popular, kind="stable")[:3]],
            "histories": self._reads,
            "session": model.writes_sessions,
            "why": self._explains,
            "new": int((self.popular == 0).sum()),
        }

    def _reads_histories(self) -> bool:
        try:
            self.model.recommend(self.model.known.item_ids[:1], 1, exclude_seen=False)
        except IntarsiaError:
            return False
        return True

    def find(self, text: str, k: int = 8) -> dict[str, Any]:
        """Users whose id begins so, and items of these words or this id, the most taken first."""
        known, low = self.model.known, text.strip().lower()
        words = low.split()
        users = [one for one in known.user_ids if low and one.lower().startswith(low)]
        places = [
            i
            for i, title in enumerate(self.titles)
            if words
            and (known.item_ids[i].lower() == low or all(w in title.lower() for w in words))
        ]
        places.sort(key=lambda i: (known.item_ids[i].lower() != low, -self.popular[i]))
        users.sort(key=len)  # a user of just this id comes first
        return {"users": users[:k], "items": [self._item(i) for i in places[:k]]}

    def shown(
        self,
        who: str | Sequence[str],
        k: int = 10,
        *,
        seen: bool = False,
        session: bool = False,
        new: bool = False,
    ) -> dict[str, Any]:
        """Somebody's past and future.  new: only items that nobody has taken yet.

        who: a user's id or ids of items.  -> taken (the latest first, at most 50), total, reads
        (how many of them the model looks at, None = all), items, told (warnings), milliseconds.
        Raises: as `found`.
        """
        with self._lock:  # warnings are caught for one question at a time
            start = time.perf_counter()
            count = len(self.titles) if new else k
            items, told = found(self.model, who, count, seen=seen, session=session)
            if new:
                items = [one for one in items if not self.popular[self._places[one.item]]][:k]
            listed = rows(self.model, who, items, self._explains)
        seconds = time.perf_counter() - start
        taken = self._taken(who)
        return {
            "taken": taken[:SHOWN],
            "total": len(taken),
            "reads": self.model.settings.reads,
            "items": [row | self._item(self._places[row["item"]]) for row in listed],
            "told": told,
            "milliseconds": 1e3 * seconds,
        }

    def _taken(self, who: str | Sequence[str]) -> list[dict[str, Any]]:
        known = self.model.known
        if not isinstance(who, str):
            places = self._places
            return [self._item(places[one]) for one in reversed(who) if one in places]
        own = np.flatnonzero(known.users == known.user(who))[::-1]
        return [self._item(int(known.items[i])) | self._event(int(i)) for i in own.tolist()]

    def _event(self, at: int) -> dict[str, Any]:
        """When it was taken, where times are dates, and how it was rated."""
        when, rating = float(self.model.known.times[at]), float(self.model.known.ratings[at])
        day = time.strftime("%Y-%m-%d", time.gmtime(when)) if DATED < when < 4e9 else ""
        return {"day": day, "rating": None if np.isnan(rating) else rating}

    def _item(self, place: int) -> dict[str, Any]:
        return {
            "item": self.model.known.item_ids[place],
            "title": self.titles[place],
            "fields": self._words(place),
            "new": not self.popular[place],
        }

    def _words(self, place: int) -> Mapping[str, str]:
        """What is known of an item besides its title, as text."""
        words: dict[str, str] = {}
        for name, field in self._fields.items():
            value = field.values[place]
            if field.kind == "float":
                words[name] = "" if np.isnan(value) else f"{value:g}"
            else:
                words[name] = self._joints[name].join(value)
        return {name: text for name, text in words.items() if text}
