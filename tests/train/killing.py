"""Kills runs at chosen moments and resumes them; started by test_kill.py, prints one line each.

One process imports everything, then forks a child for each run, so that many kills take seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import host, pictures
from torch import Tensor, nn
from torch.utils.data import Dataset

from intarsia.adapters import Bottleneck
from intarsia.core import files
from intarsia.fitting import fit
from intarsia.methods import Mosa
from intarsia.mixtures.split_optimizer import split_adamw
from intarsia.routers import random_routers
from intarsia.train import Training, checkpoint, folder, two_pass

STEPS = 3 * 5
DIES: list[int] = []  # steps at which a child dies
WAITS: list[int] = []  # steps at which a child waits for its killer, however fast the machine is
SEEN: list[int] = []  # steps that a child took


class Noisy(Dataset[tuple[Tensor, int]]):
    """Augments with all three global generators."""

    def __init__(self) -> None:
        self.inner = pictures(40)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x, y = self.inner[index]
        x = x + 0.1 * torch.randn(x.shape) + 0.1 * random.random()
        return x * float(np.random.uniform(0.9, 1.1)), int(y)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def schedule(model: nn.Module, step: int, steps: int) -> None:
    """k of N grows; dies at a step."""
    SEEN.append(step)
    if step in DIES:
        die()
    if step in WAITS:
        time.sleep(600)
    for router in random_routers(model).values():
        router.active = 1 + 2 * step // steps


def run(out: Path, *, resume: bool) -> None:
    torch.set_num_threads(1)
    method = Mosa(over=Bottleneck(4, norm="none", dropout=0.1))
    fit(
        host(method=method, dropout=0.1), Noisy(), pictures(20, seed=1), test=pictures(20, seed=2),
        training=Training(epochs=3, batch_size=8, lr=1e-2, accumulate=2),
        objective=partial(two_pass, reg=0.5), optimizer=partial(split_adamw, update="lazy"),
        schedule=schedule, mixup=0.2, select="val", out=out, resume=resume,
        checkpoint_steps=2, trackers=(),
    )  # fmt: skip
    (out / "began").write_text(str(SEEN[0] if SEEN else STEPS))


def after_calls(owner: Any, name: str, calls: int) -> None:
    """Die in place of a later call of a function."""
    real, remaining = getattr(owner, name), [calls]

    def wrapper(*args: Any, **keywords: Any) -> Any:
        remaining[0] -= 1
        if remaining[0] < 0:
            die()
        return real(*args, **keywords)

    setattr(owner, name, wrapper)


def half_a_line(after: int) -> None:
    """Die after half a line of metrics."""
    real, remaining = folder.Log.write, [after]

    def write(self: folder.Log, line: dict[str, Any]) -> None:
        remaining[0] -= 1
        if remaining[0] < 0 and self._file is not None:
            self._file.write(json.dumps(line).encode()[:9])
            self._file.flush()
            die()
        real(self, line)

    folder.Log.write = write  # pyright: ignore


def forked(job: Callable[[], object], kill_after: float | None = None) -> int:
    """Exit status of the job in a child process; minus the signal if it was killed."""
    child = os.fork()
    if not child:
        try:
            job()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outcome(out: Path) -> dict[str, Any]:
    """Read everything that a finished run left behind, but for times."""
    path = checkpoint.latest(out / "state")
    assert path is not None
    tensors: dict[str, Tensor] = {}
    state = checkpoint.flatten(checkpoint.load(path), tensors)
    for name in ("seconds", "cpu_seconds", "metrics_bytes"):
        del state[name]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    files = [out / "predictions.safetensors", out / "adapter" / "trained.safetensors"]
    return {
        "state": json.dumps(state),
        "tensors": {n: t.numpy().tobytes() for n, t in tensors.items()},
        "metrics": [{k: v for k, v in line.items() if k != "seconds"} for line in lines],
        "files": [file.read_bytes() for file in files],
    }


def plans() -> dict[str, Callable[[], object]]:
    """Moments to die at: what to do in the child before the run."""
    ways: dict[str, Callable[[], object]] = {}
    for step in (1, 4, 5, STEPS - 1):
        ways[f"step {step}"] = partial(DIES.append, step)
    for calls in range(5, 10):  # at every one of the five syncs of the second checkpoint
        ways[f"sync {calls}"] = partial(after_calls, files, "sync", calls)
    for calls in (1,):
        ways[f"cleanup {calls}"] = partial(after_calls, checkpoint.shutil, "rmtree", calls)
    for line in (0, 11):
        ways[f"metrics {line}"] = partial(half_a_line, line)
    return ways


def main(root: Path) -> None:
    begun = time.monotonic()
    status = forked(partial(run, root / "whole", resume=False))
    lasts = time.monotonic() - begun
    print(f"whole,{status},,True,0", flush=True)
    outcome_of_whole = outcome(root / "whole")
    chance = random.Random(0)
    jobs: dict[str, tuple[Callable[[], object], float | None]]
    jobs = {name: (prepare, None) for name, prepare in plans().items()}
    jobs |= {f"time {i}":
             (partial(WAITS.append, STEPS - 1), chance.uniform(0.1, 0.8) * lasts)
             for i in range(3)}  # fmt: skip
    for name, (prepare, moment) in jobs.items():
        out = root / name.replace(" ", "-")
        killed = forked(lambda p=prepare, o=out: (p(), run(o, resume=False)), moment)
        resumed = forked(partial(run, out, resume=True))
        equal = resumed == 0 and outcome(out) == outcome_of_whole
        began = (out / "began").read_text() if resumed == 0 else ""
        print(f"{name},{killed},{resumed},{equal},{began}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
