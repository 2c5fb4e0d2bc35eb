"""Interactions of users with items: the data of recommenders, its sessions and its splits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from intarsia.core.checks import at_least, between
from intarsia.core.errors import ConfigError, DataError
from intarsia.data.event_columns import frame_rows

Array = np.ndarray[Any, Any]
GAP = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|h|d)")
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
SEVERAL = "token_seq"
KINDS = ("token", SEVERAL, "float")


@dataclass(frozen=True)
class ItemField:
    """A field of all items, such as their titles or prices.

    kind: "token", one word an item; "token_seq", several; "float", a number.  values: of each item
    a tuple of words, () = not known, or of "float" a number, NaN = not known.
    """

    kind: str
    values: tuple[Any, ...]

    def take(self, index: Array) -> ItemField:
        """Return the field of some items, by their places."""
        return replace(self, values=tuple(self.values[i] for i in index.tolist()))


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events (user, item, time, rating), in the order of user and time.

    users, items: (n,) int64, places in `user_ids` and `item_ids`.  times: (n,) float64, seconds.
    ratings: (n,) float32, NaN where none was given.  fields: the known data of items, by name.
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
        """Check lengths, ids and numbers of users and items; sort the events by user and time."""
        lengths = {len(a) for a in (self.users, self.items, self.times, self.ratings)}
        if len(lengths) > 1:
            fix = "Give each event a user, an item, a time and a rating (NaN = none)."
            raise DataError("events", got=f"lengths {sorted(lengths)}", want="one", fix=fix)
        for kind, ids in (("users", self.user_ids), ("items", self.item_ids)):
            if len(set(ids)) < len(ids):
                repeated = next(name_id for name_id in ids if ids.count(name_id) > 1)
                fix = "Give each an id of its own."
                raise DataError(kind, got=f"{repeated!r} twice", want="ids given once", fix=fix)
        for kind, places, count in (
            ("users", self.users, len(self.user_ids)),
            ("items", self.items, len(self.item_ids)),
        ):
            if len(places) and not 0 <= places.min() <= places.max() < count:
                got = f"{places.min()} ... {places.max()}"
                fix = "Count them from 0, in the order of the ids."
                raise DataError(f"places of {kind}", got=got, want=f"0 ... {count - 1}", fix=fix)
        order = np.lexsort((self.times, self.users))  # stable: equal times keep their order
        if (np.diff(order) != 1).any():
            for name in ("users", "items", "times", "ratings"):
                object.__setattr__(self, name, getattr(self, name)[order])

    def __len__(self) -> int:
        return len(self.users)

    def rows(self, mask: Array) -> Interactions:
        """Select events.  mask: (n,) bool."""
        columns = {n: getattr(self, n)[mask] for n in ("users", "items", "times", "ratings")}
        return replace(self, **columns)

    def histories(self) -> list[Array]:
        """Return the items of each user, in the order of time; users without events have none."""
        # Events are sorted by user, so that each user's are one slice.
        ends = np.searchsorted(self.users, np.arange(1, len(self.user_ids)))
        return np.split(self.items, ends)

    def popularity(self) -> Array:
        """Count the events of each item.  (items,) int64."""
        return np.bincount(self.items, minlength=len(self.item_ids))

    def user(self, name: object) -> int:
        """Return the place of a user.  Raises: DataError for one that is not there."""
        return _position_of("user", name, self.user_ids)

    def item(self, name: object) -> int:
        """Return the place of an item.  Raises: DataError for one that is not there."""
        return _position_of("item", name, self.item_ids)

    def rated(self, lowest: float) -> Interactions:
        """Select events with at least this rating."""
        return self.rows(self.ratings >= lowest)

    def sessions(
        self, gap: str | float = "60min", *, shortest: int = 2, longest: int = 50
    ) -> Sessions:
        """Group events of a user into sessions: events that follow each other within a gap.

        gap: as "30min", "2h" or seconds. shortest: sessions of fewer events are left out. longest:
        longer ones are cut into several.
        Raises: ConfigError for no such time; DataError where no session is left.
        """
        at_least("shortest", shortest, 1)
        at_least("longest", longest, shortest)
        gap_seconds = seconds_of(gap)
        begins = np.ones(len(self), bool)
        # A session begins with a new user, or after a gap.
        begins[1:] = (np.diff(self.users) != 0) | (np.diff(self.times) > gap_seconds)
        first = np.flatnonzero(begins)
        end = np.append(first[1:], len(self))[: len(first)]
        # Sessions longer than `longest` are cut into equal pieces but for the last.
        pieces = -((first - end) // longest)
        piece_number = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
        starts = np.repeat(first, pieces) + longest * piece_number
        ends = np.minimum(starts + longest, np.repeat(end, pieces))
        long_enough = ends - starts >= shortest
        spans = tuple(zip(starts[long_enough].tolist(), ends[long_enough].tolist(), strict=True))
        if not spans:
            got = f"{len(starts)} sessions, all of fewer than {shortest} events"
            fix = "Widen the gap, or lower `shortest`."
            raise DataError("sessions", got=got, want="one at least", fix=fix)
        return Sessions(self, spans)

    def split_by_time(self, *shares: float) -> tuple[Interactions, ...]:
        """Split into parts that follow each other in time: split_by_time(0.8, 0.9) gives three.

        shares: of all events, at which the parts end.
        Raises: ConfigError for shares that do not rise between 0 and 1.
        """
        if not shares or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] < 1:
            want = "shares that rise, above 0 and below 1"
            raise ConfigError("shares", got=shares, want=want, fix="For example: 0.8, 0.9")
        borders = np.quantile(self.times, shares)
        part_of_event = np.searchsorted(
            borders, self.times, side="left"
        )  # an event at the border is before it
        return tuple(self.rows(part_of_event == i) for i in range(len(shares) + 1))

    def leave_last(self, count: int = 1) -> tuple[Interactions, Interactions]:
        """Split off the last `count` events of each user; a user without more events keeps all.

        Returns the events before, and the last ones.
        Raises: ConfigError for a count below 1.
        """
        at_least("count", count, 1)
        remaining = np.searchsorted(self.users, self.users, side="right") - np.arange(len(self))
        # Number of events of each event's user.
        sizes = np.bincount(self.users, minlength=len(self.user_ids))[self.users]
        last = (remaining <= count) & (sizes > count)
        return self.rows(~last), self.rows(last)

    def hold_out_items(self, share: float, *, seed: int = 0) -> Array:
        """Draw a share of the items that have events, for tests on items never trained on ("cold").

        Returns (items,) bool, True = drawn.
        Raises: ConfigError for no share between 0 and 1.
        """
        between("share", share, 0, 1)
        items_with_events = np.flatnonzero(self.popularity())
        cold_items = np.random.default_rng(seed).permutation(items_with_events)[
            : round(share * len(items_with_events))
        ]
        cold = np.zeros(len(self.item_ids), dtype=bool)
        cold[cold_items] = True
        return cold


@dataclass(frozen=True, eq=False)
class Sessions:
    """Sessions: spans of events that belong together.  spans: (first, end) in `events`."""

    events: Interactions
    spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[Array]:
        """Yield the items of each session, in the order of time."""
        return (self.events.items[a:b] for a, b in self.spans)

    @property
    def users(self) -> Array:
        """The user of each session, (n,)."""
        return self.events.users[[a for a, _ in self.spans]]


def check_order(before: Interactions, after: Interactions) -> None:
    """Refuse test events before the training events of the same user.

    before, after: parts of one table, so that a user has the same number in both.
    Raises: DataError.
    """
    newest = np.full(len(before.user_ids), -np.inf)
    # The newest training event of each user.
    np.maximum.at(newest, before.users, before.times)
    early = np.flatnonzero(after.times < newest[after.users])
    if len(early):
        user = after.user_ids[after.users[early[0]]]
        got = f"{len(early)} events before the training events of their user, as of {user!r}"
        fix = "Split by time (split_by_time) or by user (leave_last)."
        raise DataError("test events", got=got, want="events after them", fix=fix)


def seconds_of(gap: str | float) -> float:
    """Parse a time such as "60min", "2h" or a number, as seconds.  Raises: ConfigError."""
    match = GAP.fullmatch(gap.strip()) if isinstance(gap, str) else None
    if isinstance(gap, str) and match is None:
        want = "a number with s, min, h or d, or of seconds"
        raise ConfigError("gap", got=repr(gap), want=want, fix='For example: "60min"')
    value = float(match[1]) * SECONDS[match[2]] if match else float(gap)
    between("gap", value, 0, float("inf"), fix='Try "60min".')
    return value


def _position_of(kind: str, name: object, ids: Sequence[str]) -> int:
    try:
        return ids.index(str(name))
    except ValueError:
        examples = ", ".join(ids[:3])
        want = f"one of {len(ids)} {kind}s, as {examples}" if ids else f"no {kind} is known"
        fix = f"Check the id; ids are those of the file, as text, not places of a {kind}."
        raise DataError(kind, got=repr(str(name)), want=want, fix=fix) from None


def indexed(names: Sequence[str], first_names: Sequence[str] = ()) -> tuple[Array, tuple[str, ...]]:
    """Return the places of names in a list that begins with `first_names` and grows."""
    places: dict[str, int] = {name: i for i, name in enumerate(first_names)}
    positions = np.array([places.setdefault(name, len(places)) for name in names], dtype=np.int64)
    return positions, tuple(places)


def with_items(fields: Mapping[str, ItemField], count: int) -> dict[str, ItemField]:
    """Extend fields by `count` items, with nothing known of them."""
    unknown = {n: np.nan if f.kind == "float" else () for n, f in fields.items()}
    return {n: replace(f, values=f.values + (unknown[n],) * count) for n, f in fields.items()}


def events(
    rows: Sequence[tuple[str, str, float, float]],
    *,
    item_ids: Sequence[str] = (),
    user_ids: Sequence[str] = (),
    fields: Mapping[str, ItemField] | None = None,
) -> Interactions:
    """Build interactions from rows (user, item, time, rating) with ids as text.

    Users and items are numbered in the order in which they come, after item_ids and user_ids.
    fields: the known data of item_ids; of further items nothing is known.
    """
    # positions in the lists of ids, which grow by new ones
    users, all_users = indexed([row[0] for row in rows], user_ids)
    items, all_items = indexed([row[1] for row in rows], item_ids)
    # Items that only occur in events have no known fields.
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


def as_interactions(rows: Any) -> Interactions:
    """Return events as `Interactions`, whatever they come as.

    rows: Interactions, a DataFrame with the columns that `load_interactions` knows, a sparse matrix
      of SciPy, users by items, or an iterable of (user, item), (user, item, time) or (user, item,
      time, rating).
    Raises: DataError.
    """
    if isinstance(rows, Interactions):
        return rows
    if hasattr(rows, "columns") and hasattr(rows, "itertuples"):  # pandas, without importing it
        rows = frame_rows(rows)
    if hasattr(rows, "tocoo"):  # of scipy: users by items
        matrix = rows.tocoo()
        parts = (part.tolist() for part in (matrix.row, matrix.col, matrix.data))
        counted = zip(*parts, strict=True)
        rows = [(user, item, number, value) for number, (user, item, value) in enumerate(counted)]
    read: list[tuple[str, str, float, float]] = []
    for number, row in enumerate(rows):
        if isinstance(row, str) or not 2 <= len(row) <= 4:
            fix = 'For example: [("u1", "i7"), ("u1", "i3")], or load_interactions(path).'
            raise DataError(f"event {number}", got=repr(row), want="(user, item, ...)", fix=fix)
        user, item, *rest = row
        # without times, events are in the order in which they come
        time, rating = *map(float, rest), *(float(number), np.nan)[len(rest) :]
        read.append((str(user), str(item), time, rating))
    if not read:
        raise DataError("events", got="none", want="one at least", fix="Give it some.")
    return events(read)
