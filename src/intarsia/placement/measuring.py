"""Measurement of the devices of a process group, and of the links between them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import ConfigError

SHORT, LONG = 1 << 12, 1 << 21  # bytes of a message
REPEATS = 5  # measurements; the fastest counts
SIDE = 512  # of the matrices that are multiplied
ALIKE = 2.0  # links with bandwidths that differ by no more than this are one level
Group = dist.ProcessGroup | None


def measure(group: Group = None) -> dict[str, Tensor]:
    """Measure the devices of a process group, and the links between them.

    Called by every process of the group; the result is the same in all. Two processes at a time
    send a short and a long message there and back: t = latency + bytes / bandwidth, half of it each
    way. The others wait, so that a link is measured alone. Links with bandwidths within a factor of
    two get the medians of all of them, because measurement noise is no topology.
    Returns by name: bandwidth (D, D), B/s; latency (D, D), s; flops (D,), FLOP/s of a product of
      float32 matrices; load (D,), B/s of a copy from host memory to the device; memory (D,), bytes
      of the device, on CPUs the machine's divided by its processes. group: None = all processes.

    Raises: ConfigError without a process group.
    """
    if not (dist.is_available() and dist.is_initialized()):
        fix = "Start it by torchrun, and call torch.distributed.init_process_group first."
        raise ConfigError("topology", got="no processes", want="a process group", fix=fix)
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    device = device_of(group)
    bandwidth = torch.zeros(world, world, dtype=torch.float64)
    latency = torch.zeros(world, world, dtype=torch.float64)
    for first in range(world):
        for second in range(first + 1, world):
            dist.barrier(group=group)
            if rank not in (first, second):
                continue
            short, long = (
                _message_seconds(first, second, rank, n, device, group) for n in (SHORT, LONG)
            )
            if rank == first:
                # two sizes give both unknowns of t = latency + bytes / bandwidth
                rate = (LONG - SHORT) / max(long - short, 1e-9)
                bandwidth[first, second] = bandwidth[second, first] = rate
                latency[first, second] = latency[second, first] = max(0.0, short - SHORT / rate)
    figures = torch.zeros(3, world, dtype=torch.float64)
    figures[:, rank] = torch.tensor([_flops(device), _load(device), _memory(device, world)])
    totals = [_sum_over_processes(t, device, group) for t in (bandwidth, latency, figures)]
    # each process entered its own figures, zeros elsewhere: the sum has all of them
    rates, delays = levels(totals[0], totals[1])
    names = ("flops", "load", "memory")
    vectors = dict(zip(names, totals[2].unbind(0), strict=True))
    return {"bandwidth": rates, "latency": delays, **vectors}


def levels(bandwidth: Tensor, latency: Tensor) -> tuple[Tensor, Tensor]:
    """Group links of similar bandwidth, and give each link the medians of its group.

    bandwidth, latency: (D, D). Sorted by bandwidth, links are divided where the next one is over
      `ALIKE` times as fast. Returns both matrices, with a diagonal of infinite bandwidth and
      latency 0.
    """
    apart = ~torch.eye(len(bandwidth), dtype=torch.bool)
    rates, delays = bandwidth.clone(), latency.clone()
    values, order = bandwidth[apart].sort()
    sorted_delays = latency[apart][order]
    # a jump by more than the factor begins a new level
    jumps = (values[1:] > ALIKE * values[:-1]).nonzero()[:, 0] + 1
    cuts = [0, *jumps.tolist(), len(values)]
    for first, last in zip(cuts, cuts[1:], strict=False):
        if first == last:
            continue
        in_level = apart & (bandwidth >= values[first]) & (bandwidth <= values[last - 1])
        rates[in_level] = values[first:last].median()
        delays[in_level] = sorted_delays[first:last].median()
    return rates.masked_fill(~apart, torch.inf), delays.masked_fill(~apart, 0.0)


def device_of(group: Group = None) -> torch.device:
    """Return the device of tensors that the group's processes exchange: CUDA for NCCL, else CPU."""
    nccl = dist.get_backend(group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def _message_seconds(
    first: int, second: int, rank: int, size: int, device: torch.device, group: Group
) -> float:
    """Measure the seconds a message of `size` bytes takes one way, the fastest of `REPEATS`."""
    message = torch.zeros(size, dtype=torch.uint8, device=device)
    partner = second if rank == first else first
    peer = partner if group is None else dist.get_global_rank(group, partner)

    def exchange() -> None:
        steps = (dist.send, dist.recv) if rank == first else (dist.recv, dist.send)
        for step in steps:
            step(message, peer, group=group)

    # there and back is two messages
    return _fastest(exchange, device) / 2


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Return the least seconds of `REPEATS` calls of `work`, after one that is not measured."""
    work()
    # the fastest of several repeats: interruptions only ever add time
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
    """Measure the floating-point operations per second of a product of float32 matrices."""
    x = torch.ones(SIDE, SIDE, device=device)
    return 2 * SIDE**3 / _fastest(lambda: x @ x, device)


def _load(device: torch.device) -> float:
    """Measure the bytes per second of a copy from host memory to the device."""
    host = torch.ones(LONG, dtype=torch.uint8)
    copy = torch.empty_like(host, device=device)
    return LONG / _fastest(lambda: copy.copy_(host), device)


def _memory(device: torch.device, world: int) -> float:
    """Return the bytes of a device's memory; on CPUs the machine's divided by `world` processes."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / world


def _sum_over_processes(x: Tensor, device: torch.device, group: Group) -> Tensor:
    """Add up a tensor over all processes of the group, and return the sum on the CPU."""
    x = x.to(device)
    dist.all_reduce(x, group=group)
    return x.cpu()
