"""Words of ternary digits: the dictionary, the coder, the grid, and what is refused."""

from __future__ import annotations

import heapq
import itertools
import math
from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from intarsia.conformance.cards import CARD_LAWS
from intarsia.conformance.formats import LAWS
from intarsia.conformance.verdict import Law
from intarsia.core import Card, Paper, nbytes
from intarsia.core.errors import ConfigError, DataError, ShapeError
from intarsia.formats import Ternary
from intarsia.formats.ternary import entropy, levels_of, nearest
from intarsia.kernels import native
from intarsia.kernels.ternary import dictionary, digits_of, words_of

from ..refusals import refused

FORM = Ternary()
HASH = "e3c767382ca5fed6"
PAIRS = list(itertools.product(range(3), repeat=2))


@lru_cache
def known() -> dict[tuple[int, ...], int]:
    """Code by word, in order."""
    words = dictionary()
    pairs = zip(words.digits.tolist(), words.lengths.tolist(), strict=True)
    return {tuple(digits[:length]): code for code, (digits, length) in enumerate(pairs)}


@pytest.mark.parametrize("law", [law for law in LAWS if law not in CARD_LAWS])
def test_it_obeys_the_laws_of_formats(law: Law) -> None:
    if law.__name__ != "keeps_shape_and_dtype":  # it decodes to float32
        law(Card("ternary", "format", Ternary, Paper("2310.16795", 2023, "QMoE")))


def test_the_dictionary_is_the_one_that_files_were_written_with() -> None:
    """Its order is pinned: a code means the same word on every machine."""
    assert dictionary().hash.startswith(HASH)
    assert dictionary(0.885) is dictionary(0.885)


def test_words_come_best_first() -> None:
    """The definition: take the most probable word, offer its nine continuations."""
    p = {d: math.log(0.885) if d == 0 else math.log(0.0575) for d in range(3)}
    queue: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    want: list[tuple[int, ...]] = []
    while len(want) < 400:
        cost, word = heapq.heappop(queue)
        want += [word] if word else []
        for pair in PAIRS if len(word) < 28 else ():
            longer = (*word, *pair)
            nonzeros = sum(d > 0 for d in longer)  # the same sum for all of a kind: ties are exact
            heapq.heappush(queue, (-((len(longer) - nonzeros) * p[0] + nonzeros * p[1]), longer))
    assert list(known())[:400] == want


def test_every_beginning_of_a_word_is_a_word() -> None:
    assert len(known()) == 2**16 and {len(w) for w in known()} == set(range(2, 29, 2))
    assert all(word[:-2] in known() for word in known() if len(word) > 2)
    assert set(PAIRS) <= set(known())  # anything can be written


def test_all_short_rows_come_back() -> None:
    for pairs in range(1, 4):  # 9^k rows
        digits = torch.tensor(
            list(itertools.product(range(3), repeat=2 * pairs)), dtype=torch.uint8
        )
        codes, offsets = words_of(digits, dictionary())
        assert torch.equal(digits_of(codes, dictionary()).view_as(digits), digits)
        assert len(offsets) == len(digits) + 1 and int(offsets[-1]) == len(codes)


