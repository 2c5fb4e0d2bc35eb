"""A server's settings, given at its start, and the facts of one request while it is running."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from ..core.checks import above, at_least, between, one_of

BATCHINGS = ("continuous", "none")
DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Limits:
    """Limits on what clients may ask for; other requests are refused before they cost anything.

    body: bytes of a request.  tokens: new tokens of an answer, also if a request names no number.
    at_once: requests that run.  queue: requests that wait; the next one gets 429.
    seconds: of a request, waiting included.  drain: seconds for running requests at the shutdown.
    batching: "continuous" or "none". arrival: seconds for a request's headers to arrive, for its
    body, and for its client to take the answer, of all waiting for that together.
    """

    body: int = 1_000_000
    tokens: int = 512
    at_once: int = 16
    queue: int = 64
    seconds: float = 300.0
    drain: float = 30.0
    batching: str = "continuous"
    arrival: float = 10.0

    @property
    def connections(self) -> int:
        """Number of clients that may be connected, idle ones included."""
        return self.at_once + self.queue + 256

    def __post_init__(self) -> None:
        """Check each limit.  Raises: ConfigError."""
        at_least("body", self.body, 1000)
        at_least("tokens", self.tokens, 1)
        at_least("at_once", self.at_once, 1)
        at_least("queue", self.queue, 0)
        above("seconds", self.seconds, 0, "Try 300.")
        between("drain", self.drain, 0, DAY)
        one_of("batching", self.batching, BATCHINGS)
        above("arrival", self.arrival, 0, "Try 10.")


@dataclass
class Request:
    """Record of one request, from its first byte to its last."""

    began: float = field(default_factory=time.perf_counter)
    model: str = ""
    prompt: int = 0
    generated: int = 0
    first: float | None = None  # seconds to the first token
    failed: int = 0  # the status of the error event that ended its stream

    def token(self, streamed: bool) -> None:
        """Count a new token, and record the time of a stream's first one."""
        self.generated += 1
        if streamed and self.first is None:
            self.first = time.perf_counter() - self.began


CURRENT_REQUEST: ContextVar[Request] = ContextVar("intarsia_request")


def current() -> Request:
    """Return the record of the request that is carried out now; a new one outside the server."""
    try:
        return CURRENT_REQUEST.get()
    except LookupError:
        return Request()
