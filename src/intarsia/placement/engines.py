"""Expert parallelism as a plan: where each token's row goes, and what every device computes.

home   a token's row lives where its sequence does; a copy goes to each device that has some of its
       experts, and what they make of it comes back (transformers, DeepSpeed, vLLM)
stay   it moves on to the device of its first expert in each layer (ExFlow), and goes to those of
       its other experts from there
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
INDEX = 8  # bytes of an int64: rows and pairs are counted, and pairs told, in them
COUNTS, PAIR = 2 * INDEX, 2 * INDEX  # (rows, pairs) of a message; (row, expert) of a pair


@dataclass(frozen=True)
class ExpertSize:
    """width d and hidden h of an expert; item: bytes of a number; gated: three matrices or two;
    bias: has each matrix one; weight: bytes of a gate's weight, those of a number if None."""

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
    def told(self) -> int:
        """Bytes of the weight of a pair of row and expert."""
        return self.item if self.weight is None else self.weight

    @property
    def row(self) -> int:
        """Bytes of a token's row."""
        return self.width * self.item

    @property
    def weights(self) -> int:
        """Bytes of an expert."""
        biases = self.bias * ((1 + self.gated) * self.hidden + self.width)
        return ((2 + self.gated) * self.width * self.hidden + biases) * self.item

    @property
    def flops(self) -> int:
        """Of one row: two for each weight."""
        return 2 * (2 + self.gated) * self.width * self.hidden

    @classmethod
    def of(cls, trace: Trace, item: int = 2) -> ExpertSize:
        """As the trace's model has it.  Raises: ConfigError if the trace does not say."""
        about = trace.about
        try:
            gated = about.get("gated", "true") == "true"
            return cls(int(about["width"]), int(about["hidden"]), item, gated)
        except (KeyError, ValueError) as error:
            got = "a trace that does not say how large its experts are"
            fix = "Pass ExpertSize(width, hidden); on the command line --expert 4096x14336."
            raise ConfigError("size of an expert", got=got, want="d and h", fix=fix) from error


def homes(trace: Trace, devices: int) -> Tensor:
    """Sequences dealt out to the devices in turn.  Returns (N,) int64."""
    return trace.sequence.unique(return_inverse=True)[1] % devices


def places_at(home: Tensor) -> Tensor:
    """The place of each row among those of its device.  home: (N,) -> (N,) int64."""
    order = home.argsort(stable=True)
    count = home.bincount()
    found = torch.empty_like(order)
    found[order] = torch.arange(len(home)) - (count.cumsum(0) - count)[home[order]]
    return found


def destinations(expert: Tensor, at: Tensor, holds: Tensor, nodes: Tensor, row: Tensor) -> Tensor:
    """The device that computes each pair: the token's own if it holds the expert, else one of its
    node, else any; among several, by the token's number in turn.

    expert: (N, k), -1 = none; at: (N,), where the rows are; holds: (D, E) bool; nodes: (D,);
    row: (N,), the tokens' numbers.  Returns (N, k) int64, -1 = none, on the device of `expert`.
    """
    devices, here = len(holds), expert.device
    at, holds, nodes, row = (t.to(here) for t in (at, holds, nodes, row))
    there = holds.T[expert.long().clamp(min=0)]  # (N, k, D)
    own = torch.arange(devices, device=here)[None, None] == at[:, None, None]
    near = nodes[None, None] == nodes[at][:, None, None]
    for wanted in (there & near, there & own):  # the last one that there is counts
        there = torch.where(wanted.any(2, keepdim=True), wanted, there)
    turn = row[:, None] % there.sum(2).clamp(min=1)
    place = (there & (there.cumsum(2) == turn[:, :, None] + 1)).int().argmax(2)
    return torch.where(expert >= 0, place, -1)


def where_rows_are(trace: Trace, placement: Placement, engine: str, home: Tensor) -> Tensor:
    """The device of each row while a layer is computed.  Returns (L, N) int64."""
    one_of("engine", engine, ENGINES)
    found = home.repeat(trace.layers, 1)
    if engine == "stay":
        for layer in range(trace.layers):
            first = trace.expert[:, layer, 0].long()
            before = found[layer - 1] if layer else home
            owner = placement.owner[layer][first.clamp(min=0)]
            found[layer] = torch.where(first >= 0, owner, before)
    return found