@given(st.integers(1, 4), st.integers(1, 90), st.floats(0, 1), st.integers(0, 99))
def test_each_code_is_the_longest_word_that_matches(
    rows: int, pairs: int, zeros: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    some = torch.rand(rows, 2 * pairs, generator=draw) >= zeros
    signs = torch.randint(1, 3, some.shape, generator=draw)
    digits = (some * signs).to(torch.uint8)
    codes, offsets = words_of(digits, dictionary())
    assert torch.equal(digits_of(codes, dictionary()).view_as(digits), digits)
    row = digits[0].tolist()
    for code in codes[: offsets[1]].long().tolist():
        longest = max(n for n in range(2, len(row) + 1, 2) if tuple(row[:n]) in known())
        assert code == known()[tuple(row[:longest])]
        row = row[longest:]


def test_the_stream_is_near_the_entropy() -> None:
    draw = torch.Generator().manual_seed(0)
    odds = torch.tensor([0.885, 0.0575, 0.0575])
    digits = torch.multinomial(odds, 256 * 2048, True, generator=draw).view(256, 2048)
    levels = torch.tensor([[-1.0, 1.0]]).repeat(256, 1)
    stored = FORM.stored(digits.to(torch.uint8), levels)
    bits = 16 * len(stored["codes"]) / digits.numel()
    assert entropy(0.885) == pytest.approx(0.630, abs=5e-4)
    assert bits <= 1.2 * entropy(0.885)
    assert nbytes(stored) == 2 * len(stored["codes"]) + 8 * 257 + 4 * 256
    assert 2 * digits.numel() / nbytes(stored) > 20  # times smaller than bfloat16


def test_a_weight_is_the_nearest_of_three_levels_and_zeros_come_first() -> None:
    rows = torch.tensor([[-2.0, -0.9, 0.4, 1.0], [0.0, 0.3, 0.9, 1.0], [0, 0, 0, 0]])
    levels = levels_of(rows)
    assert levels.tolist() == [[-2, 1], [0, 1], [0, 0]]
    assert nearest(rows, levels).tolist() == [[1, 0, 0, 2], [0, 0, 2, 2], [0, 0, 0, 0]]
    half_way = torch.tensor([[-2.0, -1.0, 0.5, 1.0]])
    assert nearest(half_way, levels[:1]).tolist() == [[1, 0, 0, 2]]
    back = FORM.decode(FORM.encode(rows), rows.shape)
    assert back.tolist() == [[-2, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    # a row without negative numbers has no more codes than one with them
    mixed = torch.where(torch.arange(400) % 9 > 0, 0.0, 1.0)[None]
    signed = mixed.clone()
    signed[0, 0] = -1
    assert len(FORM.encode(mixed)["codes"]) <= len(FORM.encode(signed)["codes"]) + 1


@pytest.mark.parametrize("width", [1, 7, 8])
def test_an_odd_width_is_padded(width: int) -> None:
    weight = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    stored = FORM.encode(weight)
    once = FORM.decode(stored, weight.shape)
    assert torch.equal(FORM.decode(FORM.encode(once), weight.shape), once)
    x = torch.randn(2, width)
    assert_close(FORM.matmul(x, stored, weight.shape), x @ once.T)


def test_what_cannot_be_is_refused() -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    stored: Any = FORM.encode(weight)
    longer = torch.cat([stored["codes"], stored["codes"][:1]])
    for part, value in (
        ("codes", longer),
        ("codes", torch.full_like(stored["codes"], known()[(0,) * 28])),
        ("row_offsets", stored["row_offsets"].flip(0)),
        ("levels", stored["levels"][:2]),
    ):
        with refused(ShapeError, what="words"):
            FORM.decode({**stored, part: value}, (3, 8))
    weight[0, 0] = math.nan
    with refused(DataError, what="weight"):
        FORM.encode(weight)
    with refused(ConfigError, what="zeros", got=0.1):
        Ternary(zeros=0.1)


def test_other_odds_are_told_and_offered_a_dictionary() -> None:
    digits = (torch.arange(4 * 400).view(4, 400) % 2).to(torch.uint8)
    levels = torch.tensor([[-1.0, 1.0]]).repeat(4, 1)
    stored = FORM.stored(digits, levels)
    assert "try Ternary(zeros=0.5)" in FORM.describe(stored, digits.shape)
    better = Ternary.of(digits)
    assert better == Ternary(0.5)
    assert nbytes(better.stored(digits, levels)) < nbytes(stored)


@pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
@pytest.mark.parametrize("width", [1, 2, 37, 64])
def test_a_weight_that_stays_is_multiplied_as_any_other(width: int) -> None:
    draw = torch.Generator().manual_seed(width)
    stored = FORM.encode(torch.randn(9, width, generator=draw))
    x = torch.randn(2, 2, width, generator=draw)
    product = FORM.bound(stored, (9, width))
    assert product.takes(x) and torch.equal(product(x), FORM.matmul(x, stored, (9, width)))
    assert not product.takes(x.repeat(97, 1, 1)) and FORM.bound(stored, (9 * width,)) is None
    stored["row_offsets"] = stored["row_offsets"].clone()
    stored["row_offsets"][4] = 0  # a row in front of the one before it
    with pytest.raises(ShapeError):
        FORM.bound(stored, (9, width))(x)
    with native.using("off"):
        assert FORM.bound(stored, (9, width)) is None


@pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
def test_many_rows_are_multiplied_as_they_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    x = torch.randn(400, 50, generator=torch.Generator().manual_seed(1))
    stored = FORM.encode(weight)
    want = FORM.matmul(x, stored, weight.shape)  # so many are decoded first
    monkeypatch.setattr(Ternary, "decode", None)
    for rows in (1, 5, 33, 384):
        got = FORM.matmul(x[:rows], stored, weight.shape)
        torch.testing.assert_close(got, want[:rows], rtol=1e-5, atol=1e-4)
