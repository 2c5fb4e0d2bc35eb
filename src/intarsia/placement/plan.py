"""What devices do and send, step by step: added up by the simulator, carried out by processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.checks import one_of
from ..core.errors import ConfigError

RESOURCES = ("compute", "link", "load")


@dataclass(frozen=True)
class PlanStep:
    """One step of all devices.

    name: of its own;  layer;  phase: as "dispatch", "expert", "combine";  resource: what it needs,
    "compute", "link" or "load" (host to device);  after: names of steps that must have ended;
    bytes: (D, D) int64 from row to column, on a link off the diagonal, of a load on it;
    flops: (D,) float64.

    Raises: ConfigError for another resource, or a link step that sends a device its own bytes.
    """

    name: str
    layer: int
    phase: str
    resource: str
    after: tuple[str, ...] = ()
    bytes: Tensor | None = None
    flops: Tensor | None = None

    def __post_init__(self) -> None:
        one_of("resource", self.resource, RESOURCES)
        if self.bytes is not None and self.resource == "link" and bool(self.bytes.diag().any()):
            got, fix = "bytes on the diagonal", "What stays on a device is not sent."
            raise ConfigError(f"step {self.name!r}", got=got, want="0 there", fix=fix)


@dataclass(frozen=True)
class DevicePlan:
    """Steps in an order in which each comes after those that it waits for, on D devices.

    The `Plan` of a parallel strategy. `simulate` adds up its times, `parallel.carry_out` runs it on
    processes, whose metered bytes are `bytes()` to the byte.

    Raises: ConfigError for two steps of one name, or one that waits for a later one.
    """

    steps: tuple[PlanStep, ...]
    devices: int

    def __post_init__(self) -> None:
        known: set[str] = set()
        for step in self.steps:
            missing = [name for name in step.after if name not in known]
            if missing or step.name in known:
                got = f"{step.name!r} after {missing}" if missing else f"{step.name!r} twice"
                want = "names of their own, each after those before it"
                raise ConfigError("steps of a plan", got=got, want=want, fix="Order the steps.")
            known.add(step.name)

    def bytes(self, phases: Iterable[str] | None = None) -> Tensor:
        """What goes over the links in these phases, or in all.  Returns (D, D) int64."""
        wanted = None if phases is None else set(phases)
        found = torch.zeros(self.devices, self.devices, dtype=torch.int64)
        for step in self.steps:
            of_it = step.resource == "link" and (wanted is None or step.phase in wanted)
            if of_it and step.bytes is not None:
                found += step.bytes
        return found

    def to_json(self) -> str:
        """All of it as JSON."""
        rows = [
            {name: _plain(getattr(step, name)) for name in PlanStep.__dataclass_fields__}
            for step in self.steps
        ]
        return json.dumps({"devices": self.devices, "steps": rows})

    @classmethod
    def from_json(cls, text: str) -> DevicePlan:
        """What `to_json` wrote."""
        found = json.loads(text)
        types = {"bytes": torch.int64, "flops": torch.float64}
        steps = [
            PlanStep(**{name: _live(value, types.get(name)) for name, value in row.items()})
            for row in found["steps"]
        ]
        return cls(tuple(steps), found["devices"])

    def digest(self) -> str:
        """By which processes see that they carry out one plan."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


def _live(value: Any, kind: torch.dtype | None) -> Any:
    if kind is not None:
        return None if value is None else torch.tensor(value, dtype=kind)
    return tuple(value) if isinstance(value, list) else value
