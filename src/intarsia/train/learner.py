"""One optimiser step: draws, forward, backward, update. It knows no method and no task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..core.errors import ConfigError, TrainingError
from ..gating import aux_loss, before_step, learned_routers
from ..processes.exchange import Meter
from ..processes.parallelism import WholeModel
from ..processes.units import put_rows
from ..schedules import ByFit, LayerSchedule, Masking, SparseSchedule
from .objectives import Objective, Staged
from .one_pass import Memory, OnePass
from .optimisers import LearningRate, adamw, cosine
from .order import Batch, to_device
from .precision import DTYPES, autocast, slow_attention, written_out
from .settings import Recipe, Schedule, Training
from .tasks import Task


class NotFinite(TrainingError):
    """A loss or a gradient that is no number: the run's settings cannot be gone on with."""


class Learner:
    """A model with its optimiser, objective and task.

    `model` is the user's; `forward` is the same model wrapped for several processes or compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: nn.Module,
        objective: Objective | Staged | OnePass,
        training: Training,
        recipe: Recipe,
        accelerator: Accelerator,
        task: Task,
    ) -> None:
        """Build the optimiser and what else a step needs: masks, weight average, loss scale."""
        self.model, self.forward, self.objective, self.task = model, forward, objective, task
        self.training, self.recipe, self.accelerator = training, recipe, accelerator
        # masks come first: the optimiser may then hold only the unmasked entries of weights
        masks = recipe.schedule if isinstance(recipe.schedule, SparseSchedule) else None
        self.masking = Masking(masks, model, training.seed) if masks is not None else None
        make = recipe.optimizer or adamw
        make = self.masking.masked.optimizer(make) if self.masking else make
        self.optimizer = make(model, training.rate, training.weight_decay)
        # not always the model's own parameters, see schedules.Entries
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        # rates are set from the step's number alone, so that resuming needs no state of a scheduler
        self.rate = LearningRate(self.optimizer)
        self.average: Average | None = None
        if recipe.ema is not None:
            learns = [p for p in model.parameters() if p.requires_grad]
            self.average = Average(learns, recipe.ema)
        self.memory: Memory | None = None  # of an objective that keeps something of each sample
        self.backward: Callable[[Tensor], object] = Tensor.backward
        # fp16 gradients underflow without a loss scale; bf16 has the range of float32
        scaled = training.precision == "fp16"
        self.scaler = torch.amp.GradScaler(accelerator.device.type) if scaled else None
        dtype = DTYPES[training.precision]
        self.attentions = slow_attention(model, accelerator.device, dtype)
        self.routed = bool(learned_routers(model))
        self.parts = WholeModel()  # the whole model, or this process's part of it
        self.meter = Meter()  # counts bytes sent and time waited for other processes
        self.accuracies: list[float] = []  # of each epoch that ended
        self.recent: list[float] = []  # accuracies of the batches since

    def remember(self, samples: int) -> None:
        """Prepare to store a value for each training sample, if the objective compares epochs.

        Raises: ConfigError in several processes: each would see other samples.
        """
        if not isinstance(self.objective, OnePass):
            return
        if self.accelerator.num_processes > 1:
            got, fix = f"{self.accelerator.num_processes} processes", "Use `pace`, or one process."
            want = "one, which sees each sample again"
            raise ConfigError("objective OnePass", got=got, want=want, fix=fix)
        self.memory = Memory(self.objective, samples)

    def step(
        self,
        batches: Sequence[Batch],
        step: int,
        steps: int,
        positions: Sequence[Sequence[int]] = (),
    ) -> dict[str, float]:
        """Take one optimiser step; return lr, loss, accuracy and the loss's parts, to be logged.

        batches: parts of the step's batch; their gradients are added up; step: number from 0;
          positions: for each part the numbers of its samples in the training data, for an objective
          that stores something for each.
        Raises: TrainingError if the loss or a gradient is not finite; the parameters are then those
          before the step.
        """
        factor = self.recipe.lr_factor or cosine(self.training.warmup)
        # 1. what changes from step to step: the rate, annealed modules, masks, the objective
        lr = self.rate.set(factor(step, steps))
        self._schedule(step, steps)
        objective = self.objective
        if isinstance(objective, Staged):
            objective = objective.at(step, steps)
        # 2. forward and backward of each part; gradients add up
        names: list[str] = []
        total: Tensor | None = None
        shares = self._shares([self.task.count(batch) for batch in batches])
        for i, (batch, share) in enumerate(zip(batches, shares, strict=True)):
            last = i == len(batches) - 1
            if self.memory is not None:
                objective = self.memory.of(positions[i])
            # processes exchange gradients once a step, in the backward of the last part
            wait = nullcontext() if last else self.accelerator.no_sync(self.forward)
            with wait, written_out(self.attentions):
                terms = self._backward(objective, batch, share)
            names = list(terms)
            # one tensor, so that the device is waited for once a step and not for each value
            values = torch.stack(list(terms.values())) * share
            total = values if total is None else total + values
        assert total is not None
        if self.accelerator.num_processes > 1:
            total = self._mean(total)
        # 3. the update, refused if loss or gradient is not finite
        logged = dict(zip(names, total.tolist(), strict=True))
        self._update(logged["loss"], step, steps)
        if self.average is not None:
            self.average.add()
        self.recent += [logged["accuracy"]] if "accuracy" in logged else []
        return {"lr": lr, **logged}

    def _schedule(self, step: int, steps: int) -> None:
        """Announce the coming step to the model's modules and to the schedule."""
        before_step(self.model, step, steps)
        schedule = self.recipe.schedule
        if self.masking:
            self.masking.before(step, steps)
            # each process draws the first masks on its own: they must have come out alike
            if step == 0:
                self._same_masks()
        elif isinstance(schedule, ByFit):
            schedule.follow(self.model, self.accuracies)
        elif schedule is not None and not isinstance(schedule, LayerSchedule):
            cast(Schedule, schedule)(self.model, step, steps)

    def _same_masks(self) -> None:
        if self.masking and self.accelerator.num_processes > 1:
            digests = gather_object([self.masking.digest()])
            if len(set(digests)) > 1:
                fix = "Run all processes on machines of one kind, with one version of torch."
                got = f"{len(set(digests))} kinds in {len(digests)} processes"
                raise TrainingError("masks", got=got, want="the same in all", fix=fix)

    def end_epoch(self) -> None:
        """Store the mean training accuracy of the epoch."""
        if self.recent:
            self.accuracies.append(sum(self.recent) / len(self.recent))
        self.recent = []

    def _shares(self, counts: Sequence[int]) -> list[float]:
        """Return the weight of each part of a batch in the step's loss."""
        mean = float(sum(counts))
        if self.accelerator.num_processes > 1:  # rows of tokens differ in length
            local = torch.tensor(mean, device=self.accelerator.device)
            mean = float(self._mean(local))
        return [count / mean if mean else 0.0 for count in counts]

    def _mean(self, local: Tensor) -> Tensor:
        """Return the mean of a value over the processes."""
        with self.meter.waiting():
            return cast(Tensor, self.accelerator.reduce(local, "mean"))

    def _backward(self, objective: Objective, batch: Batch, share: float) -> dict[str, Tensor]:
        """Compute the loss of a part of a batch and add its gradients; return the logged values."""
        device = self.accelerator.device
        self.task.check(batch[1])
        batch = to_device(batch[0], device), batch[1].to(device, non_blocking=True)
        with autocast(device, DTYPES[self.training.precision]):
            outcome = self.task.loss(self.forward, batch, objective)
        loss, parts = outcome.loss, dict(outcome.parts)
        if self.routed:
            parts["auxiliary"] = aux_loss(self.model)
            loss = loss + parts["auxiliary"]
        values = {"loss": loss, **self.task.noted(outcome.logits, batch), **parts}
        # the logged values are of the whole part, the gradient is weighed
        loss = loss * share
        self.backward(self.scaler.scale(loss) if self.scaler else loss)
        return {name: value.detach().float() for name, value in values.items()}

    def _update(self, loss: float, step: int, steps: int) -> None:
        """Take one optimiser step with the gradients that were added up, then clear them."""
        if not math.isfinite(loss):
            self._refuse("loss", loss, step)
        if self.scaler:
            # the norm, and clipping by it, are of gradients without the scale
            self.scaler.unscale_(self.optimizer)
        regrows = self.masking is not None and self.masking.replaces(step, steps)
        # of all weights, other processes' experts included
        norm = self.parts.norm(self.parameters, self.meter)
        # a scaler looks at the gradients itself, skips the step and lowers its scale
        if not self.scaler and not bool(torch.isfinite(norm)):
            self._refuse("gradient norm", float(norm), step)
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.clip, norm)
        # a step that moves the mask uses the gradient for regrowth and leaves the weights alone
        if self.masking and regrows:
            self.masking.regrow(step, steps)
            self._same_masks()
            if self.scaler:
                self.scaler.update()
        elif self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def reshard(self, step: int, best: dict[str, Tensor] | None) -> None:
        """Move experts between processes, if the strategy of expert parallelism plans it now.

        best: path -> value of the weights in the best epoch, which are moved along, as are the
          optimiser's states.
        """
        for path, weight, move in self.parts.moves(step):
            for key, value in self.optimizer.state.get(weight, {}).items():
                # moments have a row for each expert; a step count has none
                if isinstance(value, Tensor) and value.dim() == weight.dim():
                    self.optimizer.state[weight][key] = move(value)
            if best is not None:
                best[path] = move(best[path])
            put_rows(weight, move(weight))

    def _refuse(self, subject: str, got: float, step: int) -> None:
        """Clear the gradients and raise NotFinite."""
        self.optimizer.zero_grad(set_to_none=True)
        as_before = "The model and the last checkpoint are as they were before this step."
        fix = f"Lower lr, clip the gradients (clip=1.0), or look for broken images. {as_before}"
        raise NotFinite(f"{subject} at step {step + 1}", got=got, want="a finite number", fix=fix)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: optimiser, loss scale, masks, average, memory."""
        scaler = self.scaler.state_dict() if self.scaler else None
        fit = {"accuracies": self.accuracies, "recent": self.recent}
        masks = self.masking.state() if self.masking else None
        optimizer = self.parts.optimizer_pieces(self.optimizer.state_dict(), self.parameters)
        base = {"optimizer": optimizer, "scaler": scaler, "fit": fit}
        optional = {"average": self.average, "memory": self.memory}
        extras = {name: part.state() for name, part in optional.items() if part is not None}
        return base | ({"masks": masks} if masks else {}) | extras

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state that `state` returned."""
        if self.masking:
            self.masking.load_state(state["masks"])
        optimizer = self.parts.own_optimizer(state["optimizer"], self.parameters)
        self.optimizer.load_state_dict(optimizer)
        self.accuracies, self.recent = state["fit"]["accuracies"], state["fit"]["recent"]
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state(state["average"])
        if self.memory is not None:
            self.memory.load_state(state["memory"])


