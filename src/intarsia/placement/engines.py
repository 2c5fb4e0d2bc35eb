"""Expert parallelism as a plan: where each token's row goes, and what every device computes.

home   a token's row stays on the device of its sequence; a copy goes to each device that has some
       of its experts, and their outputs come back (transformers, DeepSpeed, vLLM)
stay   the row moves on to the device of its first expert in each layer (ExFlow), and copies go from
       there to the devices of its other experts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from ..core.checks import at_least, one_of
from ..core.errors import ConfigError
from .placement import Placement
from .plan import DevicePlan, PlanStep
from .trace import Trace

ENGINES: Mapping[str, str] = MappingProxyType(
    {
        "home": "rows come back after every layer",
        "stay": "rows move on to the device of their first expert",
    }
)
INDEX = 8  # bytes of an int64, in which counts and the indices of pairs are sent
COUNTS, PAIR = 2 * INDEX, 2 * INDEX  # (rows, pairs) of a message; (row, expert) of a pair


@dataclass(frozen=True)
class ExpertSize:
    """Sizes of one expert, an MLP.

    width: d, its inputs and outputs;  hidden: h, its hidden units;  item: bytes of a number;
    gated: three matrices instead of two;  bias: each matrix has a bias;  weight: bytes of a gate
    weight, `item` if None.

    Raises: ConfigError for a width, hidden or item below 1.
    """

    width: int
    hidden: int
    item: int = 2
    gated: bool = True
    bias: bool = False
    weight: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "item"):
            at_least(name, getattr(self, name), 1)

    @property
    def gate_bytes(self) -> int:
        """Bytes of the gate weight that is sent with each pair of row and expert."""
        return self.item if self.weight is None else self.weight

    @property
    def row(self) -> int:
        """Bytes of a token's row."""
        return self.width * self.item

    @property
    def weights(self) -> int:
        """Bytes of all weights of an expert."""
        biases = self.bias * ((1 + self.gated) * self.hidden + self.width)
        return ((2 + self.gated) * self.width * self.hidden + biases) * self.item

    @property
    def flops(self) -> int:
        """Floating-point operations for one row: two for each weight."""
        return 2 * (2 + self.gated) * self.width * self.hidden

    @classmethod
    def of(cls, trace: Trace, item: int = 2) -> ExpertSize:
        """Read an expert's widths from the metadata of a trace.

        trace: has "width" and "hidden" in its `about`; item: bytes of a number.
        Raises: ConfigError if they are not recorded.
        """
        metadata = trace.about
        try:
            gated = metadata.get("gated", "true") == "true"
            return cls(int(metadata["width"]), int(metadata["hidden"]), item, gated)
        except (KeyError, ValueError) as error:
            got = "a trace that does not say how large its experts are"
            fix = "Pass ExpertSize(width, hidden); on the command line --expert 4096x14336."
            raise ConfigError("size of an expert", got=got, want="d and h", fix=fix) from error


def homes(trace: Trace, devices: int) -> Tensor:
    """Return the device on which each row begins, by sequence: i mod devices.  (N,) int64.

    trace: has the sequence of each row (token).
    """
    return trace.sequence.unique(return_inverse=True)[1] % devices


def ranks_on_device(home: Tensor) -> Tensor:
    """Number the rows of each device (N,) from 0, in their order.  -> (N,) int64."""
    order = home.argsort(stable=True)
    # position in the sorted order, less the rows of the devices before
    count = home.bincount()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(home)) - (count.cumsum(0) - count)[home[order]]
    return rank


