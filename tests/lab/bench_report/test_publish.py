"""The files: whole tables whatever the labels say, the same numbers everywhere."""

from __future__ import annotations

import builtins
import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from intarsia.core.errors import MissingExtra
from intarsia.reports.latex import escape, latex
from intarsia_lab.bench.publish import as_latex, as_markdown, write
from intarsia_lab.bench.report.flat_rows import COLUMNS, write_parquet
from intarsia_lab.bench.report.records import Done, RunResult
from intarsia_lab.bench.report.summary import tables
from intarsia_lab.bench.report.tables import difference_table, results_table, tables_of, tasks_table

from ...refusals import refused

Make = Callable[..., RunResult]
MakeAll = Callable[..., list[RunResult]]
NAMES = ["index.html", "table.md", "table.tex", "results.csv", "results.parquet"]


def titles(table: Any) -> list[str]:
    return [column.title for column in table.columns]


def test_both_means_and_both_counts_are_in_the_table(make_suite: MakeAll) -> None:
    (finding,) = tables(make_suite(), "adaptformer").findings
    assert titles(results_table(finding)) == [
        "Method", "Group mean", "Task mean", "Balanced", "Loss", "Parameters", "With head", "PPT",
        "Time", "CPU time", "Peak memory",
    ]  # fmt: skip
    assert results_table(finding).notes == ("Trained for 20 epochs.",)
    # the same as means of the tasks' table
    last = tasks_table(finding).rows[-2:]
    columns = zip(*(row[1:] for row in last), strict=True)
    for row, below in zip(results_table(finding).rows, columns, strict=True):
        assert [cell.text for cell in row[1:3]] == [cell.text for cell in below]


def test_balanced_accuracy_and_loss_are_means_over_tasks(make_suite: MakeAll) -> None:
    results = make_suite()
    (finding,) = tables(results, "adaptformer").findings
    for row in results_table(finding).rows:
        rows = [r for r in results if r.method.label == row[0].text]
        for cell, name in zip(row[3:5], ("balanced_accuracy", "loss"), strict=True):
            assert float(cell.full) == pytest.approx(
                sum(getattr(r.outcome, name) for r in rows) / len(rows), abs=1e-6
            )
        assert not any(cell.place for cell in row[3:5])  # nobody is ranked by them


def test_joint_tasks_have_a_column_and_others_none(make_result: Make, tmp_path: Path) -> None:
    results = [
        make_result("mosa", "a+b", 0, 0.5, group="joint", own=0.7),
        make_result("mosa", "a+b", 1, 0.5, group="joint", own=0.8),
        make_result("mosa", "a", 0, 0.5),
        make_result("mosa", "a", 1, 0.5),
    ]
    (finding,) = tables(results).findings
    table = results_table(finding)
    assert titles(table)[:4] == ["Method", "Group mean", "Task mean", "Own task"]
    assert table.rows[0][3].full == "0.750000"
    write(results, tmp_path)
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        accuracies = {
            (row["task"], row["seed"]): row["own_task_accuracy"] for row in csv.DictReader(file)
        }
    assert accuracies == {("a+b", "0"): "0.7", ("a+b", "1"): "0.8", ("a", "0"): "", ("a", "1"): ""}


def test_a_method_with_a_gap_says_so(make_suite: MakeAll) -> None:
    (finding,) = tables(make_suite(gaps=True), "adaptformer").findings
    table = results_table(finding)
    assert titles(table)[3:5] == ["Group mean, 12 shared", "Task mean, 12 shared"]
    rows = {row[0].text: row for row in table.rows}
    assert [cell.text for cell in rows["VPT deep"][1:3]] == ["13 of 14 tasks"] * 2
    assert rows["VPT deep"][3].text != "13 of 14 tasks"
    assert any("was not run on textile" in note for note in table.notes)
    tasks = {row[0].text: row for row in tasks_table(finding).rows}
    column = titles(tasks_table(finding)).index("full fine-tuning")
    assert tasks["azimuth"][column].remark == "2 of 3 seeds" and not tasks["azimuth"][column].place
    assert tasks["Group mean"][column].text == "\N{EN DASH}"


