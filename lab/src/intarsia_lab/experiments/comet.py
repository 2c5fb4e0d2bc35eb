"""COMET's gates on MovieLens-100k, two tasks over shared experts, and a luckily drawn setting.

Each gate is tried with the same draws of learning rate, strength of its own loss, and length of the
search; the draw that does best on pairs kept from training is scored on test pairs.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from intarsia.core.registry import method_to_dict
from intarsia.core.store import Store
from intarsia.data.packages import cache_dir
from intarsia.fitting import fit
from intarsia.gating import RouterConfig
from intarsia.gating.load import CollapseWarning
from intarsia.routers import Comet, DSelectK, Hash, PermutationSearch, TopK
from intarsia.train import evaluate

from ..kit import Effect, Report, Result, Study
from ..kit.arms import by_arm, result_of
from ..kit.stored import sources
from ..materials.films import EXPERTS, WatchAndRate, Watcher, parts, watcher

ACTIVE, BATCH = 2, 512
# numbers of trials at which gates are compared: the paper's question is the budget of tuning
ROUNDS = (1, 2, 3, 6)


class Drawn(NamedTuple):
    """Settings that a random search draws for a gate.

    lr: of AdamW; strength: 0 ... 1, where in the range of a gate's own loss; search: length of the
    search for a permutation, as a share of the steps.
    """

    lr: float
    strength: float
    search: float


class Length(NamedTuple):
    """Length of the experiment.

    draws: of each gate; epochs: of a training; file: of stored scores, None = the cache's.
    """

    draws: int = 6
    epochs: int = 4
    file: Path | None = None

    @property
    def steps(self) -> int:
        """The number of optimiser steps of one training."""
        return self.epochs * -(-len(parts()["train"]) // BATCH)


LENGTH = Length()


def between(low: float, high: float, share: float) -> float:
    """Return the value at a share of the way from `low` to `high` on a log scale."""
    # a rate and a strength are as likely in each decade of their range
    return low * (high / low) ** share


def top_k(*_: Any) -> RouterConfig:
    """Return a top-k router of 16 experts, 2 active; it has no setting that is drawn."""
    # no balance loss: of the gates' own losses only those are drawn that their papers have
    return TopK(EXPERTS, ACTIVE, balance=0.0)


def comet(drawn: Drawn, _: int) -> RouterConfig:
    """Return COMET's router, a tree of sigmoids for each expert.

    drawn: settings of this draw; `strength` sets the weight of its entropy loss.
    """
    return Comet(EXPERTS, ACTIVE, entropy=between(0.05, 10, drawn.strength))


def searched(over: Callable[[Drawn, int], RouterConfig], drawn: Drawn, steps: int) -> RouterConfig:
    """Return a router with experts that COMET's search permutes in the first steps.

    over: makes the router that is permuted; drawn: settings of this draw, with `search` as the
    share of the training that the search takes; steps: of the whole training.
    """
    return PermutationSearch(over(drawn, steps), steps=max(1, round(drawn.search * steps)))


GATES: Mapping[str, Callable[[Drawn, int], RouterConfig]] = {
    "COMET": comet,
    "top-k": top_k,
    "top-k+": partial(searched, top_k),
    "COMET+": partial(searched, comet),
    "DSelect-k": lambda d, _: DSelectK(EXPERTS, ACTIVE, entropy=between(1e-3, 0.1, d.strength)),
    "hash of the film": lambda *_: Hash(EXPERTS, ACTIVE),
}
"""A draw and the steps to a router."""
PAIR = ("COMET", "top-k")


def draws(seed: int, count: int) -> list[Drawn]:
    """Return `count` random settings (learning rate, loss strength, search length) of a seed.

    They are the same for every gate.
    """
    # the same draws for every gate: equal trials, and pairs by seed
    lot = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # rates 3e-4 to 1e-2 and searches of 1 to 10 % of the steps, both log-uniform
    return [Drawn(between(3e-4, 1e-2, a), b, between(0.01, 0.1, c)) for a, b, c in lot.tolist()]


def trained(router: RouterConfig, drawn: Drawn, seed: int, epochs: int) -> Watcher:
    """Train a recommender with a mixture under the given router; return it at its best epoch.

    The data are pairs of a user and a film of MovieLens-100k, with two tasks: does the user watch
    it, and how many stars does it get. drawn: settings of one draw of the random search (only the
    learning rate is used here); seed: of the start and the order of batches; epochs: passes over
    the training pairs. The best epoch is the one with the least loss on validation pairs.
    """
    model = watcher(router, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)  # the table says so
        fit(
            model,
            parts()["train"],
            parts()["val"],
            task=WatchAndRate(),
            # early stopping, as in the paper: the epoch is chosen on pairs kept from training
            select="val",
            epochs=epochs,
            batch_size=BATCH,
            lr=drawn.lr,
            seed=seed,
            trackers=(),
        )
    return model


@torch.no_grad()
def scored(model: Watcher) -> dict[str, float]:
    """Return the scores of a trained recommender, by name.

    val, loss: the loss on validation and on test pairs; of the test pairs also auc: area under the
    ROC curve of watching; stars: root mean squared error of the stars; active: experts of a pair;
    largest: the largest share that one expert has of all choices. The last two are means over the
    gates of both tasks.

    model: scored in evaluation mode, on MovieLens-100k.
    """
    model.eval()
    val, test = (
        evaluate(model, parts()[name], task=WatchAndRate(), batch_size=4096)
        for name in ("val", "test")
    )
    # one pass over all test pairs, so that each router's last routing is of them
    model(parts()["test"].tensors[0])
    routings = [cast(Any, mixture).router.last for mixture in model.mixtures]
    return {
        "val": val.loss,
        "loss": test.loss,
        "auc": test.scores()["auc"],
        "stars": test.scores()["stars"],
        "active": statistics.mean(len(r.token) / r.tokens for r in routings),
        "largest": statistics.mean(float(r.load().max()) / len(r.token) for r in routings),
    }


Tries = Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]]
"""Scores by gate, seed and draw."""


def tried(seeds: Sequence[int], report: Report, length: Length, gates: Sequence[str]) -> Tries:
    """Return the scores of every draw of every gate and seed; stored ones are read, the others run.

    length: draws of a gate, epochs of a training, and the file of stored scores; gates: keys of
    GATES.
    """
    # an hour of runs is kept gate by gate, so that a stopped run resumes
    path = length.file or cache_dir() / "experiments" / "comet.jsonl"
    store = Store(path.parent, path.name, code=sources())

    def of_gate(name: str, seed: int) -> list[Mapping[str, float]]:
        """Return the scores of a gate with each of the seed's draws, see `scored`."""
        return [
            _one(store, GATES[name](d, length.steps), d, seed, length.epochs)
            for d in draws(seed, length.draws)
        ]

    def said(tries: Sequence[Mapping[str, float]]) -> str:
        return f"test loss {picked(tries)['loss']:.3f}"

    by_gate = by_arm({name: name for name in gates}, seeds, of_gate, report, said)
    return {name: dict(zip(seeds, tries, strict=True)) for name, tries in by_gate.items()}


