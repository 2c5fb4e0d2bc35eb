"""Labelled rows: texts with a class each, or rows of numbers with a class each.

splits = load_labelled("texts.csv", text="text", label="label", seed=0)
splits = load_labelled("measurements.npz")
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError, MissingExtra
from ..core.files import parse_json
from ..core.labelled import (
    TABLES,
    TEXTS,
    class_folders,
    columns,
    columns_of,
    delimiter,
    part_files,
)
from ..core.reading import LONGEST, check_regular, open_regular, read_lines, read_text
from .images import stratified

TEST_SHARE = 0.2  # of all rows, where the data publish no test part
FEWEST = 10  # rows, below which five folds decide nothing
NAMED = 5  # rows or classes in an error
Rows = list[str] | np.ndarray
Table = dict[str, list[Any]]


@dataclass(frozen=True, eq=False)
class LabelledRows:
    """Rows with a class each.

    rows: n texts, or an array (n, d) of numbers.  labels: (n,), numbers of `classes`.
    columns: names of the d numbers; empty for texts.
    """

    name: str
    rows: Rows
    labels: np.ndarray
    classes: tuple[str, ...]
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def unit(self) -> str:
        """The word for a row."""
        return "rows" if self.columns else "texts"

    def select(self, positions: np.ndarray) -> LabelledRows:
        """Return the rows at these positions."""
        return replace(self, rows=rows_at(self.rows, positions), labels=self.labels[positions])

    @property
    def digests(self) -> np.ndarray:
        """The first 63 bits of each row's SHA-256, (n,) int64."""
        raw = (row.encode() if isinstance(row, str) else row.tobytes() for row in self.rows)
        numbers = [int.from_bytes(hashlib.sha256(row).digest()[:8]) >> 1 for row in raw]
        return np.array(numbers, dtype=np.int64)

    @property
    def digest(self) -> str:
        """The SHA-256 of rows and labels, for a record."""
        return hashlib.sha256(self.digests.tobytes() + self.labels.tobytes()).hexdigest()


@dataclass(frozen=True, eq=False)
class LabelledSplits:
    """Two disjoint parts.  published: the data have a test part of their own."""

    train: LabelledRows
    test: LabelledRows
    published: bool


def rows_at(rows: Rows, positions: np.ndarray) -> Rows:
    """Return some of the rows, by their positions."""
    return rows[positions] if isinstance(rows, np.ndarray) else [rows[int(i)] for i in positions]


def load_labelled(
    data: str | Path,
    *,
    text: str | None = None,
    label: str | None = None,
    seed: int = 0,
    train: int | None = None,
    test: int | None = None,
) -> LabelledSplits:
    """Read labelled rows, and return a training part and a test part.

    data: a .csv, .tsv, .jsonl or .parquet file with a column of texts and one of labels, or with
    columns of numbers and one of labels; a folder with a sub-folder of .txt files for each class;
    or an .npz file of x and y. A test part is taken where it is published: test.csv next to
    train.csv, or the folders train and test; else it is a fifth, each class in proportion.
    text, label: names of the columns; None = the only one with a usual name, such as text or label.
    train, test: numbers of rows, None = all of the part, or a fifth to test on.
    Raises: DataError for data that cannot be used, which names columns, rows and classes;
    MissingExtra without pyarrow for Parquet; ConfigError for impossible numbers.
    """
    parts = read_labelled(data, text=text, label=label)
    pool = parts.get("train") or parts["all"]
    test_part = parts.get("test")
    check_rows(pool, least=3 if test_part is None else 2)
    if test_part is None:
        n = test or max(round(TEST_SHARE * len(pool)), len(pool.classes))
        inside, rest = stratified(pool.labels, n, seed=seed, classes=pool.classes)
        test_part, pool = pool.select(inside), pool.select(rest)
    elif test is not None:
        test_part = test_part.select(_draw_rows(test_part, test, seed))
    if train is not None:
        pool = pool.select(_draw_rows(pool, train, seed))
    return LabelledSplits(pool, test_part, "test" in parts)


def _draw_rows(rows: LabelledRows, n: int, seed: int) -> np.ndarray:
    """Return the positions of n rows, each class in proportion; all if there are no more."""
    if n >= len(rows):
        return np.arange(len(rows))
    return stratified(rows.labels, n, seed=seed, classes=rows.classes)[0]


