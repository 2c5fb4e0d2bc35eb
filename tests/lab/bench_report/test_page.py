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

from intarsia.experiments.experiment import Experiment, Pictures, save
from intarsia_lab.bench.panel import facts, panels
from intarsia_lab.bench.report.diagram import LEFT, RIGHT, diagram
from intarsia_lab.bench.report.page import render
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
    page = render(tables(results, "adaptformer"), panels(out, out), CUT)
    (out / "index.html").write_text(page, encoding="utf-8")
    return out


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(text)


def test_the_page_loads_nothing_and_has_all_parts(folder: Path) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    plots = data_of(page)["figures"]
    assert set(plots) == {"parameters-0", "time-0", "heat-0"}
    assert page.count("<script") - page.count("&lt;script") >= 3
    head = page[: page.index('id="data"')]
    assert not re.search(r'(?:src|href)="(?!#|data:)', head)
    for text in ("Failed cells", "MemoryError: killed", "Cut or changed", CUT[0], "13 of 14 tasks"):
        assert text in head
    ids = re.findall(r' id="([^"]+)"', head)
    assert len(ids) == len(set(ids))
    named = re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', head)
    assert set(named) <= set(ids)


def test_the_map_has_a_cell_for_every_task_and_method(folder: Path) -> None:
    figure = data_of((folder / "index.html").read_text(encoding="utf-8"))["figures"]["heat-0"]
    differences, shares = figure["data"]
    about, runs = shares["meta"], differences["meta"]["runs"]
    assert "runs" not in about  # they are in the page once
    assert len(about["names"]) == 14 + 3 + 2 and len(about["methods"]) == 8
    base = about["labels"].index("AdaptFormer")
    for row, other in zip(differences["z"], shares["z"], strict=True):
        assert row[base] == 0
        assert all((a is None) == (b is None) for a, b in zip(row, other, strict=True))
    row, mosa = about["names"].index("mnist"), about["labels"].index("MoSA")
    assert [dict(run["links"]) for run in runs[row][mosa]] == [
        {"report": "runs/mosa-mnist-0/report.html", "run.json": "runs/mosa-mnist-0/run.json"},
        {}, {},
    ]  # fmt: skip
    assert [run["command"] for run in runs[row][mosa]] == [
        "intarsia fit mini/mnist@train+val", "intarsia fit mini/mnist@train+val --lr 0.005", "",
    ]  # fmt: skip
    assert [run["report"] for run in runs[row][mosa]] == [
        "intarsia report runs/mosa-mnist-0 --out runs/mosa-mnist-0/report.html", "", "",
    ]  # fmt: skip
    row, full = about["names"].index("azimuth"), about["labels"].index("full fine-tuning")
    failed = runs[row][full][1]
    assert failed["text"] == "failed: MemoryError: killed"
    assert dict(failed["facts"]) == {"error": "MemoryError: killed", "epochs": "20"}
    assert failed["command"] == "intarsia fit mini/mnist@train+val --lr 0.0001"
    assert shares["z"][row][full] is None
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["failed"]


def test_points_of_the_cost_plots_are_the_table_s(folder: Path, make_suite: MakeAll) -> None:
    plots = data_of((folder / "index.html").read_text(encoding="utf-8"))["figures"]
    (found,) = tables(make_suite(gaps=True), "adaptformer").findings
    for mean in ("group", "task"):
        traces = [t for t in plots["time-0"]["data"] if t["meta"]["mean"] == mean]
        for i, row in enumerate(found.rows):
            seeds, point = [t for t in traces if t["meta"]["group"] == i]
            assert row.shared is not None and row.costs is not None
            share = getattr(row.shared, mean).mean
            assert point["y"][0] == pytest.approx(100 * share)
            assert np.mean(seeds["y"]) == pytest.approx(100 * share)
            assert point["x"][0] == pytest.approx(row.costs.seconds)


def test_a_panel_leads_to_what_is_there(make_result: Make, tmp_path: Path) -> None:
    runs, out = tmp_path / "a b", tmp_path / "pages"
    show = panels(runs, out)
    for folder in ("x#1?", "none", ""):
        found = show(replace(make_result(), folder=folder))
        assert (found["links"], found["command"], found["report"]) == ([], "", "")
    run = runs / "x#1?"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "experiment.json").write_text("{")  # damaged
    found = show(replace(make_result(), folder="x#1?"))
    assert found["links"] == [("run.json", "../a%20b/x%231%3F/run.json")] and not found["command"]
    place = "'../a b/x#1?'"
    assert found["report"] == f"intarsia report {place} --out '../a b/x#1?/report.html'"


def test_a_panel_has_all_that_is_known_of_a_run(make_result: Make) -> None:
    one = make_result(accuracy=0.8125, trained=153216, epochs=10)
    setup = replace(one.setup, selected={"lr": 0.001}, tried=6)
    assert facts(replace(one, setup=setup)) == {
        "accuracy": "81.25 %", "balanced accuracy": "81.25 %", "loss": "0.5000",
        "trained parameters": "153,226", "without head": "153,216", "training": "2.0 s",
        "peak memory": "1.00 GB", "epochs": "10", "chosen by a search": "lr 0.001, of 6 runs",
    }  # fmt: skip


