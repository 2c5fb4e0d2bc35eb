"""Which row of a headline's table is the best one, in each of its columns and conditions.

A table has its conditions first, then what its arms are called, then figures: all rows with a
figure count, also those that no design names.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..claims.verdicts import design_of
from ..kit import Design, Study, TableArm, numbers

Rows = Sequence[Mapping[str, Any]]
SAMPLE = "seed"  # a column whose rows are averaged
MOST = 6  # comparisons that are printed one by one


class Best(NamedTuple):
    """The best figure of a column under a condition, who has it, and the claim's own arm's.

    names: of all arms with that figure; rank: of the own arm among the arms; not_compared: names of
    arms with fewer or more figures there than it has.
    """

    place: str
    names: tuple[str, ...]
    figure: float
    own_figure: float
    rank: int
    arms: int
    not_compared: tuple[str, ...] = ()


def best_line(study: Study, rows: Rows) -> list[str]:
    """Return who is the best in a headline's table, as the lines of a list.

    rows: of its table. None for a check, and for a table with one arm.
    """
    design = design_of(study)
    places = [] if design is None else best_of(design, rows)
    if design is None or not places:
        return []
    parts = [_said(best, alone=len(places) == 1) for best in places[:MOST]]
    if len(places) > MOST:
        leads = sum(best.rank == 1 for best in places)
        parts = [f"its own arm in {leads} of {len(places)} columns and conditions"]
    sense = "higher" if design.higher else "lower"
    excluded = sorted({name for best in places for name in best.not_compared})
    missing = f" Not compared, at other settings: {', '.join(excluded)}." if excluded else ""
    columns = " · ".join(dict.fromkeys(c for arm in _arms(design) for c in arm.columns))
    return [f"- **Best of its table** ({columns}; {sense} is better): {'; '.join(parts)}.{missing}"]


def best_of(design: Design, rows: Rows) -> list[Best]:
    """Return the best arm of a table for each condition and column; none for fewer than two arms.

    design: has the columns and the sense; rows: of the table.
    """
    arms = [arm for arm in _arms(design) if _figures(rows, arm.columns, arm.rows)]
    if design.ours not in arms:
        return []
    # arms that are columns of their own stand in the same rows
    if len({arm.columns for arm in arms}) > 1 or not design.ours.rows:
        figures = {arm.name: _figures(rows, arm.columns, arm.rows) for arm in arms}
        return _best(design, "", figures, design.ours.name)
    # what stands left of the arms' names is a condition, and seeds are averaged
    keys = tuple(design.ours.rows)
    before = [*rows[0]][: min([*rows[0]].index(key) for key in keys)]
    conditions = [name for name in before if name != SAMPLE]
    ours = _name(design.ours.rows, keys)
    places: list[Best] = []
    telling = {c for c in conditions if len({str(row.get(c, "")) for row in rows}) > 1}
    # each condition has a best of its own: their means would hide a loss in one of them
    for values in dict.fromkeys(tuple(str(row.get(c, "")) for c in conditions) for row in rows):
        condition = dict(zip(conditions, values, strict=True))
        mine = [row for row in rows if _has(row, condition)]
        for column in design.ours.columns:
            figures = {
                _name(row, keys): _figures(mine, (column,), {k: str(row.get(k)) for k in keys})
                for row in mine
            }
            place = [f"{c} {v}" for c, v in condition.items() if c in telling]
            place += [column] if len(design.ours.columns) > 1 else []
            places += _best(design, ", ".join(place), figures, ours)
    return places


def _best(
    design: Design, place: str, figures: Mapping[str, Sequence[float]], ours: str
) -> list[Best]:
    """Return the best of several arms as a list of one; none where there is nothing to compare."""
    # the mean of other settings, such as more rates, is no rival's
    count = len(figures.get(ours, ()))
    means = {name: statistics.mean(v) for name, v in figures.items() if v and len(v) == count}
    if len(means) < 2:
        return []
    best = (max if design.higher else min)(means.values())
    names = tuple(name for name, value in means.items() if value == best)
    sign = 1 if design.higher else -1
    rank = 1 + sum(sign * (value - means[ours]) > 0 for value in means.values())
    excluded = tuple(name for name, v in figures.items() if v and len(v) != count)
    return [Best(place, names, best, means[ours], rank, len(means), excluded)]


def _said(best: Best, *, alone: bool) -> str:
    """Return a comparison in words.  alone: it is the only one, without a place."""
    place = f"{best.place}: " if best.place and not alone else ""
    if best.rank == 1:
        equals = len(best.names) - 1
        tied = f", and {equals} more as good" if equals else ""
        return f"{place}its own arm, first of {best.arms}, {best.own_figure:.4g}{tied}"
    names = ", ".join(f"*{name}*" for name in best.names)
    return (
        f"{place}{names}, {best.figure:.4g} (its own arm, number {best.rank} of {best.arms}: "
        f"{best.own_figure:.4g})"
    )


def _arms(design: Design) -> list[TableArm]:
    """Return the arms that a design declares."""
    return [a for a in (design.ours, design.trivial, design.strong) if isinstance(a, TableArm)]


def _figures(rows: Rows, columns: Sequence[str], texts: Mapping[str, str]) -> list[float]:
    """Return the figures of some columns in the rows with certain texts; none if there are none."""
    values: list[float] = []
    for column in columns:
        try:
            values += numbers(rows, column, texts)
        except LookupError:
            continue
    return values


def _has(row: Mapping[str, Any], texts: Mapping[str, str]) -> bool:
    """Return whether a row has certain texts."""
    return all(str(row.get(name, "")) == text for name, text in texts.items())


def _name(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return what a row's arm is called: its texts in the columns that tell arms apart."""
    return ", ".join(dict.fromkeys(str(row.get(key)) for key in keys))
