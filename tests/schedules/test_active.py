"""k over a run: equal shares, ends where it should, and never where a merge forbids it."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from intarsia.adapters import Bottleneck
from intarsia.core import Site
from intarsia.core.errors import ConfigError
from intarsia.methods import Mosa, MosaCell
from intarsia.routers import random_routers
from intarsia.schedules import ActiveSchedule, active_at, set_active

from ..refusals import refused

Ks = st.integers(1, 8)


def ks(total: int, first: int, last: int, shape: str) -> list[int]:
    return [active_at(s, total, first=first, last=last, shape=shape) for s in range(total)]


@given(Ks, Ks, st.integers(1, 60))
def test_a_linear_schedule_gives_every_k_an_equal_share(first: int, last: int, total: int) -> None:
    values = ks(total, first, last, "linear")
    assert values[0] == first
    assert set(values) <= set(range(min(first, last), max(first, last) + 1))
    direction = 1 if first <= last else -1
    assert all(direction * (b - a) >= 0 for a, b in pairwise(values))
    span = abs(last - first) + 1
    if total >= span:
        assert values[-1] == last
        counts = [values.count(k) for k in set(values)]
        assert len(counts) == span
        assert max(counts) - min(counts) <= 1


@given(Ks, Ks, st.integers(1, 60))
def test_a_step_schedule_changes_half_way(first: int, last: int, total: int) -> None:
    half = (total + 1) // 2
    assert ks(total, first, last, "step") == [first] * half + [last] * (total - half)


@given(Ks, st.integers(1, 60))
def test_a_constant_schedule_is_constant(k: int, total: int) -> None:
    assert ks(total, k, k, "constant") == [k] * total


def model_of(**settings: object) -> nn.ModuleList:
    generator = torch.Generator().manual_seed(0)
    config = Mosa(Bottleneck(4, activation="gelu", norm="none"), split="both", **settings)  # pyright: ignore
    return nn.ModuleList(config.build(Site("b", 6, 6), generator=generator) for _ in range(2))


def test_set_active_reaches_every_draw() -> None:
    model = model_of(active=4)
    set_active(model, 2)
    assert {r.active for r in random_routers(model).values()} == {2}
    for cell in model:
        cell(torch.randn(3, 6))
        assert cast(MosaCell, cell).body.up.active == 2


def test_a_schedule_is_called_by_the_loop() -> None:
    model, schedule = model_of(active=4), ActiveSchedule(first=4, last=1)
    calls = []
    for step in range(8):
        schedule(model, step, 8)
        calls.append(next(iter(random_routers(model).values())).active)
    assert calls == [4, 4, 3, 3, 2, 2, 1, 1]


def test_the_merge_does_not_depend_on_a_schedule() -> None:
    model = model_of(active=4)
    x = torch.randn(3, 6)
    nn.init.normal_(cast(MosaCell, model[0]).body.up.weight)
    before = model[0].eval()(x)
    set_active(model, 1)
    model[0].train()(x)
    torch.testing.assert_close(model[0].eval()(x), before)


def test_a_merge_that_depends_on_k_forbids_the_change_and_nothing_is_changed() -> None:
    model = model_of(active=2)
    fixed = model_of(active=1, scaling="paper")
    both = nn.ModuleList([*model, *fixed])
    with refused(ConfigError, what="active", got=3):
        set_active(both, 3)
    set_active(fixed, 1)
    with refused(ConfigError, what="active", got=5):
        set_active(model, 5)
    assert {r.active for r in random_routers(model).values()} == {2}
    assert {r.active for r in random_routers(fixed).values()} == {1}


def test_a_model_without_routers_is_refused() -> None:
    with refused(ConfigError, what="active", got="a model without a random router"):
        set_active(nn.Linear(2, 2), 1)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"first": 1, "last": 2, "shape": "cosine"}, "shape"),
        ({"first": 0, "last": 2}, "first"),
        ({"first": 2, "last": 0}, "last"),
        ({"first": 1, "last": 2, "shape": "constant"}, "shape='constant'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], field: str) -> None:
    with refused(ConfigError, what=field):
        ActiveSchedule(**settings)  # pyright: ignore


@pytest.mark.parametrize("step", [-1, 5])
def test_steps_are_those_of_the_run(step: int) -> None:
    with refused(ConfigError, what="step"):
        active_at(step, 5, first=1, last=2)
