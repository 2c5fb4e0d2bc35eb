"""One optimiser step: draws, forward, backward, update. It knows no method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from timm.data.mixup import Mixup
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from torch import Tensor, nn

from ..core.errors import TrainingError
from ..gating import aux_loss, learned_routers
from ..schedules import ByFit
from .evaluate import right
from .objectives import LossOf, Objective, Outcome, Staged, TargetLoss, next_token
from .optimisers import LearningRate
from .order import IGNORED, Batch, Inputs, check_range, to_device
from .precision import DTYPES, autocast, slow_attention, written_out
from .settings import Recipe, Training


class Learner:
    """A model, what moves it, and the loss it is moved by.

    `model` is the user's; `forward` is the same model wrapped for several processes or compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: nn.Module,
        objective: Objective | Staged,
        training: Training,
        recipe: Recipe,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.forward, self.objective = model, forward, objective
        self.training, self.recipe, self.accelerator = training, recipe, accelerator
        self.optimizer = recipe.optimizer(model, training.lr, training.weight_decay)
        # what it moves: not always the model's own parameters, see schedules.Entries
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.rate = LearningRate(self.optimizer)
        scaled = training.precision == "fp16"
        self.scaler = torch.amp.GradScaler(accelerator.device.type) if scaled else None
        dtype = DTYPES[training.precision]
        self.attentions = slow_attention(model, accelerator.device, dtype)
        self.routed = bool(learned_routers(model))
        self.classes = 0  # known after the first look at the model's output
        self.accuracies: list[float] = []  # of each epoch that ended
        self.recent: list[float] = []  # accuracies of the batches since

    def step(self, batches: Sequence[Batch], step: int, steps: int) -> dict[str, float]:
        """Learn from one batch, given as equal parts; returns lr, loss, accuracy and named parts.

        Raises: TrainingError if the loss or a gradient is not finite; the parameters are then
        those before the step.
        """
        lr = self.rate.set(self.recipe.factor(step, steps, self.training.warmup))
        self._schedule(step, steps)
        objective = self.objective
        if isinstance(objective, Staged):
            objective = objective.at(step, steps)
        names: list[str] = []
        total: Tensor | None = None
        shares = self._shares([y for _, y in batches])
        for i, ((x, y), share) in enumerate(zip(batches, shares, strict=True)):
            last = i == len(batches) - 1
            wait = nullcontext() if last else self.accelerator.no_sync(self.forward)
            with wait, written_out(self.attentions):
                found = self._backward(objective, x, y, share)
            names = list(found)
            values = torch.stack(list(found.values())) * share
            total = values if total is None else total + values
        assert total is not None
        if self.accelerator.num_processes > 1:
            total = cast(Tensor, self.accelerator.reduce(total, "mean"))
        logged = dict(zip(names, total.tolist(), strict=True))
        self._update(logged["loss"], step)
        self.recent += [logged["accuracy"]] if "accuracy" in logged else []
        return {"lr": lr, **logged}

    def _schedule(self, step: int, steps: int) -> None:
        schedule = self.recipe.schedule
        if isinstance(schedule, ByFit):
            schedule.follow(self.model, self.accuracies)
        elif schedule is not None:
            schedule(self.model, step, steps)

    def end_epoch(self) -> None:
        """Note how well the epoch's batches were answered."""
        if self.recent:
            self.accuracies.append(sum(self.recent) / len(self.recent))
        self.recent = []

    def _shares(self, labels: Sequence[Tensor]) -> list[float]:
        """What each part counts for, where the mean over processes is the batch's."""
        counts = counts_of(labels)
        mean = float(sum(counts))
        if self.accelerator.num_processes > 1 and labels[0].ndim == 2:  # rows of unequal length
            own = torch.tensor(mean, device=self.accelerator.device)
            mean = float(cast(Tensor, self.accelerator.reduce(own, "mean")))
        return [count / mean if mean else 0.0 for count in counts]

    def _backward(
        self, objective: Objective, x: Inputs, y: Tensor, share: float
    ) -> dict[str, Tensor]:
        device = self.accelerator.device
        check_range(y, self.classes)
        x, loss_of = self._task(to_device(x, device), y := y.to(device, non_blocking=True))
        with autocast(device, DTYPES[self.training.precision]):
            outcome = objective(self.forward, x, loss_of)
        loss = outcome.loss
        if self.routed:
            extra = aux_loss(self.model)
            loss = loss + extra
            outcome = replace(outcome, loss=loss, parts={**outcome.parts, "auxiliary": extra})
        loss = loss * share
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        return self._logged(outcome, y)

    def _logged(self, outcome: Outcome, y: Tensor) -> dict[str, Tensor]:
        values = {"loss": outcome.loss}
        if not (self.recipe.mixup or self.recipe.cutmix):  # a mixed image has no right answer
            hits = right(outcome.logits, y)
            values["accuracy"] = hits.float().sum() / max(1, hits.numel())  # a part may have none
        values |= outcome.parts
        return {name: v.detach().float() for name, v in values.items()}

    def _task(self, x: Inputs, y: Tensor) -> tuple[Inputs, LossOf]:
        """What to look at and the loss of its logits."""
        recipe = self.recipe
        if y.ndim == 2:
            return x, TargetLoss(partial(next_token, label_smoothing=recipe.smoothing), y)
        # timm mixes an image with its mirror place in the batch: an odd tail is left as it is
        if (recipe.mixup or recipe.cutmix) and isinstance(x, Tensor) and len(x) % 2 == 0:
            mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = Mixup(
                recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing,
                num_classes=self.classes,
            )  # fmt: skip
            x, soft = mix(x, y)
            return x, TargetLoss(SoftTargetCrossEntropy(), soft)
        return x, TargetLoss(partial(F.cross_entropy, label_smoothing=recipe.smoothing), y)

    def _update(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            self._refuse("loss", loss, step)
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        # a scaler looks at the gradients itself, skips the step and lowers its scale
        if not self.scaler and not bool(torch.isfinite(norm)):
            self._refuse("gradient norm", float(norm), step)
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.clip, norm)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _refuse(self, what: str, got: float, step: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        raise TrainingError(
            f"{what} at step {step + 1}", got=got, want="a finite number",
            fix="Lower lr, clip the gradients (clip=1.0), or look for broken images. "
            "The model and the last checkpoint are as they were before this step.",
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What the optimiser, the loss scale and a schedule that follows the fit remember."""
        scaler = self.scaler.state_dict() if self.scaler else None
        fit = {"accuracies": self.accuracies, "recent": self.recent}
        return {"optimizer": self.optimizer.state_dict(), "scaler": scaler, "fit": fit}

    def load_state(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        fit = state.get("fit", {})  # checkpoints were once written without
        self.accuracies, self.recent = fit.get("accuracies", []), fit.get("recent", [])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])


def counts_of(labels: Sequence[Tensor]) -> list[int]:
    """What each part of a batch counts for: its rows, or its tokens that have a label."""
    return [int((y[:, 1:] != IGNORED).sum()) if y.ndim == 2 else len(y) for y in labels]
