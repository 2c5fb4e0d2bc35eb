"""In front of every request: its size, its turn, its time, and whether its client is there."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from .connections import LOOK_AGAIN, Connection, Connections
from .counters import Counters
from .refusals import GONE, Refused, broken, shown
from .settings import CURRENT_REQUEST, Limits, Request
from .turns import Turns

LOG = logging.getLogger(__name__)
READ_OFF = 1 << 20  # bytes that are read of a request that is too large
NOT_READ = 1.0  # seconds for a client to take an error that ends its request
OFTEN = (408, 429)  # refusals that any client can cause without end: at most one line a second
READS = ("GET", "HEAD", "OPTIONS")
CLOSE = (b"connection", b"close")
Message = dict[str, Any]


class RequestGate:
    """Admission of requests, around an application.

    A request is read as a whole, up to `limits.body` bytes; waits for its turn, in a queue of
    limited length; and is cancelled when its time is over or its client hangs up. `end` begins the
    shutdown: requests that were admitted may finish within `limits.drain` seconds, and new ones get
    503.

    hosts: host names that requests may be addressed to; () for any.
    cut: number of requests that the shutdown has interrupted.
    """

    def __init__(
        self,
        app: Any,
        limits: Limits,
        counters: Counters,
        hosts: tuple[str, ...] = (),
        connections: Connections | None = None,
    ) -> None:
        self.app, self.limits, self.counters, self.hosts = app, limits, counters, hosts
        # None = no limit
        self.connections = connections or Connections(0, 0, lambda _: None)
        self.turns = Turns(limits.at_once, limits.queue)
        self.cut, self.ending = 0, False
        self.ends = set[asyncio.Future[Refused | None]]()  # how to stop each request that was taken
        counters.running.set_function(lambda: self.running)
        counters.waiting.set_function(lambda: self.waiting)

    @property
    def running(self) -> int:
        """Number of requests that have their turn."""
        return self.turns.running

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their turn."""
        return len(self.turns.line)

    def end(self) -> None:
        """Begin the shutdown: refuse new requests, and interrupt others after `drain` seconds."""
        self.ending = True
        asyncio.get_running_loop().call_later(self.limits.drain, self._stop_all)

    def _stop_all(self) -> None:
        """Interrupt every request that is still carried out; their clients get 503."""
        text = f"The server ends, and its {self.limits.drain:g} seconds to finish are over."
        for end in tuple(self.ends):
            if not end.done():
                self.cut += 1
                end.set_result(Refused(503, text))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Carry out a request; every error becomes an answer, a log line and a count."""
        # neither lifespan events nor web sockets
        if scope["type"] != "http":
            return
        record, status = Request(), 500
        CURRENT_REQUEST.set(record)
        with self.connections.request(scope.get("client")) as connection:
            answer = _Answer(send, self, connection)
            try:
                await self._admitted(scope, receive, answer, connection)
                status = record.failed or answer.status
            except Refused as error:
                status = error.status
                if status in OFTEN:
                    self.connections.log(error, _host(scope))
                else:
                    LOG.warning(
                        "%s %s %s: %s", status, scope["method"], shown(scope["path"]), error
                    )
                await _refuse(answer, error, connection)
            except ConnectionError:
                status = GONE
            except asyncio.CancelledError:  # the server is killed, and does not wait
                self.cut += not answer.over
                raise
            except Exception:
                LOG.exception("%s %s failed", scope["method"], shown(scope["path"]))
                await _refuse(answer, broken(), connection)
            finally:
                self.counters.ended(record, status)

    async def _admitted(
        self, scope: Any, receive: Any, answer: _Answer, connection: Connection
    ) -> None:
        """Read a request, and let the application answer it."""
        self._refuse_other_sites(scope)
        # a request that only reads has no body and needs no turn
        if scope["method"] in READS:
            connection.working = True
            await self.app(scope, receive, answer)
            return
        self._has_room(scope)
        try:
            body = await _in_time(self._read(scope, receive), self.limits.arrival)
        except TimeoutError as error:
            text = f"The request's body did not arrive in {self.limits.arrival:g} seconds."
            raise Refused(408, text) from error
        connection.working = True
        await self._carry_out(scope, body, receive, answer)

    async def _carry_out(self, scope: Any, body: bytes, receive: Any, answer: _Answer) -> None:
        """Run the application while its client is connected and its time is not over."""
        # the body was read: the application gets it once, then waits for the client to leave
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            if (first := next(messages, None)) is not None:
                return first
            await asyncio.shield(end)
            return {"type": "http.disconnect"}

        # `_stoppable` watches the time and the client, also while the application does not
        with self._stoppable(answer, receive) as end:
            work = asyncio.create_task(self._in_turn(scope, replay, answer))
            try:
                await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done() and answer.over:  # a client may leave with the last byte
                    await asyncio.wait({work}, timeout=NOT_READ)
                if work.done() or answer.over:
                    if work.done():
                        work.result()
                    return
                work.cancel()
                await asyncio.wait({work})
                # None means that the client has left
                if (refusal := end.result()) is None:
                    raise ConnectionError
                raise refusal
            finally:
                work.cancel()

    @contextmanager
    def _stoppable(self, answer: _Answer, receive: Any) -> Iterator[asyncio.Future[Any]]:
        """Yield a future that is set when a request must stop: error, or None for a lost client."""
        loop = asyncio.get_running_loop()
        end: asyncio.Future[Refused | None] = loop.create_future()

        def stop(refusal: Refused | None) -> None:
            if not end.done():
                end.set_result(refusal)

        seconds = self.limits.seconds
        late = Refused(504, f"The answer was not there in {seconds:g} seconds.")
        clock = loop.call_at(answer.began + seconds, stop, late)
        watch = loop.create_task(_hung_up(receive))
        watch.add_done_callback(lambda task: None if task.cancelled() else stop(None))
        # three things end a request: its time, its client, and the shutdown
        self.ends.add(end)
        try:
            yield end
        finally:
            self.ends.discard(end)
            clock.cancel()
            watch.cancel()

    def _has_room(self, scope: Any) -> None:
        """Raise Refused if a new request finds no room: 429 for full queues, 503 in a shutdown."""
        if self.ending:
            raise Refused(503, "The server ends. Ask again when it is back, or ask another one.")
        self.turns.check_room(_host(scope))

    async def _in_turn(self, scope: Any, receive: Any, send: Any) -> None:
        """Wait for a turn, then run the application; scope, receive, send: of ASGI."""
        self._has_room(scope)  # others may have come in while this one was read
        async with self.turns.turn(_host(scope)):
            await self.app(scope, receive, send)

    async def _read(self, scope: Any, receive: Callable[..., Any]) -> bytes:
        limit = self.limits.body
        length = dict(scope["headers"]).get(b"content-length", b"0")
        # the header may be absent or false: what counts is what arrives
        parts, size, unfinished = list[bytes](), 0, True
        while unfinished and size <= limit + READ_OFF:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            body = message.get("body", b"")
            size += len(body)
            if size <= limit:
                parts.append(body)
            unfinished = message.get("more_body", False)
        if size > limit:
            size_text = int(length) if length.isdigit() else f"more than {limit}"
            raise Refused(413, f"The request has {size_text} bytes, at most {limit} are read.")
        return b"".join(parts)

    def _refuse_other_sites(self, scope: Any) -> None:
        """Refuse requests that a page of another site makes a browser send."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        try:
            name = urlsplit(f"//{host}").hostname
            site = urlsplit(headers.get(b"origin", b"").decode("latin-1")).netloc
        except ValueError as error:
            raise Refused(400, f"The header 'host' or 'origin' is no address: {error}.") from error
        # DNS rebinding: another site's name that resolves to this machine
        if self.hosts and name not in self.hosts:
            raise Refused(400, f"This server has no name {shown(host)}.")
        if b"origin" in headers and site != host:
            raise Refused(403, "A page of another site may not ask this server.")


