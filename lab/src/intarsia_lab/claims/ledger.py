"""Run claims, keep what came out, and write the page that says so."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from intarsia.core.errors import CheckpointError, UnknownName
from intarsia.core.files import read_json, write_json
from intarsia.reports.numbers import plural
from intarsia.reports.statistics import t_interval, verdict

from ..kit import Claim
from ..kit.claim import Report
from .provenance import code_digest, commit

OLDER = ", of older code"
KEPT = 0.1  # of the declared time: less is no run of its own


def claims() -> tuple[Claim, ...]:
    """Every claim: the CLAIMS of the files in this folder, in the files' order."""
    return tuple(c for module in _modules() for c in module.CLAIMS)


def _modules() -> list[ModuleType]:
    files = sorted(Path(__file__).parent.glob("*.py"))
    names = (p.stem for p in files if "\nCLAIMS = " in p.read_text())
    return [importlib.import_module(f".{name}", __package__) for name in names]


def code_of(key: str) -> str:
    """Return the digest of the code that a claim depends on now; "" for no claim of this folder."""
    return code_digest(_homes()[key]) if key in _homes() else ""


@functools.cache
def _homes() -> dict[str, Path]:
    """Return the file of each claim."""
    return {c.key: Path(str(module.__file__)) for module in _modules() for c in module.CLAIMS}


def claim(key: str) -> Claim:
    """The claim of that key.  Raises: UnknownName."""
    known = {c.key: c for c in claims()}
    if key not in known:
        raise UnknownName("claim", key, known, "intarsia claim")
    return known[key]


@dataclass(frozen=True)
class Record:
    """What came out of a run of a claim, with the machine, the date and the command.

    commit: of the checkout; "+" behind it for changes that were not committed.  code: see
    `provenance.code_digest`. Both are "" in records of before there were any.
    """

    key: str
    sentence: str
    baseline: str
    bar: str
    got: float
    spread: float
    values: tuple[float, ...]
    holds: bool
    seeds: tuple[int, ...]
    seconds: float
    machine: str
    date: str
    command: str
    note: str
    table: tuple[Mapping[str, Any], ...]
    commit: str = ""
    code: str = ""

    @property
    def older(self) -> bool:
        """Whether the code that the figure depends on has changed since; also if it is unknown."""
        return not self.code or self.code != code_of(self.key)


