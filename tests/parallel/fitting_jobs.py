"""Jobs for processes: trainings whose experts are shared out."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import TensorDataset

from intarsia.mixtures.experts import StackedExperts
from intarsia.mixtures.mixture import Mixture
from intarsia.parallel import Fssdp, Strategy
from intarsia.parallel.attached import attached
from intarsia.parallel.fssdp import FssdpExperts
from intarsia.placement import Topology
from intarsia.processes import Meter, WholeModel
from intarsia.routers.topk import TopK
from intarsia.train import checkpoint
from intarsia.train.folder import write_learned
from intarsia.train.forward import mean_in_order
from intarsia.train.loop import Job
from intarsia.train.objectives import plain
from intarsia.train.resume import put_back
from intarsia.train.run import Run, fit_once
from intarsia.train.settings import settle
from intarsia.train.tasks.choose import chosen

WIDTH, CLASSES = 6, 3


class Net(nn.Module):
    """Two mixtures and a head."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        router = TopK(experts=experts, active=2, balance=0.0)

        def mixture() -> Mixture:
            experts_of_layer = StackedExperts(experts, WIDTH, 4, bias=True, generator=draws)
            return Mixture(experts_of_layer, router.build(WIDTH, generator=draws))

        self.blocks = nn.ModuleList(mixture() for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)
        nn.init.normal_(self.head.weight, generator=draws)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x).mean(1)


def net(experts: int) -> Net:
    return Net(experts).double()


def rows(count: int, seed: int) -> TensorDataset:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, WIDTH, generator=draws, dtype=torch.float64)
    return TensorDataset(x, torch.arange(count) % CLASSES)


def by_words(words: list[str]) -> None:
    """`intarsia` with these words, in each process as torchrun starts it."""
    from intarsia.cli import app

    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": rank}
    os.environ |= environment | {"RANK": rank, "WORLD_SIZE": world}
    app(words, standalone_mode=False)


def links() -> Topology:
    """Return this process's measurements of all links."""
    return Topology.measured()


class MostExperts(TorchDispatchMode):
    """The largest number of experts with a weight in one tensor of this process."""

    most = 0
    shapes = frozenset({(4, WIDTH), (WIDTH, 4)})  # of an expert

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tuple(tensor.shape[1:]) in self.shapes:
                self.most = max(self.most, len(tensor))
        return result


def ended(strategy: Strategy, experts: int, folder: Path, gather: bool) -> tuple[int, int, bool]:
    """A run with a folder: the most experts that a process had from the first step on; how many
    parameters it then has; whether the folder has the bytes of its model, where that is whole."""
    model, counter = net(experts), MostExperts()
    with ExitStack() as stack:

        def begin(_model: nn.Module, step: int, _steps: int) -> None:
            if step == 0:
                stack.enter_context(counter)

        run_of(model, {"parallel": strategy, "out": folder, "gather": gather, "schedule": begin})
    if gather and dist.get_rank() == 0:
        write_learned(model, folder / "whole")
    dist.barrier()
    files = [folder / name / "trained.safetensors" for name in ("adapter", "whole")]
    equal = gather and len({file.read_bytes() for file in files}) == 1
    return counter.most, sum(p.numel() for p in model.parameters()), equal


def order_free() -> None:
    """The mean of gradients has the same bits wherever they stand in a bucket."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for size in (1, 3, 1003):
        rows = torch.randn(world, size, generator=torch.Generator().manual_seed(size))
        order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        want = torch.zeros(size)
        for row in rows:
            want = want + row / world
        for place in (torch.arange(size), order):
            values = rows[rank][place]
            bucket: Any = SimpleNamespace(buffer=values.clone)
            assert torch.equal(mean_in_order(Meter(), bucket).value(), want[place])


class Stop(Exception):
    """Leaves a run in the middle, in every process at once."""


def trained(
    strategy: Strategy | None,
    experts: int,
    folder: Path | None = None,
    until: int = 99,
    owners: list[list[int]] | None = None,
    **settings: Any,
) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and scores of a run, in each process; up to a step, whose checkpoint is there.

    owners: takes those of all experts before each step.
    """
    model = net(experts)

    def stop(model: nn.Module, step: int, _steps: int) -> None:
        if owners is not None:
            parts = [m for m in model.modules() if isinstance(m, FssdpExperts)]
            owners.append(torch.cat([part.owner for part in parts]).tolist())
        if step == until:
            raise Stop

    try:
        run = run_of(model, {"out": folder, "parallel": strategy, "schedule": stop} | settings)
    except Stop:
        return {}, []
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert run.val is not None
    return weights, [*run.val.scores().values()]


