"""The page: one file, nothing loaded, every text as text, everything there that was asked for."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from intarsia.core.errors import IntarsiaError, TrainingError, UnknownName
from intarsia.reports.looks import MARKS, SYMBOLS, Look
from intarsia.reports.page import html
from intarsia.reports.report import Report
from intarsia.reports.runs import comparison_of, gather, read_run, report_of, write_report
from intarsia.reports.runs.figures import looks

Make = Callable[..., Path]
# what must be closed; void elements never are
VOID = frozenset({"meta", "img", "br", "input", "link"})


class Page(HTMLParser):
    """Elements, text and script contents of a page; complains about what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self.open[-1:] != ["style"]:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(runs: Path) -> Report:
    return report_of(comparison_of(gather([runs])))


@pytest.fixture(scope="module")
def source(report: Report) -> str:
    return html(report)


def of(*folders: Path) -> Report:
    return report_of(comparison_of(map(read_run, folders)))


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_nothing_is_loaded_and_a_page_is_small(page: Page, source: str) -> None:
    assert len(page.scripts) == 1 and not any("src" in a for a in page.all("script"))
    assert page.all("link") == [] and len(source) < 1_500_000
    assert all(str(a["src"]).startswith("data:image/webp;base64,") for a in page.all("img"))
    assert not any("href" in a and not str(a["href"]).startswith("#") for _, a in page.elements)


def test_the_policy_names_this_page_s_scripts_and_no_other(page: Page) -> None:
    (policy,) = (a["content"] for a in page.all("meta") if "http-equiv" in a)
    hashes = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in page.scripts
    ]
    assert re.findall(r"'sha256-([^']+)'", str(policy)) == hashes
    assert str(policy).startswith("default-src 'none';")
    assert "connect-src" not in str(policy) and "script-src 'unsafe" not in str(policy)


def test_the_same_runs_give_the_same_bytes(source: str, runs: Path) -> None:
    assert html(report_of(comparison_of(gather([runs])))) == source


def test_user_text_is_text(make_run: Make) -> None:
    hostile = "<img src=x onerror=alert(1)>'\"&</script><script>alert(2)</script>{{ 7*7 }}"
    change: dict[str, Any] = {
        "record": {"label": hostile, "model": hostile, "data": hostile, hostile: hostile},
        "machine": {hostile: hostile}, "versions": {"x": hostile}, "command": [hostile],
        "objective": hostile, "training.note": hostile, "started": hostile,
        "results.selection": {"rule": hostile, "epoch": hostile},
    }  # fmt: skip
    change |= {f"data.{part}.classes": [hostile] * 4 for part in ("train", "val", "test")}
    folders = [make_run("a", change=change), make_run("b", label="linear probe")]
    source = html(report_of(comparison_of(gather(folders)), heading=hostile))
    page = Page(source)
    assert len(page.scripts) == 1
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert "<img src=x" not in source and "49" not in str(page.all("title"))
    assert hostile in " ".join(page.text)


def test_every_control_has_a_label_and_every_picture_a_text(page: Page, source: str) -> None:
    assert all(a.get("alt") for a in page.all("img"))
    assert len(page.all("img")) == 3 * 6
    assert source.count("<label>") == len(page.all("input")) + len(page.all("select"))
    assert all("scope" in a for a in page.all("th"))
    assert page.all("svg") and all(
        "aria-label" in a for a in page.all("svg") if str(a["class"]).startswith("chart")
    )
    assert page.all("html") == [{"lang": "en"}]
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    named = {i for _, a in page.elements for i in str(a.get("aria-labelledby", "")).split() if i}
    assert named <= set(ids)