def expert_parallel(
    trace: Trace,
    placement: Placement,
    size: ExpertSize,
    *,
    engine: str = "home",
    nodes: Tensor | None = None,
    backward: bool = False,
) -> DevicePlan:
    """The plan of one batch with the trace's routing.

    engine: "home" or "stay".  nodes: of the devices, see `Topology.nodes`; one if not given.
    backward: with the steps of the gradients, which take the same ways back.
    A device sends a row once to each other device that computes some of its experts, with (row,
    expert) and the weight of each pair; what comes back is the weighted sum of those experts.
    Raises: ConfigError for a placement of other layers, experts or devices.
    """
    check_same(trace, placement)
    count = placement.devices
    if nodes is not None and len(nodes) != count:
        got, want = f"nodes of {len(nodes)} devices", f"of {count}, as the placement has"
        raise ConfigError("topology", got=got, want=want, fix=f"Place for {len(nodes)} devices.")
    nodes = torch.zeros(count, dtype=torch.int64) if nodes is None else nodes
    home, row = homes(trace, count), torch.arange(len(trace))
    at = where_rows_are(trace, placement, engine, home)
    there: list[PlanStep] = []
    back: list[PlanStep] = []

    def move(layer: int, came: Tensor, goes: Tensor) -> None:
        sent = off_diagonal(_rows(came, goes, count) * size.row)
        step = PlanStep(f"{layer}.move", layer, "move", "link", bytes=sent)
        there.append(step)
        back.append(replace(step, name=f"{step.name}.back", bytes=sent.T.contiguous()))

    for layer in range(trace.layers):
        if engine == "stay":
            move(layer, at[layer - 1] if layer else home, at[layer])
        to = destinations(trace.expert[:, layer], at[layer], placement.holds[layer], nodes, row)
        steps, turned = layer_steps(layer, at[layer], to, size, count)
        there += steps
        back += turned[::-1]
    if engine == "stay":
        move(trace.layers, at[-1], home)
    return DevicePlan(in_a_row(there + back[::-1] if backward else there), count)


def layer_steps(
    layer: int, at: Tensor, to: Tensor, size: ExpertSize, devices: int
) -> tuple[list[PlanStep], list[PlanStep]]:
    """Counts, dispatch, experts and combine of a layer; and those of the gradients, in their order.

    at: (N,), where the rows are;  to: (N, k), the device of each pair, -1 = none.
    """
    rows, pairs = rows_and_pairs(at, to, devices)
    name, flops = f"{layer}.expert", pairs.sum(0).double() * size.flops
    # the gradients of rows and weights come back, not the numbers
    weighed = rows * size.row + pairs * size.told
    made = (rows * size.row).T.contiguous()

    def link(phase: str, sent: Tensor) -> PlanStep:
        return PlanStep(f"{layer}.{phase}", layer, phase, "link", bytes=off_diagonal(sent))

    def turned(step: PlanStep, sent: Tensor) -> PlanStep:
        return replace(step, name=f"{step.name}.back", bytes=off_diagonal(sent).T.contiguous())

    dispatch, combine = link("dispatch", weighed + pairs * PAIR), link("combine", made)
    product = PlanStep(name, layer, "expert", "compute", flops=flops)
    slower = replace(product, name=f"{name}.back", flops=2 * flops)
    there = [link("counts", torch.full_like(rows, COUNTS)), dispatch, product, combine]
    return there, [turned(combine, made), slower, turned(dispatch, weighed)]


def in_a_row(steps: Sequence[PlanStep]) -> tuple[PlanStep, ...]:
    """Each after the one before."""
    after = [(), *((step.name,) for step in steps)]
    return tuple(replace(step, after=names) for names, step in zip(after, steps, strict=False))


def _rows(came: Tensor, goes: Tensor, devices: int) -> Tensor:
    """How many rows go from device to device.  Returns (D, D) int64."""
    return torch.bincount(came * devices + goes, minlength=devices**2).view(devices, devices)


def rows_and_pairs(at: Tensor, to: Tensor, devices: int) -> tuple[Tensor, Tensor]:
    """Rows and pairs from device to device, each (D, D) int64; a row counts once a device."""
    token, place = (to >= 0).nonzero(as_tuple=True)
    pairs = _rows(at[token], to[token, place], devices)
    once = (token * devices + to[token, place]).unique()
    return _rows(at[once // devices], once % devices, devices), pairs


def off_diagonal(matrix: Tensor) -> Tensor:
    """What goes over links: nothing from a device to itself."""
    return matrix.clone().fill_diagonal_(0)


def check_same(trace: Trace, placement: Placement) -> None:
    """Raises: ConfigError for a placement of other layers or experts than the trace has."""
    sizes = [f"{of.layers} layers of {of.experts} experts" for of in (placement, trace)]
    if sizes[0] != sizes[1]:
        want = f"{sizes[1]}, as the trace has"
        raise ConfigError("placement", got=sizes[0], want=want, fix="Place this very trace.")
