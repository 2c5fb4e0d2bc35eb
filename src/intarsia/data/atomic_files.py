"""Interactions from files: RecBole's atomic files, a table of events, or a set by its name.

A folder `shop/` holds shop.inter and, if anything is known of items, shop.item. Columns are divided
by tabs, the header has `name:type` (token, token_seq, float, float_seq), the words of a sequence
are divided by blanks. A CSV, .jsonl or Parquet file has columns of the user, the item and, if there
are, time and rating, by the names that shops give them (`event_columns`); a folder may hold events
as Parquet files, in the order of their names, next to its .item.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from intarsia.core.errors import DataError, UnknownName, some_of
from intarsia.core.reading import read_text
from intarsia.data.event_columns import find_columns, parse_date, seconds_scale
from intarsia.data.interactions import SEVERAL, Interactions, ItemField, check_order, events
from intarsia.data.packages import obtain, pinned
from intarsia.data.parquet_events import read_parquet
from intarsia.data.records import read_records

TYPES = ("token", SEVERAL, "float", "float_seq")
ITEM = ("item_id", "item")
PARTS = ("train", "valid", "test")
NAMED = ("ml-100k",)

Row = Mapping[str, str]


def load_interactions(spec: str | Path, columns: Mapping[str, str] | None = None) -> Interactions:
    """Load who took which item when: from a folder, a CSV, .jsonl or Parquet file, or a set's name.

    spec: a path, or the name "ml-100k". MovieLens-100k comes out of the package recbole: for
    research, not for commerce, and not to be given away (GroupLens). columns: names of the columns
    by "user", "item", "time" and "rating", where a file calls them otherwise than shops do.
    Raises: UnknownName for no such name; DataError for a file that is not of this form, with its
    line and column; AssetError where a named set cannot be had.
    """
    path = Path(spec)
    if str(spec) in NAMED and not path.exists():
        path = obtain(pinned("recbole")) / "recbole" / "dataset_example" / str(spec)
    if path.is_dir():
        # RecBole's own files go first; Parquet files are read if there are none.
        tables = [] if any(path.glob("*.inter")) else sorted(path.glob("*.parquet"))
        return _read_tables(path, tables, columns) if tables else _read_folder(path, ("",))[0]
    if path.suffix.lower() == ".parquet" and path.is_file():
        return read_parquet([path], columns)
    if path.is_file():
        return _read_table(path, columns)
    if path.suffix or len(path.parts) > 1:
        fix = "Check the path."
        raise DataError(
            f"data {str(spec)!r}", got="nothing there", want="a folder or file", fix=fix
        )
    raise UnknownName("interactions (and no folder of that name is here)", str(spec), NAMED)


def load_parts(folder: str | Path) -> tuple[Interactions, ...]:
    """Load the parts NAME.train.inter, NAME.valid.inter and NAME.test.inter of a folder.

    Raises: DataError as `load_interactions`, and for a part with an event before the training
    events of the same user.
    """
    parts = _read_folder(Path(folder), tuple(f".{part}" for part in PARTS))
    for later in parts[1:]:
        check_order(parts[0], later)
    return parts


def read_items(path: str | Path) -> tuple[tuple[str, ...], dict[str, ItemField]]:
    """Read the ids of items, and each one's fields, from a .item file of RecBole.

    path: a table with tabs; its header has name:type columns. Returns the ids in the file's
    order, and field name -> values in that order.
    Raises: DataError, with line and column, for a file of another form and an id given twice.
    """
    path = Path(path)
    header, rows = _read_atomic(path)
    name = _find_column(path, tuple(header), ITEM)
    ids: list[str] = []
    lines: dict[str, int] = {}
    values: dict[str, list[object]] = {key: [] for key in header if key != name}
    for line, row in rows:
        item = row[name]
        if item in lines:
            got, fix = f"item {item!r}, which line {lines[item]} has", "Keep one of the lines."
            raise DataError(f"line {line} of {path}", got=got, want="a new item", fix=fix)
        lines[item] = line
        ids.append(item)
        for key, kind in header.items():
            if key != name:
                values[key].append(_parse_value(path, line, key, row[key], kind))
    # a sequence of numbers is no feature that any model here takes
    fields = {
        k: ItemField("float" if header[k] == "float" else header[k], tuple(v))
        for k, v in values.items()
        if header[k] != "float_seq"
    }
    return tuple(ids), fields


def _read_folder(folder: Path, parts: Sequence[str]) -> tuple[Interactions, ...]:
    """Read one set of interactions for each part of a folder, all with the same numbers for ids."""
    named = sorted(folder.glob(f"*{parts[0]}.inter"))
    if len(named) != 1:
        got = f"{len(named)} files that end in {parts[0]}.inter"
        fix = f"Name it {folder.name}.inter: user_id:token, item_id:token, timestamp:float."
        raise DataError(f"folder {folder}", got=got, want="one", fix=fix)
    # all files of a set share this name
    stem = named[0].name.removesuffix(f"{parts[0]}.inter")
    items = folder / f"{stem}.item"
    ids, fields = read_items(items) if items.exists() else ((), {})
    users: tuple[str, ...] = ()
    events_of_parts = [_read_inter(folder / f"{stem}{part}.inter") for part in parts]
    # First collect the ids of all parts, so that places mean the same in each.
    for rows in events_of_parts:
        joined = events(rows, item_ids=ids, user_ids=users, fields=fields)
        ids, users, fields = joined.item_ids, joined.user_ids, dict(joined.fields)
    return tuple(
        events(rows, item_ids=ids, user_ids=users, fields=fields) for rows in events_of_parts
    )


def _read_tables(
    folder: Path, tables: Sequence[Path], columns: Mapping[str, str] | None
) -> Interactions:
    """Read the events of Parquet files, and the items of the .item file in their folder."""
    named = sorted(folder.glob("*.item"))
    if len(named) > 1:
        fix = "Keep one of them."
        raise DataError(f"folder {folder}", got=f"{len(named)} .item files", want="one", fix=fix)
    ids, fields = read_items(named[0]) if named else ((), {})
    return read_parquet(tables, columns, item_ids=ids, fields=fields)


def _read_inter(path: Path) -> list[tuple[str, str, float, float]]:
    """Read the events (user, item, time, rating) of a .inter file."""
    header, rows = _read_atomic(path)
    return _parse_events(path, tuple(header), rows)


def _read_table(path: Path, columns: Mapping[str, str] | None) -> Interactions:
    """Read interactions from a CSV file with a header, or a .jsonl file.  Raises: DataError."""
    rows = list(read_records(path))
    # of .jsonl a row may lack a field that another one has
    names = tuple(dict.fromkeys(name for _, row in rows for name in row))
    texts = ((line, {n: _cell(row.get(n)) for n in names}) for line, row in rows)
    return events(_parse_events(path, names, texts, columns))


def _cell(value: object) -> str:
    """Return a value as the text of a cell, "" for none."""
    return "" if value is None else str(value)


def _parse_events(
    path: Path,
    names: Sequence[str],
    rows: Iterator[tuple[int, Row]],
    columns: Mapping[str, str] | None = None,
) -> list[tuple[str, str, float, float]]:
    """Turn rows of text into events (user, item, time, rating)."""
    by_kind = find_columns(names, path, columns)
    user, item = by_kind["user"], by_kind["item"]
    time, rating = by_kind.get("time"), by_kind.get("rating")
    events_read: list[tuple[str, str, float, float]] = []
    for line, row in rows:
        for name in (user, item):
            if not row[name].strip():
                fix = "Complete the line, or delete it."
                raise DataError(_place_of(path, line, name), got="nothing", want="an id", fix=fix)
        # Without times, events are in the order of the lines.
        seconds = _parse_time(path, line, time, row) if time else float(len(events_read))
        if math.isnan(seconds):
            fix = "Give every event a time, or leave the column out: then lines are in order."
            raise DataError(
                _place_of(path, line, time or ""), got="no time", want="seconds", fix=fix
            )
        events_read.append((row[user], row[item], seconds, _parse_number(path, line, rating, row)))
    if not events_read:
        raise DataError(f"file {path}", got="no event", want="one at least", fix="Add some.")
    scale = seconds_scale(max(event[2] for event in events_read)) if time else 1.0
    return [(u, i, scale * t, r) for u, i, t, r in events_read] if scale != 1 else events_read


def _read_atomic(path: Path) -> tuple[dict[str, str], Iterator[tuple[int, Row]]]:
    """Read the header of one of RecBole's files; return column -> type, and an iterator of rows."""
    try:
        lines = read_text(path, "utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        fix = "Check the path, and save the file as UTF-8."
        raise DataError(f"file {path}", got=error, want="an atomic file", fix=fix) from error
    header: dict[str, str] = {}
    for word in lines[0].rstrip("\r").split("\t"):
        name, colon, kind = word.partition(":")
        if not name or not colon or kind not in TYPES or name in header:
            want = f"name:type, each name once, with a type of {TYPES}"
            fix = "For example: item_id:token, title:token_seq, price:float, with tabs between."
            raise DataError(f"line 1 of {path}", got=repr(word), want=want, fix=fix)
        header[name] = kind

    def rows() -> Iterator[tuple[int, Row]]:
        """Yield (line number, column -> cell) of each line."""
        for number, line in enumerate(lines[1:], 2):
            if not line.strip():
                continue
            cells = line.rstrip("\r").split("\t")
            if len(cells) != len(header):
                got, want = f"{len(cells)} columns", f"{len(header)}, as the header has"
                fix = "Look for a tab too many, or one that is missing."
                raise DataError(f"line {number} of {path}", got=got, want=want, fix=fix)
            yield number, dict(zip(header, cells, strict=True))

    return header, rows()


def _parse_value(path: Path, line: int, name: str, text: str, kind: str) -> object:
    """Parse a cell about an item: a number (NaN if empty), or a tuple of words."""
    if kind == "float":
        return _parse_number(path, line, name, {name: text})
    words = text.split() if kind == SEVERAL else [text.strip()]
    return tuple(word for word in words if word)


def _parse_number(path: Path, line: int, name: str | None, row: Row) -> float:
    """Parse a cell as a number, NaN for an empty one."""
    text = row[name].strip() if name else ""
    if not text:
        return math.nan
    try:
        value = float(text)
        if math.isinf(value):
            raise ValueError
        return value
    except ValueError:
        fix = "Correct it, or leave the cell empty."
        subject = _place_of(path, line, name or "")
        raise DataError(subject, got=repr(text), want="a number", fix=fix) from None


def _parse_time(path: Path, line: int, name: str, row: Row) -> float:
    """Parse a cell as a time: a number, or a date such as 2024-05-01 12:30.  Raises: DataError."""
    if any(sign in row[name][1:] for sign in "-:/"):
        try:
            return parse_date(row[name])
        except ValueError:
            pass  # the error below names the cell
    return _parse_number(path, line, name, row)


def _find_column(path: Path, names: Sequence[str], allowed: Sequence[str]) -> str:
    for name in allowed:
        if name in names:
            return name
    subject, want = f"columns of {path}", f"one of {list(allowed)}"
    raise DataError(subject, got=some_of(names), want=want, fix="Rename the column.")


def _place_of(path: Path, line: int, column: str) -> str:
    """Name a cell in an error: line, file and column."""
    return f"line {line} of {path}, column {column!r}"
