"""The record behind the numbers, as rows of text: settings, data, machine, runs, commands."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import numbers
from ..table import Table, plain
from ..wording import capital
from .grouping import Comparison, adapters_of, differing, flat, set_of, settings_of
from .reading import FinishedRun
from .sentences import PART_NAMES, data_of, selection_of

FEW = 4  # words of a list that are shown one by one
_SEEN_ELSEWHERE = (
    *("label", "model", "method", "data", "classes", "command", "experiment", "search", "choice"),
)


@dataclass(frozen=True)
class DataPart:
    """Part of the data: its size, its hash, and what is known of its classes."""

    name: str
    count: str
    sha256: str
    classes: str


def value_text(value: Any) -> str:
    """A setting as text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple) and not any(isinstance(v, dict | list) for v in value):
        return _listed([value_text(v) for v in value])
    return json.dumps(value, default=str)


def _listed(words: Sequence[str]) -> str:
    """List a few words; of many, such as a model's layers, join those that differ in numbers."""
    if len(words) <= FEW:
        return ", ".join(words)
    # blocks.0.attn.qkv and blocks.1.attn.qkv become one: blocks.*.attn.qkv (2 times)
    patterns = Counter(re.sub(r"\d+", "*", word) for word in words)
    return ", ".join(f"{name} ({n} times)" if n > 1 else name for name, n in patterns.items())


def setting_rows(
    comparison: Comparison,
) -> tuple[list[tuple[str, str]], list[tuple[str, list[str]]]]:
    """(name, value) of the settings all groups share, and (name, a value each) of the others.

    Without the methods' own: see `method_rows`.
    """
    settings = [settings_of(group.runs[0]) for group in comparison.groups]
    for one in settings:
        del one["adapter"]
    leaves = [flat(one) for one in settings]
    own = differing(settings)
    common = [(n, value_text(v)) for n, v in leaves[0].items() if n not in own]
    # what a method does not have is no setting of it
    rows = [(n, [value_text(one[n]) if n in one else "" for one in leaves]) for n in own]
    return common, [row for row in rows if any(row[1])]


def method_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """(label, what is added to the model and with which settings) of each group."""
    return [(group.label, _method(group.runs[0])) for group in comparison.groups]


def _method(run: FinishedRun) -> str:
    adapters = adapters_of(run)
    if not adapters:
        return "no adapter"
    told: list[str] = []
    for name, about in adapters.items():
        options = {k: v for k, v in flat(about.get("options") or {}).items() if v is not None}
        words = [str(about.get("method") or about.get("peft_type"))]
        words += [f"{k}={value_text(v)}" for k, v in options.items()]
        if targets := about.get("target_modules"):
            words.append(f"on {value_text(targets)}")
        told.append((f"{name}: " if len(adapters) > 1 else "") + " ".join(words))
    return "; ".join(told)


def given_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the notes of the first run's caller that stand nowhere else on the page."""
    given = comparison.runs[0].given
    rest = {name: value for name, value in given.items() if name not in _SEEN_ELSEWHERE}
    return [(name, value_text(value)) for name, value in flat(rest).items()]


def data_parts(comparison: Comparison) -> dict[str, Any]:
    """The parts of the first run, and whether the other runs had the same."""
    first = comparison.runs[0]
    own = data_of(first)
    hashes = {part: str(about.get("sha256", "")) for part, about in own.items()}
    others = [
        {part: str(about.get("sha256", "")) for part, about in data_of(run).items()}
        for run in comparison.runs
    ]
    about = first.given.get("data")
    about = about if isinstance(about, Mapping) else {}
    recorded = about.get("parts")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    parts = [
        DataPart(
            PART_NAMES.get(part, part),
            f"{n:,}" if isinstance(n := own[part].get("n"), int) else "not known",
            sha,
            _counts(recorded.get(part)),
        )
        for part, sha in hashes.items()
    ]
    return {
        "name": set_of(first),
        "parts": parts,
        "seed": first.seed,
        "same": all(other == hashes for other in others),
        "origin": _origin(recorded),
    }


def _counts(part: Any) -> str:
    counts = part.get("counts") if isinstance(part, Mapping) else None
    if not isinstance(counts, Mapping):
        return ""
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def _origin(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Source and licence, as the data's record states them."""
    known = [part for part in parts.values() if isinstance(part, Mapping)]
    rows: list[tuple[str, str]] = []
    for name in ("source", "licence"):
        values = dict.fromkeys(str(part[name]) for part in known if part.get(name))
        if values:
            rows.append((name.capitalize(), "; ".join(values)))
    return rows


def machine_rows(run: FinishedRun) -> list[tuple[str, str]]:
    """Return the machine and the versions of a run."""
    rows: list[tuple[str, str]] = []
    for section in ("machine", "versions"):
        about = run.record.get(section)
        for name, value in about.items() if isinstance(about, Mapping) else ():
            rows.append((str(name).replace("_", " "), value_text(value) or "none"))
    return rows


RUN_COLUMNS = ("Method", "Seed", "Accuracy", "Loss", "Epoch", "Time", "Started", "Folder")


def run_rows(comparison: Comparison) -> Table:
    """Return a table with a row for each run."""
    rows = [
        [
            group.label,
            str(run.seed),
            numbers.percent(run.scores.accuracy, 2),
            f"{run.scores.loss:.4f}" if isinstance(run.scores.loss, float) else "",
            value_text(selection_of(run).get("epoch", "")),
            numbers.seconds(run.costs.seconds),
            str(run.record.get("started", "")),
            # the name only: a page that is passed on should not tell where it was made
            run.folder.resolve().name,
        ]
        for group in comparison.groups
        for run in group.runs
    ]
    columns = [capital(comparison.measure) if c == "Accuracy" else c for c in RUN_COLUMNS]
    return plain("", columns, rows, words=len(columns), fold=numbers.plural(len(rows), "run"))


def commands(runs: Iterable[FinishedRun]) -> list[str]:
    """Return each command once, in order."""
    return list(dict.fromkeys(text for run in runs if (text := _command(run))))


def _command(run: FinishedRun) -> str:
    given = run.given.get("command", run.record.get("command"))
    if isinstance(given, str):
        return given
    if not isinstance(given, Sequence) or not given:
        return ""
    program, *rest = map(str, given)
    # the script by name: its folder is another one elsewhere
    return shlex.join([Path(program).name, *rest])
