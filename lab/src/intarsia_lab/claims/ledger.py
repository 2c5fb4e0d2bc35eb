"""Run claims, keep their records, and judge the records again."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from intarsia.core.errors import CheckpointError, ConfigError, UnknownName
from intarsia.core.files import read_json, write_json

from ..kit import ArmRate, FixedRate, Report, Result, Study
from ..kit.provenance import code_digest, commit
from .bars import Line, append, bar_of, digest, of_claim, read_bars
from .designs import DESIGNS
from .papers import PAPERS
from .standing import CHECK, WITHDRAWN, class_of
from .verdicts import Standing, standing_of

OLDER = ", of older code"
CACHED = 0.1  # of the declared time: a run of less has read results of an earlier one
COMMAND = "intarsia reproduce"
ARXIV = re.compile(r"\d{4}\.\d{5}")


def claims() -> tuple[Study, ...]:
    """Return every claim: the CLAIMS of the files in this folder, in the files' order.

    Raises: ConfigError for a headline without its paper's figure, and for one that counts as
    evidence and has no design, see `check_declared`.
    """
    studies = tuple(c for module in _modules() for c in module.CLAIMS)
    for study in studies:
        check_declared(study)
    return studies


def check_declared(study: Study) -> None:
    """Refuse a headline that does not say what its paper has and what it stands next to.

    Raises: ConfigError.
    """
    if not study.system:
        return
    # a check counts as no evidence, and needs no rivals
    tables: dict[str, Mapping[str, Any]] = {"papers.PAPERS": PAPERS}
    if class_of(study.key) != CHECK:
        tables["designs.DESIGNS"] = DESIGNS
    for place, rows in tables.items():
        if study.key not in rows:
            raise ConfigError(
                f"headline {study.key}",
                got=f"no row in {place}",
                want="the paper's figure, and a design: rivals, an arm that must lose, a sample",
                fix=f"Add it to {place}; `Missing('...')` says what was not run.",
            )


def _modules() -> list[ModuleType]:
    files = sorted(Path(__file__).parent.glob("*.py"))
    names = (p.stem for p in files if "\nCLAIMS = " in p.read_text())
    return [importlib.import_module(f".{name}", __package__) for name in names]


def code_of(key: str) -> str:
    """Return the digest of the code that a claim depends on now; "" for no claim of this folder."""
    return code_digest(_homes()[key]) if key in _homes() else ""


def file_of(key: str) -> str:
    """Return the name of the file that defines a claim; "" for no claim of this folder."""
    return _homes()[key].name if key in _homes() else ""


@functools.cache
def _homes() -> dict[str, Path]:
    """Return the file of each claim."""
    return {c.key: Path(str(module.__file__)) for module in _modules() for c in module.CLAIMS}


def claim(key: str) -> Study:
    """Return the claim of that key.  Raises: UnknownName."""
    studies = {c.key: c for c in claims()}
    if key not in studies:
        raise UnknownName("claim", key, studies, COMMAND)
    return studies[key]


@dataclass(frozen=True)
class Record:
    """The result of a claim's run and its verdict, with the machine, the date and the command.

    target: with its sense, as in ">= 1.3".  interval: 95 %, None for a single value.  verdict: one
    of `verdicts.WORDS`; reason: why it is no other.  commit: of the checkout; "+" behind
    it for changes that were not committed.  code: see `provenance.code_digest`. Both are "" in
    records of before there were any.  rates: of the arms that were trained.  confirmed: the line of
    the ledger that says that today's code has a seed's stored value, None where there is none.
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
    rates: tuple[ArmRate, ...] = ()
    confirmed: Line | None = None

    @property
    def result(self) -> Result:
        """The result that was judged, as the run returned it."""
        return Result(
            self.got, self.spread, self.values, self.table, self.note, self.interval, self.rates
        )

    @property
    def older(self) -> bool:
        """True if the code that the figure depends on has changed since, or is unknown.

        A record that was confirmed with today's code is not older, see `confirming`.
        """
        return self.confirmed is None and (not self.code or self.code != code_of(self.key))

    @property
    def counts(self) -> bool:
        """True if its verdict counts: of today's code, on a clean commit, or confirmed so."""
        return self.confirmed is not None or (
            not self.older and bool(self.commit) and not self.commit.endswith("+")
        )

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of its seeds and values, which a confirmation names."""
        return digest(json.dumps([self.seeds, self.values]))


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
    """Run a claim's experiment and judge it against its target, which was fixed before.

    study: the claim; seeds: instead of the claim's own; report: receives progress lines.
    """
    numbers = tuple(study.seeds if seeds is None else seeds)
    place, code = commit(), code_of(study.key)  # before the run, as it was loaded
    # the time says later whether results were read or computed
    start = time.perf_counter()
    result = study.measure(numbers, report)
    verdict = study.judge(result)
    rates = study.rates.arms if isinstance(study.rates, FixedRate) else result.rates
    command = f"{COMMAND} {study.key}"
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
        rates=rates,
        commit=place,
        code=code,
    )


def save(record: Record, folder: Path) -> Path:
    """Write a record as `folder`/KEY.json, whole or not at all."""
    fields = dataclasses.asdict(record)
    del fields["confirmed"]  # stands in the ledger
    return write_json(folder / f"{record.key}.json", fields, indent=1)


def publish(study: Study, record: Record, folder: Path) -> Record:
    """Add a run to the ledger of bars, judge it by the ledger, and save it; return it judged.

    study: the claim; folder: of the records.
    """
    append(folder, [bar_of(study, record.date, record.commit), _run_of(record)])
    verdict = verdict_of(study, record, read_bars(folder))
    judged = dataclasses.replace(record, verdict=verdict.word, reason=verdict.reason)
    save(judged, folder)
    return judged


def declare(folder: Path) -> None:
    """Add the targets of today to the ledger of a folder, as far as they are not in it."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    append(folder, [bar_of(study, date, commit()) for study in claims()])


