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
    """Decide whether a column of labels holds several a row: lists, or names with semicolons.

    Raises: DataError for the column `labels` with another mark between names.
    """
    if any(isinstance(cell, list) for cell in cells):
        return True
    if column != COLUMN:  # a class of `label` may be called anything
        return False
    texts = [str(cell).strip() for cell in cells]
    if any(MARK in text or text.startswith("[") for text in texts):
        return True
    # Another separator is likely a mistake: the row would become one long label.
    for mark in OTHER_MARKS:
        if example := next((text for text in texts if mark in text), None):
            fix = "Write a;b. If the whole cell is one class, call the column 'label'."
            want = "names with ; between, or a JSON list"
            raise DataError(f"labels of {file.name}", got=repr(example), want=want, fix=fix)
    return False


def label_sets(cells: Sequence[Any], file: Path, lines: Sequence[int]) -> list[tuple[str, ...]]:
    """Parse the labels of each row, where a picture may have several.

    Raises: DataError for a row without labels, a list that is none, and one label in every row.
    """
    sets = [_parse_labels(cell, file, line) for line, cell in zip(lines, cells, strict=True)]
    if sets and all(len(names) == 1 for names in sets):
        got, want = "one label in every row", "several in some rows"
        fix = "Call the column 'label', with a name in each cell: then these are classes."
        raise DataError(f"labels of {file.name}", got=got, want=want, fix=fix)
    return sets


def _parse_labels(cell: Any, file: Path, line: int) -> tuple[str, ...]:
    """Parse one cell with labels: a JSON list, or names with semicolons between."""
    place = f"line {line} of {file}"
    text = cell.strip() if isinstance(cell, str) else ""
    if text.startswith("["):
        try:
            cell = parse_json(text)
        except ValueError as error:
            fix = 'For example: ["cat", "dog"], or cat;dog.'
            raise DataError(place, got=text, want="a JSON list of labels", fix=fix) from error
    parts = cell if isinstance(cell, list) else str(cell or "").split(MARK)
    if any(not isinstance(part, str | int) or isinstance(part, bool) for part in parts):
        raise DataError(place, got=cell, want="names of labels", fix="Write them as text.")
    # each label once, in the order of the cell
    names = tuple(dict.fromkeys(str(part).strip() for part in parts if str(part).strip()))
    if not names:
        fix = "Complete the row, delete it, or give such pictures a label of their own, as none."
        raise DataError(place, got="a row without labels", want="at least one", fix=fix)
    return names


def rows_of(sets: Sequence[Sequence[str]], classes: Sequence[str]) -> np.ndarray:
    """Turn sets of labels into rows of 0 and 1, (n, L) int64, in the order of `classes`."""
    position = {name: i for i, name in enumerate(classes)}
    rows = np.zeros((len(sets), len(classes)), dtype=np.int64)
    for row, names in zip(rows, sets, strict=True):
        row[[position[name] for name in names]] = 1
    return rows


def strata(labels: np.ndarray, n: int) -> np.ndarray | None:
    """Number each picture's set of labels, so that a split of `n` keeps the sets in proportion.

    labels: (N, L) of 0 and 1 -> (N,). Sets of a single picture are pooled. None where there are
    more different sets than a part can have.
    """
    _, set_ids, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    set_ids = set_ids.reshape(-1)
    # Sets from the rarest on: scikit-learn needs two pictures of each stratum.
    order = np.argsort(counts, kind="stable")
    rare = int((counts < 2).sum())
    if rare == 1:  # together with the next rarest
        rare = 2
    if rare:
        # All rare sets are one stratum.
        set_ids = np.where(np.isin(set_ids, order[:rare]), -1, set_ids)
    groups, counts = np.unique(set_ids, return_counts=True)
    pooled = rare and len(groups) == 1
    # Each stratum needs a picture in both parts.
    fits = counts.min() >= 2 and len(groups) <= min(n, len(labels) - n) and not pooled
    return set_ids if fits else None
