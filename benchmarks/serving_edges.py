"""Clients that a server must survive: half-sent requests, hostile ones, and a SIGTERM under load.

`python benchmarks/serving.py MODEL --edges` runs all three against a server of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

HALF = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-"
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
NAMES = (
    *("model", "prompt", "messages", "input", "max_tokens", "n", "temperature", "top_p", "seed"),
    *(
        "stop",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "stream",
        "stream_options",
        "tools",
        "user",
    ),
    *("frequency_penalty", "presence_penalty", "tool_choice", "response_format", "instructions"),
    *("chat_template_kwargs", "echo", "suffix", "best_of", "metadata", "text", "nonsense"),
)
MESSAGE: tuple[Any, ...] = (
    {"role": "user", "content": "x"},
    {"role": "assistant", "tool_calls": "x"},
    {"role": "assistant", "tool_calls": [{"function": {"name": 1, "arguments": "{"}}]},
    {"role": "tool", "content": None},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]},
    {"type": "function_call", "call_id": [], "name": {}, "arguments": 1},
    {},
    3,
)


def valid(rng: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    """Return a path and a request that is answered."""
    path = rng.choice(PATHS)
    text = rng.choice(("one", "Once upon", "x"))
    body: dict[str, Any] = {"model": model, "temperature": 0, "stream": rng.random() < 0.3}
    if path == PATHS[0]:
        return path, body | {"prompt": text, "max_tokens": 2}
    if path == PATHS[1]:
        return path, body | {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
    return path, body | {"input": text, "max_output_tokens": 2}


def junk(rng: random.Random, depth: int = 0) -> Any:
    """Return a value of any type and size."""
    scalars: tuple[Any, ...] = (
        *(None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 10**30, -(10**30), "", "x", "\x00"),
        *("\ud800", "é" * 50, "x" * 3000, "1", "auto", "none", "../../etc/passwd", "{{ 1/0 }}"),
    )
    if depth > 2 or rng.random() < 0.6:
        return rng.choice(scalars)
    if rng.random() < 0.5:
        return [junk(rng, depth + 1) for _ in range(rng.randint(0, 6))]
    return {
        str(rng.choice(("1", "999999", "type", "x", -1))): junk(rng, depth + 1) for _ in range(3)
    }


def body_of(rng: random.Random, model: str) -> bytes:
    """Return a body that may be wrong in one of many ways."""
    _, body = valid(rng, model)
    for name in rng.sample(NAMES, rng.randint(1, 3)):
        body[name] = junk(rng)
    if rng.random() < 0.3:
        body[rng.choice(("messages", "input"))] = rng.sample(MESSAGE, rng.randint(1, 3))
    raw = json.dumps(body).encode()
    return rng.choice(
        (
            *(raw,) * 10,
            raw[: rng.randint(0, len(raw))],
            rng.randbytes(rng.randint(0, 300)),
            raw.decode().encode("utf-16"),
            b"[" * 50_000,
            b'{"a":' * 5000 + b"1" + b"}" * 5000,
            b"9" * 6000,
            b'{"model": NaN}',
            b"[" + raw + b"]",
            raw.replace(b"}", b"}}"),
            b" " * 2_000_000,
        )
    )


def request_of(rng: random.Random, model: str) -> bytes:
    """Return the bytes of one request: most are HTTP, and hostile in a way of their own."""
    path, body = valid(rng, model)
    raw, method = json.dumps(body).encode(), "POST"
    headers = {"host": "127.0.0.1", "content-type": "application/json", "connection": "close"}
    kind = rng.random()
    if kind < 0.15:
        pass  # as it should be
    elif kind < 0.65:
        raw = body_of(rng, model)
    elif kind < 0.75:
        method = rng.choice(
            ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "post", "X" * 3000, "G T")
        )
        path = rng.choice((*PATHS, "/", "/v1/models", "/metrics", "/health"))
    elif kind < 0.85:
        path = rng.choice(
            (
                *("/v1/embeddings", "/v1/models/../x", "/v1/models/%00", "/v1/models/", "//", "*"),
                *("/%2e%2e/%2e%2e/etc/passwd", "/" + "a" * 5000, "http://x/v1/models", "/docs"),
                *(
                    "/v1/completions/",
                    "/v1/models/" + model,
                    "/v1/models?x=" + "y" * 900,
                    "/%ff%fe",
                ),
            )
        )
        method = rng.choice(("GET", "POST"))
    elif kind < 0.95:
        changes: tuple[dict[str, str], ...] = (
            {"content-type": "text/plain"},
            {"content-type": "application/json; charset=utf-16"},
            {"content-encoding": "gzip"},
            {"content-length": str(len(raw) + 9)},
            {"content-length": "-1"},
            {"content-length": "9" * 30},
            {"transfer-encoding": "chunked"},
            {"transfer-encoding": "gzip, chunked"},
            {"host": "elsewhere.com"},
            {"host": "[::"},
            {"origin": "http://elsewhere.com"},
            {"origin": "http://[::"},
            {"expect": "100-continue"},
            {"upgrade": "websocket", "connection": "upgrade"},
            {"x": "y" * 100_000},
            {f"x-{number}": "y" for number in range(500)},
            {"x-request-id": "same"},
        )
        headers |= rng.choice(changes)
    else:
        return rng.choice(
            (
                rng.randbytes(rng.randint(1, 500)),
                b"GET /\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"POST /v1/completions HTTP/9.9\r\nhost: 127.0.0.1\r\n\r\n",
                b"\r\n" * 100,
                HALF,
            )
        )
    headers.setdefault("content-length", str(len(raw)))
    if "transfer-encoding" in headers:
        del headers["content-length"]
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + raw


def whole(request: bytes) -> bool:
    """Whether a server has no reason to wait for more of a request."""
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length: (\d+)\r?$", head, re.MULTILINE)
    return bool(end) and length is not None and int(length[1]) <= len(body)


def hostile(port: int, rng: random.Random, model: str) -> int:
    """Send one request and return the status of its answer, 0 if the connection just ended.

    A stream with an error as its last event counts as 500.
    """
    raw = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as to:
        with contextlib.suppress(OSError):
            request = request_of(rng, model)
            to.sendall(request)
            if not whole(request):  # or its end would be waited for
                to.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := to.recv(65536):
                raw += part
    if raw.startswith(b"HTTP/1.1 100"):
        raw = raw.partition(b"\r\n\r\n")[2]
    words = raw.split(b" ", 2)
    if len(words) < 3 or not words[0].startswith(b"HTTP/"):
        return 0
    failed = b'data: {"error"' in raw and b'"server_error"' in raw
    return 500 if failed else int(words[1])


def lockout(
    port: int, ask: Callable[[int], bool], clients: int = 16, each: int = 10, half: int = 400
) -> dict[str, Any]:
    """One client sends so many half requests again and again, while others ask.

    ask: asks the server with the given number, and says whether the answer was right; an
    exception is a refusal.
    """
    stop, held = threading.Event(), list[socket.socket]()
    sent = 0

    def attack() -> None:
        nonlocal sent
        while not stop.is_set():
            for line in held:
                line.close()
            held.clear()
            for _ in range(half):
                if stop.is_set():
                    return
                with contextlib.suppress(OSError):
                    address = ("127.0.0.2", 0)
                    line = socket.create_connection(("127.0.0.1", port), 5, source_address=address)
                    held.append(line)
                    line.sendall(HALF)
                    sent += 1
            stop.wait(1)

    attacker = threading.Thread(target=attack)
    attacker.start()
    while sent < half:
        time.sleep(0.05)
    counts = Counter[str]()

    def client(number: int) -> None:
        for turn in range(each):
            try:
                counts["right" if ask(number * each + turn) else "wrong"] += 1
            except (OSError, http.client.HTTPException) as error:
                counts["refused"] += 1
                counts[f"refused: {type(error).__name__}"] += 1

    try:
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(client, range(clients)))
    finally:
        stop.set()
        attacker.join()
        for line in held:
            line.close()
    plain = {name: counts[name] for name in ("right", "wrong", "refused")}
    return {"half_requests": sent, "clients": clients, "asked": clients * each, **plain}


def ended(port: int, server: subprocess.Popen[Any], model: str, seconds: float) -> dict[str, Any]:
    """SIGTERM while 16 clients ask, after so many seconds: how did each request end?

    A client stops once it was told that the server ends, or once no connection is taken.
    """
    counts = Counter[str]()

    def outcome(stream: bool) -> str:
        to = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            to.connect()
        except OSError:
            return "no connection"
        body = {"model": model, "prompt": "Once upon", "max_tokens": 64, "stream": stream}
        try:
            to.request("POST", PATHS[0], json.dumps(body), {"content-type": "application/json"})
            answer = to.getresponse()
            raw = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return f"lost: {type(error).__name__}"
        finally:
            to.close()
        if answer.status != 200:
            return str(answer.status) if "error" in raw else "lost: no body"
        if not stream:
            return "answer" if "choices" in raw else "lost: no body"
        last = raw.rsplit("data: ", 1)[-1]
        if last.startswith("[DONE]"):
            return "answer"
        return "error event" if '"error"' in last else "lost: half a stream"

    def client(number: int) -> None:
        while True:
            found = outcome(bool(number % 2))
            counts[found] += 1
            if found not in ("answer", "429"):
                return

    with ThreadPoolExecutor(16) as pool:
        clients = [pool.submit(client, number) for number in range(16)]
        time.sleep(seconds)
        server.send_signal(signal.SIGTERM)
        for one in clients:
            one.result()
    return {"exit_code": server.wait(300), **dict(sorted(counts.items()))}
