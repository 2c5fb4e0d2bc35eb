"""What a page calls the best of a headline's table is the best of all its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from intarsia_lab.claims import claims, ledger
from intarsia_lab.claims.verdicts import design_of
from intarsia_lab.kit import Design, Missing, TableArm, numbers
from intarsia_lab.pages.best_rows import best_line, best_of

RECORDS = Path(__file__).parents[3] / "docs" / "claims"
HEADLINES = [study for study in claims() if design_of(study)]


def of_one_place(study: Any) -> bool:
    """Return whether a table has one row for each arm, in one column: the plainest of tables."""
    rows = ledger.read(RECORDS / f"{study.key}.json").table
    design = design_of(study)
    assert design is not None
    arms = [tuple(str(row.get(key)) for key in design.ours.rows) for row in rows]
    rivals = (design.trivial, design.strong)
    alike = all(a.columns == design.ours.columns for a in rivals if isinstance(a, TableArm))
    return bool(design.ours.rows) and alike and len(set(arms)) == len(arms)


PLAIN = [study for study in HEADLINES if of_one_place(study)]


@pytest.mark.parametrize("study", PLAIN, ids=[study.key for study in PLAIN])
def test_no_row_of_its_table_is_better_than_the_best(study: Any) -> None:
    design = design_of(study)
    assert design is not None
    rows = ledger.read(RECORDS / f"{study.key}.json").table
    bests = best_of(design, rows)
    # the best of all places together is the best of each column
    best = max if design.higher else min
    for column in design.ours.columns:
        places = [b.figure for b in bests if len(design.ours.columns) == 1 or column in b.place]
        assert best(places) == best(numbers(rows, column)), column
        for winner in bests:
            # each of its names stands in a row with that figure
            assert winner.figure in [x for c in design.ours.columns for x in numbers(rows, c)]


def test_the_plainest_tables_are_most_of_them() -> None:
    assert len(PLAIN) >= 20


def test_rows_that_no_design_names_count_and_conditions_do_not_mix() -> None:
    ours, cheap = (TableArm(n, ("loss",), {"arm": n}) for n in ("ours", "cheap"))
    design = Design(ours, cheap, Missing("x"), Missing("y"), "seeds", higher=False)
    rows = [
        {"size": size, "seed": seed, "arm": arm, "loss": f"{loss + 0.01 * seed} ± 0.1"}
        for size, losses in (("8", (0.9, 1.6, 0.7)), ("64", (0.6, 0.9, 0.8)))
        for arm, loss in zip(("ours", "cheap", "unnamed"), losses, strict=True)
        for seed in (0, 1)
    ]
    first, second = best_of(design, rows)
    assert (first.place, first.names, first.rank, first.arms) == ("size 8", ("unnamed",), 2, 3)
    assert first.figure == pytest.approx(0.705) and first.own_figure == pytest.approx(0.905)
    assert (second.place, second.names, second.rank) == ("size 64", ("ours",), 1)


def test_a_check_and_a_table_of_one_arm_have_no_best() -> None:
    by_key = {study.key: study for study in claims()}
    for key in ("sat", "tutel"):
        assert best_line(by_key[key], ledger.read(RECORDS / f"{key}.json").table) == []
