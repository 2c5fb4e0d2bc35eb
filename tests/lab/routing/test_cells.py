"""Cells: what contenders have in common, what a cell tells, and that none is run twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from intarsia.core.errors import ConfigError, TrainingError, UnknownName
from intarsia.data import corpora
from intarsia.data.small_models import SmallModel
from intarsia.mixtures import Capacity
from intarsia.routers import EvoMoe, TopK
from intarsia.routers.relu import ReMoe
from intarsia_lab.routing import (
    VARIANTS,
    Expert,
    RouterTrial,
    Scale,
    Start,
    Variant,
    cells,
    chosen,
    material,
    materials,
    work,
)
from intarsia_lab.routing import trials as module
from intarsia_lab.routing.build import dense, with_mixtures
from intarsia_lab.routing.cell import VERSION
from intarsia_lab.routing.cost import mixtures, price
from intarsia_lab.routing.materials import Material, stream

from ...refusals import refused

SCALE = Scale(SmallModel(8, 2, 2, 8), batch=4, steps=6, length=8, vocabulary=260, test=16)
WORDS = "The cat sat on 12 mats, and Tom ran.\n"


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A corpus "toy" of one sentence, and a cache of its own."""
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    text = WORDS * 1000
    monkeypatch.setattr(materials, "SEGMENT", 256)
    monkeypatch.setitem(corpora.CORPORA, "toy", corpora.Corpus(lambda _: text, "a toy"))
    yield


def _inputs(variant: Variant, **changed: Any) -> dict[str, Any]:
    return {
        "variant": variant.to_dict(), "data": "toy", "seed": 0, "steps": SCALE.steps,
        "scale": SCALE.to_dict(), "sees_later": False, "version": VERSION,
    } | changed  # fmt: skip


def _cells(*trials: RouterTrial, **options: Any) -> list[dict[str, Any]]:
    return cells(trials, text=SCALE, executor="here", report=lambda _: None, **options)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_as_json(name: str) -> None:
    record = json.loads(json.dumps(VARIANTS[name].to_dict()))
    assert Variant.of(record) == VARIANTS[name]


