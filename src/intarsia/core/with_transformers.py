"""transformers knows the models of this library, whichever of the two is imported first.

`AutoConfig` finds a type of model in its mapping, or does not know it. What is put there imports
this library's side only when such a folder is read.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from .when_imported import when_imported

SEEING, MAPPINGS = "intarsia_seeing", "transformers.models.auto.configuration_auto"
HOME, CONFIG = "intarsia.hosts.senses.auto", "SeeingConfig"


class LaterSeeingConfig:
    """Stands for our config in their mapping until it is used: importing HOME replaces it."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        return self._real()(*args, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def _real(self) -> Any:
        return getattr(importlib.import_module(HOME), CONFIG)


def _add(mappings: ModuleType) -> None:
    if SEEING not in mappings.CONFIG_MAPPING:
        mappings.CONFIG_MAPPING.register(SEEING, LaterSeeingConfig())


def register() -> None:
    """Add our type to transformers' mapping, now or when that is imported."""
    when_imported(MAPPINGS, _add)
