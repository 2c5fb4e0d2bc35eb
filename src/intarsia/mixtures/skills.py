"""An inventory of LoRA skills; each task has its own weighted mean of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..adapters import Lora, LoraCell
from ..core import Cell, Site
from ..core.errors import FoldError
from ..routers import TaskRouter


class SkillsCell(Cell):
    """(alpha / r) B_t A_t x with t the task of the sample.  x: (N, ..., d_in) -> (N, ..., d_out).

    down: A (Q, S, r, d_in / Q), U(-b, b) at first with b = 1 / sqrt(3 d_in), whatever Q is, as in
    MHR's released code; up: B (Q, S, d_out / Q, r), 0 at first.

    Raises: FoldError in `of_task`, `merged` and `delta`, where there are several tasks and none is
    named.
    """

    def __init__(
        self,
        lora: Lora,
        heads: int,
        skills: int,
        site: Site,
        *,
        router: Callable[[torch.Generator], TaskRouter],
        generator: torch.Generator,
    ) -> None:
        """Draw the matrices A of S skills, each a LoRA (A, B); the matrices B begin at 0."""
        super().__init__()
        # the settings of the LoRA that a task gets
        self.settings, self.site = lora, Site(site.path, site.inputs, site.outputs)
        self.down = nn.Parameter(torch.empty(heads, skills, lora.rank, site.reads // heads))
        self.up = nn.Parameter(torch.zeros(heads, skills, site.outputs // heads, lora.rank))
        bound = (3 * site.reads) ** -0.5
        nn.init.uniform_(self.down, -bound, bound, generator=generator)
        self.scale = (lora.rank if lora.alpha is None else lora.alpha) / lora.rank
        self.router = router(generator)

    def mixed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the weighted sums of the skills' LoRA matrices A and B, head by head.

        weight: (N, Q, S), for each of N samples the weights of S skills in Q heads.  -> A (N, r,
          d_in), B (N, d_out, r).
        """
        # The router weighs in float32, the skills may have half precision.
        weight = weight.to(self.down.dtype)
        # each head mixes its own slice of the inputs of A and of the outputs of B
        down = torch.einsum("nqs,qsri->nrqi", weight, self.down).flatten(2)
        up = torch.einsum("nqs,qsor->nqor", weight, self.up).flatten(1, 2)
        return down, up

    def forward(self, x: Tensor) -> Tensor:
        """Apply to each sample the LoRA mixed from the skills for its task."""
        x = self.cast(x)
        # a weight for each sample, head and skill, listed in this order: (N Q S,)
        weight = self.router(x).weight
        down, up = self.mixed(weight.view(-1, *self.down.shape[:2]))
        rows = x.flatten(1, -2) if x.dim() > 2 else x[:, None]  # (N, T, d_in)
        # each sample has its own A and B: batched products
        y = self.scale * (rows @ down.mT) @ up.mT
        return y.view(*x.shape[:-1], y.shape[-1])

    @torch.no_grad()
    def lora(self, weight: Tensor) -> LoraCell:
        """Return the plain LoRA that the skills make with fixed weights.

        weight: (Q, S), the weight of each skill in each head.
        """
        cell = LoraCell(self.settings, self.site, generator=torch.Generator()).to(self.down)
        # a batch of one task
        down, up = self.mixed(weight[None])
        cell.down.weight.copy_(down[0])
        cell.up.weight.copy_(up[0])
        return cell

    def of_task(self, task: int | None = None) -> LoraCell:
        """Return the plain LoRA of one task.

        task: its number; None = the only one, or, where the router's `unknown` is "mean", the mean
          over all tasks.
        Raises: FoldError for None where there are several; ConfigError for no such task.
        """
        # a single task needs no routing to be merged
        if task is None and self.router.tasks == 1:
            task = 0
        if task is None and self.router.unknown == "error":
            name, got = f"merging Poly at {self.site.path!r}", f"{self.router.tasks} tasks"
            fix = "Merge what intarsia.methods.mhr.to_lora(model, task) or to_mhr_mu(model) gives."
            raise FoldError(name, got=got, want="one of them, each has its own weights", fix=fix)
        return self.lora(self.router.of_task(task))

    def merged(self) -> LoraCell:
        return self.of_task()

    def delta(self, task: int | None = None) -> Tensor:
        """Return a task's weight change; None = the only one, or `unknown`'s "mean"."""
        return self.of_task(task).delta()
