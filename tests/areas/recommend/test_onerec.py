"""OneRec: semantic ids, beams along the trie, the decoder's cache, and preference alignment."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import intarsia
from intarsia.areas.recommend import onerec
from intarsia.areas.recommend.beams import GeneratedItems
from intarsia.areas.recommend.onerec import OneRec, OneRecModel
from intarsia.areas.recommend.semantic_ids import (
    SemanticIds,
    Trie,
    assign_balanced,
    number_duplicates,
)
from intarsia.areas.recommend.session_encoder import pad_sessions
from intarsia.areas.recommend.session_reward import SessionReward
from intarsia.core.errors import ConfigError, DataError
from intarsia.data.interactions import Interactions
from intarsia.train.outcome import TargetLoss
from intarsia.train.preference import PreferenceRounds, preference_loss
from intarsia.train.tasks import own_losses

from ...refusals import refused

TINY = OneRec(codes=(3, 3), width=16, layers=1, experts=3, active=2, history=4, session=3)


@pytest.fixture(scope="module")
def model(shop: Interactions) -> OneRecModel:
    return TINY.build(shop, seed=0).eval()


def test_a_level_codes_what_the_ones_before_have_left() -> None:
    x = 5 + np.random.default_rng(0).standard_normal((30, 3))
    first, second = SemanticIds((3, 3)).fit(x).errors_
    assert first < 0.1 * np.square(x).sum(1).mean() and second < first


@settings(max_examples=15)
@given(st.integers(3, 30), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_codes_are_balanced_and_what_is_left_shrinks(
    count: int, levels: int, balanced: bool, seed: int
) -> None:
    x = np.random.default_rng(seed).standard_normal((count, 3))
    ids = SemanticIds((3,) * levels, balanced, seed).fit(x)
    if balanced:
        for codes in ids.codes_.T[:-1]:
            sizes = np.bincount(codes, minlength=3)
            assert sizes.max() - sizes.min() <= 1
    else:  # a centre is the mean of its items, so that each level takes something away
        errors = (np.square(x).sum(1).mean(), *ids.errors_)
        assert all(b <= a + 1e-9 for a, b in itertools.pairwise(errors))
    assert len(np.unique(ids.codes_, axis=0)) == count  # the last code tells twins apart
    assert all(0 <= e <= 1 + 1e-9 for e in ids.entropies())


@settings(max_examples=5)
@given(st.integers(0, 99), st.integers(2, 3))
def test_an_assignment_is_the_best_of_all(seed: int, count: int) -> None:
    cost = np.random.default_rng(seed).random((7, count))
    least, extra = divmod(7, count)
    labels = assign_balanced(cost)
    best = math.inf
    for label in itertools.product(range(count), repeat=7):
        sizes = np.bincount(label, minlength=count)
        if sizes.min() >= least and (sizes > least).sum() == extra and sizes.max() <= least + 1:
            best = min(best, cost[np.arange(7), label].sum())
    assert cost[np.arange(7), labels].sum() == pytest.approx(best)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300)), min_size=1, max_size=12))
def test_the_trie_leads_to_each_item_and_nowhere_else(codes: list[tuple[int, int]]) -> None:
    rows = number_duplicates(np.array(codes))
    trie = Trie.of(rows)
    leaves = {}
    below: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    while below:
        node, path = below.pop()
        if trie.item[node] >= 0:
            leaves[path] = int(trie.item[node])
        below += [(c, (*path, int(trie.token[c]))) for c in trie.children(node)]
    assert leaves == {tuple(row): i for i, row in enumerate(rows.tolist())}
    for item, row in enumerate(rows):
        assert [int(trie.token[n]) for n in trie.path[item]] == row.tolist()


@settings(max_examples=10)
@given(st.integers(0, 50), st.booleans(), st.lists(st.integers(1, 18), max_size=15, unique=True))
def test_what_is_written_is_items_that_have_not_come(
    model: OneRecModel, seed: int, beams: bool, items: list[int]
) -> None:
    x = pad_sessions([items[:4], [1]], 4)
    excluded = torch.tensor([items + [0], [0] * (len(items) + 1)])
    draws = None if beams else torch.Generator().manual_seed(seed)
    generated = model.generate(x, 3, width=4, excluded=excluded, draws=draws)
    for row, gone in zip(generated.items.tolist(), (set(items), set()), strict=True):
        for way in row:
            if all(item > 0 for item in way):
                assert len(set(way)) == 3 and not gone & set(way) and max(way) <= 18
    assert (generated.items[:, 0] > 0).all() and generated.logp[:, 0].isfinite().all()


def test_the_best_way_is_the_best_of_all_and_the_cache_changes_nothing(model: OneRecModel) -> None:
    x = pad_sessions([[1, 4, 7]], 4)
    generated = model.generate(x, 2, width=18 * 17)
    pairs = torch.tensor(list(itertools.permutations(range(1, 19), 2)))
    tokens = model.tokens[pairs].flatten(1)
    with torch.no_grad():  # without a cache
        logits = model.logits(x.expand(len(pairs), -1), tokens)
    logp = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0].sum(1)
    place = {tuple(pair): i for i, pair in enumerate(pairs.tolist())}
    order = [place[tuple(way)] for way in generated.items[0].tolist() if 0 not in way]
    assert len(order) == len(pairs) and order[0] == int(logp.argmax())
    torch.testing.assert_close(generated.logp[0, : len(order)].sum(1), logp[order])


def test_one_expert_is_dense_and_ids_decide(shop: Interactions) -> None:
    dense = replace(TINY, experts=1, active=1).build(shop)
    assert not any(type(m).__name__ == "Mixture" for m in dense.modules())
    scores = dense.scores(None, [1, 4])
    assert scores[0] == -torch.inf and torch.isfinite(scores[1:]).all()
    best = [recommendation.item for recommendation in dense.recommend(["0", "3"], 4)]
    assert not {"0", "3"} & set(best)
    session = dense.session("u1", 3, exclude_seen=False)
    assert len({recommendation.item for recommendation in session}) == 3


def test_a_model_at_its_reference_has_log_2_and_learns_what_is_preferred() -> None:
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss = preference_loss(logp[:1], logp[1:], torch.tensor([-1.0]), torch.tensor([-2.0]), 0.3)
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert logp.grad is not None and logp.grad[0] < 0 < logp.grad[1]
    still = preference_loss(logp[:1], logp[1:], torch.tensor([-3.0]), torch.tensor([9.0]), 0.0)
    assert still.item() == pytest.approx(math.log(2))  # beta 0 moves nothing


class Drawn(torch.nn.Module):
    """Draws three sessions of one item after each history, and says nothing of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def draw(self, x: torch.Tensor, count: int, _: torch.Generator) -> torch.Tensor:
        return torch.tensor([1, 2, 3]).view(1, 3, 1).expand(len(x), count, 1)

    def forward(self, x: torch.Tensor, session: torch.Tensor, **_: Any) -> torch.Tensor:
        return session.sum(1) * self.weight


