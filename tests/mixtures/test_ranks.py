"""Two ranks with a shard of the batch each step the same experts as one process with all of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.testing import assert_close

from intarsia.adapters import Bottleneck
from intarsia.core import Site
from intarsia.methods import Mosa
from intarsia.mixtures.split_optimizer import split_adamw
from intarsia.routers import random_routers

WORLD, LOCAL, STEPS, EXPERTS = 2, 1, 6, 8
Average = Callable[[Tensor], None]


def train(rank: int, world: int, update: str, average: Average | None = None) -> dict[str, Tensor]:
    """Train on rank's rows of every batch, with gradients that are averaged over the ranks."""
    generator = torch.Generator().manual_seed(0)
    config = Mosa(Bottleneck(4, activation="gelu", norm="layer"), EXPERTS, split="both")
    cell = config.build(Site("b", 6, 6), generator=generator).double()
    for router in random_routers(cell).values():
        router.context.shard = (rank, world)
    optimizer = split_adamw(cell, 1e-2, 0.1, update=update)
    for _ in range(STEPS):
        x = torch.randn(WORLD * LOCAL, 3, 6, generator=generator, dtype=torch.float64)
        x = x.chunk(world)[rank]
        optimizer.zero_grad()
        (cell(x) - x).square().mean().backward()
        for parameter in cell.parameters():
            if average is not None and parameter.grad is not None:
                average(parameter.grad)
        optimizer.step()
    steps = optimizer.state[cell.body.up.weight]["step"]
    # not each expert at each step, or the test would say nothing
    assert 0 < int(steps.sum()) < STEPS * EXPERTS
    return cell.state_dict() | {"step": steps}


class Exchange:
    """`all_reduce` between threads."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(WORLD), list[Tensor]()

    def all_reduce(self, tensor: Tensor, op: object = dist.ReduceOp.SUM) -> None:
        self.given.append(tensor.clone())
        self.barrier.wait()
        stacked = torch.stack(self.given)
        tensor.copy_(stacked.amax(0) if op == dist.ReduceOp.MAX else stacked.sum(0))
        if self.barrier.wait() == 0:
            self.given.clear()
        self.barrier.wait()

    def average(self, tensor: Tensor) -> None:
        self.all_reduce(tensor)
        tensor /= WORLD


@pytest.mark.parametrize("update", ["dense", "lazy"])
def test_ranks_agree_on_who_was_drawn(update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Exchange()
    monkeypatch.setattr(dist, "all_reduce", exchange.all_reduce)
    alone = train(0, 1, update)
    with ThreadPoolExecutor(WORLD) as pool:
        ranks = list(
            pool.map(lambda rank: train(rank, WORLD, update, exchange.average), range(WORLD))
        )
    for state in ranks:
        assert_close(state, alone)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/s", rank=rank, world_size=WORLD)

    def average(tensor: Tensor) -> None:
        dist.all_reduce(tensor)
        tensor /= WORLD

    try:
        assert_close(train(rank, WORLD, "lazy", average), train(0, 1, "lazy"))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_processes_agree_on_who_was_drawn(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(str(tmp_path),), nprocs=WORLD)  # pyright: ignore
