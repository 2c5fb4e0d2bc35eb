"""MixLoRA: a mixture of experts made of one frozen MLP and several LoRAs (arXiv:2404.15159)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..adapters import Lora
from ..core import Card, Cell, Method, Paper, Site
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..mixtures.lora_experts import (
    ATTENTION,
    BesideAttention,
    OutputExperts,
    attention_cell,
    places,
)
from ..routers.switch import Switch
from ..routers.topk import TopK
from ..routers.topp import TopP


@dataclass(frozen=True)
class MixLora(BesideAttention):
    """A mixture y = sum_e G_e(x) MLP_e(x), where MLP_e is the frozen MLP with LoRAs of expert e.

    What G leaves over of 1 goes to the MLP without experts: after top-p, beyond a capacity, and for
    padding (a host's `attention_mask`), which gets no expert and counts in no loss.

    Raises: ConfigError on a setting that cannot be; TargetError for an MLP of an unknown kind, see
    `mixtures.dialects`.
    Source: paper, section 3, and released code. The balance loss, k at uniform routing, is added by
    `fit`, see `intarsia.gating.aux_loss`. Here the down-projection, too, is computed once for all.
    The release trains several such models in one batch; here each is trained on its own, and
    several answer one batch: model(..., adapter_names=["a", "b", "a"]).
    Not for a budget of parameters: a LoRA with the rank of all active experts does as well.
    """

    router: TopK | TopP | Switch = setting(
        help=(
            "The router that chooses experts: `TopK` (renormalised, as in the paper), `TopP` (its "
            "dynamic variant) or `Switch` (one expert, with a capacity)."
        ),
        factory=TopK,
    )
    over: Method = setting(
        help=(
            "The adapter of an expert, any that adds to a linear layer (experts of `Mos` have one "
            "pool for the whole model)."
        ),
        factory=lambda: Lora(16, 32.0, 0.05),
    )
    attention: Lora | None = setting(
        help="The plain LoRA of the attention's linear layers; None = none there.",
        factory=lambda: Lora(16, 32.0, 0.05, ATTENTION),
    )

    position = "parallel"

    def __post_init__(self) -> None:
        """Check that the router is one of the three kinds.  Raises: ConfigError."""
        check(self)
        if not isinstance(self.router, (TopK, TopP, Switch)):
            want = "TopK(...), TopP(...) or Switch(...)"
            fix = "The defaults are TopK(experts=8, active=2)."
            raise ConfigError("router", got=repr(self.router), want=want, fix=fix)

    @property
    def shares_state(self) -> bool:
        return self.over.shares_state

    def shared_state(self, sites: Sequence[Site], *, generator: torch.Generator) -> nn.Module:
        """Return the module with the state that the adapters of all experts share."""
        # Each linear map of each MLP has a site for every expert.
        sites_of_maps = (places(site, self.router.experts) for site in sites)
        expert_sites = [
            expert_site
            for linear_maps in sites_of_maps
            for sites_of_experts in linear_maps.values()
            for expert_site in sites_of_experts
        ]
        return self.over.shared_state(expert_sites, generator=generator)

    def build(
        self, site: Site, *, generator: torch.Generator, shared: nn.Module | None = None
    ) -> Cell:
        """Build the plain LoRA of an attention layer, or the routed experts of an MLP."""
        # Attention layers get the plain LoRA; what remains is a whole MLP.
        lora = attention_cell(self.attention, site, generator=generator)
        if lora is not None:
            return lora
        router = self.router.build(site.inputs, generator=generator)
        # The gate reads the MLP's input; experts add at each linear map inside.
        return OutputExperts(router, self.over, site, generator=generator, shared=shared)


CARD = Card(
    "mixlora",
    kind="adapter",
    config=MixLora,
    paper=Paper(
        "2404.15159",
        2024,
        "MixLoRA: Enhancing Large Language Models Fine-Tuning with LoRA-based Mixture of Experts",
    ),
    tags=frozenset({"zero_start"}),
    tiny={"router": TopK(4, 2), "over": Lora(2), "attention": Lora(2)},
    summary="Experts that share a frozen MLP and differ by LoRAs, two for each token.",
    family="adapter mixtures",
    names=("MixLoRA",),
)
