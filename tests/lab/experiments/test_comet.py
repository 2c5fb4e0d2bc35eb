"""The experiment on COMET in their smallest form, and how a lucky draw is told from a good gate."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.data.interactions import Interactions
from intarsia_lab.experiments import comet
from intarsia_lab.materials import films


@pytest.fixture(autouse=True)
def smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty users, who like the films of their own half."""
    draws = np.random.default_rng(0)
    met = np.unique(draws.integers(0, 60 * 20, 600))
    users, half = met // 20, met % 20
    items = half + 20 * (users % 2)
    events = Interactions(
        users,
        items,
        np.arange(len(users), dtype=float),
        (3 + (items % 3)).astype(np.float32),
        tuple(map(str, range(60))),
        tuple(map(str, range(40))),
    )
    monkeypatch.setattr(films, "load_interactions", lambda _: events)
    films.parts.cache_clear()
    yield
    films.parts.cache_clear()


@pytest.mark.thorough
def test_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    length = comet.Length(draws=3, epochs=1, file=tmp_path / "kept.jsonl")
    run: Any = comet.STUDIES[0].measure
    result = run((0,), lambda _: None, length=length)
    monkeypatch.setattr(comet, "fit", None)  # nothing is run twice
    assert run((0,), lambda _: None, length=length) == result
    assert [row["gate"] for row in result.table] == list(comet.PAIR)


def test_best_of_b_is_the_mean_over_all_sets() -> None:
    tries = [{"val": v, "loss": x} for v, x in ((3, 1.0), (1, 5.0), (2, 2.0), (4, 9.0))]
    for count in (1, 2, 3, 4):
        losses = [comet.picked(some)["loss"] for some in combinations(tries, count)]
        assert comet.best_of(tries, count) == pytest.approx(mean(losses))
    assert comet.best_of(tries, 4) == comet.picked(tries)["loss"] == 5.0


def test_no_pair_stands_in_two_parts_and_half_of_each_never_met() -> None:
    parts = films.parts()
    events = films.load_interactions("ml-100k")
    met = set(zip(events.users.tolist(), events.items.tolist(), strict=True))
    pairs_seen: set[tuple[int, int]] = set()
    for part in parts.values():
        x, y = part.tensors
        pairs = {(int(u), int(i)) for u, i in x}
        assert len(pairs) == len(x) and not pairs & pairs_seen
        assert [(int(u), int(i)) in met for u, i in x] == y[:, 0].bool().tolist()
        assert y[:, 1].isnan().tolist() == (~y[:, 0].bool()).tolist()
        pairs_seen |= pairs
    assert parts["train"].tensors[1][:, 1].nanmean().abs() < 1e-6


def test_stars_count_where_there_are_some() -> None:
    output, target = torch.tensor([[0.0, 2.0], [0.0, 9.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    target[1, 1] = torch.nan
    loss = films.WatchAndRate().loss_of((output, target))(output)
    assert float(loss) == pytest.approx(0.9 * np.log(2) + 0.1 * 1.0)


def test_both_tasks_share_the_experts_and_have_gates_of_their_own() -> None:
    model = films.watcher(comet.top_k(), 0)
    first, second = model.mixtures
    assert {id(p) for p in first.experts.parameters()} == {
        id(p) for p in second.experts.parameters()
    }
    assert not {id(p) for p in first.router.parameters()} & {
        id(p) for p in second.router.parameters()
    }


def test_all_gates_have_the_same_draws_and_seeds_have_others() -> None:
    assert comet.draws(0, 5)[:3] == comet.draws(0, 3) != comet.draws(1, 3)
    for drawn in comet.draws(2, 50):
        assert 3e-4 <= drawn.lr <= 1e-2 and 0.01 <= drawn.search <= 0.1