def test_first_and_second_place_are_of_what_is_shown(make_result: Make) -> None:
    scores = {"a": 0.8004, "b": 0.8001, "c": 0.79, "d": 0.5}
    (finding,) = tables([make_result(m, accuracy=x) for m, x in scores.items()]).findings
    assert [row[1].place for row in results_table(finding).rows] == ["first", "first", "second", ""]
    (single,) = tables([make_result()]).findings
    assert results_table(single).rows[0][1].place == "" and difference_table(single) is None


def test_rows_and_columns_fit(make_suite: MakeAll) -> None:
    for gaps in (False, True):
        (finding,) = tables(make_suite(gaps=gaps), "lora").findings
        for _, table in tables_of(finding):
            assert all(len(row) == len(table.columns) for row in table.rows)


def test_latex_has_as_many_cells_in_every_line(make_suite: MakeAll) -> None:
    text = as_latex(tables(make_suite(gaps=True), "lora"), ["a\nb"])
    assert "% cut: a b" in text.splitlines()
    for part in re.findall(
        r"\\begin\{tabular\}\{@\{\}(l\w*)@\{\}\}(.*?)\\end\{tabular\}", text, re.S
    ):
        lines = [line for line in part[1].splitlines() if line.endswith(r"\\")]
        assert len(lines) > 2
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(part[0]) - 1}
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 3
    assert r"\textbf{" in text and r"\underline{" in text
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))


def test_latex_sets_text_as_text(make_result: Make, hostile: str) -> None:
    (finding,) = tables([make_result(label=hostile)]).findings
    text = latex(results_table(finding))
    assert escape(hostile) in text and hostile not in text
    assert escape("5_% & {x}^~\\") == (
        r"5\_\% \& \{x\}\textasciicircum{}\textasciitilde{}\textbackslash{}"
    )
    assert not re.search(r"[^\x00-\x7f]", text)


def test_markdown_is_a_table_whatever_the_labels_say(make_result: Make, hostile: str) -> None:
    results = [make_result(m, t, label=hostile + m, group="g") for m in "ab" for t in ("x", "y")]
    text = as_markdown(tables(results, "a"), [hostile])
    assert "<script>" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_the_same_results_in_any_order_give_the_same_files(
    make_suite: MakeAll, tmp_path: Path
) -> None:
    results = make_suite(gaps=True) + make_suite(protocol="tuned")
    mixed = random.Random(1).sample(results, len(results))
    files = write(results, tmp_path / "a", "adaptformer", ["seed 3"])
    two = write(mixed, tmp_path / "b", "adaptformer", ["seed 3"])
    assert [path.name for path in files] == [path.name for path in two] == NAMES
    for a, b in zip(files, two, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(NAMES)


def test_the_tidy_files_hold_every_result(make_suite: MakeAll, tmp_path: Path) -> None:
    from pyarrow import parquet

    results = make_suite(gaps=True)
    write(results, tmp_path, "lora")
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results) and list(rows[0]) == list(COLUMNS)
    typed = parquet.read_table(tmp_path / "results.parquet").to_pylist()
    by_key = {r.key: r for r in results}
    for row, full in zip(rows, typed, strict=True):
        result = by_key[row["key"]]
        accuracy = result.outcome.accuracy if isinstance(result.outcome, Done) else None
        assert full["accuracy"] == accuracy == (float(row["accuracy"]) if row["accuracy"] else None)
        assert full["seed"] == int(row["seed"]) == result.seed
        assert row["status"] == result.status and (row["error"] != "") == (accuracy is None)
        assert json.loads(row["selected"]) == {}


@pytest.mark.parametrize(("package", "extra"), [("statsmodels", "bench"), ("pyarrow", "")])
def test_without_an_extra(
    make_suite: MakeAll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    results, real = make_suite(), builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    if not extra:  # the CSV file is enough
        assert [path.name for path in write(results, tmp_path, "lora")] == NAMES[:4]
        with refused(MissingExtra, what="optional dependency 'pyarrow'"):
            write_parquet(results, tmp_path / "x.parquet")
        return
    with refused(MissingExtra, got="not installed"):
        write(results, tmp_path, "lora")
    assert not list(tmp_path.iterdir())
