"""In front of every request: its size, its turn, its time, and whether its client is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from .counters import Counters
from .settings import NOW, Limits, Request

GONE, LATE, FULL = 499, 504, 429  # 499: the client closed the connection, as nginx writes it
DONE = b"data: [DONE]\n\n"  # what clients of OpenAI's routes wait for; transformers leaves it out
STREAMS = ("/v1/chat/completions", "/v1/completions")
READ_OFF = 1 << 20  # bytes of a request that is too large
Message = dict[str, Any]


class Refused(Exception):
    """An answer before the request is read: its status and what is said."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Gate:
    """ASGI around the application.

    A request is read as a whole, up to so many bytes; waits for its turn, in a queue with an end;
    and is cancelled when its time is over or its client hangs up.
    """

    def __init__(self, app: Any, limits: Limits, counters: Counters) -> None:
        self.app, self.limits, self.counters = app, limits, counters
        self.turns = asyncio.Semaphore(limits.at_once)
        self.running = self.waiting = 0
        counters.running.set_function(lambda: self.running)
        counters.waiting.set_function(lambda: self.waiting)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        told = Request()
        NOW.set(told)
        answer, status = _Answer(send, scope["path"] in STREAMS), 500
        try:
            self._same_site(scope)
            self._has_room()
            async with asyncio.timeout(self.limits.seconds):
                body = await self._read(scope, receive)
            status = await self._carry_out(scope, body, receive, answer, told)
        except Refused as error:
            status = error.status
            await answer.refuse(error.status, error.text)
        except TimeoutError:
            status = 408
            await answer.refuse(408, "The request did not arrive in time.")
        except ConnectionError:
            status = GONE
        finally:
            self.counters.ended(told, status)

    async def _carry_out(
        self, scope: Any, body: bytes, receive: Any, answer: _Answer, told: Request
    ) -> int:
        """Run the application while its client is there and its time is not over."""
        gone = asyncio.Event()
        given = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            if (first := next(given, None)) is not None:
                return first
            await gone.wait()
            return {"type": "http.disconnect"}

        work = asyncio.create_task(self._in_turn(scope, replay, answer))
        watch = asyncio.create_task(_hung_up(receive))
        left = self.limits.seconds - (asyncio.get_running_loop().time() - answer.began)
        try:
            await asyncio.wait({work, watch}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return answer.status
            hung_up = watch.done()
            gone.set()
            work.cancel()
            await asyncio.wait({work})
            if hung_up:
                return GONE
            seconds = self.limits.seconds
            await answer.refuse(LATE, f"The answer was not there in {seconds:g} seconds.")
            return LATE
        finally:  # also when the server itself ends
            for task in (work, watch):
                task.cancel()

    def _has_room(self) -> None:
        """Raises: Refused, 429, where as many are in the works and wait as may."""
        if self.running >= self.limits.at_once and self.waiting >= self.limits.queue:
            text = f"{self.waiting} requests are waiting. Try again in a second."
            raise Refused(FULL, text)

    async def _in_turn(self, scope: Any, receive: Any, send: Any) -> None:
        self._has_room()  # others may have come in while this one was read
        self.waiting += 1
        try:
            await self.turns.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.running -= 1
            self.turns.release()

    async def _read(self, scope: Any, receive: Callable[..., Any]) -> bytes:
        """The whole body.  Raises: Refused, 413; ConnectionError if it ends before.

        Of one that is too large, some is read off: a connection that is closed with bytes unread is
        reset, and its client then may not see the answer.
        """
        most = self.limits.body
        length = dict(scope["headers"]).get(b"content-length", b"0")
        found, size, more = b"", 0, True
        while more and size <= most + READ_OFF:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            body = message.get("body", b"")
            size += len(body)
            found = found + body if size <= most else b""
            more = message.get("more_body", False)
        if size > most:
            many = int(length) if length.isdigit() else f"more than {most}"
            raise Refused(413, f"The request has {many} bytes, at most {most} are read.")
        return found

    def _same_site(self, scope: Any) -> None:
        """Raises: Refused, 403, for a request that a page of another site makes a browser send."""
        headers = dict(scope["headers"])
        origin, host = headers.get(b"origin"), headers.get(b"host", b"")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Refused(403, "A page of another site may not ask this server.")


class _Answer:
    """Sends on, and knows what was sent."""

    def __init__(self, send: Any, done: bool) -> None:
        self.send, self.done = send, done
        self.status, self.stream, self.over = 0, False, False
        self.began = asyncio.get_running_loop().time()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            kinds = dict(message["headers"]).get(b"content-type", b"")
            self.stream = kinds.startswith(b"text/event-stream")
        elif not message.get("more_body", False):
            self.over = True
            if self.stream and self.done and self.status == 200:
                message = message | {"body": message.get("body", b"") + DONE}
        await self.send(message)

    async def refuse(self, status: int, text: str) -> None:
        """Say it, in a stream that has begun as its last line."""
        told = json.dumps(error_body(status, text)).encode()
        if self.over:
            return
        if not self.status:
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            if status == FULL:
                headers.append((b"retry-after", b"1"))
            await self.send({"type": "http.response.start", "status": status, "headers": headers})
            await self.send({"type": "http.response.body", "body": told})
        elif self.stream:
            await self.send({"type": "http.response.body", "body": b"data: " + told + b"\n\n"})
        self.over = True


def error_body(status: int, text: str) -> dict[str, Any]:
    """As OpenAI's clients read it."""
    kinds = {401: "authentication_error", 403: "permission_error", FULL: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    code = "model_not_found" if status == 404 else None
    return {"error": {"message": text, "type": kind, "param": None, "code": code}}


async def _hung_up(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
