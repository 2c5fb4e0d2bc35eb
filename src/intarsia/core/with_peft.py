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


class LaterConfig:
    """Stands for our config in PEFT's mapping until it is used: importing HOME replaces it."""

    def __call__(self, **settings: Any) -> Any:
        return self._real().from_peft_type(**settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def _real(self) -> Any:
        importlib.import_module(HOME)
        return sys.modules[MAPPINGS].PEFT_TYPE_TO_CONFIG_MAPPING[TYPE]


def _add(mappings: ModuleType) -> None:
    mappings.PEFT_TYPE_TO_CONFIG_MAPPING.setdefault(TYPE, LaterConfig())


def register() -> None:
    """Add our type to PEFT's mappings, now or when they are imported."""
    when_imported(MAPPINGS, _add)
