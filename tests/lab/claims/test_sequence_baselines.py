"""Baselines of sequence models: numbers are places, neighbours are those of the definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.areas.recommend.onerec import OneRec
from intarsia.data.interactions import Interactions, events
from intarsia_lab.claims import m2trec, onerec, onerec_next
from intarsia_lab.kit import ArmRate, Rates
from intarsia_lab.materials import sequence_baselines as baselines

RING = 8


@pytest.fixture(scope="module")
def ring() -> Interactions:
    """80 users who take 6 of 8 items that follow each other in a ring; two items have no event."""
    rows = [
        (f"u{u}", str((u + step) % RING), 1e5 * u + 60.0 * step, 5.0)
        for u in range(80)
        for step in range(6)
    ]
    return events(rows, item_ids=[str(i) for i in range(RING + 2)])


SMALL: dict[str, dict[str, Any]] = {
    baselines.SASREC: {"embedding_dim": 16, "n_epochs": 30, "learning_rate": 1e-2, "n_sample": 16},
    baselines.GRU4REC: {"layers": [16], "n_epochs": 60, "learning_rate": 0.1, "n_sample": 16},
}


@pytest.mark.parametrize("name", SMALL)
def test_cornac_s_models_learn_what_follows_and_count_as_we_do(
    name: str, ring: Interactions
) -> None:
    pytest.importorskip("cornac")
    spans = ring.sessions("60min").spans
    score = baselines.MAKES[name](ring, spans, SMALL[name], 0)
    x = torch.tensor([[0, 3, 4], [6, 7, 8]])  # places from 1
    scores = score(x)
    assert scores.shape == (2, RING + 3) and (scores[:, 0] == -torch.inf).all()
    assert scores.argmax(1).tolist() == [5, 1]


def test_tiger_writes_an_item_of_the_catalogue(ring: Interactions) -> None:
    pytest.importorskip("cornac")
    tiny = {"d_model": 16, "d_ff": 16, "num_heads": 2, "d_kv": 8, "num_enc_layers": 1}
    tiny |= {"num_dec_layers": 1, "n_epochs": 1, "rqvae_codebook_size": 3}
    score = baselines.tiger(ring, ring.sessions("60min").spans, tiny, 0)
    scores = score(torch.tensor([[0, 3, 4]]))
    assert scores.shape == (1, RING + 3) and torch.isfinite(scores[0, 1:]).all()
    assert (scores[0, 1:] > -1e9).any()


def test_neighbours_are_those_of_the_definition(ring: Interactions) -> None:
    spans = ring.sessions("60min").spans
    settings = {"decay": 0.5, "shrink": 3.0}
    score = baselines.neighbours(ring, spans, settings, 0)
    sessions: list[set[int]] = [
        {n for n, (a, b) in enumerate(spans) if item in ring.items[a:b]} for item in range(RING + 2)
    ]

    def alike(i: int, j: int) -> float:
        norm = math.sqrt(len(sessions[i]) * len(sessions[j])) + 3.0
        return 0.0 if i == j else len(sessions[i] & sessions[j]) / norm

    scores = score(torch.tensor([[0, 2, 5]]))[0]
    expected = [0.5 * alike(1, j) + alike(4, j) for j in range(RING + 2)]
    assert scores[0] == 0 and scores[1:].tolist() == pytest.approx(expected)
    counts = baselines.popular(ring, spans, {}, 0)(torch.tensor([[1]]))
    assert counts[0].tolist() == [0, *ring.popularity().tolist()]


def test_settings_are_chosen_on_validation_and_each_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    tried: list[tuple[str, Any]] = []

    def score(arm: str, settings: Any) -> float:
        tried.append((arm, settings))
        return settings.get("a", 0.0) - 1e3 * abs(settings.get("lr", 0.0) - 3e-3)

    grids = {"toy": baselines.grid({}, a=(1.0, 5.0)), "near": baselines.grid({}, a=(2.0, 1.0))}
    grids["fixed"] = [{}]
    rates = Rates((1e-3, 3e-3, 1e-2), {"toy": 7})
    inputs = {arm: {"arm": arm} for arm in grids}
    for _ in range(2):  # the second time all is kept
        best, (rate,) = baselines.tuned("toys", inputs, grids, rates, score)
        assert best == {"toy": {"a": 5.0, "lr": 3e-3}, "near": {"a": 2.0}, "fixed": {}}
        assert rate == ArmRate("toy", 3e-3, 7, (1e-3, 3e-3, 1e-2))
    assert len(tried) == 2 * 3 + 2  # as many settings of each method that has some


def test_the_baselines_have_as_many_settings_as_the_method() -> None:
    for module, ours in ((m2trec, m2trec.FIELDS), (onerec_next, onerec_next.ONEREC)):
        trials = {
            arm: len(grid) * (len(module.RATES.grid) if arm in module.RATES.steps else 1)
            for arm, grid in module.GRIDS.items()
        }
        assert trials.pop(baselines.POPULAR) == 1 and set(trials.values()) == {trials[ours]}


def test_questions_ask_for_what_follows_a_history(ring: Interactions) -> None:
    early, late = onerec_next.early_and_late(ring)
    assert len(early) + len(late) == len(ring) and len(late) == 80
    x, y = onerec_next.questions(late, early)
    assert x.shape == (80, 20) and (x[:, -5:] > 0).all() and (x[:, :-5] == 0).all()
    history = ring.histories()[7]
    assert x[7, -5:].tolist() == (history[:5] + 1).tolist() and int(y[7]) == history[5] + 1
    score = lambda x: torch.arange(RING + 3.0).expand(len(x), -1)  # noqa: E731
    best = onerec_next.of_scores(score)(torch.tensor([[0, RING + 2]]))
    assert best[0, 0] == RING + 1 and RING + 2 not in best[0].tolist()[: RING + 1]
    second = torch.tensor([[9, 4, 3]])
    scores = onerec_next.ranked(lambda x: second.expand(len(x), -1), x[:2], torch.tensor([4, 1]))
    assert scores.ndcg == pytest.approx(50 / np.log2(3)) and scores.hits == 50


def test_a_session_item_by_item_has_no_item_twice(ring: Interactions) -> None:
    tiny = OneRec(codes=(3, 3), width=16, layers=1, experts=2, history=4, session=1)
    model = tiny.build(ring, seed=0)
    x = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6]])
    drawn = onerec.one_by_one(model, x, 3, torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 3, 5) and (drawn > 0).all()
    assert all(len(set(items)) == 5 for items in drawn.flatten(0, 1).tolist())


def test_the_headline_of_m2trec_trains_what_it_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def found_of(arm: str, seed: int) -> m2trec.HitRates:
        trained.append(arm)
        return m2trec.HitRates(3.0, 0.0, 4.0 if arm == m2trec.FIELDS else 1.0, 2.0)

    monkeypatch.setattr(m2trec, "found_of", found_of)
    (headline,) = (claim for claim in m2trec.CLAIMS if claim.system)
    # four times out of a hundred where chance has two
    assert headline.measure((0,), lambda _: None).got == 2.0
    assert trained == list(m2trec.JUDGED) and m2trec.NO_YEAR not in trained
