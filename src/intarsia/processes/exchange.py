"""The one way in which anything moves between processes, and its counts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..core.errors import TrainingError
from ..placement.measuring import device_of

Group = dist.ProcessGroup | None  # None: all processes


class Meter:
    """Bytes that this process sent to each other one, by step; what stays here is not counted.

    seconds: that it was in exchanges with the CPU, the time in which it waited for others included.
    clock: returns the time in seconds.
    """

    def __init__(self, group: Group = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.group, self.sent = group, dict[str, list[int]]()
        self.seconds, self.clock = 0.0, clock

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Add the time spent inside the context to the seconds of exchanges."""
        began = self.clock()
        try:
            yield
        finally:
            self.seconds += self.clock() - began

    def note(self, name: str, row_bytes: int, counts: Sequence[int]) -> None:
        """Add the bytes of rows that were sent.

        name: of the exchange; row_bytes: bytes of a row; counts: rows for each process, by rank.
          Rows for this process itself do not count.
        """
        rank = dist.get_rank(self.group)
        # rows that stay in this process cost no exchange
        row = [row_bytes * count * (target != rank) for target, count in enumerate(counts)]
        self.sent[name] = [
            a + b for a, b in zip(self.sent.get(name, [0] * len(row)), row, strict=True)
        ]

    def gathered(self) -> dict[str, Tensor]:
        """Return the bytes that each process sent to each, by name of the exchange, (D, D) int64.

        Rows are senders, columns receivers. All D processes have to call this together, after
        exchanges of the same names.
        """
        count, device = dist.get_world_size(self.group), device_of(self.group)
        totals: dict[str, Tensor] = {}
        for name, row in sorted(self.sent.items()):
            parts = [torch.zeros(count, dtype=torch.int64, device=device) for _ in range(count)]
            # sorted names: every process gathers the same exchange at the same time
            dist.all_gather(parts, torch.tensor(row, device=device), group=self.group)
            totals[name] = torch.stack(parts).cpu()
        return totals


class _Exchange(torch.autograd.Function):
    """The exchange of rows with its gradient: gradients go the same ways back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, send: list[int], receive: list[int], route: Any) -> Tensor:
        """Send rows and return those that arrived.

        rows: (N, ...); route: (group, meter, name), see `exchanged`.
        """
        ctx.send, ctx.receive, ctx.of = send, receive, route
        group, meter, name = route
        return _exchange_rows(rows, send, receive, group, meter, name)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Send the gradients of the rows that arrived back to the senders of the rows."""
        group, meter, name = ctx.of
        # the rows received are sent back: the two counts change places
        back = _exchange_rows(grads[0], ctx.receive, ctx.send, group, meter, f"{name}.back")
        return back, None, None, None


def _exchange_rows(
    rows: Tensor, send: list[int], receive: list[int], group: Group, meter: Meter | None, name: str
) -> Tensor:
    """Send rows (N, ...), those for process 0 first; return those that came, without a gradient."""
    out = rows.new_empty(sum(receive), *rows.shape[1:])
    try:
        with nullcontext() if meter is None else meter.waiting():
            dist.all_to_all_single(out, rows.contiguous(), receive, send, group=group)
    except RuntimeError as error:  # gloo: a connection that was reset, or a time-out
        raise lost(f"exchange {name!r}", error, group) from error
    if meter is not None:
        # counted after the exchange, so that a failed one does not count
        meter.note(name, rows.dtype.itemsize * math.prod(rows.shape[1:]), send)
    return out


GONE = ("losed by peer", "onnection reset", "imed out", "onnection refused", "NCCL")


def is_lost(error: Exception) -> bool:
    """Return True if an error of torch.distributed says that another process is gone or late."""
    return dist.is_initialized() and any(text in str(error) for text in GONE)


def lost(subject: str, error: Exception, group: Group = None) -> TrainingError:
    """Return the error for another process that does not answer."""
    rank, text = dist.get_rank(group), str(error).splitlines()[0]
    # a slow process needs patience, a dead one a new start: two different fixes
    late = "imed out" in str(error)
    got = f"no answer in time ({text})" if late else f"a process that is gone ({text})"
    fix = (
        "It may be slow or stuck: see the others' output, or allow more time, "
        "INTARSIA_EXCHANGE_SECONDS."
        if late
        else ("See what it said. Start all again, from the last checkpoint: --resume")
    )
    subject = f"{subject} in process {rank} of {dist.get_world_size(group)}"
    return TrainingError(subject, got=got, want="all processes to take part", fix=fix)


@contextmanager
def answered(subject: Callable[[], str], group: Group = None) -> Iterator[None]:
    """Turn an error inside the context into a TrainingError if another process does not answer.

    subject: returns the work being done, for the error; group: the processes. Other errors pass.
    """
    try:
        yield
    except RuntimeError as error:
        # an error of this process's own work stays as it is
        if not is_lost(error):
            raise
        raise lost(subject(), error, group) from error


def exchanged(
    rows: Tensor,
    send: Sequence[int],
    receive: Sequence[int],
    *,
    group: Group = None,
    meter: Meter | None = None,
    name: str = "exchange",
) -> Tensor:
    """Send rows to all processes; return those that they sent here, in the order of processes.

    rows: (N, ...), those for process 0 first, `send[p]` of them for process p; receive: how many
      come from each; group: the processes, None = all; meter: counts the bytes under `name`.
      Differentiable: gradients of rows travel back under the name `name`.back. Every process calls
      it, with rows or without, and calls backward if one of them does.
    """
    received: Any = _Exchange.apply(rows, list(send), list(receive), (group, meter, name))
    return cast(Tensor, received)


@dataclass(frozen=True)
class Wire:
    """The exchanges of a layer: with whom, who counts their bytes, under which names."""

    layer: int = 0
    group: Group = None
    meter: Meter | None = None

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def world(self) -> int:
        return dist.get_world_size(self.group)

    def send(self, rows: Tensor, send: Sequence[int], receive: Sequence[int], phase: str) -> Tensor:
        """Exchange rows as `exchanged` does, under the name "layer.phase".

        rows: (N, ...); send, receive: numbers of rows to and from each process; phase: such as
          "dispatch".
        """
        name = f"{self.layer}.{phase}"
        return exchanged(rows, send, receive, group=self.group, meter=self.meter, name=name)

    def told(self, values: Tensor, phase: str) -> Tensor:
        """Exchange values with all processes; return each one's, (D, n).

        values: (n,), this process's; phase: name of the exchange.
        """
        counts = [1] * self.world
        # a copy for each process, which gets one row from each
        return self.send(values.detach().repeat(self.world, 1), counts, counts, phase)
