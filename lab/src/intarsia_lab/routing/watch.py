"""The course of a training: loss on the validation part, loads, entropies, pairs, time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from intarsia.core import Routing
from intarsia.mixtures import Mixture
from intarsia.train import evaluate

from .cost import Price, mixtures, price
from .measures import gate_entropy, variation


class WatchedMixture:
    """The counts of one mixture in training, since `forget` and since the beginning."""

    def __init__(self, mixture: Mixture) -> None:
        """Start the counts of a mixture's pairs, loads and seconds at 0."""
        self.pairs = 0
        self.seconds = {"mixture": 0.0, "router": 0.0}
        self.last: Routing | None = None
        self.load = torch.zeros(mixture.experts.experts, dtype=torch.int64)
        self.rows = 0

    def forget(self) -> None:
        self.load, self.rows = torch.zeros_like(self.load), 0

    def told(self) -> dict[str, float]:
        """Return load variation, active experts and gate entropy since `forget` was called.

        The entropy is the newest routing's.
        """
        routing = self.last
        return {
            "load_cv": variation(self.load),
            # experts of a token, on average
            "active": int(self.load.sum()) / max(1, self.rows),
            "gate_entropy": 0.0 if routing is None else gate_entropy(routing),
        }


class Watch:
    """Called before each step, as `fit`'s schedule; it changes nothing.

    At each of the marks, and by `note`, a point is added: step, loss on the validation part,
    operations spent, and what each layer has to say. first: the steps before this training.
    """

    def __init__(
        self,
        model: nn.Module,
        val: TensorDataset,
        *,
        batch: int,
        marks: Sequence[int],
        first: int = 0,
        spent: float = 0.0,
    ) -> None:
        """Prepare to record validation losses and loads while a model trains.

        model: is trained; val: validation part; batch: rows at a time; marks: steps at which a
          point is recorded, counted from the first training; first: the number of steps of a
          training before this one, 0 = none; spent: the number of operations of that training.
        """
        self.model, self.val, self.batch = model, val, batch
        self.marks, self.first, self.before = frozenset(marks), first, spent
        self.layers = {path: WatchedMixture(m) for path, m in mixtures(model).items()}
        # counted once: operations of a row and of a pair
        self.price: Price = price(model, val.tensors[0][:2])
        self.points: list[dict[str, Any]] = []

    def __call__(self, model: nn.Module, step: int, steps: int) -> None:
        # not before the first step, when nothing was learned
        if self.first + step in self.marks and step:
            self.note(step)

    def note(self, step: int) -> None:
        """Record a point: validation loss, loads and operations.  step: number in this training."""
        scores: Any = evaluate(self.model, self.val, batch_size=max(32, self.batch))
        self.points.append(
            {
                "step": self.first + step,
                # with an earlier dense training's
                "flops": self.before + self.spent(step)["total"],
                "loss": scores.loss,
                "layers": [layer.told() for layer in self.layers.values()],
            }
        )
        for layer in self.layers.values():
            layer.forget()

    def spent(self, steps: int) -> dict[str, float]:
        """Return the operations of this training's first `steps` steps, by part and in total."""
        return self.price.spent(steps * self.batch, [x.pairs for x in self.layers.values()])

    @property
    def router_share(self) -> float:
        """The share of the mixtures' forward time that their routers take."""
        total, routers = (
            sum(layer.seconds[part] for layer in self.layers.values())
            for part in ("mixture", "router")
        )
        return routers / total if total else 0.0

    @contextmanager
    def watching(self):  # noqa: ANN201
        """Count and time forwards in training while the context is open."""
        with ExitStack() as stack:
            for path, mixture in mixtures(self.model).items():
                # removed at the end of the context
                for hook in _hooks(mixture, self.layers[path]):
                    stack.callback(hook.remove)
            yield self


def _hooks(mixture: Mixture, layer: WatchedMixture) -> list[Any]:
    """Register the hooks that time a mixture and count its pairs; return their handles."""
    # part -> the time at which its newest forward began
    begun: dict[str, float] = {}

    def start(part: str) -> Callable[..., None]:
        """Return a hook that records when a part begins.  part: "mixture" or "router"."""

        def begin(*_: Any) -> None:
            begun[part] = time.perf_counter()

        return begin

    def stop(part: str) -> Callable[..., None]:
        """Return a hook that adds the time since a part began.  part: "mixture" or "router"."""

        def end(module: nn.Module, *_: Any) -> None:
            if module.training:
                layer.seconds[part] += time.perf_counter() - begun[part]

        return end

    def routed(router: nn.Module, _: Any, routing: Routing) -> None:
        """Record the router's newest routing and its loads; a hook after the router's forward."""
        if router.training:
            layer.last = routing
            layer.load += routing.load().cpu()
            layer.rows += routing.tokens

    def count(module: nn.Module, args: tuple[Tensor], _: Any) -> None:
        """Count the (token, expert) pairs that were not dropped, after the mixture's forward."""
        if module.training and layer.last is not None:
            # the mixture keeps its routing only where a capacity changed it
            served = layer.last if mixture.taken is None else mixture.taken
            rows = args[0][..., 0].numel()
            layer.pairs += len(served.token) * rows // max(1, served.tokens)  # each sample's rows

    # the router's hooks run within the mixture's forward, so that `count` finds the routing
    return [
        mixture.register_forward_pre_hook(start("mixture")),
        mixture.register_forward_hook(stop("mixture")),
        mixture.router.register_forward_pre_hook(start("router")),
        mixture.router.register_forward_hook(stop("router")),
        mixture.router.register_forward_hook(routed),
        mixture.register_forward_hook(count),
    ]
