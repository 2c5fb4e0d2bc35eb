"""Read-ME's pre-gate turns queries and keys by their position."""

from __future__ import annotations

import math

import torch

from intarsia.routers.pregate import (
    PreGate,
    _rotated,  # pyright: ignore[reportPrivateUsage]
)


def test_a_pair_is_turned_by_its_position_counter_clockwise() -> None:
    """Both units of a plane, since a reflection differs in the second alone."""
    x = torch.eye(2)[None, :, None].expand(1, 2, 4, 2)  # (1, two vectors, positions, n)
    turned = torch.tensor([[math.cos(t), math.sin(t)] for t in range(4)])
    upright = torch.tensor([[-math.sin(t), math.cos(t)] for t in range(4)])
    torch.testing.assert_close(_rotated(x)[0], torch.stack([turned, upright]))


def test_the_planes_turn_at_rates_that_fall_from_1_and_an_odd_entry_stays() -> None:
    x = torch.zeros(1, 1, 3, 5)
    x[..., 1], x[..., 4] = 1.0, 7.0  # the second of two planes, and the last of five entries
    angle = 2 / 100  # 10,000^(-1/2) a position
    want = torch.tensor([0.0, math.cos(angle), 0.0, math.sin(angle), 7.0])
    torch.testing.assert_close(_rotated(x)[0, 0, 2], want)


def test_its_words_are_the_first_numbers_of_the_model_s_embedding() -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(9, 12, generator=generator)
    gate = PreGate(vocabulary=9, width=8, heads=2)
    words = gate.net(embedding=embedding, generator=generator).words
    assert torch.equal(words, embedding[:, :8]) and words.data_ptr() != embedding.data_ptr()
