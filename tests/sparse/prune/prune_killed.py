"""Forks a child for each place at which a walk is killed, and goes on; started by test_prune.py."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from prune_models import llama, rows

import intarsia
from intarsia.sparse.prune import progress

METHOD = intarsia.SparseGPT(0.5)


def prune_and_die(out: Path, write: int) -> None:
    """Dies before the write of that number: block, hidden states, block, ...; or in the middle."""
    save, calls = progress.save_file, list[int]()

    def dies(tensors: object, path: Path) -> None:
        calls.append(1)
        if len(calls) == write:
            path.write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        save(tensors, path)  # type: ignore[arg-type]

    progress.save_file = dies  # type: ignore[assignment]
    intarsia.sparsify(llama(), METHOD, rows(), out=out)
    os.kill(os.getpid(), signal.SIGKILL)  # after all of it


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    unstopped = llama()
    intarsia.sparsify(unstopped, METHOD, rows())
    want = unstopped.state_dict()
    for write in (1, 2, 5, 7):  # of two a block; 7: after all of them
        out = folder / str(write)
        child = os.fork()
        if not child:
            prune_and_die(out, write)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        again = llama()
        intarsia.sparsify(again, METHOD, rows(), out=out, resume=True)
        equal = all(torch.equal(t, want[n]) for n, t in again.state_dict().items())
        print(f"{'killed' if killed else status},{'same' if equal else 'other bits'}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
