"""A claim's history: its bars and figures, late bars, and bars without a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from intarsia.reports.numbers import plural

from ..claims.bars import Line, of_claim
from ..claims.ledger import Record, read_stored
from ..claims.verdicts import interval_of
from ..kit import Study


def minutes_of(study: Study, record: Record | None) -> int:
    """Return how many minutes a claim takes on two cores: its record's, where that run computed.

    record: of its last run. The declared minutes count where there is none, or where the run read
    results that an earlier one had stored.
    """
    if record is None or read_stored(study, record):
        return math.ceil(study.minutes)
    return max(1, round(record.seconds / 60))


def judged_by(study: Study, record: Record | None, bars: Sequence[Line]) -> str:
    """Return the interval that decided, where it is another one than is printed."""
    if record is None or record.interval is None or record.verdict in ("withdrawn", "void"):
        return ""
    # fresh seeds and later looks judge by another interval than all values have
    ends = interval_of(study, record.result, record.seeds, bars)
    if all(map(math.isclose, ends, record.interval)):
        return ""
    return f"; judged by [{ends[0]:.3f}, {ends[1]:.3f}]".replace("inf", "∞")


def cost_of(study: Study, record: Record) -> str:
    """Return how long a run took, in words."""
    # minutes tell enough, and seconds would differ with each run
    if read_stored(study, record):
        return "from stored results"
    if record.seconds >= 30:
        return plural(minutes_of(study, record), "minute")
    return plural(math.ceil(record.seconds), "second")


def rows_of(lines: Sequence[Line], key: str) -> list[Mapping[str, str]]:
    """Return a row for each bar and each figure of a claim, oldest first.

    lines: the ledger. A figure stands with the bar that it was held against. A bar says if its
    value was declared after a figure of the same comparison, and if nothing was ever run for it.
    """
    mine = [n for n in lines if n["claim"] == key and n["line"] in ("bar", "run")]
    return [
        {
            "date": line["date"],
            "bar": _bound(line),
            "figure": f"{line['figure']:.3f}" if line["line"] == "run" else _remark(line, mine),
            "seeds": str(len(line["seeds"])),
            "against": line["statistic"],
        }
        for line in mine
    ]


def target_of(study: Study, lines: Sequence[Line]) -> str:
    """Return a claim's target, and that it was moved where a figure was known before it.

    lines: the ledger.
    """
    mine = [n for n in lines if n["claim"] == study.key and n["line"] in ("bar", "run")]
    late = any(
        _earlier(bar, mine)
        for bar in of_claim(mine, study.key, "bar")
        if (bar["statistic"], _bound(bar)) == (study.baseline, study.bound)
    )
    return f"{study.bound} (declared after a figure)" if late else study.bound


def _bound(line: Line) -> str:
    """Return a line's bar with its sense, as in ">= 1.3"."""
    return line["bound"] if line["line"] == "run" else f"{line['sense']} {line['value']:g}"


def _remark(bar: Line, mine: Sequence[Line]) -> str:
    """Return a remark on a bar that came late, or that no run was held against; "" for others.

    mine: the claim's lines, oldest first.
    """
    question = (bar["statistic"], _bound(bar), sorted(bar["seeds"]))
    runs = of_claim(mine, bar["claim"], "run")
    parts = [f"declared after {r['figure']:.3f} of {r['date']}" for r in _earlier(bar, mine)[-1:]]
    if question not in [(run["statistic"], run["bound"], sorted(run["seeds"])) for run in runs]:
        parts.append("no run" if parts else "declared, no run")
    return f"*{', '.join(parts)}*" if parts else ""


def _earlier(bar: Line, mine: Sequence[Line]) -> list[Line]:
    """Return the figures that were known before a bar's value was declared for the first time."""
    order = [line for line in mine if line["statistic"] == bar["statistic"]]
    order.sort(key=lambda line: line["date"])  # stable: of one day, as they stand in the ledger
    first = next(n for n, b in enumerate(order) if b["line"] == "bar" and _bound(b) == _bound(bar))
    return [line for line in order[:first] if line["line"] == "run"]
