"""PEFT knows the adapters of this library, whichever of the two is imported first.

PEFT has no entry points: a type of adapter is found in its mappings, or is a KeyError. The entry
put there imports PEFT's side of this library only when a saved adapter of ours is read.
"""

from __future__ import annotations

from types import ModuleType

from .when_imported import Later, when_imported

TYPE, MAPPINGS, HOME = "INTARSIA", "peft.mapping", "intarsia.hosts.attach.peft"
OURS = {
    "PEFT_TYPE_TO_CONFIG_MAPPING": "IntarsiaConfig",
    "PEFT_TYPE_TO_TUNER_MAPPING": "IntarsiaModel",
}


def _add(mappings: ModuleType) -> None:
    """Add our type to PEFT's mappings; what it stands for is imported on its first use."""
    for mapping, name in OURS.items():
        getattr(mappings, mapping).setdefault(TYPE, Later(HOME, name))


def register() -> None:
    """Add our type to PEFT's mappings, now or when they are imported."""
    when_imported(MAPPINGS, _add)
