"""A server that ends well: on SIGTERM or Ctrl-C it finishes running requests first."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from ..core.checks import between
from ..core.errors import ConfigError
from .app import LOCAL, Application
from .connections import watched

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LINGER = 0.5  # seconds, at the end, in which connections may still bring a request


def bound(host: str, port: int) -> socket.socket:
    """Open a socket that listens on an address.

    Raises: ConfigError for a port that is in use, or an address that is not this machine's.
    """
    between("--port", port, 0, 65535, "Try 8000.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # bound before the models are opened, so that a port in use is an error at once
        return socket.create_server((address[0], port), family=family, backlog=256)
    except OSError as error:
        fix = f"Try --port {port + 1 if 0 < port < 65535 else 0}, or end who listens there."
        raise ConfigError(f"{host}:{port}", got=error, want="an address of our own", fix=fix) from (
            error
        )


def is_local(host: str) -> bool:
    """Return True if an address can be reached only from this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def hosts_of(host: str) -> tuple[str, ...]:
    """Return the host names that requests may be addressed to; () = any.

    host: that the server listens on; one that only this machine reaches has a fixed list.
    """
    return (*LOCAL, host) if is_local(host) else ()


class Server(uvicorn.Server):
    """Server of uvicorn that finishes the requests it has admitted before it ends."""

    def __init__(self, app: Application) -> None:
        limits = app.limits
        config = uvicorn.Config(
            app,
            http=watched(app.connections),
            ws="none",
            log_level="warning",
            lifespan="off",
            proxy_headers=False,  # a client is identified by its address, not by headers
            # longer than the gate needs to interrupt requests itself
            timeout_graceful_shutdown=math.ceil(limits.drain + LINGER) + 5,
            timeout_keep_alive=math.ceil(limits.arrival),
            h11_max_incomplete_event_size=65536,
            server_header=False,
        )
        super().__init__(config)
        self.gate, self.connections = app.gate, app.connections

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests for half a second, then close the sockets as uvicorn does."""
        self.gate.end()
        end = time.monotonic() + LINGER
        while self.connections.open and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


def run(app: Application, listening: socket.socket, on_ready: Callable[[str], None]) -> int:
    """Serve until a signal comes; return the number of requests that the end has interrupted.

    app: the application; listening: socket; on_ready: is called with the server's address once it
    answers. A second Ctrl-C ends the server at once.
    """
    host, port = listening.getsockname()[:2]
    on_ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    try:
        Server(app).run(sockets=[listening])
    finally:
        app.close()
    return app.gate.cut
