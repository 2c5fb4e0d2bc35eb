"""PEFT knows the adapters of this library, whichever of the two is imported first.

PEFT has no entry points: a type of adapter is found in its mappings, or is a KeyError. What is put
there imports PEFT's side of this library only when a saved adapter of ours is read.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

TYPE, MAPPINGS, HOME = "INTARSIA", "peft.mapping", "intarsia.hosts.attach.peft"


class LaterConfig:
    """Stands for our config in PEFT's mapping until it is used: importing HOME replaces it."""

    def __call__(self, **settings: Any) -> Any:
        return self._real().from_peft_type(**settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def _real(self) -> Any:
        importlib.import_module(HOME)
        return sys.modules[MAPPINGS].PEFT_TYPE_TO_CONFIG_MAPPING[TYPE]


class _WhenImported:
    """A finder of modules that finds PEFT's mappings as the others do, and adds to them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != MAPPINGS:
            return None
        others = (f.find_spec for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        spec = next((s for find in others if (s := find(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _add(module)

            spec.loader.exec_module = run_and_register  # of this one module's own loader
        return spec


def _add(mappings: ModuleType) -> None:
    mappings.PEFT_TYPE_TO_CONFIG_MAPPING.setdefault(TYPE, LaterConfig())


def register() -> None:
    """Add our type to PEFT's mappings, now or when they are imported."""
    if (found := sys.modules.get(MAPPINGS)) is not None:
        _add(found)
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())
