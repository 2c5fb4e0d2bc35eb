"""Errors for the numbers that kernels return."""

from __future__ import annotations

from ...core.errors import ShapeError

NO_MEMORY = 2**63 - 1


def refuse(fault: int) -> None:
    """Raise the error that a kernel's return value stands for.

    fault: 0 raises nothing, NO_MEMORY a MemoryError, any other number n a ShapeError that names row
    n - 1 of the stored weight.
    """
    if not fault:
        return
    if fault == NO_MEMORY:
        raise MemoryError("no memory for a copy of the inputs")
    got = f"row {fault - 1} that does not end where the next begins"
    want = "as many values as its bits or offsets say, in columns that there are"
    raise ShapeError("stored weight", got=got, want=want, fix="Copy the file again.")
