"""Names of the columns of events, as MovieLens, Amazon, RetailRocket and other shops write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from intarsia.core.errors import ConfigError, DataError, UnknownName, some_of

# without case and signs, the better name first: Amazon's parent_asin joins the variants of an item
NAMES: Mapping[str, tuple[str, ...]] = {
    "user": (
        *("userid", "user", "reviewerid", "visitorid", "customerid", "customer", "memberid"),
        *("accountid", "uid", "sessionid"),
    ),
    "item": (
        *("itemid", "item", "parentasin", "asin", "movieid", "productid", "product", "articleid"),
        *("sku", "bookid", "isbn", "trackid", "songid", "artistid", "gameid", "iid"),
    ),
    "time": ("timestamp", "time", "unixreviewtime", "datetime", "eventtime", "date", "ts"),
    "rating": ("rating", "overall", "stars"),
}
KNOWN = {
    "user": "userId, user_id, reviewerID, visitorid, ...",
    "item": "itemId, item_id, movieId, parent_asin, asin, ...",
}
MILLI, MICRO, NANO = (
    1e11,
    1e14,
    1e17,
)  # from here on times count ms, us, ns: 1e11 s is the year 5138


def plain(name: str) -> str:
    """Return a column's name without case and signs: "user_id" and "userId" are one."""
    return "".join(letter for letter in str(name).casefold() if letter.isalnum())


def parse_columns(text: str | None, kinds: Iterable[str] = NAMES) -> dict[str, str]:
    """Parse "user=kunde,item=ware" as column names by kind.  Raises: ConfigError; UnknownName."""
    pairs = [pair.partition("=") for pair in (text or "").split(",") if pair.strip()]
    parsed: dict[str, str] = {}
    for kind, sign, name in pairs:
        if not sign or not name.strip():
            example = ",".join(f"{kind}=NAME" for kind in list(kinds)[:2])
            want, fix = "kind=name, with commas", f"For example: --columns {example}"
            raise ConfigError("--columns", got=repr(text), want=want, fix=fix)
        if kind.strip() not in kinds:
            raise UnknownName("kind of column", kind.strip(), tuple(kinds))
        parsed[kind.strip()] = name.strip()
    return parsed


def find_columns(
    names: Sequence[str], source: object, columns: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the columns of user, item and, where there are, time and rating: kind -> name.

    columns: names by kind that are asked for, instead of those that are known.
    Raises: DataError that names all columns that are missing.
    """
    columns = columns or {}
    by_plain = {plain(name): name for name in reversed(names)}
    named: dict[str, str] = {}
    for kind, spellings in NAMES.items():
        if kind in columns:
            if columns[kind] in names:
                named[kind] = columns[kind]
        elif name := next((by_plain[s] for s in spellings if s in by_plain), None):
            named[kind] = name
    missing = [kind for kind in NAMES if kind not in named and (kind in columns or kind in KNOWN)]
    if missing:
        wants = [
            f"a column of the {kind} ({repr(columns[kind]) if kind in columns else KNOWN[kind]})"
            for kind in missing
        ]
        example = ",".join(f"{kind}=NAME" for kind in missing)
        fix = f"Rename the columns, or say which they are: --columns {example}"
        want = " and ".join(wants)
        raise DataError(f"columns of {source}", got=some_of(names), want=want, fix=fix)
    return named


def seconds_scale(largest: float) -> float:
    """Return the seconds of one unit of a column's times, told by the largest time in it."""
    if not largest > MILLI:  # NaN too
        return 1.0
    if largest < MICRO:
        return 1e-3
    return 1e-6 if largest < NANO else 1e-9


def parse_date(text: str) -> float:
    """Return the seconds of a date such as "2024-05-01 12:30", by default UTC; ValueError else."""
    moment = datetime.fromisoformat(text.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def frame_rows(frame: Any) -> list[tuple[Any, ...]]:
    """Return the events of a DataFrame as rows (user, item, time, rating).

    frame: of pandas or alike; its columns are found by their names.  Raises: DataError.
    """
    named = find_columns([str(name) for name in frame.columns], "the DataFrame")
    columns = [frame[named[kind]].tolist() if kind in named else None for kind in NAMES]
    count = len(columns[0] or ())
    times = list(map(_seconds, columns[2] or range(count)))
    scale = seconds_scale(max(times, default=0.0))
    ratings = columns[3] or [math.nan] * count
    users, items = columns[0] or [], columns[1] or []
    return list(zip(users, items, [scale * t for t in times], ratings, strict=True))


def _seconds(value: Any) -> float:
    """Return a cell of a time in seconds: a number, a timestamp, or a date's text."""
    if hasattr(value, "timestamp"):
        return float(value.timestamp())
    return parse_date(value) if isinstance(value, str) else float(value)
