"""Which claims to run, and what becomes of their results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..claims import claim, claims, run_claim, write_page
from ..claims.ledger import save
from ..core import Claim
from ..core.errors import ConfigError

Report = Callable[[str], None]


def listed() -> list[dict[str, Any]]:
    """Every claim, for JSON."""
    return [
        {
            "name": c.key, "sentence": c.sentence, "baseline": c.baseline,
            "bar": f"{c.sense} {c.bar:g}", "minutes": c.minutes, "needs": c.needs,
        }
        for c in claims()
    ]  # fmt: skip


def chosen(name: str | None, *, every: bool, long: bool, report: Report) -> list[Claim]:
    """The claim of a name, or all that this machine can run in the time that was granted.

    Raises: UnknownName; ConfigError for a name together with `every`.
    """
    if every and name is not None:
        raise ConfigError(
            "--all", got=f"the name {name!r} with it", want="one of them", fix="Leave one out."
        )
    if name is not None:
        return [claim(name)]
    can = (
        {"cpu"} | ({"gpu"} if torch.cuda.is_available() else set()) | ({"long"} if long else set())
    )
    for left in (c for c in claims() if c.needs not in can):
        report(f"{left.key} is left out: it is marked {left.needs!r}.")
    return [c for c in claims() if c.needs in can]


def judge(
    found: Claim, *, seeds: Sequence[int] | None, page: Path, report: Report
) -> dict[str, Any]:
    """Run a claim, keep its record beside the page, and write the page anew.

    Raises: ConfigError, before it is run, for a page that is no file.
    """
    if not page.suffix:
        raise ConfigError(
            "--page", got=page, want="a file, beside which the records lie",
            fix=f"For example: {page}.md",
        )  # fmt: skip
    report(f"Claim {found.key}: about {found.minutes:g} minutes.")
    record = run_claim(found, seeds=seeds, report=report)
    folder = page.with_suffix("")
    save(record, folder)
    write_page(folder, page)
    return dataclasses.asdict(record)
