"""Which columns of a table name pictures and their labels, and whether a .jsonl file has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .files import parse_json
from .reading import read_lines

IMAGE_COLUMNS = ("image", "file_name", "img", "path")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label")
TEXT_COLUMNS = ("text", "prompt", "messages")


def lists_pictures(file: Path) -> bool:
    """Return True if a .jsonl file lists pictures: its first row has picture and label, no text."""
    if file.suffix.lower() != ".jsonl":
        return False
    try:
        lines = read_lines(file.expanduser(), "utf-8-sig")
        # the first row that is not blank; a file of pictures may be long
        row: Any = parse_json(next(filter(str.strip, lines), "null"))
    except (OSError, ValueError):
        return False
    if not isinstance(row, dict):
        return False
    columns = (IMAGE_COLUMNS, LABEL_COLUMNS, TEXT_COLUMNS)
    # a row of chat data may name a picture, too, but has text
    picture, label, text = (any(name in row for name in names) for names in columns)
    return picture and label and not text
