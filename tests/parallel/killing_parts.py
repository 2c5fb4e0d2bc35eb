"""Kills one of two processes at each moment of a checkpoint that both write; prints a line each.

One process imports everything, then forks two children for each kill: python killing_parts.py
FOLDER EVERY kills at each EVERY-th moment, of either process.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from intarsia.core.errors import TrainingError
from intarsia.processes.pieces import Piece, Stored
from intarsia.processes.units import UnitAxes
from intarsia.train import checkpoint

# what a save calls; a child dies in place of the n-th call of all of these together
MOMENTS = (
    (os, "fsync"), (os, "replace"), (shutil, "rmtree"), (safetensors.torch, "save_file"),
    (dist, "all_gather_object"), (Path, "write_text"), (Path, "mkdir"),
)  # fmt: skip
WAIT = 20.0  # seconds that a process waits for the other


def state(rank: int, value: float) -> dict[str, Any]:
    rows = torch.full((2, 3), value) + rank
    piece = Piece(rows, UnitAxes(1), torch.arange(2 * rank, 2 * rank + 2), 0, 1, 4)
    return {"learned": {"up": piece, "head": torch.full((5,), value)}, "step": value}


def value_of(folder: Path) -> float:
    """Return the value in the newest checkpoint, which must be complete."""
    path = checkpoint.latest(folder)
    assert path is not None, "no checkpoint"
    state = checkpoint.load(path)
    up, head = state["learned"]["up"], state["learned"]["head"]
    full: Tensor = up.all() if isinstance(up, Stored) else up
    value = float(state["step"])
    assert full.tolist() == [[value + e // 2] * 3 for e in range(4)], full
    assert head.tolist() == [value] * 5
    return value


def count_down(calls: int) -> Callable[[], int]:
    """Die in place of a later one of the calls.  Returns how many there were."""
    count = [0]

    def counted(real: Any) -> Any:
        def wrapper(*args: Any, **keywords: Any) -> Any:
            count[0] += 1
            if count[0] == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **keywords)

        return wrapper

    for owner, name in MOMENTS:
        setattr(owner, name, counted(getattr(owner, name)))
    return lambda: count[0]


def child(rank: int, folder: Path, store: Path, dies: int) -> int:
    """Save twice; 0: done, 3: said that the other is gone, in time."""
    began, arguments = time.monotonic(), {"rank": rank, "world_size": 2}
    address = f"file://{store}"
    dist.init_process_group(
        "gloo", init_method=address, timeout=timedelta(seconds=WAIT), **arguments
    )
    checkpoint.save_together(folder, state(rank, 1.0))
    calls = count_down(dies)
    try:
        checkpoint.save_together(folder, state(rank, 2.0))
    except TrainingError as error:
        assert "is gone" in str(error) and "writing" in str(error), error
        return 3 if time.monotonic() - began < 60 else 4
    if dies < 0:
        (folder / f"calls-{rank}").write_text(str(calls()))
    return 0


def pair(folder: Path, killed: int, dies: int) -> list[int]:
    """Return the exit status of both processes."""
    folder.mkdir()
    children: list[int] = []
    for rank in range(2):
        number = os.fork()
        if not number:
            torch.set_num_threads(1)
            try:
                code = child(rank, folder, folder / "store", dies if rank == killed else -1)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                code = 1
            os._exit(code)
        children.append(number)
    return [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in children]


def main(folder: Path, stride: int) -> None:
    ends = pair(folder / "whole", -1, -1)
    print(f"whole,{ends[0]},{ends[1]},{value_of(folder / 'whole')}", flush=True)
    for killed in range(2):
        calls = int((folder / "whole" / f"calls-{killed}").read_text())
        for dies in range(1, calls + 1, stride):
            place = folder / f"{killed}-{dies}"
            ends, value = pair(place, killed, dies), value_of(place)
            if ends == [0, 0] and value == 2.0:
                continue  # by who comes first, a save has a call more or less: nobody was killed
            print(f"{killed} {dies},{ends[killed]},{ends[1 - killed]},{value}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