class _Answer:
    """Answer on its way to a client; it records status, 0 before it is sent, and end."""

    def __init__(self, send: Any, gate: RequestGate, connection: Connection) -> None:
        self.send, self.gate, self.connection = send, gate, connection
        self.status, self.stream, self.over = 0, False, False
        self.began = asyncio.get_running_loop().time()
        # seconds that are left for the client to take its answer, of all pieces together
        self.patience = gate.limits.arrival

    async def __call__(self, message: Message) -> None:
        """Pass an ASGI message on to the client, and record status, kind and end of the answer."""
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            self.status = message["status"]
            self.stream = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
            if self.gate.ending:  # no further request should be on its way when it is closed
                message = message | {"headers": [*headers, CLOSE]}
        elif not message.get("more_body", False):
            self.over = True
        if not self.connection.unread_bytes:
            await self.send(message)
            return
        # it waits until the earlier messages are on their way
        time = asyncio.get_running_loop().time
        before = time()
        try:
            await _in_time(self.send(message), self.patience)
        except TimeoutError as error:
            self.connection.abort()
            raise ConnectionError("the client does not read its answer") from error
        finally:
            self.patience = max(0.0, self.patience - (time() - before))

    async def refuse(self, refusal: Refused) -> None:
        """Send an error: as the answer, or as the last event of a stream that has begun."""
        body = json.dumps(refusal.body()).encode()
        if self.over:
            return
        if not self.status:
            headers = [(b"content-type", b"application/json"), CLOSE]
            if refusal.status in (429, 503):
                headers.append((b"retry-after", b"1"))
            start = {"type": "http.response.start", "status": refusal.status, "headers": headers}
            await self.send(start)
            await self.send({"type": "http.response.body", "body": body})
        elif self.stream:
            await self.send({"type": "http.response.body", "body": b"data: " + body + b"\n\n"})
        self.over = True


async def _refuse(answer: _Answer, refusal: Refused, connection: Connection) -> None:
    """Send an error, and drop the connection if the client does not read it within a second."""
    try:
        async with asyncio.timeout(NOT_READ):
            await answer.refuse(refusal)
    except TimeoutError:
        connection.abort()


async def _hung_up(receive: Any) -> None:
    """Wait until the client has disconnected; receive: of ASGI."""
    with suppress(ConnectionError):
        while (await receive())["type"] != "http.disconnect":
            pass


def _host(scope: Any) -> str:
    """Return the address of a request's client; "" outside of a server."""
    return (scope.get("client") or ("",))[0]


async def _in_time(work: Awaitable[Any], seconds: float) -> Any:
    """Return the result of some work; after a pause of this process, look at it twice."""
    task = asyncio.ensure_future(work)
    try:
        for wait in (seconds, LOOK_AGAIN):
            done, _ = await asyncio.wait({task}, timeout=wait)
            if done:
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()
