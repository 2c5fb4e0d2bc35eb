"""Names that were called otherwise one release ago: still found, with a warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: str, names: Mapping[str, str], depth: int = 2) -> Callable[[str], Any]:
    """A module's `__getattr__` for the old names of things.

    names: old name -> "module.New" below `intarsia`.  depth: calls between the warning and the use.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}", name=name)
        home, _, new = names[name].rpartition(".")
        warnings.warn(
            f"{module}.{name} is now intarsia.{home}.{new}; the old name goes in version 0.3.",
            DeprecationWarning,
            stacklevel=depth,
        )
        return getattr(importlib.import_module(f"intarsia.{home}"), new)

    return find
