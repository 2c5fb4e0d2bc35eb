"""Kills trainings with experts on four processes: each resumes, and ends with the same bits.

    python benchmarks/kills.py               # 200 kills; a command that is stopped resumes
    python benchmarks/kills.py --kills 20
    python benchmarks/kills.py --write       # docs/benchmarks/kills.md

Each run is killed twice with SIGKILL, one process of it or all of them, instead of a call (of one
that writes a checkpoint, of an exchange, of a step) or at any moment, and is then left alone. What
it learned, its scores and its log are compared with a run that nobody has killed; whoever
outlives the others has to end on its own, with an error that says so. One process imports
everything; runs are forked from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from frame import markdown, parser, publish, read
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from intarsia.core.errors import TrainingError
from intarsia.core.locks import alone
from intarsia.core.store import Store
from intarsia.mixtures.experts import StackedExperts
from intarsia.mixtures.mixture import Mixture
from intarsia.parallel import ExpertParallel, Fssdp, Strategy, Tutel
from intarsia.routers.topk import TopK
from intarsia.train.folder import write_learned
from intarsia.train.loop import Job
from intarsia.train.objectives import plain
from intarsia.train.run import fit_once
from intarsia.train.settings import settle
from intarsia.train.tasks.choose import chosen

WORLD, EXPERTS, WIDTH, CLASSES = 4, 8, 8, 4
EACH = 2  # kills of a run
BOUND = 90.0  # seconds in which those that are left must have ended
STRATEGIES: tuple[Strategy, ...] = (Fssdp(2, 3), ExpertParallel(), Tutel())
# a process dies instead of a call of one of these
CALLS = (
    (os, "fsync"), (os, "replace"), (os, "pwrite"), (shutil, "rmtree"),
    (safetensors.torch, "save_file"), (Path, "write_text"), (Path, "mkdir"),
    (dist, "all_gather_object"), (dist, "all_to_all_single"), (dist, "all_reduce"),
    (torch.optim.AdamW, "step"),
)  # fmt: skip
DONE, TOLD, FAILED = 0, 3, 1  # how a process ends: 3 = with an error that names another one
ROW = ("trial", "strategy", "kills", "same", "cpu", "wall")


@dataclass(frozen=True)
class Kill:
    """victim: a process, which takes the others along if `everyone`; call: it dies instead of this
    one, at the how many-th; "" = `after` seconds."""

    victim: int
    everyone: bool
    call: str
    number: int
    after: float


class Net(nn.Module):
    """Two mixtures and a head; dropout draws in each process."""

    def __init__(self) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(0)
        router = TopK(experts=EXPERTS, active=2)

        def mixture() -> Mixture:
            made = StackedExperts(EXPERTS, WIDTH, 4, bias=True, generator=draws)
            return Mixture(made, router.build(WIDTH, generator=draws))

        self.blocks = nn.ModuleList(mixture() for _ in range(2))
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(WIDTH, CLASSES, bias=False)
        nn.init.normal_(self.head.weight, generator=draws)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self.drop(block(x))
        return self.head(x).mean(1)


def rows(count: int, seed: int) -> TensorDataset:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, WIDTH, generator=draws)
    return TensorDataset(x, torch.arange(count) % CLASSES)


def train(strategy: Strategy, out: Path, *, resume: bool) -> None:
    """Two epochs of three steps, with a checkpoint after each step."""
    settings = settle(None, {
        "epochs": 2, "batch_size": 16, "lr": 0.02, "clip": 0.5, "parallel": strategy, "out": out,
        "resume": resume, "gather": False, "checkpoint_steps": 1, "trackers": (), "select": "val",
    })  # fmt: skip
    train = rows(48, 1)
    sets = train, rows(12, 2), rows(12, 3)
    job = Job(Net(), sets, chosen(None, train, settings[1], None), plain, *settings)
    fit_once(job, {}, 1, lambda model, out, _, parts=None: write_learned(model, out, parts))


def outcome(out: Path) -> str:
    """A digest of all that a run has learned and said, but for times."""
    total = hashlib.sha256()
    for name in ("adapter/trained.safetensors", "predictions.safetensors"):
        total.update((out / name).read_bytes())
    for line in (out / "metrics.jsonl").read_text().splitlines():
        said = {k: v for k, v in json.loads(line).items() if k[:5] not in ("secon", "strag")}
        total.update(json.dumps(said).encode())
    return total.hexdigest()


def counting(kill: Kill | None) -> Counter[str]:
    """Die instead of a call, if this is the one; otherwise count them."""
    seen = Counter[str]()

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **keywords: Any) -> Any:
            seen[name] += 1
            if kill is not None and (name, seen[name]) == (kill.call, kill.number):
                if kill.everyone:
                    os.killpg(0, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **keywords)

        return wrapper

    for owner, name in CALLS:
        setattr(owner, name, counted(name, getattr(owner, name)))
    return seen


def child(
    rank: int, kill: Kill | None, ready: int, out: Path, store: Path, job: Callable[[], None]
) -> int:
    """One process of a run.  Returns how it ends."""
    torch.set_num_threads(1)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "LOCAL_RANK": str(rank)}
    os.environ |= where | {"RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    group: dict[str, Any] = {"rank": rank, "world_size": WORLD, "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", init_method=f"file://{store}", **group)
    dist.barrier()
    seen = counting(kill if kill is not None and kill.victim == rank else None)
    os.write(ready, b".")
    try:
        job()
    except TrainingError as error:
        if "a process that is gone" in str(error):
            return TOLD
        raise
    if kill is None:
        (out / f"calls-{rank}.json").write_text(json.dumps(seen))
    return DONE


def attempt(
    out: Path, strategy: Strategy, *, resume: bool, kill: Kill | None = None
) -> tuple[list[int], float]:
    """How the processes of a run ended, and the seconds from when they had met, or the kill."""
    store = out.with_name(f"{out.name}.store")
    store.unlink(missing_ok=True)
    reading, ready = os.pipe()
    children: list[int] = []
    for rank in range(WORLD):
        number = os.fork()
        if not number:
            os.setpgid(0, children[0] if children else 0)
            try:
                job = lambda: train(strategy, out, resume=resume)  # noqa: E731
                code = child(rank, kill, ready, out, store, job)
            except BaseException as error:
                print(f"{out.name}, process {rank}: {type(error).__name__}: {error}",
                      file=sys.stderr, flush=True)  # fmt: skip
                code = FAILED
            os._exit(code)
        children.append(number)
        with suppress(OSError):  # it has done so itself
            os.setpgid(number, children[0])
    for _ in range(WORLD):
        os.read(reading, 1)
    os.close(reading)
    os.close(ready)
    began = time.monotonic()
    if kill is not None and not kill.call:
        time.sleep(kill.after)
        began = time.monotonic()
        with suppress(ProcessLookupError):
            if kill.everyone:
                os.killpg(children[0], signal.SIGKILL)
            else:
                os.kill(children[kill.victim], signal.SIGKILL)
    return ended(children, began), time.monotonic() - began


def ended(children: list[int], began: float) -> list[int]:
    """Exit codes, by rank; who outlives a process by more than `BOUND` is ended, and has None."""
    codes: dict[int, int] = {}
    limit = began + 10 * BOUND
    while len(codes) < len(children):
        for rank, number in enumerate(children):
            if rank in codes:
                continue
            found, status = os.waitpid(number, os.WNOHANG)
            if found:
                codes[rank] = os.waitstatus_to_exitcode(status)
                if codes[rank] != DONE:
                    limit = min(limit, time.monotonic() + BOUND)
        if time.monotonic() > limit:
            for rank in set(range(len(children))) - codes.keys():
                os.kill(children[rank], signal.SIGKILL)
                os.waitpid(children[rank], 0)
                codes[rank] = -signal.SIGALRM  # it hung
        time.sleep(0.005)
    return [codes[rank] for rank in range(len(children))]


@dataclass(frozen=True)
class Whole:
    """A run that nobody killed: its outcome, its calls by process, its seconds."""

    digest: str
    calls: list[dict[str, int]]
    seconds: float


def whole(folder: Path, strategy: Strategy) -> Whole:
    out = folder / f"whole-{type(strategy).__name__}"
    shutil.rmtree(out, ignore_errors=True)
    codes, seconds = attempt(out, strategy, resume=False)
    assert codes == [DONE] * WORLD, codes
    calls = [json.loads((out / f"calls-{rank}.json").read_text()) for rank in range(WORLD)]
    return Whole(outcome(out), calls, seconds)


def kills_of(trial: int, against: Whole) -> Iterator[Kill]:
    """A run's kills; a resumed run's kills come early enough to come at all."""
    draws = random.Random(trial)
    for number in range(EACH):
        victim, left = draws.randrange(WORLD), 1 / (1 + number)
        calls = {name: int(count * left) for name, count in against.calls[victim].items()}
        name = draws.choice(sorted(name for name, count in calls.items() if count))
        timed = draws.random() < 1 / 3
        yield Kill(
            victim,
            draws.random() < 1 / 3,
            "" if timed else name,
            0 if timed else draws.randint(1, calls[name]),
            draws.uniform(0, against.seconds * left) if timed else 0.0,
        )


def tried(trial: int, folder: Path, strategy: Strategy, against: Whole) -> dict[str, Any]:
    """A run that is killed, resumes, is killed again, and resumes to its end."""
    out, began, cpu = folder / str(trial), time.monotonic(), spent()
    shutil.rmtree(out, ignore_errors=True)
    said: list[dict[str, Any]] = []
    for number, kill in enumerate(kills_of(trial, against)):
        codes, seconds = attempt(out, strategy, resume=number > 0, kill=kill)
        said.append(asdict(kill) | {"ends": codes, "seconds": round(seconds, 3)})
    codes, _ = attempt(out, strategy, resume=True)
    same = codes == [DONE] * WORLD and outcome(out) == against.digest
    if same:
        shutil.rmtree(out)
    values = trial, type(strategy).__name__, said, same, spent() - cpu, time.monotonic() - began
    return dict(zip(ROW, values, strict=True))


def spent() -> float:
    """CPU seconds of this process and its children so far."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def came(kill: Mapping[str, Any]) -> bool:
    """Whether anybody was killed, before the run was over."""
    return -signal.SIGKILL in kill["ends"]


