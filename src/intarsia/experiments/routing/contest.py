"""Cells of many contenders, as they are asked for by name, and the files that tell of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import ConfigError, UnknownName
from ...data import corpora, sets
from ...report import shell
from ...report.summary import capital
from ...report.tables import escape, markdown
from .asked import BUDGETS, Asked
from .findings import Sheet, tidy
from .materials import is_text
from .page import render
from .table import BASELINE, VARIANTS, chosen
from .tables import sentence, table_of


class Contest(NamedTuple):
    """Who, on which materials, from which seeds, at which budgets; routers: None = all there are.

    sees_later: acknowledges contenders that see later tokens of a text, and with None lets them in.
    """

    data: Sequence[str]
    routers: Sequence[str] | None = None
    seeds: Sequence[int] = (0,)
    budgets: Sequence[str] = ("steps",)
    sees_later: bool = False

    def asked(self) -> list[Asked]:
        """The cells.

        Raises: UnknownName for a material or contender that is not there; ConfigError for an
        unknown budget, or what is named twice or not at all.
        """
        routers = ("all",) if self.routers is None else self.routers
        for what, named in (("data", self.data), ("seeds", self.seeds), ("budgets", self.budgets),
                            ("routers", routers)):  # fmt: skip
            if not named or len(set(named)) < len(named):
                raise ConfigError(
                    what, got=", ".join(map(str, named)) or "nothing",
                    want="each once, at least one", fix="For example: 0,1,2, or top-k,switch.",
                )  # fmt: skip
        for budget in self.budgets:
            if budget not in BUDGETS:
                raise ConfigError(
                    "budget", got=repr(budget), want=f"one of {(*BUDGETS, 'both')}", fix="Pick one."
                )
        known = (*corpora.names(), *sets.names())
        for name in self.data:
            if name not in known:
                raise UnknownName("corpus or set of pictures", name, known)
        return [
            Asked(variant, data, seed, budget)
            for data in self.data
            for budget in self.budgets
            for variant in chosen(self._all(data) if self.routers is None else self.routers)
            for seed in self.seeds
        ]

    def _all(self, data: str) -> list[str]:
        """All but those that would see later tokens of a text, unless that is acknowledged."""
        every = self.sees_later or not is_text(data)
        return [name for name, one in VARIANTS.items() if every or not one.sees_later]

    def baseline(self, given: str | None) -> str:
        """The one that was named, else "top-k" where it is among them, else the first.

        Raises: UnknownName for one that is not among them, for each of the data.
        """
        allowed = [self._all(data) for data in self.data] if self.routers is None else []
        names = [one for one in self.routers or VARIANTS if all(one in some for some in allowed)]
        if given is None:
            return BASELINE if BASELINE in names else names[0]
        if given not in names:
            raise UnknownName("baseline", given, names)
        return given


def write(
    sheets: Sequence[Sheet], rows: Sequence[dict[str, Any]], out: Path | str, command: str = ""
) -> list[Path]:
    """Write routers.html, routers.md, results.json and results.csv; returns their paths.

    rows: the results as `cells` gave them, for results.json; results.csv has a flat row for each.
    command: what makes them again, for routers.md.
    Raises: MissingExtra without plotly or jinja2; TrainingError when a file cannot be written.
    """
    out = Path(out)
    return [
        shell.save(render(sheets), out / "routers.html"),
        shell.save(as_markdown(sheets, command), out / "routers.md"),
        shell.save(json.dumps(list(rows), indent=1, sort_keys=True) + "\n", out / "results.json"),
        shell.save(_csv(tidy(sheets)), out / "results.csv"),
    ]


def as_markdown(sheets: Sequence[Sheet], command: str = "") -> str:
    """All tables, each below its result in words, and once what the columns mean."""
    parts = ["# Routers beside each other\n"]
    if command:
        parts.append(f"By intarsia {version('intarsia')}: `{command}`\n")
    for sheet in sheets:
        parts.append(f"## {escape(capital(sheet.title))}\n\n{escape(sentence(sheet))}\n")
        parts.append(markdown(table_of(sheet)))
    columns = {c.title: c.meaning for sheet in sheets for c in table_of(sheet).columns}
    meanings = [f"- **{escape(title)}**: {escape(said)}." for title, said in columns.items()]
    parts.append("\n".join(["## The columns", "", *meanings, ""]))
    return "\n".join(parts)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
