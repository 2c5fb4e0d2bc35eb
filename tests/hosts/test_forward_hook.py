"""What routers are told before a forward, however the arguments are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from intarsia import Hash, Mixture
from intarsia.hosts.forward_hook import before_forward
from intarsia.mixtures import StackedExperts
from intarsia.routers.hash import HashRouter


class Host(nn.Module):
    """Reads ids (B, T) and takes its mask among the rest."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        experts = StackedExperts(4, 6, 5, generator=draw)
        self.mixture = Mixture(experts, Hash(experts=4).build(6, generator=draw))

    def forward(self, input_ids: Tensor, positions: Tensor, **kwargs: Any) -> None: ...


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_mask_among_the_rest_is_seen_beside_positional_arguments(count: int) -> None:
    model, ids = Host(), torch.arange(6).view(2, 3)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    named = {"input_ids": ids, "positions": ids}
    given = {name: t for i, (name, t) in enumerate(named.items()) if i >= count}
    args = tuple(named.values())[:count]
    before_forward(model, args, {**given, "attention_mask": mask, "kwargs": 1})
    router = model.mixture.router
    assert isinstance(router, HashRouter)
    assert router.valid is not None and router.valid.view(2, 3).tolist() == mask.bool().tolist()
    assert router.read is not None and torch.equal(router.read, ids)
