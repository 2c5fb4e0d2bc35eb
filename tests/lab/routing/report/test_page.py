"""The page in a real browser: plots are drawn, controls choose, nothing is complained about."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from intarsia_lab.routing import sheets_of
from intarsia_lab.routing.report.figures import plots
from intarsia_lab.routing.report.page import render

Told = Callable[..., dict[str, Any]]
Browse = Callable[..., str]
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
ALWAYS = {"by_steps", "by_operations", "load_cv", "gate_entropy", "agreement", "specialisation",
          "loss_by_position", "experts"}  # fmt: skip


def _rows(told: Told) -> list[dict[str, Any]]:
    return [
        told(name, seed, loss, budget=budget, layers=2 if name != "dense" else 0, drop=drop)
        for name, loss, drop in (("dense", 3.2, 0.0), ("top-k", 3.0, 0.0), ("switch", 3.1, 0.2))
        for seed in (0, 1)
        for budget in ("steps", "flops")
    ]


def _drawn(dom: str) -> set[str]:
    return set(re.findall(r'id="plot-(\w+)"[^>]*>\s*<div class="plot-container', dom))


SCRIPT = """
const seen = (name) => document.querySelectorAll(`#plot-${name} g.trace`).length;
const change = (id, value) => {
  document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event("change"));
};
const marks = {first: [seen("by_steps"), seen("load_cv"), seen("by_place")]};
document.getElementById("seeds").click();
marks.seeds = [seen("by_steps"), seen("load_cv")];
document.querySelector("[data-group='2']").click();
const shown = (name) => getComputedStyle(document.getElementById(`plot-${name}`)).display;
marks.hidden = [seen("by_steps"), shown("by_place")];
change("layer", "1");
marks.layer = seen("load_cv");
change("sheet", "1");
marks.sheet = seen("by_steps");
change("contender", "2");
marks.ticks = [...document.querySelectorAll("#plot-experts .xtick")].map((t) => t.textContent);
document.getElementById("nobody").click();
marks.nobody = shown("by_steps");
document.body.dataset.marks = JSON.stringify(marks);
"""


def test_controls_choose_what_is_drawn(told: Told, browse: Browse, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    source = render(sheets_of(_rows(told), "top-k"))
    page.write_text(source, "utf-8")
    assert _drawn(browse(page, "--dump-dom")) == ALWAYS | {"by_place", "by_position"}
    changed = POLICY.sub("", source).replace("</body>", f"<script>{SCRIPT}</script></body>")
    page.write_text(changed, "utf-8")
    (marks,) = re.findall(r'data-marks="([^"]*)"', browse(page, "--dump-dom"))
    assert json.loads(html.unescape(marks)) == {
        "first": [3, 2, 1],
        "seeds": [9, 6],  # the mean and two seeds each
        "hidden": [6, "none"],
        "layer": 3,
        "sheet": 6,
        "ticks": ["space", "<script>alert(1)<\N{HORIZONTAL ELLIPSIS}", "word"],
        "nobody": "none",
    }


def test_one_contender_of_one_seed(told: Told, browse: Browse, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    source = render(sheets_of([told()]))
    page.write_text(source, "utf-8")
    assert _drawn(browse(page, "--dump-dom")) == ALWAYS
    shown = source.partition('id="data"')[0]
    assert not any(f'id="{name}"' in shown for name in ("sheet", "seeds", "nobody"))
    assert "data-group" not in shown


def test_a_dense_model_alone(told: Told) -> None:
    source = render(sheets_of([told("dense", layers=0)]))
    shown = source.partition('id="data"')[0]
    assert "plot-by_steps" in shown and "plot-experts" not in shown and "plot-load_cv" not in shown


def test_of_many_a_few_are_shown_at_first(told: Told) -> None:
    rows = [told(f"router-{i}", 0, 3 + i) for i in range(12)]
    shown = render(sheets_of(rows, "router-9")).partition('id="data"')[0]
    found = [int(n) for n in re.findall(r'data-group="(\d+)" checked', shown)]
    assert found == [0, 1, 2, 3, 4, 5, 6, 9]


def test_means_are_over_seeds_point_by_point(told: Told) -> None:
    (sheet,) = sheets_of([told(seed=0, loss=3.0), told(seed=1, loss=5.0)])
    for name, xs in (("by_steps", [25, 50, 75, 100]),
                     ("by_operations", [1.5e10 * s for s in (25, 50, 75, 100)])):  # fmt: skip
        mean = next(t for t in plots([sheet])[name].data if t.meta["seed"] is None)
        assert list(mean.x) == xs
        assert list(mean.y) == [float(f"{4 + 1 / s:.5g}") for s in (25, 50, 75, 100)]
