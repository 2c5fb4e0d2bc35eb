"""The experiments of this folder, how one is run, and the records of those that were."""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from intarsia.core.errors import CheckpointError, UnknownName
from intarsia.core.files import read_json, write_json

from ..kit import ArmRate, Report, Study
from ..kit.study import Interval

COMMAND = "intarsia reproduce"
CHECKOUT = "lab/src/intarsia_lab/"  # where the laboratory stands in its repository


def studies() -> tuple[Study, ...]:
    """Return every experiment: the STUDIES of the files in this folder, in the files' order.

    The first of a paper asks its headline's question.
    """
    files = sorted(Path(__file__).parent.glob("*.py"))
    names = (p.stem for p in files if "\nSTUDIES = " in p.read_text())
    modules = (importlib.import_module(f".{name}", __package__) for name in names)
    return tuple(study for module in modules for study in module.STUDIES)


def study(key: str) -> Study:
    """Return the experiment of that key.  Raises: UnknownName."""
    by_key = {s.key: s for s in studies()}
    if key not in by_key:
        raise UnknownName("experiment", key, by_key, COMMAND)
    return by_key[key]


@dataclass(frozen=True)
class Record:
    """Result of an experiment's run, with the version, the commit, the machine and the command.

    interval: 95 %, None for a single value.  values: one for each seed.  commit: of the checkout,
    "+" behind it for changes that were not committed; "" outside of one.
    """

    key: str
    value: float
    interval: Interval | None
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    table: tuple[dict[str, Any], ...]
    note: str
    date: str
    version: str
    commit: str
    machine: str
    command: str


def run(study: Study, *, seeds: Sequence[int] | None = None, report: Report = print) -> Record:
    """Run an experiment.

    seeds: instead of its own; report: receives progress lines.
    """
    numbers = tuple(study.seeds if seeds is None else seeds)
    place = commit()  # before the run, as it was loaded
    result = study.measure(numbers, report)
    command = f"{COMMAND} {study.key}"
    if seeds is not None:
        command += f" --seeds {','.join(map(str, numbers))}"
    return Record(
        key=study.key,
        value=result.value,
        interval=result.interval,
        values=result.values,
        seeds=numbers,
        table=tuple(map(dict, result.table)),
        note=" ".join(filter(None, (result.note, rates_in_words(result.rates)))),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        version=version("intarsia"),
        commit=place,
        machine=machine(),
        command=command,
    )


def rates_in_words(rates: Sequence[ArmRate]) -> str:
    """Return a sentence on the learning rate that each arm chose; "" for none."""
    if not rates:
        return ""
    listed = ", ".join(f"{rate.arm} {rate.rate:g}" for rate in rates)
    return f"Learning rates, each arm's best on validation data: {listed}."


def machine() -> str:
    """Return processor, cores and torch's version in one line."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the platform's own name will do
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}"


def commit() -> str:
    """Return the commit of this checkout, with "+" for changes; "" outside of one, or of git."""
    try:
        if _git("rev-parse", "--show-prefix") != CHECKOUT:  # installed inside another repository
            return ""
        name = _git("describe", "--always", "--abbrev=12", "--exclude=*")
        return name + "+" * bool(_git("status", "--porcelain", "-uno"))
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*words: str) -> str:
    """Return the output of a git command in this checkout.  Raises: OSError, SubprocessError."""
    command = ("git", "-C", str(Path(__file__).parents[1]), *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def save(record: Record, folder: Path) -> Path:
    """Write a record as `folder`/KEY.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_json(folder / f"{record.key}.json", dataclasses.asdict(record), indent=1)


def read(path: Path) -> Record:
    """Read the record of a run.

    path: a JSON file that `save` wrote. Raises: CheckpointError if the file is not one.
    """
    try:
        raw: dict[str, Any] = read_json(path)
        # JSON has lists where a record has tuples
        for name in ("values", "seeds", "table"):
            raw[name] = tuple(raw[name])
        if raw["interval"] is not None:
            low, high = map(float, raw["interval"])
            raw["interval"] = low, high
        raw["value"] = float(raw["value"])
        return Record(**raw)
    except (OSError, ValueError, TypeError, KeyError) as error:
        want, fix = f"what `{COMMAND}` writes", f"Run it again: {COMMAND} {path.stem}"
        raise CheckpointError(f"record {path.name}", got=str(error), want=want, fix=fix) from error


def read_all(folder: Path) -> tuple[dict[str, Record], dict[str, CheckpointError]]:
    """Return the records of a folder by their experiments, and the errors of damaged ones."""
    records, damaged = dict[str, Record](), dict[str, CheckpointError]()
    for path in sorted(folder.glob("*.json")):
        try:
            records[path.stem] = read(path)
        except CheckpointError as error:
            damaged[path.stem] = error
    return records, damaged


def compared(record: Record, stored: Record | None) -> str:
    """Return how a run's value lies to the stored one, in a sentence."""
    if stored is None:
        return "No stored result to compare with."
    of_stored = f"{stored.value:.4g} of {stored.date} ({stored.machine})"
    if record.values == stored.values:
        return f"Equal to the stored {of_stored}."
    if stored.interval is None:
        return f"The stored value is {of_stored}."
    low, high = stored.interval
    place = "inside" if low <= record.value <= high else "outside"
    return (
        f"It lies {place} the interval of the stored value, {of_stored}: [{low:.4g}, {high:.4g}]."
    )
