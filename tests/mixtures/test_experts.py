"""Sorted rows by stacked matrices are the dense einsum, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.mixtures import ExpertList, Experts, StackedExperts

from ..refusals import refused

SIZES = {"odd": (5, 7, 3), "whole": (8, 16, 8)}  # the second suits torch's grouped product
LOADS = [
    (3, 0, 4, 1), (0, 0, 0, 0), (0, 6, 0, 0), (1, 0, 0, 0), (0, 0, 0, 9), (20, 3, 0, 9),
]  # fmt: skip


def chosen(load: tuple[int, ...]) -> Tensor:
    return torch.arange(len(load)).repeat_interleave(torch.tensor(load))


def same(experts: Experts, rows: Tensor, expert: Tensor) -> None:
    """`forward` against every expert on every row, and the gradients of all parameters."""
    rows = rows.requires_grad_()
    picked = experts.every(rows)[torch.arange(len(rows)), expert]
    scale = torch.randn(picked.shape, dtype=rows.dtype)
    leaves = (rows, *experts.parameters())
    results = [
        (y, *torch.autograd.grad((y * scale).sum(), leaves, allow_unused=True))
        for y in (experts(rows, expert), picked)
    ]
    for ours, theirs in zip(*results, strict=True):
        # the slow twin has no graph to a parameter only where it has no rows at all
        assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("gated", "bias", "act"), [(True, False, "silu"), (False, True, "gelu")])
def test_stacked_is_the_einsum(
    load: tuple[int, ...], size: str, dtype: torch.dtype, gated: bool, bias: bool, act: str,
    generator: torch.Generator,
) -> None:  # fmt: skip
    d, h, out = SIZES[size]
    experts = StackedExperts(4, d, h, out, act=act, gated=gated, bias=bias, generator=generator)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(generator=generator)
    same(experts.to(dtype), torch.randn(sum(load), d, dtype=dtype), chosen(load))


@pytest.mark.parametrize("load", LOADS)
def test_a_list_of_any_modules_takes_the_same_call(load: tuple[int, ...]) -> None:
    kinds = [
        nn.Linear(5, 3), nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3)),
        nn.Linear(5, 3, bias=False), nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3)),
    ]  # fmt: skip
    same(ExpertList(kinds).double(), torch.randn(sum(load), 5, dtype=torch.float64), chosen(load))


def test_each_expert_is_drawn_for_itself(generator: torch.Generator) -> None:
    experts = StackedExperts(3, 8, 8, gated=True, generator=generator)
    for weight in (experts.up, experts.down, experts.gate):
        assert weight is not None
        assert weight.flatten(1).unique(dim=0).shape[0] == 3 and weight.abs().max() <= 8**-0.5


def test_diversify_sets_a_part_to_zero_in_each_expert(generator: torch.Generator) -> None:
    experts = StackedExperts(3, 64, 64, generator=generator)
    before = experts.up.clone()
    experts.diversify(0, generator)
    assert_close(experts.up, before, rtol=0, atol=0)
    experts.diversify(0.25, generator)
    gone = experts.up == 0
    assert ((gone.double().mean((1, 2)) - 0.25).abs() < 0.03).all()
    assert (gone[0] != gone[1]).any() and bool((experts.up == before)[~gone].all())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"experts": 0}, "experts"),
        ({"hidden": 0}, "hidden"),
        ({"act": "swish"}, "act"),
    ],
)
def test_bad_settings_are_refused(
    settings: dict[str, object], field: str, generator: torch.Generator
) -> None:
    good = {"experts": 2, "width": 4, "hidden": 4, "act": "relu"}
    with refused(ConfigError, what=field):
        StackedExperts(**(good | settings), generator=generator)  # pyright: ignore


def test_no_expert_and_a_fraction_of_all_are_refused(generator: torch.Generator) -> None:
    with refused(ConfigError, what="experts", got="none"):
        ExpertList([])
    with refused(ConfigError, what="fraction", got=1):
        StackedExperts(2, 4, 4, generator=generator).diversify(1, generator)