def test_all_but_the_mlps_is_the_same() -> None:
    toy = material("toy", SCALE)
    first, second = (
        with_mixtures(dense(v, toy, SCALE, 3), v, 3)
        for v in (VARIANTS["comet"], Variant("x", TopK(4), Expert("relu", 2)))
    )
    plain = dense(VARIANTS["dense"], toy, SCALE, 3).state_dict()
    for model in (first, second):
        state = model.state_dict()
        rest = [name for name in plain if ".mlp." not in name]
        assert rest and all(torch.equal(state[name], plain[name]) for name in rest)
    alike = with_mixtures(dense(VARIANTS["topk"], toy, SCALE, 3), VARIANTS["topk"], 3)
    a, b = (next(iter(mixtures(m).values())).experts for m in (first, alike))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_fresh_experts_forget_the_mlp() -> None:
    toy, variant = material("toy", SCALE), VARIANTS["topk"]
    model = dense(variant, toy, SCALE, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mlp." in name:
                parameter.zero_()
    experts = next(iter(mixtures(with_mixtures(model, variant, 0)).values())).experts
    assert all(bool((p != 0).any()) for p in experts.parameters())


def test_order_is_one_for_all_however_long_they_learn() -> None:
    data = TensorDataset(torch.arange(10), torch.arange(10))

    def met(first: int, steps: int) -> list[list[int]]:
        from intarsia.train.order import Order

        rows = stream(data, first, steps, 4, seed=1).tensors[0]
        return [rows[list(b)].tolist() for b in Order(len(rows), 4, 1).epoch(0)]

    orders = met(0, 7)
    assert met(0, 3) == orders[:3]
    assert met(3, 4) == orders[3:]
    assert sorted(sum(orders, [])[:10]) == list(range(10))


def test_a_dense_model_costs_what_its_products_do() -> None:
    toy = material("toy", SCALE)
    d, h, t, tokens = 8, 8, SCALE.length, len(toy.kinds if toy.kinds is not None else ())
    layer = 2 * t * (4 * d * d + 2 * d * h) + 4 * t * t * d
    cost = price(dense(VARIANTS["dense"], toy, SCALE, 0), toy.val.tensors[0][:3])
    rope = cost.rest - (2 * layer + 2 * t * d * tokens)
    assert 0 <= rope < 0.01 * cost.rest  # the angles are products, too
    assert cost.pair == () and cost.routers == 0


def test_one_expert_costs_what_the_dense_model_does() -> None:
    toy = material("toy", SCALE)
    single = Variant("one", TopK(1, 1))
    base = work(_inputs(VARIANTS["dense"]))
    ours = work(_inputs(single))
    assert ours["flops"]["rest"] + ours["flops"]["experts"] == base["flops"]["total"]
    assert (
        ours["parameters"]["total"] - ours["parameters"]["routers"] == (base["parameters"]["total"])
    )
    assert toy.text


@pytest.mark.parametrize(
    "name",
    ["dense", "topk-relu", "switch", "random", "deepspeed_moe-residual", "moe_x", "moe_x-fresh"],
)
def test_a_cell_tells_in_json(name: str) -> None:
    record = json.loads(json.dumps(work(_inputs(VARIANTS[name])), allow_nan=False))
    assert record["curve"][-1]["step"] == SCALE.steps
    assert record["curve"][-1]["flops"] == record["flops"]["total"]
    assert len(record["loss_by_position"]) == 4 and record["swapped_loss"] > 0
    layers = record["layers"]
    assert len(record["agreement"]) == max(0, len(layers) - 1)
    for layer in layers:
        assert sum(map(sum, layer["table"])) == SCALE.test * SCALE.length  # pyright: ignore
        assert len(layer["dropped_by_position"]) == 4
    if name in ("topk-relu", "moe_x", "moe_x-fresh"):
        assert all(0 <= x["hidden_units"] <= 8 and "score_to_units" in x for x in layers)
    if name in ("switch", "dense"):
        ratio = record["loss"] / record["bits_per_byte"]
        assert 0.69 < ratio < 7  # nats of a token over bits of a byte


def test_a_full_expert_drops_the_last_of_a_batch() -> None:
    router = TopK(4, 1, scale="prob", std=0.0, balance=0.0)
    result = work(_inputs(Variant("full", router, capacity=Capacity(1.0, "order", least=1))))
    assert all(x["dropped"] > 0 for x in result["layers"])
    assert all(x["dropped_by_place"][0] == 0 for x in result["layers"])


def test_experts_that_come_from_a_dense_model() -> None:
    variant = Variant("evo", EvoMoe(4), start=Start("diversified", 0.5))
    result = work(_inputs(variant))
    assert result["dense_steps"] == 3 and result["steps"] == 6
    steps = [point["step"] for point in result["curve"]]
    assert steps == sorted(steps) and steps[-1] == 6
    flops = [point["flops"] for point in result["curve"]]
    assert flops == sorted(flops)


def test_a_cell_is_run_once_under_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []

    def counted(inputs: Mapping[str, Any]) -> dict[str, Any]:
        runs.append(str(inputs["variant"]["router"]))
        return work(inputs)

    monkeypatch.setattr(module, "work", counted)
    first = _cells(RouterTrial(VARIANTS["topk"], "toy"))
    again = _cells(
        RouterTrial(Variant("other", TopK(8, 2)), "toy"), RouterTrial(VARIANTS["dense"], "toy")
    )
    assert len(runs) == 2
    assert again[0] == first[0] | {"name": "other"}


def test_equal_operations() -> None:
    base, dear, cheap = _cells(
        *(RouterTrial(VARIANTS[n], "toy", 0, "flops") for n in ("topk", "evomoe-soft", "dense"))
    )
    assert base["steps"] == SCALE.steps
    assert dear["steps"] <= base["steps"] <= cheap["steps"]
    for result in (dear, cheap):
        step = result["flops"]["total"] / result["steps"]
        assert abs(result["flops"]["total"] - base["flops"]["total"]) <= step


@pytest.mark.parametrize("name", [name for name, contender in VARIANTS.items() if contender.router])
def test_a_contender_that_needs_acknowledging_is_what_upcycle_refuses(name: str) -> None:
    toy, variant = material("toy", SCALE), VARIANTS[name]
    variant = dataclasses.replace(variant, experts=None)  # a pyramid is for four layers
    model = dense(variant, toy, SCALE, 0)
    if variant.sees_later:
        with refused(ConfigError, what="routing of a decoder"):
            with_mixtures(model, variant, 0)
    with_mixtures(model, variant, 0, sees_later=variant.sees_later)


def test_a_router_without_a_contender_is_one_by_its_key() -> None:
    first, second = chosen(["topk", "relu"])
    assert first is VARIANTS["topk"]
    assert second == Variant("relu", ReMoe(experts=8))


def test_what_is_refused_before_anything_runs() -> None:
    late = VARIANTS["expert_choice"]
    with refused(ConfigError, what="'expert_choice' on 'toy'"):
        _cells(RouterTrial(late, "toy"))
    assert _cells(RouterTrial(late, "toy"), sees_later=True)[0]["sees_later"] is True
    with refused(ConfigError, what="budget", got="'time'"):
        _cells(RouterTrial(VARIANTS["dense"], "toy", 0, "time"))
    with pytest.raises(UnknownName):
        chosen(["topk", "top-q"])
    with pytest.raises(UnknownName):
        chosen(["lora"])
    with refused(ConfigError, what="variant 'x'"):
        Variant("x", None, residual=True)
    with refused(ConfigError, what="dense_first"):
        Start("fresh", 0.1)


def test_a_failed_cell_is_said_and_the_others_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Variant("bad", TopK(4), experts=(2,))  # two layers
    with refused(TrainingError, what="1 of 2 trials"):
        _cells(RouterTrial(bad, "toy"), RouterTrial(VARIANTS["dense"], "toy"))
    monkeypatch.setattr(module, "work", lambda _: pytest.fail("was kept"))
    assert _cells(RouterTrial(VARIANTS["dense"], "toy"))


def test_a_contender_that_fails_at_equal_steps_stops_no_other_at_equal_operations() -> None:
    bad = Variant("bad", TopK(4), experts=(2,))
    trials = [RouterTrial(contender, "toy", 0, "flops") for contender in (bad, VARIANTS["dense"])]
    with refused(TrainingError, what="1 of 2 trials"):
        _cells(*trials)
    assert _cells(trials[1])  # is there


def test_pictures() -> None:
    x, y = torch.randn(24, 1, 8, 8), torch.arange(24) % 3
    part = TensorDataset(x, y)
    pictures = Material("toy", part, part, part, ("a", "b", "c"))
    scale = Scale(SmallModel(8, 2, 2, 8), batch=4, steps=3, patch=4)
    from intarsia_lab.routing.observe import observed

    for name in ("hash", "transport", "residual"):
        variant = VARIANTS[name]
        model = with_mixtures(dense(variant, pictures, scale, 0), variant, 0)
        result = observed(model, pictures, 4)
        assert json.dumps(result) and len(result["layers"]) == 2
        assert sum(map(sum, result["layers"][0]["table"])) == 24 * 5
