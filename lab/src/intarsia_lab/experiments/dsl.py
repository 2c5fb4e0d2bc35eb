"""DSL: the tables of LightGCN and MultVAE, sparse from the start (arXiv:2402.02855)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import nn

from intarsia.areas.recommend.lightgcn import LightGcn
from intarsia.areas.recommend.multvae import MultVae
from intarsia.areas.recommend.recommending import Parts, fit_recommender, parts_of
from intarsia.data.atomic_files import load_interactions
from intarsia.schedules import Dsl
from intarsia.train.learner import NotFinite

from ..kit import Effect, Rates, Report, Result, Study, worst_of
from ..kit.arms import by_arm, row_of
from ..kit.stored import StoredResults

stored = StoredResults(__file__)

TUNED = 100  # the seed that chooses rates, which no result has
DENSE, HALF, FIFTH, STATIC, NARROW = (
    *("dense", "DSL, density .5", "DSL, density .2", "fixed random mask, density .2"),
    "dense, as many weights",
)
KEPT = {HALF: 0.5, FIFTH: 0.2}
K = "nDCG@20"


class PaperModel(NamedTuple):
    """A recommender of the paper, how long it is trained, and how often its masks change."""

    whole: Any
    narrow: Any  # a fifth of the whole's weights
    epochs: int  # validation picks one of them
    steps: int  # in all epochs
    every: int  # steps between two changes of the masks

    @property
    def lr(self) -> float:
        """The paper's learning rate."""
        return self.whole.training["lr"]


# some sixty changes: two hundred of LightGCN's and MultVAE's, and twenty of LightGCN's, had less on
# validation films
MODELS = {
    "LightGCN": PaperModel(LightGcn(), LightGcn(width=13), epochs=25, steps=25 * 45, every=20),
    "MultVAE": PaperModel(MultVae(), MultVae(width=120), epochs=80, steps=80 * 8, every=10),
}


class Ranked(NamedTuple):
    """Scores in percent of ranking held-out films; kept weights of tables; Spearman."""

    ndcg: float
    recall: float
    kept: int
    popular: float  # of the density of items' rows with their popularity


@lru_cache
def split() -> Parts:
    """Return MovieLens-100k in parts: each user's last 5 films test, the 5 before them validate."""
    return parts_of(load_interactions("ml-100k"), "ranking")


def schedule(model: str, tables: str) -> Dsl | None:
    """Return how tables are pruned while they are trained; None for dense ones.

    model: key of MODELS; tables: DENSE, HALF, FIFTH, STATIC or NARROW.
    """
    if tables == STATIC:
        return Dsl(0.2, stop=0.0)
    return Dsl(KEPT[tables], every=MODELS[model].every) if tables in KEPT else None


@stored.cell
def ranked(arm: tuple[str, str], seed: int, lr: float, validate: bool = False) -> Ranked:
    """Train a recommender on MovieLens-100k with one kind of table; return its scores.

    arm: key of MODELS (LightGCN or MultVAE), and the kind of table: dense, pruned by DSL, under a
    mask that stays, or narrower; seed: of the start; lr: the learning rate; validate: score the
    films that pick the epoch, not the test films. Returns NDCG@20 and recall@20 in percent,
    the nonzero weights of the tables, and Spearman's rank correlation of a film's weights with its
    popularity.
    """
    (name, tables), (train, val, test) = arm, split()
    model = MODELS[name]
    done = fit_recommender(
        model.narrow if tables == NARROW else model.whole,
        train,
        # validation picks the epoch, on films that neither train nor test
        parts=(train, val, val if validate else test),
        schedule=schedule(name, tables),
        seed=seed,
        lr=lr,
        epochs=model.epochs,
        evaluate_every=5,
    )
    embeddings = [m for m in done.model.modules() if isinstance(m, nn.Embedding)]
    # the table of films: its density is compared with popularity
    items = next(t for t in embeddings if t.num_embeddings == len(train.item_ids) + 1)
    # nonzero weights of each film's vector; row 0 is padding
    rows = (items.weight != 0).sum(1)[1:]
    # a dense table has equal rows, which have no rank correlation
    even = bool((rows == rows[0]).all())
    correlation: Any = None if even else spearmanr(rows.tolist(), train.popularity().tolist())
    return Ranked(
        100 * done.measures[K],
        100 * done.measures["R@20"],
        int(torch.stack([(t.weight != 0).sum() for t in embeddings]).sum()),
        0.0 if even else float(correlation.statistic),
    )


COLUMNS = {
    "NDCG@20, %": ("ndcg", ".2f"),
    "recall@20, %": ("recall", ".2f"),
    "weights of tables": ("kept", ".0f"),
    "rows against popularity": ("popular", "+.2f"),
}
NOTE = (
    f"MovieLens-100k, all films ranked for each user, her last five test. LightGCN has "
    f"{MODELS['LightGCN'].epochs} epochs and MultVAE {MODELS['MultVAE'].epochs}, the epoch by "
    "validation; masks change some sixty times. The served table of LightGCN is dense again."
)
ARMS = {f"{name}, {tables}": (name, tables) for name in MODELS for tables in (DENSE, HALF)}
RATES = Rates(
    (1e-3, 3e-3, 1e-2),
    {arm: MODELS[name].steps for arm, (name, _) in ARMS.items()},
    # LightGCN's published rate is ten times MultVAE's
    {arm: MODELS[name].lr / MODELS["MultVAE"].lr for arm, (name, _) in ARMS.items()},
)


def validated(arm: str, lr: float) -> float:
    """Return NDCG@20 in percent on validation films; 0 for a rate at which the training diverges.

    arm: key of ARMS; lr: the learning rate.
    """
    try:
        return ranked(ARMS[arm], TUNED, lr, validate=True).ndcg
    except NotFinite:
        return 0.0


def of_half(seeds: tuple[int, ...], report: Report) -> Result:
    """Return NDCG@20 of tables with half of their weights over NDCG@20 of dense ones, by seed.

    LightGCN and MultVAE recommend films of MovieLens-100k; DSL prunes their tables from the first
    step on. Each arm has a rate of its own, chosen on validation films. The model that has the
    lower mean ratio is judged.
    """
    rates = RATES.choose(validated)
    report("; ".join(f"{rate.arm}: rate {rate.rate:g}" for rate in rates))
    by_name = {rate.arm: rate for rate in rates}
    results = by_arm(by_name, seeds, lambda r, seed: ranked(ARMS[r.arm], seed, r.rate), report)
    ratios = {
        name: [
            half.ndcg / dense.ndcg
            for half, dense in zip(
                results[f"{name}, {HALF}"], results[f"{name}, {DENSE}"], strict=True
            )
        ]
        for name in MODELS
    }
    rows = [row_of("tables", COLUMNS)(arm, results[arm]) for arm in ARMS]
    # both models or neither: the better one excuses no other
    return worst_of(ratios, ">=", rows, NOTE, rates)


STUDIES = (
    Study(
        "dsl",
        system="DSL",
        arxiv="2402.02855",
        question="Do tables with half of their weights rank as well as dense ones?",
        effect=Effect(
            "comparable at lower cost, without a figure",
            "three recommenders, six sets",
            "abstract; no table was found",
            sign=0,
            null=1.0,
        ),
        work="LightGCN and MultVAE from scratch on MovieLens-100k",
        baseline="the dense model's NDCG@20, of the recommender where the ratio is lower",
        unit="times the dense model's NDCG@20",
        differs="One small set, on which the masks change less often than on the paper's.",
        measure=of_half,
        seeds=(0, 1, 2, 3, 4),
        minutes=70,
    ),
)
