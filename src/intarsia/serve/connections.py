"""The connections of clients: a clock for each, and who gives way when there are too many.

A request has so many seconds to arrive. A connection without one is closed after the same time. If
all places are taken, a newcomer gets the place of a connection that is idle or half a request, or
of one with a client that does not read: the oldest one of the address that holds most, so that no
client locks out the others.
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
LOOK_AGAIN = 0.05  # seconds after a clock has run out: this process may have stood still meanwhile
Address = tuple[str, int]


@dataclass(eq=False)
class Connection:
    """Connection of a client."""

    address: Address
    transport: asyncio.Transport | None = None  # None: outside of a server, as in a test
    since: float = 0.0  # time of the loop at which it was opened, or its last answer ended
    clock: asyncio.TimerHandle | None = None
    heard: bool = False  # some bytes of a request have come since then
    working: bool = False  # a whole request has come, and its answer is not over
    requests: int = 0  # number of requests that are carried out

    def close(self, refusal: Refused | None = None) -> None:
        """Close the connection, with an answer if one is given; a half-read request is dropped."""
        if self.transport is None:
            return
        if refusal is not None and not self.unread_bytes and not self.transport.is_closing():
            self.transport.write(_response(refusal))
        # close() would wait until the client has read everything, which it may never do
        if self.unread_bytes:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.close()

    @property
    def unread_bytes(self) -> int:
        """Number of bytes of answers that wait until the client reads."""
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Drop the connection at once; answers that its client has not read are lost."""
        if self.transport is not None:
            self.transport.abort()


class Connections:
    """Connections of a server, with a timer for each.

    places: most connections at once.  seconds: for a request's headers to arrive, and of a
    connection without a request.  refused: function that is called with the status of each answer
    that is given here, before any request was read.
    """

    def __init__(self, places: int, seconds: float, refused: Callable[[int], None]) -> None:
        self.places, self.seconds, self.refused = places, seconds, refused
        self.open: dict[Address, Connection] = {}
        self.logged, self.unlogged = -1.0, 0  # at most one log line a second

    def opened(self, transport: Any, address: Address) -> None:
        """Register a new connection and start its timer; answer 503 if all are at work."""
        connection = Connection(address, transport)
        if len(self.open) >= self.places and not self._give_way(address[0]):
            self._end(
                connection, Refused(503, "All connections are at work. Try again in a second.")
            )
            return
        self.open[address] = connection
        self._start(connection)

    def heard(self, address: Address) -> None:
        """Record that bytes of a request have come from an address."""
        if (connection := self.open.get(address)) is not None:
            connection.heard = True

    def arrived(self, address: Address, whole: bool) -> None:
        """Stop a connection's timer, which may not have begun yet, after its request has come.

        whole: the request has no body, or all of it has come, too.
        """
        if (connection := self.open.get(address)) is not None:
            connection.working = connection.working or whole
            if connection.clock is not None:
                connection.clock.cancel()

    def closed(self, address: Address) -> None:
        """Forget a connection that has ended, and stop its timer."""
        if (
            connection := self.open.pop(address, None)
        ) is not None and connection.clock is not None:
            connection.clock.cancel()

    @contextmanager
    def request(self, address: Address | None) -> Iterator[Connection]:
        """Stop the timer of a connection while its request is carried out, inside the `with`.

        address: of the client; None, or an unknown one, is outside of a server. Yields the
        connection.
        """
        connection = self.open.get(address) if address is not None else None
        if connection is None:
            yield Connection(address or ("", 0))
            return
        if connection.clock is not None:
            connection.clock.cancel()
        # a client may send its next request before we have seen the end of its last one
        connection.requests += 1
        try:
            yield connection
        finally:
            connection.requests -= 1
            if not connection.requests:
                connection.working = False
                # it may have been closed while its request was carried out
                if self.open.get(connection.address) is connection:
                    self._start(connection)

    def _start(self, connection: Connection) -> None:
        """Start the timer of a connection without a request, which closes it when it runs out."""
        loop = asyncio.get_running_loop()
        connection.since, connection.heard = loop.time(), False
        connection.clock = loop.call_later(self.seconds, self._look_again, connection)

    def _look_again(self, connection: Connection) -> None:
        """Give a request that came while this process stood still the time to be read."""
        loop = asyncio.get_running_loop()
        connection.clock = loop.call_later(LOOK_AGAIN, self._close_late, connection)

    def _close_late(self, connection: Connection) -> None:
        """Close a connection if its request did not arrive in time, with 408 if it had begun."""
        text = f"The request's headers did not arrive in {self.seconds:g} seconds."
        self._end(connection, Refused(408, text) if connection.heard else None)

    def _give_way(self, newcomer: str) -> bool:
        """Close one connection to make room for an address; return False if there is none."""
        per_host = Counter(host for host, _ in self.open)

        def is_stalled(connection: Connection) -> bool:
            return (
                connection.unread_bytes > 0 and per_host[connection.address[0]] > per_host[newcomer]
            )

        # the address that holds most connections loses its oldest one
        connection = min(
            (each for each in self.open.values() if not each.working or is_stalled(each)),
            key=lambda each: (-per_host[each.address[0]], each.working, each.since),
            default=None,
        )
        if connection is None:
            return False
        if connection.working:
            self._end(connection, None)
            return True
        text = "Others were waiting for a connection while this request was not whole."
        self._end(connection, Refused(408, text) if connection.heard else None)
        return True

    def _end(self, connection: Connection, refusal: Refused | None) -> None:
        """Close a connection and forget it; count and log the refusal, if there is one."""
        self.closed(connection.address)
        if refusal is not None:
            self.log(refusal, connection.address[0])
            self.refused(refusal.status)
        connection.close(refusal)

    def log(self, refusal: Refused, host: str) -> None:
        """Log a refusal to an address, at most one line a second, with the number of others."""
        now = asyncio.get_running_loop().time()
        self.unlogged += 1
        if now - self.logged >= 1:
            text = "%s to %s: %s (%d such answers since the last line)"
            LOG.warning(text, refusal.status, host, refusal.message, self.unlogged)
            self.logged, self.unlogged = now, 0


def watched(connections: Connections) -> type[H11Protocol]:
    """Return uvicorn's protocol class, changed to report its connections to `connections`."""

    class Watched(H11Protocol):
        """A connection of uvicorn."""

        def connection_made(self, transport: Any) -> None:
            """Register a new connection by the address of its client."""
            super().connection_made(transport)
            # without a peer there is nothing to count: sockets of IPv6 have four fields, two are
            # enough
            self.address: Address = tuple(transport.get_extra_info("peername")[:2])
            # an answer waits until its client has read the one before
            transport.set_write_buffer_limits(high=0)
            connections.opened(transport, self.address)

        def data_received(self, data: bytes) -> None:
            connections.heard(self.address)
            super().data_received(data)
            if self.cycle and not self.cycle.response_complete:
                connections.arrived(self.address, not self.cycle.more_body)

        def timeout_keep_alive_handler(self) -> None:
            """Leave idle connections to their own timer, which does not wait for their clients."""

        def connection_lost(self, exc: Exception | None) -> None:
            connections.closed(self.address)
            super().connection_lost(exc)

    return Watched


def _response(refusal: Refused) -> bytes:
    """Return a refusal as bytes of HTTP/1.1, for a client with a request that uvicorn never saw."""
    body = json.dumps(refusal.body()).encode()
    head = (
        f"HTTP/1.1 {refusal.status} {PHRASES[refusal.status]}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
