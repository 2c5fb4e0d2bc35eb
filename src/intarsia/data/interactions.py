"""Who took what, and when: the data of recommenders, its sessions and its splits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from intarsia.core.checks import at_least, between
from intarsia.core.errors import ConfigError, DataError

Array = np.ndarray[Any, Any]
GAP = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)")
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
SEVERAL = "token_seq"
KINDS = ("token", SEVERAL, "float")


@dataclass(frozen=True)
class ItemField:
    """What is known of each item under one name.

    kind: "token", one word an item; "token_seq", several; "float", a number.  values: of each item
    a tuple of words, () = not known, or of "float" a number, NaN = not known.
    """

    kind: str
    values: tuple[Any, ...]

    def take(self, index: Array) -> ItemField:
        return replace(self, values=tuple(self.values[i] for i in index.tolist()))


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events (user, item, time, rating), in the order of user and time.

    users, items: (n,) int64, places in `user_ids` and `item_ids`.  times: (n,) float64, seconds.
    ratings: (n,) float32, NaN where none was given.  fields: what is known of items, by name.
    Parts of a split have the users, items and fields of the whole, so that places mean the same.
    Raises: DataError for arrays of several lengths, places outside of the ids, and ids given twice.
    """

    users: Array
    items: Array
    times: Array
    ratings: Array
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    fields: Mapping[str, ItemField] = field(default_factory=dict[str, ItemField])

    def __post_init__(self) -> None:
        lengths = {len(a) for a in (self.users, self.items, self.times, self.ratings)}
        if len(lengths) > 1:
            fix = "Give each event a user, an item, a time and a rating (NaN = none)."
            raise DataError("events", got=f"lengths {sorted(lengths)}", want="one", fix=fix)
        for what, ids in (("users", self.user_ids), ("items", self.item_ids)):
            if len(set(ids)) < len(ids):
                twice = next(one for one in ids if ids.count(one) > 1)
                fix = "Give each an id of its own."
                raise DataError(what, got=f"{twice!r} twice", want="ids given once", fix=fix)
        for what, places, count in (
            ("users", self.users, len(self.user_ids)),
            ("items", self.items, len(self.item_ids)),
        ):
            if len(places) and not 0 <= places.min() <= places.max() < count:
                got = f"{places.min()} ... {places.max()}"
                fix = "Count them from 0, in the order of the ids."
                raise DataError(f"places of {what}", got=got, want=f"0 ... {count - 1}", fix=fix)
        order = np.lexsort((self.times, self.users))  # stable: equal times keep their order
        if (np.diff(order) != 1).any():
            for name in ("users", "items", "times", "ratings"):
                object.__setattr__(self, name, getattr(self, name)[order])

    def __len__(self) -> int:
        return len(self.users)

    def rows(self, chosen: Array) -> Interactions:
        """Some of the events.  chosen: (n,) bool."""
        of = {n: getattr(self, n)[chosen] for n in ("users", "items", "times", "ratings")}
        return replace(self, **of)

    def histories(self) -> list[Array]:
        """The items of each user, in the order of time; users without events have none."""
        ends = np.searchsorted(self.users, np.arange(1, len(self.user_ids)))
        return np.split(self.items, ends)

    def popularity(self) -> Array:
        """How many events each item has.  (items,) int64."""
        return np.bincount(self.items, minlength=len(self.item_ids))

    def user(self, name: object) -> int:
        """The place of a user.  Raises: DataError for one that is not there."""
        return _place("user", name, self.user_ids)

    def item(self, name: object) -> int:
        """The place of an item.  Raises: DataError for one that is not there."""
        return _place("item", name, self.item_ids)

    def rated(self, least: float) -> Interactions:
        """Events with at least this rating."""
        return self.rows(self.ratings >= least)

    def sessions(
        self, gap: str | float = "60min", *, shortest: int = 2, longest: int = 50
    ) -> Sessions:
        """Events of a user that follow each other within a gap, as "30min", "2h" or seconds.

        longest: longer ones are cut into several.  shortest: shorter ones are left out.
        Raises: ConfigError for no such time; DataError where no session is left.
        """
        at_least("shortest", shortest, 1)
        at_least("longest", longest, shortest)
        apart = seconds_of(gap)
        new = np.ones(len(self), bool)
        new[1:] = (np.diff(self.users) != 0) | (np.diff(self.times) > apart)
        first = np.flatnonzero(new)
        end = np.append(first[1:], len(self))[: len(first)]
        pieces = -((first - end) // longest)  # of each span: long ones are cut
        inside = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
        starts = np.repeat(first, pieces) + longest * inside
        ends = np.minimum(starts + longest, np.repeat(end, pieces))
        kept = ends - starts >= shortest
        spans = tuple(zip(starts[kept].tolist(), ends[kept].tolist(), strict=True))
        if not spans:
            got = f"{len(starts)} sessions, all of fewer than {shortest} events"
            fix = "Widen the gap, or lower `shortest`."
            raise DataError("sessions", got=got, want="one at least", fix=fix)
        return Sessions(self, spans)

    def split_by_time(self, *shares: float) -> tuple[Interactions, ...]:
        """Parts that follow each other in time: split_by_time(0.8, 0.9) gives three.

        Raises: ConfigError for shares that do not rise between 0 and 1.
        """
        if not shares or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] < 1:
            want = "shares that rise, above 0 and below 1"
            raise ConfigError("shares", got=shares, want=want, fix="For example: 0.8, 0.9")
        at = np.quantile(self.times, shares)
        part = np.searchsorted(at, self.times, side="left")  # an event at the border is before it
        return tuple(self.rows(part == i) for i in range(len(shares) + 1))

    def leave_last(self, count: int = 1) -> tuple[Interactions, Interactions]:
        """All but the last events of each user, and those; who has no more keeps all.

        Raises: ConfigError for a count below 1.
        """
        at_least("count", count, 1)
        after = np.searchsorted(self.users, self.users, side="right") - np.arange(len(self))
        sizes = np.bincount(self.users, minlength=len(self.user_ids))[self.users]
        last = (after <= count) & (sizes > count)
        return self.rows(~last), self.rows(last)

    def hold_out_items(self, share: float, *, seed: int = 0) -> Array:
        """A share of the items that have events, drawn at random: the cold ones.  (items,) bool.

        Raises: ConfigError for no share between 0 and 1.
        """
        between("share", share, 0, 1)
        known = np.flatnonzero(self.popularity())
        drawn = np.random.default_rng(seed).permutation(known)[: round(share * len(known))]
        cold = np.zeros(len(self.item_ids), dtype=bool)
        cold[drawn] = True
        return cold


