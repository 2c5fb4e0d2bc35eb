"""Laws of a schedule: its values follow from the step, or from the record, and nothing else."""

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
    """Build the tests' model: a random router, a gate of EvoMoE, and two linear maps."""
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
    """Return a model with what a schedule may set: routers, a cooling gate, linear layers."""
    return copy.deepcopy(_model())


def moves(card: Card, steps: int = STEPS) -> list[Move]:
    """Return the calls that a schedule makes in a training of `steps` steps, in order.

    Each call takes a model and changes it as schedule(model, step, steps) does. A schedule of the
    type `ByFit` goes by accuracies instead: its calls do schedule.follow(model, the first n of
    ACCURACIES), n = 0, 1, ...
    """
    schedule: Any = tiny(card)
    if isinstance(schedule, ByFit):
        lengths = range(len(ACCURACIES) + 1)
        return [lambda m, n=n: schedule.follow(m, ACCURACIES[:n]) for n in lengths]
    return [lambda m, s=s: schedule(m, s, steps) for s in range(steps)]


def state(module: nn.Module) -> dict[str, Any]:
    """Return what decides how a module computes: attributes, parameters and buffers, by name."""
    plain = (bool, int, float, str)
    attributes: dict[str, Any] = {}
    for path, part in module.named_modules():
        # a copy of a random source has another number, which is no state
        # plain values alone: modules and tensors have entries of their own
        values = {n: v for n, v in vars(part).items() if isinstance(v, plain) and n != NUMBER}
        attributes |= {f"{path}.{name}": value for name, value in values.items()}
    return attributes | {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _applied(calls: list[Move], start: nn.Module | None = None) -> nn.Module:
    module = model() if start is None else start
    for call in calls:
        call(module)
    return module


def _differ(first: nn.Module, second: nn.Module) -> list[str]:
    """Return the names of the attributes, parameters and buffers that differ between two models."""
    theirs = state(second)
    differing: list[str] = []
    for name, ours in state(first).items():
        their_value = theirs[name]
        equal = torch.equal(ours, their_value) if isinstance(ours, Tensor) else ours == their_value
        differing += [] if equal else [name]
    return differing


def _require_same(first: nn.Module, second: nn.Module, name: str, fix: str) -> None:
    differ = _differ(first, second)
    require(not differ, f"{name} that differ in {differ}", "the same", fix)


def sets_something(card: Card) -> None:
    """Check that the schedule changes the model at some step."""
    fresh = _applied([])
    changes = any(_differ(fresh, _applied([move])) for move in moves(card))
    require(changes, "a model as it was", "a change", "Set what the step decides.")


def depends_on_the_step_alone(card: Card) -> None:
    """Check that what the schedule sets at a step does not depend on earlier calls."""
    calls = moves(card)
    fix = "Remember nothing between the steps."
    for n, call in enumerate(calls):
        # alone: without the steps before; twice: as a loop that retries a step
        alone = _applied([call])
        _require_same(_applied(calls[: n + 1]), alone, f"models at step {n}", fix)
        _require_same(_applied([call, call]), alone, f"steps {n} called twice", fix)


def resumes_from_a_state_dict(card: Card) -> None:
    """Check that a model loaded from saved tensors continues under the schedule as saved."""
    calls = moves(card)
    for n in range(1, len(calls)):
        run, again = _applied(calls[:n]), _applied([])
        again.load_state_dict(read_again(run.state_dict()))
        again, run = (_applied(calls[n : n + 1], m) for m in (again, run))
        _require_same(again, run, "resumed models", "Let the step, or a buffer, decide.")


def ends_alike(card: Card) -> None:
    """Check that the schedule's last step gives the same model in trainings of 7 and 70 steps."""
    # only the last call of each training
    short, long = (_applied(moves(card, steps)[-1:]) for steps in (7, 70))
    for end in (short, long):
        end.get_buffer("gate.clock").zero_()  # it counts the steps themselves
    _require_same(short, long, "ends of short and long runs", "Reach the end at the last step.")


def refuses_a_step_outside(card: Card) -> None:
    """Check that the schedule refuses a step outside 0 ... steps - 1.

    One of the type `ByFit`, which goes by accuracies and has no steps, is left out.
    """
    schedule: Any = tiny(card)
    if isinstance(schedule, ByFit):
        return
    # steps count from 0, so that STEPS itself is outside
    for step in (-1, STEPS):
        call, got = partial(schedule, model(), step, STEPS), f"step {step} of {STEPS} taken"
        require_refused(call, got, "a ConfigError", "Check the step.")


def draws_nothing_of_torch_s(card: Card) -> None:
    """Check that the schedule does not use torch's own generator."""
    with torch_seed(0):
        fresh = _applied([])
        before = torch.get_rng_state()
        _applied(moves(card), fresh)
        unchanged = torch.equal(torch.get_rng_state(), before)
    require(unchanged, "numbers drawn", "none", "Pass a generator in.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
