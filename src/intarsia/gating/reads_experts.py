"""Routers that read the weights of their experts: which hidden units will be on."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ..core.errors import ConfigError


class Encoded(Protocol):
    """Experts whose hidden unit j of expert e is on exactly where (W_e x + b_e)_j > 0."""

    def encoder(self) -> tuple[Tensor, Tensor | None]:
        """W (E, h, d), and b (E, h) or None, as they are now.

        Raises: ConfigError for experts whose units are not on or off.
        """
        ...


class ReadsExperts(nn.Module):
    """A module that reads the experts it routes over; they stay their owner's.

    A `Mixture` shows its experts to its router. They are registered with their owner alone, so
    that a state dict has them once, and a deep copy of the owner reads its own.

    Raises: ConfigError for experts that cannot be read, or for reading before any were seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: tuple[Encoded, ...] = ()  # a tuple: no second registration

    def see(self, experts: Encoded) -> None:
        """Read these experts from now on.  Raises: ConfigError for experts that cannot be read."""
        experts.encoder()
        self._seen = (experts,)

    def encoder(self) -> tuple[Tensor, Tensor | None]:
        """W (E, h, d), and b (E, h) or None, of the experts seen.

        Raises: ConfigError before any were.
        """
        if not self._seen:
            what = f"experts of a {type(self).__name__}"
            fix = "Put it into intarsia.mixtures.Mixture(StackedExperts(..., act='relu'), router)."
            raise ConfigError(what, got="none to read", want="those that it routes over", fix=fix)
        return self._seen[0].encoder()


def expert_readers(router: nn.Module) -> list[ReadsExperts]:
    """What reads experts in a router: itself, or the gate inside."""
    return [m for m in router.modules() if isinstance(m, ReadsExperts)]
