"""Routers and mixtures of experts as native steps, against their twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ShapeError
from intarsia.formats import Bitmask, BlockInt, Dense, Ternary
from intarsia.kernels import native
from intarsia.kernels.decoder import (
    SHARES,
    DecoderStep,
    EmbedStep,
    ExpertStep,
    GateStep,
    MixStep,
    NaiveDecoder,
    NativeDecoder,
    ProductStep,
    RotateStep,
    RouteStep,
    Value,
)

from .counts import on_threads
from .test_decoder import drawn

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
WIDTH, TOKENS = 37, 16
X, SCORES, GATES = Value("x", WIDTH), Value("scores", 6), Value("gates", 6)
ROWS, MIXED = Value("rows", WIDTH), Value("mixed", WIDTH)


def product(dst: Value, src: Value, form: Any, seed: int) -> ProductStep:
    weight = drawn(dst.width, src.width, seed=seed) / src.width**0.5
    stored = form.encode(weight)
    shape = dst.width, src.width
    bound = form.bound(stored, shape)
    return ProductStep(dst, src, bound, lambda x: x @ form.decode(stored, shape).float().T)


def expert(inner: int, form: Any, seed: int) -> list[ExpertStep]:
    gate, up, hidden = (Value(f"{name} {inner}", inner) for name in ("gate", "up", "hidden"))
    return [
        product(gate, ROWS, form, seed),
        product(up, ROWS, form, seed + 1),
        GateStep(hidden, gate, up, "silu"),
        product(ROWS, hidden, form, seed + 2),
    ]


def program(active: int, share: str, forms: Sequence[Any]) -> list[DecoderStep]:
    """A router, and experts of 19 and 22 hidden units by turns."""
    experts = [expert(19 + 3 * (e % 2), form, 10 * e) for e, form in enumerate(forms)]
    scores = product(SCORES, X, Dense(), 7)
    return [
        EmbedStep(X, drawn(TOKENS, WIDTH)),
        scores,
        RouteStep(GATES, SCORES, active, share),
        MixStep(MIXED, X, GATES, ROWS, experts),
    ]


def both(steps: list[DecoderStep], count: int) -> tuple[Tensor, Tensor]:
    numbers = list(range(count)), [0] * count, list(range(count))
    naive = NaiveDecoder(steps)(*(torch.tensor(n) for n in numbers))
    return NativeDecoder(steps, TOKENS)(*numbers), naive


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("active", [1, 2, 5, 6])
def test_it_gives_what_its_twin_gives(active: int, share: str) -> None:
    steps = program(active, share, [Dense()] * 6)
    for count in (1, 3, 16):
        for last in (3, 4):  # the router's weights, and the mixture
            assert_close(*both(steps[:last], count), atol=1e-5, rtol=1e-5)
    gates, _ = both(steps[:3], 16)
    assert bool(((gates != 0).sum(1) == active).all())
    if share == "softmax_of_chosen":
        assert_close(gates.sum(1), torch.ones(16))


@pytest.mark.usefixtures("build")
def test_experts_may_be_of_any_format() -> None:
    forms = [Ternary(), Dense(), BlockInt(8), Bitmask("fp32"), Ternary(zeros=0.6), BlockInt(4)]
    got, want = both(program(2, "softmax", forms), 16)
    # the integer formats round their inputs, too
    assert float((got - want).abs().mean() / want.abs().mean()) < 0.02
    steps = program(3, "softmax_of_chosen", [Ternary(zeros=0.6)] * 6)
    assert_close(*both(steps, 16), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("build")
def test_a_row_has_the_same_bits_in_any_company_and_on_any_threads() -> None:
    steps = program(2, "softmax_of_chosen", [Ternary(), Dense()] * 3)
    decoder = NativeDecoder(steps, TOKENS)
    alone = torch.cat([decoder([t], [0], [0]) for t in range(TOKENS)])
    for _ in on_threads(1, 2, 5):
        assert torch.equal(decoder(range(TOKENS), [0] * TOKENS, [0] * TOKENS), alone)


class Shelf:
    """A reader of experts that are elsewhere until they are brought."""

    def __init__(self, experts: int, fails: int | None = None) -> None:
        sides = (19, WIDTH), (19, WIDTH), (WIDTH, 19)
        self.experts = [[drawn(*side, seed=9 * e) / 5 for side in sides] for e in range(experts)]
        self.weights, self.log, self.fails = self.experts[0], list[Any](), fails
        self.bounds: list[Any] = [
            native.Bound.of("dense", side, (0,), (torch.zeros(side),), native.MANY)
            for side in sides
        ]

    def program(self) -> list[ExpertStep]:
        gate, up, hidden = (Value(name, 19) for name in ("gate", "up", "hidden"))
        values = (gate, ROWS), (up, ROWS), (ROWS, hidden)
        products = [
            ProductStep(dst, src, self.bounds[i], lambda x, i=i: x @ self.weights[i].T)
            for i, (dst, src) in enumerate(values)
        ]
        return [products[0], products[1], GateStep(hidden, gate, up, "silu"), products[2]]

    def begin(self, experts: list[int]) -> None:
        self.log.append(list(experts))

    def bring(self, expert: int) -> None:
        if expert == self.fails:
            raise OSError("gone")
        self.log.append(expert)
        self.weights = self.experts[expert]
        for bound, weight in zip(self.bounds, self.weights, strict=True):
            bound.point_to(weight)

    def end(self) -> None:
        self.log.append("end")


def shelved(shelf: Shelf, active: int = 2) -> list[DecoderStep]:
    steps = program(active, "softmax", [Dense()] * 6)
    return [*steps[:3], MixStep(MIXED, X, GATES, ROWS, [shelf.program()], shelf)]


def test_a_reader_brings_each_expert_before_its_turn() -> None:
    shelf = Shelf(6)
    steps = shelved(shelf)
    got, want = both(steps, 3)
    assert_close(got, want, atol=1e-5, rtol=1e-5)
    half = len(shelf.log) // 2
    used, *turns, last = shelf.log[half:]
    assert shelf.log[:half] == shelf.log[half:] and used == turns == sorted(turns)
    assert last == "end" and 2 <= len(used) < 6


def test_an_error_of_a_reader_is_raised_and_the_next_call_is_right() -> None:
    shelf = Shelf(6, fails=3)
    decoder = NativeDecoder(shelved(shelf, active=6), TOKENS)
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            decoder([0, 1], [0, 0], [0, 1])
        assert shelf.log == [[0, 1, 2, 3, 4, 5], 0, 1, 2, "end"]
        shelf.log.clear()
    shelf.fails = None
    want = NaiveDecoder(decoder.steps)(*(torch.tensor(n) for n in ([0, 1], [0, 0], [0, 1])))
    assert_close(decoder([0, 1], [0, 0], [0, 1]), want, atol=1e-5, rtol=1e-5)


def test_a_reader_that_cannot_begin_is_not_ended() -> None:
    shelf = Shelf(6)
    decoder = NativeDecoder(shelved(shelf), TOKENS)

    def begin(experts: list[int]) -> None:
        raise OSError(f"no room for {len(experts)}")

    shelf.begin = begin  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no room"):
        decoder([0], [0], [0])
    assert shelf.log == []


def test_a_damaged_expert_is_refused_when_a_token_reaches_it() -> None:
    form, weight = Bitmask("fp32"), drawn(WIDTH, WIDTH)
    stored = form.encode(weight)
    step = ProductStep(ROWS, Value("y", WIDTH), form.bound(stored, weight.shape), lambda x: x)
    copy_rows = product(Value("y", WIDTH), ROWS, Dense(), 1)
    steps: list[DecoderStep] = [
        EmbedStep(X, drawn(TOKENS, WIDTH)),
        RouteStep(Value("one", 1), Value("zero", 1), 1, "softmax"),
        MixStep(MIXED, X, Value("one", 1), ROWS, [[copy_rows, step]]),
    ]
    decoder = NativeDecoder(steps, 2)
    decoder([1], [0], [0])
    stored["row_offsets"][3] += 1
    with pytest.raises(ShapeError):
        decoder([1], [0], [0])


def test_mixtures_that_do_not_fit_are_refused() -> None:
    steps = program(2, "softmax", [Dense()] * 6)
    route, mix = steps[2], steps[3]
    assert isinstance(route, RouteStep) and isinstance(mix, MixStep)
    rotate: Any = RotateStep(ROWS, 1, drawn(4, 2), drawn(4, 2))
    for bad in (
        replace(route, active=7),
        replace(route, active=0),
        replace(route, dst=SCORES),
        replace(mix, dst=X),
        replace(mix, experts=mix.experts[:5]),
        replace(mix, experts=[*mix.experts[:5], mix.experts[5][:2]]),
        replace(mix, experts=[[rotate]] * 6),
        replace(mix, experts=[mix.experts[0][:1]] * 6),
        replace(mix, rows=Value("rows", WIDTH - 1)),
        replace(mix, reader=Shelf(6), experts=mix.experts[:5]),
    ):
        with pytest.raises(ShapeError):
            NativeDecoder([*steps, bad], 2)
