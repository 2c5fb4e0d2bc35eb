"""Polytropon, an inventory of LoRA skills mixed by task (arXiv:2202.13914), and Multi-Head Routing
over it (MHR, arXiv:2211.03831)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..adapters import Lora
from ..core import Card, Method, Paper, Site
from ..core.errors import TargetError
from ..core.schema import check, setting
from ..mixtures.skills import SkillsCell
from ..routers import TaskRouter
from ..routers.task import TaskRouting


@dataclass(frozen=True)
class Poly(Method):
    """A task's own mean of S LoRAs, y = W x + (alpha / r) B_t A_t x, A_t = sum_s w[t, s] A[s].

    The weights are averaged, not their outputs; B_t likewise, with the same w (Poly, section 2.2).
    With Q = `heads` > 1 this is MHR (section 3): x is cut into Q parts, y too, and each has its own
    A[q, s] (r, d_in / Q), B[q, s] (d_out / Q, r) and w[t, q, s]; as many adapter parameters, Q
    times the routing logits. How w comes about: see TaskRouter. `intarsia.methods.mhr` has what
    follows the training: a LoRA of one task, MHR-mu, MHR-z, new tasks, two learning rates.

    Raises: ConfigError on a setting that cannot be; TargetError for a layer with widths that the
    heads do not divide, or smaller than the rank; FoldError from merging more than one task.
    Not for tasks that agree, or where nobody can say which task a sample is of.
    """

    tasks: int = setting(
        1,
        "The number of tasks; more than one needs `with intarsia.gating.task_ids(model, ids):` "
        'around the model\'s call, or "task_ids" in the dataset of `fit`.',
        least=1,
    )
    skills: int = setting(4, "The number S of skills; 1 is LoRA.", least=1)
    heads: int = setting(
        1, "The number Q of parts of x and y, each with a mean of its own.", least=1
    )
    rank: int = setting(
        8, "The rank r of each skill, and of a task's LoRA.", least=1, fix="Try 8.", also=("r",)
    )
    alpha: float | None = setting(
        None, "The numerator of the scale alpha / r; None = r, a scale of 1; PEFT's Poly has 1."
    )
    noise: bool = setting(
        False,
        "Draw w again for each sample in training, as in Poly's paper and PEFT; without, as in "
        "MHR's released code, it is not drawn.",
    )
    unknown: str = setting(
        "error",
        'The weights without task ids in evaluation: "error", a refusal, or "mean", the mean of '
        "w over the tasks.",
        choices=("error", "mean"),
    )
    roles: tuple[str, ...] = setting(
        ("qkv",),
        "The host's layers that are changed, as in `Lora`, but a fused qkv layer only whole.",
    )

    position = "parallel"

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "roles", tuple(self.roles))

    def lora(self) -> Lora:
        """Return the settings of the LoRA that one task gets."""
        return Lora(self.rank, self.alpha, roles=self.roles)

    def router(self, generator: torch.Generator) -> TaskRouter:
        """Make the router of one layer: the mixing weights w[t, q, s] from trained logits Z.

        generator: the source of the logits.
        """
        routing = TaskRouting(self.tasks, self.skills, self.heads, self.noise, self.unknown)
        return routing.build(1, generator=generator)

    def build(self, site: Site, *, generator: torch.Generator) -> SkillsCell:
        """Build a layer's inventory of skills: S LoRAs for each of Q heads, and a router.

        Raises: TargetError for widths that do not suit the rank or the heads.
        """
        # A rank above the smaller width would be more than a full change has.
        smaller_width = min(site.reads, site.outputs)
        if self.rank > smaller_width:
            subject, want = (
                f"rank at {site.path!r}",
                f"at most {smaller_width}, the layer's smaller width",
            )
            raise TargetError(subject, got=self.rank, want=want, fix="Use a smaller rank.")
        # Each head reads one of Q equal parts of the input, and writes one of the output.
        if site.reads % self.heads or site.outputs % self.heads:
            common_divisor = math.gcd(site.reads, site.outputs)
            raise TargetError(
                f"heads at {site.path!r}",
                got=self.heads,
                want=f"a divisor of {site.reads} inputs and {site.outputs} outputs: one of "
                f"{[q for q in range(1, common_divisor + 1) if common_divisor % q == 0]}",
                fix="Choose one of these, or other layers.",
            )
        # A fused layer has queries, keys and values in one output: q and v cannot be adapted alone.
        if "qv" in self.roles and site.path.rpartition(".")[2] == "qkv":
            subject, got = f"role 'qv' at {site.path!r}", "a fused qkv layer"
            raise TargetError(subject, got=got, want="single layers", fix="Use roles=('qkv',).")
        return SkillsCell(
            self.lora(), self.heads, self.skills, site, router=self.router, generator=generator
        )


CARD = Card(
    "poly",
    kind="adapter",
    config=Poly,
    paper=Paper("2211.03831", 2022, "Multi-Head Adapter Routing for Cross-Task Generalization"),
    tags=frozenset({"linear", "folds", "zero_start"}),
    tiny={"skills": 3, "heads": 2, "rank": 2},
    summary="An inventory of LoRA skills from which each task mixes its own adapter.",
    family="task routing",
    names=("Polytropon", "MHR", "Multi-Head Routing", "Multi-Head Adapter Routing"),
)
