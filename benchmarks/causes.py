"""Sparse coding next to what takes no model of it: NMF on bars, one Gaussian on holes in patches.

    python benchmarks/causes.py --write           # docs/benchmarks/causes.md, a minute
    python benchmarks/causes.py --seeds 1 --patches 200      # a smoke test

Bars come from the experiment `prosper-bars`, and its record has what our models find: drawn by each
model's own rule, so that the model is the right one for its data. NMF gets the same pictures.
Holes are every third pixel of patches that nothing was fitted on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np
from frame import PAGES, markdown, parser, publish, read

import intarsia
from intarsia.data.photographs import grey, patches, photographs
from intarsia_lab.experiments.prosper import KINDS, learned

Array = np.ndarray
RESULTS = PAGES.parent / "results"
SIDE, UNSEEN = 8, 1000  # of a patch; patches that are filled
MODELS = {  # components, passes
    "GSC": lambda: intarsia.coding.GSC(64, n_iter=60, data_cut=False, random_state=0),
    "BSC": lambda: intarsia.coding.BSC(64, n_iter=60, data_cut=False, random_state=0),
}


def by_gaussian(x: Array, holes: Array) -> Array:
    """Fill holes by the conditional mean of one Gaussian, fitted to the rows x, (n, pixels)."""
    gone = np.isnan(holes[0])  # the same pixels of each row
    centre, covariance = x.mean(axis=0), np.cov(x.T)
    known, across = covariance[~gone][:, ~gone], covariance[~gone][:, gone]
    filled = holes.copy()
    off = holes[:, ~gone] - centre[~gone]
    filled[:, gone] = centre[gone] + off @ np.linalg.solve(known, across)
    return filled


def holes_filled(count: int) -> list[list[str]]:
    """The rows of each way to fill holes, fitted to so many patches: error, CPU seconds."""
    pictures = [grey(p.pixels) for p in photographs((), shrink=2)]
    x = patches(pictures, SIDE, count + UNSEEN, np.random.default_rng(0))
    x -= x.mean(axis=1, keepdims=True)
    x, unseen = x[:count], x[count:]
    holes = unseen.copy()
    holes[:, ::3] = np.nan
    ways: dict[str, Callable[[], Array]] = {
        "zeros": lambda: np.nan_to_num(holes),
        "one Gaussian": lambda: by_gaussian(x, holes),
    }
    ways |= {name: lambda make=make: make().fit(x).inpaint(holes) for name, make in MODELS.items()}
    rows: list[list[str]] = []
    for name, fill in ways.items():
        start = time.process_time()
        error = np.abs(fill() - unseen)[:, ::3].mean()
        rows.append([name, f"{error:.2f}", f"{time.process_time() - start:.2f}"])
    return rows


def bars_found(seeds: Sequence[int]) -> list[list[str]]:
    """The rows of each kind of bars: seeds in which nine or ten are found, and CPU seconds."""
    record = json.loads((RESULTS / "prosper-bars.json").read_text())
    rows: list[list[str]] = []
    for kind in KINDS:
        (ours,) = (row for row in record["table"] if row["bars of"] == row["model"] == kind)
        runs = [learned("NMF", kind, seed) for seed in seeds]
        good = sum(run["bars"] >= 9 for run in runs)
        rows.append([kind, ours["seeds with 9 or 10"], ours["CPU s"]])
        rows[-1] += [f"{good} of {len(runs)}", f"{mean(run['cpu'] for run in runs):.2f}"]
    return rows


def main() -> None:
    made = parser(__doc__, threads=1, reps=1)
    made.add_argument("--seeds", type=int, default=24, help="of NMF's bars")
    made.add_argument("--patches", type=int, default=2000, help="that are fitted")
    args = read(made)
    rows = bars_found(range(args.seeds))
    about = (
        "Seeds in which at least nine of ten bars in 1,000 pictures are found: each model on data "
        "of its own kind, by [its experiment](../results/prosper.md), and scikit-learn's "
        "NMF on the same pictures (of MMCA's signed bars on both signs side by side). Of "
        f"{args.patches:,} patches of {SIDE} x {SIDE} grey pixels, "
        f"less their means, a way to fill every third pixel of {UNSEEN:,} others; errors are means "
        "in grey levels of 255. Sparse codes have 64 components; times are CPU seconds."
    )
    body = markdown(("bars of", "ours", "CPU s", "NMF", "NMF's CPU s"), rows)
    body += ["", *markdown(("holes filled by", "error", "CPU s"), holes_filled(args.patches))]
    publish("Causes next to a Gaussian and NMF", about, body, args)


if __name__ == "__main__":
    main()
