"""Weights that are 0 and stay so through a training: masks of gradients, weights and moments."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ..core import Partition
from ..core.errors import CheckpointError, ConfigError, TrainingError
from ..kernels.experts import stacked_matrices
from .entries import Entries
from .masked_layers import masked_weights
from .phases import Make, hooked

STORES = ("dense", "vectors")
REFUSED = ("amsgrad",)  # settings of an optimiser that remember more than the step allows

Weights = Mapping[str, nn.Parameter]
Masks = dict[str, Tensor]  # parameter -> bool, True = kept


@runtime_checkable
class SparseSchedule(Protocol):
    """Settings of a training with masks: which weights, and when the masks change.

    layers: globs of layers' paths, "1x1" for pointwise convolutions, "tables" for embeddings; None
    = all linear maps and convolutions that are not grouped.  store: see `Masked`.
    memory: b; 0 = gradients of the step alone.  density_at: the density that a step asks for, None
    where it stays as it is.
    reads_gradients: masks change after the backward of a step, by its dense gradients and instead
    of its update (RigL); else before its forward.  begin: the masks at the start, one part.
    due: whether masks change at a step.  update: the new masks, exact where they promise a density,
    by the gradients of the step; of a schedule with a `memory` b by m = b m + (1 - b) |g| of all
    steps so far.
    """

    @property
    def layers(self) -> Sequence[str] | None: ...
    @property
    def store(self) -> str:
        """Form of the optimiser's states, "dense" or "vectors", see `Masked`."""
        ...

    @property
    def reads_gradients(self) -> bool:
        """True if masks change by the gradients of a step and instead of its update, as in RigL."""
        ...

    @property
    def memory(self) -> float:
        """Share of the old in the running mean of gradients that `update` gets."""
        return 0.0  # gradients of the step alone

    def begin(self, weights: Weights, generator: torch.Generator) -> Partition:
        """Choose the masks at the start of training, one part; generator: of random choices."""
        ...

    def due(self, step: int, steps: int) -> bool:
        """Return True if the masks change at a step of so many."""
        ...

    def update(
        self,
        weights: Weights,
        masks: Masks,
        gradients: Mapping[str, Tensor],
        progress: tuple[int, int],
        generator: torch.Generator,
    ) -> Masks:
        """Choose new masks, by the gradients of the step; progress: (step, number of steps)."""
        ...

    def density_at(self, step: int, steps: int) -> float | None:
        """Return the density that a step asks for; None where it stays as it is."""
        return None


