"""Draws by counter, and the code that spends about KL bits on a sample."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from intarsia.areas.codec import philox as draws
from intarsia.areas.codec.relative_entropy import (
    candidate,
    candidates,
    choose,
    choose_naive,
    gumbels,
    pack,
    packed_bytes,
    unpack,
)
from intarsia.core.errors import CheckpointError, ConfigError

from ...refusals import refused

KEY = 0x0123456789ABCDEF


def philox_naive(counter: list[int], key: int) -> list[int]:
    """Compute one block in Python's integers."""
    c, (k0, k1) = list(counter), (key & draws.WORD, key >> 32)
    for _ in range(draws.ROUNDS):
        p0, p1 = draws.MULTIPLIERS[0] * c[0], draws.MULTIPLIERS[1] * c[2]
        c = [p1 >> 32 ^ c[1] ^ k0, p1 & draws.WORD, p0 >> 32 ^ c[3] ^ k1, p0 & draws.WORD]
        k0, k1 = (k0 + draws.WEYL[0]) & draws.WORD, (k1 + draws.WEYL[1]) & draws.WORD
    return c


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, 0xFFFFFFFFFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_words(counter: list[int], key: int, words: str) -> None:
    expected = [int(word, 16) for word in words.split()]
    assert draws.philox(np.array(counter, np.uint64), key).tolist() == expected
    assert philox_naive(counter, key) == expected


def test_philox_is_its_naive_twin() -> None:
    counters = np.random.default_rng(0).integers(0, 1 << 32, (7, 3, 4), dtype=np.uint64)
    computed = draws.philox(counters, KEY)
    for place in np.ndindex(7, 3):
        assert computed[place].tolist() == philox_naive(counters[place].tolist(), KEY)


def test_the_table_is_far_from_every_border_of_rounding() -> None:
    count, normal = 1 << draws.QUANTILE_BITS, NormalDist()
    exact = np.array([normal.inv_cdf((2 * i + 1) / (2 * count)) for i in range(count // 2)])
    border = np.abs(np.abs(exact * draws.UNIT - np.floor(exact * draws.UNIT)) - 0.5).min()
    assert border > 1e-7  # libraries differ by 1e-10
    table = draws.quantiles()
    assert (table == -table[::-1]).all() and (np.diff(table) > 0).all()


def test_a_machine_with_another_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    draws.quantiles.cache_clear()
    monkeypatch.setattr(draws, "UNIT", (1 << 16) + 1)
    with refused(CheckpointError, what="table of normal quantiles", got="1b2a5db2"):
        draws.quantiles()
    monkeypatch.undo()
    draws.quantiles()


def test_normal_deviates_have_the_moments_of_a_normal() -> None:
    deviates = candidates(KEY, 3, 9, 12) / draws.UNIT
    assert deviates.shape == (4096, 9)
    assert np.abs(deviates.mean(0)).max() < 4 / 64 and np.abs(deviates.var(0) - 1).max() < 0.12
    assert np.abs(np.corrcoef(deviates.T) - np.eye(9)).max() < 4 / 64
    second_group = candidates(KEY, 4, 9, 12) / draws.UNIT
    assert abs((deviates * second_group).mean()) < 4 / math.sqrt(deviates.size)


@pytest.mark.parametrize("width", [1, 7, 8, 33])
def test_one_candidate_is_drawn_without_the_others(width: int) -> None:
    all_candidates = candidates(KEY, 5, width, 6)
    for index in (0, 1, 63):
        assert (candidate(KEY, 5, width, index) == all_candidates[index]).all()


def _tries(p: Any, q: Any, tries: int) -> tuple[Any, Any]:
    """Symbols and indices of a discrete target q, coded over candidates of p."""
    symbols, indices = [], []
    ratio = np.log(q / p)
    for group in range(tries):
        uniform = draws.words(KEY, np.arange(256), 1, group, domain=2)[:, 0] / 2.0**32
        drawn = np.searchsorted(np.cumsum(p), uniform).clip(max=len(p) - 1)
        order = gumbels(KEY, 256, group)
        index = choose(ratio[drawn], order)
        if group < 200:
            assert index == choose_naive(ratio[drawn], order)
        symbols.append(drawn[index])
        indices.append(index)
    return np.array(symbols), np.array(indices)


def test_a_coded_sample_follows_the_target_and_costs_about_its_divergence() -> None:
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.05, 0.15, 0.2, 0.6])
    symbols, indices = _tries(p, q, 3000)
    frequencies = np.bincount(symbols, minlength=4) / 3000
    assert np.abs(frequencies - q).max() < 4 * math.sqrt(0.25 / 3000)
    divergence = float((q * np.log2(q / p)).sum())
    # Li and El Gamal (2018): E[log2 n] <= KL + log2(e) / e + 1, n counted from 1
    assert np.log2(indices + 1).mean() <= divergence + math.log2(math.e) / math.e + 1


def test_the_prior_itself_costs_nothing() -> None:
    assert [choose(np.zeros(64), gumbels(KEY, 64, group)) for group in range(20)] == [0] * 20


def test_a_normal_target_is_followed_in_mean_and_spread() -> None:
    mean, deviation = 1.1, 0.4  # 1.1 bits from the prior
    samples = []
    for group in range(800):
        z = candidates(KEY, group, 1, 8)[:, 0] / draws.UNIT
        ratio = -0.5 * ((z - mean) / deviation) ** 2 + 0.5 * z**2
        samples.append(z[choose(ratio, gumbels(KEY, 256, group))])
    assert abs(np.mean(samples) - mean) < 4 * deviation / math.sqrt(800)
    assert abs(np.std(samples) - deviation) < 0.05


@pytest.mark.parametrize("bits", [1, 5, 16, 17, 24])
def test_indices_come_back_from_their_bits(bits: int) -> None:
    indices = np.random.default_rng(bits).integers(0, 1 << bits, 13)
    payload = pack(indices, bits)
    assert len(payload) == packed_bytes(13, bits)
    assert (unpack(payload, bits, 13) == indices).all()
    assert pack(indices[:0], bits) == b"" and len(unpack(b"", bits, 0)) == 0


def test_sixteen_bits_are_little_endian_words() -> None:
    assert pack(np.array([1, 0x1234]), 16) == bytes([1, 0, 0x34, 0x12])


@pytest.mark.parametrize("bits", [0, 25])
def test_a_size_of_index_that_no_code_has_is_refused(bits: int) -> None:
    with refused(ConfigError, what="bits", want="1 ... 24"):
        pack(np.array([0]), bits)
