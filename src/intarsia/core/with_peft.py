"""PEFT knows the adapters of this library, whichever of the two is imported first.

PEFT has no entry points: a type of adapter is found in its mappings, or is a KeyError. The entry
put there imports PEFT's side of this library only when a saved adapter of ours is read.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from .when_imported import when_imported

TYPE, MAPPINGS, HOME = "INTARSIA", "peft.mapping", "intarsia.hosts.attach.peft"


CONFIGS, TUNERS = "PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING"


class Later:
    """Stands for our class in one of PEFT's mappings until it is used: importing HOME replaces it.

    mapping: its name in PEFT.
    """

    def __init__(self, mapping: str) -> None:
        self._mapping = mapping

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._real()(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def _real(self) -> Any:
        importlib.import_module(HOME)
        return getattr(sys.modules[MAPPINGS], self._mapping)[TYPE]


def _add(mappings: ModuleType) -> None:
    for name in (CONFIGS, TUNERS):
        getattr(mappings, name).setdefault(TYPE, Later(name))


def register() -> None:
    """Add our type to PEFT's mappings, now or when they are imported."""
    when_imported(MAPPINGS, _add)
