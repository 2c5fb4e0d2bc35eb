"""Settings of routers: which look ahead, also from inside, and how many experts there are."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.core.errors import ConfigError
from intarsia.gating import non_causal, with_experts
from intarsia.routers import Comet, ExpertChoice, Hash, PermutationSearch, TopK, Transport

from ..refusals import refused


@dataclass(frozen=True)
class Outsider:
    non_causal: bool = False


def test_settings_that_look_ahead_are_known() -> None:
    ahead = (ExpertChoice(), Transport(), PermutationSearch(ExpertChoice()), Outsider(True))
    assert all(non_causal(config) for config in ahead)
    back = (TopK(), Comet(), Hash(), PermutationSearch(TopK()), Outsider(), object())
    assert not any(non_causal(config) for config in back)


def test_the_number_of_experts_is_that_of_the_gate_inside() -> None:
    assert with_experts(TopK(4), 6) == TopK(6)
    search = with_experts(PermutationSearch(Comet(4), steps=7), 6)
    assert search == PermutationSearch(Comet(6), steps=7) and search.experts == 6
    with refused(ConfigError, what="experts", got="a Outsider, which has no such setting"):
        with_experts(Outsider(), 6)
    with refused(ConfigError, what="experts", got=0):
        with_experts(PermutationSearch(TopK()), 0)
