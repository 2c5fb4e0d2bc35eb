"""The page in a real browser: plots are drawn, controls work, nothing is complained about."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intarsia.results.runs import gather, render, write_report

Browse = Callable[..., str]
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([runs], tmp_path_factory.mktemp("page") / "report.html")


def plots_in(dom: str) -> set[str]:
    """The plots that hold a drawing."""
    return set(re.findall(r'id="plot-(\w+)"[^>]*>\s*<div class="plot-container', dom))


def test_all_plots_are_drawn(report: Path, browse: Browse) -> None:
    dom = browse(report, "--dump-dom")
    assert plots_in(dom) == {"parameters", "time", "curves", "confusion"}
    assert 'data-drawn="yes"' in dom
    # three methods, means of training and validation
    curves = dom[dom.index('id="plot-curves"') :]
    assert curves[: curves.index("</figure>")].count('class="trace scatter') == 6


@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_the_picture_is_not_blank(
    report: Path, browse: Browse, tmp_path: Path, scheme: int
) -> None:
    shot = tmp_path / "shot.png"
    flags = (f"--screenshot={shot}", "--window-size=1200,2400")
    browse(report, *flags, f"--blink-settings=preferredColorScheme={scheme}")
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    paper = pixels[2, 2]
    assert (paper.mean() > 128) == bool(scheme)
    differs = np.abs(pixels - paper).sum(2) > 60
    # text, lines and heat maps everywhere, but mostly paper
    assert all(0.005 < band.mean() < 0.5 for band in np.array_split(differs, 6))
    colourful = (pixels.max(2) - pixels.min(2)) > 60
    assert colourful.mean() > 0.005


SCRIPT = """
const seen = (name) => document.querySelectorAll(`#plot-${name} g.trace`).length;
const marks = {before: [seen("curves"), seen("time")]};
document.querySelector("[data-group='0']").click();
marks.hidden = [seen("curves"), seen("time")];
document.getElementById("seeds").click();
marks.seeds = [seen("curves"), seen("time")];
document.querySelector("[data-split=train]").click();
marks.val = [seen("curves"), seen("time")];
const metric = document.getElementById("metric");
metric.value = "loss";
metric.dispatchEvent(new Event("change"));
marks.loss = document.querySelector("#plot-curves .ytitle").textContent;
const method = document.getElementById("method");
method.value = "0";
method.dispatchEvent(new Event("change"));
marks.shown = [...document.querySelectorAll("[data-errors]")].filter((b) => !b.hidden)
  .map((b) => b.dataset.errors);
marks.tick = document.querySelector("#plot-confusion .ytick:nth-child(3)").textContent;
document.body.dataset.marks = JSON.stringify(marks);
"""


def test_controls_choose_what_is_shown(report: Path, browse: Browse, tmp_path: Path) -> None:
    source = POLICY.sub("", report.read_text(encoding="utf-8"))
    changed = tmp_path / "changed.html"
    changed.write_text(source.replace("</body>", f"<script>{SCRIPT}</script></body>"), "utf-8")
    dom = browse(changed, "--dump-dom")
    (marks,) = re.findall(r'data-marks="([^"]*)"', dom)
    assert json.loads(html.unescape(marks)) == {
        "before": [6, 6],  # training and validation; seeds and mean
        "hidden": [4, 4],
        "seeds": [16, 4],
        "val": [8, 4],
        "loss": "Loss",
        "shown": ["0", "0"],
        "tick": '<script>alert("x"\N{HORIZONTAL ELLIPSIS}',
    }


def test_a_foreign_script_is_not_run(report: Path, browse: Browse, tmp_path: Path) -> None:
    foreign = '<script>document.body.dataset.foreign = "ran"</script>'
    changed = tmp_path / "changed.html"
    source = report.read_text(encoding="utf-8")
    changed.write_text(source.replace("</body>", f"{foreign}</body>"), "utf-8")
    dom = browse(changed, "--dump-dom", complaints=1)
    assert 'data-foreign="ran"' not in dom
    assert plots_in(dom)


def test_a_phone_s_width_is_kept(report: Path, on_a_phone: Callable[[Path], str]) -> None:
    assert on_a_phone(report) == "360 of 360"


def test_the_widest_table_fits_its_column(
    make_run: Callable[..., Path], browse: Browse, tmp_path: Path
) -> None:
    more = {"results.test.ece": 0.05, "results.test.tempered_loss": 0.63}
    labels = ("linear probe", "plain adapter", "adaptformer smoothing")
    folders = [make_run(f"{m}{s}", label=m, seed=s, change=more) for m in labels for s in (0, 1)]
    script = """const box = document.querySelector(".results").parentElement;
    document.body.dataset.width = `${box.scrollWidth} of ${box.clientWidth}`;"""
    page = tmp_path / "page.html"
    source = POLICY.sub("", render(gather(folders)))
    page.write_text(source.replace("</body>", f"<script>{script}</script></body>"), "utf-8")
    dom = browse(page, "--dump-dom", "--window-size=1280,900")
    ((whole, seen),) = re.findall(r'data-width="(\d+) of (\d+)"', dom)
    assert int(whole) <= int(seen)


def test_a_single_run_needs_no_choice(runs: Path, browse: Browse, tmp_path: Path) -> None:
    page = tmp_path / "one.html"
    page.write_text(render(gather([runs / "mosa-1"])), "utf-8")
    dom = browse(page, "--dump-dom")
    assert plots_in(dom) == {"curves", "confusion"}
    assert 'id="method"' not in dom and "data-group" not in dom.partition('id="data"')[0]
