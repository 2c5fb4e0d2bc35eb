"""The benchmark's page: text is text, links lead to what is there, and a browser draws it all."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intarsia.reports.page import html as page_of
from intarsia.reports.report import Panels, Report
from intarsia.runs.experiment import Experiment, Pictures, save
from intarsia_lab.bench.panel import facts, panels
from intarsia_lab.bench.report.diagram import LEFT, RIGHT, diagram
from intarsia_lab.bench.report.figures import points_of
from intarsia_lab.bench.report.page import report_of
from intarsia_lab.bench.report.records import RunResult
from intarsia_lab.bench.report.summary import tables

Make = Callable[..., RunResult]
MakeAll = Callable[..., list[RunResult]]
Browse = Callable[..., str]
CUT = ("Seeds 3 and 4 were left out.",)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture(scope="module")
def folder(make_suite: MakeAll, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """index.html beside a run with a report, one without, and one that failed."""
    out = tmp_path_factory.mktemp("bench")
    results = make_suite(gaps=True)
    runs = [out / "runs" / name for name in ("mosa-mnist-0", "mosa-mnist-1", "full-azimuth-1")]
    for run, lr in zip(runs, (1e-3, 5e-3, 1e-4), strict=True):
        run.mkdir(parents=True)
        save(Experiment(Pictures("mini/mnist@train+val")).changed(lr=lr), run)
    for name in ("report.html", "run.json"):
        (runs[0] / name).write_text(name)
    page = page_of(report_of(tables(results, "adaptformer"), panels(out, out), CUT))
    (out / "index.html").write_text(page, encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def report(folder: Path, make_suite: MakeAll) -> Report:
    return report_of(tables(make_suite(gaps=True), "adaptformer"), panels(folder, folder), CUT)


def test_the_page_loads_nothing_and_has_all_parts(folder: Path, report: Report) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page == page_of(report) and len(page) < 1_500_000
    maps = {"heat-0-differences", "heat-0-shares"}
    assert set(report.figures()) == {"parameters-0", "time-0", "ranks-0"} | maps
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    for text in ("Failed runs", "MemoryError: killed", "Cut or changed", CUT[0], "13 of 14 tasks"):
        assert text in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    named = re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', page)
    assert set(named) <= set(ids)


def test_the_map_has_a_cell_for_every_task_and_method(report: Report) -> None:
    differences, shares = (report.figures()[f"heat-0-{m}"].svg for m in ("differences", "shares"))
    for drawing in (differences, shares):
        assert drawing.count('class="row"') == 14 + 3 + 2
        assert drawing.count(">failed</text>") == 1
    assert differences.count(">0.0</text>") >= 14 + 3 + 2  # of the baseline
    (panels,) = [block for block in report.blocks() if isinstance(block, Panels)]
    runs: Any = dict(panels.panels)
    mosa = runs["MoSA on mnist"]
    assert [dict(run["links"]) for run in mosa] == [
        {"report": "runs/mosa-mnist-0/report.html", "run.json": "runs/mosa-mnist-0/run.json"},
        {}, {},
    ]  # fmt: skip
    assert [[text for _, text in run["commands"]] for run in mosa] == [
        ["intarsia fit mini/mnist@train+val --lr 0.001",
         "intarsia report runs/mosa-mnist-0 --out runs/mosa-mnist-0/report.html"],
        ["intarsia fit mini/mnist@train+val --lr 0.005"],
        [],
    ]  # fmt: skip
    failed = runs["full fine-tuning on azimuth"][1]
    assert failed["text"] == "seed 1: failed: MemoryError: killed"
    assert dict(failed["facts"]) == {"error": "MemoryError: killed", "epochs": "20"}
    assert failed["commands"][0][1] == "intarsia fit mini/mnist@train+val --lr 0.0001"


def test_points_of_the_cost_figures_are_the_table_s(make_suite: MakeAll) -> None:
    (finding,) = tables(make_suite(gaps=True), "adaptformer").findings
    points = points_of(finding, 0, "seconds")
    for mean in ("group", "task"):
        for i, row in enumerate(finding.rows):
            (point,) = [p for p in points if p.when == {"group-0": i, "mean-0": mean}]
            assert row.shared is not None and row.costs is not None
            share = getattr(row.shared, mean).mean
            assert point.spread.mean == pytest.approx(share)
            assert np.mean(point.y) == pytest.approx(share)
            assert np.mean(point.x) == pytest.approx(row.costs.seconds)


def test_a_panel_leads_to_what_is_there(make_result: Make, tmp_path: Path) -> None:
    runs, out = tmp_path / "a b", tmp_path / "pages"
    show = panels(runs, out)
    for folder in ("x#1?", "none", ""):
        drawn = show(replace(make_result(), folder=folder))
        assert (drawn["links"], drawn["commands"]) == ([], [])
    run = runs / "x#1?"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "experiment.json").write_text("{")  # damaged
    drawn = show(replace(make_result(), folder="x#1?"))
    assert drawn["links"] == [("run.json", "../a%20b/x%231%3F/run.json")]
    place = "'../a b/x#1?'"
    ((_, command),) = drawn["commands"]
    assert command == f"intarsia report {place} --out '../a b/x#1?/report.html'"


def test_a_panel_has_all_that_is_known_of_a_run(make_result: Make) -> None:
    result = make_result(accuracy=0.8125, trained=153216, epochs=10)
    setup = replace(result.setup, selected={"lr": 0.001}, tried=6)
    assert facts(replace(result, setup=setup)) == {
        "accuracy": "81.25 %", "balanced accuracy": "81.25 %", "loss": "0.5000",
        "trained parameters": "153,226", "without head": "153,216", "training": "2.0 s",
        "peak memory": "1.00 GB", "epochs": "10", "chosen by a search": "lr 0.001, of 6 runs",
    }  # fmt: skip


def test_text_from_results_is_text(make_result: Make, hostile: str, tmp_path: Path) -> None:
    fields = {"protocol": hostile, "model": hostile, "suite": hostile, "error": hostile + "\nmore"}
    results = [
        make_result(m, task, seed, share, label=hostile + m, group=group, **fields)
        for m in "abc" for seed in (0, 1)
        for task, group, share in (("x", "g", 0.6), ("y", hostile, 0.5),
                                   (hostile, hostile, None if seed else 0.5))
    ]  # fmt: skip
    page = page_of(report_of(tables(results, "a"), panels(tmp_path, tmp_path), cut=[hostile]))
    assert page.count('<script>alert("x")') == 0
    assert html.escape(hostile, quote=False).replace('"', "&#34;") in page


def test_several_sheets_stand_for_themselves(make_suite: MakeAll, tmp_path: Path) -> None:
    results = make_suite() + make_suite(protocol="tuned", tried=9)
    report = report_of(tables(results, "lora"), panels(tmp_path, tmp_path))
    titles = [section.title for section in report.sections]
    assert "Results: mini, vit-s, protocol honest" in titles
    texts = [text for table in report.tables() for text in (table.caption, *table.notes)]
    assert "chosen among 9" in " ".join(texts) and len(report.figures()) == 10
    assert len(set(report.controls())) == 6  # those of one sheet do not touch the other


def test_the_diagram_s_labels_never_meet(make_suite: MakeAll) -> None:
    chart = diagram(tables(make_suite()).findings[0])
    assert chart is not None
    for side in (True, False):
        ys = sorted(mark.y for mark in chart.marks if mark.left == side)
        assert len(ys) == 4 and all(b - a >= 20 for a, b in zip(ys, ys[1:], strict=False))
    assert all(LEFT <= mark.x <= RIGHT and mark.y < chart.height for mark in chart.marks)
    # a line down to a label crosses no other label's line
    assert [m.x for m in chart.marks] == sorted(m.x for m in chart.marks)
    lowest = max((y for _, _, y in chart.bars), default=0)
    assert all(mark.y > lowest for mark in chart.marks)


def test_two_methods_have_no_diagram(make_result: Make) -> None:
    results = [make_result(m, t) for m in "ab" for t in "xyz"]
    assert diagram(tables(results).findings[0]) is None


SCRIPT = """
const shown = (query) => [...document.querySelectorAll(query)]
  .filter((one) => !one.closest("[hidden]"));
