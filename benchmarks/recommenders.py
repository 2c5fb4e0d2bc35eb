"""Every recommender of users on MovieLens-100k, next to popularity, in one run.

    python benchmarks/recommenders.py --write         # and into docs/benchmarks/recommenders.md
    python benchmarks/recommenders.py --data shop     # a folder or a table of events of your own
    python benchmarks/recommenders.py --only ease,itemknn       # seconds

The last five events of each user are the test, the five before them validation. Each model has as
many settings as `TRIED` names, and the best of them on validation counts; the test is seen once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from frame import markdown, parser, publish, read

from intarsia.areas.recommend.ease import Ease
from intarsia.areas.recommend.itemknn import ItemKnn
from intarsia.areas.recommend.lightgcn import LightGcn
from intarsia.areas.recommend.measures import full_sort
from intarsia.areas.recommend.multvae import MultVae
from intarsia.areas.recommend.neumf import NeuMf
from intarsia.areas.recommend.recommending import fit_recommender, measured, parts_of
from intarsia.core.registry import method_key
from intarsia.data.atomic_files import load_interactions
from intarsia.data.interactions import Interactions

MEASURES = ("nDCG@20", "R@20", "RR@10", "Success@20")
TRIED: tuple[tuple[Any, dict[str, Any]], ...] = (
    *((Ease(reg=reg), {}) for reg in (50.0, 100.0, 250.0, 500.0, 1000.0)),
    *((ItemKnn(neighbours=n, shrink=s), {}) for n in (20, 100) for s in (0.0, 10.0, 100.0)),
    *((LightGcn(), {"lr": lr}) for lr in (1e-2, 3e-2)),
    *((MultVae(), {"lr": lr}) for lr in (1e-3, 3e-3)),
    *((NeuMf(), {"lr": lr}) for lr in (1e-3, 3e-3)),
)


def by_popularity(
    train: Interactions, hidden: Interactions, test: Interactions
) -> dict[str, float]:
    """Measure the same most popular items for every user, without those that she has had."""
    order = np.argsort(-train.popularity(), kind="stable")
    ranked: list[Iterable[int]] = []
    right: list[Iterable[int]] = []
    for user in np.unique(test.users):
        had = {*train.items[train.users == user], *hidden.items[hidden.users == user]}
        found = set(test.items[test.users == user].tolist()) - set(
            train.items[train.users == user].tolist()
        )
        if found:
            ranked.append([int(i) for i in order if i not in had - found][:20])
            right.append(found)
    return full_sort(ranked, right)


def main() -> None:
    made = parser(__doc__, threads=1, reps=1)
    made.add_argument("--data", default="ml-100k")
    made.add_argument("--only", default="", help="methods with commas; all if not given")
    args = read(made)
    data = load_interactions(args.data)
    train, val, test = parts_of(data, "ranking")
    nothing = val.rows(np.zeros(len(val), dtype=bool))
    best: dict[str, tuple[float, Any, dict[str, Any], Any, float]] = {}
    only = args.only.split(",") if args.only else {method_key(s) for s, _ in TRIED}
    for settings, options in TRIED:
        if method_key(settings) not in only:
            continue
        start = time.process_time()
        done = fit_recommender(settings, data, parts=(train, val, test), seed=0, **options)
        seconds = time.process_time() - start
        done.model.known = train
        on_val = measured(done.model, nothing, val)["nDCG@20"]
        key = method_key(settings)
        print(key, settings.get_params(), options, round(on_val, 4), round(seconds, 1), flush=True)
        if key not in best or on_val > best[key][0]:
            best[key] = on_val, settings, options, done.measures, seconds
    rows = [["popularity", "", *(f"{v:.4f}" for v in by_popularity(train, val, test).values()), ""]]
    for key, (_, settings, options, measures, seconds) in sorted(
        best.items(), key=lambda pair: pair[1][3]["nDCG@20"]
    ):
        varied = options or settings.get_params()
        how = ", ".join(f"{name} {value:g}" for name, value in varied.items())
        rows.append([key, how, *(f"{measures[m]:.4f}" for m in MEASURES), f"{seconds:.1f}"])
    about = (
        f"{len(data):,} events of {len(data.user_ids):,} users with {len(data.item_ids):,} items "
        f"({args.data}). All items are ranked for each user; settings are the best on validation, "
        "seconds are CPU seconds of one training with them."
    )
    head = ["method", "settings", *MEASURES, "CPU seconds"]
    publish("Measures of recommenders of users", about, markdown(head, rows), args)


if __name__ == "__main__":
    main()