def test_a_pair_is_of_the_best_session_and_the_worst() -> None:
    """Rewards .3, .9 and .1 of sessions 1, 2 and 3."""
    rounds = PreferenceRounds(
        lambda _, sessions: torch.tensor([0.3, 0.9, 0.1]).expand(len(sessions), 3),
        torch.ones(4, 2, dtype=torch.int64),
        samples=3,
    )
    rounds.collect(Drawn(), torch.Generator().manual_seed(0))
    _, best, worst, *_ = rounds.found
    assert best.flatten().tolist() == [2] * 4 and worst.flatten().tolist() == [3] * 4


class Preferring(Drawn):
    """Next items of loss 2, and a weight by which the best session becomes likelier."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor, session: Any, per_session: bool = False) -> Any:
        return session.sum(1) * self.weight if per_session else {"next": self.weight}


def test_a_round_adds_its_preference_to_the_task_s_loss_while_training() -> None:
    """Log-probabilities w s of sessions 2 and 3, with w = 1 as reference and 2 now: z = 2 - 3."""
    model = Preferring().train()
    rounds = PreferenceRounds(
        lambda _, sessions: torch.tensor([0.3, 0.9, 0.1]).expand(len(sessions), 3),
        torch.ones(4, 2, dtype=torch.int64),
        samples=3,
        beta=0.5,
        weight=3.0,
    )
    model.weight.data.fill_(1.0)
    rounds.collect(model, torch.Generator().manual_seed(0))
    model.weight.data.fill_(2.0)
    outcome = rounds(model, torch.zeros(1), TargetLoss(lambda out, _: out, torch.zeros(1)))
    prefer = math.log1p(math.exp(0.5))  # -log sigmoid(beta z)
    assert float(outcome.loss.detach()) == pytest.approx(2 + 3 * prefer)
    assert float(outcome.parts["preference"].detach()) == pytest.approx(prefer)
    assert float(outcome.parts["next"].detach()) == 2


def test_alignment_raises_the_reward(shop: Interactions) -> None:
    """A reward of items below 7: what is drawn afterwards has more of them."""
    torch.manual_seed(0)
    model = replace(TINY, experts=1).build(shop, seed=0)
    train = model.samples(shop)
    settings: Any = {"task": model.task, "batch_size": 16, "lr": 3e-3, "trackers": ()}
    intarsia.fit(model, train, objective=own_losses, epochs=2, **settings)

    def reward(_: torch.Tensor, sessions: torch.Tensor) -> torch.Tensor:
        return (sessions < 7).float().mean(2)

    histories = pad_sessions([h for h, _ in train], 4)  # pyright: ignore
    before = reward(histories, model.draw(histories, 8, torch.Generator().manual_seed(1))).mean()
    rounds = PreferenceRounds(
        reward, histories, rounds=2, samples=8, users=12, beta=0.5, weight=5.0
    )
    done = intarsia.fit_in_phases(model, rounds, train, objective=rounds, epochs=8, **settings)
    after = reward(histories, model.draw(histories, 8, torch.Generator().manual_seed(1))).mean()
    assert len(done.runs) == 2 and after > before + 0.05
    assert {"next", "preference"} <= set(done.run.history[0])


def test_an_item_is_judged_with_those_before_and_after_it_in_its_session() -> None:
    reward = SessionReward(18, TINY, width=16).eval()
    x = torch.arange(1, 5 + TINY.session)[None]
    for changed in (4, x.shape[1] - 1):  # the first item of the session, and its last
        other = x.clone()
        other[0, changed] = 17
        with torch.no_grad():
            assert ((reward(x) - reward(other)).abs() > 1e-4).all()


def test_a_history_is_padded_on_the_left_and_its_padding_has_no_say() -> None:
    torch.manual_seed(0)
    reward = SessionReward(18, replace(TINY, history=6), width=16).eval()
    rows = reward._padded([[3, 4], [1, 2, 3, 4, 5, 6, 7]])
    assert rows.tolist() == [[0, 0, 0, 0, 3, 4], [2, 3, 4, 5, 6, 7]]
    assert reward._padded([[5]]).tolist() == [[0, 0, 0, 0, 0, 5]]
    session = torch.arange(8, 8 + TINY.session)[None]
    with torch.no_grad():
        alone, padded = (
            reward(torch.cat([torch.tensor([history]), session], 1))
            for history in ([3, 4], [0, 0, 0, 0, 3, 4])
        )
    torch.testing.assert_close(alone, padded)


def test_a_reward_learns_from_ratings(shop: Interactions) -> None:
    reward = SessionReward(18, TINY, width=16)
    rows = reward.rows(shop)
    settings: Any = {"epochs": 40, "batch_size": 16, "lr": 1e-2, "trackers": ()}
    run = intarsia.fit(reward, rows, task=reward.task, **settings)
    assert run.history[-1]["loss"] < 0.9 * run.history[0]["loss"]
    x = rows.tensors[0]
    rewards = reward.reward(x[:, :4], x[:, None, 4:].expand(-1, 2, -1))
    assert rewards.shape == (len(x), 2) and torch.equal(rewards[:, 0], rewards[:, 1])
    with torch.no_grad():
        torch.testing.assert_close(rewards[:, 0], reward.eval()(x).sigmoid().mean(1))
    with refused(DataError, what="events of a reward"):
        reward.rows(replace(shop, ratings=np.full(len(shop), np.nan)))


def test_bad_input(shop: Interactions, model: OneRecModel) -> None:
    with refused(DataError, what="item vectors", got="2 items"):
        SemanticIds((3,)).fit(np.zeros((2, 2)))
    with refused(DataError, what="item vectors", got="NaN or infinity"):
        SemanticIds((2,)).fit(np.full((4, 2), np.nan))
    with refused(DataError, what="codes", got="two items with the same"):
        Trie.of(np.zeros((2, 1), dtype=int))
    with refused(ConfigError, what="codes", got="none"):
        replace(TINY, codes=())
    with refused(ConfigError, what="items", got=4):
        model.session("u1", 4)
    with refused(DataError, what="items to write"):
        model.session([str(i) for i in range(18)], 1)
    with pytest.warns(UserWarning, match="empty session"):
        assert len(model.session(["nothing"])) == 3
    with refused(
        DataError, what="sessions", got="no user with 5 events and a liked session after them"
    ):
        model.samples(shop.rows(shop.times % 1e4 < 120))
    with refused(DataError, what="samples"):
        PreferenceRounds(lambda h, s: torch.zeros(s.shape[:2]), pad_sessions([[1]], 4)).collect(
            model, torch.Generator().manual_seed(0)
        )
    with refused(ConfigError, what="samples", got=1):
        PreferenceRounds(lambda h, s: s, pad_sessions([[1]], 4), samples=1)


@pytest.mark.parametrize("codes", [(8, 2), (4, 4), (2, 9)])
def test_more_beams_than_ways_are_no_error(shop: Interactions, codes: tuple[int, ...]) -> None:
    """A beam that has no way left stays out, whatever sizes the levels have."""
    model = replace(TINY, codes=codes, experts=1).build(shop).eval()
    generated = model.generate(pad_sessions([[1, 4]], 4), 1, width=30)
    assert sorted(generated.items[0, :18, 0].tolist()) == list(range(1, 19))
    assert not generated.items[0, 18:].any() and (generated.logp[0, 18:] == -torch.inf).all()
    assert len(model.recommend(["0", "3"], 99)) == 16


def test_sessions_of_no_item_are_refused(model: OneRecModel) -> None:
    for items in (0, -1):
        with refused(ConfigError, what="items", want="at least 1"):
            model.session("u1", items)


def test_histories_go_to_where_the_model_is(
    shop: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for an accelerator."""
    devices: list[str] = []

    def write(
        model: Any, paths: Any, x: torch.Tensor, items: int, **settings: Any
    ) -> GeneratedItems:
        devices.extend((x.device.type, settings["excluded"].device.type if items > 1 else "meta"))
        model.start(x, settings["width"])
        count = torch.arange(1, 1 + settings["width"])[None, :, None].expand(-1, -1, items)
        return GeneratedItems(count, torch.zeros(1, settings["width"], items))

    monkeypatch.setattr(onerec, "generate_items", write)
    model = replace(TINY, experts=1).build(shop).to("meta")
    assert len(model.session("u1", 2)) == 2 and len(model.scores(None, [1])) == 19
    assert devices == ["meta"] * 4
