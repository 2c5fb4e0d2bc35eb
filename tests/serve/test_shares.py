"""Clients that do not read, addresses that ask for everything, and a process that stands still."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from intarsia.serve.connections import Connections
from intarsia.serve.models import ServedModel
from intarsia.serve.refusals import Refused
from intarsia.serve.turns import Turns

from .conftest import Running, until

PAGE = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"


def deaf(port: int, raw: bytes, source: str = "127.0.0.2") -> socket.socket:
    """A client that sends all it wants and reads nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.bind((source, 0))
    connection.connect(("127.0.0.1", port))
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError, ConnectionError):
        connection.sendall(raw)
    return connection


def posted(**body: Any) -> bytes:
    raw = json.dumps({"model": "mix", "prompt": "one", **body}).encode()
    head = f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    return b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n" + head.encode() + raw


def counted(running: Running, labels: str) -> float:
    """Count requests without asking the server, whose clock may run out on a slow machine."""
    lines = running.app.counters.text().decode().splitlines()
    return sum(float(x.split()[-1]) for x in lines if f"requests_total{{{labels}" in x)


def test_clients_that_do_not_read_give_their_places_to_others(
    opened: dict[str, ServedModel],
) -> None:
    running = Running(opened, arrival=60)
    running.app.connections.places = 10
    lines = running.app.connections.open
    try:
        with contextlib.ExitStack() as clients:
            for _ in range(10):
                clients.enter_context(deaf(running.port, PAGE * 1500))
            until(
                lambda: len(lines) == 10 and all(c.unread_bytes for c in tuple(lines.values())), 120
            )
            for _ in range(3):
                assert running.ask("/health")[0] == 200
    finally:
        running.end()


@pytest.mark.parametrize("raw", [PAGE * 1500, posted(stream=True, max_tokens=200) * 400])
def test_an_answer_that_is_not_read_ends(
    raw: bytes, opened: dict[str, ServedModel], caplog: pytest.LogCaptureFixture
) -> None:
    running = Running(opened, arrival=0.3, tokens=200)
    running.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    try:
        with caplog.at_level(logging.WARNING), deaf(running.port, raw):
            until(lambda: counted(running, "") > 0, 120)
            until(lambda: not running.app.connections.open, 120)
            until(lambda: running.app.gate.running == 0, 120)
        assert not [record for record in caplog.records if record.exc_info], caplog.text
        assert not counted(running, 'model="",status="500"')
    finally:
        running.end()


def test_late_bodies_do_not_fill_the_log(
    opened: dict[str, ServedModel], caplog: pytest.LogCaptureFixture
) -> None:
    running = Running(opened, arrival=0.1)
    try:
        with caplog.at_level(logging.WARNING), contextlib.ExitStack() as clients:
            for _ in range(40):
                clients.enter_context(deaf(running.port, posted()[:-5]))
            until(lambda: counted(running, 'model="",status="408"') == 40, 120)
        lines = [record.getMessage() for record in caplog.records]
        told = [line for line in lines if line.startswith("408 to")]
        assert told and told == lines, "the line that counts, and no other"
    finally:
        running.end()


def test_an_address_has_its_share_of_the_queue(opened: dict[str, ServedModel]) -> None:
    running = Running(opened, at_once=1, queue=2, batching="none")
    release = threading.Event()
    running.app.generations.thread.submit(release.wait, 30)  # nothing is generated meanwhile
    gate = running.app.gate
    try:
        with contextlib.ExitStack() as clients, ThreadPoolExecutor(1) as pool:
            for count in range(3):
                clients.enter_context(deaf(running.port, posted()))
                until(lambda count=count: gate.running + gate.waiting == count + 1)
            neighbour = pool.submit(running.say, "one")
            until(lambda: any(host == "127.0.0.1" for host, _ in tuple(gate.turns.line)))
            assert gate.waiting == 2
            until(lambda: running.counts('requests_total{model="",status="429"}') == 1)
            release.set()
            assert neighbour.result()[0] == 200
    finally:
        release.set()
        running.end()


def test_a_free_turn_goes_to_the_address_with_the_fewest() -> None:
    order: list[str] = []

    async def ask(turns: Turns, host: str, name: str) -> None:
        try:
            async with turns.turn(host):
                await asyncio.sleep(0)
                order.append(name)
        except Refused as error:
            order.append(f"{name} {error.status}")

    async def asked() -> None:
        turns = Turns(2, 3)
        async with turns.turn("a"):
            async with turns.turn("a"):
                asks = [asyncio.create_task(ask(turns, "a", f"a{n}")) for n in range(3)]
                await asyncio.sleep(0)
                asks.append(asyncio.create_task(ask(turns, "b", "b")))  # takes the place of a2
                await asyncio.sleep(0)
                with pytest.raises(Refused):
                    turns.check_room("a")
                asks[1].cancel()  # leaves the queue, and others move up
                await asyncio.sleep(0)
            await asyncio.gather(*asks, return_exceptions=True)
        assert turns.running == 0 and not turns.line

    asyncio.run(asked())
    assert order == ["a2 429", "b", "a0"]


def test_a_request_that_came_while_the_process_stood_still_is_answered(
    opened: dict[str, ServedModel],
) -> None:
    running = Running(opened, arrival=3)
    still, go = threading.Event(), threading.Event()

    def stand() -> None:
        still.set()
        go.wait(30)

    body = posted(max_tokens=2)
    try:
        assert running.ask("/health")[0] == 200
        loop: Any = running.server.servers[0].get_loop()
        lines = [socket.create_connection(("127.0.0.1", running.port), 20) for _ in range(6)]
        for number, line in enumerate(lines):
            line.sendall((b"", body[:40], body[:-5])[number // 2])
        until(lambda: len(running.app.connections.open) == 6)
        loop.call_soon_threadsafe(stand)
        still.wait(30)
        for number, line in enumerate(lines):
            line.sendall(body[(0, 40, len(body) - 5)[number // 2] :])
        end = loop.time() + 3.5
        until(lambda: loop.time() > end)
        go.set()
        for line in lines:
            answer = http.client.HTTPResponse(line)
            answer.begin()
            assert answer.status == 200, answer.read()
            line.close()
    finally:
        go.set()
        running.end()


def test_a_whole_request_has_no_clock_before_it_begins() -> None:
    async def arrived() -> None:
        house = Connections(1, 0.01, lambda _: None)
        house.opened(None, ("127.0.0.1", 1))
        house.arrived(("127.0.0.1", 1), True)
        await asyncio.sleep(0.2)
        assert house.open, "it was closed while its task had not begun"

    asyncio.run(arrived())
