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
    """Who, on which materials, from which seeds, at which budgets; routers: None = all there are.

    sees_later: acknowledges contenders that see later tokens of a text, and with None lets them in.
    """

    data: Sequence[str]
    routers: Sequence[str] | None = None
    seeds: Sequence[int] = (0,)
    budgets: Sequence[str] = ("steps",)
    sees_later: bool = False

    def asked(self) -> list[RouterTrial]:
        """The cells.

        Raises: UnknownName for a material or contender that is not there; ConfigError for an
        unknown budget, or what is named twice or not at all.
        """
        routers = ("all",) if self.routers is None else self.routers
        for what, named in (
            ("data", self.data),
            ("seeds", self.seeds),
            ("budgets", self.budgets),
            ("routers", routers),
        ):
            if not named or len(set(named)) < len(named):
                got = ", ".join(map(str, named)) or "nothing"
                fix = "For example: 0,1,2, or top-k,switch."
                raise ConfigError(what, got=got, want="each once, at least one", fix=fix)
        for budget in self.budgets:
            if budget not in BUDGETS:
                raise ConfigError(
                    "budget", got=repr(budget), want=f"one of {(*BUDGETS, 'both')}", fix="Pick one."
                )
        known = (*corpora.names(), *sets.names())
        for name in self.data:
            if name not in known:
                raise UnknownName("corpus or set of pictures", name, known)
        return [
            RouterTrial(variant, data, seed, budget)
            for data in self.data
            for budget in self.budgets
            for variant in chosen(self._all(data) if self.routers is None else self.routers)
            for seed in self.seeds
        ]

    def _all(self, data: str) -> list[str]:
        """All but those that would see later tokens of a text, unless that is acknowledged."""
        every = self.sees_later or not is_text(data)
        return [name for name, one in VARIANTS.items() if every or not one.sees_later]

    def baseline(self, given: str | None) -> str:
        """The one that was named, else "top-k" where it is among them, else the first.

        Raises: UnknownName for one that is not among them, for each of the data.
        """
        allowed = [self._all(data) for data in self.data] if self.routers is None else []
        names = [one for one in self.routers or VARIANTS if all(one in some for some in allowed)]
        if given is None:
            return BASELINE if BASELINE in names else names[0]
        if given not in names:
            raise UnknownName("baseline", given, names)
        return given
