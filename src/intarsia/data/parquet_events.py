"""Interactions from Parquet, a block of rows at a time: no event becomes a Python object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.core.errors import DataError, MissingExtra
from intarsia.core.reading import check_regular
from intarsia.data.event_columns import find_columns, seconds_scale
from intarsia.data.interactions import Array, Interactions, ItemField, with_items

ROWS = 1 << 18  # that are read at a time


class IdPlaces:
    """A table of ids and their places, in the order in which they come."""

    def __init__(self, first_ids: Sequence[str] = ()) -> None:
        self.place = {name: i for i, name in enumerate(first_ids)}

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids, by place."""
        return tuple(self.place)

    def of(self, column: Any) -> Array:
        """Return the places of a column, (n,) int64: each distinct id is looked up once."""
        # Distinct ids are few: Python sees each once, and numpy the rest.
        encoded = column.dictionary_encode()
        names = [str(name) for name in encoded.dictionary.to_pylist()]
        places = [self.place.setdefault(name, len(self.place)) for name in names]
        return np.array(places, np.int64)[encoded.indices.to_numpy()]


def read_parquet(
    paths: Sequence[Path],
    columns: Mapping[str, str] | None = None,
    *,
    item_ids: Sequence[str] = (),
    fields: Mapping[str, ItemField] | None = None,
) -> Interactions:
    """Read the events of Parquet files, in the order of the files: 28 bytes each in memory.

    columns: names of the columns by kind, where they are not as in `event_columns`. Times are
    seconds, or milliseconds and so on from 1e11, or Parquet's timestamps. item_ids, fields: items
    that are known already, and their features; those first met in events are numbered after them.
    Raises: MissingExtra without pyarrow; DataError for a file that is not Parquet, a column that is
    missing, and a row without id or time, which is named by its number.
    """
    users, items = IdPlaces(), IdPlaces(item_ids)
    blocks: list[tuple[Array, ...]] = []
    total = 0
    for path in paths:
        before = total
        for table, names in _read_blocks(path, columns):
            row = total - before
            for column in ("user", "item"):
                _refuse_empty(table.column(names[column]), row, f"{path}, column {names[column]!r}")
            times = _read_times(table, names.get("time"), row, path)
            blocks.append(
                (
                    users.of(table.column(names["user"])),
                    items.of(table.column(names["item"])),
                    # without times events are in the order of the rows
                    np.arange(total, total + len(table), dtype=float) if times is None else times,
                    _read_ratings(table, names.get("rating"), row, path),
                )
            )
            total += len(table)
    if not total:
        got = f"no event in {len(paths)} files"
        raise DataError(f"files {paths[0].parent}", got=got, want="one at least", fix="Add some.")
    # one array for each column, over all blocks
    arrays = [np.concatenate(part) for part in zip(*blocks, strict=True)]
    arrays[2] *= seconds_scale(float(arrays[2].max()))
    item_fields = with_items(fields or {}, len(items.ids) - len(item_ids))
    return Interactions(*arrays, user_ids=users.ids, item_ids=items.ids, fields=item_fields)


def _read_blocks(path: Path, columns: Mapping[str, str] | None) -> Any:
    """Yield blocks of rows of a Parquet file, each with the names of the columns it has."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "rec") from error
    try:
        check_regular(path)
        with parquet.ParquetFile(path) as file:
            names = find_columns(file.schema_arrow.names, path, columns)
            for block in file.iter_batches(ROWS, columns=list(names.values())):
                yield block, names
    except (OSError, pa.ArrowException) as error:
        fix = "Write it again, for example by pandas: table.to_parquet(path)."
        raise DataError(f"file {path}", got=error, want="a Parquet file", fix=fix) from error


def _refuse_empty(column: Any, row: int, column_place: str) -> None:
    if column.null_count:
        row_number = (
            row + 1 + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        )
        fix = "Complete the row, or leave it out."
        raise DataError(f"row {row_number} of {column_place}", got="nothing", want="an id", fix=fix)


def _to_numbers(column: Any, path: Path, row: int) -> Array:
    """Convert a column to (n,) float64, NaN for empty cells; timestamps become seconds."""
    import pyarrow as pa

    try:
        if pa.types.is_timestamp(column.type):
            # Microseconds, whatever unit the file has.
            column = column.cast(pa.timestamp("us", column.type.tz))
            return column.cast(pa.int64()).to_numpy(zero_copy_only=False) / 1e6
        return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        subject, fix = f"rows from {row + 1} of {path}", "Write numbers, or timestamps."
        raise DataError(subject, got=error, want="numbers", fix=fix) from error


def _read_times(table: Any, name: str | None, row: int, path: Path) -> Array | None:
    """Return the times of a block of rows in seconds; None without the column."""
    if name is None:
        return None
    seconds = _to_numbers(table.column(name), path, row)
    if not np.isfinite(seconds).all():
        subject = f"row {row + 1 + int(np.flatnonzero(~np.isfinite(seconds))[0])} of {path}"
        fix = "Give every event a time, or leave the column out: then rows are in order."
        raise DataError(subject, got="no time", want="seconds", fix=fix)
    return seconds


def _read_ratings(table: Any, name: str | None, row: int, path: Path) -> Array:
    """Return the ratings, (n,) float32; NaN without the column."""
    if name is None:
        return np.full(len(table), np.nan, np.float32)
    return _to_numbers(table.column(name), path, row).astype(np.float32)
