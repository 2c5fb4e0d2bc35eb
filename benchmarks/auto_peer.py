"""FLAML on frozen features, next to `intarsia auto`: rows of benchmarks/auto_peer.jsonl.

    pip install "flaml[automl]" && python benchmarks/auto_peer.py --suite mini
    python benchmarks/auto.py --page

FLAML searches over boosted trees, forests, nearest neighbours and logistic regression. It gets the
pictures of benchmarks/auto.py as features: of each backbone at its largest size, and of both side
by side. Each search has a minute of one core; its answer is what its own cross-validation prefers.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

time.time = time.process_time  # FLAML's budget: a crowded machine gives the same search, only later

import numpy as np  # noqa: E402
import torch  # noqa: E402
from auto import IMAGES, PEER, SEED, TEST, rows  # noqa: E402
from flaml import AutoML  # pyright: ignore[reportMissingImports]  # noqa: E402
from sklearn.model_selection import PredefinedSplit  # noqa: E402

from intarsia.data import input_config  # noqa: E402
from intarsia.runs.choosing.auto import known_models  # noqa: E402
from intarsia.runs.choosing.views import views  # noqa: E402
from intarsia.runs.execute import held, model_of, pictures_of  # noqa: E402
from intarsia.runs.experiment import Adapted, Experiment, Pictures  # noqa: E402
from intarsia.train.folds import deal  # noqa: E402
from intarsia.train.probe import features  # noqa: E402
from intarsia_lab.materials import suites  # noqa: E402

SECONDS = 60.0
FOLDS = 5
# FLAML's own but two, whose single fits go on for minutes on so many features: sgd and lrl1
LEARNERS = ["lgbm", "xgboost", "xgb_limitdepth", "rf", "extra_tree", "kneighbor", "lrl2"]


def peer(data: str) -> dict[str, object]:
    """Return the row of one task: FLAML's share of right answers on the test part."""
    start = Experiment(Pictures(""), Adapted()).changed(
        val=0, data=data, images=IMAGES, test=TEST, seed=SEED
    )
    splits = pictures_of(start, lambda _: None)
    largest = {view.model: view for view in views(start, known_models(), ())}
    parts = dict[str, list[tuple[np.ndarray, np.ndarray]]]()
    began = time.process_time()
    for name, view in largest.items():
        model = model_of(view.probe.adapted, len(splits.classes), SEED)
        config = input_config(model)
        parts[name] = [
            (x.numpy(), labels.numpy())
            for x, labels in (
                features(model, held(part, config)) for part in (splits.train, splits.test)
            )
        ]
    parts["both"] = [
        (np.concatenate([parts[name][i][0] for name in largest], 1), parts[name][i][1])
        for i in range(2)
    ]
    best = min((search(*given) + (name,) for name, given in parts.items()), key=lambda s: s[0])
    loss, right, learner, name = best
    minutes = round((time.process_time() - began) / 60, 2)
    return {
        "data": data, "accuracy": right, "loss": loss, "learner": learner, "features": name,
        "core_minutes": minutes,
    }  # fmt: skip


def search(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float, str]:
    """Return FLAML's held-out loss, its share of right test answers, and its learner."""
    automl = AutoML()
    labels = train[1]
    count = np.bincount(labels)[labels]
    folds: Any = "stratified"
    if count.min() < FOLDS:
        # it would copy rare rows before it deals them: folds of our own, a single row is never held
        folds = PredefinedSplit(np.where(count == 1, -1, deal(labels, FOLDS, SEED)))
    automl.fit(
        *train, task="classification", metric="accuracy", time_budget=SECONDS, n_jobs=1,
        eval_method="cv", n_splits=FOLDS, seed=SEED, verbose=0, estimator_list=LEARNERS,
        auto_augment=False, split_type=folds,
    )  # fmt: skip
    right = float((automl.predict(test[0]) == test[1]).mean())
    return float(automl.best_loss), right, str(automl.best_estimator)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--suite", default="mini", choices=("mini", "fresh"))
    torch.set_num_threads(1)
    suite = parser.parse_args().suite
    done = rows(PEER)
    for task in suites.suite(suite).tasks:
        data = f"{suite}/{task.name}"
        if done.get(data, {}).get("seed") != SEED:
            row = {"seed": SEED} | peer(data)
            with PEER.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
