"""The benchmark's page: text is text, links lead to what is there, and a browser draws it all."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from intarsia.bench.diagram import LEFT, RIGHT, diagram
from intarsia.bench.figures import linker
from intarsia.bench.page import render
from intarsia.bench.results import Result
from intarsia.bench.summary import tables

Make = Callable[..., Result]
MakeAll = Callable[..., list[Result]]
Browse = Callable[..., str]
CUT = ("Seeds 3 and 4 were left out.",)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture(scope="module")
def folder(make_suite: MakeAll, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """index.html beside a run with a report and one without."""
    out = tmp_path_factory.mktemp("bench")
    results = make_suite(gaps=True)
    for name in ("runs/mosa-mnist-0", "runs/mosa-mnist-1"):
        (out / name).mkdir(parents=True)
    (out / "runs/mosa-mnist-0/report.html").write_text("report")
    page = render(tables(results, "adaptformer"), out=out, cut=CUT)
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
    for text in (
        "Failed cells",
        "MemoryError: killed",
        "Cut or changed",
        CUT[0],
        "13 of 14 tasks",
    ):
        assert text in head
    ids = re.findall(r' id="([^"]+)"', head)
    assert len(ids) == len(set(ids))
    named = re.findall(r'aria-(?:labelledby|describedby)="([^"]+)"', head)
    assert set(named) <= set(ids)


def test_the_map_has_a_cell_for_every_task_and_method(folder: Path) -> None:
    figure = data_of((folder / "index.html").read_text(encoding="utf-8"))["figures"]["heat-0"]
    differences, shares = figure["data"]
    about = shares["meta"]
    assert len(about["names"]) == 14 + 3 + 2 and len(about["methods"]) == 8
    base = about["labels"].index("AdaptFormer")
    for row, other in zip(differences["z"], shares["z"], strict=True):
        assert row[base] == 0
        assert all((a is None) == (b is None) for a, b in zip(row, other, strict=True))
    row, mosa = about["names"].index("mnist"), about["labels"].index("MoSA")
    assert [link for _, _, link in about["runs"][row][mosa]] == [
        "runs/mosa-mnist-0/report.html", "runs/mosa-mnist-1/", None,
    ]  # fmt: skip
    row, full = about["names"].index("azimuth"), about["labels"].index("full fine-tuning")
    assert about["runs"][row][full][1][1] == "failed: MemoryError: killed"
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


def test_links_lead_to_what_is_there(tmp_path: Path) -> None:
    runs, out = tmp_path / "a b", tmp_path / "pages"
    (runs / "x#1?").mkdir(parents=True)
    link = linker(runs, out)
    assert link("x#1?") == "../a%20b/x%231%3F/"
    assert link("none") is None and link("") is None


def test_text_from_results_is_text(make_result: Make, hostile: str, tmp_path: Path) -> None:
    same = {"protocol": hostile, "model": hostile, "suite": hostile, "error": hostile + "\nmore"}
    results = [
        make_result(m, task, seed, share, label=hostile + m, group=group, **same)
        for m in "abc" for seed in (0, 1)
        for task, group, share in (("x", "g", 0.6), ("y", hostile, 0.5),
                                   (hostile, hostile, None if seed else 0.5))
    ]  # fmt: skip
    page = render(tables(results, "a"), out=tmp_path, cut=[hostile])
    assert page.count('<script>alert("x")') == 0
    assert html.escape(hostile, quote=False).replace('"', "&#34;") in page
    figure = data_of(page)["figures"]["heat-0"]["data"][0]
    shown = [*figure["meta"]["ticks"], *figure["meta"]["methods"], *figure["customdata"][0]]
    assert len(figure["meta"]["ticks"]) == 2 + 1 + 3
    assert not any("<script" in text for text in shown)


def test_several_sheets_stand_for_themselves(make_suite: MakeAll, tmp_path: Path) -> None:
    results = make_suite() + make_suite(protocol="tuned", tried=9)
    page = render(tables(results, "lora"), out=tmp_path)
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
marks.told = document.getElementById("runs-0").innerText;
marks.links = [...document.querySelectorAll("#runs-0 a")].map((a) => a.getAttribute("href"));
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
    assert "MoSA on mnist" in found.pop("told")
    assert found == {
        "drawn": [16, 16],  # seeds and mean of eight methods
        "hidden": 14,
        "mean": True,
        "mode": "differences",
        "then": "shares",
        "links": ["runs/mosa-mnist-0/report.html", "runs/mosa-mnist-1/"],
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


def test_a_phone_s_width_is_kept(folder: Path, browse: Browse) -> None:
    script = """
    addEventListener("load", () => {
      const inside = document.querySelector("iframe").contentDocument.documentElement;
      document.body.dataset.width = `${inside.scrollWidth} of ${inside.clientWidth}`;
    });
    """
    source = (folder / "index.html").read_text(encoding="utf-8")
    source = source.replace("&", "&amp;").replace('"', "&quot;")
    frame = f'<iframe width="360" height="800" srcdoc="{source}"></iframe>'
    outer = folder / "phone.html"
    outer.write_text(f"<body>{frame}<script>{script}</script></body>", "utf-8")
    dom = browse(outer, "--dump-dom")
    assert re.findall(r'data-width="([^"]*)"', dom) == ["360 of 360"]
