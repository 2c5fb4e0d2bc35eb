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

from ..kit import Report, Result, Study, Verdict
from ..kit.provenance import code_digest, commit

OLDER = ", of older code"
KEPT = 0.1  # of the declared time: less is no run of its own


def claims() -> tuple[Study, ...]:
    """Return every claim: the CLAIMS of the files in this folder, in the files' order."""
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


def claim(key: str) -> Study:
    """Return the claim of that key.  Raises: UnknownName."""
    studies = {c.key: c for c in claims()}
    if key not in studies:
        raise UnknownName("claim", key, studies, "intarsia reproduce")
    return studies[key]


@dataclass(frozen=True)
class Record:
    """The result of a claim's run and its verdict, with the machine, the date and the command.

    target: with its sense, as in ">= 1.3".  interval: 95 %, None for a single value.  verdict: one
    of the four words; reason: why it is void or not decided.  commit: of the checkout; "+" behind
    it for changes that were not committed.  code: see `provenance.code_digest`. Both are "" in
    records of before there were any.
    """

    key: str
    sentence: str
    baseline: str
    target: str
    got: float
    spread: float
    values: tuple[float, ...]
    interval: tuple[float, float] | None
    verdict: str
    reason: str
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
        """True if the code that the figure depends on has changed since, or is unknown."""
        return not self.code or self.code != code_of(self.key)


