"""The contenders by name: each router of the catalogue at eight experts, as its paper has it.

A contender has the key of its card, as in `intarsia list`; a variant of it has a suffix.
"""

from __future__ import annotations

from collections.abc import Iterable

from intarsia.core.errors import UnknownName
from intarsia.core.registry import card, index, keys
from intarsia.mixtures import AdamOnce, Capacity, HeavyBall
from intarsia.routers import (
    ActivationGate,
    Comet,
    DSelectK,
    EvoMoe,
    ExpertChoice,
    Hash,
    MoeX,
    NoisyTopK,
    PermutationSearch,
    Recurrent,
    Switch,
    TopK,
    TopP,
    Transport,
)
from intarsia.routers.random import RandomRouting

from .variant import Expert, Start, Variant

EXPERTS, ACTIVE = 8, 2
BASELINE = "topk"
STATE = 32  # of the recurrent router: half the width, as in the paper's larger models

PYRAMID = (4, 4, 8, 8)  # twice as many in the later half, as in PR-MoE

DENSE_FIRST = 0.1
"""Of EvoMoE's steps, one expert for all, as in its experiment; of MoE-X's, too."""

VARIANTS: dict[str, Variant] = {
    v.name: v
    for v in (
        Variant("dense", None),
        Variant("dense-2x", None, Expert(times=ACTIVE)),
        Variant("topk", TopK(EXPERTS, ACTIVE)),
        Variant("topk-1", TopK(EXPERTS, 1, scale="prob")),
        Variant("switch", Switch(EXPERTS)),
        Variant("noisy_topk", NoisyTopK(EXPERTS, ACTIVE)),
        Variant("topp", TopP(EXPERTS)),
        Variant("hash", Hash(EXPERTS, 1)),
        Variant("random", RandomRouting(EXPERTS, ACTIVE, "sample")),
        Variant("dselect", DSelectK(EXPERTS, ACTIVE)),
        Variant("comet", Comet(EXPERTS, ACTIVE)),
        Variant("comet+", PermutationSearch(Comet(EXPERTS, ACTIVE))),
        Variant("topk+", PermutationSearch(TopK(EXPERTS, ACTIVE))),
        Variant("evomoe", EvoMoe(EXPERTS), start=Start("diversified", DENSE_FIRST)),
        Variant("evomoe-soft", EvoMoe(EXPERTS, hard_after=None)),  # the gate alone, soft to the end
        Variant("recurrent", Recurrent(EXPERTS, ACTIVE, hidden=STATE)),
        Variant("expert_choice", ExpertChoice(EXPERTS, capacity=ACTIVE)),
        Variant("transport", Transport(EXPERTS, capacity=1.25, iterations=20)),
        Variant("residual", TopK(EXPERTS, ACTIVE), update=HeavyBall()),
        Variant("residual-adam", TopK(EXPERTS, ACTIVE), update=AdamOnce()),
        Variant("topk-1-order", TopK(EXPERTS, 1, scale="prob"), capacity=Capacity(1.0, "order")),
        Variant("topk-1-lots", TopK(EXPERTS, 1, scale="prob"), capacity=Capacity(1.0, "random")),
        Variant("deepspeed_moe-residual", TopK(EXPERTS, 1, scale="prob"), residual=True),
        Variant("deepspeed_moe-pyramid", TopK(EXPERTS, 1, scale="prob"), experts=PYRAMID),
        Variant("deepspeed_moe", TopK(EXPERTS, 1, scale="prob"), residual=True, experts=PYRAMID),
        Variant("activation", ActivationGate(EXPERTS, ACTIVE)),
        Variant("topk-relu", TopK(EXPERTS, ACTIVE), Expert("relu")),
        Variant("moe_x", MoeX(EXPERTS, ACTIVE), Expert("relu"), Start("diversified", DENSE_FIRST)),
        Variant("moe_x-fresh", MoeX(EXPERTS, ACTIVE), Expert("relu")),
    )
}
"""Every token of "topk" passes two of eight experts; "dense" has an expert's hidden units,
"dense-2x" those that a token of "topk" meets."""


def sized() -> set[str]:
    """Return the routers of the catalogue that have a setting for the number of experts."""
    # as the catalogue's index lists the settings
    return {
        k for k in keys("router") if any(s["name"] == "experts" for s in index()[k]["settings"])
    }


def chosen(names: Iterable[str]) -> list[Variant]:
    """Return the routers of these names, or catalogue keys.  Raises: UnknownName."""
    return [VARIANTS[name] if name in VARIANTS else _by_key(name) for name in names]


def _by_key(name: str) -> Variant:
    """Return a router of the catalogue with eight experts and default settings."""
    if name not in sized():
        raise UnknownName("contender", name, {*VARIANTS, *sized()})
    return Variant(name, card(name).config(experts=EXPERTS))
