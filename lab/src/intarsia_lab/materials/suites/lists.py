"""Label files of published splits: lines `path label`, or a JSON object {path: class id}."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from intarsia.core.errors import DataError
from intarsia.core.files import parse_json
from intarsia.core.reading import read_text
from intarsia.data.images import ImageSet

Row = tuple[str, int]  # path below the folder of the pictures, class id
SHOWN = 10  # an error lists at most this many bad lines or missing pictures


def read_lines(file: Path, *, ids: Container[int] | None = None) -> list[Row]:
    """Read a label file of `relative/path label` lines; blank lines are ignored.

    ids: the allowed class ids; None = any. Returns (path, class id) of each line.
    Raises: DataError listing the first bad lines: no label, a label that is not in `ids`, a path
      outside the folder, or a repeated path; also for an empty or unreadable file.
    """
    rows: list[tuple[int, str, str, object]] = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if line.strip():
            # paths may have spaces: the label is the last word
            path, *label = line.rsplit(None, 1)
            rows.append((number, line, path.strip(), label[0] if label else ""))
    return _checked(file, "line", "lines `relative/path label`", rows, ids)


def read_json(file: Path, *, ids: Container[int] | None = None) -> list[Row]:
    """Read a label file that is a JSON object {relative path: class id}, in its order.

    ids: the allowed class ids; None = any. Returns (path, class id) of each entry.
    Raises: DataError as `read_lines` does, and for damaged or other JSON.
    """
    form = "a JSON object {relative path: class id}"
    try:
        # as pairs: a dict would hide a repeated path
        pairs = parse_json(_text(file), pairs=_Pairs)
    except ValueError as error:
        raise _bad(file, str(error), form) from error
    if not isinstance(pairs, _Pairs):
        raise _bad(file, f"a JSON {type(pairs).__name__}", form)
    rows = [(n, f"{k}: {json.dumps(v)}", k, v) for n, (k, v) in enumerate(pairs, 1)]
    return _checked(file, "entry", form, rows, ids)


def to_set(
    name: str, rows: Iterable[Row], folder: Path, *, classes: dict[int, int], source: str
) -> ImageSet:
    """Build the data set of some rows of a label file, with pictures as paths.

    name: of the set; rows: (path, class id); folder: of the pictures; classes: class id -> label;
      source: text about the origin.
    """
    rows = list(rows)
    labels = np.asarray([classes[i] for _, i in rows], dtype=np.int64)
    names = tuple(str(i) for i in classes)
    return ImageSet(name, [folder / path for path, _ in rows], labels, names, source=source)


def check_apart(parts: Mapping[Path, Iterable[Row]]) -> None:
    """Raise DataError for a path that is in two label files.

    parts: file -> its rows (path, class id).
    """
    paths = {file: {os.path.normpath(path) for path, _ in rows} for file, rows in parts.items()}
    for first, second in combinations(paths, 2):
        if both := sorted(paths[first] & paths[second]):
            subject = f"label files {first.name} and {second.name} in {first.parent}"
            got = f"{len(both)} {'path' if len(both) == 1 else 'paths'} in both, as {both[0]!r}"
            fix = "Take the files from their publisher again, or correct them."
            raise DataError(subject, got=got, want="every picture in one part", fix=fix)


def check_present(images: ImageSet, *, spec: str, fix: str) -> None:
    """Raise DataError naming the first pictures with missing files.

    images: a set, its pictures may be files; spec: name of the set, fix: advice, for the error.
    """
    if not (len(images) and isinstance(images.images[0], Path)):
        return
    absent = [p for p in images.images if isinstance(p, Path) and not p.is_file()]
    if absent:
        listed = "".join(f"\n  {path}" for path in absent[:SHOWN])
        rest = f"\n  and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        subject, got = (
            f"pictures of {spec}",
            f"{len(absent)} of {len(images)} missing:{listed}{rest}\n",
        )
        raise DataError(subject, got=got, want="every picture of the list", fix=fix)


class _Pairs(list[tuple[str, object]]):
    """The pairs of a JSON object, so that a repeated key is seen."""


def _text(file: Path) -> str:
    """Read a text file; DataError if it cannot be read."""
    try:
        return read_text(file, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        got = "nothing there" if not file.exists() else f"{type(error).__name__}: {error}"
        raise _bad(file, got, "a readable text file") from error


def _checked(
    file: Path,
    unit: str,
    form: str,
    rows: Sequence[tuple[int, str, str, object]],
    ids: Container[int] | None,
) -> list[Row]:
    """Return (path, class id) of each row of a label file, after all rows were checked.

    rows: (number, text, path, label).
    """
    if not rows:
        raise _bad(file, f"no {unit}", form)
    first: dict[str, int] = {}
    good: list[Row] = []
    faults: list[str] = []
    for number, text, path, label in rows:
        class_id = _id(label)
        if leaves(path):
            fault = "leaves the folder"
        elif class_id is None:
            fault = "no whole number as label"
        elif ids is not None and class_id not in ids:
            fault = f"label {class_id} is not one of the classes{_range(ids)}"
        # normalised, so that a/b and a/./b are one path
        elif (place := os.path.normpath(path)) in first:
            fault = f"the path of {unit} {first[place]} again"
        else:
            first[place] = number
            good.append((path, class_id))
            continue
        faults.append(f"\n  {unit} {number} {text.strip()[:80]!r}: {fault}")
    if faults:
        rest = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        bad = f"{len(faults)} bad of {len(rows)}:{''.join(faults[:SHOWN])}{rest}\n"
        raise _bad(file, bad, f"{form}, every path inside the folder and once")
    return good


def leaves(path: str) -> bool:
    """Return True if a path is absolute or points outside its folder."""
    normal = os.path.normpath(path)
    return Path(path).is_absolute() or normal.split(os.sep)[0] == os.pardir


def _id(label: object) -> int | None:
    """Return a class id that is given as a number or as digits; None for anything else."""
    if isinstance(label, str) and label.isascii() and label.isdecimal():
        return int(label)
    return label if isinstance(label, int) and not isinstance(label, bool) and label >= 0 else None


def _range(ids: Container[int]) -> str:
    return f" {ids.start} to {ids.stop - 1}" if isinstance(ids, range) else ""


def _bad(file: Path, got: str, want: str) -> DataError:
    fix = "Take the file from its publisher again, or correct it."
    return DataError(f"label file {file}", got=got, want=want, fix=fix)
