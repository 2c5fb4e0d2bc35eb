"""A report is data; each renderer says all of it, and the drawings keep their laws."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from intarsia.reports import charts, heat_maps
from intarsia.reports.latex import latex_report
from intarsia.reports.looks import Look
from intarsia.reports.markdown import markdown, markdown_report
from intarsia.reports.page import html, width_class
from intarsia.reports.report import (
    Commands,
    Container,
    Facts,
    Figure,
    Listing,
    Note,
    PageControl,
    Panels,
    Report,
    Section,
)
from intarsia.reports.table import Column, Entry, Table, plain
from intarsia.reports.terminal import summary

HOSTILE = "<script>alert(1)</script> & {{ 7 * 7 }} \\ | $x_1$"
FINITE = st.floats(-1e12, 1e12, allow_subnormal=False)


def report_with(text: str) -> Report:
    """A report that has `text` in every place where a text can stand."""
    series = charts.Series(text, [0, 1], [1, 2], Look(1, 0), [text, text], when={"group": 0})
    drawing = charts.Chart([series], charts.Axis(text), charts.Axis(text))
    blocks = (
        Table(text, (Column(text, text), Column("n")), ((Entry(text, text, text), Entry("1")),)),
        Note(text),
        Figure("one", text, drawing, text, text, scale=(text, text)),
        Facts(((text, text),)),
        Listing((text,)),
        Commands((text,)),
        PageControl("group", text, ((0, text),), "checkbox"),
        Panels("one", text, ((text, ({"text": text, "facts": [], "links": []},)),)),
        Container((Note(text),), text, "fold"),
    )
    return Report(text, (text,), (Section(text, blocks),), (text,), text)


def test_text_is_text_in_a_page() -> None:
    source = html(report_with(HOSTILE))
    assert "<script>alert" not in source and "49" not in re.findall("<title>.*</title>", source)[0]
    assert source.count("<script>") == 1
    assert source.count("&lt;script&gt;alert(1)") > 20


@pytest.mark.parametrize("render", [markdown_report, latex_report])
def test_other_forms_have_sentences_notices_and_tables(render: Any) -> None:
    table = plain("Caption.", ["Method", "Score"], [["lora", "81.2"]])
    inside = Container((table, Note("a note")), "Inside")
    report = Report("Title", ("It won.",), (Section("Results", (inside,)),), ("Two seeds.",))
    text = render(report)
    for words in ("Title", "It won.", "Results", "Two seeds.", "Caption.", "81.2", "a note"):
        assert text.count(words) == 1


def test_a_console_shows_the_first_section_and_the_sentences() -> None:
    table, elsewhere = (plain("", ["Method"], [[name]]) for name in ("lora", "elsewhere"))
    sections = (Section("Results", (table,)), Section("Record", (elsewhere,)))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary(Report("Title", ("[bold]It won.",), sections)))
    text = console.export_text()
    assert "lora" in text and "[bold]It won." in text and "elsewhere" not in text


@given(st.lists(FINITE, min_size=1, max_size=9))
def test_a_chart_of_any_numbers_has_a_mark_for_each(values: list[float]) -> None:
    xs = list(range(len(values)))
    series = charts.Series("s", xs, values, Look(1, 0), ["p"] * len(values))
    drawing = charts.Chart([series], charts.Axis(), charts.Axis()).svg("label")
    assert drawing.count("<title>") == len(values) and "nan" not in drawing


def test_values_that_are_not_finite_have_no_mark() -> None:
    nan, inf = float("nan"), float("inf")
    series = charts.Series("s", [0, 1, 2], [nan, 1.0, inf], Look(1, 0), ["a", "b", "c"])
    drawing = charts.Chart([series], charts.Axis(), charts.Axis()).svg("label")
    assert drawing.count("<title>") == 1 and "s: b" in drawing


@given(FINITE, FINITE)
def test_ticks_are_few_and_between_the_ends(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    if high - low > 1e-6 * max(abs(low), abs(high), 1e-6):
        ticks = charts._round_ticks(low, high)
        slack = 1e-6 * (high - low)
        assert 1 <= len(ticks) <= 7 and len(set(ticks)) == len(ticks)
        assert all(low - slack <= tick <= high + slack for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1500, "1500"),
        (20_000, "20k"),
        (3e6, "3M"),
        (2e12, "2T"),
        (-2, "\N{MINUS SIGN}2"),
    ],
)
def test_a_number_of_an_axis_is_short(value: float, text: str) -> None:
    assert charts.tick_text(value) == text


def test_equal_values_have_equal_colours_in_maps_of_one_scale() -> None:
    shades = []
    for value in (0.1, 0.9):
        cells = heat_maps.HeatMap([[0.5, value]], ["r"], ["a", "b"], 1.0, [["", ""]])
        shades.append(re.findall(r"--s:([\d.]+)", cells.svg("label"))[0])
    assert shades == ["0.5", "0.5"]


def test_a_wider_table_becomes_cards_earlier() -> None:
    widths = [int(width_class(plain("", ["n"] * n, [["1234567"] * n]))[1:]) for n in (2, 6, 12, 40)]
    assert widths == sorted(set(widths))


def test_an_axis_of_epochs_has_ticks_at_whole_numbers_alone() -> None:
    assert [text for _, text in charts._ticks(charts.Axis(integers=True), [1.0])] == ["1"]
    assert [text for _, text in charts._ticks(charts.Axis(integers=True), [1.0, 3.0])] == [
        "1",
        "2",
        "3",
    ]


def test_an_axis_of_shares_has_no_tick_beyond_0_and_100() -> None:
    for values, ends in (([100.0], "100 %"), ([0.0], "0 %"), ([0.0, 100.0], "100 %")):
        texts = [text for _, text in charts._ticks(charts.Axis(unit=" %"), values)]
        assert ends in texts and not any(text[:2] == "10" and text != "100 %" for text in texts)
        assert not any(text.startswith("\N{MINUS SIGN}") for text in texts)


def test_a_short_logarithmic_axis_has_at_least_two_ticks() -> None:
    for values in ([261.6, 262.1], [30.0, 35.0], [1e-3, 1e3]):
        assert len(charts._ticks(charts.Axis(log=True), values)) >= 2


def test_names_of_bars_have_room_at_the_size_of_a_telephone_s_letters() -> None:
    drawing = charts.BarChart([], ["device 0, compute"], charts.Axis()).svg("label")
    (end,) = re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="end">device 0, compute<', drawing)
    assert float(end) >= 0.53 * 15 * len("device 0, compute")  # em of this font, px, letters


def test_a_table_that_is_too_wide_for_a_page_becomes_several_in_markdown() -> None:
    titles = ["Task", *(f"method {i}" for i in range(26))]
    rows = [["emoji", *range(26)], ["mnist", *range(26)]]
    lines = markdown(plain("Accuracies.", titles, rows)).splitlines()
    heads = [line for line in lines if line.startswith("| Task")]
    assert [head.count("|") - 2 for head in heads] == [9, 8, 9]
    cells = [line.split("|")[2:-1] for line in lines if line.startswith("| emoji")]
    assert [int(cell) for row in cells for cell in row] == [*range(26)]
    assert lines.count("Accuracies.") == 1 and lines[-1] == "Accuracies."
    assert markdown(plain("", titles[:13], [row[:13] for row in rows])).count("| Task") == 1
