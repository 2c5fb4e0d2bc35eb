"""Documents: an id, a text, and whatever else is known of each, from tables or from Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from intarsia.core.checks import at_least
from intarsia.core.errors import DataError
from intarsia.data.event_columns import plain
from intarsia.data.records import TABLES, Row, read_records

# without case and signs, the better name first
IDS = ("id", "docid", "docno", "documentid", "productid", "itemid", "parentasin", "asin", "sku")
TEXTS = ("text", "contents", "content", "body", "description", "abstract", "passage")
TITLE = "title"
KINDS = ("id", "text")
FIX = 'For example {"id": "a1", "text": "..."}; or say which they are: --columns id=NAME,text=NAME'


class Document(NamedTuple):
    """A document.  fields: the rest of its record, such as title, url and price."""

    id: str
    text: str
    fields: Mapping[str, Any] = {}


def read_documents(
    path: str | Path, columns: Mapping[str, str] | None = None
) -> Iterator[Document]:
    """Yield the documents of a .jsonl, CSV or Parquet file, one at a time.

    path: a table with an id and a text in each row, and a title if there is one, which is put
      before the text; an empty text is a document that no query finds; rows of a CSV or Parquet
      file without an id are numbered from 1. columns: names of the columns by "id" and "text",
      where they are not among IDS and TEXTS.
    Raises: DataError, with the line, for a row without them, and for an id that occurs twice.
    """
    line_of_id, numbered = dict[str, int](), Path(path).suffix.lower() in TABLES
    for number, (line, row) in enumerate(read_records(path), 1):
        position = number if numbered else None
        document = document_of(row, f"line {line} of {path}", columns, position)
        if document.id in line_of_id:
            got = f"the id {document.id!r} of line {line_of_id[document.id]} again"
            subject, fix = f"line {line} of {path}", "Give one another id."
            raise DataError(subject, got=got, want="an id of its own", fix=fix)
        line_of_id[document.id] = line
        yield document


def document_of(
    row: Row, place: str, columns: Mapping[str, str] | None = None, position: int | None = None
) -> Document:
    """Return a record as a document.

    columns: names of the columns of the id and the text, None = those that are known; position: the
      id of a record that has no column for one, None = such a record is refused.  Raises:
      DataError.
    """
    names = {plain(name): name for name in reversed(list(row))}
    columns = columns or {}
    id_column, text_column = (
        columns.get(kind) or next((names[n] for n in known if n in names), "")
        for kind, known in zip(KINDS, (IDS, TEXTS), strict=True)
    )
    title_column = names.get(TITLE, "")
    title = row.get(title_column)
    title = title if isinstance(title, str) else ""
    name = row.get(id_column) if id_column else position
    text = row.get(text_column)
    if text is None and title:  # a record with a title alone
        title_column, text, title = "", title, ""
    if not isinstance(name, str | int) or isinstance(name, bool) or not isinstance(text, str):
        want = "an id and a text"
        if columns:
            want += f", in the columns {id_column!r} and {text_column!r}"
        raise DataError(place, got=f"keys {sorted(row)}", want=want, fix=FIX)
    # unknown values are left out: NaN is the only value that differs from itself
    rest = ((key, value) for key, value in row.items() if key not in (id_column, text_column))
    fields = {key: value for key, value in rest if value is not None and value == value}
    return Document(str(name), f"{title} {text}" if title else text, fields)


def as_documents(docs: Iterable[Any], first: int = 0) -> Iterator[Document]:
    """Yield documents, whatever they come as.

    docs: texts, with their numbers as ids; pairs (id, text); triples (id, text, fields); or
      records with an id and a text.  first: number of the first text.
    Raises: DataError.
    """
    for number, row in enumerate(docs, first):
        if isinstance(row, str):
            yield Document(str(number), row)
        elif isinstance(row, Mapping):
            yield document_of(row, f"document {number}")
        elif isinstance(row, tuple | list) and len(row) in (2, 3) and isinstance(row[1], str):
            yield Document(*row)
        else:
            fix = 'For example: ["a text", ...], [("a1", "a text"), ...], or records.'
            want = "a text, (id, text), or a record"
            raise DataError(f"document {number}", got=repr(row)[:80], want=want, fix=fix)


def in_blocks(docs: Iterable[Document], size: int) -> Iterator[list[Document]]:
    """Yield documents in lists of at most `size`.  docs: in order."""
    at_least("block", size, 1, fix="Try 4096.")
    rest = iter(docs)
    while part := list(islice(rest, size)):
        yield part


def duplicate_id(name: str) -> DataError:
    """Return the error for an id that the index has, or that comes twice."""
    fix = "Give it another id, or delete the old one first."
    return DataError("document id", got=f"{name!r} again", want="each once", fix=fix)
