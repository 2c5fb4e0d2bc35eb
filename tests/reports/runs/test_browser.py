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

from intarsia.reports.page import html as page_of
from intarsia.reports.runs import comparison_of, gather, report_of, write_report

Browse = Callable[..., str]
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([runs], tmp_path_factory.mktemp("page") / "report.html")


def source_of(folders: list[Path]) -> str:
    return page_of(report_of(comparison_of(gather(folders))))


def test_the_script_runs_without_a_complaint(report: Path, browse: Browse) -> None:
    assert 'data-drawn="yes"' in browse(report, "--dump-dom")


@pytest.mark.thorough
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
    assert colourful.mean() > 0.002


SCRIPT = """
const seen = (name) => [...document.querySelectorAll(`#plot-${name} g.series`)]
  .filter((line) => !line.closest("[hidden]")).length;
const box = (key, value) => `input[data-key=${key}][value="${value}"]`;
const pick = (key, value) => document.querySelector(box(key, value)).click();
const choose = (key, value) => {
  const control = document.querySelector(`select[data-key=${key}]`);
  control.value = value;
  control.dispatchEvent(new Event("change"));
};
const lines = () => [seen("curves-accuracy"), seen("curves-loss"), seen("time")];
const marks = {before: lines()};
pick("group", 0);
marks.hidden = lines();
pick("seed", "single");
marks.seeds = lines();
pick("split", "train");
marks.val = lines();
choose("metric", "loss");
marks.loss = lines();
choose("method", "0");
marks.shown = [...document.querySelectorAll("[id^=plot-confusion]")]
  .filter((one) => !one.closest("[hidden]")).map((one) => one.id);
const table = document.querySelector("table");
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].innerText.trim());
table.tHead.rows[0].cells[1].querySelector("button").click();
marks.up = names();
table.tHead.rows[0].cells[1].querySelector("button").click();
marks.down = names();
document.body.dataset.marks = JSON.stringify(marks);
"""


def test_controls_choose_what_is_shown(report: Path, browse: Browse, tmp_path: Path) -> None:
    source = POLICY.sub("", report.read_text(encoding="utf-8"))
    changed = tmp_path / "changed.html"
    changed.write_text(source.replace("</body>", f"<script>{SCRIPT}</script></body>"), "utf-8")
    dom = browse(changed, "--dump-dom")
    (marks,) = re.findall(r'data-marks="([^"]*)"', dom)
    assert json.loads(html.unescape(marks)) == {
        "before": [6, 0, 6],  # training and validation; seeds and mean
        "hidden": [4, 0, 4],
        "seeds": [16, 0, 4],
        "val": [8, 0, 4],
        "loss": [0, 8, 4],
        "shown": ["plot-confusion-0-shares"],
        "up": ["linear probe", "plain adapter", "mosa"],
        "down": ["mosa", "plain adapter", "linear probe"],
    }


def test_a_foreign_script_is_not_run(report: Path, browse: Browse, tmp_path: Path) -> None:
    foreign = '<script>document.body.dataset.foreign = "ran"</script>'
    changed = tmp_path / "changed.html"
    source = report.read_text(encoding="utf-8")
    changed.write_text(source.replace("</body>", f"{foreign}</body>"), "utf-8")
    dom = browse(changed, "--dump-dom", complaints=1)
    assert 'data-foreign="ran"' not in dom
    assert 'data-drawn="yes"' in dom


def test_a_phone_s_width_is_kept(report: Path, on_a_phone: Callable[[Path], str]) -> None:
    assert on_a_phone(report) == "360 of 360"


WIDTHS = """const cut = [...document.querySelectorAll(".fit")]
  .filter((box) => box.scrollWidth > box.clientWidth + 1).length;
document.body.dataset.cut = `${cut} of ${document.querySelectorAll(".fit").length}`;"""


@pytest.mark.parametrize("width", [390, 800, 1280])
def test_no_table_is_cut(
    make_run: Callable[..., Path], browse: Browse, tmp_path: Path, width: int
) -> None:
    changes = {"results.test.ece": 0.05, "results.test.tempered_loss": 0.63}
    labels = ("linear probe", "plain adapter", "adaptformer smoothing")
    folders = [make_run(f"{m}{s}", label=m, seed=s, change=changes) for m in labels for s in (0, 1)]
    page = tmp_path / "page.html"
    source = POLICY.sub("", source_of(folders)).replace("<details>", "<details open>")
    page.write_text(source.replace("</body>", f"<script>{WIDTHS}</script></body>"), "utf-8")
    # a headless window has a least width of its own: the page stands in a frame
    outer = tmp_path / "outer.html"
    frame = f'<iframe width="{width}" height="800" src="{page.as_uri()}"></iframe>'
    copy = "document.body.dataset.cut = frames[0].document.body.dataset.cut"
    outer.write_text(f'{frame}<script>addEventListener("load", () => {{{copy}}})</script>')
    dom = browse(outer, "--dump-dom", "--allow-file-access-from-files")
    ((cut, count),) = re.findall(r'data-cut="(\d+) of (\d+)"', dom)
    assert int(cut) == 0 and int(count) > 4


def test_a_single_run_needs_no_choice(runs: Path) -> None:
    controls = report_of(comparison_of(gather([runs / "mosa-1"]))).controls()
    assert set(controls) == {"metric", "split", "mode"}
