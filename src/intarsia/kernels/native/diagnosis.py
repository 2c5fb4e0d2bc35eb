"""The kernels' part of `intarsia doctor`."""

from __future__ import annotations

import platform
from typing import Any

import torch

from ...core.errors import ConfigError
from . import building
from .loading import instructions, kind, load, why


def examine() -> dict[str, Any]:
    """Return compiler, build, folder, instruction set and kernels for a report, by name.

    An error is a text in the report and is not raised.
    """
    try:
        command, version = building.compiler()
        compiler = f"{' '.join(command)}: {version}"
    except building.BuildFailed as error:
        compiler = f"none ({error})"
    try:
        folder = str(building.folder())
    except (ConfigError, OSError) as error:
        folder = f"refused: {error}"
    library = load()
    names = sorted(p.stem for p in building.SOURCES.glob("*.c") if p.stem != "threads")
    return {
        "processor": platform.processor() or platform.machine(),
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "compiler": compiler,
        "build": kind(),
        "folder": folder,
        "instruction set": instructions(),
        "why not": why(),
        "kernels": names if library is not None else [],
    }
