"""The scoreboard has a row for each paper, and each paper a page that says how it was judged."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from intarsia_lab.claims import claims, ledger
from intarsia_lab.claims.designs import DESIGNS
from intarsia_lab.claims.papers import PAPERS, PaperFigure
from intarsia_lab.kit import (
    ArmRate,
    Design,
    Effect,
    FixedRate,
    Missing,
    NoControl,
    Rates,
    Result,
    Study,
    TableArm,
    UnknownEffect,
)
from intarsia_lab.pages import claims as pages
from intarsia_lab.pages.evidence_plot import MIDDLE, EvidenceRow, evidence_plot

DOCS = Path(__file__).parents[3] / "docs"
GRID = (1e-3, 3e-3, 1e-2)


def a_claim(got: float, **fields: Any) -> Study:
    rates = fields.get("rates")

    def run(seeds: tuple[int, ...], report: Any) -> Result:
        arm_rates = tuple(ArmRate(arm, GRID[1], 40, GRID) for arm in ("ours", "theirs"))
        table = ({"arm": "ours", "score": got},)
        of_arms = arm_rates if isinstance(rates, Rates) else ()
        return Result(got, 0.1, tuple(got for _ in seeds), table, "So.", rates=of_arms)

    defaults: dict[str, Any] = {"control": NoControl("A toy."), "key": "toy"}
    return Study(
        sentence="Ours is better.", baseline="theirs", target=0.5, sense=">=", measure=run,
        **defaults | fields,
    )  # fmt: skip


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that runs claims, and returns the scoreboard and the page of the first."""
    folder = tmp_path / "claims"

    def write(*studies: Study, **changed: Any) -> tuple[str, str]:
        monkeypatch.setattr(ledger, "claims", lambda: studies)
        for study in studies:
            record = ledger.run_claim(study, report=print)
            ledger.save(dataclasses.replace(record, **changed), folder)
        pages.write_page(folder, tmp_path / "claims.md")
        name = pages.page_name(studies[0].system or pages.OF_NO_PAPER)
        return (tmp_path / "claims.md").read_text(), (folder / f"{name}.md").read_text()

    yield write


HEADLINE: dict[str, Any] = {"system": "Toys", "unit": "blocks", "work": "blocks on a carpet"}


def test_a_paper_s_row_has_its_verdict_its_interval_and_all_its_claims(written: Any) -> None:
    headline = a_claim(0.6, effect=Effect(0.7, "table 1"), **HEADLINE)
    board, page = written(headline, a_claim(0.4, key="toy-small"))
    row = next(line for line in board.splitlines() if line.startswith("| [Toys]"))
    assert "(claims/toys.md)" in row and "holds: 0 of 2 claims" in row
    assert '<span class="verdict older">held, of ' in row
    # a sentence, both figures with their unit and conditions
    assert "| Ours is better. *A variant, a simulation or a part of it.* |" in row
    assert "| 0.600 [0.600, 0.600] blocks; target >= 0.5 | 0.7 blocks; table 1. |" in row
    # a toy has no clean commit: nothing is counted
    assert "| to rerun | 0 | 1 | 0 |" in board
    assert "1 a part of it (1 to rerun)" in board
    assert "## toy\n" in page and "## toy-small\n" in page and ">failed, of " in page
    paper_line = "- **The paper:** 0.7 blocks; table 1."
    assert paper_line in page and "- **Here:** blocks on a carpet; it is a variant" in page
    assert "0.600 [0.600, 0.600] blocks, target" in page
    # the headline stands above the table of all claims
    assert page.index(paper_line) < page.index("## All claims") < page.index("## toy-small")


