"""How a method meets a task, as data: three protocols whose results never share a column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from types import MappingProxyType
from typing import Any

from ..core.errors import ConfigError, UnknownName
from ..data.suites import JOINED
from ..experiments.experiment import OFFICIAL, Experiment
from .contenders import Contender


@dataclass(frozen=True)
class Protocol:
    """Rules that hold for all tasks.

    training: values of `Training` and `Recipe` that all methods share.
    grid: values by name that the validation part chooses from; their product is the search.
    only: methods it is defined for; none = all.
    A search trains on the training part and reads the validation part. The run that counts trains
    on both parts, looks at the test part once, and is its last epoch.
    """

    name: str
    about: str
    training: Mapping[str, Any]
    grid: Mapping[str, tuple[float, ...]] = field(
        default_factory=lambda: MappingProxyType(dict[str, tuple[float, ...]]())
    )
    only: tuple[str, ...] = ()

    def check(self, contender: Contender) -> None:
        """Raises: ConfigError for a method that the protocol says nothing about."""
        if self.only and contender.name not in self.only:
            raise ConfigError(
                f"method {contender.name!r} under protocol {self.name!r}", got="no rule for it",
                want=f"one of {self.only}", fix="Use --protocol honest or tuned.",
            )  # fmt: skip

    def final(self, contender: Contender, start: Experiment, task: str) -> Experiment:
        """The run that counts, before a search has its say."""
        values: dict[str, Any] = {"data": task + JOINED, "val": 0, **self.training}
        chosen = contender.into(start.changed(**values))
        if self.name == OFFICIAL:
            return chosen.changed(
                method=OFFICIAL, settings=("bottleneck=16",), objective="plain",
                lr=self.training["lr"], frozen_once=False,  # its dropout is in every block
                last_blocks=start.adapted.last_blocks,
            )  # fmt: skip
        return chosen

    def search(self, contender: Contender, start: Experiment, task: str) -> list[Experiment]:
        """The runs whose validation accuracy chooses; none without a grid.

        "lr" in the grid multiplies the contender's own.
        """
        if not self.grid:
            return []
        base = self.final(contender, start, task).changed(data=task, val=None)
        found: list[Experiment] = []
        for values in product(*self.grid.values()):
            given = dict(zip(self.grid, values, strict=True))
            if "lr" in given:
                given["lr"] *= contender.lr
            found.append(base.changed(**given))
        return found

    def settle(self, final: Experiment, best: Experiment) -> Experiment:
        """The run that counts, with what the search chose."""
        flat = best.flat()
        return final.changed(**{name: flat[name] for name in self.grid})


HONEST = Protocol(
    "honest",
    "One setting of each method for all tasks; the last epoch.",
    MappingProxyType({"weight_decay": 0.01, "batch_size": 32, "select": "last"}),
)
TUNED = Protocol(
    "tuned",
    "A declared grid for every method, chosen on the validation part; its runs are counted.",
    HONEST.training,
    MappingProxyType({"lr": (0.3, 1.0, 3.0), "weight_decay": (0.01, 0.1)}),
)
PUBLISHED = Protocol(
    OFFICIAL,
    "MoSA's released recipe: its batches, schedule, objective, optimiser and initial weights.",
    MappingProxyType({"batch_size": 128, "lr": 1e-3}),
    only=("mosa",),
)
PROTOCOLS = (HONEST, TUNED, PUBLISHED)


def protocol(name: str) -> Protocol:
    """The protocol of that name.  Raises: UnknownName."""
    for found in PROTOCOLS:
        if found.name == name:
            return found
    raise UnknownName("protocol", name, [p.name for p in PROTOCOLS])