def as_wanted(kill: Mapping[str, Any]) -> bool:
    """Whether the others ended on their own: told, or done before."""
    return all(code in (-signal.SIGKILL, TOLD, DONE) for code in kill["ends"])


def page(found: list[dict[str, Any]], args: Any) -> bool:
    """The table; whether all is as it should be."""
    kills = [kill for row in found for kill in row["kills"] if came(kill)]
    kinds = Counter((k["call"] or "any moment", k["everyone"]) for k in kills)
    names = sorted({name for name, _ in kinds})
    body = markdown(
        ("killed in place of", "one process", "all of them"),
        [(name, str(kinds[name, False]), str(kinds[name, True])) for name in names],
    )
    same, wanted = sum(row["same"] for row in found), sum(map(as_wanted, kills))
    cpu = sum(row["cpu"] for row in found)
    last = max((k["seconds"] for k in kills if not k["everyone"] and not k["call"]), default=0.0)
    body += [
        "",
        f"{len(kills)} kills of {len(found)} runs: {same} runs ended with the bits of one that "
        f"nobody killed, and in {wanted} kills whoever was left ended on its own, at the latest "
        f"{last:.1f} s after a kill at any moment. {cpu / 60:.1f} CPU minutes.",
    ]
    plans = ", ".join(type(s).__name__ for s in STRATEGIES)
    about = (
        f"Mixtures of {EXPERTS} experts on {WORLD} gloo processes ({plans}), six steps, a "
        "checkpoint after each; SIGKILL."
    )
    publish("Kills of a training on several processes", about, body, args)
    return same == len(found) and wanted == len(kills)


def main() -> None:
    made = parser(__doc__, threads=1, reps=1)
    made.add_argument("--kills", type=int, default=200)
    made.add_argument("--out", type=Path, default=Path("runs/kills"))
    args = read(made)
    args.out = args.out.absolute()
    with alone(args.out):
        kept = Store(args.out, "kills.jsonl")
        against: dict[str, Whole] = {}
        trial = done = 0
        found: list[dict[str, Any]] = []
        while done < args.kills:
            key, strategy = str(trial), STRATEGIES[trial % len(STRATEGIES)]
            if key not in kept:
                name = type(strategy).__name__
                if name not in against:
                    against[name] = whole(args.out, strategy)
                kept.add(key, tried(trial, args.out, strategy, against[name]))
            found.append(kept[key])
            done += sum(map(came, kept[key]["kills"]))
            trial += 1
    if not page(found, args):
        sys.exit(1)


if __name__ == "__main__":
    main()