def check_rows(rows: LabelledRows, least: int) -> None:
    """Refuse rows that no classifier can be chosen on.

    least: rows of a class: two to train on, and one to test on where these are test rows, too.
    Raises: DataError for one class, a class with fewer rows, or fewer than FEWEST rows.
    """
    counts = np.bincount(rows.labels, minlength=len(rows.classes))
    subject = f"labels of {rows.name}"
    if (counts > 0).sum() < 2:
        got, fix = f"one class, {rows.classes[int(counts.argmax())]!r}", "Add another class."
        raise DataError(subject, got=got, want="two classes or more", fix=fix)
    if absent := [rows.classes[int(i)] for i in np.flatnonzero(counts == 0)]:
        got, fix = f"none of {_name_list(absent)}", "Add rows, or leave the class out everywhere."
        raise DataError(subject, got=got, want="rows of each class to train on", fix=fix)
    if rare := [rows.classes[int(i)] for i in np.flatnonzero(counts < least)]:
        number = "a single row" if counts.min() == 1 else f"{counts.min()} rows"
        got, want = f"{number} of {_name_list(rare)}", f"{least} rows of each class or more"
        fix = "Add rows, or leave these classes out."
        raise DataError(subject, got=got, want=want, fix=fix)
    if len(rows) < FEWEST:
        raise DataError(f"rows of {rows.name}", got=len(rows), want=FEWEST, fix="Add rows.")


def read_labelled(
    data: str | Path, *, text: str | None = None, label: str | None = None
) -> dict[str, LabelledRows]:
    """Read labelled rows: {"all": rows}, or "train" and "test" as published."""
    path = Path(data).expanduser()
    if path.is_dir() and (folders := class_folders(path)):
        sources = {part: _folder_rows(path.name, files) for part, files in folders.items()}
    elif path.suffix.lower() == ".npz":
        sources = {"all": _array_rows(path)}
    else:
        files = part_files(path) or {"all": path}
        sources = {}
        for part, file in files.items():
            # a validation part without a training part is trained on
            sources["train" if part == "val" and "train" not in files else part] = _table_rows(
                file, text, label
            )
    return _same_classes(sources, path)


Source = tuple[str, Rows, list[str], tuple[str, ...]]  # name, rows, names of labels, columns


def _same_classes(sources: Mapping[str, Source], path: Path) -> dict[str, LabelledRows]:
    """Number the classes alike in all parts; a validation part is joined to the training part."""
    names = sorted({name for _, _, labels, _ in sources.values() for name in labels})
    # names that are numbers are sorted as such: class 10 comes after class 9
    if all(name.isdecimal() and len(name) < 19 for name in names):
        names.sort(key=int)
    number = {name: i for i, name in enumerate(names)}
    parts = {
        part: LabelledRows(
            name, rows, np.array([number[label] for label in labels]), tuple(names), names_of
        )
        for part, (name, rows, labels, names_of) in sources.items()
    }
    if len({rows.columns for rows in parts.values()}) > 1:
        fix = "Give both the same columns."
        raise DataError(f"parts of {path}", got="other columns in them", want="the same", fix=fix)
    if "val" in parts:
        train, val = parts["train"], parts.pop("val")
        both: Rows = (
            np.concatenate([train.rows, val.rows])
            if isinstance(train.rows, np.ndarray)
            else [*train.rows, *val.rows]
        )
        labels = np.concatenate([train.labels, val.labels])
        parts["train"] = replace(train, rows=both, labels=labels)
    return parts


def _folder_rows(name: str, files: Mapping[str, Sequence[Path]]) -> Source:
    """Read a folder with a sub-folder of .txt files for each class."""
    texts: list[str] = []
    labels: list[str] = []
    for label, paths in files.items():
        for path in paths:
            try:
                texts.append(read_text(path, "utf-8-sig"))
            except (OSError, UnicodeDecodeError) as error:
                fix = "Save it as UTF-8, or leave it out."
                raise DataError(
                    f"file {path}", got=error, want="a text in UTF-8", fix=fix
                ) from error
            if not texts[-1].strip():
                raise DataError(f"file {path}", got="nothing", want="a text", fix="Delete it.")
            labels.append(label)
    return name, texts, labels, ()


