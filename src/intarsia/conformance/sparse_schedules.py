"""Laws of a schedule of masks: as dense as it says at every step, zeros everywhere, resumable."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ..core import Card
from ..core.registry import settings_to_dict
from ..schedules import Masking
from .cards import CARD_LAWS, tiny
from .made import normal, read_again, torch_seed
from .verdict import Broken, Law, laws_of, require, require_close

STEPS = 8


def net(sparse: bool = True) -> nn.Module:
    """Return a convolution and two linear maps; sparse: a third of their weights is 0."""
    with torch_seed(0):
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 6),
            nn.Tanh(),
            nn.Linear(6, 3),
        )
    with torch.no_grad():
        for p in model.parameters():
            if sparse and p.dim() > 1:
                p.view(-1)[::3] = 0
    return model


def adamw(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Return AdamW over all parameters of a model."""
    return AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)


class MaskedRun:
    """A training of `net` in steps, as the loop does them."""

    def __init__(self, schedule: Any, model: nn.Module, seed: int = 0) -> None:
        """Begin a training of a net of `net` under a schedule of masks, with AdamW."""
        self.model, self.masking = model, Masking(schedule, model, seed)
        self.optimizer = self.masking.masked.optimizer(adamw)(model, 0.05, 0.1)

    def step(self, step: int) -> None:
        """Make one step of the training, as the training loop does.

        step: its number, from 0. At some steps a schedule that reads gradients changes the masks
        (`regrow`); the optimiser then makes no step.
        """
        # the order of the training loop: masks, forward, backward, then a change of masks or a step
        with self.masking.masked.training():
            self.masking.before(step, STEPS)
            self.model(normal(5, 2, 4, 4, seed=step)).square().sum().backward()
            if self.masking.replaces(step, STEPS):
                self.masking.regrow(step, STEPS)
            else:
                self.optimizer.step()
            self.optimizer.zero_grad()

    def to(self, stop: int, start: int = 0) -> MaskedRun:
        """Make the steps from `start` up to `stop`, `stop` excluded; return the run."""
        for step in range(start, stop):
            self.step(step)
        return self

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the weights, by name."""
        return {n: p.detach().clone() for n, p in self.model.named_parameters()}


def _differ(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    return [n for n in first if not torch.equal(first[n], second[n])]


def is_as_dense_as_it_says(card: Card) -> None:
    """Check that the schedule ends with its density, and changes masks only when `due` is True."""
    schedule = tiny(card)
    run = MaskedRun(schedule, net())
    before = {n: k.clone() for n, k in run.masking.masked.kept.items()}
    for step in range(STEPS):
        run.step(step)
        after = run.masking.masked.kept
        due = schedule.due(step, STEPS)
        holds = due or not _differ(before, after)
        require(holds, f"masks that change at step {step}", "the same", "Say that it is due.")
        before = {n: k.clone() for n, k in after.items()}
    density = settings_to_dict(schedule).get("density")
    if density is not None:
        count, total = (sum(int(f(k)) for k in before.values()) for f in (torch.sum, torch.numel))
        # each layer rounds its own number of weights
        off = abs(count - density * total)
        got, want = f"{count} of {total} kept", f"density {density}"
        require(off <= len(before), got, want, "Round once a layer.")


def keeps_zeros_everywhere(card: Card) -> None:
    """Check that after each step weights, and the optimiser's moments, are 0 outside the masks.

    Weights inside must change in the training.
    """
    run = MaskedRun(tiny(card), net())
    for step in range(STEPS):
        run.step(step)
        for name, weight in run.masking.weights.items():
            mask = run.masking.masked.kept[name]
            # moments of a dropped weight would bring it back in a later step
            states = run.optimizer.state.get(weight, {}).values()
            for value in (weight.detach(), *(v for v in states if v.shape == weight.shape)):
                away = int(value[~mask].count_nonzero())
                require(not away, f"{away} numbers in {name!r}", "0 outside", "Mask them.")
    moved = _differ(run.weights(), dict(net().named_parameters()))
    require(bool(moved), "weights that stay", "a training", "Mask only the others.")


def stores_vectors_alike(card: Card) -> None:
    """Check that training is the same, up to rounding, if only the kept weights are stored."""
    dense = MaskedRun(tiny(card), net()).to(STEPS).weights()
    # only the kept weights are stored, as a vector for each layer
    vectors = MaskedRun(replace(tiny(card), store="vectors"), net()).to(STEPS).weights()
    for name, value in dense.items():
        require_close(vectors[name], value, f"{name} of vectors", "Move the states along.")


def resumes_from_its_state(card: Card) -> None:
    """Check that the schedule's training, resumed from its state, ends in the same bits."""
    for store in ("dense", "vectors"):
        schedule = replace(tiny(card), store=store)
        uninterrupted = MaskedRun(schedule, net()).to(STEPS).weights()
        for stop in (1, STEPS // 2):
            first = MaskedRun(schedule, net()).to(stop)
            state = copy.deepcopy((first.masking.state(), first.optimizer.state_dict()))
            # another seed, so that masks and draws can only come from the state
            again = MaskedRun(schedule, net(), seed=9)
            again.model.load_state_dict(read_again(first.model.state_dict()))
            again.masking.load_state(state[0])
            again.optimizer.load_state_dict(state[1])
            differ = _differ(again.to(STEPS, stop).weights(), uninterrupted)
            fix = "Keep masks, counter and generator in the state."
            require(not differ, f"other {differ} from step {stop}, {store}", "the same", fix)


def leaves_a_dense_run_alone(card: Card) -> None:
    """Check that the schedule with density=1 is the plain training, bit for bit.

    A schedule without a density is left out.
    """
    if "density" not in settings_to_dict(tiny(card)):
        return
    weights = MaskedRun(replace(tiny(card), density=1.0), net(sparse=False)).to(STEPS).weights()
    plain = net(sparse=False)
    optimizer = adamw(plain, 0.05, 0.1)
    for step in range(STEPS):
        plain(normal(5, 2, 4, 4, seed=step)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    differ = _differ(weights, dict(plain.named_parameters()))
    require(not differ, f"other {differ}", "the plain run's", "Change nothing at density 1.")


def draws_of_its_own_generator(card: Card) -> None:
    """Check that the schedule gives one training for one seed, whatever torch's generator does."""
    runs: list[dict[str, Tensor]] = []
    for seed in (1, 2):
        with torch_seed(seed):
            runs.append(MaskedRun(tiny(card), net()).to(STEPS).weights())
    if differ := _differ(*runs):
        raise Broken(f"other {differ}", "the same bits from one seed", "Draw from `generator`.")


LAWS: tuple[Law, ...] = (*CARD_LAWS, *laws_of(__name__))
