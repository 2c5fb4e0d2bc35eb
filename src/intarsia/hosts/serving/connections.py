"""The connections of clients: a clock for each, and who gives way when there are too many.

A request has so many seconds to arrive. A connection without one is closed after the same time. If
all places are taken, a newcomer gets the place of a connection that is idle or half a request: the
oldest one of the address that holds most, so that no client locks out the others.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .refusals import Refused

LOG = logging.getLogger(__name__)
PHRASES = {408: "Request Timeout", 503: "Service Unavailable"}
Address = tuple[str, int]


@dataclass(eq=False)
class Line:
    """One connection."""

    address: Address
    transport: asyncio.Transport | None = None  # None: outside of a server, as in a test
    since: float = 0.0  # when it was made, or its last answer ended, on the loop's clock
    clock: asyncio.TimerHandle | None = None
    heard: bool = False  # some bytes of a request have come since then
    working: bool = False  # a whole request has come, and its answer is not over
    requests: int = 0  # a next one may have come before the last one's end was noticed

    def close(self, refusal: Refused | None = None) -> None:
        """Close it, with an answer if one is given; what was half read is forgotten."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size():  # its client does not read: no close would end
            self.transport.abort()
            return
        if refusal is not None:
            self.transport.write(_response(refusal))
        self.transport.close()

    def abort(self) -> None:
        """Drop it at once, with what its client has not read."""
        if self.transport is not None:
            self.transport.abort()


class Connections:
    """All connections of a server.

    most: places.  seconds: for a request's headers to arrive, and of a connection without one.
    refused: hears the status of each answer that is given here, before any request was read.
    """

    def __init__(self, most: int, seconds: float, refused: Callable[[int], None]) -> None:
        self.most, self.seconds, self.refused = most, seconds, refused
        self.lines: dict[Address, Line] = {}
        self.logged, self.unlogged = -1.0, 0  # a flood of such clients is a line a second

    def opened(self, transport: Any, address: Address) -> None:
        """Give a new connection a place and a clock, or 503 if every place is at work."""
        line = Line(address, transport)
        if len(self.lines) >= self.most and not self._give_way():
            self._end(line, Refused(503, "All connections are at work. Try again in a second."))
            return
        self.lines[address] = line
        self._start(line)

    def heard(self, address: Address) -> None:
        """Note that bytes of a request have come."""
        if (line := self.lines.get(address)) is not None:
            line.heard = True

    def closed(self, address: Address) -> None:
        """Forget a connection that is gone."""
        if (line := self.lines.pop(address, None)) is not None and line.clock is not None:
            line.clock.cancel()

    @contextmanager
    def request(self, address: Address | None) -> Iterator[Line]:
        """Stop the clock while a request is carried out, and start it again after its answer."""
        line = self.lines.get(address) if address is not None else None
        if line is None:
            yield Line(address or ("", 0))
            return
        if line.clock is not None:
            line.clock.cancel()
        line.requests += 1
        try:
            yield line
        finally:
            line.requests -= 1
            if not line.requests:
                line.working = False
                if self.lines.get(line.address) is line:
                    self._start(line)

    def _start(self, line: Line) -> None:
        loop = asyncio.get_running_loop()
        line.since, line.heard = loop.time(), False
        line.clock = loop.call_later(self.seconds, self._late, line)

    def _late(self, line: Line) -> None:
        text = f"The request's headers did not arrive in {self.seconds:g} seconds."
        self._end(line, Refused(408, text) if line.heard else None)

    def _give_way(self) -> bool:
        """Close a connection without a whole request, if there is one."""
        held = Counter(host for host, _ in self.lines)
        idle = (line for line in self.lines.values() if not line.working)
        line = min(idle, key=lambda line: (-held[line.address[0]], line.since), default=None)
        if line is None:
            return False
        text = "Others were waiting for a connection while this request was not whole."
        self._end(line, Refused(408, text) if line.heard else None)
        return True

    def _end(self, line: Line, refusal: Refused | None) -> None:
        self.closed(line.address)
        if refusal is not None:
            self._log(refusal, line.address[0])
            self.refused(refusal.status)
        line.close(refusal)

    def _log(self, refusal: Refused, host: str) -> None:
        now = asyncio.get_running_loop().time()
        self.unlogged += 1
        if now - self.logged >= 1:
            text = "%s to %s: %s (%d such answers since the last line)"
            LOG.warning(text, refusal.status, host, refusal.message, self.unlogged)
            self.logged, self.unlogged = now, 0


def watched(connections: Connections) -> type[H11Protocol]:
    """Return uvicorn's protocol with `connections` listening: asyncio's three calls, no more."""

    class Watched(H11Protocol):
        """A connection of uvicorn."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.address: Address = tuple(transport.get_extra_info("peername")[:2])
            connections.opened(transport, self.address)

        def data_received(self, data: bytes) -> None:
            connections.heard(self.address)
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            connections.closed(self.address)
            super().connection_lost(exc)

    return Watched


def _response(refusal: Refused) -> bytes:
    """Return a whole answer of HTTP/1.1, for a client whose request uvicorn never saw."""
    body = json.dumps(refusal.body()).encode()
    head = (
        f"HTTP/1.1 {refusal.status} {PHRASES[refusal.status]}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
