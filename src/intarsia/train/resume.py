"""The state of a run, and the check that a checkpoint belongs to this run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from ..core.errors import CheckpointError
from ..gating import learned_routers
from ..gating.load import Load
from .checkpoint import tensors_hash
from .learner import Learner
from .precision import frozen, learned_state
from .randomness import generator_states, global_state, set_generator_states, set_global_state


@dataclass(frozen=True)
class Score:
    """An epoch, its score on val (higher is better), and what the model had learned by then."""

    epoch: int
    value: float
    learned: dict[str, Tensor]


@dataclass
class Position:
    """Progress of a run: steps, the step of the newest score on val, time, bytes of metrics
    written, the best epoch so far, and the routers' loads in the newest whole epoch."""

    step: int = 0
    scored: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    metrics_bytes: int = 0
    loads: dict[str, Load] = field(default_factory=dict[str, Load])
    best: Score | None = None
    identity: dict[str, Any] = field(default_factory=dict[str, Any])


@runtime_checkable
class ReadsBuffers(Protocol):
    """A module that keeps values of its buffers in another form as well."""

    def read_buffers(self) -> None:
        """Take the values again from buffers that were written to."""
        ...


def learned_copy(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the trained parameters and buffers, on the CPU."""
    return {name: t.detach().cpu().clone() for name, t in learned_state(model).items()}


def put_back(model: nn.Module, learned: Mapping[str, Tensor]) -> None:
    """Copy trained parameters and buffers into a model.

    learned: name -> tensor, as `learned_copy` returned them.
    Raises: CheckpointError if names or shapes differ.
    """
    # names and shapes are compared before any weight is written
    current = learned_state(model)
    shapes = {n: tuple(t.shape) for n, t in current.items()}
    saved_shapes = {n: tuple(t.shape) for n, t in learned.items()}
    if shapes != saved_shapes:
        differ = sorted(n for n in shapes | saved_shapes if shapes.get(n) != saved_shapes.get(n))
        subject, got = "trained weights", f"{len(differ)} that do not fit, first {differ[0]!r}"
        fix = "Build the model with the same method, backbone and number of classes."
        raise CheckpointError(subject, got=got, want="the model the run was started with", fix=fix)
    # in place: the optimiser holds the same tensors
    with torch.no_grad():
        for name, tensor in current.items():
            tensor.copy_(learned[name])
    for module in model.modules():
        # values that a module derived from its buffers are stale now
        if isinstance(module, ReadsBuffers):
            module.read_buffers()


def trunk_hash(model: nn.Module) -> str:
    """Return the SHA-256 of the frozen weights, in the type that they have in training."""
    return tensors_hash(list(frozen(model)))


def capture(
    model: nn.Module, learner: Learner, position: Position, ranks: Accelerator
) -> dict[str, Any]:
    """Return the whole state of a run, for a checkpoint.

    Every process calls this: each has its own random generators.
    """
    # a state for each process, by rank
    random = [global_state()]
    if ranks.num_processes > 1:
        random = gather_object(random)
    pieces = learner.parts.pieces  # names of one process, whatever their number
    best = position.best and {"epoch": position.best.epoch, "value": position.best.value} | {
        "learned": pieces(position.best.learned)
    }
    return {
        "identity": position.identity,
        "step": position.step,
        "scored": position.scored,
        "seconds": position.seconds,
        "cpu_seconds": position.cpu_seconds,
        "metrics_bytes": position.metrics_bytes,
        "best": best,
        "learned": pieces(learned_state(model)),
        "learner": learner.state(),
        "loads": {name: (list(load.share), load.active) for name, load in position.loads.items()},
        "counts": {n: (r.received, r.served) for n, r in learned_routers(model).items()},
        "past": learner.parts.past(),
        "owners": learner.parts.owners(),
        # alike in all processes: routers draw for the whole batch
        "draws": generator_states(model),
        "random": random,
    }


def restore(
    model: nn.Module,
    learner: Learner,
    position: Position,
    state: Mapping[str, Any],
    ranks: Accelerator,
) -> None:
    """Restore a run to the state that `capture` returned.

    Raises: CheckpointError if the checkpoint is of another run: method, backbone, classes, data,
      settings or number of processes.
    """
    saved = state["identity"]
    identity = position.identity
    # a part that is only scored may be left out of the rest of a run, or come to it
    later = {
        name for name in ("val", "test", "task") if not (saved.get(name) and identity.get(name))
    }
    was, now = (
        {k: v for k, v in entries.items() if k not in later} for entries in (saved, identity)
    )
    # everything else decides what the next step computes
    check_same(was, now)
    # before any weight: owners decide which weights are kept here
    learner.parts.set_owners(state["owners"])
    mine = learner.parts.own
    # weights, then the state computed from them: optimiser, loads, draws
    put_back(model, mine(state["learned"]))
    learner.load_state(state["learner"])
    learner.parts.follow(state["past"])
    set_generator_states(model, state["draws"])
    random = state["random"]
    # the checkpoint may be of fewer processes
    set_global_state(random[ranks.process_index % len(random)])
    position.step, position.metrics_bytes = state["step"], state["metrics_bytes"]
    position.scored = state["scored"]
    position.seconds, position.cpu_seconds = state["seconds"], state["cpu_seconds"]
    position.loads = {name: Load(tuple(share), k) for name, (share, k) in state["loads"].items()}
    routers = learned_routers(model)
    for name, (received, served) in state["counts"].items():
        routers[name].received, routers[name].served = received, served
    best = state["best"]
    position.best = Score(**best | {"learned": mine(best["learned"])}) if best else None


def check_same(saved: Mapping[str, Any], current: Mapping[str, Any], path: str = "") -> None:
    """Raise CheckpointError at the first entry in which two nested mappings differ."""
    for name in sorted(saved.keys() | current.keys()):
        old, new = saved.get(name), current.get(name)
        entry = f"{path}.{name}" if path else name
        # down to the single setting, so that the error can name it
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            check_same(old, new, entry)
        elif old != new:
            subject = f"checkpoint of another run, {entry}"
            fix = "Resume with the model, data and settings of its start, or take another folder."
            raise CheckpointError(subject, got=new, want=old, fix=fix)
