"""Swaps shrink each row's expected error, keep its number of weights, and are the best ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from intarsia.core import NofM
from intarsia.partitions import keep_n_of_m, keep_rows
from intarsia.partitions.swaps import swap
from intarsia.scores import Statistics, wanda

from ..toys import doubles as drawn


def seen(width: int, seed: int = 0) -> Statistics:
    return Statistics.of(drawn(50, width, seed=seed) * 0.7 + drawn(width, seed=seed + 1))


def eps(w: Tensor, mask: Tensor, stats: Statistics) -> Tensor:
    return (w * stats.mean).masked_fill(mask, 0).sum(1)


@given(st.integers(1, 6), st.integers(2, 20), st.floats(0.1, 0.9), st.integers(0, 50))
def test_errors_shrink_and_rows_keep_their_number(
    rows: int, columns: int, density: float, seed: int
) -> None:
    w, stats = drawn(rows, columns, seed=seed), seen(columns, seed)
    score = wanda(w, stats)
    mask = keep_rows({"w": score}, density).mask("w", 0)
    last = eps(w, mask, stats).abs()
    for cycles in range(4):
        swapped = swap(w, mask, stats, score, cycles=cycles, tolerance=0)
        now = eps(w, swapped.kept, stats)
        assert torch.equal(swapped.kept.sum(1), mask.sum(1))
        assert bool((now.abs() <= last + 1e-12).all())  # never rises
        assert bool((now * eps(w, mask, stats) >= -1e-12).all())  # nor changes its sign
        # the running sum is the one from scratch
        assert swapped.after == pytest.approx(float(now.abs().sum()), abs=1e-9)
        if not cycles:
            assert torch.equal(swapped.kept, mask)
        last = now.abs()


@given(st.integers(0, 200), st.sampled_from([0.5, 1.0, 2.0]))
def test_one_swap_of_one_row_is_the_paper_s(seed: int, power: float) -> None:
    w, stats = drawn(1, 8, seed=seed), seen(8, seed)
    score = wanda(w, stats)
    mask = keep_rows({"w": score}, 0.5).mask("w", 0)
    swapped = swap(w, mask, stats, score, cycles=1, tolerance=0, power=power).kept
    gain = (w * stats.mean)[0]
    error = float(eps(w, mask, stats))
    sign = 1 if error > 0 else -1
    pruned = [j for j in range(8) if not mask[0, j]]
    grows = max(pruned, key=lambda j: sign * float(gain[j] / stats.variance[j] ** power))
    goes = [j for j in range(8) if bool(mask[0, j]) and sign * float(gain[j]) < 0]
    want = mask.clone()
    if goes:
        old = min(goes, key=lambda j: float(score[0, j]))
        after = error + float(gain[old]) - float(gain[grows])
        if abs(after) < abs(error) and after * error >= 0:
            want[0, grows], want[0, old] = True, False
    assert torch.equal(swapped, want)


def test_rows_no_further_off_than_the_mean_are_left_alone() -> None:
    """The mean of |eps|: that of eps itself is 0 for a row and its negative."""
    row, stats = drawn(1, 20), seen(20)
    w = torch.cat([row, -row])
    score = wanda(w, stats)
    mask = keep_rows({"w": score}, 0.5).mask("w", 0)
    at_mean, below = (swap(w, mask, stats, score, tolerance=t).kept for t in (1, 0))
    assert torch.equal(at_mean, mask) and not torch.equal(below, mask)


def test_two_of_four_stays_two_of_four() -> None:
    w, stats = drawn(6, 128), seen(128)
    score = wanda(w, stats)
    mask = keep_n_of_m({"w": score}).mask("w", 0)
    swapped = swap(w, mask, stats, score, pattern=NofM(2, 4))
    assert bool((swapped.kept.view(6, 32, 4).sum(-1) == 2).all())
    assert swapped.after < swapped.before


def test_a_constant_channel_is_counted_and_not_divided_by() -> None:
    x = drawn(50, 6)
    x[:, 2] = 3.0
    stats = Statistics.of(x)
    w = drawn(4, 6)
    swapped = swap(w, keep_rows({"w": w.abs()}, 0.5).mask("w", 0), stats, wanda(w, stats))
    assert swapped.constant == 1 and swapped.after <= swapped.before


def test_cycles_below_one_are_a_share_of_the_width_and_no_weight_moves_twice() -> None:
    w, stats = drawn(5, 20, seed=3), seen(20, 3)
    score = wanda(w, stats)
    mask = keep_rows({"w": score}, 0.5).mask("w", 0)
    masks = [
        swap(w, mask, stats, score, cycles=cycles, tolerance=0, guard=False).kept
        for cycles in (0.1, 2, 6)
    ]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])
    assert (masks[2] != mask).sum(1).tolist() == [12] * 5  # without the guard every swap is new
