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
    """Part of the data: its size, its hash, and the known facts of its classes."""

    name: str
    count: str
    sha256: str
    classes: str


def value_text(value: Any) -> str:
    """Return the value of a setting as text for a table."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple) and not any(isinstance(v, dict | list) for v in value):
        return _joined_words([value_text(v) for v in value])
    return json.dumps(value, default=str)


def _joined_words(words: Sequence[str]) -> str:
    """Join words by commas; many of them, such as a model's layers, are joined by pattern."""
    if len(words) <= FEW:
        return ", ".join(words)
    # blocks.0.attn.qkv and blocks.1.attn.qkv become one: blocks.*.attn.qkv (2 times)
    patterns = Counter(re.sub(r"\d+", "*", word) for word in words)
    return ", ".join(f"{name} ({n} times)" if n > 1 else name for name, n in patterns.items())


def setting_rows(
    comparison: Comparison,
) -> tuple[list[tuple[str, str]], list[tuple[str, list[str]]]]:
    """Return the settings that all methods share, and those that differ, as rows of two tables.

    A row of the first list is (name, value), one of the second (name, values, one for each method,
    "" for a method without that setting). Settings of adapters are left out: `method_rows` has
    them.
    """
    settings = [settings_of(group.runs[0]) for group in comparison.groups]
    for setting in settings:
        # it has rows of its own
        del setting["adapter"]
    leaves = [flat(setting) for setting in settings]
    names = differing(settings)
    common = [(n, value_text(v)) for n, v in leaves[0].items() if n not in names]
    # what a method does not have is no setting of it
    rows = [
        (n, [value_text(setting[n]) if n in setting else "" for setting in leaves]) for n in names
    ]
    return common, [row for row in rows if any(row[1])]


def method_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """Return (label, adapter with its settings) of each group."""
    return [(group.label, _method(group.runs[0])) for group in comparison.groups]


def _method(run: FinishedRun) -> str:
    adapters = adapters_of(run)
    if not adapters:
        return "no adapter"
    texts: list[str] = []
    for name, adapter in adapters.items():
        options = {k: v for k, v in flat(adapter.get("options") or {}).items() if v is not None}
        words = [str(adapter.get("method") or adapter.get("peft_type"))]
        words += [f"{k}={value_text(v)}" for k, v in options.items()]
        if targets := adapter.get("target_modules"):
            words.append(f"on {value_text(targets)}")
        texts.append((f"{name}: " if len(adapters) > 1 else "") + " ".join(words))
    return "; ".join(texts)


def given_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """Return the notes that the first run's caller made, except those that are shown elsewhere."""
    notes = comparison.runs[0].given
    rest = {name: value for name, value in notes.items() if name not in _SEEN_ELSEWHERE}
    return [(name, value_text(value)) for name, value in flat(rest).items()]


def data_parts(comparison: Comparison) -> dict[str, Any]:
    """Describe the parts of the first run's data, and say if all runs had the same.

    Returns a mapping. "name": of the data set; "parts": for each part its name, number of samples,
    SHA-256 and the samples of each class; "seed": the first run's training seed, by which its parts
    may have been drawn; "same": True if the digests of all runs are equal; "origin": rows (title,
    text) with the source and the licence of the data.
    """
    first = comparison.runs[0]
    first_parts = data_of(first)
    hashes = {part: str(facts.get("sha256", "")) for part, facts in first_parts.items()}
    # equal digests mean equal pictures and labels, in the same order
    all_hashes = [
        {part: str(facts.get("sha256", "")) for part, facts in data_of(run).items()}
        for run in comparison.runs
    ]
    data = first.given.get("data")
    data = data if isinstance(data, Mapping) else {}
    recorded = data.get("parts")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    parts = [
        DataPart(
            PART_NAMES.get(part, part),
            f"{n:,}" if isinstance(n := first_parts[part].get("n"), int) else "not known",
            sha,
            _class_counts_text(recorded.get(part)),
        )
        for part, sha in hashes.items()
    ]
    return {
        "name": set_of(first),
        "parts": parts,
        "seed": first.seed,
        "same": all(run_hashes == hashes for run_hashes in all_hashes),
        "origin": _origin(recorded),
    }


def _class_counts_text(part: Any) -> str:
    """Return the number of samples of each class as text, "" if the record has none."""
    counts = part.get("counts") if isinstance(part, Mapping) else None
    if not isinstance(counts, Mapping):
        return ""
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def _origin(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return rows with the source and the licence of the data, where they are recorded."""
    records = [part for part in parts.values() if isinstance(part, Mapping)]
    rows: list[tuple[str, str]] = []
    for name in ("source", "licence"):
        values = dict.fromkeys(str(part[name]) for part in records if part.get(name))
        if values:
            rows.append((name.capitalize(), "; ".join(values)))
    return rows


def machine_rows(run: FinishedRun) -> list[tuple[str, str]]:
    """Return (name, value) of a run's machine and of the package versions."""
    rows: list[tuple[str, str]] = []
    for section in ("machine", "versions"):
        values = run.record.get(section)
        for name, value in values.items() if isinstance(values, Mapping) else ():
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
    """Return the command line that started a run, "" if it is not known."""
    command = run.given.get("command", run.record.get("command"))
    if isinstance(command, str):
        return command
    if not isinstance(command, Sequence) or not command:
        return ""
    program, *rest = map(str, command)
    # the script by name: its folder is another one elsewhere
    return shlex.join([Path(program).name, *rest])
