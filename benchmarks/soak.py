"""What a server and a training hold after hours: slopes of memory and descriptors.

    python benchmarks/soak.py MODEL                          # 2,000 requests, then 300 steps
    python benchmarks/soak.py MODEL --requests 200 --steps 0

MODEL: a language model's folder of save_pretrained. Requests come from several clients, some of
them hostile, and some of these hang up; steps come from `intarsia.fit` with validation and saves.
After a warm-up memory and open descriptors are read at equal distances; the slope is a
least-squares line's. A leak of one kilobyte a request is 1.0.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import serving_edges
import torch
from serving import started
from torch import nn
from torch.utils.data import TensorDataset

from intarsia import Lora, adapt, fit

WARM = 0.2  # share of the work before the first reading that counts
READINGS = 40


@dataclass
class Course:
    """Memory and descriptors of a process, read while it works."""

    process: psutil.Process
    done: list[int] = field(default_factory=list)
    kilobytes: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def read(self, done: int) -> None:
        """Note what the process holds after so many requests or steps."""
        self.done.append(done)
        self.kilobytes.append(self.process.memory_info().rss / 1024)
        self.descriptors.append(self.process.num_fds())

    def lines(self, what: str) -> list[str]:
        """Return the slopes, and the first and last readings after the warm-up."""
        first = next(i for i, done in enumerate(self.done) if done >= WARM * self.done[-1])
        x = self.done[first:]
        rows = (("memory", " KB", self.kilobytes), ("descriptors", "", self.descriptors))
        return [
            f"{name}: {slope(x, y[first:]):+.4f}{unit} a {what}, {y[first]:,.0f} after {x[0]:,}, "
            f"{y[-1]:,.0f} after {x[-1]:,}"
            for name, unit, y in rows
        ]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the least-squares line through some points; 0 for one point."""
    return float(np.polyfit(x, y, 1)[0]) if len(x) > 1 else 0.0


def ask(port: int, draw: random.Random, model: str) -> str:
    """Send one request: three of four are right, one is hostile or hangs up. -> how it ended."""
    path, body = serving_edges.valid(draw, model)
    raw, way = json.dumps(body).encode(), draw.random()
    if way < 0.1:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
            line.sendall(serving_edges.HALF)
        return "hung up"
    if way < 0.25:
        raw = serving_edges.body_of(draw, model)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, raw, {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return str(answer.status)
    finally:
        connection.close()


def serve(model: Path, count: int) -> None:
    """Ask a server of its own, and print its slopes."""
    draw, ends = random.Random(0), Counter[str]()
    with started(str(model), "--tokens", "8") as (server, port):
        course = Course(psutil.Process(server.pid))
        for done in range(count + 1):
            if done % max(1, count // READINGS) == 0:
                course.read(done)
            ends[ask(port, draw, model.name)] += 1
    print(f"{count:,} requests: {dict(sorted(ends.items()))}")
    print(*course.lines("request"), sep="\n", flush=True)


class Noted(nn.Module):
    """A small net that has its process's course read as it is trained."""

    def __init__(self, course: Course, every: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 256), nn.Linear(256, 4)
        self.course, self.every, self.steps = course, every, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
            if self.steps % self.every == 0:
                self.course.read(self.steps)
        return self.fc2(self.fc1(x).relu())


def train(steps: int) -> None:
    """Train for so many steps, ten an epoch, each with validation and a save; print the slopes."""
    course, draw = Course(psutil.Process()), torch.Generator().manual_seed(0)
    x = torch.randn(200, 32, generator=draw)
    rows = (
        TensorDataset(x[:160], torch.arange(160) % 4),
        TensorDataset(x[160:], torch.arange(40) % 4),
    )
    net = adapt(Noted(course, max(1, steps // READINGS)), Lora(4), targets=["fc1"], head="fc2")
    with tempfile.TemporaryDirectory() as place:
        options: dict[str, Any] = {"epochs": -(-steps // 10), "batch_size": 16, "trackers": ()}
        fit(net, *rows, out=Path(place) / "run", **options)
    print(f"{steps:,} steps", *course.lines("step"), sep="\n", flush=True)


def main() -> None:
    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("model", type=Path)
    words.add_argument("--requests", type=int, default=2_000)
    words.add_argument("--steps", type=int, default=300)
    given = words.parse_args()
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}")
    if given.requests:
        serve(given.model, given.requests)
    if given.steps:
        train(given.steps)


if __name__ == "__main__":
    main()