@dataclass(frozen=True, eq=False)
class Sessions:
    """Spans of events that belong together.  spans: (first, end) in `events`."""

    events: Interactions
    spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[Array]:
        """The items of each, in the order of time."""
        return (self.events.items[a:b] for a, b in self.spans)

    @property
    def users(self) -> Array:
        """Of each session its user.  (n,)"""
        return self.events.users[[a for a, _ in self.spans]]


def check_order(before: Interactions, after: Interactions) -> None:
    """Raises: DataError where an event of a part comes before the same user's training events."""
    newest = np.full(len(before.user_ids), -np.inf)
    np.maximum.at(newest, before.users, before.times)
    early = np.flatnonzero(after.times < newest[after.users])
    if len(early):
        user = after.user_ids[after.users[early[0]]]
        got = f"{len(early)} events before the training events of their user, as of {user!r}"
        fix = "Split by time (split_by_time) or by user (leave_last)."
        raise DataError("test events", got=got, want="events after them", fix=fix)


def seconds_of(gap: str | float) -> float:
    """ "60min" as seconds.  Raises: ConfigError."""
    found = GAP.fullmatch(gap.strip()) if isinstance(gap, str) else None
    if isinstance(gap, str) and found is None:
        want = "a number with s, min, h or d, or of seconds"
        raise ConfigError("gap", got=repr(gap), want=want, fix='For example: "60min"')
    value = float(found[1]) * SECONDS[found[2]] if found else float(gap)
    between("gap", value, 0, float("inf"), fix='Try "60min".')
    return value


def _place(what: str, name: object, ids: Sequence[str]) -> int:
    try:
        return ids.index(str(name))
    except ValueError:
        some = ", ".join(ids[:3])
        want = f"one of {len(ids)} {what}s, as {some}" if ids else f"no {what} is known"
        fix = f"Check the id; ids are those of the file, as text, not places of a {what}."
        raise DataError(what, got=repr(str(name)), want=want, fix=fix) from None


def indexed(names: Sequence[str], known: Sequence[str] = ()) -> tuple[Array, tuple[str, ...]]:
    """Places of names in a list that begins with those known and grows as new ones come."""
    places: dict[str, int] = {name: i for i, name in enumerate(known)}
    found = np.array([places.setdefault(name, len(places)) for name in names], dtype=np.int64)
    return found, tuple(places)


def with_items(fields: Mapping[str, ItemField], more: int) -> dict[str, ItemField]:
    """Fields of so many more items, of which nothing is known."""
    empty: Callable[[ItemField], Any] = lambda one: np.nan if one.kind == "float" else ()  # noqa: E731
    return {n: replace(one, values=one.values + (empty(one),) * more) for n, one in fields.items()}


def events(
    rows: Sequence[tuple[str, str, float, float]],
    *,
    item_ids: Sequence[str] = (),
    user_ids: Sequence[str] = (),
    fields: Mapping[str, ItemField] | None = None,
) -> Interactions:
    """Interactions of rows (user, item, time, rating); ids in the order in which they come.

    item_ids, user_ids: those that come first.  fields: of item_ids; items after them have none.
    """
    users, all_users = indexed([row[0] for row in rows], user_ids)
    items, all_items = indexed([row[1] for row in rows], item_ids)
    grown = with_items(fields or {}, len(all_items) - len(item_ids))
    return Interactions(
        users,
        items,
        np.array([row[2] for row in rows], dtype=np.float64),
        np.array([row[3] for row in rows], dtype=np.float32),
        all_users,
        all_items,
        grown,
    )
