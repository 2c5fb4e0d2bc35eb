"""What cells say together: pairs by seed, what is not there, names that are wrong, files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from intarsia.core.errors import ConfigError, DataError, UnknownName
from intarsia.reports.sheet import Spread
from intarsia.reports.table import Table
from intarsia_lab.routing import VARIANTS, Contest, sheets_of, tidy, write
from intarsia_lab.routing.report.publish import as_markdown
from intarsia_lab.routing.report.tables import notes, sentence, table_of

from ....refusals import refused

MakeRow = Callable[..., dict[str, Any]]


def _titles(table: Table) -> list[str]:
    return [column.title for column in table.columns]


def test_differences_are_paired_by_seed(make_row: MakeRow) -> None:
    # seeds differ by far more than contenders: only pairs show the difference
    rows = [make_row("topk", s, 3.0 + s) for s in range(3)]
    rows += [make_row("comet", s, 2.9 + s) for s in (2, 1, 0)]
    (sheet,) = sheets_of(rows, "topk")
    base, comet = sheet.contenders
    difference = comet.difference(base)
    assert difference is not None and difference.n == 3 and difference.behind == 3
    assert difference.mean == pytest.approx(-0.1) and difference.spread.deviation == pytest.approx(
        0, abs=1e-9
    )
    assert [row["seed"] for row in comet.rows] == [0, 1, 2]
    assert sheet.best is comet and "lower in 3 of 3 seeds" in sentence(sheet)
    flat = {(row["contender"], row["seed"]): row for row in tidy([sheet])}
    for seed in range(3):
        flat_row = flat["comet", seed]
        assert flat_row["loss_difference"] == pytest.approx(-0.1)
        assert flat_row["loss_ratio"] == pytest.approx((2.9 + seed) / (3 + seed))
        assert flat_row["operations_ratio"] == 1 and flat_row["agreement"] == 0.2


def test_many_differences_are_corrected_for_their_number(make_row: MakeRow) -> None:
    names = ["comet", "hash", "switch", "topp", "dselect"]
    rows = [make_row("topk", s, 3.0) for s in range(3)]
    # comet is far off, hash by a p below .05 alone, the others by chance
    of_seeds = dict.fromkeys(names, (-0.1, 0.1, 0.05)) | {"comet": (-0.500, -0.501, -0.499)}
    of_seeds["hash"] = (-0.07, -0.1, -0.14)
    rows += [make_row(n, s, 3.0 + d) for n in names for s, d in enumerate(of_seeds[n])]
    (sheet,) = sheets_of(rows, "topk")
    (note,) = [line for line in notes(sheet) if "Holm" in line]
    assert "of 5 equal contenders chance alone puts 0.6 below it with every seed" in note
    assert note.endswith("comet differs.") and note in as_markdown([sheet]).replace("\\", "")
    two_rows = [row for row in rows if row["name"] in ("topk", "comet")]
    assert not [line for line in notes(sheets_of(two_rows, "topk")[0]) if "Holm" in line]


def test_a_seed_without_its_pair_is_not_paired(make_row: MakeRow) -> None:
    rows = [make_row("topk", 0, 3.0), make_row("topk", 1, 9.0), make_row("comet", 0, 2.5)]
    (sheet,) = sheets_of(rows)
    difference = sheet.contenders[1].difference(sheet.contenders[0])
    assert difference is not None and difference.spread == Spread(-0.5, None, 1)
    assert "Not with every seed: comet." in notes(sheet)
    (sheet,) = sheets_of([make_row("topk", 0), make_row("comet", 1)])
    assert sheet.contenders[1].difference(sheet.contenders[0]) is None
    assert "not paired" not in as_markdown([sheet]) and "no seed in common" in as_markdown([sheet])


def test_what_a_contender_has_not_is_left_empty(make_row: MakeRow) -> None:
    (sheet,) = sheets_of([make_row("dense", layers=0), make_row("switch", drop=0.25)])
    table = table_of(sheet)
    dense, switch = (dict(zip(_titles(table), row, strict=True)) for row in table.rows)
    for title in ("Load CV", "Active", "Agreement", "Special.", "Dropped, %", "Time, %"):
        assert dense[title].text == "" and switch[title].text
    assert switch["Dropped, %"].text == "25.0"
    assert dense["Contender"].text == "dense" and "Bits/byte" in dense
    assert "Accuracy, %" not in dense
    (pictures,) = sheets_of([make_row(text=False), make_row("comet", text=False)])
    titles = _titles(table_of(pictures))
    assert "Accuracy, %" in titles and "Bits/byte" not in titles and "Dropped, %" not in titles


def test_a_single_contender_has_no_baseline(make_row: MakeRow) -> None:
    (sheet,) = sheets_of([make_row()])
    assert sheet.baseline is None
    assert "Difference" not in _titles(table_of(sheet))
    assert "One seed" in notes(sheet)[0] and "ends with" in sentence(sheet)
    assert tidy([sheet])[0]["loss_ratio"] is None


def test_materials_and_budgets_are_sheets_of_their_own(make_row: MakeRow) -> None:
    rows = [make_row(name, budget=budget, text=text) for text in (True, False)
            for budget in ("steps", "flops") for name in ("topk", "comet")]  # fmt: skip
    titles = [sheet.title for sheet in sheets_of(rows)]
    assert titles == [
        "austen at equal steps", "austen at equal operations",
        "fashion-mnist at equal steps", "fashion-mnist at equal operations",
    ]  # fmt: skip


def test_wrong_rows(make_row: MakeRow) -> None:
    with refused(DataError, what="cells", got=0):
        sheets_of([])
    with refused(DataError, what="cells of 'topk'"):
        sheets_of([make_row(), make_row()])
    with refused(UnknownName, what="unknown baseline", got="'top-k'", near=("topk",)):
        sheets_of([make_row(), make_row("comet")], "top-k")


def test_who_saw_later_tokens_is_said(make_row: MakeRow) -> None:
    (sheet,) = sheets_of([make_row(), make_row("expert_choice", sees_later=True)])
    assert any("a say in expert_choice" in note for note in notes(sheet))


def test_the_files(make_row: MakeRow, tmp_path: Path) -> None:
    rows = [make_row(name, seed) for name in ("topk", "dense|x") for seed in (0, 1)]
    written = write(sheets_of(rows), rows, tmp_path)
    assert [path.name for path in written] == [
        "routers.html", "routers.md", "results.json", "results.csv",
    ]  # fmt: skip
    assert json.loads(written[2].read_text()) == rows
    with written[3].open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 4 and table[0]["loss"] == "3.0" and table[0]["contender"] == "topk"
    text = written[1].read_text()
    assert "dense\\|x" in text and "- **Agreement**" in text


@pytest.mark.parametrize(
    ("contest", "field"),
    [
        (Contest(["austen"], ["topk", "topk"]), "routers"),
        (Contest(["austen"], seeds=()), "seeds"),
        (Contest(["austin"]), "unknown corpus or set of pictures"),
        (Contest(["austen"], ["comett"]), "unknown contender"),
        (Contest(["austen"], budgets=["time"]), "budget"),
    ],
)
def test_wrong_contests(contest: Contest, field: str) -> None:
    with refused(ConfigError, UnknownName, what=field):
        contest.asked()


def test_all_are_those_that_the_data_allow() -> None:
    def names(contest: Contest) -> list[str]:
        return [contender.variant.name for contender in contest.asked()]

    late = [name for name, contender in VARIANTS.items() if contender.sees_later]
    assert late and not set(late) & set(names(Contest(["austen"])))
    assert names(Contest(["fashion-mnist"])) == list(VARIANTS)
    assert names(Contest(["austen"], sees_later=True)) == list(VARIANTS)
    assert Contest(["austen"]).baseline(None) == "topk"
    assert Contest(["austen"], ["recurrent", "comet"]).baseline(None) == "recurrent"
    with pytest.raises(UnknownName):
        Contest(["austen"], ["recurrent"]).baseline("topk")
    assert Contest(["fashion-mnist"]).baseline(late[0]) == late[0]
    with pytest.raises(UnknownName):  # left out on the text
        Contest(["austen", "fashion-mnist"]).baseline(late[0])
