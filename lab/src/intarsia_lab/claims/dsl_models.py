"""DSL on the models of its paper: LightGCN and MultVAE (arXiv:2402.02855)."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import nn

from intarsia.data.atomic_files import load_interactions
from intarsia.experiments.recommending import Parts, fit_recommender, parts_of
from intarsia.models.recommend.lightgcn import LightGcn
from intarsia.models.recommend.multvae import MultVae
from intarsia.schedules import Dsl

from ..kit import FixedRate, Report, Result, Study, above
from ..kit.arms import by_arm, judge, row_of
from ..kit.stored import StoredResults

stored = StoredResults(__file__)

DENSE, HALF, FIFTH, STATIC, NARROW = (
    *("dense", "DSL, density .5", "DSL, density .2", "fixed random mask, density .2"),
    "dense, as many weights",
)
SCHEDULES = {
    DENSE: None,
    HALF: Dsl(0.5, every=50),
    FIFTH: Dsl(0.2, every=50),
    STATIC: Dsl(0.2, stop=0.0),
    NARROW: None,
}
MODELS: dict[str, tuple[Any, Any]] = {  # of the paper's width, and a fifth of it
    "LightGCN": (LightGcn(), LightGcn(width=13)),
    "MultVAE": (MultVae(), MultVae(width=120)),
}
# of which validation picks one
EPOCHS = {"LightGCN": 25, "MultVAE": 80}
STEPS = {"LightGCN": 25 * 45, "MultVAE": 80 * 8}  # by events of a batch, and by users
K = "nDCG@20"


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


@stored.cell
def ranked(arm: tuple[str, str], seed: int) -> Ranked:
    """Train a recommender on MovieLens-100k with one kind of table; return its test scores.

    arm: key of MODELS (LightGCN or MultVAE) and key of SCHEDULES, which says how the tables of
    users and films are pruned while training (DSL's density, a fixed mask, or dense); seed: of the
    start. Returns NDCG@20 and recall@20 in percent, the nonzero weights of the tables, and
    Spearman's rank correlation of a film's weights with its popularity.
    """
    (name, schedule_name), parts = arm, split()
    settings, schedule = MODELS[name][schedule_name == NARROW], SCHEDULES[schedule_name]
    options: Any = {"epochs": EPOCHS[name], "evaluate_every": 5}
    # validation picks the epoch, on films that neither train nor test
    done = fit_recommender(settings, parts[0], parts=parts, schedule=schedule, seed=seed, **options)
    tables = [m for m in done.model.modules() if isinstance(m, nn.Embedding)]
    # the table of films, whose density is held against popularity
    items = next(t for t in tables if t.num_embeddings == len(parts[0].item_ids) + 1)
    # nonzero weights of each film's vector; row 0 is padding
    rows = (items.weight != 0).sum(1)[1:]
    # a dense table has equal rows, of which no rank correlation exists
    even = bool((rows == rows[0]).all())
    correlation: Any = None if even else spearmanr(rows.tolist(), parts[0].popularity().tolist())
    return Ranked(
        100 * done.measures[K],
        100 * done.measures["R@20"],
        int(torch.stack([(t.weight != 0).sum() for t in tables]).sum()),
        0.0 if even else float(correlation.statistic),
    )


def compared(seeds: tuple[int, ...], report: Report, *, model: str, figure: Any) -> Result:
    """Train one recommender with all kinds of tables; return a claim's figure of their scores.

    model: key of MODELS and EPOCHS, LightGCN or MultVAE; figure: the results of one seed, by key of
    SCHEDULES -> the number that is judged. The data are MovieLens-100k.
    """
    # all claims on a model read the same runs
    results = by_arm({n: (model, n) for n in SCHEDULES}, seeds, ranked, report)
    columns = {
        "NDCG@20, %": ("ndcg", ".2f"),
        "recall@20, %": ("recall", ".2f"),
        "weights of tables": ("kept", ".0f"),
        "rows against popularity": ("popular", "+.2f"),
    }
    note = (
        f"{EPOCHS[model]} epochs of MovieLens-100k, the epoch by validation, all films ranked. The "
        "served table of LightGCN is dense again."
    )
    return judge(results, figure, row_of("tables", columns), note)


def of_half(by_arm: Any) -> float:
    """Return NDCG@20 at half of the weights over the dense model's.  by_arm: one seed's scores."""
    return by_arm[HALF].ndcg / by_arm[DENSE].ndcg


def of_small(by_arm: Any) -> float:
    """Return NDCG@20 at a fifth of the weights minus the better of two rivals of as many weights.

    by_arm: one seed's scores, by key of SCHEDULES. In percentage points.
    """
    return by_arm[FIFTH].ndcg - max(by_arm[STATIC].ndcg, by_arm[NARROW].ndcg)


LEARNED = above(
    "The dense model is above a random order, 1.2 %.", "NDCG@20, %", 1.2, {"tables": "dense"}
)


def claims_of(key: str, model: str, minutes: float) -> tuple[Study, Study]:
    """Return the two claims on a recommender: with half of its tables' weights, and with a fifth.

    key: of the claims, behind "dsl-"; model: key of MODELS; minutes: that the runs take on a CPU.
    """
    named: dict[str, Any] = {"sense": ">=", "seeds": (0, 1, 2, 3, 4), "needs": "long"}
    named |= {"minutes": minutes, "control": LEARNED}
    named["rates"] = FixedRate(MODELS[model][0].training["lr"], {"each table": STEPS[model]})
    # both claims read the same runs
    half = partial(compared, model=model, figure=of_half)
    small = partial(compared, model=model, figure=of_small)
    return (
        Study(
            f"dsl-{key}",
            sentence=f"With half of its tables' weights, from the first step, {model} ranks at "
            "least 0.98 times as well (DSL, arXiv:2402.02855; MovieLens-100k).",
            baseline=f"dense {model}'s NDCG@20",
            target=0.98,
            measure=half,
            **named,
        ),
        Study(
            f"dsl-{key}-small",
            sentence=f"With a fifth of them {model} ranks better than with a mask that stays, and "
            "than a narrower one of as many weights (DSL, arXiv:2402.02855; MovieLens-100k).",
            baseline="the better of the two, NDCG@20 in points",
            target=0.0,
            measure=small,
            **named,
        ),
    )


CLAIMS = (*claims_of("lightgcn", "LightGCN", 60), *claims_of("multvae", "MultVAE", 60))
