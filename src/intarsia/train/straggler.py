"""How much longer than the others the slowest process of a run computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.autograd import Variable

from ..processes.exchange import Meter


def straggler(busy: Sequence[float]) -> dict[str, float]:
    """Return the number of the slowest process, and how much longer it computes than the mean.

    As a share: max_r b_r / mean_r b_r - 1. busy: (D,), b_r in seconds, the computing time of each
      process r. A step lasts as long as the slowest process computes: with a share of 0.25 all of
      them together could be done in 1 / 1.25 of that time.
    """
    longest, mean = max(busy), sum(busy) / len(busy)
    return {
        "straggler": busy.index(longest),
        "straggler_share": longest / mean - 1 if mean else 0.0,
    }


class Busy:
    """b_r: the seconds of an epoch's steps in which this process computed and did not wait.

    That is their wall time, reading of the data included, without that in `meter`: exchanges of
    experts, sums over the processes, and the end of a backward, from when its own part is done.
    Of processes that compute on their CPU, and where there are several; of others it says nothing:
    there the accelerator waits, which this clock does not see.
    """

    def __init__(self, ranks: Accelerator, clock: Callable[[], float] = time.perf_counter) -> None:
        self.ranks, self.meter, self.seconds = ranks, Meter(clock=clock), 0.0
        self.measured = ranks.num_processes > 1 and ranks.device.type == "cpu"

    @contextmanager
    def step(self) -> Iterator[None]:
        """Add the time inside the context, without that spent waiting for other processes."""
        began, waited = self.meter.clock(), self.meter.seconds
        yield
        # wall time of the step without the waiting that the meter saw in it
        self.seconds += self.meter.clock() - began - (self.meter.seconds - waited)

    def end_epoch(self) -> dict[str, float]:
        """Return the slowest process of the epoch and its lag, and begin to count again.

        All processes call it together. Empty where it is not measured.
        """
        seconds, self.seconds = self.seconds, 0.0
        if not self.measured:
            return {}
        busy: Any = gather_object([seconds])
        return straggler(busy)


def backward(loss: Tensor, meter: Meter) -> None:
    """Call loss.backward() and count the waiting for other processes at its end."""
    ends: list[float] = []

    def own_part_done() -> None:
        ends.append(meter.clock())

    def first(_: Tensor) -> None:
        # called in the order in which they are queued, so before DistributedDataParallel's
        Variable._execution_engine.queue_callback(own_part_done)  # pyright: ignore

    # the loss's hook runs as the first of the backward
    hook = loss.register_hook(first)
    loss.backward()
    hook.remove()
    meter.seconds += meter.clock() - ends[0]
