"""The processes of a data-parallel run, and the device of each, from accelerate."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from ..core.errors import ConfigError, IntarsiaError

Result = TypeVar("Result")


def processes() -> PartialState:
    """This process among those that accelerate or torchrun started; the group ends with it."""
    first = not PartialState._shared_state
    # accelerate forms a group of CPU processes only when told that there is nothing else
    found = PartialState(cpu=not torch.accelerator.is_available())
    if first:
        # gloo's threads must end before Python does: one that then frees a tensor aborts
        atexit.register(found.destroy_process_group)
    return found


def accelerator(trackers: Sequence[str], out: Path | None) -> Accelerator:
    """accelerate for one run; autocast stays with the loop, since its own would patch the model.

    Raises: ConfigError if the program has an Accelerator of another precision.
    """
    processes()
    try:
        return Accelerator(mixed_precision="no", log_with=[*trackers] or None, project_dir=out)
    except ValueError as error:
        got, want = f"an Accelerator in use ({error})", "none, or one with mixed_precision='no'"
        fix = "Set the precision with fit(..., precision='bf16') only."
        raise ConfigError("accelerate", got=got, want=want, fix=fix) from error


def on_main(ranks: Accelerator | PartialState, job: Callable[[], Result]) -> Result:
    """Run a job in the main process; every process gets its result, or raises its error."""
    found: Result | IntarsiaError | None = None
    if ranks.is_main_process:
        try:
            found = job()
        except IntarsiaError as error:
            if ranks.num_processes == 1:
                raise
            found = error
    if ranks.num_processes > 1:
        found = broadcast_object_list([found])[0]
    if isinstance(found, IntarsiaError):
        raise found
    return cast(Result, found)
