"""Batches of the experiment on Hecate stand for larger ones."""

from __future__ import annotations

import torch

from intarsia.parallel import Fssdp
from intarsia.placement import Trace
from intarsia_lab.experiments import hecate


def test_a_repeated_batch_has_as_many_rows_on_every_device() -> None:
    draws = torch.Generator().manual_seed(0)
    row = torch.arange(4 * 8)
    expert = torch.rand(32, 2, 16, generator=draws).topk(2).indices
    batch = Trace(expert, 16, 40 + row // 4, row % 4)
    repeated = hecate.repeated(batch, 3)
    assert len(repeated) == 96 and torch.equal(repeated.load(), 3 * batch.load())


def test_at_the_paper_s_sizes_choosing_again_pays() -> None:
    load = torch.ones(8, 16)
    load[:, 0] = 1000
    strategy = Fssdp(2, 8, calibrate=True)
    places = strategy.holds(
        [], hecate.TIMES * load, torch.arange(16) // 2, hecate.SIZE, hecate.LINKS
    )
    assert int(places.sum(0)[0]) > 1
