"""DSL: tables that are sparse from the start recommend as dense ones do (arXiv:2402.02855)."""

from __future__ import annotations

import statistics
from collections import defaultdict
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from intarsia.data.atomic_files import load_interactions
from intarsia.fitting import evaluate, fit
from intarsia.schedules import Dsl
from intarsia.train.tasks.next_item import NextItem

from ..kit import ArmRate, FixedRate, Rates, Report, Result, Study, UnknownEffect, above
from ..kit.arms import by_arm, judge, row_of
from ..kit.stored import StoredResults

stored = StoredResults(__file__)

WIDTH, HISTORY, EPOCHS, K = 64, 20, 6, 20
BATCH, STEPS = 256, 384  # steps of an epoch, 98,114 histories
OPTIONS: dict[str, Any] = {"batch_size": BATCH, "weight_decay": 0.0, "trackers": ()}
TUNED = 100  # the seed that chooses rates, which no result has
DENSE, HALF, FIFTH, STATIC, NARROW = (
    *("dense", "DSL, density .5", "DSL, density .2", "fixed random mask, density .2"),
    "dense, as many weights",
)
ARMS: dict[str, tuple[int, Dsl | None]] = {
    DENSE: (WIDTH, None),
    # the masks change every five steps, three hundred times in six epochs
    HALF: (WIDTH, Dsl(0.5, every=5)),
    FIFTH: (WIDTH, Dsl(0.2, every=5)),
    STATIC: (WIDTH, Dsl(0.2, stop=0.0)),
    # the strong simple rival: fewer numbers a film, as many weights in all
    NARROW: (13, None),  # 0.2 * 64 = 12.8
}


class MeanOfLast(nn.Module):
    """The next film by the mean vector of the last ones.  (B, T), 0 = none -> (B, films + 1)."""

    def __init__(self, films: int, width: int) -> None:
        """Build a table of vectors for watched films and one for next films.

        films: their number; width: of a vector.
        """
        super().__init__()
        self.seen = nn.Embedding(films + 1, width)
        self.next = nn.Embedding(films + 1, width)

    def forward(self, x: Tensor) -> Tensor:
        """Score every film as the next one.  x: (B, T) ids, 0 = none -> (B, films + 1)."""
        present = (x > 0).float()[..., None]
        # (B, width): histories have different lengths, and padding does not count
        mean = (self.seen(x) * present).sum(1) / present.sum(1)
        return mean @ self.next.weight.T


class Films(NamedTuple):
    """Histories and the film after each: the last of every user for the test, those before it.

    tuning, val: the same without the test part: the last but one of every user, those before it.
    """

    train: TensorDataset
    test: TensorDataset
    tuning: TensorDataset
    val: TensorDataset
    count: int
    popularity: Tensor  # (count + 1,), in the training part


@lru_cache
def films() -> Films:
    """Return MovieLens-100k: films that a user watched, in the order of time, and the next film.

    A history has the last 20 films before, padded with 0 in front. A user's last film is a test
    row, every earlier one a training row.
    """
    # step 1: the films of each user by time
    data = load_interactions("ml-100k")
    names = [int(name) for name in data.item_ids]
    rows = [
        (time, names[item], user)
        for user, item, time in zip(data.users, data.items, data.times, strict=True)
    ]
    by_user: dict[int, list[int]] = defaultdict(list)
    for _, film, user in sorted(rows):
        by_user[user].append(film)
    # leave one out: a user's last film tests, every earlier one trains
    parts: tuple[list[Any], list[Any], list[Any]] = [], [], []
    for films_of_user in by_user.values():
        for i in range(1, len(films_of_user)):
            past = films_of_user[max(0, i - HISTORY) : i]
            last = len(films_of_user) - 1
            parts[max(0, i - last + 2)].append(
                [*[0] * (HISTORY - len(past)), *past, films_of_user[i]]
            )
    tuning, val, test = (torch.tensor(part) for part in parts)
    train, count = torch.cat([tuning, val]), max(names)
    popularity = torch.bincount(train[:, -1], minlength=count + 1)
    whole, tested, fewer, validated = (
        TensorDataset(part[:, :-1], part[:, -1]) for part in (train, test, tuning, val)
    )
    return Films(whole, tested, fewer, validated, count, popularity)


class Recommended(NamedTuple):
    """NDCG@20 in percent; kept weights; Spearman of the rows' density and popularity."""

    ndcg: float
    kept: int
    popular: float


