"""The ledger of bars: every target that a claim ever had and every figure that it was held against.

`bars.jsonl` stands next to the records. It only grows: each line has the digest of the one before,
so that a target cannot be lowered, or a figure forgotten, without a break of the chain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intarsia.core.errors import CheckpointError

from ..kit import Study

NAME = "bars.jsonl"
Line = Mapping[str, Any]


def read_bars(folder: Path) -> list[dict[str, Any]]:
    """Return the ledger's lines, oldest first; [] where there is none.

    folder: of the records. A *bar* has claim, date, commit, statistic, sense, value, design and
    seeds; a *run* has claim, date, commit, statistic, bound, seeds, figure, values and interval.
    Raises: CheckpointError where the chain is broken.
    """
    path = folder / NAME
    before, lines = "", list[dict[str, Any]]()
    for number, text in enumerate(path.read_text().splitlines() if path.is_file() else (), 1):
        line = json.loads(text)
        if line["before"] != before:
            raise CheckpointError(
                f"{NAME}, line {number}",
                got=f"the digest {line['before']!r} of the line before",
                want=repr(before),
                fix="Put the lines back that were changed: the ledger only grows.",
            )
        before = digest(text)
        lines.append(line)
    return lines


def digest(text: str) -> str:
    """Return 16 hexadecimal digits of a line of the ledger."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append(folder: Path, lines: Iterable[Line]) -> None:
    """Add lines to the ledger of a folder, without those that are there.

    Raises: CheckpointError where the chain is broken.
    """
    identities = {identity(line) for line in read_bars(folder)}
    path = folder / NAME
    text = path.read_text() if path.is_file() else ""
    before = digest(text.splitlines()[-1]) if text else ""
    for line in lines:
        if identity(line) not in identities:
            identities.add(identity(line))
            added = json.dumps({**line, "before": before}, ensure_ascii=False)
            before = digest(added)
            text += added + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def identity(line: Line) -> str:
    """Return what tells a line from others: not its date, its commit, and its words."""
    left_out = ("before", "date", "commit", "design")
    return json.dumps({k: v for k, v in line.items() if k not in left_out}, sort_keys=True)


def bar_of(study: Study, date: str, commit: str) -> dict[str, Any]:
    """Return the line of a study's target.  date, commit: when it was declared."""
    return {
        "line": "bar",
        "claim": study.key,
        "date": date,
        "commit": commit,
        "statistic": study.baseline,
        "sense": study.sense,
        "value": float(study.target),
        "design": study.sentence,
        "seeds": list(study.seeds),
    }


def of_claim(lines: Sequence[Line], key: str, kind: str) -> list[Line]:
    """Return the lines of a claim, oldest first.  kind: "bar", "run" or "confirmation"."""
    return [line for line in lines if line["claim"] == key and line["line"] == kind]
