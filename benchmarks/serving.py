"""Many requests at once against `intarsia serve` on loopback: are answers right, is memory flat?

    python benchmarks/serving.py MIXTURE --requests 2000 --write docs/benchmarks/serving.json

Starts the command line's server as a process of its own, over a mixture with experts that stay on
disk and random adapters next to it, asks from 16 threads, half of the answers streamed, and
compares each text with `generate` on the same weights. Ends the server with SIGTERM.

    python benchmarks/serving.py smollm2 --edges --write docs/benchmarks/serving_edges.json

sends half requests, hostile ones and a SIGTERM under load instead, see `serving_edges.py`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

WORDS = (
    "it is a truth that the of and to in she was he had not for with as his be at from this have "
    "an import def return class value list of names a small round fruit any of several plants"
)


@dataclass(frozen=True)
class Ask:
    """One request."""

    model: str
    prompt: str
    tokens: int
    stream: bool


def prepared(source: Path, folder: Path, adapters: int) -> dict[str, Path]:
    """A float32 copy of the mixture, its store, and LoRA with random weights."""
    import intarsia
    from intarsia.data.language_models import language_model

    def opened() -> Any:
        return language_model(str(source))

    model, tokenizer = opened()
    model.save_pretrained(folder / "mixture")
    tokenizer.save_pretrained(folder / "mixture")
    intarsia.offloading.pack_experts(folder / "mixture", folder / "store")
    found: dict[str, Path] = {}
    for seed in range(adapters):
        adapted = intarsia.adapt(opened()[0], intarsia.Lora(rank=4))
        drawn = torch.Generator().manual_seed(seed)
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.data = torch.randn(weight.shape, generator=drawn) * 0.15
        found[f"a{seed}"] = intarsia.save(adapted, folder / f"a{seed}")
    return found


def asks(count: int, models: list[str], prompts: int, most: int) -> list[Ask]:
    """Prompts of 2 ... 30 words, answers of 2 ... `most` tokens; each model has each prompt."""
    rng = random.Random(0)
    texts = [
        (" ".join(rng.choices(WORDS.split(), k=rng.randint(2, 30))), rng.randint(2, most))
        for _ in range(prompts)
    ]
    return [
        Ask(rng.choice(models), *rng.choice(texts), stream=bool(number % 2))
        for number in range(count)
    ]


class Client(threading.local):
    """A connection for each thread, kept open."""

    def __init__(self, port: int) -> None:
        self.to = http.client.HTTPConnection("127.0.0.1", port, timeout=600)

    def ask(self, one: Ask) -> tuple[int, str, float]:
        """Status, text, seconds."""
        body = {"model": one.model, "prompt": one.prompt, "max_tokens": one.tokens}
        began = time.perf_counter()
        headers = {"content-type": "application/json"}
        given = json.dumps(body | {"stream": one.stream})
        self.to.request("POST", "/v1/completions", given, headers)
        answer = self.to.getresponse()
        raw = answer.read().decode()
        seconds = time.perf_counter() - began
        if answer.status != 200:
            return answer.status, raw, seconds
        if not one.stream:
            return 200, json.loads(raw)["choices"][0]["text"], seconds
        lines = [line.removeprefix("data: ") for line in raw.split("\n\n") if line]
        whole = lines[-1] == "[DONE]"
        parts = [json.loads(line) for line in lines[:-1]]
        text = "".join(part["choices"][0].get("text", "") for part in parts)
        return 200 if whole else 0, text, seconds


def wanted(folder: Path, adapters: dict[str, Path], asked: set[Ask], slots: str) -> dict[Ask, str]:
    """What `generate` says to each request that is different."""
    from intarsia.serve.models import open_models

    opened = open_models({"base": str(folder / "store")}, adapters, slots=float(slots))
    found: dict[Ask, str] = {}
    for one in asked:
        of = opened[one.model]
        ids = of.tokenizer(one.prompt, return_tensors="pt")["input_ids"]
        made = of.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=one.tokens,
            do_sample=False,
        )
        found[one] = of.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    return found


def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of one load."""
    adapters = prepared(given.model, folder, given.adapters)
    todo = asks(given.requests, list(adapters), given.prompts, given.tokens)
    plain = {Ask(a.model, a.prompt, a.tokens, False) for a in todo}
    texts = wanted(folder, adapters, plain, given.slots)
    words = [f"base={folder / 'store'}", "--slots", given.slots, "--batching", given.batching]
    words += [w for name, at in adapters.items() for w in ("--adapter", f"{name}={at}")]
    with started(*words, "--seconds", "600") as (server, port):
        client, process = Client(port), psutil.Process(server.pid)
        memory, done = list[float](), list[tuple[Ask, int, str, float]]()
        began = time.perf_counter()

        def wrong() -> int:
            plain = [(Ask(a.model, a.prompt, a.tokens, False), s, text) for a, s, text, _ in done]
            return sum(status == 200 and text != texts[a] for a, status, text in plain)

        def lost() -> int:
            return sum(status != 200 for _, status, _, _ in done)

        def one(ask: Ask) -> None:
            try:
                done.append((ask, *client.ask(ask)))
            except (OSError, http.client.HTTPException) as error:
                client.to.close()
                done.append((ask, 0, str(error), 0.0))
            if len(done) % max(1, given.requests // 20) == 0:
                memory.append(process.memory_info().rss / 1e6)
                said = f"{len(done)} requests, {wrong()} wrong, {lost()} lost, {memory[-1]:.0f} MB"
                print(said, file=sys.stderr, flush=True)

        with ThreadPoolExecutor(given.at_once) as pool:
            list(pool.map(one, todo))
        seconds, used = time.perf_counter() - began, sum(process.cpu_times()[:2])
        hits, count = hit_rate(client), counted(client, *adapters)
    code = server.wait(60)
    times = sorted(s for _, status, _, s in done if status == 200) or [0.0]
    return {
        "requests": given.requests,
        "at_once": given.at_once,
        "adapters": given.adapters,
        "slots": given.slots,
        "batching": given.batching,
        "different": len(plain),
        "tokens": f"2 ... {given.tokens}",
        "wrong": wrong(),
        "lost": lost() + given.requests - len(done),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used, 1),
        "p50": round(times[len(times) // 2], 3),
        "p95": round(times[int(len(times) * 0.95)], 3),
        "memory_mb": [round(m, 1) for m in memory],
        "hit_rate": hits,
        "answers_200": sum(status == 200 for _, status, _, _ in done),
        "counted_200": count,
        "exit_code": code,
    }


@contextmanager
def started(*words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server of its own and its port; SIGTERM at the end."""
    line = [sys.executable, "-m", "intarsia", "serve", *words, "--port", "0"]
    server = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = next(line for line in server.stdout if line.startswith("http"))
        yield server, int(address.rsplit(":", 1)[1])
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
            server.wait(300)


def metric(client: Client, *starts: str) -> float:
    """The sum of the lines of /metrics that start so."""
    client.to.request("GET", "/metrics")
    lines = client.to.getresponse().read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(starts))


def hit_rate(client: Client) -> float:
    """The share of experts that were in memory."""
    hits, loads = (metric(client, f"intarsia_expert_{name}_total") for name in ("hits", "loads"))
    return round(hits / max(1.0, hits + loads), 3)


def counted(client: Client, *models: str) -> int:
    """Answers with status 200 by the server's own count; "" is for what names no model."""
    of = (f'intarsia_requests_total{{model="{name}",status="200"' for name in models)
    return int(metric(client, *of))


def edges(given: argparse.Namespace) -> dict[str, Any]:
    """Figures of hostile clients, each part against a server of its own."""
    source = f"{given.model.name}={given.model}"
    found: dict[str, Any] = {}
    for name, part in (("hostile", hostile), ("half requests", half_requests), ("ends", ends)):
        found[name] = part(given, source)
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    return found


def hostile(given: argparse.Namespace, source: str) -> dict[str, Any]:
    """Requests of every wrong kind, from eight threads."""
    import serving_edges

    model, statuses = given.model.name, Counter[str]()
    with started(source, "--tokens", "16") as (server, port):

        def one(seed: int) -> None:
            status = serving_edges.hostile(port, random.Random(seed), model)
            statuses[str(status)] += 1

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(given.hostile)))
        time.sleep(1)  # an answer is counted when the server has noticed its end
        return {
            "requests": given.hostile,
            "status_5xx": sum(count for name, count in statuses.items() if name >= "500"),
            "answers_200": statuses["200"],
            "counted_200": counted(Client(port), model, ""),
            "statuses": dict(sorted(statuses.items())),
            "alive": server.poll() is None,
        }


def half_requests(given: argparse.Namespace, source: str) -> dict[str, Any]:
    """400 half requests of one client, again and again, while others ask."""
    import serving_edges

    with started(source, "--drain", "2") as (_, port):
        client = Client(port)
        texts = asks(given.requests, [given.model.name], given.prompts, given.tokens)
        quiet = {one: client.ask(one)[1] for one in set(texts)}

        def right(number: int) -> bool:
            one = texts[number]
            try:
                return client.ask(one)[:2] == (200, quiet[one])
            except (OSError, http.client.HTTPException):
                client.to.close()
                raise

        each = given.requests // given.at_once
        return serving_edges.lockout(port, right, given.at_once, each)


def ends(given: argparse.Namespace, source: str) -> list[dict[str, Any]]:
    """SIGTERM at a random time while 16 clients ask, several times."""
    import serving_edges

    rng, found = random.Random(0), list[dict[str, Any]]()
    for _ in range(given.ends):
        with started(source, "--drain", "1") as (server, port):
            found.append(serving_edges.ended(port, server, given.model.name, rng.uniform(1, 4)))
    return found


def main() -> None:
    """Run one load and print its figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "model", type=Path, help="a mixture of save_pretrained; with --edges, any model"
    )
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--slots", default="0.25")
    parser.add_argument("--batching", default="continuous")
    parser.add_argument("--edges", action="store_true", help="hostile clients instead")
    parser.add_argument("--hostile", type=int, default=5000)
    parser.add_argument("--ends", type=int, default=10)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    if given.edges:
        found = edges(given)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = run(given, Path(folder))
    text = json.dumps(found, indent=1)
    print(text)
    if given.write is not None:
        from intarsia.core.files import write_text

        write_text(given.write, text + "\n")


if __name__ == "__main__":
    main()
