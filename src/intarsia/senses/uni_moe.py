"""Uni-MoE: experts that were trained on one modality each, mixed afterwards (arXiv:2405.11273)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters import Lora
from ..core import Card, Cell, Method, Paper, Routing, Site
from ..core.errors import ConfigError
from ..core.schema import check, setting
from ..gating.context import MODALITIES
from ..gating.gate import of_real
from ..gating.settings import ACTIVE
from ..mixtures.lora_experts import ATTENTION, BesideAttention, OutputExperts, attention_cell
from ..routers.topk import TopK, TopKRouter
from ..schedules.phases import Phase
from .modalities import connectors_of

STAGES = ("alignment", "experts", "joint")


@dataclass(frozen=True)
class UniMoe(BesideAttention):
    """A mixture with an expert for each modality, y = sum_e G_e(x) MLP_e(x), in three stages.

    Stage 1, alignment: the connectors alone. Stage 2, experts: MLP_e, the frozen MLP with the
    changes of expert e, sees the samples of its modality alone, whole samples, as copies trained
    apart would. Stage 3, joint: the gate, drawn again, the experts and LoRA in the attention, on
    all data; G is the softmax over the `active` largest of the logits x W^T.

    Connectors are trained in all stages (the paper's are, in the first two). In the second, experts
    are in one model, instead of copies that are merged: the same but for Adam's moments, which run
    on for experts that a batch does not use.

    Raises: ConfigError for settings that cannot be; TargetError for an MLP of an unknown kind.
    Source: paper, sections 3.2 and 3.3, and released code. The model must see or hear first, see
    `Modalities`. Not for data of one modality: one LoRA does as well.
    """

    modalities: tuple[str, ...] = setting(
        MODALITIES, "The modalities with an expert each, every one once.", choices=MODALITIES
    )
    active: int = setting(2, ACTIVE, fix="Try 2.")
    balance: float = setting(
        0.0,
        "The coefficient of the balance loss over all k experts of a token, k at uniform "
        "routing; the release of 4 experts has none, the one of 8 counts a token's first expert "
        "alone.",
        least=0,
        fix="Try 0.01.",
    )
    over: Method = setting(
        help=(
            "The change that an expert makes to each linear map of the MLP: a LoRA as in the "
            "released third stage, or `Sparse(1.0)`, every weight, with which experts are whole "
            "MLPs as in the paper (biases stay the MLP's), at E times its memory."
        ),
        factory=lambda: Lora(8, 16.0),
    )
    attention: Lora | None = setting(
        help="The LoRA of the attention's linear layers, in the third stage; None = none there.",
        factory=lambda: Lora(8, 16.0, roles=ATTENTION),
    )
    shares: tuple[float, float, float] = setting(
        (0.25, 0.25, 0.5),
        "The share of the epochs for each stage; each has at least one, or with 0 is left out.",
        least=0,
        fix="For example shares=(0.25, 0.25, 0.5); the last is above 0.",
    )

    position = "parallel"

    def __post_init__(self) -> None:
        """Check the modalities, each named once, and the shares of the three stages."""
        check(self)
        names = tuple(self.modalities)
        if not names or len(set(names)) < len(names):
            fix = f"Name some of {', '.join(MODALITIES)}, each once."
            raise ConfigError("modalities", got=names, want="known ones", fix=fix)
        if len(self.shares) != len(STAGES) or not self.shares[-1]:
            fix = "For example shares=(0.25, 0.25, 0.5); the last is above 0."
            raise ConfigError("shares", got=self.shares, want="three from 0 on", fix=fix)
        self.routing()

    def routing(self) -> TopK:
        """Return the settings of the gate: k of as many experts as there are modalities."""
        # With fewer experts than k a token gets all of them.
        count = len(self.modalities)
        return TopK(count, min(self.active, count), None, balance=self.balance)

    def build(self, site: Site, *, generator: torch.Generator) -> Cell:
        """Build the plain LoRA of an attention layer, or the modality experts of an MLP."""
        lora = attention_cell(self.attention, site, generator=generator)
        if lora is not None:
            return lora
        # The gate is drawn for the third stage; in the second it is passed over.
        router = ModalityRouter(self.routing(), site.inputs, generator=generator)
        router.modalities = tuple(self.modalities)
        return OutputExperts(router, self.over, site, generator=generator)

    def phases(self, model: nn.Module, *, seed: int = 0) -> Generator[Phase, None, None]:
        """Yield the three stages of training; each trains its own parts.

        model: one with the connectors of `Modalities` and this method's experts; the caller trains
          it in each yielded phase; seed: unused, nothing is drawn. However it ends, interrupted
          too, all that the last stage trains can be trained afterwards.
        Raises: ConfigError for a model without connectors, or without the experts of this method.
        """
        connectors = [p for c in connectors_of(model).values() for p in c.parameters()]
        experts = [m for m in model.modules() if isinstance(m, OutputExperts)]
        # Experts of other methods, which may also be in the model, are left alone.
        experts = [m for m in experts if isinstance(m.router, ModalityRouter)]
        if not experts:
            fix = "Call intarsia.adapt(model, UniMoe(...), head=None) first."
            raise ConfigError("model", got="no experts", want="those of Uni-MoE", fix=fix)
        adapter_parameters = [p for p in model.parameters() if p.requires_grad]
        trained = {
            "alignment": connectors,
            "experts": [*connectors, *(p for m in experts for p in m.experts.parameters())],
            "joint": [*connectors, *adapter_parameters],
        }
        try:
            for stage, share in zip(STAGES, self.shares, strict=True):
                # A stage with a share of 0 is left out.
                if not share:
                    continue
                # Freeze everything, then open what this stage trains.
                for parameter in model.parameters():
                    parameter.requires_grad_(False)
                for parameter in trained[stage]:
                    parameter.requires_grad_(True)
                with by_modality(model, stage == "experts"):
                    yield Phase(stage, share, last=stage == STAGES[-1])
        finally:  # interrupted, too: another start has to find the trained parameters
            for parameter in trained["joint"]:
                parameter.requires_grad_(True)


class ModalityRouter(TopKRouter):
    """The router of `TopK`; while `forced`, all tokens of a sample have its modality's expert.

    A sample has the modality of its first picture or sound, or text without any. A modality
    without an expert uses the text's expert, or else the first.
    """

    forced = False
    modalities: tuple[str, ...] = MODALITIES

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Route rows to the k best experts, or while `forced` to their modality's."""
        if not self.forced:
            return super().route(rows, valid)
        # Whole samples go to one expert: with its picture or sound goes all of its text.
        expert = self._expert(len(rows), rows.device)[:, None]  # (N, 1)

        def to_own(rows: Tensor, expert: Tensor = expert) -> Routing:
            ones = rows.new_ones(len(expert), 1)
            return Routing.from_topk(expert, ones, self.experts)

        if valid is None:
            return to_own(rows)
        # Padding gets no expert: only the real rows are routed.
        return of_real(rows, valid, lambda real: to_own(real, expert[valid]))

    def _expert(self, rows: int, device: torch.device) -> Tensor:
        """Return each row's expert, the one of its sample's modality: its number, (N,) int64."""
        # A modality without an expert goes to the text's, or to the first if text has none.
        names = list(self.modalities)
        text_expert = names.index(MODALITIES[0]) if MODALITIES[0] in names else 0
        expert_of_modality = [
            names.index(name) if name in names else text_expert for name in MODALITIES
        ]
        modality = self.context.modality
        if modality is None:
            return torch.full((rows,), text_expert, dtype=torch.int64, device=device)
        # modality: (samples, positions), 0 = text. The first picture or sound decides for its
        # sample.
        first = (modality > 0).int().argmax(1, keepdim=True)  # (samples, 1); 0 for text alone
        sample = torch.tensor(expert_of_modality, device=device)[
            modality.gather(1, first)[:, 0].to(device)
        ]
        return sample.repeat_interleave(rows // len(sample))


@contextmanager
def by_modality(model: nn.Module, forced: bool = True) -> Iterator[None]:
    """Send each sample to its modality's expert while the context is open.

    forced: False = route as the gate says.
    """
    routers = [m for m in model.modules() if isinstance(m, ModalityRouter)]
    for router in routers:
        router.forced = forced
    try:
        yield
    finally:
        for router in routers:
            router.forced = False


CARD = Card(
    "uni_moe",
    kind="adapter",
    config=UniMoe,
    paper=Paper(
        "2405.11273",
        2024,
        "Uni-MoE: Scaling Unified Multimodal LLMs with Mixture of Experts",
    ),
    tags=frozenset({"zero_start"}),
    tiny={"over": Lora(2), "attention": Lora(2)},
    summary="An expert for each modality, trained apart and then mixed, in three stages.",
    family="pictures and sounds",
    names=("Uni-MoE",),
)
