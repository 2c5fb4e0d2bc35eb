"""How the processes of a training share a model out, as the training loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .exchange import Group, Meter
from .pieces import Piece, Stored

Move = tuple[str, nn.Parameter, Callable[[Tensor], Tensor]]


class WholeModel:
    """The training loop's view of a model's weights; here every process has all of them.

    shared: True if processes have different weights, which then all take part in a checkpoint.
    group: the processes that share the weights; None = all.
    """

    shared: bool = False
    group: Group = None

    def pieces(self, state: Mapping[str, Tensor]) -> dict[str, Tensor | Piece]:
        """Return a model's state dict with the names that it has in one process.

        Here this is the state itself; where processes have different experts, each one's rows
        become a `Piece`.
        """
        return dict(state)

    def own(self, state: Mapping[str, Tensor | Stored]) -> dict[str, Tensor]:
        """Return the tensors of a saved state dict that this process needs, here all of them.

        state: name -> tensor, or `Stored`, a reference to files; names are as in a single
          process. Returns tensors by the names that they have in this process.
        """
        return {name: _as_tensor(value) for name, value in state.items()}

    def optimizer_pieces(
        self, state: dict[str, Any], parameters: Sequence[nn.Parameter]
    ) -> dict[str, Any]:
        """Return an optimiser's state_dict for a checkpoint; here it is unchanged.

        Where processes have different experts, their states become a `Piece` each. parameters: the
        optimiser's, in its order; unused here.
        """
        return state

    def own_optimizer(
        self, state: dict[str, Any], parameters: Sequence[nn.Parameter]
    ) -> dict[str, Any]:
        """Return the part of an optimiser's saved state that this process needs; here all of it.

        state: has tensors, or `Stored`, references to files; parameters: the optimiser's, in its
          order; unused here.
        """
        rows = {
            # an optimiser's state counts its parameters instead of naming them
            index: {key: _as_tensor(value) for key, value in row.items()}
            for index, row in state["state"].items()
        }
        return state | {"state": rows}

    def past(self) -> dict[str, list[Tensor]]:
        """Return the experts' loads in the newest batches by layer, where they decide; {} here."""
        return {}

    def follow(self, past: Mapping[str, Sequence[Tensor]]) -> None:
        """Continue from loads that `past` returned, in any number of processes; here do nothing."""

    def moves(self, step: int) -> Iterator[Move]:
        """Yield the weights with rows that move to other processes after this number of steps.

        Each comes as a path, a weight, and a function that sends rows in the weight's shape to
        their new processes and returns those that arrived. The caller puts these into the weight,
        and does the same with the optimiser's states. All processes do this together. Here there
        are none.
        """
        return iter(())

    def owners(self) -> dict[str, Any]:
        """Return, for a checkpoint, which process owns which rows where that may change."""
        return {"world": 1, "of": {}}

    def set_owners(self, owners: Mapping[str, Any]) -> None:
        """Set the owners that a checkpoint has, as `owners` returned them; here nothing to do."""

    def norm(self, parameters: Sequence[nn.Parameter], meter: Meter | None = None) -> Tensor:
        """Return the norm of all gradients, other processes' included.

        parameters: this process's; meter: counts the time spent waiting for other processes, unused
          here.
        """
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _as_tensor(value: Any) -> Any:
    return value.all() if isinstance(value, Stored) else value


@runtime_checkable
class Parallelism(Protocol):
    """Settings of a way in which processes share a model out while it is trained."""

    def attached(
        self, model: nn.Module, *, meter: Meter | None = None, gather: bool = True
    ) -> AbstractContextManager[WholeModel]:
        """Distribute the model over the processes inside the context; each has its part.

        meter: counts the bytes sent; gather: False leaves the parts where they are at the end, so
          that no process needs room for the whole model. Yields this process's part.
        Raises: ConfigError for a model that cannot be distributed so; TrainingError where processes
          have other models.
        """
        ...
