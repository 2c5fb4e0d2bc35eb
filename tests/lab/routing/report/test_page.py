"""The page in a real browser: controls choose what is shown, nothing is complained about."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intarsia.reports.page import html as page_of
from intarsia_lab.routing import sheets_of
from intarsia_lab.routing.report.figures import drawings, series_of
from intarsia_lab.routing.report.page import report_of

MakeRow = Callable[..., dict[str, Any]]
Browse = Callable[..., str]
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
ALWAYS = {"by_steps", "by_operations", "load_cv", "gate_entropy", "agreement", "specialisation",
          "loss_by_position", "experts"}  # fmt: skip


def _rows(make_row: MakeRow) -> list[dict[str, Any]]:
    return [
        make_row(name, seed, loss, budget=budget, layers=2 if name != "dense" else 0, drop=drop)
        for name, loss, drop in (("dense", 3.2, 0.0), ("topk", 3.0, 0.0), ("switch", 3.1, 0.2))
        for seed in (0, 1)
        for budget in ("steps", "flops")
    ]


def _drawn(rows: list[dict[str, Any]], baseline: str | None = None) -> set[str]:
    """Return the names of figures, without the numbers of sheets, contenders and layers."""
    figures = report_of(sheets_of(rows, baseline) if baseline else sheets_of(rows)).figures()
    return {re.sub(r"(-\d+)+$", "", name) for name in figures}


SCRIPT = """
const seen = (name) => [...document.querySelectorAll(`[id^="plot-${name}-"] g.series`)]
  .filter((line) => !line.closest("[hidden]")).length;
const box = (key, value) => `input[data-key=${key}][value="${value}"]`;
const pick = (key, value) => document.querySelector(box(key, value)).click();
const change = (key, value) => {
  const control = document.querySelector(`select[data-key=${key}]`);
  control.value = value;
  control.dispatchEvent(new Event("change"));
};
const marks = {first: [seen("by_steps"), seen("load_cv"), seen("by_place")]};
pick("seed", "single");
marks.seeds = [seen("by_steps"), seen("load_cv")];
pick("group", 2);
marks.hidden = [seen("by_steps"), seen("by_place")];
change("layer", "1");
marks.layer = seen("load_cv");
change("sheet", "1");
marks.sheet = seen("by_steps");
change("contender", "2");
const maps = [...document.querySelectorAll("[id^=plot-experts]")]
  .filter((one) => !one.closest("[hidden]"));
marks.maps = maps.map((one) => one.id);
document.body.dataset.marks = JSON.stringify(marks);
"""


def test_controls_choose_what_is_drawn(make_row: MakeRow, browse: Browse, tmp_path: Path) -> None:
    rows = _rows(make_row)
    assert _drawn(rows, "topk") == ALWAYS | {"by_place", "by_position"}
    source = page_of(report_of(sheets_of(rows, "topk")))
    assert len(source) < 1_500_000 and "<script>alert(1)" not in source
    page = tmp_path / "page.html"
    changed = POLICY.sub("", source).replace("</body>", f"<script>{SCRIPT}</script></body>")
    page.write_text(changed, "utf-8")
    (marks,) = re.findall(r'data-marks="([^"]*)"', browse(page, "--dump-dom"))
    assert json.loads(html.unescape(marks)) == {
        "first": [3, 2, 1],
        "seeds": [9, 6],  # the mean and two seeds each
        "hidden": [6, 0],
        "layer": 3,
        "sheet": 6,
        "maps": ["plot-experts-1-2-0"],
    }


def test_one_contender_of_one_seed(make_row: MakeRow) -> None:
    assert _drawn([make_row()]) == ALWAYS
    controls = report_of(sheets_of([make_row()])).controls()
    assert not {"sheet", "seed", "group"} & set(controls)


def test_a_dense_model_alone(make_row: MakeRow) -> None:
    drawn = _drawn([make_row("dense", layers=0)])
    assert "by_steps" in drawn and not {"experts", "load_cv"} & drawn


def test_of_many_a_few_are_shown_at_first(make_row: MakeRow) -> None:
    rows = [make_row(f"router-{i}", 0, 3 + i) for i in range(12)]
    control = report_of(sheets_of(rows, "router-9")).controls()["group"]
    assert [n for n, _ in control.options if control.is_chosen(n)] == [0, 1, 2, 3, 4, 5, 6, 9]


def test_means_are_over_seeds_point_by_point(make_row: MakeRow) -> None:
    sheets = sheets_of([make_row(seed=0, loss=3.0), make_row(seed=1, loss=5.0)])
    named = {drawing.name: drawing for drawing in drawings()}
    for name, xs in (("by_steps", [25, 50, 75, 100]),
                     ("by_operations", [1.5e10 * s for s in (25, 50, 75, 100)])):  # fmt: skip
        lines = series_of(sheets, 0, named[name])
        mean = next(line for line in lines if line.when["seed"] == "mean")
        assert list(mean.x) == xs
        assert [f"{y:.5g}" for y in mean.y] == [f"{4 + 1 / s:.5g}" for s in (25, 50, 75, 100)]
