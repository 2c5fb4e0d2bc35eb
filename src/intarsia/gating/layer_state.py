"""What the layers of a model pass on along its depth, from one to the next, in one forward."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..core.errors import ConfigError, ShapeError
from .random_source import redraw


class LayerState:
    """The states that layers 0, 1, ... have left since `clear`.

    They are kept by layer, not by call: gradient checkpointing calls layers again, in another
    order, and must meet what they met before. A layer that runs twice in one forward meets the same
    state twice.
    """

    def __init__(self) -> None:
        self._left: dict[int, tuple[Tensor, bool]] = {}

    def clear(self) -> None:
        self._left = {}

    def leave(self, layer: int, state: Tensor) -> None:
        self._left[layer] = (state, torch.is_grad_enabled())

    def left(self, layer: int) -> Tensor | None:
        """What this very layer left."""
        return self._left[layer][0] if layer in self._left else None

    def before(self, layer: int) -> Tensor | None:
        """What the nearest layer before left; None at the first.

        Raises: ConfigError if it was made without a graph, though this layer has one.
        """
        earlier = [number for number in self._left if number < layer]
        if not earlier:
            return None
        state, with_graph = self._left[max(earlier)]
        if torch.is_grad_enabled() and not with_graph:
            raise ConfigError(
                "state of the layer before",
                got="one made under no_grad, as checkpointing with use_reentrant=True does",
                want="one through which the gradient passes",
                fix="Checkpoint with use_reentrant=False, as gradient_checkpointing_enable("
                "{'use_reentrant': False}) does.",
            )  # fmt: skip
        return state

    def __getstate__(self) -> dict[str, Any]:
        # a state holds a graph, which cannot be copied
        return {"_left": {}}


class PassesState(nn.Module):
    """A module that passes a state on to the next one of its kin in a model, rows by rows.

    Alone until `join`; the layers of a model are then numbered in the order of its modules.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread, self.layer, self.joined = LayerState(), 0, False

    @property
    def kin(self) -> Hashable:
        """Modules with equal kin are on one thread."""
        return type(self)

    def follow(self, first: Self, layer: int) -> None:
        """Be number `layer` on the thread of `first`."""
        self.thread, self.layer, self.joined = first.thread, layer, True

    def carried(self, rows: int) -> Tensor | None:
        """The state of the layer before, (rows, ...); None at the first layer.

        Raises: ShapeError for a state of other rows.
        """
        state = self.thread.before(self.layer)
        if state is not None and len(state) != rows:
            raise ShapeError(
                "state of the layer before", got=f"{len(state)} rows", want=f"{rows}",
                fix="Call gating.start(model) before every forward of a loop of your own, and let "
                "all layers see the same tokens.",
            )  # fmt: skip
        return state

    def carry(self, state: Tensor) -> None:
        """Leave a state to the next layer."""
        self.thread.leave(self.layer, state)


def join(model: nn.Module) -> list[PassesState]:
    """Let the modules of a model that pass a state on do so: those of equal kin, in their order.

    A host calls it once, after it has put them in and before an optimiser sees them: what they
    share is then the first one's. Modules that were joined before stay on their thread. Returns all
    of them.
    """
    found = [m for m in model.modules() if isinstance(m, PassesState)]
    fresh: dict[Hashable, list[PassesState]] = {}
    for module in found:
        if not module.joined:
            fresh.setdefault(module.kin, []).append(module)
    for layers in fresh.values():
        for number, module in enumerate(layers):
            module.follow(layers[0], number)
    return found


def rejoin(model: nn.Module) -> list[PassesState]:
    """Number the layers anew once some are gone: what those of a thread share is the first's again.

    Those that were on different threads stay so.
    """
    threads: dict[int, list[PassesState]] = {}
    for module in model.modules():
        if isinstance(module, PassesState) and module.joined:
            threads.setdefault(id(module.thread), []).append(module)
    for layers in threads.values():
        layers.sort(key=lambda module: module.layer)
        for number, module in enumerate(layers):
            module.follow(layers[0], number)
    return join(model)


def start(model: nn.Module) -> None:
    """What a host does before every forward of a model with routers: draw anew, forget states.

    `intarsia.adapt` and `intarsia.upcycle` see to it; a loop that calls layers by hand has to.

    Raises: ConfigError for several modules of one kin that were never joined.
    """
    redraw(model)
    alone: set[Hashable] = set()
    for module in model.modules():
        if isinstance(module, PassesState):
            module.thread.clear()
            if not module.joined and module.kin in alone:
                raise ConfigError(
                    f"{type(module).__name__}s", got="several, each on a thread of its own",
                    want="one thread along the model's depth",
                    fix="Call gating.join(model) once, before the optimiser is made.",
                )  # fmt: skip
            if not module.joined:
                alone.add(module.kin)
