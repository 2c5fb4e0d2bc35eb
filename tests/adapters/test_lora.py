"""LoRA: linear, initially zero, and its delta equals its addition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from intarsia.adapters import Lora, LoraCell
from intarsia.core import Site
from intarsia.core.errors import ConfigError, TargetError

from ..refusals import refused


def build(config: Lora, inputs: int = 6, outputs: int = 4, seed: int = 0) -> LoraCell:
    generator = torch.Generator().manual_seed(seed)
    return config.build(Site("b.qkv", inputs, outputs), generator=generator).double()


@given(
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 6),
    st.none() | st.floats(0.0, 32.0),
    st.integers(0, 2**31),
)
def test_delta_equals_the_cells_addition(
    rank: int, inputs: int, outputs: int, alpha: float | None, seed: int
) -> None:
    cell = build(Lora(rank, alpha), inputs, outputs, seed)
    torch.nn.init.normal_(cell.up.weight, generator=torch.Generator().manual_seed(seed))
    x = torch.randn(2, 3, inputs, dtype=torch.float64)
    delta = cell.delta()
    assert delta.shape == (outputs, inputs)
    assert_close(cell(x), x @ delta.T)
    factor = 1.0 if alpha is None else alpha / rank
    assert_close(delta, factor * (cell.up.weight @ cell.down.weight))
    assert int(torch.linalg.matrix_rank(delta)) <= rank


def test_a_new_cell_adds_nothing_and_can_learn() -> None:
    cell = build(Lora(2))
    x = torch.randn(2, 6, dtype=torch.float64)
    assert not cell(x).any()
    assert cell.down.weight.any()
    cell(x).sum().backward()
    assert cell.up.weight.grad is not None
    assert cell.up.weight.grad.any()
    assert cell.zero_sides == {"up"}


def test_without_alpha_the_scale_is_one() -> None:
    assert build(Lora(16)).scale == 1
    assert build(Lora(16, alpha=8.0)).scale == 0.5


def test_dropout_is_on_the_input_and_only_while_training() -> None:
    cell = build(Lora(2, dropout=0.5))
    torch.nn.init.ones_(cell.up.weight)
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.manual_seed(0)
    assert not torch.allclose(cell.train()(x), x @ cell.delta().T)
    assert_close(cell.eval()(x), x @ cell.delta().T)


def test_the_generator_decides_the_start_and_nothing_else_moves() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (build(Lora(2), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.down.weight, b.down.weight)
    assert not torch.equal(a.down.weight, c.down.weight)


def test_a_cell_can_be_built_without_memory() -> None:
    with torch.device("meta"):
        cell = Lora(2).build(Site("b", 6, 6), generator=torch.Generator())
    assert all(p.is_meta for p in cell.parameters())


def test_a_half_precision_input_is_cast_to_the_cells_dtype() -> None:
    cell = Lora(2).build(Site("b", 6, 6), generator=torch.Generator())
    assert cell(torch.ones(2, 6, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rank": 0}, "rank"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], field: str) -> None:
    with refused(ConfigError, what=field):
        Lora(**settings)  # pyright: ignore


def test_roles_may_come_as_a_list() -> None:
    assert Lora(roles=["qkv", "projection"]).roles == ("qkv", "projection")  # pyright: ignore
    assert Lora().position == "parallel"


def fused(config: Lora, width: int = 6, seed: int = 0) -> LoraCell:
    site = Site("b.attn.qkv", width, 3 * width)
    cell = config.build(site, generator=torch.Generator().manual_seed(seed)).double()
    torch.nn.init.normal_(cell.up.weight, generator=torch.Generator().manual_seed(seed + 1))
    return cell


@given(st.integers(1, 5), st.integers(1, 6), st.none() | st.floats(0.5, 8.0), st.integers(0, 99))
def test_queries_and_values_of_a_fused_layer_are_two_loras(
    rank: int, width: int, alpha: float | None, seed: int
) -> None:
    cell = fused(Lora(rank, alpha, roles=("qv",)), width, seed)
    x = torch.randn(2, 3, width, dtype=torch.float64)
    parts = []
    for part in range(2):  # the naive twin: a LoRA beside a query layer, another beside a value one
        alone = build(Lora(rank, alpha), width, width)
        with torch.no_grad():
            alone.down.weight.copy_(cell.down.weight[part * rank : (part + 1) * rank])
            alone.up.weight.copy_(cell.up.weight[part * width : (part + 1) * width])
        parts.append(alone)
    query, value = parts
    want = torch.cat([query(x), torch.zeros_like(x), value(x)], -1)
    assert_close(cell(x), want)
    assert_close(cell.delta(), torch.cat([query.delta(), torch.zeros(width, width), value.delta()]))
    assert cell(x[0, 0]).shape == (3 * width,)
    # and the same gradients
    weight = torch.randn(2, 3, 3 * width, dtype=torch.float64)
    (cell(x) * weight).sum().backward()
    (want * weight).sum().backward()
    assert_close(cell.down.weight.grad, torch.cat([p.down.weight.grad for p in parts]))
    assert_close(cell.up.weight.grad, torch.cat([p.up.weight.grad for p in parts]))


def test_queries_and_values_start_as_two_loras_do() -> None:
    cell = Lora(4, roles=("qv",)).build(
        Site("a.qkv", 64, 192), generator=torch.Generator().manual_seed(0)
    )
    assert not cell(torch.ones(1, 64)).any() and cell.zero_sides == {"up"}
    # Kaiming's bound goes by the inputs, so that it is that of each LoRA alone
    assert cell.down.weight.shape == (8, 64) and cell.down.weight.abs().max() <= 64**-0.5


def test_only_a_fused_layer_is_split() -> None:
    assert type(fused(Lora(2, roles=("qv",)))) is not LoraCell
    site = Site("b.attn.q_proj", 6, 6)
    assert type(Lora(2, roles=("qv",)).build(site, generator=torch.Generator())) is LoraCell
    assert type(fused(Lora(2))) is LoraCell  # role "qkv": one change of the whole layer


def test_a_fused_layer_without_three_equal_parts_is_refused() -> None:
    with refused(TargetError, what="role 'qv' in a fused qkv layer"):
        Lora(2, roles=("qv",)).build(Site("a.qkv", 4, 8), generator=torch.Generator())


@pytest.mark.parametrize("config", [Lora(2, 4.0), Lora(2, roles=("qv",))], ids=["whole", "qv"])
def test_row_weights_are_applied_to_the_r_values(config: Lora) -> None:
    cell = fused(config)
    x, weight = torch.randn(5, 6, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    assert_close(cell.weighted(x, weight), cell(x) * weight[:, None])
