"""Plans of what devices compute and send: timed by the simulator, carried out by processes."""

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
    """Step of a plan, on all devices.

    name: unique in its plan;  layer: its index;  phase: such as "dispatch", "expert", "combine";
    resource: "compute", "link" or "load" (host to device);  after: names of steps that must have
    ended;  bytes: (D, D) int64 from row to column, off the diagonal for a link, on it for a load;
    flops: (D,) float64, for compute.

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
        """Check the resource, and that a device sends itself nothing.  Raises: ConfigError."""
        one_of("resource", self.resource, RESOURCES)
        if self.bytes is not None and self.resource == "link" and bool(self.bytes.diag().any()):
            got, fix = "bytes on the diagonal", "What stays on a device is not sent."
            raise ConfigError(f"step {self.name!r}", got=got, want="0 there", fix=fix)


@dataclass(frozen=True)
class DevicePlan:
    """Plan of steps on D devices, each listed after those that it waits for.

    This is the `Plan` of a parallel strategy. `simulate` adds up its times; `parallel.carry_out`
    runs it on processes, which then send exactly `bytes()` bytes.

    Raises: ConfigError for two steps of one name, or one that waits for a later one.
    """

    steps: tuple[PlanStep, ...]
    devices: int

    def __post_init__(self) -> None:
        """Check that names are unique and steps wait for earlier ones.  Raises: ConfigError."""
        earlier: set[str] = set()
        for step in self.steps:
            # one pass suffices: a step may only wait for steps that are listed before it
            missing = [name for name in step.after if name not in earlier]
            if missing or step.name in earlier:
                got = f"{step.name!r} after {missing}" if missing else f"{step.name!r} twice"
                want = "names of their own, each after those before it"
                raise ConfigError("steps of a plan", got=got, want=want, fix="Order the steps.")
            earlier.add(step.name)

    def bytes(self, phases: Iterable[str] | None = None) -> Tensor:
        """Return the bytes that are sent over each link, (D, D) int64.

        phases: names of the steps' phases that count; None = all.
        """
        selected = None if phases is None else set(phases)
        total = torch.zeros(self.devices, self.devices, dtype=torch.int64)
        for step in self.steps:
            counts = step.resource == "link" and (selected is None or step.phase in selected)
            if counts and step.bytes is not None:
                total += step.bytes
        return total

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        rows = [
            {name: _plain(getattr(step, name)) for name in PlanStep.__dataclass_fields__}
            for step in self.steps
        ]
        return json.dumps({"devices": self.devices, "steps": rows})

    @classmethod
    def from_json(cls, text: str) -> DevicePlan:
        """Read a plan from the text of `to_json`."""
        record = json.loads(text)
        types = {"bytes": torch.int64, "flops": torch.float64}
        steps = [
            PlanStep(**{name: _from_plain(value, types.get(name)) for name, value in row.items()})
            for row in record["steps"]
        ]
        return cls(tuple(steps), record["devices"])

    def digest(self) -> str:
        """Return the SHA-256 of the plan, by which processes check that they have the same one."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Convert a tensor to lists; return other values as they are."""
    return value.tolist() if isinstance(value, Tensor) else value


def _from_plain(value: Any, kind: torch.dtype | None) -> Any:
    """Convert a JSON value back: a list to a tensor of type `kind`; a tuple if `kind` is None."""
    if kind is not None:
        return None if value is None else torch.tensor(value, dtype=kind)
    return tuple(value) if isinstance(value, list) else value
