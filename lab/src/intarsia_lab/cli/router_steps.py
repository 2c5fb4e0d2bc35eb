"""What `intarsia compare-routers` does: read what was asked, run the cells, write their files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from intarsia.core.locks import alone
from intarsia.core.schema import read
from intarsia.reports.numbers import plural

from ..routing import PICTURES, TEXT, VARIANTS, Contest, Scale, cells, sheets_of, tidy, write
from ..routing.report.findings import RouterSheet


def ask(given: Mapping[str, Any]) -> Contest:
    """The contest that was asked for; what cannot be is found when its cells are."""
    names = _names(given["routers"])
    budget = given["budget"]
    seeds: tuple[int, ...] = read("--seeds", given["seeds"], tuple[int, ...])
    return Contest(
        _names(given["data"]),
        None if names == ["all"] else names,
        seeds,
        ("steps", "flops") if budget == "both" else (budget,),
        given["sees_later"],
    )


def carry(
    contest: Contest, given: Mapping[str, Any], report: Callable[[str], None]
) -> tuple[list[RouterSheet], dict[str, Any]]:
    """Run the cells that are not kept and write the files; the sheets, and all of it as JSON.

    Raises: UnknownName and ConfigError for what cannot be, before a cell runs.
    """
    asked = contest.asked()
    baseline = contest.baseline(given["baseline"])
    folder = given["out"] or Path("runs") / f"routers-{'-'.join(contest.data)}"
    report(f"{plural(len(asked), 'cell')}; tables and page in {folder}")
    with alone(folder):
        rows = cells(
            asked,
            jobs=given["jobs"],
            report=report,
            baseline=VARIANTS[baseline],
            text=_scale(TEXT, given["steps"]),
            pictures=_scale(PICTURES, given["steps"]),
            sees_later=contest.sees_later,
            threads=given["threads"] or 1,
        )
        sheets = sheets_of(rows, baseline)
        written = write(sheets, rows, folder, _command(given))
    return sheets, {"report": str(written[0]), "rows": tidy(sheets)}


def _command(given: Mapping[str, Any]) -> str:
    """What makes the same cells and files again, but for where they lie."""
    words = ["intarsia compare-routers", given["data"], "--routers", given["routers"]]
    words += ["--seeds", given["seeds"], "--budget", given["budget"]]
    for name in ("steps", "baseline"):
        words += [] if given[name] is None else [f"--{name}", str(given[name])]
    return " ".join(words + (["--sees-later"] if given["sees_later"] else []))


def _scale(scale: Scale, steps: int | None) -> Scale:
    return scale if steps is None else dataclasses.replace(scale, steps=steps)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
