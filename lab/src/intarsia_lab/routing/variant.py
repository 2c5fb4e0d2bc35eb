"""A contender: the router, and all else by which its model differs from the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from intarsia.core.errors import ConfigError
from intarsia.core.registry import KEY, card, method_to_dict, settings_from_dict
from intarsia.gating import RouterConfig
from intarsia.mixtures import AdamOnce, Capacity, HeavyBall, Robust
from intarsia.mixtures.residual import Update
from intarsia.sparse.swap.upcycle import looks_ahead

UPDATES: dict[str, type[Update]] = {c.__name__: c for c in (HeavyBall, AdamOnce, Robust)}


@dataclass(frozen=True)
class Start:
    """The start of the experts.

    how: as `intarsia.upcycle` has it, "fresh" = newly drawn; dense_first: the share of the steps
    in which the model is trained as a dense one, from which its experts then come; fraction: of
    each expert's weights that "diversified" sets to 0.

    Raises: ConfigError for a share that leaves no step, or one before fresh experts.
    """

    how: str = "fresh"
    dense_first: float = 0.0
    fraction: float = 0.1

    def __post_init__(self) -> None:
        """Check that steps are left, and that experts are not newly drawn.  Raises: ConfigError."""
        if not 0 <= self.dense_first < 1:
            raise ConfigError(
                "dense_first", got=self.dense_first, want="0 <= share < 1", fix="Try 0.1."
            )
        # a dense training would be thrown away
        if self.how == "fresh" and self.dense_first:
            got = f"{self.dense_first} with experts that are drawn anew"
            want = "experts that come from the dense model"
            raise ConfigError("dense_first", got=got, want=want, fix="Use how='diversified'.")


@dataclass(frozen=True)
class Expert:
    """act: activation, "gelu", "relu" or "silu"; times: its hidden units, as a multiple.

    Raises: ConfigError for times below 1.
    """

    act: str = "gelu"
    times: int = 1

    def __post_init__(self) -> None:
        """Check the multiple of hidden units.  Raises: ConfigError."""
        if self.times < 1:
            raise ConfigError("times", got=self.times, want="at least 1", fix="Leave it out.")


@dataclass(frozen=True)
class Variant:
    """A contender: a router, its experts and their start.

    router: any router's settings, None = a dense model; expert: of one expert, or of the dense
    MLP; capacity: how many tokens an expert takes; update: of the residual stream around the
    block, None = x + f(x); residual: an MLP next to the experts that every token passes
    (DeepSpeed-MoE); experts: E instead of the router's own, one for each layer.

    Raises: ConfigError for a dense model with anything that only a mixture has.
    """

    name: str
    router: RouterConfig | None
    expert: Expert = field(default_factory=Expert)
    start: Start = field(default_factory=Start)
    capacity: Capacity | None = None
    update: Update | None = None
    residual: bool = False
    experts: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check that a dense model has no settings of a mixture.  Raises: ConfigError."""
        if self.router is None and (
            self.capacity or self.residual or self.experts or self.start != Start()
        ):
            subject, got = f"variant {self.name!r}", "a dense model with settings of a mixture"
            raise ConfigError(subject, got=got, want="a router", fix="Give it one, such as TopK().")

    @property
    def sees_later(self) -> bool:
        """True if later tokens decide where earlier ones go."""
        return self.router is not None and looks_ahead(self.router, self.capacity) is not None

    def to_dict(self) -> dict[str, Any]:
        """Return the variant as a dict for JSON."""
        # settings of other classes are written with the name of the class
        update, capacity = self.update, self.capacity
        return {
            "name": self.name,
            "router": None if self.router is None else method_to_dict(cast(Any, self.router)),
            "expert": dataclasses.asdict(self.expert),
            "start": dataclasses.asdict(self.start),
            "capacity": None if capacity is None else dataclasses.asdict(capacity),
            "update": None if update is None else _update(update),
            "residual": self.residual,
            "experts": None if self.experts is None else list(self.experts),
        }

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Variant:
        """Build the variant from the dict that `to_dict` returned."""
        # JSON has lists, where the fields are tuples
        router, experts = raw["router"], cast("Sequence[int] | None", raw["experts"])
        update, capacity = raw["update"], raw["capacity"]
        return cls(
            name=raw["name"],
            router=None if router is None else _router(router),
            expert=Expert(**raw["expert"]),
            start=Start(**raw["start"]),
            capacity=None if capacity is None else Capacity(**capacity),
            update=None if update is None else _live(update),
            residual=raw["residual"],
            experts=None if experts is None else tuple(experts),
        )


def _router(raw: Mapping[str, Any]) -> RouterConfig:
    # a copy: the key is removed
    rest = dict(raw)
    return settings_from_dict(card(str(rest.pop(KEY))), rest)


def _update(update: Update) -> dict[str, Any]:
    # the class by name, which `_live` looks up
    return {"kind": type(update).__name__, **dataclasses.asdict(cast(Any, update))}


def _live(raw: Mapping[str, Any]) -> Update:
    rest = dict(raw)
    return UPDATES[str(rest.pop("kind"))](**rest)
