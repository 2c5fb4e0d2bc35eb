"""Public functions take what their users have: rows, names, settings, and PEFT's words."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest
import torch
from torch import nn

import intarsia
from intarsia.core.errors import ConfigError, UnknownKeyword

from .refusals import refused


def test_a_setting_is_known_by_peft_s_name_of_it() -> None:
    lora: Any = intarsia.Lora
    assert lora(r=8, lora_alpha=16, lora_dropout=0.1) == intarsia.Lora(8, 16, 0.1)
    assert lora(4).with_settings(rank=8) == intarsia.Lora(8)
    # the constructor is the one that is written
    assert list(inspect.signature(lora).parameters) == ["rank", "alpha", "dropout", "roles"]
    with refused(ConfigError, what="rank of Lora", got="two"):
        lora(r=8, rank=4)
    with refused(UnknownKeyword, what="unknown setting of Lora", got="'rnk'") as caught:
        lora(rnk=8)
    assert caught.value.near == ("rank",) and isinstance(caught.value, TypeError)


def test_targets_are_known_by_peft_s_name_of_them() -> None:
    def adapted(**given: Any) -> set[str]:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model = intarsia.adapt(model, intarsia.Lora(2), head=None, **given)
        return {name for name, p in model.named_parameters() if p.requires_grad}

    assert adapted(targets=["0"]) == adapted(target_modules=["0"]) != set()
    with refused(ConfigError, what="targets", got="target_modules, too"):
        adapted(targets=["0"], target_modules=["1"])


@pytest.mark.parametrize(
    ("space", "name", "says"),
    [
        (intarsia, "LoRA", "It is intarsia.Lora."),
        (intarsia, "gsc", "It is intarsia.coding.GSC."),
        (intarsia, "zzz", "All names: dir(intarsia)"),
        (intarsia.hosts, "Lora", "It is intarsia.Lora."),
    ],
)
def test_a_name_in_another_spelling_is_found(space: Any, name: str, says: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(space, name)
    assert says in str(caught.value) and caught.value.name == name


def test_public_functions_are_those_of_their_modules() -> None:
    from intarsia import fitting

    assert intarsia.fit is fitting.fit


def test_verbs_take_the_rows_and_numbers_that_they_are_given() -> None:
    # a trace's loads alone, an index of texts, a router without a generator
    load = torch.tensor([[9, 1, 1, 9], [1, 1, 1, 1]])
    placement = intarsia.place(load, 2)
    shares = (load[0] * placement.holds[0]).sum(1).tolist()
    assert shares == [10, 10]
    index = intarsia.search.SparseIndex(["a cat purrs", "a dog barks"]).append(["a bird can fly"])
    assert [hit.id for hit in index.search("birds")] == ["2"]
    built = intarsia.search.SparseIndex.build(["a cat purrs", "a dog barks"])
    assert built.search("cat") == index.delete(["2"]).merge().search("cat")
    routing = intarsia.TopK(experts=4, active=2).build(8)(torch.randn(3, 8))
    assert routing.load().sum() == 6
    x = torch.randn(20, 6)
    w = torch.randn(5, 6)
    statistics = intarsia.scores.Statistics.of(x, hessian=True)
    for score in (intarsia.scores.wanda, intarsia.scores.obs):
        assert torch.equal(score(w, x), score(w, statistics))
    demand = [[(0, 0), (0, 1)], [(0, 2)], [(0, 0)]]
    lru = intarsia.placement.Lru()
    assert intarsia.placement.replay(demand, lru, 2) == intarsia.placement.replay(
        demand, lru.build(1, 3), 2
    )


def test_a_mixture_builds_its_router_from_settings_or_a_name() -> None:
    experts = [nn.Linear(4, 4) for _ in range(3)]
    for router in ("top-k", intarsia.TopK(active=2), "topk"):
        moe = intarsia.mixtures.Mixture(experts, router)
        assert moe.router.experts == 3 and moe(torch.randn(5, 4)).shape == (5, 4)
    with refused(ConfigError, what="width", got="experts without a linear layer"):
        intarsia.mixtures.Mixture([nn.Identity(), nn.Identity()])
    with refused(ConfigError, what="router", got="3"):
        intarsia.mixtures.Mixture(experts, 3)  # pyright: ignore


def test_an_objective_is_what_a_teacher_makes() -> None:
    student, teacher = nn.Linear(3, 2), nn.Linear(3, 2)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    distill = intarsia.train.distill
    batch = (student, x, functools.partial(nn.functional.cross_entropy, target=y))
    want = distill(*batch, teacher=teacher, temperature=2.0).loss
    for objective in (distill(teacher, temperature=2.0), distill(teacher=teacher, temperature=2.0)):
        assert torch.equal(objective(*batch).loss, want)
    with refused(ConfigError, what="teacher", got="two models and no batch"):
        distill(student, teacher=teacher)  # pyright: ignore


def test_the_settings_of_a_recommender_recommend_once_they_have_trained() -> None:
    ease = intarsia.recommend.Ease(reg=1.0)
    with refused(ConfigError, what="Ease", got="settings, which know no events"):
        ease.recommend("u1")
    events = [("u1", "a"), ("u1", "b"), ("u2", "a"), ("u2", "b"), ("u2", "c"), ("u3", "a")]
    fitted = ease.fit(events)
    assert ease.recommend("u3", 2) == fitted.recommend("u3", 2)
    assert ease == intarsia.recommend.Ease(reg=1.0)
    timed = [(f"u{u}", f"i{(u * j) % 11}", float(j)) for u in range(6) for j in range(13)]
    named = intarsia.recommend.fit_recommender("ease", timed)
    assert named.recommend("u1", 1, exclude_seen=False) == named.model.recommend(
        "u1", 1, exclude_seen=False
    )
