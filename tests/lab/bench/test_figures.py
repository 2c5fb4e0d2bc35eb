"""`make figures`: what README and the areas state is on its page, and is read from an output."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ...pages import ROOT, accepts

BENCHMARKS = ROOT / "benchmarks"


class Accepted(Exception):
    """The words of a benchmark were read, and nothing was run."""


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return pytest.importorskip("figures")


def test_what_pages_state_is_what_their_benchmarks_measured(figures: ModuleType) -> None:
    for run in figures.RUNS:
        for figure in run.figures:
            page_value = figure.read((ROOT / figure.page).read_text())
            for page, words in figure.stated.items():
                text = " ".join((ROOT / page).read_text().split())
                assert words.format(page_value) in text, (figure.name, page)


@pytest.mark.thorough
def test_each_command_is_accepted(figures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def accept(self: argparse.ArgumentParser) -> None:
        parse(self)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", accept)
    for run in figures.RUNS:
        for command in run.commands:
            if command.startswith("intarsia "):
                accepts(command)
                continue
            _, script, *words = figures.words(command)
            for options in ("", run.small):
                monkeypatch.setattr(sys, "argv", [script, *words, *options.split()])
                with pytest.raises(Accepted):
                    runpy.run_path(script, run_name="__main__")


PAGE = """\
nDCG: 0.9 as it was before

| method | settings | nDCG@20 | seconds |
| --- | --- | --- | --- |
| ease | reg 100 | {ease} (0.1) | 2 |
| ease | reg 500 | 0.99 | 2 |

| method | other |
| --- | --- |
| ease | 7 |

In all a token reads 1,{million} MB.
"""


def test_a_figure_is_read_from_a_page_and_from_an_output(figures: ModuleType) -> None:
    text = PAGE.format(ease="−0.5", million="000.5")
    assert figures.cell(text, figures.Cell("ease", "nDCG@20")) == -0.5
    assert figures.cell(text, figures.Cell("ease | reg 500", "nDCG@20")) == 0.99
    assert figures.cell(text, figures.Cell("ease", "other")) == 7
    assert figures.said(text, r"a token reads ([\d,.]+) MB") == 1000.5
    cell = figures.Cell("ease", "nDCG@20")
    assert figures.Figure("", "", cell, inverse=True).read(text) == -2
    for cell in (figures.Cell("eas", "nDCG@20"), figures.Cell("ease", "nDCG")):
        with pytest.raises(LookupError):
            figures.cell(text, cell)
    with pytest.raises(LookupError):
        figures.said(text, "a token writes ([0-9]+)")


def test_page_machine_and_ratio_stand_side_by_side(
    figures: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "page.md").write_text(PAGE.format(ease="0.25", million="0"))
    script = "import sys\nprint(open(sys.argv[1]).read()) if sys.argv[1:] else sys.exit('no file')"
    (tmp_path / "benchmarks" / "shown.py").write_text(script)
    printed = tmp_path / "printed.txt"
    printed.write_text(PAGE.format(ease="0.5", million="0"))
    figure = figures.Figure("a measure", "page.md", figures.Cell("ease", "nDCG@20"), "higher")
    runs = [
        figures.Run("good", [f"python benchmarks/shown.py {printed}"], 1, [figure]),
        figures.Run("bad", ["python benchmarks/shown.py"], 2, [figure]),
        figures.Run("lacking", ["python benchmarks/nothing.py"], 4, [figure], ["nosuch_package"]),
    ]
    monkeypatch.setattr(figures, "RUNS", runs)
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["figures.py"])
    with pytest.raises(SystemExit, match="1"):
        figures.main()
    output = capsys.readouterr().out
    assert "| good | a measure | 0.25 | 0.5 | 2.00 | higher | page.md |" in output
    assert "about 4 min, 1 figures; left out: pip install nosuch_package" in output
    assert "In all about 3 minutes." in output
    assert "bad: `python benchmarks/shown.py` ended with 1: no file" in output
    monkeypatch.setattr(sys, "argv", ["figures.py", "--only", "good,nosuch"])
    with pytest.raises(SystemExit, match="got nosuch, want of good, bad, lacking"):
        figures.main()


@pytest.mark.thorough
def test_a_small_run_prints_what_is_read(figures: ModuleType, tmp_path: Path) -> None:
    for run in figures.RUNS:
        if run.small:
            printed = figures.printed_by([f"{run.commands[-1]} {run.small}"], tmp_path)
            assert len(figures.compared(run, printed)) == len(run.figures)
