"""Which k for which budget: the search behind `Mosa.for_budget`, on validation images only.

    python studies/mosa_k.py             # the table on the terminal
    python studies/mosa_k.py --images 800    # the budgets of so many images alone
    python studies/mosa_k.py --write     # and into docs/benchmarks/mosa_k.md

Every arm is one adapter, split into 4 parts or left whole, at the same steps. Differences are
paired by set and seed. Cells are kept, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.adapters import Bottleneck
from intarsia.methods import Mosa
from intarsia.reports.sheet import Differences
from intarsia.schedules import active_at, set_active
from intarsia_lab.experiments.mosa import ADAPTER, BASE, SETS, arm, plain
from intarsia_lab.experiments.records import machine
from intarsia_lab.kit.arms import threads
from intarsia_lab.materials import structured
from intarsia_lab.materials.picture_cells import Budget, PictureCells, StudyScore
from intarsia_lab.pages.results import markdown

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "mosa_k.md"
FEW = Budget("few steps", images=1000, epochs=5)
LONG = Budget("scarce, long", images=200, epochs=100)
VTAB = Budget("as many as VTAB-1k has", images=800, epochs=20)  # the last three blocks, as `mini`
Cells = dict[tuple[str, int], StudyScore]  # by set and seed


def ramp(model: Any, step: int, steps: int) -> None:
    """k from 1 to 4 in four equal shares of the steps."""
    set_active(model, active_at(step, steps, first=1, last=4))


ARMS = (
    ADAPTER,
    arm("k = 1, per sample", lambda _: Mosa(over=plain())),
    arm("k = 2, per sample", lambda _: Mosa(over=plain(), active=2)),
    arm("k = 3, per sample", lambda _: Mosa(over=plain(), active=3)),
    arm("k = 2, per batch", lambda _: Mosa(over=plain(), active=2, draw="batch")),
    arm("k from 1 to 4, per sample", lambda _: Mosa(over=plain()),
        options=lambda _: {"schedule": ramp}),
)  # fmt: skip
WHOLE, K1, K2, K3, BATCH, RAMP = ARMS
wide = partial(Bottleneck, 64, activation="gelu")
WIDE = (
    arm("adapter of 64", lambda _: wide()),
    arm("of 64, k = 1, per sample", lambda _: Mosa(over=wide())),
    arm("of 64, k = 2, per sample", lambda _: Mosa(over=wide(), active=2)),
)
UNSPLIT = {one.name: WHOLE.name for one in ARMS} | {one.name: WIDE[0].name for one in WIDE}
LARGER = ("fashion-mnist", "elpv", "mnist", "emoji", *structured.TASKS)  # 800 to train on
SEARCH = (  # budget, sets, seeds, arms: the dear ones with fewer of the last two
    (FEW, SETS, (0, 1), (WHOLE, K1, K2, BATCH, RAMP)),
    (VTAB, LARGER, (0,), (WHOLE, K1, K2, K3, RAMP)),
    (VTAB, LARGER, (1,), (WHOLE, K2, K3)),
    (VTAB, LARGER, (0,), WIDE),
    (VTAB, LARGER, (1,), (WIDE[0], WIDE[2])),
    (LONG, SETS, (0,), (WHOLE, K1, K2, BATCH, RAMP)),
    (LONG, SETS, (1, 2), (WHOLE, K1)),
)


def search(report: Callable[[str], None], images: int | None) -> dict[tuple[Budget, str], Cells]:
    """Scores by budget and arm; images: of the budgets of so many, None = of all."""
    found: dict[tuple[Budget, str], Cells] = {}
    with threads(1):
        for budget, names, seeds, arms in SEARCH:
            if images not in (None, budget.images):
                continue
            study = PictureCells(base=BASE, part="val", test=500, first=9 if budget is VTAB else 6)
            for name, seed, one in product(names, seeds, arms):
                score = study.cell(name, budget, one, seed)
                found.setdefault((budget, one.name), {})[name, seed] = score
                report(
                    f"{budget.name}, {name}, seed {seed}, {one.name}: {score.accuracy:.1f} %, "
                    f"loss {score.loss:.2f}, {score.cpu:.0f} s"
                )
    return found


def rows(found: Mapping[tuple[Budget, str], Cells]) -> list[dict[str, str]]:
    """A line for each budget and arm: what it gains over the whole adapter, and what it costs."""
    lines: list[dict[str, str]] = []
    for (budget, name), cells in found.items():
        whole = found[budget, UNSPLIT[name]]
        pairs = [(score, whole[place]) for place, score in cells.items()]
        gain = Differences(np.array([[s.accuracy - w.accuracy for s, w in pairs]]))
        loss = statistics.mean(s.loss - w.loss for s, w in pairs)
        split = name != UNSPLIT[name]
        lines.append(
            {
                "images x epochs": f"{budget.images} x {budget.epochs}",
                "adapter": "left whole" if name == WHOLE.name else name,
                "pairs": str(len(pairs)),
                "accuracy": f"{statistics.mean(s.accuracy for s, _ in pairs):.1f}",
                "points gained": f"{gain.mean:+.1f} ± {gain.half_width:.1f}" if split else "",
                "loss": f"{loss:+.2f}" if split else "",
                "CPU time": f"{statistics.median(s.cpu / w.cpu for s, w in pairs):.2f}x",
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--images", type=int, choices=sorted({b.images for b, *_ in SEARCH}))
    chosen.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    asked = parser.parse_args()
    report = partial(print, flush=True)
    table = "\n".join(markdown(rows(search(report, asked.images))))
    print(table)
    if asked.write:
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        setting = replace(BASE, epochs=1)
        PAGE.write_text(
            "# Which k for which budget\n\n"
            "Validation images only; ViT-S/14 at 56 px, adapters in the last six of twelve blocks\n"
            "(with 800 images in the last three), 16 wide or as said, N = 4 parts of the\n"
            "up-projection, inverted scaling, no second pass. Points and loss are differences to\n"
            "the same adapter left whole, paired by set and seed, with the half-width of a 95 %\n"
            "interval. Sets: Fashion-MNIST, ELPV, Tux Paint (at most 429 images); with 800 images\n"
            "Fashion-MNIST, ELPV, MNIST, emoji and the six synthetic ones.\n\n"
            f"`python studies/mosa_k.py --write` on {today}; {machine()}; lr {setting.lr},\n"
            f"batch {setting.batch_size}, {setting.precision}.\n\n{table}\n"
        )


if __name__ == "__main__":
    main()
