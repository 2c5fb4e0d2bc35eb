"""A server's settings, given at its start, and the facts of one request while it is running."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from ..core.schema import check, setting

BATCHINGS = ("continuous", "none")
DAY = 86_400  # seconds


@dataclass(frozen=True)
class Limits:
    """Limits on what clients may ask for; other requests are refused before they cost anything.

    tokens: also of a request that names no number.
    arrival: for a request's headers, for its body, and for its client to take the answer, of all
    waiting for that together.
    """

    body: int = setting(1_000_000, "Bytes of a request, at most.", least=1000)
    tokens: int = setting(512, "Tokens of an answer, at most.", least=1)
    at_once: int = setting(16, "Requests that are answered at once.", least=1)
    queue: int = setting(64, "Requests that may wait; the next one gets 429.", least=0)
    seconds: float = setting(
        300.0, "Seconds for a request, waiting included.", above=0, fix="Try 300."
    )
    drain: float = setting(30.0, "Seconds to finish in, after SIGTERM.", least=0, most=DAY)
    batching: str = setting(
        "continuous",
        "Batching of requests: continuous, or none, one after another.",
        choices=BATCHINGS,
    )
    arrival: float = setting(
        10.0, "Seconds for a request to come; then 408.", above=0, fix="Try 10."
    )

    @property
    def connections(self) -> int:
        """Number of clients that may be connected, idle ones included."""
        return self.at_once + self.queue + 256

    def __post_init__(self) -> None:
        check(self)


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