def with_owners(
    strategy: Fssdp, experts: int, folder: Path | None = None, resume: bool = False
) -> tuple[dict[str, Tensor], list[float], list[list[int]]]:
    """`trained`, and the owners of all experts before each step."""
    owners: list[list[int]] = []
    return *trained(strategy, experts, folder, owners=owners, resume=resume), owners


def run_of(model: nn.Module, changes: dict[str, Any]) -> Run:
    """Two epochs of three steps; changes: options of `fit`."""
    if dist.is_initialized():
        rank, world = str(dist.get_rank()), str(dist.get_world_size())
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": rank}
        os.environ |= environment | {"RANK": rank, "WORLD_SIZE": world}
    train = rows(36, 1)
    options: Any = {"epochs": 2, "batch_size": 12, "lr": 0.02, "clip": 0.5}
    options |= {"trackers": (), "checkpoint_steps": 1} | changes
    settings = settle(None, options)
    sets = train, rows(10, 2), None
    job = Job(model, sets, chosen(None, train, settings[1], None), plain, *settings)
    return fit_once(job, {}, 1, lambda model, out, _, parts=None: write_learned(model, out, parts))


def slowed(strategy: Strategy | None, seconds: float) -> list[dict[str, Any]]:
    """The log of a run whose process 1 takes longer for each step."""

    def sleep(_model: nn.Module, _step: int, _steps: int) -> None:
        if dist.get_rank() == 1:
            time.sleep(seconds)

    run = run_of(net(4), {"parallel": strategy, "schedule": sleep})
    return [dict(line) for line in run.history]


def resumed(
    strategy: Strategy, experts: int, folder: Path, until: int
) -> tuple[dict[str, Tensor], list[float]]:
    return trained(strategy, experts, folder, until, resume=True)


def round_trip(strategy: Strategy, experts: int, folder: Path) -> None:
    """Write each process's experts; each reads its own again, and one process reads all."""
    model = net(experts)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with attached(model, strategy) as parts:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model(rows(4, dist.get_rank())[:][0]).square().sum().backward()
        for p in model.parameters():  # as DistributedDataParallel does of what all have
            if id(p) not in parts.of and p.grad is not None:
                dist.all_reduce(p.grad)
        optimizer.step()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        tensors = {n: t.clone() for n, t in model.state_dict().items()}
        state = optimizer.state_dict()
        pieces = {
            "model": parts.pieces(tensors),
            "optimizer": parts.optimizer_pieces(state, parameters),
        }
        loaded = checkpoint.load(checkpoint.save_together(folder, pieces))
        assert loaded["model"].keys() == before.keys()
        again = parts.own(loaded["model"])
        assert tensors.keys() == again.keys()
        assert all(torch.equal(tensors[n], again[n]) for n in tensors)
        back = parts.own_optimizer(loaded["optimizer"], parameters)
        for number, row in state["state"].items():
            for key, value in row.items():
                assert torch.equal(value, back["state"][number][key])
    after = model.state_dict()
    assert after.keys() == before.keys()
    full = WholeModel().own(loaded["model"])
    assert all(torch.equal(after[n], full[n]) for n in full)
    assert not hasattr(model, "_ddp_params_and_buffers_to_ignore")


def resharded(first: Strategy, experts: int, folder: Path) -> None:
    """Written by four processes, then by two of them, then by three: the same bits each time."""
    groups = {4: None, 2: dist.new_group([0, 1]), 3: dist.new_group([1, 2, 3])}
    before = 4
    for count, group in groups.items():
        dist.barrier()  # the folder before is there
        if count == 4 or dist.get_rank(group) >= 0:
            model = net(experts)
            with attached(model, first if count == 4 else Fssdp(1, 2), group=group) as parts:
                optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
                parameters = [
                    p for param_group in optimizer.param_groups for p in param_group["params"]
                ]
                if count == 4:
                    model(rows(4, 1)[:][0]).square().sum().backward()
                    optimizer.step()
                else:
                    state = checkpoint.load(latest(folder / str(before)))
                    put_back(model, parts.own(state["model"]))
                    optimizer.load_state_dict(parts.own_optimizer(state["optimizer"], parameters))
                pieces = {
                    "model": parts.pieces(model.state_dict()),
                    "optimizer": parts.optimizer_pieces(optimizer.state_dict(), parameters),
                }
                checkpoint.save_together(folder / str(count), pieces, group)
        before = count
    dist.barrier()


def latest(folder: Path) -> Path:
    path = checkpoint.latest(folder)
    assert path is not None
    return path


def other_models(strategy: Strategy) -> None:
    model = net(4)
    if dist.get_rank() == 1:
        with torch.no_grad():
            model.head.weight[0, 0] += 1e-9
    with attached(model, strategy):
        raise AssertionError("models that differ were taken")
