"""M2TRec: items that nobody has taken are ranked by their metadata (arXiv:2209.11824)."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from ..core import Claim, Result
from ..core.claim import Report
from ..core.modes import evaluating
from ..data import packages
from ..data.atomic_files import load_interactions
from ..data.interactions import Interactions
from ..fitting import fit
from ..models.recommend.item_fields import IdVectors
from ..models.recommend.m2trec import M2TRec, M2TRecModel
from ..models.recommend.session_encoder import padded
from ..results.store import Store, key_of
from ..train.tasks import own_losses
from .study import by_arm, judge, row_of

COLD, EPOCHS = 0.1, 12
SETTINGS = M2TRec(width=64, layers=1)
OPTIONS: dict[str, Any] = {"batch_size": 64, "lr": 2e-3, "weight_decay": 1e-4, "trackers": ()}
FIELDS, NO_YEAR, IDS, KNN, POPULAR = (
    *("metadata", "metadata without the year", "ids, same encoder (SASRec)"),
    *("nearest by TF-IDF of metadata", "popularity"),
)
ARMS = {name: name for name in (FIELDS, NO_YEAR, IDS, KNN, POPULAR)}


class Found(NamedTuple):
    """Hit rates in percent: at 20 of warm and of cold items among all, at 10 of cold among cold."""

    warm: float
    cold: float
    among_cold: float
    chance: float  # of the last


class Questions(NamedTuple):
    """What comes next, and what came before, cold items left out.  Places from 1."""

    before: list[list[int]]
    after: list[int]


@lru_cache
def films() -> Interactions:
    """MovieLens-100k with its films' titles, years and genres."""
    return load_interactions("ml-100k")


def parts(seed: int) -> tuple[Interactions, Questions, np.ndarray[Any, Any]]:
    """Training events without the cold films, the test's questions, and which films are cold."""
    data = films()
    train, _, test = data.split_by_time(0.8, 0.9)
    cold = train.hold_out_items(COLD, seed=seed)
    before: list[list[int]] = []
    after: list[int] = []
    for session in test.sessions("60min"):
        warm: list[int] = []
        for item in session.tolist():
            if warm:
                before.append(warm[-SETTINGS.longest :])
                after.append(item + 1)
            warm = warm if cold[item] else [*warm, item + 1]
    return train.rows(~cold[train.items]), Questions(before, after), cold


def hits(scores: Tensor, after: Tensor, k: int) -> Tensor:
    """Whether the right one is among the first k, ties at the worst.  (B, n + 1), (B,) -> (B,)"""
    own = scores.gather(1, after[:, None])
    return (scores >= own).sum(1) <= k


def judged(model: Any, asked: Questions, cold: np.ndarray[Any, Any]) -> Found:
    """model: histories (B, n) -> scores (B, n + 1)."""
    away = torch.from_numpy(np.append(False, cold))
    warm, among_all, among_cold = [], [], []
    for first in range(0, len(asked.after), 256):
        x = padded(asked.before[first : first + 256], SETTINGS.longest)
        y = torch.tensor(asked.after[first : first + 256])
        scores = model(x).clone()
        scores[:, 0] = -torch.inf
        is_cold = away[y]
        warm.append(hits(scores, y, 20)[~is_cold])
        among_all.append(hits(scores, y, 20)[is_cold])
        only = scores.masked_fill(~away, -torch.inf)
        among_cold.append(hits(only[is_cold], y[is_cold], 10))
    rates = [100 * float(torch.cat(one).float().mean()) for one in (warm, among_all, among_cold)]
    return Found(rates[0], rates[1], rates[2], 100 * 10 / int(cold.sum()))


def trained(settings: M2TRec, train: Interactions, seed: int, *, ids: bool = False) -> M2TRecModel:
    model = settings.build(train, seed=seed)
    if ids:
        generator = torch.Generator().manual_seed(seed)
        vectors = IdVectors(len(train.item_ids), settings.width, generator=generator)
        model = M2TRecModel(settings, train, vectors, generator=generator)
    rows = model.samples(train)
    how: Any = OPTIONS | {"epochs": EPOCHS, "seed": seed}
    fit(model, rows, task=model.task, objective=own_losses, **how)
    return model


def nearest(x: Tensor, vectors: Tensor) -> Tensor:
    """Cosine of each film's words with the mean of the session's.  vectors: (n + 1, words)."""
    mean = torch.nn.functional.normalize(vectors[x].sum(1), dim=1)
    return mean @ vectors.T


