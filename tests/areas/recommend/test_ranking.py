"""Models of users: LightGCN, MultVAE and NeuMF, and full-sort measures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import intarsia
from intarsia.areas.recommend.lightgcn import LightGcn, LightGcnModel
from intarsia.areas.recommend.measures import full_sort
from intarsia.areas.recommend.multvae import MultVae, MultVaeModel
from intarsia.areas.recommend.neumf import NeuMf, NeuMfModel
from intarsia.areas.recommend.ranker import Ranker
from intarsia.areas.recommend.recommender import seen_rows
from intarsia.areas.recommend.recommending import measured
from intarsia.core.errors import ConfigError, DataError
from intarsia.data.interactions import Interactions, events
from intarsia.schedules import Dsl
from intarsia.train.tasks import own_losses

from ...refusals import refused

SMALL: dict[str, Any] = {
    "lightgcn": LightGcn(width=8, layers=2),
    "multvae": MultVae(width=16, code=4),
    "neumf": NeuMf(width=8),
}


def trained(settings: Any, data: Interactions, epochs: int, schedule: Any = None) -> Ranker:
    model = settings.build(data, seed=0)
    options: Any = {"epochs": epochs, "batch_size": 24, "lr": 2e-2, "trackers": ()}
    intarsia.fit(
        model,
        model.samples(data),
        task=model.task,
        objective=own_losses,
        schedule=schedule,
        weight_decay=0.0,
        **options,
    )
    return model.eval()


@pytest.mark.parametrize("name", SMALL)
def test_what_was_taken_ranks_above_the_rest_but_is_not_said_again(
    shop: Interactions, name: str
) -> None:
    model = trained(SMALL[name], shop, 25)
    classes = [
        int(recommendation.item) % 3
        for recommendation in model.recommend("u0", 3, exclude_seen=False)
    ]
    assert classes.count(0) == 3  # of the user's colour
    recommended = [recommendation.item for recommendation in model.recommend("u0", 99)]
    history = {shop.item_ids[i] for i in shop.items[shop.users == 0]}
    assert not history & set(recommended) and len(recommended) == 18 - len(history)


def test_validation_items_are_no_wrong_answers() -> None:
    """A model that ranks a user's validation items first, then her test items, makes no mistake."""
    rows = [(f"u{u}", str(u + i), 10.0 * u + i, 5.0) for u in range(4) for i in range(6)]
    rest, test = events(rows, item_ids=[str(i) for i in range(12)]).leave_last(1)
    train, val = rest.leave_last(2)

    class Knows(NeuMfModel):
        def all_scores(self, users: torch.Tensor) -> torch.Tensor:
            first, second = (seen_rows(part)[users].float() for part in (val, test))
            return 2 * first + second

    model = Knows(NeuMf(width=8), train, generator=torch.Generator())
    assert measured(model, val, test)["RR@10"] == 1
    nothing = val.rows(np.zeros(len(val), dtype=bool))
    assert measured(model, nothing, test)["RR@10"] < 1
    assert measured(model, test, test) == measured(model, nothing, test)  # they stay questions


def test_the_propagation_is_the_naive_one(shop: Interactions) -> None:
    model = LightGcn(width=4, layers=3).build(shop)
    users, n = len(shop.user_ids), len(shop.user_ids) + 19
    graph = torch.zeros(n, n, dtype=torch.float64)
    for user, item in zip(shop.users.tolist(), shop.items.tolist(), strict=True):
        graph[user, users + item + 1] = graph[users + item + 1, user] = 1
    degree = graph.sum(1).clamp_min(1).rsqrt()
    graph = degree[:, None] * graph * degree
    start = torch.cat([model.user.weight, model.item.weight]).double()
    layers = [start]
    for _ in range(3):
        layers.append(graph @ layers[-1])
    expected = torch.stack(layers).mean(0).float()
    torch.testing.assert_close(torch.cat(model.tables()), expected)
    # without layers it is matrix factorisation
    plain = LightGcn(width=4, layers=0).build(shop)
    torch.testing.assert_close(plain.tables()[1], plain.item.weight)


def test_a_batch_teaches_most_rows_through_the_graph(shop: Interactions) -> None:
    """A pair moves neighbours of neighbours in LightGCN, and without layers nobody else."""
    for layers, least, highest in ((0, 1, 1), (3, 4, 12)):
        model = LightGcn(width=4, layers=layers, reg=0.0).build(shop)
        model.losses(torch.tensor([0]), torch.tensor([1]))["ranking"].backward()
        assert least <= int(model.user.weight.grad.any(1).sum()) <= highest  # pyright: ignore


