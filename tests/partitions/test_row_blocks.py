"""Blocks of consecutive rows: which are kept, and in which order of rows they are worth most."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from intarsia.partitions.row_blocks import (
    block_scores,
    keep_row_blocks,
    kept_in_blocks,
    row_order,
)

from ..toys import doubles


def worth(weight: Tensor, order: tuple[int, ...], rows: int, density: float) -> float:
    """Return the sum of the weights in the blocks of the largest means, gone through one by one."""
    blocks = []
    for first in range(0, len(order), rows):
        members = list(order[first : first + rows])
        for column in range(weight.shape[1]):
            numbers = weight[members, column]
            blocks.append((float(numbers.mean()), float(numbers.sum())))
    blocks.sort(reverse=True)
    return sum(total for _, total in blocks[: round(density * len(blocks))])


def test_a_score_is_the_mean_of_its_block_also_of_the_last_one() -> None:
    score = torch.tensor([[1.0, 4.0], [3.0, 0.0], [5.0, 7.0]])
    assert block_scores(score, 2).tolist() == [[2, 2], [5, 7]]


def test_the_blocks_of_the_largest_means_are_kept() -> None:
    score = torch.tensor([[1.0, 4.0], [3.0, 2.0], [5.0, 0.0]])
    mask = keep_row_blocks({"w": score}, {"w": 0.5}, 2).mask("w", 0)
    assert mask.tolist() == [[False, True], [False, True], [True, False]]


@pytest.mark.parametrize("count", [4, 5])
@pytest.mark.parametrize("density", [0.25, 0.5])
def test_an_order_is_worth_the_sum_of_its_blocks_and_the_best_is_found(
    count: int, density: float
) -> None:
    weights = [doubles(count, columns, seed=columns).abs() for columns in (3, 6)]
    orders = list(itertools.permutations(range(count)))
    sums = [sum(worth(w, order, 2, density) for w in weights) for order in orders]
    for order, total in zip(orders[::7], sums[::7], strict=True):
        ours = kept_in_blocks(weights, torch.tensor(order), 2, density)
        assert ours == pytest.approx(total)
    best = kept_in_blocks(weights, row_order(weights, 2, density), 2, density)
    assert sums[0] - 1e-9 <= best <= max(sums) + 1e-9
