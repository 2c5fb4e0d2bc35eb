"""Cells of many contenders, as they are asked for by name, and the files that tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from intarsia.core.errors import ConfigError, UnknownName
from intarsia.data import corpora, sets

from .materials import is_text
from .table import BASELINE, VARIANTS, chosen
from .trials import BUDGETS, RouterTrial


class Contest(NamedTuple):
    """A comparison of routers on materials, from seeds, at budgets; routers: None = all there are.

    sees_later: acknowledges contenders that see later tokens of a text, and with None lets them in.
    """

    data: Sequence[str]
    routers: Sequence[str] | None = None
    seeds: Sequence[int] = (0,)
    budgets: Sequence[str] = ("steps",)
    sees_later: bool = False

    def asked(self) -> list[RouterTrial]:
        """Return all runs of the comparison: data by budgets by routers by seeds.

        Raises: UnknownName for an unknown data set or router; ConfigError for an unknown budget,
        and for what is named twice or not at all.
        """
        routers = ("all",) if self.routers is None else self.routers
        for subject, named in (
            ("data", self.data),
            ("seeds", self.seeds),
            ("budgets", self.budgets),
            ("routers", routers),
        ):
            if not named or len(set(named)) < len(named):
                got = ", ".join(map(str, named)) or "nothing"
                fix = "For example: 0,1,2, or topk,switch."
                raise ConfigError(subject, got=got, want="each once, at least one", fix=fix)
        for budget in self.budgets:
            if budget not in BUDGETS:
                raise ConfigError(
                    "budget", got=repr(budget), want=f"one of {(*BUDGETS, 'both')}", fix="Pick one."
                )
        # texts and sets of pictures
        available = (*corpora.names(), *sets.names())
        for name in self.data:
            if name not in available:
                raise UnknownName("corpus or set of pictures", name, available)
        # seeds last, so that the runs of a router stand together
        return [
            RouterTrial(variant, data, seed, budget)
            for data in self.data
            for budget in self.budgets
            for variant in chosen(self._all(data) if self.routers is None else self.routers)
            for seed in self.seeds
        ]

    def _all(self, data: str) -> list[str]:
        """Return all routers that may be compared on a data set."""
        all_allowed = self.sees_later or not is_text(data)
        return [name for name, variant in VARIANTS.items() if all_allowed or not variant.sees_later]

    def baseline(self, name: str | None) -> str:
        """Return the name of the router that the others are compared with.

        name: the one that the user named; None = "topk" where it takes part, else the first.
        Raises: UnknownName for one that does not take part on all data.
        """
        # routers named by the user are not checked here
        allowed = [self._all(data) for data in self.data] if self.routers is None else []
        names = [
            router for router in self.routers or VARIANTS if all(router in some for some in allowed)
        ]
        # the usual baseline, if it takes part
        if name is None:
            return BASELINE if BASELINE in names else names[0]
        if name not in names:
            raise UnknownName("baseline", name, names)
        return name
