"""Expert parallelism as a plan: where each token's row goes, and what every device computes.

home   a token's row lives where its sequence does; a copy goes to each device that has some of its
       experts, and what they make of it comes back (transformers, DeepSpeed, vLLM)
stay   it moves on to the device of its first expert in each layer (ExFlow), and goes to those of
       its other experts from there
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """width d and hidden h of an expert; item: bytes of a number; gated: three matrices or two."""

    width: int
    hidden: int
    item: int = 2
    gated: bool = True

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "item"):
            at_least(name, getattr(self, name), 1)

    @property
    def row(self) -> int:
        """Bytes of a token's row."""
        return self.width * self.item

    @property
    def weights(self) -> int:
        """Bytes of an expert."""
        return (2 + self.gated) * self.width * self.hidden * self.item

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


def destinations(expert: Tensor, at: Tensor, holds: Tensor, nodes: Tensor, row: Tensor) -> Tensor:
    """The device that computes each pair: the token's own if it holds the expert, else one of its
    node, else any; among several, by the token's number in turn.

    expert: (N, k), -1 = none; at: (N,), where the rows are; holds: (D, E) bool; nodes: (D,);
    row: (N,), the tokens' numbers.  Returns (N, k) int64, -1 = none.
    """
    devices = len(holds)
    there = holds.T[expert.long().clamp(min=0)]  # (N, k, D)
    own = torch.arange(devices)[None, None] == at[:, None, None]
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
    Raises: ConfigError for a placement of other layers or experts.
    """
    check_same(trace, placement)
    count = placement.devices
    nodes = torch.zeros(count, dtype=torch.int64) if nodes is None else nodes
    home, row = homes(trace, count), torch.arange(len(trace))
    at = where_rows_are(trace, placement, engine, home)
    there: list[PlanStep] = []
    back: list[PlanStep] = []

    def add(name: str, layer: int, sent: Tensor, returned: Tensor | None) -> None:
        phase = name.rpartition(".")[2]
        there.append(PlanStep(name, layer, phase, "link", bytes=_off_diagonal(sent)))
        if returned is not None:
            turned = _off_diagonal(returned).T.contiguous()
            back.append(PlanStep(f"{name}.back", layer, phase, "link", bytes=turned))

    for layer in range(trace.layers):
        if engine == "stay":
            moved = _rows(at[layer - 1] if layer else home, at[layer], count) * size.row
            add(f"{layer}.move", layer, moved, moved)
        to = destinations(trace.expert[:, layer], at[layer], placement.holds[layer], nodes, row)
        rows, pairs = _between(at[layer], to, count)
        add(f"{layer}.counts", layer, torch.full_like(rows, COUNTS), None)
        # the gradients of rows and weights come back, not the numbers
        weighed = rows * size.row + pairs * size.item
        add(f"{layer}.dispatch", layer, weighed + pairs * PAIR, weighed)
        name, flops = f"{layer}.expert", pairs.sum(0).double() * size.flops
        there.append(PlanStep(name, layer, "expert", "compute", flops=flops))
        back.append(PlanStep(f"{name}.back", layer, "expert", "compute", flops=2 * flops))
        made = (rows * size.row).T.contiguous()
        add(f"{layer}.combine", layer, made, made)
    if engine == "stay":
        moved = _rows(at[-1], home, count) * size.row
        add(f"{trace.layers}.move", trace.layers, moved, moved)
    return DevicePlan(_in_a_row(there + back[::-1] if backward else there), count)


def _in_a_row(steps: list[PlanStep]) -> tuple[PlanStep, ...]:
    """Each after the one before."""
    after = [(), *((step.name,) for step in steps)]
    return tuple(replace(step, after=names) for names, step in zip(after, steps, strict=False))


def _rows(came: Tensor, goes: Tensor, devices: int) -> Tensor:
    """How many rows go from device to device.  Returns (D, D) int64."""
    return torch.bincount(came * devices + goes, minlength=devices**2).view(devices, devices)


def _between(at: Tensor, to: Tensor, devices: int) -> tuple[Tensor, Tensor]:
    """Rows and pairs from device to device, each (D, D) int64; a row counts once a device."""
    token, place = (to >= 0).nonzero(as_tuple=True)
    pairs = _rows(at[token], to[token, place], devices)
    once = (token * devices + to[token, place]).unique()
    return _rows(at[once // devices], once % devices, devices), pairs


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix.clone().fill_diagonal_(0)


def check_same(trace: Trace, placement: Placement) -> None:
    """Raises: ConfigError for a placement of other layers or experts than the trace has."""
    sizes = [f"{of.layers} layers of {of.experts} experts" for of in (placement, trace)]
    if sizes[0] != sizes[1]:
        want = f"{sizes[1]}, as the trace has"
        raise ConfigError("placement", got=sizes[0], want=want, fix="Place this very trace.")
