"""Laws of a schedule: what it sets follows from the step, or from the record, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core import Card
from ..routers.evomoe import EvoMoe
from ..routers.random import RandomRouting
from ..schedules import ByFit
from .cards import CARD_LAWS, tiny
from .made import read_again, seeded, torch_seed
from .verdict import Law, laws_of, require, require_refused

STEPS = 9
ACCURACIES = (0.2, 0.5, 0.95, 0.4)  # of the epochs that a schedule by fit is shown
NUMBER = "_number"  # of a source of random numbers, another one in each copy
Move = Callable[[nn.Module], object]


@cache
def _model() -> nn.Module:
    generator = seeded()
    return nn.ModuleDict(
        {
            "random": RandomRouting(4, 2, "sample").build(6, generator=generator),
            "gate": EvoMoe(4).build(6, generator=generator),
            "up": nn.Linear(6, 8),
            "down": nn.Linear(8, 6),
        }
    )


def model() -> nn.Module:
    """What a schedule may act on: routers that draw, a gate that cools, and linear layers."""
    return copy.deepcopy(_model())


def moves(card: Card, steps: int = STEPS) -> list[Move]:
    """Return the calls of a run, in order: (model, step, steps), or `follow(model, accuracies)`."""
    schedule: Any = tiny(card)
    if isinstance(schedule, ByFit):
        lengths = range(len(ACCURACIES) + 1)
        return [lambda m, n=n: schedule.follow(m, ACCURACIES[:n]) for n in lengths]
    return [lambda m, s=s: schedule(m, s, steps) for s in range(steps)]


def state(of: nn.Module) -> dict[str, Any]:
    """All that a module is but its identity: its plain attributes, parameters and buffers."""
    plain = (bool, int, float, str)
    found: dict[str, Any] = {}
    for path, module in of.named_modules():
        values = {n: v for n, v in vars(module).items() if isinstance(v, plain) and n != NUMBER}
        found |= {f"{path}.{name}": value for name, value in values.items()}
    return found | {name: tensor.clone() for name, tensor in of.state_dict().items()}


def _after(calls: list[Move], of: nn.Module | None = None) -> nn.Module:
    found = model() if of is None else of
    for call in calls:
        call(found)
    return found


def _differ(one: nn.Module, two: nn.Module) -> list[str]:
    """Names of what differs between two models."""
    theirs = state(two)
    found: list[str] = []
    for name, ours in state(one).items():
        other = theirs[name]
        same = torch.equal(ours, other) if isinstance(ours, Tensor) else ours == other
        found += [] if same else [name]
    return found


def _require_same(one: nn.Module, two: nn.Module, what: str, fix: str) -> None:
    differ = _differ(one, two)
    require(not differ, f"{what} that differ in {differ}", "the same", fix)


def sets_something(card: Card) -> None:
    """Somewhere along the run the model is not what it was."""
    fresh = _after([])
    shown = any(_differ(fresh, _after([move])) for move in moves(card))
    require(shown, "a model as it was", "a change", "Set what the step decides.")


def depends_on_the_step_alone(card: Card) -> None:
    """A model at a step is the same, whether the steps before were called, once, twice or never."""
    calls = moves(card)
    fix = "Remember nothing between the steps."
    for n, call in enumerate(calls):
        alone = _after([call])
        _require_same(_after(calls[: n + 1]), alone, f"models at step {n}", fix)
        _require_same(_after([call, call]), alone, f"steps {n} called twice", fix)


def resumes_from_a_state_dict(card: Card) -> None:
    """A fresh model with the saved tensors, called at the next step, is the one that went on."""
    calls = moves(card)
    for n in range(1, len(calls)):
        run, again = _after(calls[:n]), _after([])
        again.load_state_dict(read_again(run.state_dict()))
        again, run = (_after(calls[n : n + 1], m) for m in (again, run))
        _require_same(again, run, "resumed models", "Let the step, or a buffer, decide.")


def ends_alike(card: Card) -> None:
    """Where it ends does not depend on how many steps there are."""
    short, long = (_after(moves(card, steps)[-1:]) for steps in (7, 70))
    for one in (short, long):
        one.get_buffer("gate.clock").zero_()  # it counts the steps themselves
    _require_same(short, long, "ends of short and long runs", "Reach the end at the last step.")


def refuses_a_step_outside(card: Card) -> None:
    """Steps count from 0 to steps - 1; a schedule by fit has none."""
    schedule: Any = tiny(card)
    if isinstance(schedule, ByFit):
        return
    for step in (-1, STEPS):
        call, got = partial(schedule, model(), step, STEPS), f"step {step} of {STEPS} taken"
        require_refused(call, got, "a ConfigError", "Check the step.")


def draws_nothing_of_torch_s(card: Card) -> None:
    """torch's own generator is where it was."""
    with torch_seed(0):
        fresh = _after([])
        before = torch.get_rng_state()
        _after(moves(card), fresh)
        same = torch.equal(torch.get_rng_state(), before)
    require(same, "numbers drawn", "none", "Pass a generator in.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