class Masked:
    """Weights outside a partition are 0 and stay 0, with their gradients and optimiser states.

    partition: one part, of the names of `weights`.  store: "dense", the optimiser holds states of
    the weights' shapes; "vectors", it holds the states of the kept weights only (`Entries`), in one
    process, for densities below about 0.3.

    masked = Masked(weights, partition)
    optimizer = masked.optimizer(make)(model, lr, weight_decay)
    with masked.training():
        loss.backward(); masked.mask_gradients(); clip; optimizer.step()

    Weights are set to 0 at once. After each step every state of the weight's shape is masked, too.
    Raises: ConfigError for an unknown store, or masks of other weights; for an optimiser with
    `amsgrad`; TrainingError for one with states of other shapes, by name.
    """

    def __init__(self, weights: Weights, partition: Partition, store: str = "dense") -> None:
        if store not in STORES:
            raise ConfigError("store", got=repr(store), want=f"one of {STORES}", fix="Pick one.")
        # gradients are gathered by hooks of one process, which an all-reduce does not see
        ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if store == "vectors" and ranks > 1:
            fix = "Use store='dense': gradients are gathered in one process only."
            raise ConfigError("store 'vectors'", got=f"{ranks} processes", want="one", fix=fix)
        if set(weights) != set(partition.label) or partition.parts != 1:
            got = f"{partition.parts} parts of {sorted(partition.label)[:3]} ..."
            want, fix = "one part of the same weights", "Choose the masks for these weights."
            raise ConfigError("masks", got=got, want=want, fix=fix)
        self.weights, self.store = dict(weights), store
        self.kept: Masks = {}
        self.entries: Entries | None = None
        self._optimizer: Optimizer | None = None
        self.set({name: partition.mask(name, 0) for name in weights})

    @torch.no_grad()
    def set(self, masks: Mapping[str, Tensor]) -> None:
        """Change the masks: weights outside become 0, newly kept ones keep their value.

        masks: name -> bool, True = kept. Optimiser states of newly kept weights are 0.
        """
        new = {n: masks[n].to(w.device) for n, w in self.weights.items()}
        grown = {n: new[n] & ~self.kept[n] for n in self.kept}
        self.kept = new
        for name, weight in self.weights.items():
            weight.masked_fill_(~new[name], 0)
        if self.store == "vectors":
            # flat positions of the kept entries, in rising order
            index = {self.weights[n]: k.flatten().nonzero().flatten() for n, k in new.items()}
            if self.entries is None:
                self.entries = Entries(index)
            else:
                self.entries.move(index, self._optimizer)
        self._mask_states(grown)

    def density(self) -> float:
        """Return the share of these weights that is kept."""
        # over all weights together, not the mean over layers
        total = sum(mask.numel() for mask in self.kept.values())
        return sum(int(mask.sum()) for mask in self.kept.values()) / max(1, total)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Gather the gradients of the kept weights inside the context, if only these are stored.

        With store="vectors" the optimiser steps a short vector of each parameter's kept weights;
        here their gradients are copied into those vectors. With "dense" nothing is done.
        """
        if self.entries is None:
            yield
        else:
            with self.entries.training():
                yield

    def optimizer(self, make: Make) -> Make:
        """Return a factory of optimisers that apply the masks before and after every step.

        make: f(model, lr, weight_decay) makes the optimiser; the result is such a function, too. It
          raises ConfigError for an optimiser with a setting in REFUSED.
        """
        inner = make if self.entries is None else self.entries.optimizer(make)

        def factory(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
            """Make the optimiser and remember it.  Raises: ConfigError for a setting in REFUSED."""
            optimizer = inner(model, lr, weight_decay)
            # such an optimiser remembers the largest moment, which a mask cannot undo
            for name in REFUSED:
                if any(group.get(name) for group in optimizer.param_groups):
                    got = f"{type(optimizer).__name__}({name}=True)"
                    want = "states that can be masked weight by weight"
                    fix = f"Leave {name} out."
                    raise ConfigError("optimizer", got=got, want=want, fix=fix)
            self._optimizer = optimizer
            return optimizer

        return hooked(factory, before=self.mask_gradients, after=self._mask_after_step)

    def mask_gradients(self, *_: Any) -> None:
        """Set the gradients of weights that are not kept to 0, before gradients are clipped.

        _: the arguments of an optimiser's hook, unused.
        """
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(~self.kept[name], 0)

    @torch.no_grad()
    def _mask_after_step(self, *_: Any) -> None:
        """Set weights and optimiser states outside the masks to 0 after a step."""
        # with store="vectors" the optimiser has only the kept weights and their states
        if self.entries is None:
            for name, weight in self.weights.items():
                weight.masked_fill_(~self.kept[name], 0)
            self._mask_states({})  # none has just been grown

    @torch.no_grad()
    def _mask_states(self, grown: Mapping[str, Tensor]) -> None:
        """Set the optimiser states of weights outside the masks, and of newly kept ones, to 0."""
        if self._optimizer is None or self.entries is not None:
            return
        for name, weight in self.weights.items():
            away = ~self.kept[name] | grown[name] if name in grown else ~self.kept[name]
            for key, value in self._optimizer.state.get(weight, {}).items():
                # scalars, such as a step counter, belong to no weight
                if isinstance(value, Tensor) and value.dim():
                    if value.shape != weight.shape:
                        kind = type(self._optimizer).__name__
                        got = f"state {key!r} of {kind}, of shape {tuple(value.shape)}"
                        want = f"states of {name!r}'s shape, {tuple(weight.shape)}"
                        fix = "Use AdamW or SGD, whose states can be masked weight by weight."
                        raise TrainingError("masked training", got=got, want=want, fix=fix)
                    value.masked_fill_(away, 0)


class Masking:
    """A `SparseSchedule` at work on a model: its masks, its counter and its generator.

    The schedule sees each expert of a stack as a weight of its own, "mlp.experts.up.3".
    """

    def __init__(self, schedule: SparseSchedule, model: nn.Module, seed: int) -> None:
        """Choose the first masks of a model's weights, and set the other weights to 0."""
        self.schedule = schedule
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = masked_weights(model, schedule.layers)
        # weights of several experts in one tensor, (E, out, in), by name
        self.stacks = frozenset(
            f"{path}.{name}".lstrip(".")
            for path, module in model.named_modules()
            for name in stacked_matrices(module)
        )
        # the schedule chooses a mask for each expert; joined, they are the mask of the whole tensor
        start = schedule.begin(self._unstack(self.weights), self.generator)
        label = self._restack(start.label)
        start = start if label.keys() == start.label.keys() else Partition(label, start.parts)
        self.masked = Masked(self.weights, start, schedule.store)
        self.history: list[dict[str, float]] = []  # one entry for each change
        # which weights were kept at any time
        self.ever = {name: mask.clone() for name, mask in self.masked.kept.items()}
        self.memory = schedule.memory
        self.seen: dict[str, Tensor] = {}  # running means of |g|, of a schedule with a memory

    def before(self, step: int, steps: int) -> None:
        """Change the masks before a step's forward, if the schedule does so at this step.

        A schedule that chooses by gradients changes them after the backward instead (`regrow`); for
        it this begins to collect the gradients of all weights, also of those that are 0. With a
        `memory`, a running mean of |gradient|, it needs them in every step.
        step: counted from 0; steps: number of steps of the whole training.
        """
        due = self.schedule.due(step, steps)
        if self.schedule.reads_gradients and (due or self.memory):
            self._collect_gradients({})  # the backward fills this empty dict
        elif due:
            self._change({}, (step, steps))

    def replaces(self, step: int, steps: int) -> bool:
        """Mask a step's gradients; return True if `regrow` is due instead of the optimiser's step.

        With True the loop calls `regrow` and not the optimiser. The running means of |gradient|, of
        a schedule with a memory, are updated first. step: counted from 0; steps: number in the
        training.
        """
        # m = b m + (1 - b) |g| of every step; an overflowed gradient is left out
        for name, gradient in self._whole_gradients().items() if self.memory else ():
            if bool(torch.isfinite(gradient).all()):
                size = gradient.abs().float()
                before = self.seen.get(name, torch.zeros_like(size))
                self.seen[name] = before.lerp_(size, 1 - self.memory)
        if self.schedule.reads_gradients and self.schedule.due(step, steps):
            return True
        self.masked.mask_gradients()
        return False

    def regrow(self, step: int, steps: int) -> None:
        """Change the masks by the gradients of this step, or by their running means.

        The masks stay as they are if a gradient is not finite, for example after a loss scale that
        was too large. step: counted from 0; steps: number in the training.
        """
        gradients = self.seen if self.memory else self._whole_gradients()
        if all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values()):
            self._change(gradients, (step, steps))
        # whole gradients take memory: collect them only when due
        self._collect_gradients(None)

    def _change(self, gradients: Mapping[str, Tensor], progress: tuple[int, int]) -> None:
        """Let the schedule choose new masks, set them, and record how much changed."""
        unstack = self._unstack
        # gradients: {} for a schedule that needs none; progress: (step, steps)
        masks = self.schedule.update(
            unstack(self.weights),
            unstack(self.masked.kept),
            unstack(gradients),
            progress,
            self.generator,
        )
        before = self.masked.kept
        self.masked.set(self._restack(masks))
        now, total = self.masked.kept, sum(k.numel() for k in before.values())
        # the exchange of this change, and the weights that were kept at any time so far
        new = sum(int((now[n] & ~before[n]).sum()) for n in now)
        for name, mask in now.items():
            self.ever[name] = self.ever[name] | mask
        self.history.append(
            {
                "step": progress[0],
                "density": self.masked.density(),
                "exchanged": new / max(1, sum(int(k.sum()) for k in now.values())),
                "ever": sum(int(k.sum()) for k in self.ever.values()) / max(1, total),
            }
        )

    def pruning(self, step: int, steps: int) -> bool:
        """Return True if the schedule will still prune weights after a step.

        step: number of steps done; steps: number in the whole training.
        """
        # None: the schedule keeps its density
        now = self.schedule.density_at(step - 1, steps)
        end = self.schedule.density_at(steps, steps)
        return now is not None and end is not None and now > end

    @property
    def changes(self) -> int:
        """The number of changes of the masks so far."""
        return len(self.history)

    def report(self) -> dict[str, Any]:
        """Return the history of the masks and each layer's density, for the record of a training.

        Each change has "exchanged", the share of the kept weights that are new, and "ever", the
        share of all weights that were kept at any time so far (in-time over-parameterisation).
        """
        masks = self.masked.kept
        # density is the share of True in a layer's mask
        layers = [
            {"layer": n, "weights": k.numel(), "density": float(k.float().mean())}
            for n, k in masks.items()
        ]
        return {"changes": self.history, "layers": layers}

    def _unstack(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return tensors by name, each stack of experts (E, ...) divided into E tensors."""
        unstacked: dict[str, Any] = {}
        for name, tensor in tensors.items():
            parts = tensor.detach() if name in self.stacks else [tensor]
            keys = [f"{name}.{e}" for e in range(len(parts))] if name in self.stacks else [name]
            unstacked |= dict(zip(keys, parts, strict=True))
        return unstacked

    def _restack(self, tensors: Mapping[str, Tensor]) -> Masks:
        """Join the tensors of single experts to stacks again, the inverse of `_unstack`."""
        return {
            name: torch.stack([tensors[f"{name}.{e}"] for e in range(len(weight))])
            if name in self.stacks
            else tensors[name]
            for name, weight in self.weights.items()
        }

    def _collect_gradients(self, dense: dict[Any, Tensor] | None) -> None:
        """Collect the gradients of whole weights, parameter -> gradient, in a dict; None = stop."""
        # otherwise store="vectors" has only the gradients of the entries that are kept
        if self.masked.entries is not None:
            self.masked.entries.dense = dense

    def _whole_gradients(self) -> dict[str, Tensor]:
        """Return the gradient of each whole weight by name, zeros for a weight without one."""
        # with store="vectors" the whole gradients were moved out of `grad`
        accumulated: Any = self.masked.entries and self.masked.entries.dense
        gradients: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            gradient = weight.grad if accumulated is None else accumulated.get(weight)
            gradients[name] = torch.zeros_like(weight) if gradient is None else gradient.detach()
        return gradients

    def digest(self) -> str:
        """Return a SHA-256 of the masks, by which processes check that theirs are equal."""
        total = hashlib.sha256()
        # the order of the names is the model's, the same in all processes
        for mask in self.masked.kept.values():
            total.update(mask.cpu().numpy().tobytes())
        return total.hexdigest()

    def state(self) -> dict[str, Any]:
        """Return masks, history, running means and generator, as a checkpoint holds them."""
        # clones: the masks may change before the checkpoint is written
        return {
            "schedule": type(self.schedule).__name__,
            "kept": {name: mask.clone() for name, mask in self.masked.kept.items()},
            "ever": {name: mask.clone() for name, mask in self.ever.items()},
            "history": [dict(change) for change in self.history],
            "seen": {name: mean.clone() for name, mean in self.seen.items()},
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned, after the weights and before the optimiser's state.

        Raises: CheckpointError for the masks of another schedule or model.
        """
        expected = {n: tuple(k.shape) for n, k in self.masked.kept.items()}
        saved = {n: tuple(k.shape) for n, k in state["kept"].items()}
        kind = type(self.schedule).__name__
        if expected != saved or state["schedule"] != kind:
            got = f"masks of {len(saved)} weights by {state['schedule']}"
            fix = "Resume with the schedule and the model of the run's start."
            want = f"those of {len(expected)} by {kind}"
            raise CheckpointError("masks", got=got, want=want, fix=fix)
        # first the masks, since the running means and states follow their devices
        self.masked.set(state["kept"])
        self.history = [dict(change) for change in state["history"]]
        device = {n: k.device for n, k in self.masked.kept.items()}
        self.ever = {n: k.to(device[n]) for n, k in state["ever"].items()}
        means = state["seen"]
        self.seen = {n: means[n].to(w.device) for n, w in self.weights.items() if n in means}
        self.generator.set_state(state["generator"])
