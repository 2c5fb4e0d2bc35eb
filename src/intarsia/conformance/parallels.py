"""Laws of a strategy for several devices: it is one process, and sends what its plan says.

Four gloo processes, started once, carry out every card's plans.
"""

from __future__ import annotations

import atexit
from functools import lru_cache
from typing import Any

import torch

from ..core import Card
from ..core.errors import ConformanceError, IntarsiaError
from ..parallel.layout import size_of
from ..parallel.processes import Processes
from ..parallel.strategy import Strategy
from ..parallel.trial import LINKS, ExpertTrial, compare_with_one
from ..placement.plan import DevicePlan
from ..placement.timeline import simulate
from .cards import CARD_LAWS, tiny
from .verdict import Broken, Law, laws_of, require


@lru_cache
def processes() -> Processes:
    """Start four processes, once for all tests, and return them; they end with this program."""
    # started once: four processes take seconds to start
    pool = Processes(LINKS.devices)
    atexit.register(pool.close)
    return pool


def _strategy(card: Card) -> Strategy:
    config: Any = tiny(card)
    want, fix = "rows, plan and shard", "See intarsia.parallel.Strategy."
    # a protocol: any class with these methods will do
    require(isinstance(config, Strategy), type(config).__name__, want, fix)
    return config


def _compare(card: Card, *trials: ExpertTrial) -> None:
    """Compare experts shared out among four processes with one process that has them all."""
    for trial in trials:
        try:
            processes().run(compare_with_one, _strategy(card), trial)
        except ConformanceError as error:
            raise Broken(f"{error.what}: {error.got}", error.want, error.fix) from error
        except IntarsiaError as error:
            want, fix = "one process's outputs and gradients", "See the error above."
            raise Broken(f"{type(error).__name__}: {error}", want, fix) from error


def is_one_process(card: Card) -> None:
    """Check the strategy's outputs and gradients against one process, and the bytes it sends."""
    # the integer trial has no rounding, so that equality is exact
    _compare(card, ExpertTrial(past=1))


def is_close_where_sums_are_rounded(card: Card) -> None:
    """Check the strategy against one process within 1e-12, on sums that float64 rounds."""
    # fractions instead of whole numbers, and gated experts with biases
    _compare(card, ExpertTrial(whole=False, bias=True, layers=1))


def takes_whoever_has_nothing(card: Card) -> None:
    """Check the strategy with a process without tokens, and with an expert without tokens."""
    names = ("a process without tokens", "an expert without tokens")
    _compare(card, *(ExpertTrial(name, layers=1) for name in names))


def takes_tokens_of_all_experts_and_of_one(card: Card) -> None:
    """Check the strategy with k = E, the dense mixture, and k = 1 for one and the same expert."""
    _compare(card, *(ExpertTrial(name, layers=1) for name in ("k = E", "one expert")))


def plans_the_same_each_time(card: Card) -> None:
    """Check that the strategy's plan is deterministic, and is the same after JSON.

    Simulated, the plan must take more than 0 seconds.
    """
    trial, strategy = ExpertTrial(), _strategy(card)
    size = size_of(trial.layers_of()[0])
    first = strategy.plan(trial.trace(), size, LINKS, backward=True)
    torch.rand(3)
    again = strategy.plan(trial.trace(), size, LINKS, backward=True)
    require(first.digest() == again.digest(), "another plan", "the same", "Draw nothing.")
    # a plan that is read again must simulate alike on another machine
    read = DevicePlan.from_json(first.to_json())
    require(read.digest() == first.digest(), "another plan when read", "the same", "Use JSON's.")
    seconds = simulate(first, LINKS).seconds
    require(seconds > 0, f"{seconds} s", "more than 0", "Say what is sent and computed.")


def deals_out_every_row(card: Card) -> None:
    """Check that the strategy gives each row a device, or several that hold the same rows."""
    rows = _strategy(card).rows(ExpertTrial().trace(), LINKS.devices)
    # several devices may hold the same rows, as tensor parallelism has it
    fits = rows.shape[0] == LINKS.devices and bool(rows.any(0).all())
    require(fits, "rows of no device", "each on one or more", "Deal out all sequences.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
