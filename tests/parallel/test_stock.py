"""Experts of stock models on four gloo processes: one process's numbers, the plan's bytes."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from intarsia.core import Routing
from intarsia.core.errors import ConfigError, TargetError
from intarsia.mixtures.experts_function import StockExperts, stock_experts
from intarsia.mixtures.fused_experts import FusedExperts
from intarsia.parallel import Processes
from intarsia.parallel.expert_parallel import register_exchange
from intarsia.parallel.layout import cut, having, joined, packed, size_of, units_of, unpacked
from intarsia.parallel.places import pairs_of, places
from intarsia.placement import ExpertSize
from intarsia.processes.units import put_part

from ..refusals import refused


@pytest.mark.thorough
def test_four_processes_are_one_for_stock_models(group: Processes) -> None:
    """Mixtral, OLMoE, Qwen2-MoE, gpt-oss; every strategy; processes without rows or tokens."""
    from stock_jobs import all_kinds  # pyright: ignore[reportMissingImports]

    group.run(all_kinds)


@pytest.mark.thorough
def test_slices_of_stock_experts_are_one_process(group: Processes) -> None:
    """Logits, gradients and bytes agree with more processes than experts, at every Tutel degree."""
    from stock_jobs import in_slices  # pyright: ignore[reportMissingImports]

    group.run(in_slices)


def test_transformers_takes_our_exchange_by_name(group: Processes) -> None:
    from stock_jobs import in_transformers  # pyright: ignore[reportMissingImports]

    group.run(in_transformers)


def test_transformers_opens_what_each_process_wrote(group: Processes, tmp_path: Path) -> None:
    from stock_jobs import written_by_all  # pyright: ignore[reportMissingImports]

    group.run(written_by_all, tmp_path)


def stock(kind: str) -> tuple[StockExperts, FusedExperts, Any]:
    from stock_jobs import built  # pyright: ignore[reportMissingImports]

    model = built(kind)
    experts = next(iter(stock_experts(model).values()))
    return experts, FusedExperts(experts), model


@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss"])
@pytest.mark.usefixtures("group")  # has the folder of `stock_jobs`
def test_fused_experts_are_those_of_the_model(kind: str) -> None:
    """The model's own function agrees with all, some, and sent experts."""
    experts, fused, _ = stock(kind)
    assert size_of(fused) == ExpertSize(8, 6, 8, True, kind == "gpt-oss")
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(7, 8, generator=draws, dtype=torch.float64)
    index = torch.rand(7, 8, generator=draws).topk(2).indices
    weight = torch.rand(7, 2, generator=draws, dtype=torch.float64)
    want = experts.module(x, index, weight)
    routing = Routing.from_topk(index, weight, 8)
    assert_close(fused.mix(x, routing), want, rtol=0, atol=1e-12)
    dense = (fused.every(x) * routing.dense()[:, :, None]).sum(1)
    assert_close(dense, want, rtol=0, atol=1e-12)
    held_units = torch.tensor([1, 4, 6])
    place = torch.zeros(8, dtype=torch.int64).scatter(0, held_units, torch.arange(3))
    selected = (routing.expert[:, None] == held_units).any(1)
    some = Routing(
        routing.token[selected], place[routing.expert[selected]], routing.weight[selected], 7, 3
    )
    masked = torch.where((index[:, :, None] == held_units).any(2), weight, 0)
    shrunk = copy.deepcopy(fused)
    shrunk.keep(held_units)
    sent = having(fused, unpacked(packed(fused)[held_units], fused), 3)
    for fused_part in (shrunk, cut(fused, held_units), sent):
        assert_close(fused_part.mix(x, some), experts.module(x, index, masked), rtol=0, atol=1e-12)
    assert all(a is b for a, b in zip(fused.parameters(), experts.module.parameters(), strict=True))
    nothing = shrunk.mix(
        x[:0], Routing(*(t[:0] for t in (some.token, some.expert, weight[0])), 0, 3)
    )
    nothing.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in shrunk.parameters())


@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss"])
@pytest.mark.usefixtures("group")
def test_slices_of_fused_experts_add_up_to_the_whole(kind: str) -> None:
    """Gates beside or before their values, transposed or not, with biases or without."""
    _, fused, _ = stock(kind)
    x = torch.randn(7, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expert, units = torch.arange(7), torch.arange(8)
    want = fused(x, expert)
    for count in (2, 3, 6):
        parts = [cut(fused, units, part, count) for part in range(count)]
        assert_close(sum(piece(x, expert) for piece in parts), want, rtol=0, atol=1e-12)
        assert [size_of(piece).hidden for piece in parts] == [6 // count] * count
        again = joined([unpacked(packed(piece), piece) for piece in parts], fused)
        rebuilt: torch.Tensor | None = None
        for name, weight in fused.named_parameters():
            assert torch.equal(again[name], weight)
            rebuilt = None
            for part, piece in enumerate(parts):
                lot = 8, units, part, count
                rebuilt = put_part(units_of(fused, name), rebuilt, getattr(piece, name).data, *lot)
            assert rebuilt is not None and torch.equal(rebuilt, weight)


@pytest.mark.usefixtures("group")
def test_what_stock_models_cannot_do_is_refused() -> None:
    experts, fused, model = stock("mixtral")
    with refused(ConfigError, what="slices of experts", got="6 hidden units for 4 parts"):
        cut(fused, torch.arange(8), 0, 4)
    fused.adds = False
    with refused(
        ConfigError,
        what="slices of experts",
        got="experts of a stock model with a norm of their outputs",
    ):
        cut(fused, torch.arange(8), 0, 2)
    fused.adds, fused.names = True, (*fused.names, "scale")
    with refused(
        ConfigError,
        what="slices of experts",
        got="'scale' among the weights of a stock model's experts",
    ):
        cut(fused, torch.arange(8), 0, 2)
    with refused(ConfigError, what="parallel", got="a model without mixtures"):
        places(nn.Linear(2, 2))
    assert [place.path for place in places(model)] == list(stock_experts(model))
    experts.module.register_parameter("scale", nn.Parameter(torch.ones(3)))
    with refused(
        TargetError,
        what="experts at 'model.layers.0.mlp.experts'",
        got="'scale' among their weights",
    ):
        places(model)
    del experts.module.down_proj
    with refused(ConfigError, what="parallel", got="MixtralExperts without a 3-D down_proj"):
        places(model)
    nobody = pairs_of(torch.tensor([[2, 8], [8, 0]]), torch.ones(2, 2), 8)
    assert nobody.token.tolist() == [0, 1] and nobody.expert.tolist() == [2, 0]


def test_an_older_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.distributed.expert_parallel", None)
    monkeypatch.delattr("transformers.distributed.expert_parallel", raising=False)
    with refused(ConfigError, what="expert parallelism"):
        register_exchange()
