"""Which data are labelled rows, texts or numbers, for which a classifier is fitted.

Decided by names and first lines alone, without torch: the command line parts by it.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .errors import DataError, UnknownName, some_of
from .files import parse_json
from .pictured import IMAGE_COLUMNS
from .reading import read_lines

TEXTS = ("text", "sentence", "review", "comment", "message", "content", "body", "tweet", "question")
LABELS = ("label", "labels", "class", "category", "target", "topic", "sentiment", "intent", "y")
ANSWERS = ("messages", "prompt", "instruction", "response", "completion", "output", "answer")
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
FILE = "labelled.json"  # of a run on labelled rows
AUTO = "labelled-auto.json"  # of a search on labelled rows


def is_labelled(data: str | Path | None, text: str | None = None, label: str | None = None) -> bool:
    """Decide whether data are labelled texts or a table of numbers, not pictures or plain texts.

    text, label: columns that the user named, which settle it. A .jsonl file is labelled if its
    first row has a text, a label, and no answer of a language model.
    """
    if text is not None or label is not None:
        return True
    if data is None:
        return False
    path = Path(os.path.expanduser(data))
    try:
        if path.is_dir():
            return bool(class_folders(path)) or any(map(is_labelled, part_files(path).values()))
        return path.is_file() and _names_rows(path)
    except OSError:
        return False


def _names_rows(path: Path) -> bool:
    """Decide by the columns of a file."""
    kind = path.suffix.lower()
    if kind == ".npz":
        return True
    names = set(columns(path)) if kind in TABLES else set[str]()
    if not names or names & set(IMAGE_COLUMNS):
        return False
    if kind == ".jsonl":
        return bool(names & set(TEXTS) and names & set(LABELS)) and not names & set(ANSWERS)
    return True


def check_columns(data: str | Path | None, text: str | None, label: str | None) -> None:
    """Check, before anything is read, that a table with a header has the columns that are needed.

    data: also a folder, or a file of another kind, which is not checked.  Raises: DataError.
    """
    path = Path(os.path.expanduser(data or ""))
    is_headed = path.suffix.lower() in TABLES and path.suffix.lower() != ".jsonl"
    if is_headed and path.is_file() and (names := columns(path)):
        columns_of(names, path, text, label)


def columns_of(
    table: Iterable[str], path: Path, text: str | None, label: str | None
) -> tuple[str | None, str]:
    """Return the names of the columns of texts (None for a table of numbers) and of labels.

    table: names of all its columns.
    Raises: DataError, which names all columns that are there, for one that is not or is not clear.
    """
    names = list(table)
    missing = [name for name in (text, label) if name is not None and name not in names]
    all_names = some_of(names) if names else "none"
    if missing:
        want = f"among the columns {all_names}"
        got = f"{' and '.join(map(repr, missing))} not there"
        near = [close for name in missing for close in UnknownName("column", name, names).near[:1]]
        fix = f"Did you mean {' and '.join(near)}? " if near else ""
        fix += "Name them: --text COLUMN --label COLUMN."
        raise DataError(f"columns of {path}", got=got, want=want, fix=fix)
    lower = {name.lower(): name for name in reversed(names)}
    label = label or next((lower[name] for name in LABELS if name in lower), None)
    if label is None:
        want = f"a column of labels, such as {', '.join(LABELS[:4])}"
        fix = "Name it: --label COLUMN; for pictures call the column of their paths image."
        raise DataError(f"columns of {path}", got=all_names, want=want, fix=fix)
    text = text or next((lower[n] for n in TEXTS if n in lower and lower[n] != label), None)
    return text, label


def columns(path: Path) -> Sequence[str]:
    """Return the names of a table's columns, () if they cannot be read."""
    try:
        if path.suffix.lower() == ".parquet":
            from pyarrow import parquet  # pyright: ignore  # not imported for other data

            names: list[str] = list(parquet.read_schema(path).names)  # pyright: ignore
            return names
        line = next(filter(str.strip, read_lines(path, "utf-8-sig")), "")
        if path.suffix.lower() == ".jsonl":
            row: Any = parse_json(line or "null")
            return [str(name) for name in row] if isinstance(row, dict) else ()  # pyright: ignore
        return next(csv.reader([line], delimiter=delimiter(path, line)), ())
    except (OSError, ValueError, ImportError, csv.Error):
        return ()


def delimiter(path: Path, header: str) -> str:
    """Return what parts the columns: a tab in .tsv, a semicolon where the header has only those."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return ";" if ";" in header and "," not in header else ","


def part_files(path: Path) -> dict[str, Path]:
    """Return the tables named train and test of a folder, or next to a table named train."""
    folder = path if path.is_dir() else path.parent
    named = path.suffix.lower() if path.is_file() else ""
    if named and path.stem.lower() != "train":
        return {}
    for kind in filter(None, (named,) if named else TABLES):
        parts = {part: folder / f"{part}{kind}" for part in ("train", "val", "test")}
        parts = {part: file for part, file in parts.items() if file.is_file()}
        if parts.keys() >= {"train", "test"}:
            return parts
    return {}


def class_folders(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """Return part -> class -> text files of a folder with one sub-folder for each class.

    The parts are train and test where the folder has these two, and else "all". {} for a folder of
    anything else, pictures among it.
    """
    inside = {path.name: path for path in _folders(folder)}
    parts = {name: inside[name] for name in ("train", "test") if name in inside}
    if len(parts) < 2:
        parts = {"all": folder}
    classes = {part: dict(_text_files(place)) for part, place in parts.items()}
    return classes if all(len(names) for names in classes.values()) else {}


def _folders(folder: Path) -> Iterable[Path]:
    """Yield the folders in a folder, sorted, but for hidden ones."""
    return (p for p in sorted(folder.iterdir()) if p.is_dir() and p.name[0] != ".")


def _text_files(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield (class, its .txt files) of a folder; nothing where it has other files, too."""
    files = {
        inside.name: sorted(path for path in inside.iterdir() if path.name[0] != ".")
        for inside in _folders(folder)
    }
    if all(p.suffix.lower() == ".txt" for paths in files.values() for p in paths):
        yield from ((name, paths) for name, paths in files.items() if paths)
