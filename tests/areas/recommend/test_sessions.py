"""Sessions: the encoder, vectors of fields, and M2TRec."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import intarsia
from intarsia.areas.recommend import m2trec
from intarsia.areas.recommend.item_fields import FieldCoding, FieldVectors, IdVectors
from intarsia.areas.recommend.lightgcn import LightGcn
from intarsia.areas.recommend.m2trec import M2TRec, M2TRecModel
from intarsia.areas.recommend.recommending import measured
from intarsia.areas.recommend.session_encoder import SessionEncoder, pad_sessions
from intarsia.core.errors import ConfigError, DataError, ShapeError, UnknownName
from intarsia.data.interactions import Interactions, ItemField
from intarsia.train.tasks import own_losses

from ...refusals import refused

TINY = M2TRec(width=16, layers=1, longest=6, dropout=0.0)


def known(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model in evaluation, which treats no value as unknown."""
    return model.eval()


@given(st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_padding_on_the_left_changes_nothing(n: int, padding: int, causal: bool) -> None:
    torch.manual_seed(0)
    encoder = SessionEncoder(16, layers=1, longest=8, causal=causal).eval()
    items = torch.randn(1, n, 16)
    alone = encoder(items, torch.ones(1, n, dtype=torch.bool))
    wide = torch.cat([torch.randn(1, padding, 16), items], 1)
    padded = encoder(wide, torch.arange(n + padding)[None] >= padding)
    torch.testing.assert_close(padded[:, padding:], alone)
    assert not padded[:, :padding].any()  # exactly 0


def test_a_place_sees_no_later_one() -> None:
    torch.manual_seed(0)
    encoder = SessionEncoder(16, layers=2, longest=8).eval()
    items, present = torch.randn(1, 5, 16), torch.ones(1, 5, dtype=torch.bool)
    changed = items.clone()
    changed[:, 3:] = torch.randn(1, 2, 16)
    first, second = encoder(items, present), encoder(changed, present)
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3:], second[:, 3:])
    assert not encoder(items, ~present).any()
    with refused(ShapeError, what="session"):
        encoder(torch.randn(1, 9, 16), torch.ones(1, 9, dtype=torch.bool))
    with refused(ConfigError, what="width", got=20):
        SessionEncoder(20)


def test_numbers_words_and_texts_become_codes() -> None:
    price = FieldCoding.of("price", ItemField("float", (1.0, 2.0, np.nan, 9.0)))
    assert price.codes(ItemField("float", (np.nan,)))[0, 0] == 0
    low, high = price.codes(ItemField("float", (-1e9, 1e9)))[:, 0]
    assert 1 <= low < high < price.size
    words = FieldCoding.of("c", ItemField("token_seq", (("a", "b"), ("b",))))
    assert words.codes(ItemField("token_seq", (("b", "new"), ()))).tolist() == [[2, 0], [0, -1]]
    different = tuple((f"w{i}", f"v{i}") for i in range(200))
    text = FieldCoding.of("title", ItemField("token_seq", different))
    assert text.kind == "text" and text.codes(ItemField("token_seq", (("A", "b"),))).shape == (1, 3)


def test_equal_metadata_are_equal_scores_and_names_do_not_matter(shop: Interactions) -> None:
    twin = {n: replace(f, values=(*f.values[:17], f.values[2])) for n, f in shop.fields.items()}
    model = known(TINY.build(replace(shop, fields=twin)))
    assert isinstance(model, M2TRecModel)
    scores = model(pad_sessions([[1, 4, 7]], 6))[0]
    torch.testing.assert_close(scores[3], scores[18])
    named = replace(shop, item_ids=tuple(f"x{i}" for i in shop.item_ids), fields=twin)
    torch.testing.assert_close(known(TINY.build(named))(pad_sessions([[1, 4, 7]], 6))[0], scores)


def test_new_items_are_ranked_as_if_they_had_been_there(shop: Interactions) -> None:
    fewer = shop.rows(shop.items < 17)
    first = {n: f.take(np.arange(17)) for n, f in shop.fields.items()}
    model = TINY.build(replace(fewer, item_ids=shop.item_ids[:17], fields=first))
    full = TINY.build(replace(fewer, fields=shop.fields))
    assert model.items.coding == FieldVectors(first, 16, generator=torch.Generator()).coding  # pyright: ignore
    model.add_items(["17"], {n: f.take(np.array([17])) for n, f in shop.fields.items()})
    full.items.coding = model.items.coding  # pyright: ignore
    full.items.set(shop.fields)  # pyright: ignore
    full.load_state_dict(model.state_dict(), strict=False)
    x = pad_sessions([[1, 4]], 6)
    torch.testing.assert_close(known(model)(x), known(full)(x))
    assert "17" in {r.item for r in model.recommend(["0", "3"], 18)}
    with refused(DataError, what="new items"):
        model.add_items(["17"], {n: f.take(np.array([17])) for n, f in shop.fields.items()})
    with refused(DataError, what="field 'tags' of new items", got="none"):
        model.add_items(["18"], {"colour": ItemField("token", (("red",),))})


