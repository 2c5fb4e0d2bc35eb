"""Nobody locks the server out, its counters are true, and its end is told to those it cuts off."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib
import json
import logging
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from intarsia.serve.connections import Connections
from intarsia.serve.models import ServedModel

from .conftest import Running, until, wanted

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HALF = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-"


def half_sent(port: int, raw: bytes = HALF, source: str = "127.0.0.2") -> socket.socket:
    connection = socket.create_connection(
        ("127.0.0.1", port), timeout=20, source_address=(source, 0)
    )
    with contextlib.suppress(ConnectionError):  # it may be closed already
        connection.sendall(raw)
    return connection


def test_a_request_that_does_not_arrive_is_closed_with_408(opened: dict[str, ServedModel]) -> None:
    running = Running(opened, arrival=0.3)
    body = HALF + b"type: application/json\r\ncontent-length: 50\r\n\r\n{"
    try:
        with half_sent(running.port) as head, half_sent(running.port, body) as part:
            with socket.create_connection(("127.0.0.1", running.port), timeout=20) as silent:
                assert silent.recv(1000) == b"", "nothing was asked, and nothing is answered"
            for line in (head, part):
                answer = http.client.HTTPResponse(line)
                answer.begin()
                error = json.loads(answer.read())["error"]
                assert answer.status == 408 and "0.3 seconds" in error["message"]
                assert line.recv(1) == b"", "the connection is closed"
        until(lambda: running.counts('requests_total{model="",status="408"}') == 2)
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        for _ in range(2):  # a connection that is kept has its clock from the last answer
            connection.request("GET", "/health")
            assert connection.getresponse().read()
        assert connection.sock is not None and connection.sock.recv(1) == b""
        connection.close()
    finally:
        running.end()


def test_a_full_house_closes_the_oldest_idle_one_of_the_greediest_address(
    opened: dict[str, ServedModel],
) -> None:
    running = Running(opened, at_once=2, queue=2, arrival=60)
    running.app.connections.places = 12
    want = wanted(opened["mix"], "one")
    try:
        with contextlib.ExitStack() as open_lines:
            idle = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
            idle.request("GET", "/health")
            idle.getresponse().read()
            first = open_lines.enter_context(half_sent(running.port))
            lines = running.app.connections.open
            until(lambda: any(a[0] == "127.0.0.2" and lines[a].heard for a in tuple(lines)))
            for _ in range(40):
                open_lines.enter_context(half_sent(running.port))
            assert first.recv(12) == b"HTTP/1.1 408"
            for _ in range(3):
                status, answer = running.say("one")
                assert status == 200 and answer["choices"][0]["text"] == want
            idle.request("GET", "/health")  # an older one, of an address that holds one
            assert idle.getresponse().status == 200
            assert len(running.app.connections.open) <= 12
            idle.close()
    finally:
        running.end()


class Wire:
    """A transport that notes what it is told."""

    def __init__(self) -> None:
        self.written, self.closed = b"", False

    def write(self, raw: bytes) -> None:
        self.written += raw

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


def test_where_every_connection_is_at_work_a_newcomer_gets_503() -> None:
    statuses: list[int] = []

    async def full() -> None:
        house = Connections(2, 10, statuses.append)
        with contextlib.ExitStack() as at_work:
            for port in (1, 2):
                house.opened(Wire(), ("127.0.0.1", port))
                at_work.enter_context(house.request(("127.0.0.1", port))).working = True
            late = Wire()
            house.opened(late, ("127.0.0.9", 3))
            assert late.closed and late.written.startswith(b"HTTP/1.1 503 Service Unavailable")
            assert len(house.open) == 2
        idle = Wire()  # both are idle now, and the one that is so for longer gives way
        house.opened(idle, ("127.0.0.9", 4))
        assert not idle.closed and ("127.0.0.1", 2) not in house.open

    asyncio.run(full())
    assert statuses == [503]


def test_the_clock_stands_while_a_next_request_has_come() -> None:
    """Before the end of the last one was noticed, as a fast client's does."""
    wire = Wire()

    async def overlapping() -> None:
        house = Connections(2, 0.05, lambda _: None)
        house.opened(wire, ("127.0.0.1", 1))
        last, following = (house.request(("127.0.0.1", 1)) for _ in range(2))
        with contextlib.ExitStack() as second:
            with last:
                second.enter_context(following)
            await asyncio.sleep(0.2)
            assert not wire.closed
        await asyncio.sleep(0.2)

    asyncio.run(overlapping())
    assert wire.closed


