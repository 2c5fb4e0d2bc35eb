"""Rows of a table, one at a time: CSV with whatever divides its columns, .jsonl, or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from intarsia.core.errors import DataError, MissingExtra
from intarsia.core.files import parse_json
from intarsia.core.reading import check_regular, read_lines

DIVIDERS = ",\t;|"
TABLES = (".csv", ".tsv", ".tab", ".parquet")  # besides .jsonl
Row = Mapping[str, Any]


def read_records(path: str | Path) -> Iterator[tuple[int, Row]]:
    """Yield (line, column -> value) of each row of a table.

    path: a CSV file with a header, divided by a comma, tab, semicolon or bar as the header is;
      .jsonl, an object in each line; or .parquet: rows count from 1.
    Raises: DataError for a file that is none, with the line; MissingExtra for Parquet without
    pyarrow.
    """
    path = Path(path)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        yield from _read_objects(path)
    elif path.suffix.lower() == ".parquet":
        yield from _read_parquet(path)
    else:
        yield from _read_csv(path)


def parse_object(line: str, place: str) -> dict[str, Any]:
    """Parse a line as a JSON object.  Raises: DataError."""
    try:
        row = parse_json(line)
    except ValueError as error:
        want, fix = "one JSON object", "Correct or delete the line."
        raise DataError(place, got=str(error), want=want, fix=fix) from error
    if not isinstance(row, dict):
        fix = 'For example {"id": "a1", "text": "..."}.'
        raise DataError(place, got=type(row).__name__, want="one JSON object", fix=fix)
    return row


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and text of each line that is not blank.  Raises: DataError."""
    try:
        for number, line in enumerate(read_lines(path, "utf-8-sig"), 1):
            if line.strip():
                yield number, line
    except (OSError, UnicodeDecodeError) as error:
        fix = "Check the path, or save the file as UTF-8."
        raise DataError(str(path), got=error, want="a UTF-8 text file", fix=fix) from error


def _read_objects(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in lines_of(path):
        yield number, parse_object(line, f"line {number} of {path}")


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a CSV file; its first line says what divides its columns."""
    try:
        lines = iter(read_lines(path, "utf-8-sig", newline=""))
        header = next(lines, "")
        divider = max(DIVIDERS, key=header.count)
        names = next(csv.reader([header], delimiter=divider), [])
        for number, cells in enumerate(csv.reader(lines, delimiter=divider, strict=True), 2):
            if not cells:
                continue
            if len(cells) != len(names):
                got, want = f"{len(cells)} columns", f"{len(names)}, as the header has"
                fix = "Mend the line."
                raise DataError(f"line {number} of {path}", got=got, want=want, fix=fix)
            yield number, dict(zip(names, cells, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        fix = "Save it as UTF-8, with a header, and commas or tabs between the columns."
        raise DataError(f"file {path}", got=error, want="a CSV file", fix=fix) from error


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a Parquet file; some thousand of them are in memory at a time."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "rec") from error
    number = 0
    try:
        check_regular(path)
        with parquet.ParquetFile(path) as file:
            for block in file.iter_batches(4096):
                for row in block.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pa.ArrowException) as error:
        fix = "Write it again, for example by pandas: table.to_parquet(path)."
        raise DataError(f"file {path}", got=error, want="a Parquet file", fix=fix) from error