class Average:
    """a <- d_t a + (1 - d_t) w after step t = 0, 1, ..., from a = w before the first.

    d_t = min(decay, (1 + t) / (10 + t)), so that a short run forgets its start as a long one does.
    The factors are as in TensorFlow's ExponentialMovingAverage with `num_updates`; Polyak and
    Juditsky 1992 is the plain mean. It draws nothing and changes no step.
    parameters: the trained ones.  Not for weights that a mask replaces on the way.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [p.detach().clone() for p in parameters]
        self.steps = 0

    def add(self) -> None:
        """Move the average towards the parameters, once after each step of training."""
        # 0.1 at the first step, so that the starting weights are soon forgotten
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        now: Any = [p.detach() for p in self.parameters]
        get_ema_multi_avg_fn(decay)(self.values, now, self.steps)  # pyright: ignore
        self.steps += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averaged values into the parameters inside the context; then restore them."""
        # copies: the averages go into the parameters' own memory, which the optimiser holds
        latest = [p.detach().clone() for p in self.parameters]
        self.keep()
        try:
            yield
        finally:
            _copy_into(self.parameters, latest)

    def keep(self) -> None:
        """Put the averaged values into the parameters for good."""
        _copy_into(self.parameters, self.values)

    def state(self) -> dict[str, Any]:
        return {"values": list(self.values), "steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        _copy_into(self.values, state["values"])
        self.steps = state["steps"]


@torch.no_grad()
def _copy_into(into: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)