def destinations(
    expert: Tensor, source: Tensor, holds: Tensor, nodes: Tensor, row: Tensor
) -> Tensor:
    """Choose the device that computes each pair of a row and one of its experts.

    The row's own device if it holds the expert, else one of the same node, else any; where several
    are equally good, in turn by the token's number.
    expert: (N, k), -1 = none; source: (N,), the device of each row; holds: (D, E) bool, which
      device holds which expert; nodes: (D,), the node of each device; row: (N,), the tokens'
      numbers. Returns (N, k) int64, -1 = none, on the device of `expert`.
    """
    devices, compute_device = len(holds), expert.device
    source, holds, nodes, row = (t.to(compute_device) for t in (source, holds, nodes, row))
    candidates = holds.T[expert.long().clamp(min=0)]  # (N, k, D)
    on_source = torch.arange(devices, device=compute_device)[None, None] == source[:, None, None]
    on_node = nodes[None, None] == nodes[source][:, None, None]
    # narrow the candidates to the node, then to the device itself, wherever one is left
    for preferred in (candidates & on_node, candidates & on_source):
        candidates = torch.where(preferred.any(2, keepdim=True), preferred, candidates)
    # several candidates take the tokens in turn
    turn = row[:, None] % candidates.sum(2).clamp(min=1)
    # the (turn + 1)-th candidate
    place = (candidates & (candidates.cumsum(2) == turn[:, :, None] + 1)).int().argmax(2)
    return torch.where(expert >= 0, place, -1)


def row_devices(trace: Trace, placement: Placement, engine: str, home: Tensor) -> Tensor:
    """Return the device on which each row lies while a layer is computed, (L, N) int64.

    trace: recorded routing of N rows; engine: "home", rows return to their device after each layer,
      or "stay", they move on to the device of their first expert; home: (N,), the device of each
      row before the first layer.
    """
    one_of("engine", engine, ENGINES)
    device = home.repeat(trace.layers, 1)
    if engine == "stay":
        for layer in range(trace.layers):
            first = trace.expert[:, layer, 0].long()
            previous = device[layer - 1] if layer else home
            owner = placement.owner[layer][first.clamp(min=0)]
            device[layer] = torch.where(first >= 0, owner, previous)
    return device


def expert_parallel(
    trace: Trace,
    placement: Placement,
    size: ExpertSize,
    *,
    engine: str = "home",
    nodes: Tensor | None = None,
    backward: bool = False,
) -> DevicePlan:
    """Plan the transfers and computations of one batch that has the trace's routing.

    trace: recorded routing; placement: the devices of each expert; size: widths and bytes of an
      expert. engine: "home", rows return after each layer, or "stay", they move on to the device of
      their first expert. nodes: (D,), the node of each device, see `Topology.nodes`; None = one
      node. backward: add the steps of the gradients, which travel in the opposite direction.
    A device sends a row once to each other device that computes some of its experts, with (row,
    expert) and the weight of each pair; that device returns the weighted sum of those experts.

    Raises: ConfigError for a placement of other layers, experts or devices.
    """
    check_same(trace, placement)
    count = placement.devices
    if nodes is not None and len(nodes) != count:
        got, want = f"nodes of {len(nodes)} devices", f"of {count}, as the placement has"
        raise ConfigError("topology", got=got, want=want, fix=f"Place for {len(nodes)} devices.")
    nodes = torch.zeros(count, dtype=torch.int64) if nodes is None else nodes
    home, row = homes(trace, count), torch.arange(len(trace))
    row_device = row_devices(trace, placement, engine, home)
    forward: list[PlanStep] = []
    gradient: list[PlanStep] = []

    def move(layer: int, source: Tensor, target: Tensor) -> None:
        """Add the step in which rows go to their next device, and the step of its gradient.

        layer: index; source, target: (N,), the device of each row before and after.
        """
        sent = off_diagonal(_count_rows(source, target, count) * size.row)
        step = PlanStep(f"{layer}.move", layer, "move", "link", bytes=sent)
        forward.append(step)
        gradient.append(replace(step, name=f"{step.name}.back", bytes=sent.T.contiguous()))

    for layer in range(trace.layers):
        if engine == "stay":
            move(layer, row_device[layer - 1] if layer else home, row_device[layer])
        pair_device = destinations(
            trace.expert[:, layer], row_device[layer], placement.holds[layer], nodes, row
        )
        steps, gradient_steps = layer_steps(layer, row_device[layer], pair_device, size, count)
        forward += steps
        gradient += gradient_steps[::-1]
    if engine == "stay":  # after the last layer rows go back to their sequences
        move(trace.layers, row_device[-1], home)
    return DevicePlan(chain(forward + gradient[::-1] if backward else forward), count)


