"""One pass gives what all rows together give, in whatever batches and order they come."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.core.errors import ConfigError, ShapeError
from intarsia.scores import Statistics, observing

from ..refusals import refused

sizes = st.lists(st.integers(0, 6), min_size=1, max_size=5)  # rows of each batch; empty ones, too


def rows_of(load: list[int], seed: int, width: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [1 + torch.randn(n, width, generator=generator) for n in load]


def assert_same(a: Statistics, b: Statistics) -> None:
    assert a.count == b.count
    assert a.collected == b.collected
    for x, y in (
        (a.total, b.total),
        (a.squares, b.squares),
        (a.hessian, b.hessian),
        (a.deviations, b.deviations),
    ):
        assert x is None or y is None or torch.allclose(x, y, rtol=1e-5, atol=1e-5)


@given(sizes, st.integers(0, 99), st.randoms())
def test_batches_add_up_to_the_whole_in_any_order(
    load: list[int], seed: int, order: object
) -> None:
    batches = rows_of(load, seed)
    parts = [Statistics.of(rows, hessian=True) for rows in batches]
    full = torch.cat(batches).double()
    shuffled = sorted(parts, key=lambda _: order.random())  # type: ignore[attr-defined]
    assert_same(reduce(add, shuffled), Statistics.of(full, hessian=True))
    nobody = Statistics.none(3, hessian=True)
    assert_same(reduce(add, parts, nobody), reduce(lambda a, b: b + a, reversed(parts), nobody))
    total = reduce(add, parts)
    if len(full):  # the naive computation
        assert_close(total.mean, full.mean(0))
        naive = {"rtol": 1e-5, "atol": 1e-5}  # of float32 products
        assert_close(total.mean_square, (full**2).mean(0), **naive)
        assert_close(total.variance, full.var(0, correction=0), **naive)
        products = torch.stack([torch.outer(x, x) for x in full])
        assert_close(total.hessian, products.sum(0), **naive)
        assert_close(total.second_moment, products.mean(0), **naive)
    else:
        assert_close(total.mean, torch.zeros(3, dtype=torch.float64))


def test_sums_do_not_lose_small_numbers_behind_large_ones() -> None:
    rows = torch.tensor([[2.0**25], [1.0]])
    total = Statistics.of(rows[:1]) + Statistics.of(rows[1:])
    assert float(total.total) == 2.0**25 + 1  # float32 has no such number


def test_a_variance_survives_a_large_mean_and_any_split() -> None:
    x = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0)) + 3e4
    want = x.double().var(0, correction=0)
    for cut in (1, 1500, 2999):
        joined = Statistics.of(x[:cut]) + Statistics.of(x[cut:])
        assert_close(joined.variance, want, rtol=1e-4, atol=0)


def test_what_nobody_needs_is_not_there() -> None:
    rows = rows_of([9], 0)[0]
    square = Statistics.of(rows, needs={"square"})
    assert square.collected == {"square"} and square.total is None and square.hessian is None
    with refused(ConfigError, what="statistics", got="no 'mean'"):
        _ = square.variance
    with refused(ConfigError, what="statistics", got="no 'hessian'"):
        _ = Statistics.of(rows).second_moment
    assert Statistics.none(3, needs={"hessian"}).collected == {"hessian"}


def test_layers_of_one_input_share_its_statistics() -> None:
    layers = {name: nn.Linear(3, 2) for name in "qk"}
    x = torch.randn(1, 5, 3)
    with observing(layers) as observed, torch.no_grad():
        for layer in layers.values():
            layer(x)
        assert observed.found["q"] is observed.found["k"]
        x.add_(1)  # the same tensor, other numbers
        layers["q"](x)
        assert_same(observed.found["q"], Statistics.of(torch.cat([x[0] - 1, x[0]])))


def test_a_model_is_watched_layer_by_layer_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    layers = {"first": model[0], "second": model[2]}
    batches = rows_of([5, 2], 0)
    with observing(layers, outputs=["second"], hessian=True) as observed, torch.no_grad():
        for rows in batches:
            model(rows[None])
    assert_same(observed.found["first"], Statistics.of(torch.cat(batches), hessian=True))
    assert_same(observed.found["second"], Statistics.of(model(torch.cat(batches)), hessian=True))
    count = observed.found["first"].count
    model(batches[0])
    assert observed.found["first"].count == count  # the hooks are gone
    with pytest.raises(ZeroDivisionError), observing(layers):
        raise ZeroDivisionError
    assert not any(m._forward_hooks for m in model.modules())


def test_padding_is_left_out() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True, False, False, False]])
    x[~mask] = torch.nan
    with observing({"": layer}) as observed:
        observed.mask = mask
        layer(x)
        observed.mask = None
        layer(x[:, :1])
    assert_same(observed.found[""], Statistics.of(torch.cat([x[mask], x[:, 0]])))


def test_channels_of_a_convolution_are_its_second_axis() -> None:
    layer, x = nn.Conv2d(3, 2, 1), torch.randn(2, 3, 4, 5)
    with observing({"": layer}) as observed:
        layer(x)
    assert_same(observed.found[""], Statistics.of(x.movedim(1, -1).reshape(-1, 3)))


def test_what_does_not_belong_together_is_refused() -> None:
    with refused(ShapeError, what="statistics to join"):
        _ = Statistics.none(3) + Statistics.none(2)
    with refused(ShapeError, what="statistics to join"):
        _ = Statistics.none(3, hessian=True) + Statistics.none(3)