def _run_of(record: Record) -> dict[str, Any]:
    """Return the line of a run for the ledger of bars."""
    return {
        "line": "run",
        "claim": record.key,
        "date": record.date,
        "commit": record.commit,
        "statistic": record.baseline,
        "bound": record.target,
        "seeds": list(record.seeds),
        "figure": record.got,
        "values": list(record.values),
        "interval": None if record.interval is None else list(record.interval),
    }


def refuse_uncommitted(folder: Path) -> None:
    """Refuse a run if its record would lie in this checkout while it has uncommitted changes.

    folder: of the records. Raises: ConfigError.
    """
    root = Path(__file__).parents[4]
    if folder.resolve().is_relative_to(root) and commit().endswith("+"):
        raise ConfigError(
            "--out",
            got="a page of this checkout, which has changes that are not committed",
            want="a clean commit, which the record can name",
            fix="Commit first, or write the page elsewhere: --out ../claims.md",
        )


def read(path: Path) -> Record:
    """Read the record of a claim's run.

    path: a JSON file that `save` wrote. Raises: CheckpointError if the file is not one.
    """
    try:
        raw: dict[str, Any] = read_json(path)
        # JSON has lists where a record has tuples
        for name in ("values", "seeds", "table"):
            raw[name] = tuple(raw[name])
        if raw["interval"] is not None:
            raw["interval"] = tuple(raw["interval"])
        raw["rates"] = tuple(
            ArmRate(**{**rate, "grid": tuple(rate["grid"])}) for rate in raw.get("rates", ())
        )
        return Record(**raw)
    except (OSError, ValueError, TypeError, KeyError) as error:
        want, fix = f"what `{COMMAND}` writes", "Run the claim again."
        raise CheckpointError(f"record {path.name}", got=str(error), want=want, fix=fix) from error


