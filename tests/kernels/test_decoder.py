"""The steps of a decoder in C against their twin in torch: odd sizes, windows, several texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ConfigError, ShapeError
from intarsia.formats import Bitmask, BlockInt, Dense, GroupSparse, Ternary
from intarsia.kernels import dense, native
from intarsia.kernels.decoder import (
    AddStep,
    AttendStep,
    ClampStep,
    ClipStep,
    DecoderStep,
    EmbedStep,
    GateStep,
    LayerCache,
    NaiveDecoder,
    NativeDecoder,
    NormStep,
    ProductStep,
    RotateStep,
    SquashStep,
    Value,
)

from ..toys import drawn
from .counts import on_threads

pytestmark = pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
LENGTH, SLOTS = 41, 3
ROWS = [3, 1, 4, 1, 5], [0, 2, 1, 1, 1], [0, 38, 7, 8, 9]  # the last three are of one text


def product(dst: Value, src: Value, seed: int, bias: bool = False) -> ProductStep:
    weight = drawn(dst.width, src.width, seed=seed) / src.width**0.5
    bound = dense.bound(weight, native.MANY)
    assert bound is not None
    bias_ = drawn(dst.width, seed=seed) if bias else None
    return ProductStep(dst, src, bound, lambda x: x @ weight.T, bias_)


def program(
    size: int, heads: int, groups: int, dtype: torch.dtype = torch.float32, window: int = 0
) -> tuple[list[DecoderStep], LayerCache]:
    """Return a program with each kind of step once, on heads of `size` numbers."""
    width, turned = 37, size // 4 * 2
    shape = SLOTS, groups, LENGTH, size
    cache = LayerCache(*(drawn(*shape, seed=s).to(dtype) for s in (8, 9)))
    cos, sin = drawn(LENGTH, turned, seed=1), drawn(LENGTH, turned, seed=2)
    x, h = Value("x", width), Value("h", width)
    qkv = Value("qkv", (heads + 2 * groups) * size)
    q = Value("qkv", heads * size)
    k = Value("qkv", groups * size, heads * size)
    v = Value("qkv", groups * size, (heads + groups) * size)
    out, both = Value("out", heads * size), Value("both", 70)
    up = Value("hidden", 35)
    steps: list[DecoderStep] = [
        EmbedStep(x, drawn(6, width).to(dtype), 1.7),
        NormStep(h, x, drawn(width), 1e-5, width),
        product(qkv, h, 3, bias=True),
        ClipStep(qkv, 1.5),
        NormStep(q, q, drawn(size, seed=5), 1e-6, size),
        RotateStep(q, heads, cos, sin),
        RotateStep(k, groups, cos, sin),
        AttendStep(out, q, k, v, cache, heads, 0.3, window),
        product(h, out, 4),
        AddStep(x, x, h),
        NormStep(h, x, None, 1e-5, width, centred=True),
        product(both, h, 6),
        *(
            GateStep(up, Value("both", 35), Value("both", 35, 35), act)
            for act in ("silu", "gelu", "gelu_pytorch_tanh", "relu")
        ),
        GateStep(up, Value("both", 35, 35), Value("both", 35), "silu"),
        ClampStep(up, Value("both", 70), 1.702, 0.6),
        product(Value("logits", 11), up, 7),
        SquashStep(Value("logits", 11), 0.4),
    ]
    return steps, cache


@pytest.mark.parametrize(
    "sizes", [(2, 1, 1), (10, 3, 1), (12, 4, 2), (64, 9, 3), (80, 2, 2), (130, 2, 1)], ids=str
)
@pytest.mark.parametrize("window", [0, 4])
def test_it_gives_what_its_twin_gives(sizes: tuple[int, int, int], window: int, build: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        results: list[Tensor] = []
        for kind in (NaiveDecoder, NativeDecoder):
            steps, cache = program(*sizes, dtype, window)
            rows = [torch.tensor(numbers) for numbers in ROWS]
            for last in range(12, len(steps) + 1):  # each kind of gate, too
                some = NaiveDecoder(steps[:last]) if kind is NaiveDecoder else None
                native_steps = None if some else NativeDecoder(steps[:last], 8)
                results.append(some(*rows) if some else native_steps(*ROWS))  # pyright: ignore
            results += [cache.keys.float(), cache.values.float()]
        half = len(results) // 2
        for got, want in zip(results[half:], results[:half], strict=True):
            close = 1e-5 if dtype is torch.float32 else 2e-2  # of bfloat16 a rounding of the cache
            assert_close(got, want, atol=close, rtol=close)


@pytest.mark.parametrize("limit", [0.1, 1.0, 50.0])
def test_scores_and_values_have_a_limit_as_in_the_twin(limit: float, build: str) -> None:
    steps, _ = program(12, 4, 2)
    attend = next(i for i, step in enumerate(steps) if isinstance(step, AttendStep))
    results: list[Tensor] = []
    for kind in (NaiveDecoder, NativeDecoder):
        some, cache = program(12, 4, 2)
        step: Any = some[attend]
        some = [*some[:attend], replace(step, cache=cache, scale=3.0, limit=limit)]
        some.append(SquashStep(step.dst, limit))
        rows = [torch.tensor(numbers) for numbers in ROWS]
        results.append(NaiveDecoder(some)(*rows) if kind is NaiveDecoder else kind(some, 8)(*ROWS))
    assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    assert float(results[1].abs().max()) <= 1.001 * limit


@pytest.mark.parametrize("idle", [-30.0, 0.0, 5.0, 90.0])
@pytest.mark.parametrize("window", [0, 4])
def test_heads_attend_to_nothing_as_in_the_twin(idle: float, window: int, build: str) -> None:
    attend = next(i for i, s in enumerate(program(12, 4, 2)[0]) if isinstance(s, AttendStep))
    results: list[Tensor] = []
    for kind in (NaiveDecoder, NativeDecoder):
        steps, _ = program(12, 4, 2, window=window)
        step: Any = steps[attend]
        steps = [*steps[:attend], replace(step, idle=idle + drawn(4, seed=3))]
        rows = [torch.tensor(numbers) for numbers in ROWS]
        naive = kind is NaiveDecoder
        results.append(NaiveDecoder(steps)(*rows) if naive else NativeDecoder(steps, 8)(*ROWS))
    assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    assert (float(results[1].abs().max()) < 1e-20) == (idle == 90)


@pytest.mark.parametrize(("sink", "window"), [(0, 1), (0, 5), (3, 1), (3, 6), (12, 4), (0, 0)])
def test_a_ring_gives_what_a_whole_cache_gives(sink: int, window: int, build: str) -> None:
    rows, length = 3, 29
    size, heads, groups = 10, 4, 2
    q, k, v = Value("x", heads * size), Value("x", 20, 40), Value("x", 20, 60)
    embed = EmbedStep(Value("x", 80), drawn(6, 80))
    room = sink + window + rows - 1 if window else length
    results: list[list[Tensor]] = []
    for kind, places in ((NativeDecoder, room), (NaiveDecoder, room), (NaiveDecoder, length)):
        cache = LayerCache(*(torch.zeros(2, groups, places, size) for _ in range(2)), sink)
        step = AttendStep(Value("y", 40), q, k, v, cache, heads, 0.3, window)
        program = NativeDecoder([embed, step], rows) if kind is NativeDecoder else None
        naive = NaiveDecoder([embed, step])
        outputs: list[Tensor] = []
        for first in range(0, length - 2, rows):  # blocks of one text, in the second slot
            numbers = [
                [(first + i) % 6 for i in range(rows)],
                [1] * rows,
                [*range(first, first + rows)],
            ]
            tensors = [torch.tensor(n) for n in numbers]
            outputs.append(program(*numbers) if program else naive(*tensors))
        results.append(outputs)
        assert step.most_places(rows) == (2**62 if window else length)
    keys, values = (torch.zeros(2, groups, room, size) for _ in range(2))
    tight = AttendStep(q, q, k, v, LayerCache(keys, values, sink), heads, 1.0, window)
    assert tight.most_places(rows + 1) == room  # one more row would overwrite what the first sees
    for got, twin, full in zip(*results, strict=True):
        assert_close(got, twin, atol=1e-5, rtol=1e-5)
        assert_close(twin, full, atol=1e-5, rtol=1e-5)


RUNS = [(8, 1, 1), (16, 6, 2), (64, 9, 3), (80, 14, 2), (10, 3, 1)]


@pytest.mark.parametrize("sizes", RUNS, ids=str)
@pytest.mark.parametrize(("sink", "window"), [(0, 0), (0, 70), (3, 70), (9, 5)])
def test_a_run_of_a_prompt_gives_what_the_twin_gives(
    sizes: tuple[int, int, int], sink: int, window: int, build: str
) -> None:
    size, heads, groups = sizes
    rows, length, width = 40, 200, groups * size
    q, k = Value("x", heads * size), Value("x", width, heads * size)
    v = Value("x", width, heads * size + width)
    embed = EmbedStep(Value("x", heads * size + 2 * width), drawn(6, heads * size + 2 * width))
    room = sink + window + rows + 1 if window else length
    for dtype in (torch.float32, torch.bfloat16):
        results: list[list[Tensor]] = []
        for kind in (NativeDecoder, NaiveDecoder):
            cache = LayerCache(*(torch.zeros(2, groups, room, size).to(dtype) for _ in "kv"), sink)
            y, idle = Value("y", heads * size), drawn(heads, seed=3) + 2
            step = AttendStep(y, q, k, v, cache, heads, 0.3, window, 4.0, idle)
            program = NativeDecoder([embed, step], rows + 2) if kind is NativeDecoder else None
            naive, outputs = NaiveDecoder([embed, step]), list[Tensor]()
            for first in range(0, length - rows, rows):  # with a row of another text on both sides
                numbers = [
                    [(7 * i + first) % 6 for i in range(rows + 2)],
                    [0, *[1] * rows, 0],
                    [first, *range(first, first + rows), first + 1],
                ]
                tensors = [torch.tensor(n) for n in numbers]
                outputs.append(program(*numbers) if program else naive(*tensors))
            results.append(outputs)
        for got, want in zip(*results, strict=True):
            assert_close(got, want, atol=2e-5, rtol=2e-5)


def test_a_run_gives_the_same_bits_by_any_number_of_threads(build: str) -> None:
    results: list[Tensor] = []
    for _ in on_threads(1, 2, 5):
        steps, _ = program(16, 8, 4)
        attend = [step for step in steps if isinstance(step, EmbedStep | AttendStep)]
        rows = [i % 5 for i in range(LENGTH)], [1] * LENGTH, [*range(LENGTH)]
        results.append(NativeDecoder([*steps[: steps.index(attend[-1]) + 1]], LENGTH)(*rows))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_a_number_that_is_none_stays_one(build: str) -> None:
    x, rows, size = Value("x", 48), 20, 16
    table = drawn(6, 48)
    table[5, 16:] = torch.nan
    cache = LayerCache(*(torch.zeros(1, 1, rows, size) for _ in "kv"))
    step = AttendStep(
        Value("y", 16), Value("x", 16), Value("x", 16, 16), Value("x", 16, 32), cache, 1, 0.3
    )
    tokens = [5 if i == 12 else i % 5 for i in range(rows)]
    got = NativeDecoder([EmbedStep(x, table), step], rows)(tokens, [0] * rows, [*range(rows)])
    assert got[12:].isnan().all()


def test_any_number_of_threads_and_rows_gives_the_same_bits(build: str) -> None:
    results: list[Tensor] = []
    for _ in on_threads(1, 2, 5):
        steps, _ = program(64, 8, 4)
        results.append(NativeDecoder(steps, 8)(*ROWS))
    steps, _ = program(64, 8, 4)
    decoder = NativeDecoder(steps, 1)
    rows = [decoder([t], [s], [p]) for t, s, p in zip(*ROWS, strict=True)]
    assert all(torch.equal(y, results[0]) for y in [*results, torch.cat(rows)])


def test_the_last_steps_are_for_the_last_row_alone_where_it_is_told() -> None:
    steps, _ = program(12, 4, 2)
    for tail in (1, 2, 3):
        got = NativeDecoder(steps, 8)(*ROWS, tail=tail)
        assert torch.equal(got, NativeDecoder(steps, 8)(*ROWS)[-1:])


def test_rows_that_are_no_rows_and_steps_that_do_not_fit_are_refused() -> None:
    steps, cache = program(12, 4, 2)
    decoder = NativeDecoder(steps, 2)
    for rows, name in (
        (([0] * 3, [0] * 3, [0, 1, 2]), "rows"),
        (([], [], []), "rows"),
        (([6], [0], [0]), "token"),
        (([-1], [0], [0]), "token"),
        (([0], [SLOTS], [0]), "slot"),
        (([0], [0], [LENGTH]), "place"),
    ):
        with pytest.raises(ConfigError) as refused:
            decoder(*rows)
        assert name in str(refused.value)
    attend = next(s for s in steps if isinstance(s, AttendStep))
    for bad in (
        replace(attend, heads=3),
        replace(attend, cache=cache._replace(sink=LENGTH + 1)),
        replace(attend, window=-1),
        replace(attend, cache=LayerCache(cache.keys, cache.values.bfloat16())),
        NormStep(Value("x", 37), Value("x", 37), drawn(5), 1e-5, 37),
        NormStep(Value("x", 37), Value("x", 37), None, 1e-5, 7),
        AddStep(Value("x", 37), Value("x", 37), Value("h", 36)),
        RotateStep(Value("x", 37), 4, drawn(9, 2), drawn(9, 2)),
        replace(product(Value("h", 37), Value("x", 37), 1), dst=Value("h", 36)),
        EmbedStep(Value("x", 36), drawn(6, 37)),
    ):
        with pytest.raises(ShapeError):
            NativeDecoder([*steps, bad], 2)


def test_a_damaged_weight_is_refused_when_it_is_read() -> None:
    weight = drawn(11, 37)
    stored = Bitmask().encode(weight)
    bound = Bitmask().bound(stored, weight.shape)
    x = Value("x", 37)
    steps = [
        EmbedStep(x, drawn(6, 37)),
        ProductStep(Value("y", 11), x, bound, lambda x: x @ weight.T),
    ]
    decoder = NativeDecoder(steps, 2)
    assert_close(
        decoder([1], [0], [0]), NaiveDecoder(steps)(*(torch.tensor([n]) for n in (1, 0, 0)))
    )
    stored["row_offsets"][3] += 1
    with pytest.raises(ShapeError):
        decoder([1], [0], [0])


def test_any_format_may_be_a_product() -> None:
    weight, x = drawn(20, 37), Value("x", 37)
    form = BlockInt(8)
    stored = form.encode(weight)
    steps: list[DecoderStep] = [
        EmbedStep(x, drawn(6, 37)),
        ProductStep(
            Value("y", 20),
            x,
            form.bound(stored, weight.shape),
            lambda x: form.matmul(x, stored, weight.shape),
        ),
    ]
    rows = [torch.tensor(numbers) for numbers in ROWS]
    assert torch.equal(NativeDecoder(steps, 8)(*ROWS), NaiveDecoder(steps)(*rows))


@pytest.mark.parametrize(
    "form",
    [
        *(BlockInt(4), BlockInt(8), Dense(), Ternary()),
        *(Bitmask("fp32"), Bitmask("bf16"), Bitmask("int8")),
        *(GroupSparse(), GroupSparse(activations="int8")),
        *(GroupSparse(rows=4), GroupSparse(activations="int8", rows=8)),
    ],
    ids=str,
)
def test_a_row_has_the_same_bits_in_any_company(form: Any, build: str) -> None:
    weight, x = drawn(23, 70), drawn(16, 70, seed=1)
    weight[drawn(23, 70, seed=2) < 0] = 0
    bound = form.bound(form.encode(weight), weight.shape)
    alone = torch.cat([bound(row[None]) for row in x])
    for count in (2, 3, 5, 8, 13, 16):
        assert torch.equal(bound(x[:count]), alone[:count])