def test_text_from_results_is_text(make_result: Make, hostile: str, tmp_path: Path) -> None:
    same = {"protocol": hostile, "model": hostile, "suite": hostile, "error": hostile + "\nmore"}
    results = [
        make_result(m, task, seed, share, label=hostile + m, group=group, **same)
        for m in "abc" for seed in (0, 1)
        for task, group, share in (("x", "g", 0.6), ("y", hostile, 0.5),
                                   (hostile, hostile, None if seed else 0.5))
    ]  # fmt: skip
    page = render(tables(results, "a"), panels(tmp_path, tmp_path), cut=[hostile])
    assert page.count('<script>alert("x")') == 0
    assert html.escape(hostile, quote=False).replace('"', "&#34;") in page
    figure = data_of(page)["figures"]["heat-0"]["data"][0]
    shown = [*figure["meta"]["ticks"], *figure["meta"]["methods"], *figure["customdata"][0]]
    assert len(figure["meta"]["ticks"]) == 2 + 1 + 3
    assert not any("<script" in text for text in shown)


def test_several_sheets_stand_for_themselves(make_suite: MakeAll, tmp_path: Path) -> None:
    results = make_suite() + make_suite(protocol="tuned", tried=9)
    page = render(tables(results, "lora"), panels(tmp_path, tmp_path))
    assert page.count('class="sheet"') == 2
    assert "Results: mini, vit-s, protocol honest" in page
    assert "chosen among 9" in page and len(data_of(page)["figures"]) == 6


def test_the_diagram_s_labels_never_meet(make_suite: MakeAll) -> None:
    found = diagram(tables(make_suite()).findings[0])
    assert found is not None
    for left in (True, False):
        ys = sorted(mark.y for mark in found.marks if mark.left == left)
        assert len(ys) == 4 and all(b - a >= 20 for a, b in zip(ys, ys[1:], strict=False))
    assert all(LEFT <= mark.x <= RIGHT and mark.y < found.height for mark in found.marks)
    # a line down to a label crosses no other label's line
    assert [m.x for m in found.marks] == sorted(m.x for m in found.marks)
    lowest = max((y for _, _, y in found.bars), default=0)
    assert all(mark.y > lowest for mark in found.marks)


def test_two_methods_have_no_diagram(make_result: Make) -> None:
    results = [make_result(m, t) for m in "ab" for t in "xyz"]
    assert diagram(tables(results).findings[0]) is None


SCRIPT = """
const seen = (name) => document.querySelectorAll(`#plot-${name} g.trace`).length;
const y = () => document.getElementById("plot-time-0").data.at(-1).y[0];
const marks = {drawn: ["parameters-0", "time-0"].map(seen)};
document.querySelector("[data-group='0']").click();
marks.hidden = seen("time-0");
const before = y();
document.querySelector("[name=mean-0][value=task]").click();
marks.mean = y() !== before;
const heat = document.getElementById("plot-heat-0");
marks.mode = heat.data[0].meta.mode;
document.querySelector("[name=mode-0][value=shares]").click();
marks.then = heat.data[0].meta.mode;
const about = heat.data[0].meta;
const point = (x, y) => ({points: [{x, y}]});
heat.emit("plotly_click", point(about.labels.indexOf("MoSA"), about.names.indexOf("mnist")));
const seen0 = () => [...document.querySelectorAll("#runs-0 details")];
marks.told = document.getElementById("runs-0").textContent;
marks.open = seen0().map((run) => run.open);
seen0()[0].querySelector("summary").click();
marks.opened = seen0().map((run) => run.open);
marks.command = seen0()[0].querySelector("pre").innerText;
marks.links = [...document.querySelectorAll("#runs-0 a")].map((a) => a.getAttribute("href"));
const full = about.labels.indexOf("full fine-tuning");
heat.emit("plotly_click", point(full, about.names.indexOf("azimuth")));
marks.failed = seen0()[1].querySelector("dd").textContent;
heat.emit("plotly_click", point(0, 0));
marks.mean = [marks.mean, document.getElementById("runs-0").textContent];
document.body.dataset.marks = JSON.stringify(marks);
"""


def test_a_browser_draws_it_and_its_controls_work(folder: Path, browse: Browse) -> None:
    page = (folder / "index.html").read_text(encoding="utf-8")
    changed = folder / "changed.html"
    text = POLICY.sub("", page).replace("</body>", f"<script>{SCRIPT}</script></body>")
    changed.write_text(text, encoding="utf-8")
    dom = browse(changed, "--dump-dom")
    (marks,) = re.findall(r'data-marks="([^"]*)"', dom)
    found = json.loads(html.unescape(marks))
    told = found.pop("told")
    assert "MoSA on mnist" in told and "trained parameters" in told and "peak memory" in told
    assert found == {
        "drawn": [16, 16],  # seeds and mean of eight methods
        "hidden": 14,
        "mean": [True, "MoSA on Group mean: a mean, or no run"],
        "mode": "differences",
        "then": "shares",
        "open": [False, False, False],
        "opened": [True, False, False],
        "command": "intarsia fit mini/mnist@train+val",
        "links": ["runs/mosa-mnist-0/report.html", "runs/mosa-mnist-0/run.json"],
        "failed": "MemoryError: killed",
    }


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
