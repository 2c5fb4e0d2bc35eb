"""DSnoT changes the mask of its base, not the number of its weights, and shrinks its errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import intarsia
from intarsia.core.errors import ConfigError
from intarsia.core.registry import card, settings_from_dict, settings_to_dict
from intarsia.partitions.swaps import swap
from intarsia.scores import Statistics, wanda

from ..refusals import refused

NEEDS = {"mean", "square", "hessian"}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


W = drawn(8, 256)
X = drawn(400, 256, seed=1) + 0.3 * drawn(256, seed=3)
SEEN = Statistics.of(X, needs=NEEDS)


def edited(method: Any, needs: Any = NEEDS) -> tuple[Tensor, Tensor]:
    part, new = method.edit("w", W, Statistics.of(X, needs=needs), torch.Generator())
    return part.mask("w", 0), new


def expected(mask: Tensor) -> float:
    return float((W * SEEN.mean.float()).masked_fill(mask, 0).sum(1).abs().sum())


@pytest.mark.parametrize("base", [intarsia.sparse.Magnitude(0.4), intarsia.Wanda(0.4)])
def test_the_expected_error_falls_by_far(base: Any) -> None:
    before, _ = edited(base)
    after, new = edited(intarsia.sparse.DSnoT(base, tolerance=0.0))
    assert int(before.sum()) == int(after.sum())
    assert expected(after) < expected(before) / 3
    assert torch.equal(new, W * after)  # kept weights are as they were


def test_no_cycle_is_the_base() -> None:
    for base in (intarsia.Wanda(0.5), intarsia.SparseGPT(0.5), intarsia.Wanda(0.5, "2:4")):
        want = edited(base)
        for got, expected_tensor in zip(
            edited(intarsia.sparse.DSnoT(base, cycles=0)), want, strict=True
        ):
            assert torch.equal(got, expected_tensor)


def test_after_compensation_regrown_weights_are_dense() -> None:
    base = intarsia.SparseGPT(0.4)
    first, compensated = edited(base)
    mask, new = edited(intarsia.sparse.DSnoT(base))
    grown = mask & ~first
    assert bool(grown.any())
    assert torch.equal(new[grown], W[grown])
    assert torch.equal(new[mask & first], compensated[mask & first])
    assert not new[~mask].any()
    again, dense = edited(intarsia.sparse.DSnoT(base, restore="dense"))
    assert torch.equal(again, mask) and torch.equal(dense, W * mask)


def test_settings_survive_json_with_their_base() -> None:
    method = intarsia.sparse.DSnoT(intarsia.SparseGPT(0.4, layers=("mlp.*",)), cycles=9)
    loaded = settings_from_dict(card("dsnot"), settings_to_dict(method))
    assert loaded == method and loaded.layers == ("mlp.*",) and loaded.density == 0.4
    assert intarsia.sparse.DSnoT().base == intarsia.Wanda()


def test_it_reads_what_it_needs_and_refuses_what_cannot_be() -> None:
    method = intarsia.sparse.DSnoT(intarsia.Wanda(0.5))
    assert method.needs == {"mean", "square"}
    assert all(
        torch.equal(a, b) for a, b in zip(edited(method), edited(method, method.needs), strict=True)
    )
    with refused(ConfigError, what="statistics", got="no 'mean'"):
        edited(method, {"square"})
    with refused(ConfigError, what="base", got="DSnoT"):
        intarsia.sparse.DSnoT(intarsia.sparse.DSnoT())
    with refused(ConfigError, what="base", got="blocks of 4 rows"):
        intarsia.sparse.DSnoT(intarsia.SparseGPT(0.5, rows=4))
    with refused(ConfigError, what="restore", got="'all'"):
        intarsia.sparse.DSnoT(restore="all")


def test_within_a_pattern_the_base_s_score_prunes_and_elsewhere_wandas() -> None:
    for pattern in (None, "2:4"):
        base = intarsia.sparse.Magnitude(0.5, pattern=pattern)
        method, (mask, _) = intarsia.sparse.DSnoT(base), edited(base)
        scores = {"base": base.score(W, SEEN), "wanda": wanda(W, SEEN)}
        masks = {
            name: swap(
                W, mask, SEEN, score, cycles=method.cycles, tolerance=method.tolerance,
                power=method.power, pattern=method.n_of_m, guard=method.guard,
            ).kept
            for name, score in scores.items()
        }  # fmt: skip
        assert not torch.equal(masks["base"], masks["wanda"])
        want = masks["wanda" if pattern is None else "base"]
        assert torch.equal(method.swapped(W, mask, SEEN).kept, want)
