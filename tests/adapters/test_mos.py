"""MoS: shards of shared pools; LoRA and subset selection are special cases."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.adapters import Lora, Mos, MosCell
from intarsia.adapters.mos import Pool, Shards
from intarsia.core import Site
from intarsia.core.errors import ConfigError, ShapeError

from ..refusals import refused

INPUTS, OUTPUTS, LAYERS = 24, 36, 5


def sites(name: str = "fc", inputs: int = INPUTS, outputs: int = OUTPUTS) -> list[Site]:
    return [Site(f"blocks.{i}.{name}", inputs, outputs) for i in range(LAYERS)]


def make(config: Mos, places: list[Site], seed: int = 0) -> tuple[Shards, list[MosCell]]:
    """The cells of a model, with pools handed to them by hand, all of it moved from its start."""
    generator = torch.Generator().manual_seed(seed)
    shared = config.shared_state(places, generator=generator)
    cells = [config.build(site, generator=generator, shared=shared).double() for site in places]
    for parameter in shared.double().parameters():
        nn.init.normal_(parameter, generator=generator)
    return shared, cells


def pool_of(shared: Shards) -> Pool:
    (pool,) = shared.pools.values()
    assert isinstance(pool, Pool)
    return pool


def vectors_naive(pool: Tensor, rows: Tensor, rank: int) -> Tensor:
    """Vector by vector, shard by shard."""
    per = len(rows) // rank
    return torch.stack(
        [torch.cat([pool[rows[m * per + i]] for i in range(per)]) for m in range(rank)]
    )


configs = st.builds(
    lambda e, extra, per, share, apart: Mos(
        e + extra, e, per, min(share, e) if e - min(share, e) or not extra else 0, dissociate=apart
    ),
    st.integers(1, 3), st.integers(0, 4), st.sampled_from([1, 2, 3, 4, 12]), st.integers(0, 2),
    st.booleans(),
)  # fmt: skip


@given(configs, st.integers(0, 999))
def test_the_cell_equals_its_naive_twin(config: Mos, seed: int) -> None:
    shared, cells = make(config, sites(), seed)
    pool, x = pool_of(shared), torch.randn(2, 3, INPUTS, dtype=torch.float64)
    cell = cells[seed % LAYERS]
    a = vectors_naive(pool.a, cell.a, config.rank)
    b = vectors_naive(pool.b, cell.b, config.rank)
    want = (x @ a.T) @ b
    assert_close(cell(x), want)
    assert_close(cell.delta(), b.T @ a)
    assert_close(cell.merged()(x), want)
    weight = torch.randn_like(want)
    got = torch.autograd.grad((cell(x) * weight).sum(), [pool.a, pool.b])
    assert_close(got, torch.autograd.grad((want * weight).sum(), [pool.a, pool.b]))


@given(configs, st.integers(0, 999))
def test_no_shard_is_used_twice_and_private_ones_belong_to_one_layer(
    config: Mos, seed: int
) -> None:
    shared, cells = make(config, sites(), seed)
    pool, shards = pool_of(shared), config.private_rank * config.shards_per_vector
    assert pool.private == shards and pool.common + LAYERS * shards == len(pool.a)
    private: list[int] = []
    for cell in cells:
        for rows in (cell.a, cell.b):
            assert len(rows) == config.rank * config.shards_per_vector == len(set(rows.tolist()))
            shared_rows, mine = rows[: len(rows) - shards], rows[len(rows) - shards :]
            assert not len(shared_rows) or int(shared_rows.max()) < pool.common
            assert mine.tolist() == list(range(mine[0], mine[0] + shards)) if shards else True
        assert torch.equal(cell.a[len(cell.a) - shards :], cell.b[len(cell.b) - shards :])
        private += cell.a[len(cell.a) - shards :].tolist()
        assert config.dissociate or torch.equal(cell.a, cell.b)
    assert private == list(range(pool.common, len(pool.a)))


@given(configs)
def test_it_has_the_parameters_of_lora_of_the_equivalent_rank(config: Mos) -> None:
    places = [*sites(), *sites("up", 12, 60), *sites("fc", 36, 24)]
    shared, _ = make(config, places)
    assert len(shared.pools) == 3  # by name and by shape
    count = sum(p.numel() for p in shared.parameters())
    assert count == config.equivalent_rank * sum(s.inputs + s.outputs for s in places)


def test_with_private_shards_only_it_is_lora() -> None:
    rank = 3
    for per in (1, 2, 4):
        shared, cells = make(Mos(rank, rank, per, rank), sites())
        pool = pool_of(shared)
        for layer, cell in enumerate(cells):
            lora = Lora(rank).build(sites()[layer], generator=torch.Generator()).double()
            rows = slice(layer * rank * per, (layer + 1) * rank * per)
            with torch.no_grad():
                lora.down.weight.copy_(pool.a[rows].view(rank, INPUTS))
                lora.up.weight.copy_(pool.b[rows].view(rank, OUTPUTS).T)
            x = torch.randn(4, INPUTS, dtype=torch.float64)
            assert torch.equal(cell.delta(), lora.delta())
            assert_close(cell(x), lora(x), rtol=0, atol=1e-14)
            cell(x).square().sum().backward()
            lora(x).square().sum().backward()
            assert pool.a.grad is not None and pool.b.grad is not None
            assert_close(pool.a.grad[rows].view(rank, INPUTS), lora.down.weight.grad)
            assert_close(pool.b.grad[rows].view(rank, OUTPUTS).T, lora.up.weight.grad)


def test_whole_common_vectors_are_a_selection_of_pairs() -> None:
    shared, cells = make(Mos(4, 2, 1, 0, dissociate=False), sites())
    pool = pool_of(shared)
    for cell in cells:
        want = sum(torch.outer(pool.b[i], pool.a[i]) for i in cell.a.tolist())
        assert_close(cell.delta(), want)


def test_the_start_adds_nothing_and_uses_the_whole_fan_in() -> None:
    config = Mos(8, 4, 4)
    shared = config.shared_state(sites(), generator=torch.Generator().manual_seed(0))
    pool, bound = pool_of(shared), INPUTS**-0.5  # not that of a shard, twice as wide
    assert not pool.b.any()
    assert 0.95 * bound < pool.a.abs().max() <= bound
    assert abs(float(pool.a.detach().mean())) < 0.1 * bound


def test_layers_share_pools_and_draw_separately() -> None:
    _, cells = make(Mos(4, 2, 2, 1), sites())
    assert len({tuple(c.a.tolist()) for c in cells}) == LAYERS
    assert all(not torch.equal(c.a, c.b) for c in cells)
    assert len({id(c._pool[0]) for c in cells}) == 1
    assert not any(True for c in cells for _ in c.parameters())  # handed to them, not theirs
    again = make(Mos(4, 2, 2, 1), sites())[1]
    assert [c.a.tolist() + c.b.tolist() for c in cells] == [
        c.a.tolist() + c.b.tolist() for c in again
    ]


def test_a_single_cell_has_its_own_pools() -> None:
    cell = Mos(2, 2, 2, 1).build(Site("b.fc", 6, 10), generator=torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in cell.parameters()) == 2 * (6 + 10)
    assert {"a", "b", "shared.pools.fc_6x10.a", "shared.pools.fc_6x10.b"} == set(cell.state_dict())
    twin = copy.deepcopy(cell)
    assert twin._pool[0] is next(iter(twin.shared.pools.values()))  # pyright: ignore
    assert twin._pool[0] is not cell._pool[0]


def test_a_half_precision_input_is_cast_to_the_pools_dtype() -> None:
    config = Mos(2, 2, 2)
    shared = config.shared_state(sites(), generator=torch.Generator())
    cell = config.build(sites()[0], generator=torch.Generator(), shared=shared)
    assert cell(torch.ones(2, INPUTS, dtype=torch.bfloat16)).dtype == torch.float32


def test_alpha_and_dropout_are_those_of_lora() -> None:
    config = Mos(4, 2, 2, alpha=2.0, dropout=0.5)
    _, (cell, *_) = make(config, sites())
    x = torch.randn(3, INPUTS, dtype=torch.float64)
    assert cell.scale == 0.5
    assert not torch.allclose(cell.train()(x), x @ cell.delta().T)
    assert_close(cell.eval()(x), x @ cell.delta().T)
    assert_close(cell.merged().eval()(x), x @ cell.delta().T)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rank": 0}, "rank"),
        ({"equivalent_rank": 0}, "equivalent_rank"),
        ({"shards_per_vector": 0}, "shards_per_vector"),
        ({"private_rank": 3}, "private_rank"),
        ({"private_rank": -1}, "private_rank"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        Mos(**settings)


def test_more_shards_than_the_pool_has_are_refused() -> None:
    Mos(6, 2, 4, 1).shared_state(sites(), generator=torch.Generator())
    with refused(ConfigError, what="rank in the 5 layers 'fc_24x36'", got=7):
        Mos(7, 2, 4, 1).shared_state(sites(), generator=torch.Generator())
    with refused(ConfigError, what="rank in the 1 layers 'fc_24x36'", got=4):
        Mos(4, 2, 2).build(sites()[0], generator=torch.Generator())


def test_an_indivisible_width_is_refused_with_the_common_divisors() -> None:
    places = [*sites("q_proj", 24, 24), *sites("k_proj", 24, 18)]  # grouped keys are narrower
    with refused(ShapeError, what="width of 'blocks.0.k_proj'", got=18):
        Mos(4, 2, 4).shared_state(places, generator=torch.Generator())
