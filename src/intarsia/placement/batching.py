"""Batches by expert: requests whose next token has the same expert are served together.

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
class Waiting:
    """A request whose next token is to be computed.

    since: the round in which it came; place: how many had come before it, ever.
    """

    name: Hashable
    expert: int
    since: int
    place: int


class ExpertQueues:
    """A queue for each expert; a batch takes the longest, and then the next longest, to its limit.

    limit: requests of a batch;  patience: a request that has waited for so many rounds goes before
    all others, oldest first, so that with n requests none waits longer than
    patience + ceil(n / limit) rounds; inf: never, and a rare expert's requests may wait for ever.

    Raises: ConfigError for a limit or a patience below 1, and a request that waits already.
    Source: arXiv:2410.19123, section 4.2; ageing is not of the paper.
    """

    def __init__(self, limit: int, patience: float = 8) -> None:
        at_least("limit", limit, 1)
        at_least("patience", patience, 1)
        self.limit, self.patience, self.round = limit, patience, 0
        self.queues: dict[int, deque[Waiting]] = {}
        self.names: set[Hashable] = set()
        self.came = 0

    def __len__(self) -> int:
        return len(self.names)

    def add(self, name: Hashable, expert: int) -> None:
        """A request waits for its next token, which has this expert."""
        if name in self.names:
            got, fix = f"{name!r} twice", "Add it again when its batch was computed."
            raise ConfigError("request", got=got, want="each once", fix=fix)
        self.names.add(name)
        waiting = Waiting(name, expert, self.round, self.came)
        self.queues.setdefault(expert, deque()).append(waiting)
        self.came += 1

    def batch(self) -> list[Waiting]:
        """The requests that are computed next; none where none waits."""
        old = sorted(
            (w for q in self.queues.values() for w in q if self.round - w.since >= self.patience),
            key=lambda w: w.place,
        )
        taken = old[: self.limit]
        chosen = {w.name for w in taken}
        # the queue of those that must go comes first: its expert is in use already
        first = {w.expert for w in taken}
        order = sorted(self.queues, key=lambda e: (e not in first, -len(self.queues[e]), e))
        for expert in order:
            room = self.limit - len(taken)
            more = [w for w in self.queues[expert] if w.name not in chosen][:room]
            taken += more
            chosen |= {w.name for w in more}
        for expert in list(self.queues):
            left = deque(w for w in self.queues[expert] if w.name not in chosen)
            self.queues[expert] = left
            if not left:
                del self.queues[expert]
        self.names -= chosen
        self.round += 1
        return taken

    def ahead(self) -> list[int]:
        """Experts of what waits, those of the longest queues first: what to bring in next."""
        return sorted(self.queues, key=lambda e: (-len(self.queues[e]), e))


@dataclass(frozen=True)
class Served:
    """What a batching made of a trace: the experts of each batch, and how long tokens waited."""

    batches: tuple[tuple[int, ...], ...]
    waits: tuple[int, ...] = field(repr=False)

    @property
    def unique(self) -> float:
        """Mean number of different experts in a batch."""
        return sum(len(set(b)) for b in self.batches) / max(1, len(self.batches))

    @property
    def switches(self) -> int:
        """How often an expert comes in that the batch before did not use."""
        before: set[int] = set()
        count = 0
        for batch in self.batches:
            count += len(set(batch) - before)
            before = set(batch)
        return count

    def wait(self, quantile: float = 0.95) -> int:
        """Rounds that a token waited, at a quantile."""
        some = sorted(self.waits)
        return some[min(len(some) - 1, math.ceil(quantile * len(some)) - 1)] if some else 0


def serve(
    trace: Trace,
    limit: int,
    *,
    layer: int = 0,
    patience: float = 8,
    streams: int | None = None,
    how: str = "aware",
) -> Served:
    """Serve a trace's sequences token by token, so many requests a batch.

    A token's expert is its first one in `layer` (one choice for all layers).  streams: requests at
    once, a new one begins where one ends; None: all.  how: "aware", `ExpertQueues`; "fifo", in the
    order in which they became ready.

    Raises: ConfigError for settings that cannot be.
    """
    if how not in LEVELS:
        raise ConfigError("how", got=how, want=f"one of {LEVELS}", fix="Take 'aware'.")
    between("layer", layer, 0, trace.layers - 1)
    of: dict[int, deque[int]] = {}
    for sequence, expert in zip(
        trace.sequence.tolist(), trace.expert[:, layer, 0].tolist(), strict=True
    ):
        of.setdefault(sequence, deque()).append(expert)
    todo = deque(of)
    at_least("streams", len(of) if streams is None else streams, 1)
    queues = ExpertQueues(limit, patience if how == "aware" else 1)
    batches: list[tuple[int, ...]] = []
    waits: list[int] = []
    for _ in range(len(of) if streams is None else streams):
        if todo:
            _ready(queues, todo.popleft(), of)
    while len(queues):
        now = queues.round
        batch = queues.batch() if how == "aware" else _oldest(queues)
        batches.append(tuple(w.expert for w in batch))
        waits += [now - w.since for w in batch]
        for w in batch:
            name = int(str(w.name))
            if of[name]:
                _ready(queues, name, of)
            elif todo:
                _ready(queues, todo.popleft(), of)
    return Served(tuple(batches), tuple(waits))


def _ready(queues: ExpertQueues, name: int, of: dict[int, deque[int]]) -> None:
    queues.add(name, of[name].popleft())


def _oldest(queues: ExpertQueues) -> list[Waiting]:
    """A batch in order of arrival: patience 0."""
    queues.patience = 0
    return queues.batch()


class LookAhead(NextUse):
    """The expert goes whose next use is latest, known for `window` steps, expected beyond them.

    Belady over what is queued (arXiv:2410.19123): of the tokens that wait, the experts are known.
    demand: all steps, of which each decision sees those up to `window` rounds of the layers ahead
    of the one at hand. 0 is `Expected`; as many as there are is Belady's choice.

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
        super().__init__(layers, experts, decay)
        at_least("window", window, 0)
        self.window = window
        self.uses: dict[Key, deque[tuple[int, int]]] = {}  # (step, place among all asks)
        place = 0
        for number, step in enumerate(demand):
            for key in step:
                self.uses.setdefault(key, deque()).append((number, place))
                place += 1

    def used(self, key: Key, hit: bool) -> None:
        super().used(key, hit)
        self.uses[key].popleft()

    def victim(self, resident: Iterable[Key]) -> Key:
        last = self.steps - 1 + self.window, self.layer  # the last step and layer in sight

        def next_use(key: Key) -> tuple[float, float, Key]:
            left = self.uses.get(key)
            if self.window and left and (left[0][0], key[0]) <= last:
                return 0, left[0][1], key
            return 1, self.expected(key), key  # all of these are behind the window

        return max(resident, key=next_use)
