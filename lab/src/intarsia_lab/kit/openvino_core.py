"""OpenVINO's runtime, once for a process."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def openvino_core() -> Any:
    """Return the process's one Core of OpenVINO; nothing frees it.

    The CPU plugin of each Core gives the main thread a stack for signals, and frees that with the
    Core. After two Cores it stays in use when it is freed, and the next signal, Ctrl-C too, ends
    the process before any handler runs (2026.4, on processors with AMX).

    Raises: ImportError without OpenVINO.
    """
    import openvino

    return openvino.Core()
