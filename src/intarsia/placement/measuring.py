"""What processes measure of their devices and of the links between them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import ConfigError

SHORT, LONG = 1 << 12, 1 << 21  # bytes of a message
REPEATS = 5  # of which the fastest counts
SIDE = 512  # of the matrices that are multiplied
ALIKE = 2.0  # links whose bandwidths differ by no more than this are taken as one level
Group = dist.ProcessGroup | None


def measure(group: Group = None) -> dict[str, Tensor]:
    """bandwidth, latency (D, D) and flops, load, memory (D,), alike in every process.

    Called by each of them. Two processes at a time send a short and a long message there and back:
    t = latency + bytes / bandwidth, half the way each. Others wait, so that a link is measured
    alone. Links within a factor of two become one level, the median of each: noise is no topology.
    flops: of a product of float32 matrices; load: of a copy from host memory to the device;
    memory: of the device, on a CPU of the machine over its processes.

    Raises: ConfigError without processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        fix = "Start it by torchrun, and call torch.distributed.init_process_group first."
        raise ConfigError("topology", got="no processes", want="a process group", fix=fix)
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    device = device_of(group)
    bandwidth = torch.zeros(world, world, dtype=torch.float64)
    latency = torch.zeros(world, world, dtype=torch.float64)
    for one in range(world):
        for two in range(one + 1, world):
            dist.barrier(group=group)
            if rank not in (one, two):
                continue
            short, long = (_there(one, two, rank, n, device, group) for n in (SHORT, LONG))
            if rank == one:
                rate = (LONG - SHORT) / max(long - short, 1e-9)
                bandwidth[one, two] = bandwidth[two, one] = rate
                latency[one, two] = latency[two, one] = max(0.0, short - SHORT / rate)
    own = torch.zeros(3, world, dtype=torch.float64)
    own[:, rank] = torch.tensor([_flops(device), _load(device), _memory(device, world)])
    found = [_summed(t, device, group) for t in (bandwidth, latency, own)]
    rates, delays = levels(found[0], found[1])
    names = ("flops", "load", "memory")
    vectors = dict(zip(names, found[2].unbind(0), strict=True))
    return {"bandwidth": rates, "latency": delays, **vectors}


def levels(bandwidth: Tensor, latency: Tensor) -> tuple[Tensor, Tensor]:
    """Links sorted by bandwidth, cut where the next is over twice as fast; medians of each level.

    (D, D) both; the diagonal becomes infinite, and 0.
    """
    apart = ~torch.eye(len(bandwidth), dtype=torch.bool)
    rates, delays = bandwidth.clone(), latency.clone()
    values, order = bandwidth[apart].sort()
    sorted_delays = latency[apart][order]
    jumps = (values[1:] > ALIKE * values[:-1]).nonzero()[:, 0] + 1
    cuts = [0, *jumps.tolist(), len(values)]
    for first, last in zip(cuts, cuts[1:], strict=False):
        if first == last:
            continue
        here = apart & (bandwidth >= values[first]) & (bandwidth <= values[last - 1])
        rates[here] = values[first:last].median()
        delays[here] = sorted_delays[first:last].median()
    return rates.masked_fill(~apart, torch.inf), delays.masked_fill(~apart, 0.0)


def device_of(group: Group = None) -> torch.device:
    """Where tensors are that the processes of a group exchange."""
    nccl = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def _there(one: int, two: int, rank: int, size: int, device: torch.device, group: Group) -> float:
    """Seconds of a message of so many bytes from one process to the other, the least of a few."""
    message = torch.zeros(size, dtype=torch.uint8, device=device)
    other = two if rank == one else one
    peer = other if group is None else dist.get_global_rank(group, other)

    def turn() -> None:
        steps = (dist.send, dist.recv) if rank == one else (dist.recv, dist.send)
        for step in steps:
            step(message, peer, group=group)

    return _fastest(turn, device) / 2


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    work()
    best = float("inf")
    for _ in range(REPEATS):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _flops(device: torch.device) -> float:
    x = torch.ones(SIDE, SIDE, device=device)
    return 2 * SIDE**3 / _fastest(lambda: x @ x, device)


def _load(device: torch.device) -> float:
    host = torch.ones(LONG, dtype=torch.uint8)
    here = torch.empty_like(host, device=device)
    return LONG / _fastest(lambda: here.copy_(host), device)


def _memory(device: torch.device, world: int) -> float:
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / world


def _summed(x: Tensor, device: torch.device, group: Group) -> Tensor:
    """What each process has entered, in all of them."""
    x = x.to(device)
    dist.all_reduce(x, group=group)
    return x.cpu()
