"""Settings of a method that stands over an adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from ..core import Method
from ..core.errors import ConfigError


class OverMethod(Method):
    """The base of settings of a method over another one, `over`, and in its places."""

    over: Any

    def refuse_shared(self) -> None:
        """Raise ConfigError unless `over` is another adapter, with cells that share no weights."""
        name = type(self.over).__name__
        if isinstance(self.over, type(self)) or not isinstance(self.over, Method):
            want, fix = "another adapter's settings", "Pass a Bottleneck or a Lora."
            raise ConfigError("over", got=name, want=want, fix=fix)
        # Weights that several layers share cannot be split or disturbed for one layer alone.
        if self.over.shares_state:
            got, want = f"{name}, whose cells share their weights", "weights of each cell's own"
            raise ConfigError("over", got=got, want=want, fix="Pass a Bottleneck or a Lora.")

    @property
    def elsewhere(self) -> Self | None:
        """The settings over what `over` names for hosts without attention, or None."""
        over = self.over.elsewhere
        return None if over is None else replace(self, over=over)  # pyright: ignore

    @property
    def roles(self) -> tuple[str, ...]:
        return self.over.roles

    @property
    def position(self) -> str:
        return self.over.position
