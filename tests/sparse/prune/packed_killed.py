"""Kills walks that pack layers or experts, and goes on with them; started by test_packed.py."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from prune_models import llama, rows
from torch import nn

import intarsia
from intarsia.core.change import steps_of
from intarsia.methods.gqsa import stages
from intarsia.sparse.prune import progress

SHORT = stages.Tuning(blocks=8, weights=0.3, model=8, end=0.02)
CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    # number of the write at which a walk dies, of three a block; 99: in the stage behind the blocks
    "gqsa": (intarsia.sparse.Gqsa(density=0.75, tuning=SHORT), (2, 5, 99)),
    "qmoe": (intarsia.sparse.Qmoe(), (3, 5)),
}


def made(case: str) -> nn.Module:
    model = llama(2)
    return intarsia.upcycle(model, intarsia.TopK(3)).eval() if case == "qmoe" else model


def pack(case: str, **settings: Any) -> nn.Module:
    return intarsia.compress(made(case), CASES[case][0], rows(), force=True, **settings)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def pack_and_die(case: str, out: Path, write: int) -> None:
    save, calls = progress.save_file, list[int]()

    def dies(tensors: object, path: Path) -> None:
        calls.append(1)
        if len(calls) == write:
            path.write_bytes(b"half a file")
            die()
        save(tensors, path)  # type: ignore[arg-type]

    progress.save_file = dies  # type: ignore[assignment]
    if write == 99:
        stages._with_scale = lambda *_: die()  # type: ignore[assignment,return-value]
    pack(case, out=out)


def same(first: nn.Module, second: nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    plans = [[s.plan.decided for s in steps_of(m)] for m in (first, second)]
    equal = all(torch.equal(t, states[1][n]) for n, t in states[0].items())
    return equal and len(states[0]) == len(states[1]) and plans[0] == plans[1]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for case, (_, writes) in CASES.items():
        want = pack(case)
        for write in writes:
            out = folder / f"{case}-{write}"
            child = os.fork()
            if not child:
                try:
                    pack_and_die(case, out, write)
                finally:
                    os._exit(3)
            _, status = os.waitpid(child, 0)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            messages: list[str] = []
            again = pack(case, out=out, resume=True, progress=messages.append)
            verdict = "same" if same(again, want) else "other"
            print(f"{'killed' if killed else status},{verdict},{len(messages)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
