"""LLaVA-MoLE: one LoRA expert a token in the MLPs, against conflicts of data (arXiv:2401.16160)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..adapters import Lora
from ..core import Card, Cell, Paper, Site
from ..core.schema import check, setting
from ..gating.settings import EXPERTS
from ..mixtures.lora_experts import ATTENTION, BesideAttention, DeltaExperts, attention_cell
from ..routers.topk import TopK


@dataclass(frozen=True)
class LlavaMole(BesideAttention):
    """A LoRA expert for each token, P x + (alpha / r) g B_e A_e x with e = argmax p(x).

    P is each linear map of an MLP.

    p = softmax(x W^T + b) of the MLP's input: one decision for a token in a block, which all of
    the MLP's linear maps share.
    A host's padding, by its `attention_mask`, gets no expert and counts in no loss.

    Raises: ConfigError on a setting that cannot be; TargetError for an MLP of an unknown kind, see
    `mixtures.dialects`.
    Source: paper, section 3.2, and released code; `fit` adds the loss: `intarsia.gating.aux_loss`.
    Not for data without domains that tell themselves apart: a LoRA trained longer may do as well.
    """

    experts: int = setting(3, EXPERTS)
    over: Lora = setting(help="The LoRA of an expert.", factory=lambda: Lora(32, 64.0, 0.05))
    scale: str = setting(
        "none",
        'The weight g of the chosen expert: "none" = 1, as in the paper, where the task\'s loss '
        'does not reach the router; "prob" = p_e; "ste" = 1 with the gradient of p_e.',
        choices=("none", "prob", "ste"),
    )
    balance: float = setting(
        0.01,
        "The coefficient of E sum f_e P_e, the balance loss (1 at uniform routing).",
        least=0,
        fix="Try 0.01.",
    )
    attention: Lora | None = setting(
        help="The plain LoRA of the attention's linear layers; None = none there.",
        factory=lambda: Lora(32, 64.0, 0.05, ATTENTION),
    )

    position = "parallel"

    def __post_init__(self) -> None:
        check(self)

    def routing(self) -> TopK:
        return TopK(self.experts, 1, self.scale, bias=True, balance=self.balance)

    def build(self, site: Site, *, generator: torch.Generator) -> Cell:
        """Build the plain LoRA of an attention layer, or the routed LoRAs of an MLP."""
        lora = attention_cell(self.attention, site, generator=generator)
        if lora is not None:
            return lora
        router = self.routing().build(site.inputs, generator=generator)
        return DeltaExperts(router, self.over, site, generator=generator)


CARD = Card(
    "llava_mole",
    kind="adapter",
    config=LlavaMole,
    paper=Paper(
        "2401.16160",
        2024,
        "LLaVA-MoLE: Sparse Mixture of LoRA Experts for Mitigating Data Conflicts in Instruction "
        "Finetuning MLLMs",
    ),
    tags=frozenset({"zero_start"}),
    tiny={"over": Lora(2), "attention": Lora(2)},
    summary="One LoRA expert for each token in the MLPs, plain LoRA in the attention.",
    family="adapter mixtures",
    names=("LLaVA-MoLE", "MoLE"),
    exceptions={
        "trains_every_parameter": "the balance loss alone reaches the router, as in the paper",
    },
)