def _array_rows(path: Path) -> Source:
    """Read x and y of an .npz file; nothing in it is executed."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
            names = list(arrays)
            x, y = (arrays[name] for name in ("x", "y"))
    except KeyError as error:
        fix = "Write it with numpy.savez(path, x=x, y=y)."
        raise DataError(f"arrays of {path}", got=names, want="x and y", fix=fix) from error
    except (OSError, ValueError) as error:
        fix = "Write it with numpy.savez(path, x=x, y=y)."
        raise DataError(f"file {path}", got=error, want="arrays x and y", fix=fix) from error
    if x.ndim != 2 or x.dtype.kind not in "fiub" or y.shape != x.shape[:1]:
        got = f"x {x.dtype} {x.shape}, y {y.shape}"
        fix = "Give x a row of numbers for each label."
        raise DataError(f"arrays of {path}", got=got, want="x (n, d), y (n,)", fix=fix)
    names = tuple(f"x{i}" for i in range(x.shape[1]))
    rows = x.astype(np.float64)
    _check_finite(rows, names, path)
    return path.stem, rows, _label_names(y.tolist(), "y", path), names


def _table_rows(path: Path, text: str | None, label: str | None) -> Source:
    table = _read_table(path)
    text, label = columns_of(table, path, text, label)
    if not table[label]:
        raise DataError(f"table {path}", got="no row", want="rows", fix="Add rows.")
    labels = _label_names(table[label], label, path)
    if text is None:
        names = tuple(name for name in table if name != label)
        return path.stem, _numbers(table, names, path), labels, names
    texts = [value if isinstance(value, str) else "" for value in table[text]]
    if empty := [i for i, value in enumerate(texts, 1) if not value.strip()]:
        got, fix = f"no text in {_row_list(empty)}", "Complete these rows, or leave them out."
        raise DataError(f"column {text!r} of {path}", got=got, want="a text in each", fix=fix)
    return path.stem, texts, labels, ()


def _numbers(table: Table, names: Sequence[str], path: Path) -> np.ndarray:
    """Return columns of numbers as (n, d) float64."""
    arrays, wrong = list[np.ndarray](), list[str]()
    for name in names:
        try:
            cells = [np.nan if cell in (None, "") else float(cell) for cell in table[name]]
            arrays.append(np.array(cells, dtype=np.float64))
        except (ValueError, TypeError):
            wrong.append(name)
    if wrong or not names:
        got = f"no numbers in {_name_list(wrong)}" if wrong else "no column besides the labels"
        fix = "Leave them out, or name the column of texts: --text COLUMN."
        raise DataError(f"columns of {path}", got=got, want="a text, or numbers", fix=fix)
    rows = np.stack(arrays, axis=1)
    _check_finite(rows, names, path)
    return rows


def _check_finite(rows: np.ndarray, names: Sequence[str], path: Path) -> None:
    bad = ~np.isfinite(rows)
    if bad.any():
        where = [names[int(i)] for i in np.flatnonzero(bad.any(0))]
        got = f"{int(bad.sum())} cells without a number, in {_name_list(where)}"
        fix = f"Complete {_row_list(np.flatnonzero(bad.any(1)) + 1)}, or leave them out."
        raise DataError(f"columns of {path}", got=got, want="finite numbers", fix=fix)


def _label_names(values: Sequence[Any], column: str, path: Path) -> list[str]:
    subject = f"column {column!r} of {path}"
    names = ["" if value is None else str(value).strip() for value in values]
    if empty := [i for i, name in enumerate(names, 1) if not name]:
        got, fix = f"no label in {_row_list(empty)}", "Complete these rows, or leave them out."
        raise DataError(subject, got=got, want="a label in each", fix=fix)
    if any(isinstance(value, list | dict) for value in values):
        fix = "Give each row one label."
        raise DataError(subject, got="lists of labels", want="one label a row", fix=fix)
    numbers = [_number(name) for name in names]
    if None not in numbers and (parts := [n for n in numbers if n is not None and n % 1]):
        got = f"numbers with decimals, such as {parts[0]:g}"
        fix = "Predicting numbers (regression) is not done; put them into classes first."
        raise DataError(subject, got=got, want="classes", fix=fix)
    if None not in numbers and any("." in name for name in names):
        names = [f"{float(name):.0f}" for name in names]  # 1.0, as a column with gaps is written
    return names


def _number(name: str) -> float | None:
    try:
        value = float(name)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def _read_table(path: Path) -> Table:
    """Read a table as name of the column -> cells.  Raises: DataError; MissingExtra."""
    kind = path.suffix.lower()
    if kind not in TABLES or not path.is_file():
        got = "no such file" if not path.exists() else f"a {kind or 'plain'} file or folder"
        want = f"a file of {', '.join(TABLES)}, .npz, or a folder of .txt files for each class"
        raise DataError(f"data {str(path)!r}", got=got, want=want, fix="Check the path.")
    try:
        if kind == ".parquet":
            return _read_parquet(path)
        return _read_jsonl(path) if kind == ".jsonl" else _read_csv(path)
    except UnicodeDecodeError as error:
        fix = "Save the file as UTF-8."
        raise DataError(f"table {path}", got=error, want="UTF-8", fix=fix) from error
    except (OSError, csv.Error) as error:
        fix = "Look for a quote that is opened and not closed, or save the table again."
        raise DataError(f"table {path}", got=error, want=f"a {kind} file", fix=fix) from error


def _read_csv(path: Path) -> Table:
    """Read a .csv or .tsv file; every row must have as many cells as the header."""
    names = columns(path)
    first = next(filter(str.strip, read_lines(path, "utf-8-sig")), "")
    with _long_cells():
        lines = read_lines(path, "utf-8-sig", newline="")
        rows = [
            row for row in csv.reader(lines, delimiter=delimiter(path, first), strict=True) if row
        ]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        got = f"two columns named {_name_list(twice)}"
        raise DataError(f"table {path}", got=got, want="names that differ", fix="Rename one.")
    if odd := [i for i, row in enumerate(rows[1:], 1) if len(row) != len(names)]:
        got = f"other numbers of cells in {_row_list(odd)}"
        fix = "Put texts with a comma into quotes."
        raise DataError(f"table {path}", got=got, want=f"{len(names)} in each", fix=fix)
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(names)}


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let cells of a CSV file be as long as lines may be: a text may have any length."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _read_jsonl(path: Path) -> Table:
    """Read a .jsonl file; a key that a row lacks is an empty cell."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(read_lines(path, "utf-8-sig"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            row, got = None, str(error)
        else:
            got = type(row).__name__
        if not isinstance(row, dict):
            fix = 'For example {"text": "...", "label": "..."}.'
            raise DataError(f"line {number} of {path}", got=got, want="a JSON object", fix=fix)
        rows.append(row)
    return {
        name: [row.get(name) for row in rows] for name in dict.fromkeys(k for r in rows for k in r)
    }


