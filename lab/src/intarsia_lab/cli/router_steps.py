"""What `intarsia compare-routers` does: read the options, run the cells, write their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intarsia.core.locks import alone
from intarsia.core.schema import read
from intarsia.reports.numbers import plural

from ..routing import PICTURES, TEXT, Contest, Scale, cells, sheets_of, tidy, write
from ..routing.report.findings import RouterSheet
from ..routing.table import chosen


def ask(arguments: Mapping[str, Any]) -> Contest:
    """Return the comparison of routers that the command's arguments ask for.

    arguments: the options by name. Unknown names are refused later, by `carry`, which runs it.
    """
    names = _names(arguments["routers"])
    budget = arguments["budget"]
    seeds: tuple[int, ...] = read("--seeds", arguments["seeds"], tuple[int, ...])
    return Contest(
        _names(arguments["data"]),
        None if names == ["all"] else names,
        seeds,
        ("steps", "flops") if budget == "both" else (budget,),
        arguments["sees_later"],
    )


def carry(
    contest: Contest, arguments: Mapping[str, Any], report: Callable[[str], None]
) -> tuple[list[RouterSheet], dict[str, Any]]:
    """Run what has no stored result, write tables and page; return the sheets, and both as JSON.

    contest: the data, routers, seeds and budgets; arguments: of the command line; report: receives
    progress lines.

    Raises: UnknownName for an unknown name and ConfigError for wrong options, before any run.
    """
    # Raises before any run if a name does not exist.
    trials = contest.asked()
    baseline = contest.baseline(arguments["baseline"])
    folder = arguments["out"] or Path("runs") / f"routers-{'-'.join(contest.data)}"
    report(f"{plural(len(trials), 'cell')}; tables and page in {folder}")
    # Two commands in one folder would write over each other's tables.
    with alone(folder):
        # Runs that an earlier command finished are read, not repeated.
        rows = cells(
            trials,
            jobs=arguments["jobs"],
            report=report,
            baseline=chosen([baseline])[0],
            text=_scale(TEXT, arguments["steps"]),
            pictures=_scale(PICTURES, arguments["steps"]),
            sees_later=contest.sees_later,
            threads=arguments["threads"] or 1,
        )
        sheets = sheets_of(rows, baseline)
        written = write(sheets, rows, folder, _command(arguments))
    return sheets, {"report": str(written[0]), "rows": tidy(sheets)}


def _command(arguments: Mapping[str, Any]) -> str:
    """Return the command line that repeats these runs and files, in any folder."""
    words = ["intarsia compare-routers", arguments["data"], "--routers", arguments["routers"]]
    words += ["--seeds", arguments["seeds"], "--budget", arguments["budget"]]
    for name in ("steps", "baseline"):
        # Options that were left out stay left out, so that their defaults apply.
        words += [] if arguments[name] is None else [f"--{name}", str(arguments[name])]
    # Jobs and threads are left out: they change no result.
    return " ".join(words + (["--sees-later"] if arguments["sees_later"] else []))


def _scale(scale: Scale, steps: int | None) -> Scale:
    """Return the sizes and steps of a training, with another number of steps if one was given."""
    return scale if steps is None else dataclasses.replace(scale, steps=steps)


def _names(text: str) -> list[str]:
    """Return the names in a text with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
