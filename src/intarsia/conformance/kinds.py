"""The suite of a card's own kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from ..core import Card
from ..core.errors import UnknownName
from .adapters import check_adapter
from .mixtures import check_mixture
from .models import check_model
from .routers import check_router
from .verdict import Checks

SUITES: Mapping[str, Callable[[Card], Checks]] = MappingProxyType(
    {
        "adapter": check_adapter,
        "mixture": check_mixture,
        "model": check_model,
        "router": check_router,
    }  # fmt: skip
)


def check(card: Card) -> Checks:
    """The checks of a card, by its kind.  Raises: UnknownName for a kind without a suite."""
    if card.kind not in SUITES:
        raise UnknownName("kind with a conformance suite", card.kind, SUITES)
    return SUITES[card.kind](card)