def test_parameters_do_not_grow_with_the_items(shop: Interactions) -> None:
    ten = {n: replace(f, values=f.values * 10) for n, f in shop.fields.items()}
    larger = replace(shop, item_ids=tuple(map(str, range(180))), fields=ten)
    sizes = [sum(p.numel() for p in TINY.build(d).parameters()) for d in (shop, larger)]
    assert sizes[0] == sizes[1]


def test_all_prefixes_in_one_pass_are_each_on_its_own(shop: Interactions) -> None:
    """The losses of a session are the mean of those of its prefixes, but for their positions."""
    for pool in ("mean", "last"):
        model = replace(TINY, pool=pool).build(shop)
        torch.nn.init.zeros_(model.encoder.position.weight)
        known(model)  # dropout and unknown values are off; the losses are asked for by a target
        session = torch.tensor([2, 5, 8, 11])
        losses = model(session[None, :3], session[3:])
        scores = [model(session[None, : i + 1])[0] for i in range(3)]
        for row in scores:
            row[0] = -torch.inf
        expected = F.cross_entropy(torch.stack(scores), session[1:])
        torch.testing.assert_close(losses["item"], expected)
        assert set(losses) == {"item", "colour", "tags"}


def test_items_without_an_event_are_no_negatives(
    shop: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Item 17 has no event: no step pushes it away, be the softmax whole or sampled."""
    cold = shop.rows(shop.items != 17)
    x, y = pad_sessions([[1, 4, 7], [2, 5]], 6), torch.tensor([10, 8])
    for large in (m2trec.LARGE, 1):
        monkeypatch.setattr(m2trec, "LARGE", large)
        monkeypatch.setattr(m2trec, "SAMPLED", 5000)
        generator = torch.Generator().manual_seed(0)
        items = IdVectors(18, 16, generator=generator)
        model = M2TRecModel(TINY, cold, items, generator=generator)
        loss = known(model)(x, y)["item"]
        rest = model(x).detach()[:, 1:18].log_softmax(1)  # of the other items
        (grad,) = torch.autograd.grad(loss, items.table.weight)
        assert not grad[18].any() and grad[17].any() and rest.isfinite().all()
    losses = model(x[:, 1:].contiguous(), torch.tensor([18, 8]))[
        "item"
    ]  # it is learned where it is the answer
    assert losses.isfinite() and torch.autograd.grad(losses, items.table.weight)[0][18].any()


def test_a_word_that_is_not_known_is_not_learned(shop: Interactions) -> None:
    """Code 0 of a field of several words: its logit neither counts nor gets a gradient."""
    model, size = TINY.build(shop), {c.name: c.size for c in TINY.build(shop).items.coding}["tags"]
    logits = torch.randn(2, size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    model._of_field("tags", logits, torch.tensor([1, 5])).backward()
    gradient = logits.grad
    assert gradient is not None and not gradient[:, 0].any() and bool(gradient[:, 1:].all())


def test_without_weight_it_is_the_single_task(shop: Interactions) -> None:
    x, y = pad_sessions([[1, 4]], 6), torch.tensor([7])
    both = known(replace(TINY, weight=0.0).build(shop))(x, y)
    alone = known(replace(TINY, tasks=()).build(shop))(x, y)
    assert set(alone) == {"item"} and not both["colour"] and not both["tags"]


def test_a_sampled_softmax_of_all_items_is_the_softmax(
    shop: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = known(TINY.build(shop))
    x, y = pad_sessions([[1, 4, 7], [2, 5]], 6), torch.tensor([10, 8])
    exact = model(x, y)["item"]
    monkeypatch.setattr(m2trec, "LARGE", 1)
    monkeypatch.setattr(m2trec, "SAMPLED", 5000)  # each item is there, for certain
    torch.testing.assert_close(model(x, y)["item"], exact)


def test_the_chance_of_an_item_is_its_share_of_the_events(shop: Interactions) -> None:
    model = TINY.build(shop, seed=0)
    want = torch.tensor([0, *shop.popularity()]).float() / len(shop)
    torch.testing.assert_close(model.chance, want)
    assert len(model.questions(shop)) > len(model.samples(shop))


def test_a_sampled_item_s_score_loses_the_logarithm_of_its_chance(
    shop: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = known(TINY.build(shop))
    x, y = torch.tensor([[1, 4, 7]]), torch.tensor([10])
    places = torch.tensor([0, 1, 4, 7, 10, 12])
    chance = torch.tensor([1.0, 0.9, 0.5, 0.3, 0.2, 0.05]).log()
    monkeypatch.setattr(m2trec, "LARGE", 1)
    monkeypatch.setattr(model, "_sampled", lambda *_: (places, chance))
    vectors = model.items(places)
    scores = model.states(x, vectors, places)[0] @ vectors.T - chance
    scores[:, 0] = -torch.inf  # padding
    expected = F.cross_entropy(scores, torch.tensor([2, 3, 4]))
    torch.testing.assert_close(model(x, y)["item"], expected)


def test_it_learns_the_colours_and_says_why(shop: Interactions) -> None:
    model = replace(TINY, width=32).build(shop, seed=0)
    sets = model.sets(shop, shop, shop)
    options: dict[str, object] = {"epochs": 25, "batch_size": 12, "lr": 1e-2, "trackers": ()}
    run = intarsia.fit(model, sets[0], task=model.task, objective=own_losses, **options)  # pyright: ignore
    assert run.history[-1]["loss"] < 0.7 * run.history[0]["loss"]
    best = [
        recommendation.item for recommendation in model.recommend(["0", "3"], 4, exclude_seen=True)
    ]
    assert sum(int(item) % 3 == 0 for item in best) >= 3 and not {"0", "3"} & set(best)
    reasons = model.explain(["0", "3"], best[0])
    assert set(reasons) == {"colour", "tags", "price"}
    assert list(reasons.values()) == sorted(reasons.values(), reverse=True)


def test_bad_input(shop: Interactions) -> None:
    model = known(TINY.build(shop))
    assert isinstance(model, M2TRecModel)
    with pytest.warns(UserWarning, match="answer to an empty session"):
        first = model.recommend(["nothing"], 3)[0]
    assert shop.popularity()[shop.item(first.item)] == shop.popularity().max()
    with pytest.warns(UserWarning, match="they are left out"):
        model.recommend(["nothing", "1"], 3)
    with refused(DataError, what="user", got="'u99'"):
        model.recommend("u99")
    with refused(DataError, what="item", got="'99'"):
        model.explain(["1"], "99")
    with refused(ConfigError, what="k", got=0):
        model.recommend(["1"], 0)
    with refused(DataError, what="recommendations"):
        model.recommend([str(i) for i in range(18)])
    with refused(UnknownName, what="unknown item field", got="'color'"):
        replace(TINY, tasks=("color",)).build(shop)
    with refused(ConfigError, what="tasks", got="'price'"):
        replace(TINY, tasks=("price",)).build(shop)
    with refused(DataError, what="item fields"):
        TINY.build(replace(shop, fields={}))
    with refused(ConfigError, what="pool", got="'max'"):
        replace(TINY, pool="max")
    ids = M2TRecModel(TINY, shop, IdVectors(18, 16, generator=torch.Generator()),
                      generator=torch.Generator())  # fmt: skip
    with refused(ConfigError, what="new items"):
        ids.add_items(["18"], {})


def test_measures_are_taken_where_the_model_is(
    shop: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands for an accelerator."""
    for settings in (TINY, LightGcn(width=4)):
        model = settings.build(shop.rows(shop.times % 1e4 < 300)).to("meta")
        devices: list[str] = []

        def ranked(
            x: torch.Tensor,
            k: int,
            hidden: torch.Tensor | None = None,
            devices: list[str] = devices,
        ) -> torch.Tensor:
            devices.append(x.device.type if hidden is None else hidden.device.type)
            return torch.arange(1, 19).expand(len(x), -1)

        monkeypatch.setattr(model, "ranked", ranked)
        monkeypatch.setattr(
            model, "questions", settings.build(shop.rows(shop.times % 1e4 < 300)).questions
        )
        assert 0 < measured(model, shop, shop)["R@20"] <= 1 and set(devices) == {"meta"}


def test_a_place_that_is_no_item_is_no_rival(shop: Interactions) -> None:
    """The scores of a run in training are those of all items, and of nothing else."""
    model = known(TINY.build(shop))
    x = pad_sessions([[1, 4, 7]], 6)
    scores = model(x).detach()
    assert scores[0, 0] == -torch.inf and scores[0, 1:].isfinite().all()
    best = scores[0].argmax()
    loss, rank = model.task.rows(scores, (x, best[None]))  # pyright: ignore
    assert rank.item() == 1
    assert loss.item() == pytest.approx(float(-scores[0, 1:].log_softmax(0)[best - 1]), rel=1e-6)
