"""Models by the names that clients ask for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..core.errors import ConfigError


def names_of(arguments: Iterable[str]) -> dict[str, str]:
    """Read names of models from arguments: NAME=FOLDER, or a folder alone, which has its own name.

    Returns name -> folder. Raises: ConfigError for an empty name or folder, or a name used twice.
    """
    sources: dict[str, str] = {}
    for argument in arguments:
        name, equals, source = argument.partition("=")
        if not equals or Path(argument).exists():
            name, source = (
                Path(argument).resolve().name if Path(argument).exists() else argument,
                argument,
            )
        if not name or not source or name in sources:
            got, want = repr(argument), "NAME=FOLDER, each name once"
            raise ConfigError("names of models", got=got, want=want, fix="For example: med=out1")
        sources[name] = source
    return sources
