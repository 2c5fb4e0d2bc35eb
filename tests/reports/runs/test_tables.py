"""One table, four forms; numbers that people can read."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from intarsia.reports import numbers
from intarsia.reports.runs import (
    comparison_of,
    gather,
    json_rows,
    markdown_table,
    read_run,
)
from intarsia.reports.runs.tables import table_of
from intarsia.reports.sheet import Spread
from intarsia.reports.terminal import Terminal

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (numbers.percent(0.80714), "80.7 %"),
        (numbers.accuracy(Spread(0.80714, 0.0044, 3)), "80.7 ± 0.4 %"),
        (numbers.accuracy(Spread(0.80714, None, 1)), "80.7 %"),
        (numbers.points(Spread(0.021, 0.006, 3)), "+2.1 ± 0.6"),
        (numbers.points(Spread(-0.021, None, 1)), "\N{MINUS SIGN}2.1"),
        (numbers.signed(-0.04), "0.0"),
        (numbers.count(0), "0"),
        (numbers.count(999), "999"),
        (numbers.count(1_000), "1.00 k"),
        (numbers.count(48_442), "48.4 k"),
        (numbers.count(999_499), "999 k"),
        (numbers.count(999_500), "1.00 M"),
        (numbers.count(22_058_116), "22.1 M"),
        (numbers.count(1_234_567_890), "1.23 G"),
        (numbers.seconds(4.21), "4.2 s"),
        (numbers.seconds(9.96), "10.0 s"),
        (numbers.seconds(38.4), "38 s"),
        (numbers.seconds(59.6), "1 min 00 s"),
        (numbers.seconds(312), "5 min 12 s"),
        (numbers.seconds(3599.7), "1 h 00 min"),
        (numbers.seconds(7400), "2 h 03 min"),
        (numbers.size(900), "1 kB"),
        (numbers.size(980_000_000), "980 MB"),
        (numbers.size(999_600_000), "1.00 GB"),
        (numbers.size(1_320_000_000), "1.32 GB"),
        (numbers.ratio(1.049), "1.05×"),
        (numbers.plural(1, "picture"), "1 picture"),
        (numbers.plural(1000, "class", "classes"), "1,000 classes"),
    ],
)
def test_numbers(number: str, text: str) -> None:
    assert number == text


@given(st.integers(1, 10**15))
def test_counts_keep_three_digits(n: int) -> None:
    number, _, unit = numbers.count(n).partition(" ")
    value = float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}[unit]
    assert math.isclose(value, n, rel_tol=5.1e-3)
    assert len(number.replace(".", "")) <= 3 or unit == "T"


@given(st.floats(0, 1e6))
def test_seconds_never_show_sixty(value: float) -> None:
    assert "60" not in numbers.seconds(value).split()


def printed(comparison: object, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(comparison)
    return out.getvalue()


def test_all_forms_have_the_same_numbers(runs: Path) -> None:
    comparison = comparison_of(gather([runs]))
    table = table_of(comparison)
    terminal, text = printed(Terminal(table_of(comparison))), markdown_table(comparison)
    for row in table.rows:
        for cell in row:
            assert cell.text in terminal and cell.text in text
    assert [row["method"] for row in json_rows(comparison)] == [row[0].text for row in table.rows]
    assert json.loads(json.dumps(json_rows(comparison))) == json_rows(comparison)


def test_rows_and_columns_fit(runs: Path) -> None:
    table = table_of(comparison_of(gather([runs])))
    assert all(len(row) == len(table.columns) for row in table.rows)
    titles = [column.title for column in table.columns]
    assert titles == [
        "Method", "Accuracy", "Difference", "Balanced", "Loss", "Adapter parameters",
        "With head",
        "Rate",
        "Time",
        "Peak memory",
    ]  # fmt: skip
    assert (table.best, table.baseline) == (2, 0)
    assert [row[2].text for row in table.rows][0] == "baseline"
    assert table.rows[2][2].remark.startswith("[+") and "ahead in 3" in table.rows[2][2].full


def test_a_narrow_terminal_leaves_spare_columns_out_and_names_them(runs: Path) -> None:
    table = Terminal(table_of(comparison_of(gather([runs]))))
    narrow, wide = " ".join(printed(table, width=100).split()), printed(table)
    assert "With head" in wide and "In the report" not in wide
    assert "…" not in narrow and "Difference" in narrow
    assert "…" not in printed(table, width=50)
    rest = narrow.partition("In the report also: ")[2]
    assert "With head" in rest and "With head" not in narrow.partition("In the report")[0]


def test_a_single_run_has_no_difference(make_run: Make) -> None:
    comparison = comparison_of([read_run(make_run())])
    assert "Difference" not in markdown_table(comparison)
    assert "±" not in markdown_table(comparison)
    assert json_rows(comparison)[0]["difference"] is None


def test_memory_that_was_not_measured_is_no_column(make_run: Make) -> None:
    comparison = comparison_of([read_run(make_run(change={"results.peak_bytes": None}))])
    assert "memory" not in markdown_table(comparison)


def test_markdown_is_a_table_whatever_the_label_says(make_run: Make) -> None:
    label = "a | b\n| c <b>`[x](y)*"
    text = markdown_table(comparison_of([read_run(make_run(change={"record.label": label}))]))
    header, rule, row, blank, _caption = text.rstrip("\n").split("\n")
    assert len({len(line) for line in (header, rule, row)}) == 1
    assert not blank and header.count("|") == row.replace("\\|", "").count("|")
    assert "\\<b\\>" in row and "\\[x\\]" in row


def test_markup_in_a_label_is_text_in_the_terminal(make_run: Make) -> None:
    run = read_run(make_run(change={"record.label": "[red]x[/red]"}))
    assert "[red]x[/red]" in printed(Terminal(table_of(comparison_of([run]))))
