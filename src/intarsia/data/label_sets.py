"""Several labels a picture: read out of a table's cells, and kept in proportion by a split.

A cell is a JSON list, or names with semicolons between: ["cat", "dog"] or cat;dog.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.core.errors import DataError
from intarsia.core.files import parse_json

COLUMN, MARK = "labels", ";"
OTHER_MARKS = ("|", ",")


def has_several(column: str, cells: Sequence[Any], file: Path) -> bool:
    """Whether a column has several labels a row: lists, or the column `labels` with semicolons.

    Raises: DataError for the column `labels` with another mark between names.
    """
    if any(isinstance(cell, list) for cell in cells):
        return True
    if column != COLUMN:  # a class of `label` may be called anything
        return False
    texts = [str(cell).strip() for cell in cells]
    if any(MARK in text or text.startswith("[") for text in texts):
        return True
    for mark in OTHER_MARKS:
        if found := next((text for text in texts if mark in text), None):
            fix = "Write a;b. If the whole cell is one class, call the column 'label'."
            want = "names with ; between, or a JSON list"
            raise DataError(f"labels of {file.name}", got=repr(found), want=want, fix=fix)
    return False


def label_sets(cells: Sequence[Any], file: Path, lines: Sequence[int]) -> list[tuple[str, ...]]:
    """The labels of each row.  lines: the number of each row's line.

    Raises: DataError for a row without labels, a list that is none, and one label in every row.
    """
    found = [_set_of(cell, file, line) for line, cell in zip(lines, cells, strict=True)]
    if found and all(len(names) == 1 for names in found):
        got, want = "one label in every row", "several in some rows"
        fix = "Call the column 'label', with a name in each cell: then these are classes."
        raise DataError(f"labels of {file.name}", got=got, want=want, fix=fix)
    return found


def _set_of(cell: Any, file: Path, line: int) -> tuple[str, ...]:
    where = f"line {line} of {file}"
    text = cell.strip() if isinstance(cell, str) else ""
    if text.startswith("["):
        try:
            cell = parse_json(text)
        except ValueError as error:
            fix = 'For example: ["cat", "dog"], or cat;dog.'
            raise DataError(where, got=text, want="a JSON list of labels", fix=fix) from error
    parts = cell if isinstance(cell, list) else str(cell or "").split(MARK)
    if any(not isinstance(part, str | int) or isinstance(part, bool) for part in parts):
        raise DataError(where, got=cell, want="names of labels", fix="Write them as text.")
    names = tuple(dict.fromkeys(str(part).strip() for part in parts if str(part).strip()))
    if not names:
        fix = "Complete the row, delete it, or give such pictures a label of their own, as none."
        raise DataError(where, got="a row without labels", want="at least one", fix=fix)
    return names


def rows_of(sets: Sequence[Sequence[str]], classes: Sequence[str]) -> np.ndarray:
    """(n, L) int64: 1 where a row has the label."""
    place = {name: i for i, name in enumerate(classes)}
    found = np.zeros((len(sets), len(classes)), dtype=np.int64)
    for row, names in zip(found, sets, strict=True):
        row[[place[name] for name in names]] = 1
    return found


def strata(labels: np.ndarray, n: int) -> np.ndarray | None:
    """(n,) by which a split of `n` pictures is stratified: the set of labels of each picture.

    Sets of a single picture are taken together. None where there are more sets than pictures in a
    part, so that they cannot be kept in proportion.  labels: (n, L).
    """
    _, found, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    found = found.reshape(-1)
    order = np.argsort(counts, kind="stable")
    rare = int((counts < 2).sum())
    if rare == 1:  # together with the next rarest
        rare = 2
    if rare:
        found = np.where(np.isin(found, order[:rare]), -1, found)
    groups, counts = np.unique(found, return_counts=True)
    pooled = rare and len(groups) == 1
    fits = counts.min() >= 2 and len(groups) <= min(n, len(labels) - n) and not pooled
    return found if fits else None
