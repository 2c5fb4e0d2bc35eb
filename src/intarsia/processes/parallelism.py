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
        """Return a state of the model under the names of one process; of shared weights, pieces."""
        return dict(state)

    def own(self, state: Mapping[str, Tensor | Stored]) -> dict[str, Tensor]:
        """Return what this process keeps of a state, under its names.

        state: under the names of one process, whole or in files.
        """
        return {name: _whole(value) for name, value in state.items()}

    def optimizer_pieces(
        self, state: dict[str, Any], parameters: Sequence[nn.Parameter]
    ) -> dict[str, Any]:
        """Return an optimiser's state_dict as `pieces` has the model's."""
        return state

    def own_optimizer(
        self, state: dict[str, Any], parameters: Sequence[nn.Parameter]
    ) -> dict[str, Any]:
        """Return what this process keeps of an optimiser's state_dict, whole or in files."""
        rows = {
            # an optimiser's state counts its parameters instead of naming them
            index: {key: _whole(value) for key, value in row.items()}
            for index, row in state["state"].items()
        }
        return state | {"state": rows}

    def past(self) -> dict[str, list[Tensor]]:
        """Return the loads of the newest batches, by layer, where a layer goes by them."""
        return {}

    def follow(self, past: Mapping[str, Sequence[Tensor]]) -> None:
        """Go on from loads that `past` gave, of any number of processes."""

    def moves(self, step: int) -> Iterator[Move]:
        """Yield the weights whose rows get new owners after so many steps.

        Path, weight, and what sends rows in the weight's shape to their new owners. The caller puts
        them in, and those of whatever it remembers of the weight. All processes do the same.
        """
        return iter(())

    def owners(self) -> dict[str, Any]:
        """Return who owns the rows of layers where that may change, and how many processes."""
        return {"world": 1, "of": {}}

    def set_owners(self, owners: Mapping[str, Any]) -> None:
        """Set owners that a checkpoint has, and make room for their weights."""

    def norm(self, parameters: Sequence[nn.Parameter], meter: Meter | None = None) -> Tensor:
        """Return the norm of all gradients, those of other processes among them.

        meter: counts the time in which other processes are waited for.
        """
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _whole(value: Any) -> Any:
    return value.all() if isinstance(value, Stored) else value


@runtime_checkable
class Parallelism(Protocol):
    """Settings of a way in which processes share a model out while it is trained."""

    def attached(
        self, model: nn.Module, *, meter: Meter | None = None, gather: bool = True
    ) -> AbstractContextManager[WholeModel]:
        """Share the model out; inside, each process has its part.

        meter: counts what is sent.  gather: False leaves the parts where they are at the end, so
        that no process needs room for the whole model.
        Raises: ConfigError for a model that cannot be shared out so; TrainingError where processes
        have other models.
        """
        ...
