"""The rate of each method, and how it was found, in the table, in words, in JSON and drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from intarsia.reports.runs import comparison_of, gather, json_rows, markdown_table, rates
from intarsia.reports.runs.figures import looks
from intarsia.reports.runs.page import report_of
from intarsia.reports.runs.sentences import notices, sentences

Make = Callable[..., Path]
SEARCH: dict[str, Any] = {
    "rate": 3e-3,
    "rates": [1e-3, 3e-3, 1e-2],
    "scores": [0.5, 0.625, None],
    "measure": "accuracy",
    "draws": 2,
    "samples": 60,
    "limit": False,
}


@pytest.fixture
def searched(make_run: Make) -> Any:
    """Two methods with a search, at two seeds each; the rate of the second is at the limit."""
    folders: list[Path] = []
    for label, rate, limit in (("plain adapter", 3e-3, False), ("mosa", 1e-3, True)):
        search = SEARCH | {"rate": rate, "limit": limit}
        change = {"training.lr": rate, "record.search": search}
        folders += [make_run(f"{label}-{n}", label=label, seed=n, change=change) for n in (0, 1)]
    return gather(folders)


def test_rates_stand_in_the_table_in_json_and_in_words(searched: Any) -> None:
    comparison = comparison_of(searched)
    table = markdown_table(comparison)
    assert "0.003" in table and "0.001 (limit)" in table
    rows = json_rows(comparison)
    assert [row["lr"] for row in rows] == [3e-3, 1e-3]
    assert rows[0]["search"] == SEARCH
    text = " ".join(sentences(comparison))
    assert "tried 3 learning rates (0.001, 0.003, 0.01)" in text
    assert "highest accuracy on 2 draws of 60 validation pictures, averaged with its" in text
    assert "A better rate of MoSA may lie beyond the limit" in text
    assert "Each seed draws its own test part" in text  # as these runs do
    assert not any("share the learning rate" in notice for notice in notices(comparison))


def test_searches_of_two_folders_are_described_each(make_run: Make) -> None:
    search = SEARCH | {"rates": [1e-4, 1e-3], "scores": [0.1, 0.2], "rate": 1e-3}
    folders = [
        make_run("a", label="mosa", change={"record.search": SEARCH}),
        make_run("b", label="plain adapter", change={"record.search": search}),
    ]
    text = " ".join(rates.described(comparison_of(gather(folders))))
    assert "MoSA tried 3 learning rates" in text and "Plain adapter tried 2 learning" in text


def test_the_figure_has_a_line_for_each_method_and_marks_its_rate(searched: Any) -> None:
    comparison = comparison_of(searched)
    lines = rates.series_of(comparison, looks(comparison))
    assert [list(line.x) for line in lines] == [[1e-3, 3e-3]] * 2  # one rate failed
    assert list(lines[0].y) == [50.0, 62.5]
    assert [list(line.sizes) for line in lines] == [[7, 13], [13, 7]]
    report = report_of(comparison)
    assert "rates" in report.figures() and "tried 3 learning rates" in " ".join(report.sentences)


def test_a_rate_that_all_share_is_said(make_run: Make) -> None:
    folders = [make_run(label, label=label) for label in ("plain adapter", "mosa")]
    comparison = comparison_of(gather(folders))
    assert any("share the learning rate 0.001" in notice for notice in notices(comparison))
    assert rates.described(comparison) == []
    assert rates.against_rates(comparison, looks(comparison)) is None
    assert "rates" not in report_of(comparison).figures()
    linear = make_run("linear", label="linear probe", change={"training.lr": 0.5})
    assert rates.shared(comparison_of(gather([*folders, linear]))) is None
    assert rates.shared(comparison_of(gather(folders[:1]))) is None  # nobody to share it with


def test_a_text_is_chosen_by_perplexity_and_a_given_rate_is_said(make_run: Make) -> None:
    search = SEARCH | {"measure": "perplexity", "scores": [0.05, 0.1, 0.02], "draws": 1}
    change = {"record.search": search, "training.lr": 3e-3}
    folders = [make_run("a", label="mosa", change=change), make_run("b", label="plain adapter")]
    comparison = comparison_of(gather(folders))
    text = " ".join(rates.described(comparison))
    assert "lowest perplexity on 60 validation" in text
    assert "The rate of plain adapter was given." in text
    (line,) = rates.series_of(comparison, looks(comparison))
    assert list(line.y) == pytest.approx([20, 10, 50])
