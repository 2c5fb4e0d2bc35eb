"""What cells say together: contenders by seed, held against a baseline, on each data and budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from intarsia.core.errors import DataError, UnknownName
from intarsia.reports.sheet import BySeed, Differences

Row = Mapping[str, Any]
"""A result of `cells`."""


def _of_layers(name: str) -> Callable[[Row], float | None]:
    """Return a function that averages a measure of layers over a run's layers."""

    def mean(row: Row) -> float | None:
        return fmean(layer[name] for layer in row["layers"]) if row["layers"] else None

    return mean


def _specialisation(row: Row) -> float | None:
    values = [layer["specialisation"]["normalised"] for layer in row["layers"]]
    return fmean(values) if values else None


def _agreement(row: Row) -> float | None:
    values = [pair["normalised"] for pair in row["agreement"]]
    return fmean(values) if values else None


# None where a contender has no such thing: a dense model has no load
VALUES: dict[str, Callable[[Row], float | None]] = {
    "steps": lambda row: row["steps"],
    "loss": lambda row: row["loss"],
    "accuracy": lambda row: row["accuracy"],
    "bits_per_byte": lambda row: row.get("bits_per_byte"),
    "swapped_loss": lambda row: row.get("swapped_loss"),
    "load_cv": _of_layers("load_cv"),
    "gate_entropy": _of_layers("gate_entropy"),
    "active": _of_layers("active"),
    "dropped": _of_layers("dropped"),
    "agreement": _agreement,
    "specialisation": _specialisation,
    "parameters": lambda row: row["parameters"]["total"],
    "router_parameters": lambda row: row["parameters"]["routers"],
    "expert_parameters": lambda row: row["parameters"]["experts"],
    "operations": lambda row: row["flops"]["total"],
    "router_time": lambda row: row["router_time"] if row["layers"] else None,
    "seconds": lambda row: row["seconds"],
    "cpu_seconds": lambda row: row["cpu_seconds"],
}
"""Of one cell; of its layers, or of its pairs of consecutive layers, the mean."""


@dataclass(frozen=True, eq=False)
class RouterResults(BySeed):
    """Cells that differ in the seed only, by seed."""

    name: str
    rows: tuple[Row, ...]

    def by_seed(self, name: str) -> dict[int, float]:
        """Return seed -> value, for the runs that have it.  name: of VALUES."""
        values = {row["seed"]: VALUES[name](row) for row in self.rows}
        return {seed: value for seed, value in values.items() if value is not None}

    def difference(self, base: RouterResults) -> Differences | None:
        """Return the test loss minus another router's, by seed; None without a shared seed."""
        return self.minus(base, "loss")


@dataclass(frozen=True, eq=False)
class RouterSheet:
    """Contenders on one material at one budget; baseline: None for a single one."""

    data: str
    budget: str
    contenders: tuple[RouterResults, ...]
    baseline: RouterResults | None

    @property
    def text(self) -> bool:
        """True for a corpus, False for a set of pictures."""
        return "bits_per_byte" in self.contenders[0].rows[0]

    @property
    def best(self) -> RouterResults:
        """The contender of the lowest mean test loss."""
        return min(self.contenders, key=mean_loss)

    @property
    def seeds(self) -> list[int]:
        """The seeds that occur, in order."""
        return sorted({row["seed"] for contender in self.contenders for row in contender.rows})

    @property
    def title(self) -> str:
        """The title, as in "austen at equal steps"."""
        return f"{self.data} at equal {WORDS[self.budget]}"


WORDS = {"steps": "steps", "flops": "operations"}


def mean_loss(contender: RouterResults) -> float:
    """Return a router's test loss, mean over seeds."""
    return fmean(contender.by_seed("loss").values())


def sheets_of(rows: Iterable[Row], baseline: str | None = None) -> list[RouterSheet]:
    """Return a sheet of results for each data set and budget, in the order of the runs.

    rows: results of runs; baseline: name of the router that the others are compared with, None =
      the first.
    Raises: DataError for no rows, or two of one seed; UnknownName for an unknown baseline.
    """
    grouped: dict[tuple[str, str], dict[str, dict[int, Row]]] = {}
    for row in rows:
        # data and budget -> router -> seed -> run
        by_name = grouped.setdefault((row["data"], row["budget"]), {}).setdefault(row["name"], {})
        if by_name.setdefault(row["seed"], row) is not row:
            subject, fix = (
                f"cells of {row['name']!r}",
                "Leave one out: a repeat is no second sample.",
            )
            raise DataError(
                subject, got=f"seed {row['seed']} twice", want="each seed once", fix=fix
            )
    if not grouped:
        raise DataError("cells", got=0, want="at least 1", fix="Name a contender.")
    # all routers, in the order of the runs
    names = list(dict.fromkeys(name for by_name in grouped.values() for name in by_name))
    if baseline is not None and baseline not in names:
        raise UnknownName("baseline", baseline, names)
    return [_sheet(data, budget, by_name, baseline) for (data, budget), by_name in grouped.items()]


def _sheet(
    data: str, budget: str, by_name: Mapping[str, Mapping[int, Row]], baseline: str | None
) -> RouterSheet:
    """Build the sheet of one data set and budget."""
    contenders = tuple(
        RouterResults(name, tuple(by_seed[seed] for seed in sorted(by_seed)))
        for name, by_seed in by_name.items()
    )
    # a router that was not run on these data cannot be their baseline
    base = next(
        (contender for contender in contenders if contender.name == baseline), contenders[0]
    )
    return RouterSheet(data, budget, contenders, base if len(contenders) > 1 else None)


def tidy(sheets: Sequence[RouterSheet]) -> list[dict[str, Any]]:
    """Return a flat row for each run: settings, VALUES, and differences to the baseline's run."""
    # sheet by sheet, router by router, seed by seed
    return [
        _flat(sheet, contender, row)
        for sheet in sheets
        for contender in sheet.contenders
        for row in contender.rows
    ]


def _flat(sheet: RouterSheet, contender: RouterResults, row: Row) -> dict[str, Any]:
    """Return a run as columns, with its differences to the baseline's run of the same seed."""
    seed, base = row["seed"], sheet.baseline
    # paired by seed: both had the same data in the same order
    theirs = next((r for r in base.rows if r["seed"] == seed), None) if base else None
    return {
        "data": sheet.data,
        "budget": sheet.budget,
        "contender": contender.name,
        "seed": seed,
        "sees_later": row["sees_later"],
        **{name: value(row) for name, value in VALUES.items()},
        "baseline": base.name if base else None,
        "loss_difference": row["loss"] - theirs["loss"] if theirs else None,
        "loss_ratio": row["loss"] / theirs["loss"] if theirs else None,
        "operations_ratio": row["flops"]["total"] / theirs["flops"]["total"] if theirs else None,
    }