def test_headings_leave_no_level_out(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_numbers_of_the_table_are_on_the_page(page: Page, runs: Path) -> None:
    text = " ".join(page.text)
    for group in comparison_of(gather([runs])).groups:
        assert (
            f"{100 * group.accuracy.mean:.1f} ± {100 * (group.accuracy.deviation or 0):.1f} %"
            in text
        )
        assert f"{group.runs[0].costs.trained:,}" in str(page.elements)


def test_figures_hold_every_seed(report: Report) -> None:
    figures = report.figures()
    metrics = {"accuracy", "balanced_accuracy", "loss", "lr"}
    matrices = {f"confusion-{i}-{mode}" for i in range(3) for mode in ("shares", "counts")}
    assert set(figures) == {"parameters", "time", *(f"curves-{m}" for m in metrics), *matrices}
    assert figures["time"].svg.count("<title>") == 3 * (3 + 1)  # seeds and mean, three methods
    drawn = figures["curves-accuracy"].svg
    assert drawn.count('data-when="group=1 split=val seed=single"') == 3
    assert drawn.count('data-when="group=1 split=val seed=mean"') == 1
    controls = report.controls()
    assert set(controls) == {"group", "metric", "split", "seed", "method", "mode"}
    assert [label for _, label in controls["group"].options] == [
        "linear probe",
        "plain adapter",
        "mosa",
    ]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("metrics.jsonl", "there are no curves"),
        ("predictions.safetensors", "there is no confusion matrix"),
        ("mistakes", "No pictures of mistakes were kept"),
    ],
)
def test_what_is_missing_is_said(make_run: Make, name: str, says: str) -> None:
    folder = make_run()
    notes = " ".join(of(folder).notes())
    (folder / name).rename(folder / f"{name}.gone")
    assert says not in notes
    assert says in " ".join(of(folder).notes())


def test_the_baseline_is_grey_and_no_two_methods_look_alike(make_run: Make) -> None:
    labels = [f"m{i}" for i in range(20)]
    runs = gather(make_run(name, change={"record.label": name, "started": name}) for name in labels)
    drawn = looks(comparison_of(runs, "m3"))
    assert drawn[3] == Look(0, 0)
    assert [look.color for look in drawn[:9]] == [1, 2, 3, 0, 4, 5, 6, 7, 1]
    assert len(set(drawn)) == 20
    assert all(look.symbol < len(SYMBOLS) == len(MARKS) for look in drawn)
    assert looks(comparison_of(runs[:1])) == [Look(1, 0)]


def test_one_method_is_no_point_in_a_drawing_of_costs(make_run: Make) -> None:
    report = of(make_run())
    assert not {"parameters", "time"} & set(report.figures())
    assert "group" not in report.controls() and "method" not in report.controls()


def test_a_report_is_written_to_a_new_folder(runs: Path, tmp_path: Path, source: str) -> None:
    out = write_report([runs], tmp_path / "new" / "report.html")
    assert out.read_text(encoding="utf-8") == source
    assert list(out.parent.iterdir()) == [out]


def test_heading_and_baseline_can_be_chosen(runs: Path, tmp_path: Path) -> None:
    out = write_report([runs], tmp_path / "r.html", baseline="plain adapter", heading="Cells")
    text = out.read_text(encoding="utf-8")
    assert "<title>Cells</title>" in text and "ratios to plain adapter" in text
    with pytest.raises(UnknownName):
        write_report([runs], out, baseline="nobody")


def test_a_place_that_cannot_be_written(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(TrainingError, match="choose another place"):
        write_report([runs], tmp_path / "file" / "report.html")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_failed_report_leaves_the_old_one(make_run: Make, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    folder = make_run()
    (folder / "run.json").write_text("{")
    with pytest.raises(IntarsiaError):
        write_report([folder], out)
    assert out.read_text() == "old"


@pytest.mark.parametrize("suffix", [".md", ".tex"])
def test_the_name_of_a_report_chooses_its_form(runs: Path, tmp_path: Path, suffix: str) -> None:
    text = write_report([runs], tmp_path / f"report{suffix}").read_text("utf-8")
    comparison = comparison_of(gather([runs]))
    assert "intarsia report" in text[:60] and "<html" not in text
    for group in comparison.groups:
        assert group.label in text and f"{100 * group.accuracy.mean:.1f}" in text
