"""Conditions on the fields of documents: "colour=red", "price<20"."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import ConfigError, DataError, UnknownName
from .segment import Segment

SIGNS = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
FORM = re.compile(r"\s*([^<>=!]+?)\s*(<=|>=|!=|<|>|=)\s*(.*?)\s*")


class Condition(NamedTuple):
    """A condition.  field: its name; sign: one of SIGNS; value: as it was written."""

    field: str
    sign: str
    value: str

    def holds(self, fields: Mapping[str, Any]) -> bool:
        """Return True if a document's fields meet it; False for a document without the field.

        Numbers are compared as numbers, also numbers from a CSV file; a list by any of its values.
        Raises: DataError for "<" or ">" between texts.
        """
        present = fields.get(self.field)
        if present is None:
            return False
        values = present if isinstance(present, list | tuple) else [present]
        if self.sign == "!=":
            return not any(self._compares(value, "=") for value in values)
        return any(self._compares(value, self.sign) for value in values)

    def _compares(self, value: Any, sign: str) -> bool:
        """Return True if a document's value passes the filter; sign: "=", "<", ..."""
        wanted, got = _number(self.value), _number(value)
        if wanted is not None and got is not None:
            return SIGNS[sign](got, wanted)
        if sign == "=":
            return _text(value) == self.value
        # one of both is no number: of dates the text orders, 2024-05-01 < 2024-06-01
        if wanted is None and isinstance(value, str) and got is None:
            return SIGNS[sign](value, self.value)
        where, fix = f"--filter {self.field}{sign}{self.value}", "Compare it by = or !=."
        want = "two numbers, or two texts"
        raise DataError(where, got=f"the value {value!r} of a document", want=want, fix=fix)


def parse_filters(conditions: Sequence[str]) -> list[Condition]:
    """Parse conditions such as "price<20".  Raises: ConfigError."""
    parsed: list[Condition] = []
    for text in conditions:
        match = FORM.fullmatch(text)
        if match is None:
            want, fix = "key=value, !=, <, <=, > or >=", "For example: --filter 'price<20'"
            raise ConfigError("--filter", got=repr(text), want=want, fix=fix)
        parsed.append(Condition(*match.groups()))
    return parsed


def masks_of(segments: Sequence[Segment], conditions: Sequence[str]) -> list[np.ndarray] | None:
    """Return which documents of each segment meet all conditions, (documents,) bool each.

    conditions: texts; without any, None is returned.
    Raises: ConfigError for another form; UnknownName for a field that no document has; DataError.
    """
    if not conditions:
        return None
    parsed = parse_filters(conditions)
    fields = {name for segment in segments for record in segment.records for name in record}
    for condition in parsed:
        if condition.field not in fields:
            raise UnknownName("field of the documents", condition.field, sorted(fields))
    return [
        np.array([all(c.holds(record) for c in parsed) for record in segment.records], bool)
        for segment in segments
    ]


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _text(value: Any) -> str:
    """Return a value as one writes it in a condition: true for True."""
    return str(value).lower() if isinstance(value, bool) else str(value)
