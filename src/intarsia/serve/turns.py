"""Which request comes next: requests wait in one queue; each address has its share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from .refusals import Refused


class Turns:
    """Requests that run, and those that wait for it.

    A free turn goes to the address with the fewest running requests, the first of them in order of
    arrival. If the queue is full, the newest request of the address with the most gives way to an
    address that has at least two fewer.

    at_once: requests that run; queue: requests that wait.
    """

    def __init__(self, at_once: int, queue: int) -> None:
        self.at_once, self.queue = at_once, queue
        self.hosts = Counter[str]()  # address -> number of its requests that run
        self.line: list[tuple[str, asyncio.Future[None]]] = []

    @property
    def running(self) -> int:
        """Number of requests that run."""
        return self.hosts.total()

    def check_room(self, host: str) -> None:
        """Check that a new request finds room.

        Raises: Refused, 429, if the queue is full and nobody in it gives way.
        """
        is_full = self.running >= self.at_once and len(self.line) >= self.queue
        if is_full and self._gives_way(host) is None:
            raise self._refusal()

    @asynccontextmanager
    async def turn(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it inside the `async with`; host: address of the client.

        Raises: Refused, 429, if the queue is full, or if this request has to give way in it.
        """
        self.check_room(host)
        if self.running >= self.at_once:
            await self._wait(host)
        else:
            self.hosts[host] += 1
        try:
            yield
        finally:
            self._leave(host)

    async def _wait(self, host: str) -> None:
        """Wait in the queue until a turn was given.  Raises: Refused."""
        if len(self.line) >= self.queue and (last := self._gives_way(host)) is not None:
            self.line.remove(last)
            last[1].set_exception(self._refusal())
        place = host, asyncio.get_running_loop().create_future()
        self.line.append(place)
        try:
            await place[1]
        except asyncio.CancelledError:
            with suppress(ValueError):
                self.line.remove(place)
            # cancelled in the moment in which it got its turn
            if place[1].done() and not place[1].cancelled() and place[1].exception() is None:
                self._leave(host)
            raise

    def _leave(self, host: str) -> None:
        """End a turn of an address, and give it to the next request."""
        self.hosts[host] -= 1
        if not self.hosts[host]:
            del self.hosts[host]
        if self.line:
            following = min(self.line, key=lambda place: self.hosts[place[0]])
            self.line.remove(following)
            self.hosts[following[0]] += 1
            following[1].set_result(None)

    def _gives_way(self, host: str) -> tuple[str, asyncio.Future[None]] | None:
        """Return the place in the queue that a request of an address may have; None = none."""
        share = self.hosts + Counter(waiting for waiting, _ in self.line)
        last = max(reversed(self.line), key=lambda place: share[place[0]], default=None)
        return last if last is not None and share[last[0]] > share[host] + 1 else None

    def _refusal(self) -> Refused:
        text = f"{len(self.line)} requests are waiting. Try again in a second."
        return Refused(429, text, code="rate_limit_exceeded")
