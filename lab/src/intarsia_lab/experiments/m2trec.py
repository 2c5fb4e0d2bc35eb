"""M2TRec: items that nobody has taken are ranked by their metadata (arXiv:2209.11824)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from intarsia.areas.recommend.item_fields import IdVectors
from intarsia.areas.recommend.m2trec import M2TRec, M2TRecModel
from intarsia.areas.recommend.session_encoder import pad_sessions
from intarsia.core.modes import evaluating
from intarsia.data.atomic_files import load_interactions
from intarsia.data.interactions import Interactions
from intarsia.fitting import fit
from intarsia.train.tasks import own_losses

from ..kit import Effect, Report, Result, Study
from ..kit.arms import by_arm, judge, row_of
from ..kit.stored import StoredResults

stored = StoredResults(__file__)

COLD, EPOCHS = 0.1, 12
SETTINGS = M2TRec(width=64, layers=1)
OPTIONS: dict[str, Any] = {"batch_size": 64, "lr": 2e-3, "weight_decay": 1e-4, "trackers": ()}
FIELDS, NO_YEAR, IDS, KNN = (
    *("metadata", "metadata without the year", "ids, same encoder (SASRec)"),
    "nearest by TF-IDF of metadata",
)
POPULAR = "popularity"
ARMS = (FIELDS, NO_YEAR, IDS, KNN, POPULAR)
JUDGED = (FIELDS, IDS, KNN, POPULAR)  # of the headline, which leaves the ablation to the others
COLUMNS = {
    "warm among all, HR@20 %": ("warm", ".2f"),
    "cold among all, HR@20 %": ("cold", ".2f"),
    "cold among cold, HR@10 %": ("among_cold", ".2f"),
}


class HitRates(NamedTuple):
    """Hit rates in percent: of warm and cold items among all, of cold items among cold ones.

    A hit is a next item among the first 20 of all, or among the first 10 of the cold ones. A cold
    item has no event in training.
    """

    warm: float
    cold: float
    among_cold: float
    chance: float  # of the last


class Questions(NamedTuple):
    """The next items and their histories, cold items left out.  Places from 1."""

    before: list[list[int]]
    after: list[int]


@lru_cache
def films() -> Interactions:
    """MovieLens-100k with its films' titles, years and genres."""
    return load_interactions("ml-100k")


def parts(seed: int, part: str = "test") -> tuple[Interactions, Questions, np.ndarray[Any, Any]]:
    """Split MovieLens-100k by time; return training events, questions of a part, and cold films.

    A cold film has no event in training; a tenth of the films is made cold, others with each seed.
    A question is a session's films so far and the next film. part: "test", the last tenth of the
    events, or "val", the tenth before it. The cold films are a mask over all films.
    """
    data = films()
    # by time, as a shop would: the questions come after all that is learned
    train, val, test = data.split_by_time(0.8, 0.9)
    # other films are cold with each seed, so that seeds speak of films as well
    cold = train.hold_out_items(COLD, seed=seed)
    before: list[list[int]] = []
    after: list[int] = []
    for session in (test if part == "test" else val).sessions("60min"):
        warm: list[int] = []
        for item in session.tolist():
            if warm:
                # films are numbered from 1 in questions: 0 is padding
                before.append(warm[-SETTINGS.longest :])
                after.append(item + 1)
            # a cold film is asked for, and never read: it is in no history
            warm = warm if cold[item] else [*warm, item + 1]
    return train.rows(~cold[train.items]), Questions(before, after), cold


def hits(scores: Tensor, after: Tensor, k: int) -> Tensor:
    """Test if the right film is among the first k; a tie with a wrong one counts as a miss.

    scores: (B, n + 1) of each film; after: (B,) the right film's number; k: length of the list.
    Returns (B,) bool.
    """
    target_score = scores.gather(1, after[:, None])
    return (scores >= target_score).sum(1) <= k


def judged(model: Any, questions: Questions, cold: np.ndarray[Any, Any]) -> HitRates:
    """Score a recommender on questions; return its hit rates on warm and on cold films.

    model: histories (B, T) -> scores of films (B, n + 1); questions: histories and next films;
    cold: mask of the films without an event in training.
    """
    away = torch.from_numpy(np.append(False, cold))
    warm, among_all, among_cold = [], [], []
    for first in range(0, len(questions.after), 256):
        x = pad_sessions(questions.before[first : first + 256], SETTINGS.longest)
        y = torch.tensor(questions.after[first : first + 256])
        scores = model(x).clone()
        # number 0 is padding, and no film
        scores[:, 0] = -torch.inf
        # warm and cold questions are scored apart: few are cold, and a mean would hide them
        is_cold = away[y]
        warm.append(hits(scores, y, 20)[~is_cold])
        among_all.append(hits(scores, y, 20)[is_cold])
        # cold films among cold ones: how good the metadata are on their own
        only = scores.masked_fill(~away, -torch.inf)
        among_cold.append(hits(only[is_cold], y[is_cold], 10))
    rates = [100 * float(torch.cat(part).float().mean()) for part in (warm, among_all, among_cold)]
    return HitRates(rates[0], rates[1], rates[2], 100 * 10 / int(cold.sum()))