def words() -> Tensor:
    """TF-IDF of each film's title, year and genres, rows of length 1; no film is 0."""
    fields = films().fields.values()
    texts = [" ".join(w for f in fields for w in f.values[i]) for i in range(len(films().item_ids))]
    rows: Any = TfidfVectorizer(token_pattern=r"\S+").fit_transform(texts)
    return torch.from_numpy(np.vstack([np.zeros(rows.shape[1]), rows.toarray()])).float()


class M2TRecCells:
    """Models of each arm and seed; cells are kept."""

    def __init__(self) -> None:
        self.cells = Store(packages.cache_dir() / "claims" / "m2trec.jsonl")

    def found(self, arm: str, seed: int) -> Found:
        inputs = {"arm": arm, "seed": seed, "epochs": EPOCHS, "settings": repr(SETTINGS)}
        key = key_of(inputs | {"version": 1})
        if key not in self.cells:
            self.cells.add(key, {**inputs, "found": list(self._run(arm, seed))})
        return Found(*self.cells[key]["found"])

    def _run(self, arm: str, seed: int) -> Found:
        train, asked, cold = parts(seed)
        if arm == POPULAR:
            counts = torch.from_numpy(np.append(0, train.popularity())).float()
            return judged(lambda x: counts.expand(len(x), -1), asked, cold)
        if arm == KNN:
            return judged(partial(nearest, vectors=words()), asked, cold)
        without = ("release_year",) if arm == NO_YEAR else ()
        model = trained(replace(SETTINGS, without=without), train, seed, ids=arm == IDS)
        with evaluating(model), torch.no_grad():
            return judged(model, asked, cold)


def compared(seeds: tuple[int, ...], report: Report, *, of: Any) -> Result:
    found = by_arm(ARMS, seeds, M2TRecCells().found, report)
    columns = {
        "warm among all, HR@20 %": ("warm", ".2f"),
        "cold among all, HR@20 %": ("cold", ".2f"),
        "cold among cold, HR@10 %": ("among_cold", ".2f"),
    }
    chance = statistics.mean(one.chance for one in found[FIELDS])
    note = (
        f"{COLD:.0%} of the films are cold: in no input, anywhere. Chance among cold films: "
        f"{chance:.1f} %. MovieLens-100k by time, sessions by a gap of an hour; films are no shop."
    )
    return judge(found, of, row_of("items by", columns), note)


def of_cold(one: Any) -> float:
    """Cold hit rate over the larger of twice chance and twice that of ids."""
    return one[FIELDS].among_cold / max(2 * one[FIELDS].chance, 2 * one[IDS].among_cold)


CLAIMS = (
    Claim(
        "m2trec",
        sentence="Among films that nobody has seen, metadata find the next one at least twice as "
        "often as chance, and as a model of ids (M2TRec, arXiv:2209.11824; MovieLens-100k).",
        baseline="twice the larger of chance and ids, hit rate at 10 among cold films",
        bar=1.0,
        sense=">=",
        run=partial(compared, of=of_cold),
        seeds=(0, 1, 2, 3, 4),
        needs="long",
        minutes=30,
    ),
    Claim(
        "m2trec-warm",
        sentence="On films that were seen it finds the next one at least 0.9 times as often as the "
        "same encoder over ids (M2TRec, arXiv:2209.11824; MovieLens-100k).",
        baseline="the same Transformer over a vector for each film, hit rate at 20",
        bar=0.9,
        sense=">=",
        run=partial(compared, of=lambda one: one[FIELDS].warm / one[IDS].warm),
        seeds=(0, 1, 2, 3, 4),
        needs="long",
        minutes=30,
    ),
    Claim(
        "m2trec-nearest",
        sentence="On cold films it is at least 1.1 times as good as the nearest neighbours of the "
        "session by the words of their metadata (M2TRec, arXiv:2209.11824; MovieLens-100k).",
        baseline="cosine of TF-IDF with the session's mean, hit rate at 10 among cold films",
        bar=1.1,
        sense=">=",
        run=partial(compared, of=lambda one: one[FIELDS].among_cold / one[KNN].among_cold),
        seeds=(0, 1, 2, 3, 4),
        needs="long",
        minutes=30,
    ),
)
