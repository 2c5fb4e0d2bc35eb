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
        """Return a model's state dict with the names it has in one process.

        Here the state itself; where processes have different experts, each one's rows become a
        `Piece`.
        """
        return dict(state)

    def own(self, state: Mapping[str, Tensor | Stored]) -> dict[str, Tensor]:
        """Return the tensors of a state dict that this process has, here all of them.

        state: names of one process -> tensor, or `Stored` in files. Returns tensors by the names
          that they have in this process.
        """
        return {name: _as_tensor(value) for name, value in state.items()}

    def optimizer_pieces(
        self, state: dict[str, Any], parameters: Sequence[nn.Parameter]
    ) -> dict[str, Any]:
        """Return an optimiser's state_dict as `pieces` returns the model's; here as it is.

        parameters: the optimiser's, in its order.
        """
        return state

    def own_optimizer(
        self, state: dict[str, Any], parameters: Sequence[nn.Parameter]
    ) -> dict[str, Any]:
        """Return the part of an optimiser's state_dict that this process keeps; here all of it.

        state: holds tensors, or `Stored` in files; parameters: the optimiser's, in its order.
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
        """Yield the weights whose rows go to other processes, their owners, after `step` steps.

        Each is a path, a weight, and a function that sends rows in the weight's shape to their new
        owners and returns those that came. The caller puts them in, and those of what an optimiser
        remembers of the weight. All processes do the same. Here there are none.
        """
        return iter(())

    def owners(self) -> dict[str, Any]:
        """Return, for a checkpoint, which process owns which rows where that may change."""
        return {"world": 1, "of": {}}

    def set_owners(self, owners: Mapping[str, Any]) -> None:
        """Set the owners that a checkpoint has, as `owners` returned them; here nothing to do."""

    def norm(self, parameters: Sequence[nn.Parameter], meter: Meter | None = None) -> Tensor:
        """Return the norm of all gradients, those of other processes among them.

        meter: counts the time in which other processes are waited for.
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
        """Share the model out among the processes inside the `with` block; each has its part.

        meter: counts what is sent.  gather: False leaves the parts where they are at the end, so
          that no process needs room for the whole model.
        Raises: ConfigError for a model that cannot be shared out so; TrainingError where processes
        have other models.
        """
        ...
