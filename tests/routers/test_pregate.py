"""Read-ME's pre-gate turns queries and keys by their position."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor

from intarsia.core.errors import ShapeError
from intarsia.routers.pregate import (
    PreGate,
    _rotated,  # pyright: ignore[reportPrivateUsage]
)

from ..refusals import refused
from ..toys import seeded


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


@torch.no_grad()
def test_its_logits_are_those_of_attention_and_an_mlp_written_out() -> None:
    net = PreGate(vocabulary=9, width=8, heads=2, experts=3).net(generator=seeded())
    for number, norm in enumerate(net.norms):
        norm.weight.copy_(torch.rand(8, generator=seeded(number)) + 0.5)
    ids = torch.tensor([[1, 8, 3, 3], [0, 2, 2, 7]])

    def normed(number: int, x: Tensor) -> Tensor:
        root = (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()
        return x / root * net.norms[number].weight

    x = net.words[ids]
    q, k, v = (normed(0, x) @ net.qkv.T).split(8, -1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        score = _rotated(q[..., part]) @ _rotated(k[..., part]).mT / 2
        later = torch.ones(4, 4).triu(1).bool()
        heads.append(score.masked_fill(later, -math.inf).softmax(-1) @ v[..., part])
    x = x + torch.cat(heads, -1) @ net.out.T
    up = normed(1, x) @ net.up.T
    x = x + (up * up.sigmoid()) @ net.down.T
    torch.testing.assert_close(net(ids), normed(2, x) @ net.head.T)


def test_its_logits_are_stored_for_the_same_ids_and_parameters_alone() -> None:
    net = PreGate(vocabulary=9, width=8, heads=2).net(generator=seeded())
    ids = torch.tensor([[1, 8, 3]])
    assert net.cached_logits(ids) is not net.cached_logits(ids)  # each has a graph of its own
    with torch.no_grad():
        first = net.cached_logits(ids)
        assert net.cached_logits(ids) is first and not first.requires_grad
        assert pickle.loads(pickle.dumps(net)).cached_logits(ids) is not first
        ids[0, 0] = 2
        assert torch.equal(net.cached_logits(ids), net(ids))
        net.head.mul_(2)
        assert torch.equal(net.cached_logits(ids), net(ids))


@pytest.mark.parametrize("shape", [(8, 8), (9, 7)])
def test_an_embedding_of_another_size_is_refused(shape: tuple[int, int]) -> None:
    with refused(ShapeError, what="embedding of the model", got=shape):
        PreGate(vocabulary=9, width=8).net(embedding=torch.zeros(shape), generator=seeded())