def machine() -> str:
    """Processor, cores and versions, in one line."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the platform's own name will do
    return (
        f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, intarsia {version('intarsia')}"
    )


def run_claim(
    found: Claim, *, seeds: Sequence[int] | None = None, report: Report = print
) -> Record:
    """Run a claim and judge it against its bar, which was fixed before."""
    chosen = tuple(found.seeds if seeds is None else seeds)
    code = {"commit": commit(), "code": code_of(found.key)}  # before the run, as it was loaded
    start = time.perf_counter()
    result = found.run(chosen, report)
    command = f"intarsia claim {found.key}"
    if seeds is not None:
        command += f" --seeds {','.join(map(str, chosen))}"
    return Record(
        key=found.key,
        sentence=found.sentence,
        baseline=found.baseline,
        bar=f"{found.sense} {found.bar:g}",
        got=result.got,
        spread=result.spread,
        values=result.values,
        holds=found.holds(result),
        seeds=chosen,
        seconds=time.perf_counter() - start,
        machine=machine(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        command=command,
        note=result.note,
        table=result.table,
        **code,
    )


def save(record: Record, folder: Path) -> Path:
    """Write a record as `folder`/KEY.json, whole or not at all."""
    return write_json(folder / f"{record.key}.json", dataclasses.asdict(record), indent=1)


def read(path: Path) -> Record:
    """Read a record.  Raises: CheckpointError if the file is not one."""
    try:
        raw: dict[str, Any] = read_json(path)
        for name in ("values", "seeds", "table"):
            raw[name] = tuple(raw[name])
        return Record(**raw)
    except (OSError, ValueError, TypeError, KeyError) as error:
        want, fix = "what `intarsia claim` writes", "Run the claim again."
        raise CheckpointError(f"record {path.name}", got=str(error), want=want, fix=fix) from error


def write_page(folder: Path, page: Path) -> None:
    """Write `page` (Markdown) from the records in `folder`."""
    records = {p.stem: read(p) for p in sorted(folder.glob("*.json"))}
    made = claims()
    lines = [
        "# Claims",
        "",
        "Each paper's headline as the smallest honest experiment. The bar is fixed before the run",
        "and does not move after it; what fails stays here as failed. *Holds* and *fails*: the",
        "95 % interval of the seeds' mean and the figure lie on that side of the bar; otherwise",
        "the claim is *not decided*. The interval is over seeds and takes the test items as given,",
        "since most claims have a number for each seed and no result of each item.",
        "*From kept cells*: what is judged was run before, for another claim or for this one.",
        "*Of older code*: files that the claim depends on have changed since, or its record does",
        "not name its code; `intarsia claim NAME` runs it again.",
        "",
        *_papers(made, records),
        "## All claims",
        "",
        "| claim | baseline | bar | got (spread) | result |",
        "|---|---|---|---|---|",
    ]
    for found in made:
        record = records.get(found.key)
        got = f"{record.got:.3f} ({record.spread:.3f})" if record else ""
        cells = f"[{found.key}](#{found.key})", found.baseline, _bar(found, record), got
        lines.append("| " + " | ".join((*cells, _verdict(record))) + " |")
    for found in made:
        lines += _section(found, records.get(found.key))
    page.write_text("\n".join(lines) + "\n")


def _papers(made: Iterable[Claim], records: Mapping[str, Record]) -> list[str]:
    """A table with a row for each paper whose headline is a claim here."""
    rows = []
    for found in made:
        if not found.system:
            continue
        record = records.get(found.key)
        row = {
            "paper": f"[{found.system}](#{found.key})",
            "its sentence": found.sentence,
            "the work here": found.work,
            "against": found.baseline,
            "bar": _bar(found, record),
            "figure [95 % of the seeds' mean]": "" if record is None else _figure(record),
            "verdict": _verdict(record),
        }
        rows.append(row)
    if not rows:
        return []
    said = [
        "## A row for each paper",
        "",
        "The headline of each paper, and what stands for its experiment here. The interval is",
        "Student's, of the values of the seeds; a figure that is not their mean may lie outside.",
        "",
    ]
    return [*said, *markdown(rows), ""]


def _figure(record: Record) -> str:
    low, high = t_interval(record.values)
    known = f" [{low:.3f}, {high:.3f}]" if math.isfinite(low) else ""
    return f"{record.got:.3f}{known}"


def _bar(found: Claim, record: Record | None) -> str:
    return record.bar if record else f"{found.sense} {found.bar:g}"


def state(record: Record | None) -> str:
    """Return the verdict of a record in words, or "not run", and if it is of older code."""
    if record is None:
        return "not run"
    return verdict(record.bar, record.got, record.values) + (OLDER if record.older else "")


def _verdict(record: Record | None) -> str:
    word, comma, rest = state(record).partition(",")
    return (f"**{word}**" if word in ("holds", "fails") else word) + comma + rest


def _section(found: Claim, record: Record | None) -> list[str]:
    lines = ["", f"## {found.key}", "", found.sentence, ""]
    if record is None:
        return [*lines, f"Not run yet: `intarsia claim {found.key}`."]
    at = f" at commit {record.commit}" if record.commit else ""
    when = f"on {record.date}{at}, {_cost(found, record)}"
    lines += [f"`{record.command}` {when}; {record.machine}{OLDER * record.older}.", ""]
    folded = [*record.note.splitlines(), ""] if record.note else []
    folded += markdown(record.table)
    if not folded:
        return lines
    # a page of two hundred open tables is too long to find anything in
    opening = '<details markdown="1"><summary>What was run, and its figures</summary>'
    return [*lines, opening, "", *folded, "", "</details>"]


def _cost(found: Claim, record: Record) -> str:
    """What a run took; one that is far below what the claim declares read what others had made."""
    if record.seconds >= 30:
        return plural(round(record.seconds / 60), "minute")
    kept = record.seconds < KEPT * 60 * found.minutes
    return "from kept cells" if kept else plural(math.ceil(record.seconds), "second")


def markdown(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Rows as a Markdown table; none for no rows."""
    names, *cells = squared(rows)
    if not names:
        return []
    lines = ["| " + " | ".join(line) + " |" for line in (names, *cells)]
    return [lines[0], "|" + "---|" * len(names), *lines[1:]]


def squared(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """All keys of the rows, then the cells of each row, empty where a row has no such key."""
    rows = list(rows)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return [names, *(tuple(str(row.get(name, "")) for name in names) for row in rows)]
