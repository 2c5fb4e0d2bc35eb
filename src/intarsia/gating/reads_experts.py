"""Routers that read the weights of their experts: which hidden units will be on."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from ..core.errors import ConfigError


class Encoded(Protocol):
    """Experts with hidden unit j of expert e on exactly where (W_e x + b_e)_j > 0."""

    def encoder(self) -> tuple[Tensor, Tensor | None]:
        """Return the weights W (E, h, d) and biases b (E, h) or None of the experts' first layers.

        There are E experts of h hidden units, for inputs of width d. Raises: ConfigError for
        experts without ReLU, where units are never exactly off.
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
        """Remember the experts with the weights that the router reads from now on.

        experts: those that it routes over. Raises: ConfigError for experts that cannot be read.
        """
        # fails now, not in the first forward, for experts that cannot be read
        experts.encoder()
        self._seen = (experts,)

    def encoder(self) -> tuple[Tensor, Tensor | None]:
        """Return the first layers of the experts that `see` was called with: W (E, h, d), b (E, h).

        There are E experts of h hidden units, for inputs of width d; b is None for experts without
        biases. Raises: ConfigError if `see` was not called yet.
        """
        if not self._seen:
            name = f"experts of a {type(self).__name__}"
            fix = "Put it into intarsia.mixtures.Mixture(StackedExperts(..., act='relu'), router)."
            raise ConfigError(name, got="none to read", want="those that it routes over", fix=fix)
        return self._seen[0].encoder()


def expert_readers(router: nn.Module) -> list[ReadsExperts]:
    """Return the modules of a router that read experts: itself, or the gate inside."""
    return [m for m in router.modules() if isinstance(m, ReadsExperts)]
