"""The kernels' part of `intarsia doctor`."""

from __future__ import annotations

import platform
from typing import Any

import torch

from ...core.errors import ConfigError
from . import building
from .loading import instructions, kind, load, why


def examine() -> dict[str, Any]:
    """Describe the native kernels of this machine for a report, as texts by name.

    "processor", "torch", "compiler": which there are; "build": the kind of build in use, or "off";
    "folder": of the built kernels; "instruction set": the one that they use; "kernels": a list of
    their names, empty if they cannot be used, and "why not": the reason, else "". Errors are not
    raised: their texts are in the report.
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
