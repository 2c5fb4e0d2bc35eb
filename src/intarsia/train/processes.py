"""How many processes there are, which one this is, and where it computes: accelerate's answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState

from ..core.errors import ConfigError


def processes() -> PartialState:
    """This process among those that accelerate or torchrun started."""
    # accelerate forms a group of CPU processes only when told that there is nothing else
    return PartialState(cpu=not torch.accelerator.is_available())


def accelerator(trackers: Sequence[str], out: Path | None) -> Accelerator:
    """accelerate for one run; autocast stays with the loop, since its own would patch the model.

    Raises: ConfigError if the program has an Accelerator of another precision.
    """
    processes()
    try:
        return Accelerator(mixed_precision="no", log_with=[*trackers] or None, project_dir=out)
    except ValueError as error:
        raise ConfigError(
            "accelerate", got=f"an Accelerator in use ({error})",
            want="none, or one with mixed_precision='no'",
            fix="Set the precision with fit(..., precision='bf16') only.",
        ) from error  # fmt: skip