def trained(
    settings: M2TRec, train: Interactions, seed: int, *, ids: bool = False, **overrides: Any
) -> M2TRecModel:
    """Train M2TRec on events and return it.

    settings: of the model; train: the events; ids: give each film a learned vector instead of its
    metadata, which makes it SASRec; overrides: options of `fit`, such as the learning rate.
    """
    model = settings.build(train, seed=seed)
    if ids:
        generator = torch.Generator().manual_seed(seed)
        vectors = IdVectors(len(train.item_ids), settings.width, generator=generator)
        model = M2TRecModel(settings, train, vectors, generator=generator)
    rows = model.samples(train)
    options: Any = OPTIONS | {"epochs": EPOCHS, "seed": seed} | overrides
    fit(model, rows, task=model.task, objective=own_losses, **options)
    return model


def nearest(x: Tensor, vectors: Tensor) -> Tensor:
    """Return the cosine of each film's words with the mean of a session's films.

    x: (B, T) numbers of films, 0 = none; vectors: (n + 1, words), row 0 all zeros. Returns (B, n +
    1).
    """
    mean = torch.nn.functional.normalize(vectors[x].sum(1), dim=1)
    return mean @ vectors.T


def words() -> Tensor:
    """Return TF-IDF of each film's title, year and genres, in rows of length 1, none of them 0."""
    fields = films().fields.values()
    texts = [" ".join(w for f in fields for w in f.values[i]) for i in range(len(films().item_ids))]
    rows: Any = TfidfVectorizer(token_pattern=r"\S+").fit_transform(texts)
    return torch.from_numpy(np.vstack([np.zeros(rows.shape[1]), rows.toarray()])).float()


def found_of(arm: str, seed: int) -> HitRates:
    """Return the hit rates of an arm on test questions, stored or computed now.

    arm: of ARMS; seed: of the cold films and of the training.
    """
    inputs = {"arm": arm, "seed": seed, "epochs": EPOCHS, "settings": repr(SETTINGS)}
    return HitRates(*stored("m2trec", inputs, lambda: list(scored(arm, seed))))


def scored(arm: str, seed: int) -> HitRates:
    """Train an arm, unless it is a baseline, and return its hit rates on test questions.

    arm: of ARMS: popularity, nearest films by TF-IDF, or M2TRec with metadata, with metadata
    without the year, or with a vector for each film.
    """
    train, questions, cold = parts(seed)
    if arm == POPULAR:
        counts = torch.from_numpy(np.append(0, train.popularity())).float()
        return judged(lambda x: counts.expand(len(x), -1), questions, cold)
    if arm == KNN:
        return judged(partial(nearest, vectors=words()), questions, cold)
    # an ablation: cold films of a split by time are new ones, which a year betrays
    without = ("release_year",) if arm == NO_YEAR else ()
    model = trained(replace(SETTINGS, without=without), train, seed, ids=arm == IDS)
    with evaluating(model), torch.no_grad():
        return judged(model, questions, cold)


def compared(
    seeds: tuple[int, ...],
    report: Report,
    *,
    figure: Any,
    arms: Sequence[str] = ARMS,
) -> Result:
    """Train arms on MovieLens-100k and compare their hit rates.

    The arms differ in what stands for a film: its metadata, a learned vector, words by TF-IDF, or
    nothing but popularity. figure: hit rates of one seed by arm -> its value; arms: of ARMS.
    """
    # one recipe for all arms, which differ in what stands for a film
    rates = by_arm({name: name for name in arms}, seeds, found_of, report)
    chance = statistics.mean(hit_rates.chance for hit_rates in rates[FIELDS])
    note = (
        f"{COLD:.0%} of the films are cold: in no input, anywhere. Chance among cold films: "
        f"{chance:.1f} %. The softmax of training is over the films with an event. MovieLens-100k "
        "by time, sessions by a gap of an hour; films are no shop."
    )
    return judge(rates, figure, row_of("items by", COLUMNS), note)


def of_cold(rates: Any) -> float:
    """Return the hit rate among cold films over the larger of chance and the hit rate of ids.

    rates: hit rates of one seed by arm, all in percent.
    """
    return rates[FIELDS].among_cold / max(rates[FIELDS].chance, rates[IDS].among_cold)


study = partial(
    Study,
    system="M2TRec",
    arxiv="2209.11824",
    work="MovieLens-100k, films without an event",
    unit="times the hit rate at 10",
    seeds=(0, 1, 2, 3, 4),
)

STUDIES = (
    study(
        "m2trec",
        question="Do metadata find unseen items more often than ids and chance?",
        effect=Effect(
            "significant gains, without a figure",
            "two shops",
            "abstract; no table was found",
            sign=1,
            null=1.0,
        ),
        baseline="the larger of chance and a model of ids, which never saw them",
        differs="Films have titles and genres alone, a shop many fields.",
        measure=partial(compared, figure=of_cold, arms=JUDGED),
        minutes=40,
    ),
    study(
        "m2trec-nearest",
        question="Does it find more than nearest neighbours by the same words?",
        effect=None,
        baseline="cosine of TF-IDF with the session's mean",
        differs="A rival that the paper does not have.",
        measure=partial(
            compared, figure=lambda rates: rates[FIELDS].among_cold / rates[KNN].among_cold
        ),
        minutes=30,
    ),
)