const seen = (name) => shown(`#plot-${name} g.series`).length;
const box = (key, value) => `input[data-key=${key}][value="${value}"]`;
const pick = (key, value) => document.querySelector(box(key, value)).click();
const marks = {drawn: ["parameters-0", "time-0"].map(seen)};
pick("group-0", 0);
marks.hidden = seen("time-0");
marks.mode = shown("[id^=plot-heat-0]").map((one) => one.id);
pick("mode-0", "shares");
marks.then = shown("[id^=plot-heat-0]").map((one) => one.id);
const panels = JSON.parse(document.querySelector("[data-panels=heat-0]").textContent);
const open = (heading) => document.querySelector(
  `#plot-heat-0-shares [data-panel="${panels.findIndex(([name]) => name === heading)}"]`
).dispatchEvent(new Event("click"));
open("MoSA on mnist");
const place = document.getElementById("panel-heat-0");
const runs = () => [...place.querySelectorAll("details")];
marks.told = place.textContent;
marks.open = runs().map((run) => run.open);
runs()[0].querySelector("summary").click();
marks.opened = runs().map((run) => run.open);
marks.command = runs()[0].querySelector("pre").innerText;
marks.links = [...place.querySelectorAll("a")].map((a) => a.getAttribute("href"));
open("full fine-tuning on azimuth");
marks.failed = runs()[1].querySelector("dd").textContent;
document.body.dataset.marks = JSON.stringify(marks);
"""


def test_a_browser_draws_it_and_its_controls_work(folder: Path, browse: Browse) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    changed = folder / "changed.html"
    text = POLICY.sub("", page).replace("</body>", f"<script>{SCRIPT}</script></body>")
    changed.write_text(text, encoding="utf-8")
    dom = browse(changed, "--dump-dom")
    (marks,) = re.findall(r'data-marks="([^"]*)"', dom)
    record = json.loads(html.unescape(marks))
    tips = record.pop("told")
    assert "MoSA on mnist" in tips and "trained parameters" in tips and "peak memory" in tips
    assert record == {
        "drawn": [16, 16],  # seeds and mean of eight methods
        "hidden": 14,
        "mode": ["plot-heat-0-differences"],
        "then": ["plot-heat-0-shares"],
        "open": [False, False, False],
        "opened": [True, False, False],
        "command": "intarsia fit mini/mnist@train+val --lr 0.001",
        "links": ["runs/mosa-mnist-0/report.html", "runs/mosa-mnist-0/run.json"],
        "failed": "MemoryError: killed",
    }


@pytest.mark.thorough
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_the_picture_is_not_blank(
    folder: Path, browse: Browse, tmp_path: Path, scheme: int
) -> None:
    shot = tmp_path / "shot.png"
    flags = (f"--screenshot={shot}", "--window-size=1200,4200")
    browse(folder / "index.html", *flags, f"--blink-settings=preferredColorScheme={scheme}")
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    paper = pixels[2, 2]
    assert (paper.mean() > 128) == bool(scheme)
    differs = np.abs(pixels - paper).sum(2) > 60
    assert all(0.005 < band.mean() < 0.5 for band in np.array_split(differs, 6))
    assert ((pixels.max(2) - pixels.min(2)) > 60).mean() > 0.005


def test_a_phone_s_width_is_kept(folder: Path, on_a_phone: Callable[[Path], str]) -> None:
    assert on_a_phone(folder / "index.html") == "360 of 360"