def read_all(folder: Path) -> dict[str, Record]:
    """Return the records of a folder by their claims, each with what confirms it.

    Raises: CheckpointError, see `read` and `bars.read_bars`.
    """
    lines = read_bars(folder)
    records = {path.stem: read(path) for path in sorted(folder.glob("*.json"))}
    return {
        key: dataclasses.replace(record, confirmed=_confirming(record, lines))
        for key, record in records.items()
    }


def confirmations(record: Record, lines: Sequence[Line]) -> list[Line]:
    """Return the confirmations of a record with today's code, oldest first, those that failed, too.

    lines: the ledger. Those of another run, or of other code, do not count.
    """
    asked = record.digest, code_of(record.key)
    of_record = of_claim(lines, record.key, "confirmation")
    return [line for line in of_record if (line["record"], line["code"]) == asked]


def _confirming(record: Record, lines: Sequence[Line]) -> Line | None:
    """Return the line that confirms a record with today's code, if no seed was unequal."""
    mine = confirmations(record, lines)
    equal = [line for line in mine if line["equal"]]
    return equal[-1] if equal and all(line["equal"] is not False for line in mine) else None


def judge_again(folder: Path) -> dict[str, tuple[str, Standing]]:
    """Judge every record in a folder again, by today's rule and controls; nothing is run.

    Writes those that changed. Returns, for each key with a changed verdict, the old word and the
    new verdict.
    """
    changed: dict[str, tuple[str, Standing]] = {}
    studies = {c.key: c for c in claims()}
    lines = read_bars(folder)
    for record in read_all(folder).values():
        if record.key not in studies:
            continue
        verdict = verdict_of(studies[record.key], record, lines)
        now = dataclasses.replace(record, verdict=verdict.word, reason=verdict.reason)
        # a record with the same verdict is not written again: its file keeps its date
        if now != record:
            save(now, folder)
        if now.verdict != record.verdict:
            changed[record.key] = record.verdict, verdict
    return changed


def verdict_of(study: Study, record: Record, lines: Sequence[Line] = ()) -> Standing:
    """Return the verdict on a stored result by its claim's rules of today, see `standing_of`.

    lines: the ledger of bars. If the figure of a record had to lie on another side of its target,
    the record judged another question and is void.
    """
    if record.target.split()[0] != study.sense and study.key not in WITHDRAWN:
        return Standing("void", f"Its target was {record.target}, and is {study.bound} now.")
    return standing_of(study, record.result, record.seeds, lines)


def paper_of(key: str) -> Study | None:
    """Return the headline of the paper that a claim belongs to; None for claims of no paper.

    A claim belongs to the headline with the key that its own begins with, else to the one with the
    paper's number that its sentence names.
    """
    headlines = [c for c in claims() if c.system]
    # by the family of keys, as dsl and dsl-multvae-small
    named = [c for c in headlines if key == c.key or key.startswith(f"{c.key}-")]
    if not named:
        numbers = set(ARXIV.findall(claim(key).sentence))
        named = [c for c in headlines if numbers & set(ARXIV.findall(c.sentence))]
    # the longest key: dass-by-hand is of DASS, and would be of a paper called DASS-by-hand
    return max(named, key=lambda c: len(c.key), default=None)


def read_stored(study: Study, record: Record) -> bool:
    """Return whether a run was so short that it must have read results of an earlier one."""
    # a claim of seconds is declared as a minute, and stores nothing
    return study.minutes > 1 and record.seconds < CACHED * 60 * study.minutes


def state(record: Record | None) -> str:
    """Return the verdict of a record in words, "not run" without one.

    ", of older code" follows where the code that the figure depends on has changed since.
    """
    if record is None:
        return "not run"
    return record.verdict + (OLDER if record.older else "")


def squared(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return the rows of a table as text: the names of all columns, then each row's values.

    A value is empty where a row has no such column.
    """
    rows = list(rows)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return [names, *(tuple(str(row.get(name, "")) for name in names) for row in rows)]