def test_counters_have_the_status_that_was_sent(opened: dict[str, ServedModel]) -> None:
    running = Running(opened, tokens=64, at_once=4)
    try:
        requests: list[dict[str, Any]] = [
            *({"stream": stream} for stream in (False, True) for _ in range(4)),
            {"n": 2},
            {"temperature": 1},
            {"temperature": 9},
            {"model": "nobody"},
        ]
        with ThreadPoolExecutor(6) as pool:
            statuses = list(pool.map(lambda request: running.say("one", **request)[0], requests))
        assert statuses == [200] * 10 + [400, 404]
        until(lambda: running.counts('requests_total{model="mix",status="200"}') == 10)
        assert running.counts('requests_total{model="mix",status="400"}') == 1
        assert running.counts('requests_total{model="",status="404"}') == 1
        assert not running.counts('requests_total{model="mix",status="499"}')
        assert running.counts("generation_tokens_total") == 11 * 8
    finally:
        running.end()


@pytest.fixture
def stuck(opened: dict[str, ServedModel]) -> Iterator[Running]:
    """A server that generates nothing until it is let go."""
    running = Running(opened, tokens=64, at_once=3, drain=0.5, batching="none")
    release = threading.Event()
    running.app.generations.thread.submit(release.wait, 30)
    yield running
    release.set()
    running.end()


def test_a_drain_that_runs_out_is_told_to_those_it_cuts_off(stuck: Running) -> None:
    with ThreadPoolExecutor(4) as pool:
        plain = pool.submit(stuck.say, "one")
        chat = {"model": "mix", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        stream = pool.submit(stuck.ask, "/v1/chat/completions", chat)
        until(lambda: stuck.app.gate.running == 2)
        # a connection from before the end
        idle = http.client.HTTPConnection("127.0.0.1", stuck.port, timeout=20)
        idle.request("GET", "/health")
        assert idle.getresponse().read()
        stuck.server.handle_exit(15, None)
        until(lambda: stuck.app.gate.ending)
        body = json.dumps({"model": "mix", "prompt": "one"})
        idle.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        late = idle.getresponse()
        assert late.status == 503 and late.headers["connection"] == "close"
        status, answer = plain.result()
        assert status == 503 and answer["error"]["type"] == "server_error"
        status, text = stream.result()
        error = json.loads(text.split("data: ")[-1])["error"]
        assert status == 200 and error["message"] == answer["error"]["message"]
        idle.close()
    stuck.thread.join(20)
    assert not stuck.thread.is_alive() and stuck.app.gate.cut == 2


def test_a_client_s_mistake_is_one_line_in_the_log(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        body = {"model": "mix", "messages": [{"role": "assistant", "tool_calls": "x\ny"}]}
        assert server.ask("/v1/chat/completions", body)[0] == 400
        assert server.ask("/v1/embeddings", {"model": "mix", "input": "x"})[0] == 404
        assert server.ask("/v1/completions")[0] == 405
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("intarsia")]
    assert len(lines) == 3 and not any("\n" in line for line in lines)
    assert "tool_calls" in lines[0] and not any(record.exc_info for record in caplog.records)


def sent(server: Running) -> float:
    """Count the answers with status 200 without asking the server, which would count that, too."""
    lines = server.app.counters.text().decode().splitlines()
    return sum(float(x.split()[-1]) for x in lines if "requests_total" in x and '="200"' in x)


def test_hostile_requests_are_the_client_s_mistakes(
    server: Running, opened: dict[str, ServedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form of benchmarks/serving_edges.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    hostile = importlib.import_module("serving_edges").hostile
    rng = random.Random(7)
    before = sent(server)
    answered = 0
    statuses = set[int]()
    for _ in range(200):
        status = hostile(server.port, rng, "mix")
        statuses.add(status)
        answered += status == 200
    assert not {s for s in statuses if s >= 500}, statuses
    assert {200, 400, 404, 405} <= statuses
    until(lambda: sent(server) - before == answered)
    want = wanted(opened["mix"], "one")
    assert server.say("one")[1]["choices"][0]["text"] == want
    until(lambda: server.app.gate.running == 0)
