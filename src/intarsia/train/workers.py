"""How many processes can read data next to this one."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import torch


def usable_workers(count: int, *, bytes_ahead: int, shm: Path = Path("/dev/shm")) -> int:
    """Return `count`, or 0 with a warning if shared memory is too small for so many processes."""
    reason = ""
    if shm.is_dir() and (free := shutil.disk_usage(shm).free) < bytes_ahead:
        reason = f"{free / 1e6:.0f} MB free in {shm}, want {bytes_ahead / 1e6:.0f} MB"
    else:
        try:
            # a system without /dev/shm, or with a quota, refuses it here and not in a worker
            torch.empty(max(1, bytes_ahead), dtype=torch.uint8).share_memory_()
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
    if not reason:
        return count
    fix = "Give the container more (docker --shm-size=2g), or set workers=0."
    warnings.warn(
        f"{count} worker processes cannot start: {reason}. Making batches in this process. {fix}",
        stacklevel=3,
    )
    return 0