def layer_steps(
    layer: int, row_device: Tensor, pair_device: Tensor, size: ExpertSize, devices: int
) -> tuple[list[PlanStep], list[PlanStep]]:
    """Return the plan's steps for one layer: the steps of its forward and of its backward.

    Forward: counts (devices tell each other how many rows and pairs will come), dispatch (rows are
      sent), expert (computation), combine (outputs return). Backward: combine, expert, dispatch. A
      row is the vector of a token, a pair one row and one of its k experts; a row is sent once to a
      device that computes several of its pairs.
    row_device: (N,), the device that has each row; pair_device: (N, k), the device that computes
      each pair, -1 = none; devices: D.
    """
    rows, pairs = rows_and_pairs(row_device, pair_device, devices)
    name, flops = f"{layer}.expert", pairs.sum(0).double() * size.flops
    # backwards the gradients of rows and gate weights are sent, but no indices
    weighed = rows * size.row + pairs * size.gate_bytes
    outputs = (rows * size.row).T.contiguous()

    def link(phase: str, sent: Tensor) -> PlanStep:
        return PlanStep(f"{layer}.{phase}", layer, phase, "link", bytes=off_diagonal(sent))

    def turned(step: PlanStep, sent: Tensor) -> PlanStep:
        return replace(step, name=f"{step.name}.back", bytes=off_diagonal(sent).T.contiguous())

    # PAIR: the indices of row and expert, for each pair that is sent
    dispatch, combine = link("dispatch", weighed + pairs * PAIR), link("combine", outputs)
    product = PlanStep(name, layer, "expert", "compute", flops=flops)
    # twice the products: gradients of the inputs and of the weights
    slower = replace(product, name=f"{name}.back", flops=2 * flops)
    # COUNTS: two numbers from each device to each, rows and pairs
    forward = [link("counts", torch.full_like(rows, COUNTS)), dispatch, product, combine]
    return forward, [turned(combine, outputs), slower, turned(dispatch, weighed)]


def chain(steps: Sequence[PlanStep]) -> tuple[PlanStep, ...]:
    """Make each step of a plan wait for the one before it.  steps: in their order of time."""
    after = [(), *((step.name,) for step in steps)]
    return tuple(replace(step, after=names) for names, step in zip(after, steps, strict=False))


def _count_rows(source: Tensor, target: Tensor, devices: int) -> Tensor:
    """Count how many rows go from each device to each, (D, D) int64."""
    # source, target: (M,), the device of each row before and after
    return torch.bincount(source * devices + target, minlength=devices**2).view(devices, devices)


def rows_and_pairs(row_device: Tensor, pair_device: Tensor, devices: int) -> tuple[Tensor, Tensor]:
    """Count the rows, and the pairs of a row and an expert, that go from each device to each.

    row_device: (N,), the device of each row; pair_device: (N, k), the device that computes each
      pair, -1 = none; devices: D. A row counts once for a device, however many of its experts are
      there. Returns two (D, D) int64.
    """
    token, place = (pair_device >= 0).nonzero(as_tuple=True)
    pairs = _count_rows(row_device[token], pair_device[token, place], devices)
    # a row is sent once, however many of its experts the device has
    once = (token * devices + pair_device[token, place]).unique()
    return _count_rows(row_device[once // devices], once % devices, devices), pairs


def off_diagonal(matrix: Tensor) -> Tensor:
    """Set the diagonal to 0: a device sends nothing to itself.  (D, D) -> (D, D)."""
    return matrix.clone().fill_diagonal_(0)


def check_same(trace: Trace, placement: Placement) -> None:
    """Raise ConfigError unless trace and placement have the same numbers of layers and experts."""
    sizes = [f"{sized.layers} layers of {sized.experts} experts" for sized in (placement, trace)]
    if sizes[0] != sizes[1]:
        want = f"{sizes[1]}, as the trace has"
        raise ConfigError("placement", got=sizes[0], want=want, fix="Place this very trace.")