def _read_parquet(path: Path) -> Table:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "rec") from error
    try:
        check_regular(path)
        table = parquet.read_table(path)
    except pa.ArrowException as error:
        fix = "Write it again, for example by pandas: table.to_parquet(path)."
        raise DataError(f"file {path}", got=error, want="a Parquet file", fix=fix) from error
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _name_list(names: Sequence[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(map(repr, names[:NAMED])) + (f" and {rest} more" if rest > 0 else "")


def _row_list(rows: Sequence[int] | np.ndarray) -> str:
    """Return the first of some rows' numbers, counted from 1, as a text."""
    shown = ", ".join(str(int(row)) for row in rows[:NAMED])
    rest = len(rows) - NAMED
    return f"row{'s' * (len(rows) > 1)} {shown}" + (f" and {rest} more" if rest > 0 else "")


def read_unlabelled(path: str | Path, text: str | None, names: Sequence[str]) -> Rows:
    """Read rows without labels, to classify: a table, or a text file with a text in each line.

    text: the column of texts, None = the one with a usual name.  names: columns of numbers, which
    are read instead of texts.
    Raises: DataError.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in TABLES:
        try:
            lines = read_text(path, "utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            fix = "Give a file with a text in each line, or a table."
            raise DataError(f"file {path}", got=error, want="texts in UTF-8", fix=fix) from error
        return [line for line in lines if line.strip()]
    table = _read_table(path)
    wanted = list(names) or [text or next((n for n in table if n.lower() in TEXTS), TEXTS[0])]
    if missing := [name for name in wanted if name not in table]:
        got, want = ", ".join(table) or "none", f"{_name_list(missing)} among them"
        raise DataError(f"columns of {path}", got=got, want=want, fix="Rename the columns.")
    if names:
        return _numbers(table, names, path)
    return ["" if cell is None else str(cell) for cell in table[wanted[0]]]