def _one(
    store: Store, router: RouterConfig, drawn: Drawn, seed: int, epochs: int
) -> Mapping[str, float]:
    """Train one gate with one drawn setting, or read its stored result; return its scores."""
    # of a draw, the router's settings hold the loss strength and the search length
    inputs = {
        "router": method_to_dict(cast(Any, router)),
        "lr": drawn.lr,
        "seed": seed,
        "epochs": epochs,
    }

    def run() -> dict[str, float]:
        start = time.process_time()
        scores = scored(trained(router, drawn, seed, epochs))
        return {**scores, "cpu": time.process_time() - start}

    return store.record(inputs, run)


def picked(tries: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """Return the scores of the draw that has the least loss on validation pairs.

    tries: the scores of one gate and seed, one dict for each draw.
    """
    return min(tries, key=lambda t: t["val"])


def best_of(tries: Sequence[Mapping[str, float]], count: int, name: str = "loss") -> float:
    """Return the expected score of the draw that validation picks among `count` random draws.

    It is the mean over all subsets of `count` of the draws that were run. tries: the scores of one
    gate and seed, one dict for each draw; name: the score, by default the test loss.
    """
    # the i-th best draw is the pick of a set if the set has none of those before it: C(n - i - 1, b
    # - 1) of C(n, b) sets; so every draw counts, not one lucky set
    order = sorted(tries, key=lambda t: t["val"])
    ways = math.comb(len(order), count)
    # chance[i]: how probable it is that the i-th best draw by validation is picked
    chance = [math.comb(len(order) - i - 1, count - 1) / ways for i in range(len(order))]
    return sum(p * t[name] for p, t in zip(chance, order, strict=True))


def ratio(tries_by_gate: Tries, ours: str, base: str) -> tuple[float, ...]:
    """Return the test loss of gate `ours` over gate `base`'s, one ratio for each seed.

    Each gate has the draw that validation picks. ours, base: keys of GATES.

    tries_by_gate: scores by gate, seed and draw.
    """
    return tuple(
        picked(tries_by_gate[ours][s])["loss"] / picked(tries_by_gate[base][s])["loss"]
        for s in tries_by_gate[ours]
    )


def judge(
    seeds: Sequence[int],
    report: Report,
    *,
    figure: Callable[[Tries], tuple[float, ...]],
    total: Callable[[Sequence[float]], float] = statistics.mean,
    gates: Sequence[str] = tuple(GATES),
    length: Length = LENGTH,
) -> Result:
    """Try gates with random settings on MovieLens-100k; return a figure of their scores.

    Every gate routes two tasks over 16 shared experts and is trained once for each draw of learning
    rate, loss strength and search length. figure: scores by gate, seed and draw -> one value for
    each seed; total: the figure from these values; gates: keys of GATES; length: draws of a gate
    and epochs of a training.
    """
    # step 1: all draws of all gates
    results = tried(seeds, report, length, gates)
    # step 2: a value for each seed
    values = figure(results)
    setting = (
        f"Watched or not, and how many stars: {len(parts()['train']):,} pairs of a user and a film "
        f"train two gates over {EXPERTS} shared experts of 256 units, k = {ACTIVE}; "
        f"{length.epochs} epochs of {length.steps // length.epochs} steps, the one that is "
        f"best on the {len(parts()['val']):,} pairs that choose. {length.draws} draws a seed, the "
        "same for all gates: lr 0.0003 ... 0.01, the entropy loss of COMET 0.05 ... 10 and of "
        "DSelect-k 0.001 ... 0.1, the search 1 ... 10 % of the steps, all on a log scale; no "
        "loss balances top-k. "
        "Best of b: test loss of the draw that does best on the pairs that choose, the mean over "
        "all sets of b draws and over seeds. All runs took "
        f"{_minutes(results):.0f} CPU minutes."
    )
    # the table has the whole curve of tuning: best of 1, 2, 3 and 6 draws
    rows = [_row(name, results[name]) for name in results]
    return result_of(values, rows, setting, total)


def _minutes(tries_by_gate: Tries) -> float:
    """Return the CPU minutes of all runs."""
    all_tries = (tries for of_seeds in tries_by_gate.values() for tries in of_seeds.values())
    return sum(t["cpu"] for tries in all_tries for t in tries) / 60


def _row(name: str, of_seeds: Mapping[int, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Return a gate's row: the best of b random draws, and means of the draws chosen per seed."""
    tries = list(of_seeds.values())
    count = len(tries[0])
    line: dict[str, Any] = {"gate": name}
    for b in ROUNDS:
        mean = (
            statistics.mean(best_of(draws_of_seed, b) for draws_of_seed in tries)
            if b <= count
            else None
        )
        line[f"best of {b}"] = "" if mean is None else f"{mean:.3f}"
    # the other columns are of the draws that validation picks among all
    picks = [picked(draws_of_seed) for draws_of_seed in tries]
    line["AUC"] = f"{statistics.mean(p['auc'] for p in picks):.3f}"
    line["error in stars"] = f"{statistics.mean(p['stars'] for p in picks):.3f}"
    line["experts of a pair"] = f"{statistics.mean(p['active'] for p in picks):.2f}"
    line["largest share"] = f"{statistics.mean(p['largest'] for p in picks):.2f}"
    line["CPU, s"] = (
        f"{statistics.median(t['cpu'] for draws_of_seed in tries for t in draws_of_seed):.1f}"
    )
    return line


WORK = "MovieLens-100k, watched and stars, from scratch"


STUDIES = (
    Study(
        "comet",
        system="COMET",
        arxiv="2306.02824",
        question="Does a gate of trees have a lower test loss than top-k?",
        effect=Effect(
            "up to +13 % of AUC over hash and top-k, +9 % over DSelect-k",
            "recommenders and pictures, COMET+ with the local search",
            "abstract",
            sign=-1,
            null=1.0,
        ),
        work=WORK,
        baseline="top-k; ratio of test losses, the best of three draws of settings",
        unit="times the test loss of top-k",
        differs="COMET without its search, trained for 4 epochs; the table has both AUCs.",
        # the two gates alone, with four draws each: all six would take four times as long
        measure=partial(
            judge,
            figure=partial(ratio, ours="COMET", base="top-k"),
            gates=PAIR,
            length=Length(draws=4),
        ),
        seeds=(0, 1, 2, 3, 4),
        minutes=47,
    ),
)
