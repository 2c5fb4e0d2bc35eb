"""Several runs of one shape in one process, that meet at each forward and backward.

Each is an ordinary run in a thread of its own. One thread works at a time; where a run comes to a
forward it waits for the others, and one call computes the rows of all. Everything else of a run
(order, draws, optimiser, checkpoints, folder) is its own, so that each ends as it does alone, to
the rounding of matrix products of another height.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from .interrupt import StopRequest, stop_on_signals
from .randomness import global_kept, global_state, set_global_state

Result = TypeVar("Result")


class Together(Protocol):
    """A joint forward for several models' rows.  alone(i): a context with the draws of run i."""

    def __call__(self, rows: Sequence[Tensor], alone: Callable[[int], Any]) -> list[Tensor]: ...

    def close(self) -> None: ...


Joining = Callable[[Sequence[nn.Module], Sequence[Tensor]], "Together | None"]
"""How models are computed together, tried on their rows; None where that cannot be."""


@dataclass
class _Request:
    """A run's request to the stack: for its logits, or, without a model, for its gradients."""

    model: nn.Module | None
    # the rows that the model reads, or the loss
    value: Tensor
    grad: bool
    # the dtype of autocast, None = off
    half: torch.dtype | None


class Stack:
    """Runs that take turns, one at a time, and the answers that they wait for."""

    def __init__(self, count: int, joining: Joining) -> None:
        """Prepare to run `count` threads in turn, one training run in each."""
        self.joining = joining
        self.stop = StopRequest()
        # the run with the thread that may work; -1 when all have ended
        self.turn = 0
        self.change = threading.Condition()
        self.alive = list(range(count))
        self.asked: dict[int, _Request] = {}
        self.found: dict[int, Any] = {}
        # states of the global random generators of each run that waits
        self.random: dict[int, dict[str, Any]] = {}
        self.spent = [(0.0, 0.0)] * count
        self.mark = time.perf_counter(), time.process_time()
        self._together: tuple[list[int], Together | None] = [], None

    def meet(self, run: int, request: _Request) -> Any:
        """Wait until all runs have made a request; return the answer to this one's."""
        # the generators are put aside: the next run has its own
        self.random[run] = global_state()
        self.asked[run] = request
        self._pass_on()
        self.wait(run)
        answer = self.found.pop(run)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait(self, run: int) -> None:
        """Wait until this run may work, and restore the state of its random generators."""
        with self.change:
            self.change.wait_for(lambda: self.turn == run)
        if run in self.random:
            set_global_state(self.random.pop(run))

    def leave(self, run: int) -> None:
        """Remove a run that has ended, and let the others continue."""
        self.account()
        self.alive.remove(run)
        self._pass_on()

    def account(self) -> None:
        """Divide the time since the last call equally among the runs that continue."""
        now = time.perf_counter(), time.process_time()
        wall, cpu = (b - a for a, b in zip(self.mark, now, strict=True))
        self.mark, share = now, max(1, len(self.alive))
        for run in self.alive:
            before = self.spent[run]
            self.spent[run] = before[0] + wall / share, before[1] + cpu / share

    def _pass_on(self) -> None:
        """Let the next run without a request work; when all have made one, answer them first."""
        # the last run to come computes for all
        if self.alive and len(self.asked) == len(self.alive):
            self._answer()
        ready = [run for run in self.alive if run not in self.asked]
        with self.change:
            self.turn = ready[0] if ready else -1
            self.change.notify_all()

    def _answer(self) -> None:
        """Compute all requests: one joint forward, or one joint backward."""
        requests, self.asked = dict(sorted(self.asked.items())), {}
        # forwards and backwards cannot be mixed: all runs must be at the same point of a step
        kinds = {id(a.model) if a.model is None else 0: a for a in requests.values()}
        try:
            if len(kinds) > 1:
                raise RuntimeError("runs of a stack that do not step alike")
            # losses of separate models: one backward computes the gradients of each
            if next(iter(requests.values())).model is None:
                torch.autograd.backward([a.value for a in requests.values()])
                self.found.update(dict.fromkeys(requests))
            else:
                self.found.update(self._forward(requests))
        except Exception as error:
            # every thread raises it, none waits for ever
            self.found.update(dict.fromkeys(requests, error))

    def _forward(self, requests: Mapping[int, _Request]) -> dict[int, Tensor]:
        """Compute the outputs of all waiting runs, in one call where their models can be joined."""
        first, runs = next(iter(requests.values())), list(requests)
        models = [a.model for a in requests.values() if a.model is not None]
        rows = [a.value for a in requests.values()]
        device = rows[0].device.type
        half: dict[str, Any] = {"dtype": first.half, "enabled": first.half is not None}
        with torch.autocast(device, **half), torch.set_grad_enabled(first.grad):
            # a run has ended since: the others are joined again
            if self._together[0] != runs:
                self.close()
                self._together = runs, self.joining(models, rows)
            together = self._together[1]
            if together is not None:
                return dict(zip(runs, together(rows, lambda i: self._own(runs[i])), strict=True))
            # models that cannot be joined compute one after the other
            outputs: dict[int, Tensor] = {}
            for run, model, x in zip(runs, models, rows, strict=True):
                with self._own(run):
                    outputs[run] = model(x)
            return outputs

    def close(self) -> None:
        """Undo the joining of the models: each computes for itself again."""
        runs, together = self._together
        self._together = [], None
        if together is not None:
            together.close()

    def _own(self, run: int) -> _OwnDraws:
        return _OwnDraws(self.random[run])


