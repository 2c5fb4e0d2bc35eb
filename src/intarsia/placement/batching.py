"""Batches by expert: requests with the same expert for the next token run together.

Read-ME's serving side (arXiv:2410.19123, section 4): the router reads token ids alone and chooses
once for all layers, so that a request's next expert is known before it is computed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from ..core.checks import at_least, between
from ..core.errors import ConfigError
from .cache import Key
from .policies import NextUse
from .trace import Trace

LEVELS = ("aware", "fifo")


@dataclass(frozen=True)
class QueuedRequest:
    """Request with a next token to compute.

    name: the request's; expert: of its next token; since: the round in which it was queued;
    place: its number in the order of arrival, over all rounds.
    """

    name: Hashable
    expert: int
    since: int
    place: int


class ExpertQueues:
    """Queues of requests, one for each expert; a batch takes from the longest queues first.

    limit: requests of a batch at most;  patience: a request that has waited this many rounds goes
    before all others, oldest first, so that with n requests none waits longer than
    patience + ceil(n / limit) rounds; inf: never, and a rare expert's requests may wait for ever.

    Raises: ConfigError for a limit or a patience below 1, and a request that waits already.
    Source: arXiv:2410.19123, section 4.2; ageing is not of the paper.
    """

    def __init__(self, limit: int, patience: float = 8) -> None:
        at_least("limit", limit, 1)
        at_least("patience", patience, 1)
        self.limit, self.patience, self.round = limit, patience, 0
        self.queues: dict[int, deque[QueuedRequest]] = {}
        self.names: set[Hashable] = set()
        self.came = 0

    def __len__(self) -> int:
        """Return the number of requests that wait in the queues."""
        return len(self.names)

    def add(self, name: Hashable, expert: int) -> None:
        """Add the request `name` to the queue of its next token's expert.

        Raises: ConfigError for a request that is in a queue already.
        """
        if name in self.names:
            got, fix = f"{name!r} twice", "Add it again when its batch was computed."
            raise ConfigError("request", got=got, want="each once", fix=fix)
        self.names.add(name)
        waiting = QueuedRequest(name, expert, self.round, self.came)
        self.queues.setdefault(expert, deque()).append(waiting)
        self.came += 1

    def batch(self) -> list[QueuedRequest]:
        """Remove and return the requests to compute next, at most `limit`; [] if none is queued.

        First those that have waited too long, then the queues of the experts they use, then the
        longest queues.
        """
        overdue = sorted(
            (w for q in self.queues.values() for w in q if self.round - w.since >= self.patience),
            key=lambda w: w.place,
        )
        # requests with no patience left go first, whatever their expert
        selected = overdue[: self.limit]
        names = {w.name for w in selected}
        # then the queues of experts that are in the batch already, then the longest
        first = {w.expert for w in selected}
        order = sorted(self.queues, key=lambda e: (e not in first, -len(self.queues[e]), e))
        for expert in order:
            room = self.limit - len(selected)
            next_requests = [w for w in self.queues[expert] if w.name not in names][:room]
            selected += next_requests
            names |= {w.name for w in next_requests}
        # remove the chosen requests, and queues that are now empty
        for expert in list(self.queues):
            remaining = deque(w for w in self.queues[expert] if w.name not in names)
            self.queues[expert] = remaining
            if not remaining:
                del self.queues[expert]
        self.names -= names
        self.round += 1
        return selected

    def ahead(self) -> list[int]:
        """Return the experts that have requests, longest queue first, to read them ahead."""
        return sorted(self.queues, key=lambda e: (-len(self.queues[e]), e))


@dataclass(frozen=True)
class Served:
    """Record of a served trace.  batches: the experts of each; waits: rounds each token waited."""

    batches: tuple[tuple[int, ...], ...]
    waits: tuple[int, ...] = field(repr=False)

    @property
    def unique(self) -> float:
        """Mean number of different experts in a batch."""
        return sum(len(set(b)) for b in self.batches) / max(1, len(self.batches))

    @property
    def switches(self) -> int:
        """Number of times that a batch uses an expert that the previous batch did not use."""
        before: set[int] = set()
        count = 0
        for batch in self.batches:
            count += len(set(batch) - before)
            before = set(batch)
        return count

    def wait(self, quantile: float = 0.95) -> int:
        """Return how many rounds a token waited, at a quantile of all tokens; 0 if there was none.

        quantile: 0 ... 1, for example 0.5 for the median.
        """
        waits = sorted(self.waits)
        place = math.ceil(quantile * len(waits)) - 1
        return waits[min(len(waits) - 1, max(0, place))] if waits else 0


def serve(
    trace: Trace,
    limit: int,
    *,
    layer: int = 0,
    patience: float = 8,
    streams: int | None = None,
    how: str = "aware",
) -> Served:
    """Simulate the decoding of a trace's sequences, in batches of at most `limit` requests.

    trace: recorded routing; a token's expert is its first one in `layer`, as if all layers had the
      same choice. limit: requests in a batch. patience: rounds after which a request goes first,
      see `ExpertQueues`. streams: sequences at once; a new one begins where one ends; None = all.
    how: "aware", batches by `ExpertQueues`; "fifo", in the order in which requests became ready.

    Raises: ConfigError for a setting out of range, or an unknown `how`.
    """
    if how not in LEVELS:
        raise ConfigError("how", got=how, want=f"one of {LEVELS}", fix="Take 'aware'.")
    between("layer", layer, 0, trace.layers - 1)
    upcoming: dict[int, deque[int]] = {}
    for sequence, expert in zip(
        trace.sequence.tolist(), trace.expert[:, layer, 0].tolist(), strict=True
    ):
        upcoming.setdefault(sequence, deque()).append(expert)
    pending = deque(upcoming)
    at_least("streams", len(upcoming) if streams is None else streams, 1)
    queues = ExpertQueues(limit, patience if how == "aware" else 1)
    batches: list[tuple[int, ...]] = []
    waits: list[int] = []
    for _ in range(len(upcoming) if streams is None else streams):
        if pending:
            _queue_next(queues, pending.popleft(), upcoming)
    # one round: compute a batch, then queue each request's next token, or start a new sequence
    while len(queues):
        present_round = queues.round
        batch = queues.batch() if how == "aware" else _batch_in_order(queues)
        batches.append(tuple(w.expert for w in batch))
        waits += [present_round - w.since for w in batch]
        for w in batch:
            name = int(str(w.name))
            if upcoming[name]:
                _queue_next(queues, name, upcoming)
            elif pending:
                _queue_next(queues, pending.popleft(), upcoming)
    return Served(tuple(batches), tuple(waits))


def _queue_next(queues: ExpertQueues, name: int, upcoming: dict[int, deque[int]]) -> None:
    queues.add(name, upcoming[name].popleft())


def _batch_in_order(queues: ExpertQueues) -> list[QueuedRequest]:
    """Return a batch in order of arrival: with a patience of 0 rounds every request is overdue."""
    queues.patience = 0
    return queues.batch()


class LookAhead(NextUse):
    """Policy that evicts the expert used latest: known for `window` steps, expected beyond them.

    Belady's choice over queued tokens, where experts are known (arXiv:2410.19123).
    demand: the (layer, expert) of all steps; each decision sees the steps up to `window` rounds of
    the layers ahead of the present one. 0 is `Expected`; as many as there are steps is `Belady`.
    decay: as in `Expected`.

    Raises: ConfigError for a window below 0.
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        demand: Sequence[Sequence[Key]],
        window: int,
        decay: float = 0.98,
    ) -> None:
        """List, for each expert, the steps of `demand` that use it."""
        super().__init__(layers, experts, decay)
        at_least("window", window, 0)
        self.window = window
        # future uses of each expert; `used` removes the first
        self.uses: dict[Key, deque[tuple[int, int]]] = {}  # (step, its number among all uses)
        place = 0
        for number, step in enumerate(demand):
            for key in step:
                self.uses.setdefault(key, deque()).append((number, place))
                place += 1

    def used(self, key: Key, hit: bool) -> None:
        """Note that an expert is used now, and remove this use from its future ones."""
        super().used(key, hit)
        self.uses[key].popleft()

    def victim(self, resident: Iterable[Key]) -> Key:
        """Return the expert to evict: the one with the latest next use, known or else expected."""
        last = self.steps - 1 + self.window, self.layer  # the last step and layer in sight

        def next_use(key: Key) -> tuple[float, float, Key]:
            """Return a key that sorts experts by their next use, known or expected."""
            # the first of an expert's future uses is the next one
            uses = self.uses.get(key)
            if self.window and uses and (uses[0][0], key[0]) <= last:
                return 0, uses[0][1], key
            return 1, self.expected(key), key  # 1: later than every use inside the window

        return max(resident, key=next_use)
