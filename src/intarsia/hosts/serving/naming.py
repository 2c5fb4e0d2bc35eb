"""Models by the names that clients ask for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...core.errors import ConfigError


def names_of(words: Iterable[str]) -> dict[str, str]:
    """NAME=FOLDER, or a folder alone, which has its own name.  Raises: ConfigError."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not equals or Path(word).exists():
            name, source = Path(word).resolve().name if Path(word).exists() else word, word
        if not name or not source or name in found:
            got, want = repr(word), "NAME=FOLDER, each name once"
            raise ConfigError("names of models", got=got, want=want, fix="For example: med=out1")
        found[name] = source
    return found
