"""What a click on the page's map shows of a run: its facts, the command that repeats it, links."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from intarsia.core.errors import IntarsiaError
from intarsia.reports import numbers
from intarsia.reports.wording import first_line
from intarsia.runs import experiment
from intarsia.train.folder import RUN

from .report.records import Done, RunResult

PAGES = ("report.html", "index.html")  # of a run folder; the first that is there is linked
Shown = Mapping[str, Any]
"""text (its seed and score, or why it has none), facts: [name, value] ..., commands: [label,
command] ... that repeat it and make its report, if it has a folder; links: [name, address] ..."""


def panels(runs: Path, out: Path) -> Callable[[RunResult], Shown]:
    """Return a function that describes a run for the report page.

    runs: folder below which the runs lie; out: folder of the page, from which addresses are
    relative.
    """

    def shown(result: RunResult) -> Shown:
        """Return what the page shows of a run: its score or error, facts, commands and links."""
        outcome, place = result.outcome, runs / result.folder
        present = bool(result.folder) and place.is_dir()
        if isinstance(outcome, Done):
            text = numbers.percent(outcome.accuracy, 2)
        else:
            text = f"failed: {first_line(outcome.error)}"
        location = Path(os.path.relpath(place, out)).as_posix()
        words = ["intarsia", "report", location, "--out", f"{location}/{PAGES[0]}"]
        # a run of another machine has no folder here, and nothing to repeat it by
        commands: list[tuple[str, str]] = []
        if present and (repeat := command(place)):
            commands.append(("Repeat it:", repeat))
        if present and (place / RUN).is_file():
            label = "Its curves, mistakes and confusions, from this page's folder:"
            commands.append((label, shlex.join(words)))
        return {
            "text": f"seed {result.seed}: {text}",
            "facts": list(facts(result).items()),
            "commands": commands,
            "links": links(place, location) if present else [],
        }

    return shown


def facts(result: RunResult) -> dict[str, str]:
    """Return the facts on a run that the page lists: name of the fact -> text.

    result: scores and costs of the run, or its error.
    """
    outcome, setup = result.outcome, result.setup
    values: dict[str, str | None] = {}
    if isinstance(outcome, Done):
        balanced, loss, peak = outcome.balanced_accuracy, outcome.loss, outcome.peak_bytes
        tempered = outcome.tempered_loss
        values = {
            "accuracy": numbers.percent(outcome.accuracy, 2),
            "balanced accuracy": None if balanced is None else numbers.percent(balanced, 2),
            "loss": None if loss is None else f"{loss:.4f}",
            "loss after one temperature": None if tempered is None else f"{tempered:.4f}",
            "calibration error": None if outcome.ece is None else f"{outcome.ece:.4f}",
            "trained parameters": f"{outcome.trained:,}",
            "without head": f"{outcome.trained_without_head:,}",
            "training": numbers.seconds(outcome.seconds),
            "peak memory": None if peak is None else numbers.size(peak),
        }
    else:
        values = {"error": outcome.error}
    selection = ", ".join(f"{name} {value}" for name, value in setup.selected.items())
    values |= {
        "epochs": str(setup.epochs),
        "chosen by a search": f"{selection}, of {setup.tried} runs" if selection else None,
    }
    # facts that this run does not have are not listed
    return {name: value for name, value in values.items() if value is not None}


def command(folder: Path) -> str:
    """Return the `intarsia fit` command that repeats a run; "" where its folder does not tell."""
    try:
        return experiment.read(folder).command()
    except IntarsiaError:  # it failed before it began, or its files are gone
        return ""


def links(folder: Path, address: str) -> list[tuple[str, str]]:
    """Return name and address of a run's files that exist.

    folder: of the run; address: of this folder, as seen from the page.
    """
    page = next((name for name in PAGES if (folder / name).is_file()), None)
    names = {page: "report", RUN: RUN, "metrics.jsonl": "metrics.jsonl"}
    present = {file: name for file, name in names.items() if file and (folder / file).is_file()}
    return [(name, quote(f"{address}/{file}")) for file, name in present.items()]
