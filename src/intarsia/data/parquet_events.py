"""Interactions from Parquet, a block of rows at a time: no event becomes a Python object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.core.errors import DataError, MissingExtra
from intarsia.core.reading import check_regular
from intarsia.data.interactions import Array, Interactions, ItemField, with_items

ROWS = 1 << 18  # that are read at a time


class IdPlaces:
    """Ids and their places, in the order in which they come; those known come first."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        self.place = {name: i for i, name in enumerate(known)}

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.place)

    def of(self, column: Any) -> Array:
        """Places of a column of a block, (n,) int64: each distinct id is looked up once."""
        coded = column.dictionary_encode()
        names = [str(name) for name in coded.dictionary.to_pylist()]
        own = [self.place.setdefault(name, len(self.place)) for name in names]
        return np.array(own, np.int64)[coded.indices.to_numpy()]


def read_parquet(
    paths: Sequence[Path],
    columns: Mapping[str, Sequence[str]],
    *,
    item_ids: Sequence[str] = (),
    fields: Mapping[str, ItemField] | None = None,
) -> Interactions:
    """The events of Parquet files, in the order of the files: 28 bytes each in memory.

    columns: user, item, time and rating -> the names that each may have.  Times are seconds or
    Parquet's timestamps.  item_ids, fields: of items that are known already.
    Raises: MissingExtra without pyarrow; DataError for a file that is none, a column that is
    missing, and a row without id or time, by its number.
    """
    users, items = IdPlaces(), IdPlaces(item_ids)
    blocks: list[tuple[Array, ...]] = []
    total = 0
    for path in paths:
        before = total
        for table, names in _blocks(path, columns):
            row = total - before
            for what in ("user", "item"):
                _refuse_empty(table.column(names[what]), row, f"{path}, column {names[what]!r}")
            times = _times(table, names.get("time"), row, path)
            blocks.append(
                (
                    users.of(table.column(names["user"])),
                    items.of(table.column(names["item"])),
                    # without times events are in the order of the rows
                    np.arange(total, total + len(table), dtype=float) if times is None else times,
                    _ratings(table, names.get("rating"), row, path),
                )
            )
            total += len(table)
    if not total:
        got = f"no event in {len(paths)} files"
        raise DataError(f"files {paths[0].parent}", got=got, want="one at least", fix="Add some.")
    arrays = [np.concatenate(part) for part in zip(*blocks, strict=True)]
    known = with_items(fields or {}, len(items.ids) - len(item_ids))
    return Interactions(*arrays, user_ids=users.ids, item_ids=items.ids, fields=known)


def _blocks(path: Path, columns: Mapping[str, Sequence[str]]) -> Any:
    """(block, names of its columns) of a file."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "rec") from error
    try:
        check_regular(path)
        with parquet.ParquetFile(path) as file:
            there = file.schema_arrow.names
            found = {
                what: next((name for name in names if name in there), "")
                for what, names in columns.items()
            }
            for what in ("user", "item"):
                if not found[what]:
                    want, fix = f"one of {list(columns[what])}", "Rename the column."
                    raise DataError(f"columns of {path}", got=there, want=want, fix=fix)
            names = {what: name for what, name in found.items() if name}
            for block in file.iter_batches(ROWS, columns=list(names.values())):
                yield block, names
    except (OSError, pa.ArrowException) as error:
        fix = "Write it again, for example by pandas: table.to_parquet(path)."
        raise DataError(f"file {path}", got=error, want="a Parquet file", fix=fix) from error


def _refuse_empty(column: Any, row: int, where: str) -> None:
    if column.null_count:
        place = row + 1 + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        fix = "Complete the row, or leave it out."
        raise DataError(f"row {place} of {where}", got="nothing", want="an id", fix=fix)


def _numbers(column: Any, path: Path, row: int) -> Array:
    """(n,) float64, NaN for nothing; timestamps are seconds."""
    import pyarrow as pa

    try:
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("us", column.type.tz))
            return column.cast(pa.int64()).to_numpy(zero_copy_only=False) / 1e6
        return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        what, fix = f"rows from {row + 1} of {path}", "Write numbers, or timestamps."
        raise DataError(what, got=error, want="numbers", fix=fix) from error


def _times(table: Any, name: str | None, row: int, path: Path) -> Array | None:
    if name is None:
        return None
    found = _numbers(table.column(name), path, row)
    if not np.isfinite(found).all():
        what = f"row {row + 1 + int(np.flatnonzero(~np.isfinite(found))[0])} of {path}"
        fix = "Give every event a time, or leave the column out: then rows are in order."
        raise DataError(what, got="no time", want="seconds", fix=fix)
    return found


def _ratings(table: Any, name: str | None, row: int, path: Path) -> Array:
    if name is None:
        return np.full(len(table), np.nan, np.float32)
    return _numbers(table.column(name), path, row).astype(np.float32)
