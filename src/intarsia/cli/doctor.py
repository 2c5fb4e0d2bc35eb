"""`intarsia doctor`: the compiler, the kernels and the speed of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .options import Json, Threads, use_threads
from .shell import say, show_json, show_table


def doctor(threads: Threads = None, as_json: Json = False) -> None:
    """Report what this machine has for sparse weights: compiler, kernels, speed of memory.

    And where another runtime is the better choice, with the command that writes a model for it.
    Works without a compiler, too: products then run dense, as it says.

    Example:  intarsia doctor
    """
    use_threads(threads)
    from ..formats.rivals import KINDS, advice
    from ..kernels.native import diagnosis
    from ..kernels.native.floor import measure

    # compiler, instruction set, and the kernels that could be built
    machine = diagnosis.examine()
    floor = measure()
    record = {
        **machine,
        "threads": floor.threads,
        "read GB/s": round(floor.read / 1e9, 2),
        "matmul GFLOP/s": {name: round(f / 1e9, 1) for name, f in floor.matmul.items()},
    }
    lines = [line for kind in KINDS if (line := advice(kind))]
    if as_json:
        show_json(record | {"better elsewhere": lines})
        return
    # Both go into lines of their own below the table.
    kernels, missing = record.pop("kernels"), record.pop("why not")
    rows = [(name, _plain(value)) for name, value in record.items()]
    show_table(
        "This machine", ("what", "found"), [*rows, ("kernels", ", ".join(kernels) or "none")]
    )
    for line in lines:
        say(line)
    say(_in_a_sentence(kernels, missing, floor.read / 1e9))


def _in_a_sentence(kernels: Sequence[str], missing: str, read: float) -> str:
    """Return what the report means for sparse weights; missing: why there are no kernels."""
    if not kernels:
        return f"Sparse weights are decoded once and run dense: {missing.rstrip('.')}."
    count = f"{len(kernels)} compiled kernel{'s' * (len(kernels) > 1)}"
    return f"Sparse weights run in {count} here, from a memory of {read:.1f} GB/s."


def _plain(value: Any) -> str:
    """Return a value of the report as text, "-" for none."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return str(value) if value not in (None, "") else "-"