def machine() -> str:
    """Return processor, cores and versions in one line."""
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
    study: Study, *, seeds: Sequence[int] | None = None, report: Report = print
) -> Record:
    """Run a claim and judge it against its target, which was fixed before."""
    numbers = tuple(study.seeds if seeds is None else seeds)
    code = {"commit": commit(), "code": code_of(study.key)}  # before the run, as it was loaded
    start = time.perf_counter()
    result = study.measure(numbers, report)
    verdict = study.judge(result)
    command = f"intarsia reproduce {study.key}"
    if seeds is not None:
        command += f" --seeds {','.join(map(str, numbers))}"
    return Record(
        key=study.key,
        sentence=study.sentence,
        baseline=study.baseline,
        target=study.bound,
        got=result.got,
        spread=result.spread,
        values=result.values,
        interval=result.interval if math.isfinite(result.interval[0]) else None,
        verdict=verdict.word,
        reason=verdict.reason,
        seeds=numbers,
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
        if raw["interval"] is not None:
            raw["interval"] = tuple(raw["interval"])
        return Record(**raw)
    except (OSError, ValueError, TypeError, KeyError) as error:
        want, fix = "what `intarsia reproduce` writes", "Run the claim again."
        raise CheckpointError(f"record {path.name}", got=str(error), want=want, fix=fix) from error


def judge_again(folder: Path) -> dict[str, tuple[str, Verdict]]:
    """Give every record in `folder` the verdict of today's rule and today's controls.

    Nothing is run. Returns the word before and the verdict now of each record that changed.
    """
    changed: dict[str, tuple[str, Verdict]] = {}
    studies = {c.key: c for c in claims()}
    for path in sorted(folder.glob("*.json")):
        record = read(path)
        if record.key not in studies:
            continue
        verdict = verdict_of(studies[record.key], record)
        now = dataclasses.replace(record, verdict=verdict.word, reason=verdict.reason)
        if now != record:
            save(now, folder)
        if now.verdict != record.verdict:
            changed[record.key] = record.verdict, verdict
    return changed


def verdict_of(study: Study, record: Record) -> Verdict:
    """Return the verdict on a record by the rule of its study.

    A record that was judged against another target is void until it is run again.
    """
    if record.target != study.bound:
        return Verdict("void", f"Its target was {record.target}, and is {study.bound} now.")
    result = Result(
        record.got, record.spread, record.values, record.table, record.note, record.interval
    )
    return study.judge(result)


def write_page(folder: Path, page: Path) -> None:
    """Write `page` (Markdown) from the records in `folder`."""
    records = {p.stem: read(p) for p in sorted(folder.glob("*.json"))}
    studies = claims()
    lines = [
        "# Claims",
        "",
        "Each paper's headline as the smallest honest experiment. The target is fixed before the",
        "run and does not move after it; what fails stays here as failed. One rule gives all",
        "verdicts. *Void*: the positive control failed, so that the figure means nothing. *Holds*",
        "and *fails*: the whole 95 % interval, and the figure, lie on that side of the target.",
        "*Not decided*: the target lies inside the interval. The interval is over seeds, and over",
        "test items where their results were recorded.",
        "*From cached results*: what is judged was run before, for another claim or for this one.",
        "*Of older code*: files that the claim depends on have changed since, or its record does",
        "not name its code; `intarsia reproduce NAME` runs it again.",
        "",
        *_counts(studies, records),
        *_papers(studies, records),
        "## All claims",
        "",
        "| claim | baseline | target | figure [95 % interval] | the paper's own | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for study in studies:
        record = records.get(study.key)
        cells = (f"[{study.key}](#{study.key})", study.baseline, study.bound)
        figures = ("" if record is None else _figure(record), _effect(study), _verdict(record))
        lines.append("| " + " | ".join((*cells, *figures)) + " |")
    for study in studies:
        lines += _section(study, records.get(study.key))
    page.write_text("\n".join(lines) + "\n")


def _counts(studies: Iterable[Study], records: Mapping[str, Record]) -> list[str]:
    """Return a table of how many claims have each verdict, of all and of the headlines."""
    words = ("holds", "fails", "not decided", "void", "not run")
    lines = ["| verdict | headlines | all claims |", "|---|---|---|"]
    verdicts = [(study, _word(records.get(study.key))) for study in studies]
    for word in words:
        headlines = sum(word == verdict for study, verdict in verdicts if study.system)
        lines.append(f"| {word} | {headlines} | {sum(word == v for _, v in verdicts)} |")
    return [*lines, ""]


def _papers(studies: Sequence[Study], records: Mapping[str, Record]) -> list[str]:
    """Return a table with a row for each paper whose headline is a claim here.

    Claims of a paper stand in one file, the headline's.
    """
    homes = _homes()
    rows = []
    for study in studies:
        if not study.system:
            continue
        record = records.get(study.key)
        of_paper = [s for s in studies if homes.get(s.key) == homes.get(study.key)]
        words = [_word(records.get(s.key)) for s in of_paper]
        row = {
            "paper": f"[{study.system}](#{study.key})",
            "its sentence": study.sentence,
            "the work here": study.work,
            "against": study.baseline,
            "target": study.bound,
            "figure [95 % interval]": "" if record is None else _figure(record),
            "the paper's own": _effect(study),
            "verdict": _verdict(record),
            "all its claims": f"{words.count('holds')} of {len(words)} hold",
        }
        rows.append(row)
    if not rows:
        return []
    opening = [
        "## A row for each paper",
        "",
        "The headline of each paper, and what stands for its experiment here. The paper's own",
        "effect is in the claim's unit, with its source; *not known* where it was not found.",
        "",
    ]
    return [*opening, *markdown(rows), ""]


def _figure(record: Record) -> str:
    ends = record.interval
    return f"{record.got:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")


def _effect(study: Study) -> str:
    return f"{study.effect.value:g} ({study.effect.source})" if study.effect else "not known"


def _word(record: Record | None) -> str:
    return "not run" if record is None else record.verdict


def state(record: Record | None) -> str:
    """Return the verdict of a record in words, or "not run", and if it is of older code."""
    return _word(record) + (OLDER if record is not None and record.older else "")


def _verdict(record: Record | None) -> str:
    word, comma, rest = state(record).partition(",")
    return (f"**{word}**" if word in ("holds", "fails") else word) + comma + rest


def _section(study: Study, record: Record | None) -> list[str]:
    lines = ["", f"## {study.key}", "", study.sentence, ""]
    if record is None:
        return [
            *lines,
            f"Not run yet: `intarsia reproduce {study.key}`, {study.minutes:g} minutes.",
        ]
    place = f" at commit {record.commit}" if record.commit else ""
    date = f"on {record.date}{place}, {_cost(study, record)}"
    lines += [f"`{record.command}` {date}; {record.machine}{OLDER * record.older}.", ""]
    if record.reason:
        lines += [f"{record.verdict.capitalize()}: {record.reason}", ""]
    folded = [*record.note.splitlines(), ""] if record.note else []
    folded += markdown(record.table)
    if not folded:
        return lines
    # a page of two hundred open tables is too long to find anything in
    opening = '<details markdown="1"><summary>What was run, and its figures</summary>'
    return [*lines, opening, "", *folded, "", "</details>"]


def _cost(study: Study, record: Record) -> str:
    """Return a run's time; one far below what the claim declares read cached results."""
    if record.seconds >= 30:
        return plural(round(record.seconds / 60), "minute")
    cached = record.seconds < KEPT * 60 * study.minutes
    return "from cached results" if cached else plural(math.ceil(record.seconds), "second")


def markdown(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return rows as a Markdown table; no lines for no rows."""
    names, *cells = squared(rows)
    if not names:
        return []
    lines = ["| " + " | ".join(line) + " |" for line in (names, *cells)]
    return [lines[0], "|" + "---|" * len(names), *lines[1:]]


def squared(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return all keys of the rows, then each row's cells, empty where a row has no such key."""
    rows = list(rows)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return [names, *(tuple(str(row.get(name, "")) for name in names) for row in rows)]