def test_the_reader_of_a_paper_finds_all_of_it_in_one_place(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, cheap = (TableArm(name, ("score",)) for name in ("ours", "cheap"))
    design = Design(ours, Missing("chance"), cheap, Missing("half"), "seeds", alike="A toy.")
    monkeypatch.setitem(DESIGNS, "toy", design)
    monkeypatch.setitem(PAPERS, "toy", PaperFigure("+7 points", "a large carpet", "table 1"))
    board, page = written(a_claim(0.6, effect=Effect(0.7, "as a share"), **HEADLINE))
    section = board.split("### Toys\n")[1]
    for part in (
        "Ours is better.",
        "</span> 0.600 [0.600, 0.600], target >= 0.5; theirs.",
        "The paper: +7 points; a large carpet (table 1).",
        "In the unit of ours: 0.7; as a share.",
        "It is a variant, a simulation or a part of it; 0 designs, 0 bars, 0 figures so far.",
        "- **Best of its table** (score; higher is better): its own arm, first of 2, 0.6",
        "It has no trivial arm (chance); no arm that must lose, or means that reaches the bar",
        "[record](claims/toy.json) · `intarsia reproduce toy`, 1 minute",
    ):
        assert part in section, part
    assert "- It has no trivial arm (chance)" in page
    # what an author looks for comes before all else, in this order
    parts = (
        "Ours is better.",
        "</span> 0.600 [0.600, 0.600] blocks, target >= 0.5.",
        "- **The paper:** +7 points; a large carpet (table 1).",
        "- **The same in our unit:** 0.7 blocks; as a share.",
        "- **Here, in place of that:** blocks on a carpet; it is a variant",
        "- **Compared with:** theirs.",
        "- **Best of its table** (score; higher is better): its own arm, first of 2, 0.6",
        "- **Run it again:** `intarsia reproduce toy`, 1 minute on two cores, with [",
        "- No control: A toy.",
    )
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "Of 1 such figures 1 lie on one side" in board


def test_a_page_says_how_a_claim_was_judged(written: Any) -> None:
    effect = UnknownEffect("It was not found.")
    rates = Rates(GRID, {"ours": 40, "theirs": 40})
    _, page = written(a_claim(0.6, effect=effect, rates=rates, **HEADLINE), commit="abc123")
    assert "No control: A toy." in page and "**The paper:** Not known. It was not found." in page
    assert "| ours | 0.003 | 0.001, 0.003, 0.01 | 40 |" in page
    assert "`intarsia reproduce toy`" in page and "at commit `abc123`" in page
    assert "So." in page and "| ours | 0.6 |" in page
    fixed = FixedRate(5e-3, {"ours": 10, "theirs": 20}, "It is published.")
    _, page = written(a_claim(0.6, effect=effect, rates=fixed, **HEADLINE))
    assert "One rate for all arms, 0.005, 10 or 20 steps: It is published." in page
    stages = FixedRate({"first": 5e-3, "then": 1e-3}, {"first": 10, "then": 2000}, "So it is.")
    _, page = written(a_claim(0.6, effect=effect, rates=stages, **HEADLINE))
    assert "fixed before: first 0.005, 10 steps; then 0.001, 2,000 steps. So it is." in page


def test_every_headline_says_what_its_figure_counts() -> None:
    assert not [s.key for s in claims() if s.system and not (s.unit and s.work)]


def test_a_paper_s_number_is_linked_and_not_said_again_in_its_row(written: Any) -> None:
    effect = UnknownEffect("It was not found.")
    words = ("A (arXiv:2306.02824, abstract).", "B (Toys, arXiv:2306.02824; small).")
    words += ("C (arXiv:2306.02824).",)
    for sentence, shortened in zip(words, ("A (abstract).", "B (Toys, small).", "C."), strict=True):
        study = dataclasses.replace(a_claim(0.6, effect=effect, **HEADLINE), sentence=sentence)
        board, page = written(study)
        assert f"| {shortened} *" in board and sentence in page


def test_a_table_that_two_claims_share_is_printed_once(written: Any) -> None:
    effect = UnknownEffect("It was not found.")
    _, page = written(a_claim(0.6, effect=effect, **HEADLINE), a_claim(0.6, key="toy-small"))
    assert page.count("| ours | 0.6 |") == 1 and "Its table is that of [toy](#toy)." in page


def test_a_plus_behind_a_commit_is_explained_where_it_stands(written: Any) -> None:
    for commit, answers in (("abc123", 0), ("abc123+", 1), ("", 0)):
        page = written(a_claim(0.6), commit=commit)[1]
        assert page.count(pages.UNCOMMITTED) == answers


def test_what_does_not_hold_says_what_would_decide_it(written: Any) -> None:
    effect = UnknownEffect("It was not found.")
    for figure, answers in ((0.6, 0), (0.4, 1)):
        study = a_claim(figure, effect=effect, scale="A larger carpet.", **HEADLINE)
        assert written(study)[1].count("- **What would decide it:** A larger carpet.") == answers


def test_an_older_record_is_marked_on_both_pages(written: Any) -> None:
    effect = UnknownEffect("It was not found.")
    board, page = written(a_claim(0.6, effect=effect, **HEADLINE), code="before")
    assert "held, of older code<" in board and ">holds</span> 0.6" not in board + page
    board, page = written(a_claim(0.6, effect=effect, **HEADLINE), target=">= 0.4")
    assert "When it was run, its target was >= 0.4." in page


def test_what_was_not_run_says_so(tmp_path: Path) -> None:
    pages.write_page(tmp_path / "claims", tmp_path / "claims.md")
    papers = {study.system for study in claims() if study.system}
    board = (tmp_path / "claims.md").read_text()
    # in the table, and paper by paper
    assert board.count(f">{pages.DECLARED}</span>") == 2 * len(papers)
    texts = [path.read_text() for path in (tmp_path / "claims").glob("*.md")]
    state = f"\n{pages.DECLARED.capitalize()}: target "
    assert sum(text.count(state) for text in texts) == len(claims())
    assert len(texts) == len(papers) + 1  # and a page of claims next to the papers


def test_a_page_of_a_paper_that_is_gone_is_removed(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "gone.md").write_text("# Gone\n")
    pages.write_page(tmp_path / "claims", tmp_path / "claims.md")
    assert not (tmp_path / "claims" / "gone.md").exists()


@pytest.mark.parametrize(
    ("seconds", "minutes", "words"),
    [
        (0.3, 20, "from stored results"),
        (0.3, 0.02, "1 second"),
        (18.7, 0.5, "19 seconds"),
        (60, 20, "from stored results"),
        (60, 5, "1 minute"),
        (571, 20, "10 minutes"),
    ],
)
def test_what_a_run_cost(written: Any, seconds: float, minutes: float, words: str) -> None:
    _, page = written(a_claim(0.4, minutes=minutes), seconds=seconds)
    assert f", {words}; " in page


def test_rows_without_some_of_the_keys_have_empty_cells() -> None:
    rows = [{"entries": "none", "nats": 1.0}, {"entries": "a + b"}, {"nats": 2.0, "more": "x"}]
    lines = ["| entries | nats | more |", "|---|---|---|"]
    lines += ["| none | 1.0 |  |", "| a + b |  |  |", "|  | 2.0 | x |"]
    assert pages.markdown(rows) == lines
    assert not pages.markdown([])


def test_only_what_is_counted_looks_and_counts_as_a_verdict(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "code_of", lambda key: "now")
    effect = UnknownEffect("It was not found.")
    studies = (a_claim(0.6, effect=effect, **HEADLINE), a_claim(0.6, key="toy-small"))
    for code, commit, holding in (("now", "abc", 2), ("before", "abc", 0), ("now", "abc+", 0)):
        board, page = written(*studies, code=code, commit=commit)
        assert f"holds: {holding} of 2 claims" in board
        row = next(line for line in board.splitlines() if line.startswith("| [Toys]"))
        assert (
            ('class="verdict holds">holds<' in row)
            == ('">holds</span> 0.6' in page)
            == (holding > 0)
        )
        counted = "2 hold" if holding else "2 to rerun"
        assert f"Of all 2 claims: {counted}." in board


def lasting(text: str) -> str:
    """Return a page without what depends on the code of today: marks of older code, and counts."""
    counts = rf"{pages.COUNTED}: .*|\| (?:{'|'.join(pages.IN_WORDS)}) \|.*"
    badges = r'<span class="verdict [^<]*</span>|holds: \d+ of|Of all \d+ claims: .*'
    colours = r'<g class="[\w-]+"><title>'
    return re.sub(f"{counts}|{badges}|{colours}", "", text.replace(ledger.OLDER, ""))


def test_the_pages_of_claims_are_those_of_their_records(tmp_path: Path) -> None:
    for path in (DOCS / "claims").glob("*.json*"):
        (tmp_path / "claims").mkdir(exist_ok=True)
        (tmp_path / "claims" / path.name).write_text(path.read_text())
    pages.write_page(tmp_path / "claims", tmp_path / "claims.md")
    written = [tmp_path / "claims.md", *(tmp_path / "claims").glob("*.md")]
    assert {p.name for p in written[1:]} == {p.name for p in (DOCS / "claims").glob("*.md")}
    for page in written:
        # which records are of older code changes with every commit; `make generate` writes it anew
        now, before = ((root / page.relative_to(tmp_path)).read_text() for root in (tmp_path, DOCS))
        assert lasting(now) == lasting(before), page.name


def test_every_claim_stands_on_one_page_and_is_linked_there() -> None:
    papers = pages.by_paper(claims())
    keys = [study.key for studies in papers.values() for study in studies]
    assert sorted(keys) == sorted(study.key for study in claims())
    for name, studies in papers.items():
        assert {pages.link_of(s.key) for s in studies} == {
            f"claims/{pages.page_name(name)}.md#{s.key}" for s in studies
        }


def row(word: str = "holds", **fields: Any) -> EvidenceRow:
    return EvidenceRow(
        **{"name": "Toys & Co", "word": word, "sense": ">=", "target": 1.0, "figure": 2.0}
        | {"interval": (1.5, 2.5)}
        | fields
    )


def places(paper: EvidenceRow) -> tuple[float, float, list[float]]:
    """Return the ends of the interval and the x of each of its row's marks."""
    drawing = xml.fromstring(evidence_plot([paper]))
    group = [g for g in drawing.iter("g") if g.find("title") is not None][0]
    path = next(p.attrib["d"] for p in group.iter("path") if p.attrib["class"] == "interval")
    low, high = path[1:].split(" ")[0], path.split("H")[1]
    return float(low), float(high), [float(c.attrib["cx"]) for c in group.iter("circle")]


def test_right_of_the_line_is_the_side_on_which_a_claim_holds() -> None:
    low, high, (point,) = places(row())
    assert MIDDLE < low < point < high
    low, high, (point,) = places(row(sense="<=", figure=0.0, interval=(-0.5, 0.5)))
    assert MIDDLE < low < point < high
    low, high, _ = places(row("not decided", interval=(0.5, 2.5)))
    assert low < MIDDLE < high
    within = row(sense="within", figure=0.2, interval=(-0.1, 0.5))
    low, high, _ = places(within)
    assert MIDDLE < low < high


def test_an_interval_that_leaves_the_scale_has_an_arrow_and_older_code_is_grey() -> None:
    def heads(paper: EvidenceRow) -> int:
        return evidence_plot([paper]).count("l-5 4") + evidence_plot([paper]).count("l5 4")

    assert heads(row()) == heads(row(effect=4.0, effect_interval=(3.5, 4.1))) == 1  # the legend's
    assert heads(row(effect=4.0, effect_interval=(-90.0, 90.0))) == 3
    assert heads(row(interval=(1.5, float("inf")))) == 2
    assert evidence_plot([row(counted=False)]).count('<g class="older"><title>') == 1


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour such as #16713d (WCAG 2.2)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(("scheme", "paper"), [("default", "#ffffff"), ("slate", "#0d0e12")])
def test_verdicts_are_legible_light_and_dark(scheme: str, paper: str) -> None:
    style = (DOCS / "site.css").read_text()
    (colours,) = re.findall(rf'\[data-md-color-scheme="{scheme}"\] {{ (--holds.*?) }}', style)
    codes = re.findall(r"--\w+: (#\w{6});", colours)
    assert len(codes) == 4
    for colour in codes:
        low, high = sorted((luminance(colour), luminance(paper)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour


def test_a_plot_has_a_row_for_each_paper_and_is_well_formed() -> None:
    rows = [
        row(effect=4.0, effect_interval=(3.0, 5.0)),
        row("fails", figure=0.0, interval=None),
        row("void", figure=1.0, interval=(1.0, 1.0)),  # all values are the target
        row("not run", figure=None, interval=None),
        row("void", figure=float("nan"), interval=None),
    ]
    drawing = xml.fromstring(evidence_plot(rows))
    titles = [title.text for title in drawing.iter("title")]
    assert titles == [f"Toys & Co: {r.word}" for r in rows]
    assert "nan" not in evidence_plot(rows)
