"""Settings of a method that stands over an adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self


class OverMethod:
    """For settings of a method over another one, `over`: its places are those of the other."""

    over: Any

    @property
    def elsewhere(self) -> Self | None:
        """These settings over those of `over` elsewhere."""
        other = getattr(self.over, "elsewhere", None)
        return None if other is None else replace(self, over=other)  # pyright: ignore

    @property
    def roles(self) -> tuple[str, ...]:
        return self.over.roles

    @property
    def position(self) -> str:
        return self.over.position