@stored.cell
def cell(arm: str, seed: int, lr: float, validate: bool = False) -> Recommended:
    """Train next-film prediction with one kind of table; return its scores on test rows.

    arm: key of ARMS: dense vectors, vectors that DSL prunes to half or a fifth from the first step
    on and regrows while training, a fixed random mask, or narrower dense vectors of as many
    weights; seed: of the start and the order of rows; lr: the learning rate; validate: score the
    film before the test's instead. Returns NDCG@20 in percent, the number of nonzero weights, and
    how far popular films keep more weights (Spearman's rank correlation).
    """
    (width, schedule), data = ARMS[arm], films()
    train, judged = (data.tuning, data.val) if validate else (data.train, data.test)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MeanOfLast(data.count, width)
        for table in model.children():
            # the same draw for every arm of a width; masks are laid over it
            nn.init.normal_(table.weight, std=0.1)  # pyright: ignore
    # ranked among all films: sampled negatives change the order of methods
    task: Any = NextItem(every=False, k=K)
    options: Any = {"epochs": EPOCHS, "seed": seed, "schedule": schedule, "task": task, "lr": lr}
    fit(model, train, **OPTIONS | options)
    scores = evaluate(model, judged, task=task).scores()
    weights = torch.stack([(t.weight != 0).sum(1) for t in (model.seen, model.next)])
    # the paper's picture of its tables: rows of popular items keep more weights
    rows = weights[1][1:].tolist()
    even = len(set(rows)) == 1  # a dense table
    correlation: Any = spearmanr(rows, data.popularity[1:].tolist())
    order = 0.0 if even else correlation.statistic
    return Recommended(100 * scores[f"ndcg_{K}"], int(weights.sum()), float(order))


def compared(
    seeds: tuple[int, ...], report: Report, rates: tuple[ArmRate, ...], figure: Any
) -> Result:
    """Train every arm at its rate with every seed, and judge one number a seed.

    rates: of the arms; figure: the scores of one seed's arms, by name -> the number that is judged.
    """
    by_name = {rate.arm: rate for rate in rates}
    results = by_arm(by_name, seeds, lambda rate, seed: cell(rate.arm, seed, rate.rate), report)
    orders = "; ".join(
        f"{statistics.mean(net.popular for net in nets):+.2f} of {arm}"
        for arm, nets in results.items()
        if ARMS[arm][1] is not None
    )
    note = (
        f"Rows' density against popularity, Spearman: {orders}. {EPOCHS} epochs "
        "of MovieLens-100k, leave-one-out, all films ranked; no LightGCN, MultVAE or NeuMF."
    )
    columns = {"NDCG@20, %": ("ndcg", ".2f"), "weights": ("kept", ".0f")}
    return judge(results, figure, row_of("tables", columns), note, rates=rates)


OWN = Rates((1e-3, 3e-3, 1e-2), dict.fromkeys((DENSE, HALF), EPOCHS * STEPS))
ALIKE = FixedRate(3e-3, dict.fromkeys(ARMS, EPOCHS * STEPS))


def of_half(seeds: tuple[int, ...], report: Report) -> Result:
    """Return NDCG@20 of tables with half of their weights over that of dense tables, by seed.

    The model recommends the next film on MovieLens-100k; DSL prunes the tables from the first step.
    Each arm has a rate of its own, chosen on the film before the test's.
    """
    rates = OWN.choose(lambda arm, lr: cell(arm, TUNED, lr, validate=True).ndcg)
    report("; ".join(f"{rate.arm}: rate {rate.rate:g}" for rate in rates))
    return compared(seeds, report, rates, lambda tables: tables[HALF].ndcg / tables[DENSE].ndcg)


def of_static(seeds: tuple[int, ...], report: Report) -> Result:
    """Return NDCG@20 of DSL with a fifth of the weights minus its better rival's, in points.

    The rivals have as many weights: tables under a fixed random mask, and narrower dense tables.
    """
    return compared(
        seeds,
        report,
        ALIKE.arms,
        # both rivals at once, seed by seed, so that neither is picked afterwards
        lambda tables: tables[FIFTH].ndcg - max(tables[STATIC].ndcg, tables[NARROW].ndcg),
    )


SCALED = "scaled down: the mean of a user's last 20 films, MovieLens-100k"
study = partial(
    Study,
    sense=">=",
    control=above(
        "The dense model is above a random order, 1.2 %.", "NDCG@20, %", 1.2, {"tables": "dense"}
    ),
    seeds=(0, 1, 2, 3, 4),
    needs="long",
    minutes=40,
)

CLAIMS = (
    study(
        "dsl",
        system="DSL",
        scale=(
            "The models of its paper, LightGCN and MultVAE, whose claims stand below, with "
            "hundreds of changes of their masks."
        ),
        effect=UnknownEffect("The paper's table was not reachable; the margin of 2 % is ours."),
        work="tables of vectors from scratch on MovieLens-100k",
        sentence="With half of its tables' weights, from the first step, a recommender ranks at "
        f"least 0.98 times as well (DSL, arXiv:2402.02855; {SCALED}).",
        baseline="the dense model's NDCG@20",
        target=0.98,
        rates=OWN,
        measure=of_half,
        # the pilot of five seeds, ten changes of the masks: .955, a spread of .022, which nine see
        seeds=tuple(range(9)),
    ),
    study(
        "dsl-static",
        sentence="With a fifth of them it ranks better than with a mask that stays, and than a "
        f"narrower dense model of as many weights (DSL, arXiv:2402.02855; {SCALED}).",
        baseline="the better of the two, NDCG@20 in points",
        target=0.0,
        rates=ALIKE,
        measure=of_static,
    ),
)
