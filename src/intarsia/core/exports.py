"""A package's public names, listed once: in the stub beside its `__init__.py`, for type checkers.

Each is imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import ast
import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


def homes(stub: Path) -> dict[str, str]:
    """Name -> module below the package, of the lines `from .module import Name as Name`."""
    imports = (n for n in ast.parse(stub.read_text()).body if isinstance(n, ast.ImportFrom))
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def exports(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package.  file: its `__init__.py`."""
    known = homes(Path(file).with_suffix(".pyi"))
    names = sorted(known, key=str.casefold)

    def get(name: str) -> Any:
        if name not in known:
            near = difflib.get_close_matches(name, names)
            fix = f". Did you mean {' or '.join(near)}?" if near else ""
            # without its object: Python would suggest a second time at the end of the same line
            raise AttributeError(f"module {package!r} has no attribute {name!r}{fix}", name=name)
        return getattr(importlib.import_module(f"{package}.{known[name]}"), name)

    return get, lambda: names, names
