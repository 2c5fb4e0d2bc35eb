"""A plan of expert parallelism, carried out by processes: the same bytes as it says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..core import Routing
from ..core.errors import ConfigError, TrainingError
from ..placement.engines import homes, row_devices
from ..placement.measuring import device_of
from ..placement.placement import Placement
from ..placement.plan import DevicePlan
from ..placement.trace import Trace
from ..processes.exchange import Group, Meter, exchanged
from .sharded import Sharded


def check_agreed(plan: DevicePlan, group: Group = None) -> None:
    """Raise TrainingError unless all processes have the same plan.

    plan: this process's; group: the processes, None = all. With different plans they would wait
      forever or mix tokens up. The error is raised in each of them, and names the smallest and the
      largest of the plans' hashes.
    """
    check_alike("plan of the processes", plan.digest(), group)


def check_alike(subject: str, digest: str, group: Group = None) -> None:
    """Raise TrainingError unless all processes have the same digest, a hexadecimal hash.

    group: the processes, None = all. With different models they would wait forever or mix tokens
      up. The error is raised in each of them, and names the smallest and the largest of the
      digests.
    """
    digest_number = int(digest[:15], 16)  # 60 bits
    smallest, largest = (torch.tensor(digest_number, device=device_of(group)) for _ in range(2))
    # All digests are equal exactly if the smallest is the largest: two small reductions instead of
    # a gather.
    dist.all_reduce(smallest, dist.ReduceOp.MIN, group=group)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    if int(smallest) != int(largest):
        got = f"{int(smallest):015x} and {int(largest):015x}, here {digest_number:015x}"
        fix = "Start every process with the same model, data, seed and settings."
        raise TrainingError(subject, got=got, want="one for all", fix=fix)


def carry_out(
    plan: DevicePlan,
    layers: Sequence[Sharded],
    x: Tensor,
    trace: Trace,
    placement: Placement,
    *,
    engine: str = "home",
    meter: Meter | None = None,
    group: Group = None,
) -> Tensor:
    """Compute x <- x + mixture(x), layer after layer, with the trace's routing, as `plan` says.

    plan: of exchanges and computations, `expert_parallel(trace, placement, size, engine=engine)`;
      layers: this process's experts of each layer; x: (n, d), this process's rows,
      of the sequences that `homes` gives it, in order; trace: which experts each token has;
      placement: which process has which expert; engine: "home", rows return after each layer, or
      "stay", they move on to the next layer's experts; meter: counts the bytes; group: the
      processes, None = all. Returns the same rows, (n, d). Gradients take the same ways back.
    Raises: TrainingError where processes have different plans; ConfigError for other rows.
    """
    check_agreed(plan, group)
    rank, home = dist.get_rank(group), homes(trace, plan.devices)
    numbers = (home == rank).nonzero().flatten()
    if len(x) != len(numbers):
        got, want = f"{len(x)} rows", f"the {len(numbers)} of process {rank}"
        raise ConfigError("rows", got=got, want=want, fix="Take those where homes(...) is here.")
    devices = torch.cat([home[None], row_devices(trace, placement, engine, home), home[None]])
    stays = engine == "stay"
    for number, layer in enumerate(layers):
        if stays:
            x, numbers = _move_rows(
                x, numbers, devices[number], devices[number + 1], number, meter, group
            )
        # With the engine "stay" rows have just moved to where this layer needs them; with others
        # they start and end each layer at home.
        routing = routed(trace, numbers, number, x)
        x = x + layer.mix(x, routing, numbers)
    if stays:
        x, _ = _move_rows(x, numbers, devices[-2], devices[-1], len(layers), meter, group)
    return x


def routed(trace: Trace, numbers: Tensor, layer: int, x: Tensor) -> Routing:
    """Return the recorded routing of some rows in a layer, with weights that need gradients.

    numbers: (n,), which of its rows; x: the rows, (n, d); the weights get their dtype.
    """
    if len(numbers):
        recorded = trace.rows(numbers).routing(layer)
        token, expert, weight = recorded.token, recorded.expert, recorded.weight.to(x.dtype)
    else:
        token = expert = torch.zeros(0, dtype=torch.int64)
        weight = x.new_zeros(0)
    # A leaf with gradients makes the backward exchange gradients of gate weights, as in a training.
    weight = weight.detach().requires_grad_(torch.is_grad_enabled())
    return Routing(token, expert, weight, len(x), trace.experts)


def _move_rows(
    x: Tensor,
    numbers: Tensor,
    came: Tensor,
    goes: Tensor,
    layer: int,
    meter: Meter | None,
    group: Group,
) -> tuple[Tensor, Tensor]:
    """Send rows (n, d) to their next device; return the rows that are here then, by number."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    # came, goes: (N,), the device of each row of the trace before and after
    target = goes[numbers]
    # Rows are sent in the order of receivers; the stable sort keeps them in ascending order of
    # their numbers within a message.
    order = target.argsort(stable=True)
    send = torch.bincount(target, minlength=world).tolist()
    arriving = (goes == rank).nonzero().flatten()
    receive = torch.bincount(came[arriving], minlength=world).tolist()
    name = f"{layer}.move"
    received = exchanged(x[order], send, receive, group=group, meter=meter, name=name)
    # rows arrive by sender, then by number; return them in the order of their numbers
    arrived = arriving[came[arriving].argsort(stable=True)]
    return received[arrived.argsort()], arriving
