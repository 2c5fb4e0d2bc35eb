"""Modules that pass a state on to the next one along the depth of a model, in one forward."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Self

from torch import Tensor

from ..core.errors import ShapeError
from .context import LayerState, ReadsContext


class PassesState(ReadsContext):
    """A module that passes a state on to the next one of its kin in a model, row by row.

    Alone until `join`; the layers of a model are then numbered in the order of its modules.
    """

    def __init__(self) -> None:
        """Create the module as layer 0 of a new thread, a chain of layers that pass a state on."""
        super().__init__()
        self.thread, self.layer, self.joined = LayerState(), 0, False
        self.context.states.append(self.thread)

    @property
    def kin(self) -> Hashable:
        """The key of the module's thread: modules with equal kin are on one."""
        return type(self)

    def follow(self, first: Self, layer: int) -> None:
        """Become layer number `layer` on the thread of `first`, the thread's layer 0."""
        self.thread, self.layer, self.joined = first.thread, layer, True

    def carried(self, rows: int) -> Tensor | None:
        """Return the state that the previous layer left, (rows, ...); None at the first layer.

        rows: number of tokens in this forward. The state is, for example, the hidden state of a
        recurrent router, kept in `self.thread`, which the modules of one kind share.
        Raises: ShapeError for a state of another number of tokens: an older forward left it.
        """
        state = self.thread.before(self.layer)
        # another number: `gating.start` was not called, so it is the state of an older forward
        if state is not None and len(state) != rows:
            name, got = "state of the layer before", f"{len(state)} rows"
            fix = "Call gating.start(model) before each forward; all layers see the same tokens."
            raise ShapeError(name, got=got, want=f"{rows}", fix=fix)
        return state

    def carry(self, state: Tensor) -> None:
        """Leave a state to the next layer."""
        self.thread.leave(self.layer, state)