class _OwnDraws:
    """A context in which torch draws as one run does, on every device; its states move on."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def __enter__(self) -> None:
        torch.set_rng_state(self.state["torch"])
        if self.state["cuda"]:
            torch.cuda.set_rng_state_all(self.state["cuda"])

    def __exit__(self, *_: object) -> None:
        self.state["torch"] = torch.get_rng_state()
        if self.state["cuda"]:
            self.state["cuda"] = torch.cuda.get_rng_state_all()


class Seat:
    """The place of one run in a stack."""

    def __init__(self, stack: Stack, run: int) -> None:
        self.stack, self.run = stack, run

    @property
    def stop(self) -> StopRequest:
        return self.stack.stop

    def now(self) -> tuple[float, float]:
        """Return this run's share of the wall-clock time and of the CPU time, in seconds."""
        self.stack.account()
        return self.stack.spent[self.run]

    def backward(self, loss: Tensor) -> None:
        """Wait until every run has its loss; one backward then computes the gradients of all."""
        self.stack.meet(self.run, _Request(model=None, value=loss, grad=True, half=None))


class Seated(nn.Module):
    """A model with a forward that waits for the other runs' forwards."""

    def __init__(self, model: nn.Module, seat: Seat) -> None:
        """Wrap a model so that its forward waits for other runs.  seat: the run's place."""
        super().__init__()
        self.model = model
        self.seat = seat

    def forward(self, x: Tensor) -> Tensor:
        """Wait until every run that steps together has an input, and return the output for x."""
        device = x.device.type
        # autocast and gradient mode belong to a thread: they go with the request
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        request = _Request(self.model, x, torch.is_grad_enabled(), half)
        return self.seat.stack.meet(self.seat.run, request)


def stacked(
    jobs: Sequence[Callable[[Seat], Result]], joining: Joining
) -> list[Result | BaseException]:
    """Run several trainings in one process, step by step together; return their results.

    jobs: functions that train with `seat=...` on the place that they are given; joining: function
      that joins the models' forwards. The result of a job may be its error. The first SIGINT or
      SIGTERM stops all of them after their step.
    """
    stack = Stack(len(jobs), joining)
    ends: list[Any] = [None] * len(jobs)

    def work(run: int) -> None:
        """Carry out one run in its thread, and put its result, or its error, into `ends`."""
        stack.wait(run)
        try:
            ends[run] = jobs[run](Seat(stack, run))
        # KeyboardInterrupt too: the caller decides, outside of the thread
        except BaseException as error:
            ends[run] = error
        finally:
            stack.leave(run)

    with global_kept(), stop_on_signals() as stack.stop:
        # each run starts from the state in which it would start alone
        begun = global_state()
        stack.random = {run: begun for run in stack.alive}
        threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stack.close()
    return ends
