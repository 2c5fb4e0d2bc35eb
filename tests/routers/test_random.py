"""Random routing: uniform subsets, held draws, stacked passes, shards of a joined batch."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from intarsia.core.errors import ConfigError, ShapeError
from intarsia.gating import passes, redraw
from intarsia.routers import RandomRouter, random_routers

from ..refusals import refused


def router(experts: int = 4, active: int = 1, per: str = "sample", seed: int = 0) -> RandomRouter:
    return RandomRouter(experts, active, per, generator=torch.Generator().manual_seed(seed))


def rows(count: int) -> Tensor:
    return torch.empty(count, 3)


@given(st.integers(1, 6), st.integers(0, 7), st.sampled_from(["batch", "sample"]), st.data())
def test_every_row_has_k_different_experts(
    experts: int, count: int, per: str, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, experts))
    routing = router(experts, k, per)(rows(count))
    gates = routing.dense()
    assert gates.shape == (count, experts)
    assert set(gates.unique().tolist()) <= {0.0, 1.0}
    assert (gates.sum(1) == k).all()
    if per == "batch":
        assert (gates == gates[:1]).all()


@pytest.mark.parametrize(("experts", "active"), [(4, 1), (4, 2), (5, 3), (3, 3)])
def test_every_subset_is_as_likely_as_any_other(experts: int, active: int) -> None:
    count = 20_000
    gates = router(experts, active)(rows(count)).dense().bool()
    subsets = list(combinations(range(experts), active))
    drawn = torch.stack(
        [(gates == torch.eye(experts)[list(s)].sum(0).bool()).all(1).sum() for s in subsets]
    )
    expected = count / len(subsets)
    chi_square = float(((drawn - expected) ** 2 / expected).sum())
    assert int(drawn.sum()) == count
    assert chi_square < 30  # far beyond the 0.999 quantile (27.9) of its nine degrees of freedom


def test_rows_and_calls_are_drawn_apart() -> None:
    r = router()
    first, second = r(rows(64)).dense(), r(rows(64)).dense()
    assert not torch.equal(first, second)
    assert len(first.unique(dim=0)) == 4
    per_batch = router(per="batch")
    assert len(torch.cat([per_batch(rows(2)).dense() for _ in range(40)]).unique(dim=0)) == 4


def test_a_seed_decides_the_draws() -> None:
    a, b, c = router(seed=5), router(seed=5), router(seed=6)
    x = rows(32)
    assert torch.equal(a(x).dense(), b(x).dense())
    assert not torch.equal(a(x).dense(), c(x).dense())


def test_a_copy_draws_the_same_but_apart() -> None:
    a = router()
    b = copy.deepcopy(a)
    first = [a(rows(16)).dense() for _ in range(3)]
    assert all(torch.equal(x, b(rows(16)).dense()) for x in first)


def test_a_held_draw_stays_until_it_is_redrawn() -> None:
    r = router()
    r.context.hold = True
    first = r(rows(32)).dense()
    assert torch.equal(r(rows(32)).dense(), first)
    r.context.redraw()
    assert not torch.equal(r(rows(32)).dense(), first)
    r.context.hold = False
    assert not torch.equal(r(rows(32)).dense(), r(rows(32)).dense())


def test_a_held_draw_of_another_batch_is_refused() -> None:
    r = router()
    r.context.hold = True
    r(rows(8))
    with refused(ShapeError, what="held draw"):
        r(rows(16))
    r.context.redraw()
    assert r(rows(16)).tokens == 16


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_stacked_passes_are_the_draws_of_passes_one_by_one(per: str) -> None:
    stacked, single = router(per=per), router(per=per)
    stacked.context.passes = 3
    expected = torch.cat([single(rows(5)).dense() for _ in range(3)])
    assert torch.equal(stacked(rows(15)).dense(), expected)


def test_passes_must_divide_the_rows() -> None:
    r = router()
    r.context.passes = 2
    with refused(ShapeError, what="passes"):
        r(rows(5))


def test_passes_are_set_inside_and_put_back() -> None:
    model = nn.ModuleDict({"a": router(), "b": nn.Sequential(router())})
    assert list(random_routers(model)) == ["a", "b.0"]
    with pytest.raises(RuntimeError, match="stop"), passes(model, 2):  # noqa: PT012
        assert [r.context.passes for r in random_routers(model).values()] == [2, 2]
        raise RuntimeError("stop")
    assert [r.context.passes for r in random_routers(model).values()] == [1, 1]


def test_redraw_reaches_every_router() -> None:
    model = nn.Sequential(router(), router(seed=1))
    for r in random_routers(model).values():
        r.context.hold = True
    before = [r(rows(32)).dense() for r in random_routers(model).values()]
    redraw(model)
    after = [r(rows(32)).dense() for r in random_routers(model).values()]
    assert not any(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("copies", [1, 2])
def test_the_shards_of_a_batch_are_the_joined_batch(per: str, copies: int) -> None:
    world, local = 3, 4
    single = router(per=per)
    single.context.passes = copies
    ranks = [router(per=per) for _ in range(world)]
    for rank, r in enumerate(ranks):
        r.context.shard, r.context.passes = (rank, world), copies
    for _ in range(3):  # step after step
        joined = single(rows(world * local * copies)).dense().chunk(copies)
        parts = [r(rows(local * copies)).dense().chunk(copies) for r in ranks]
        for copy_number in range(copies):
            assert torch.equal(torch.cat([p[copy_number] for p in parts]), joined[copy_number])


def test_the_gates_are_of_the_inputs_type() -> None:
    assert router()(torch.empty(2, 3, dtype=torch.float64)).weight.dtype == torch.float64


def test_a_schedule_may_change_k_unless_the_merge_depends_on_it() -> None:
    r = router(active=1)
    r.active = 3
    assert (r(rows(9)).dense().sum(1) == 3).all()
    r.fixed = True
    r.active = 3
    with refused(ConfigError, what="active", got=2):
        r.active = 2
    assert r.active == 3


@pytest.mark.parametrize("active", [0, 5, -1])
def test_k_is_between_one_and_all(active: int) -> None:
    with refused(ConfigError, what="active", want="1 ... 4"):
        router(4, active)
    with refused(ConfigError, what="active", want="1 ... 4"):
        router(4, 1).active = active


def test_bad_settings_are_refused() -> None:
    with refused(ConfigError, what="experts", got=0):
        router(0)
    with refused(ConfigError, what="draw", got="'token'"):
        router(per="token")


def test_evaluation_weighs_all_experts_by_the_share_that_is_drawn() -> None:
    routing = router(4, 3).eval()(rows(2))
    assert torch.equal(routing.dense(), torch.full((2, 4), 0.75))