def test_the_autoencoder_s_loss_is_the_naive_one(shop: Interactions) -> None:
    model = MultVae(width=8, code=3, dropout=0.0).build(shop).train()
    model.before_step(0, 10)
    assert model.beta == 0
    model.before_step(9, 10)
    assert model.beta == 0.2
    users = torch.tensor([3])
    torch.manual_seed(0)
    losses = model(users, torch.tensor([1]))
    torch.manual_seed(0)
    x = model.seen[3].float()
    hidden = torch.tanh((x / x.norm()) @ model.read_item.weight + model.read_bias)
    mu, log_variance = model.to_code(hidden).chunk(2)
    z = torch.distributions.Normal(mu, (log_variance / 2).exp())
    code = mu + torch.randn(1, 3)[0] * z.scale
    logits = torch.tanh(model.from_code(code)) @ model.rank_item.weight.T + model.rank_bias
    logp = logits[1:].log_softmax(0)
    torch.testing.assert_close(losses["items"], -logp[x[1:] > 0].sum())
    kl = torch.distributions.kl_divergence(z, torch.distributions.Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(losses["kl"], 0.2 * kl)


def test_negatives_are_items_that_the_user_has_not_taken(shop: Interactions) -> None:
    model = SMALL["neumf"].build(shop)
    users = torch.arange(12).repeat(200)
    drawn = model.not_taken(users)
    assert drawn.min() >= 1 and not model.seen[users, drawn].float().mean() > 0.001


def test_dsl_keeps_its_density_in_all_tables_and_full_density_changes_nothing(
    shop: Interactions,
) -> None:
    for recommender in (LightGcn(width=8, layers=1), MultVae(width=10, code=4)):
        model = trained(recommender, shop, 3, Dsl(density=0.2, every=2, layers=recommender.tables))
        for table in (m for m in model.modules() if isinstance(m, torch.nn.Embedding)):
            assert int((table.weight != 0).sum()) <= round(0.2 * table.weight.numel())
    dense = trained(SMALL["lightgcn"], shop, 2)
    full = trained(SMALL["lightgcn"], shop, 2, Dsl(density=1.0, every=2))
    for one_, two in zip(dense.parameters(), full.parameters(), strict=True):
        assert torch.equal(one_, two)


@settings(max_examples=15)
@given(st.lists(st.sets(st.integers(0, 9), min_size=1), min_size=1, max_size=4), st.randoms())
def test_measures_are_those_by_hand(relevant: list[set[int]], random: Any) -> None:
    ranked = [random.sample(range(10), 10) for _ in relevant]
    measured = full_sort(ranked, relevant, ("nDCG@3", "R@3", "RR@3", "Success@3"))
    gains = 1 / np.log2(np.arange(2, 5))
    rows = []
    for order, items in zip(ranked, relevant, strict=True):
        hits = np.array([item in items for item in order[:3]])
        ideal = gains[: min(3, len(items))].sum()
        first = float(1 / (hits.argmax() + 1)) if hits.any() else 0.0
        rows.append((gains[hits].sum() / ideal, hits.sum() / len(items), first, float(hits.any())))
    np.testing.assert_allclose(list(measured.values()), np.mean(rows, 0), rtol=1e-6)


def test_bad_input(shop: Interactions) -> None:
    model = SMALL["lightgcn"].build(shop)
    assert isinstance(model, LightGcnModel)
    with refused(ConfigError, what="LightGcnModel"):
        model.recommend(["1", "2"])
    autoencoder = MultVae(width=8, code=3).build(shop)
    assert isinstance(autoencoder, MultVaeModel)
    assert len(autoencoder.recommend(["1", "2"], 5)) == 5  # which can
    with refused(DataError, what="held-out events"):
        model.questions(shop)
    with refused(DataError, what="training events", got="none"):
        LightGcn().build(shop.rows(shop.items < 0))
    with refused(ConfigError, what="dropout", got=1.0):
        MultVae(dropout=1.0)
    with refused(ConfigError, what="negatives", got=0):
        replace(SMALL["neumf"], negatives=0)
    with refused(ConfigError, what="measure", got="'nope@3'"):
        full_sort([[1]], [[1]], ("nope@3",))
    with refused(DataError, what="rankings"):
        full_sort([[1]], [[1], [2]])
    with refused(DataError, what="judgements", got="none"):
        full_sort([[1]], [[]])


def test_a_graph_is_learned_from_in_bfloat16(shop: Interactions) -> None:
    model = SMALL["lightgcn"].build(shop)
    before = model.user.weight.detach().clone()
    settings: Any = {"epochs": 1, "batch_size": 24, "lr": 2e-2, "trackers": (), "precision": "bf16"}
    rows = model.samples(shop)
    run = intarsia.fit(model, rows, task=model.task, objective=own_losses, **settings)
    assert np.isfinite(run.history[-1]["loss"]) and not torch.equal(model.user.weight, before)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.tables()[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_history_is_read_in_the_model_s_type(shop: Interactions, dtype: torch.dtype) -> None:
    model = MultVae(width=8, code=3).build(shop).to(dtype).eval()
    assert len(model.recommend(["1", "2"], 5)) == 5
