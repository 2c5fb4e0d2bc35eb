"""Something done to a module of another library as soon as that imports it, and not before."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _WhenImported:
    """A finder that finds one module as the others do, and has `then` done to it."""

    def __init__(self, module: str, then: Callable[[ModuleType], None]) -> None:
        self.module, self.then = module, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find the awaited module as other import finders do; `then` is called once loaded."""
        if name != self.module:
            return None
        finders = (f.find_spec for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        # the real finders find the module; only its loader is extended
        spec = next((s for find in finders if (s := find(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_add(module: ModuleType) -> None:
                run(module)
                self.then(module)

            spec.loader.exec_module = run_and_add  # of this one module's own loader
        return spec


def when_imported(module: str, then: Callable[[ModuleType], None]) -> None:
    """Call `then` with a module now if it is imported, or else as soon as it is.

    A second call for one name that is not imported yet does nothing.
    """
    if (loaded := sys.modules.get(module)) is not None:
        then(loaded)
        return
    ours = (finder for finder in sys.meta_path if isinstance(finder, _WhenImported))
    if not any(finder.module == module for finder in ours):
        sys.meta_path.insert(0, _WhenImported(module, then))


class Later:
    """Stands for a class of this library in others' mappings; it is imported when it is used."""

    def __init__(self, home: str, name: str) -> None:
        self.home, self.name = home, name

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._real()(*args, **settings)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._real(), attribute)

    def _real(self) -> Any:
        return getattr(importlib.import_module(self.home), self.name)
