"""Routing by task (Polytropon, arXiv:2202.13914), for each head of a layer on its own (Multi-Head
Routing, arXiv:2211.03831)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..core import Card, Paper, Routing
from ..core.checks import at_least, one_of
from ..core.errors import ConfigError, ShapeError
from ..core.schema import check, setting
from ..gating.random_source import RandomSource, seeded_by
from ..gating.router import Router

SPREAD = 1e-3  # logits start in U(-SPREAD, SPREAD): near equal shares of all skills
SMALL = 1e-12
UNKNOWN = ("error", "mean")


class TaskRouter(Router):
    """w = sigma(Z[task]) / sum over skills, for each head of each sample (Poly, section 2.2).

    x: (N, ...), N samples, or N equal parts of them in a row, such as windows -> Routing of shape
    (N heads, skills), with all of its entries in order; row n heads + q is head q of sample n.
    Padding changes nothing: all tokens of a sample have its task.

    logits: Z (tasks, heads, skills), U(-1e-3, 1e-3) at first.
    noise: in training sigma(Z) is a draw of the relaxed Bernoulli distribution at temperature 1,
    sigma(Z + log u - log(1 - u)) with u ~ U(0, 1), one for each sample (Poly's paper, and PEFT).
    By default it is sigma(Z) itself, as in evaluation, and as in MHR's released code.
    Task ids, (samples,), come from `intarsia.gating.task_ids`; one task needs none.
    unknown: without them a model of several tasks raises in evaluation, "error", or takes the mean
    of w over the tasks, "mean"; training always needs them.

    Raises: ConfigError for a setting out of range, and for ids that are missing or unknown;
    ShapeError for ids that do not fit the batch.
    """

    def __init__(
        self,
        tasks: int,
        skills: int,
        heads: int = 1,
        *,
        noise: bool = False,
        unknown: str = "error",
        generator: torch.Generator | None = None,
    ) -> None:
        for name, value in (("tasks", tasks), ("skills", skills), ("heads", heads)):
            at_least(name, value, 1)
        one_of("unknown", unknown, UNKNOWN)
        super().__init__(skills)
        self.heads, self.unknown = heads, unknown
        self.logits = nn.Parameter(torch.empty(tasks, heads, skills))
        nn.init.uniform_(self.logits, -SPREAD, SPREAD, generator=generator)
        self.noise = RandomSource(seeded_by(generator), self.context) if noise else None

    @property
    def tasks(self) -> int:
        return len(self.logits)

    def add_task(self, generator: torch.Generator) -> None:
        """Add a row to Z, the logits of tasks, for one more task.

        generator: source of the new row, which is drawn as the first ones were.
        """
        new = torch.empty(1, *self.logits.shape[1:])
        nn.init.uniform_(new, -SPREAD, SPREAD, generator=generator)
        # the tasks before keep their rows
        logits = torch.cat([self.logits.detach(), new.to(self.logits)])
        self.logits = nn.Parameter(logits, requires_grad=self.logits.requires_grad)

    def of_task(self, task: int | None) -> Tensor:
        """Return the weights of the skills for one task, as in evaluation.  (heads, skills).

        task: its number; None = the mean over all tasks.
        Raises: ConfigError for a number that is no task.
        """
        if task is None:
            return _shares(self._wide_logits()).mean(0)
        self._check_range(torch.tensor([task]))
        return _shares(self._wide_logits()[task])

    def forward(self, x: Tensor) -> Routing:
        return self.remember(self.route(x, None))

    def route(self, rows: Tensor, valid: Tensor | None) -> Routing:
        """Weigh all skills for each sample by its task.

        rows: N samples, or N equal parts of samples, such as windows of images. Returns a Routing
        of shape (N heads, skills): a row for each head of each sample.
        """
        ids = self._ids(len(rows))
        if ids is None:
            weight = self.of_task(None).expand(len(rows), -1, -1)
        else:
            logits = self._wide_logits()[ids.to(self.logits.device, non_blocking=True)]
            if self.noise is not None and self.training:
                drawn = self.noise.drawn(len(ids), partial(self._logistic, self.noise))
                logits = logits + drawn.to(logits, non_blocking=True)
            weight = _shares(logits)
            # windows of a sample share its weights
            if len(rows) != len(ids):
                weight = weight.repeat_interleave(len(rows) // len(ids), 0)
        weight = weight.flatten(0, 1)  # (N heads, skills)
        index = torch.arange(self.experts, device=weight.device).expand_as(weight)
        return Routing.from_topk(index, weight, self.experts)

    def _wide_logits(self) -> Tensor:
        """Return Z in float32 or better."""
        return self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))

    def _logistic(self, noise: RandomSource, samples: int) -> Tensor:
        """Draw logistic noise log u - log(1 - u), u ~ U(0, 1).  (samples, heads, skills)."""
        u = noise.uniform(samples, *self.logits.shape[1:])
        eps = torch.finfo(u.dtype).eps
        return u.clamp(eps, 1 - eps).logit()

    def _ids(self, rows: int) -> Tensor | None:
        """Return each sample's task, (samples,) int64 on the CPU; None = the mean of all."""
        ids = self.context.tasks()
        if ids is None:
            return self._without_ids(rows)
        count = len(ids)
        # each sample has equally many rows; no samples have none
        if rows % count if count else rows:
            got, want = f"{count} for {rows} rows", "one for each sample"
            raise ShapeError("task_ids", got=got, want=want, fix="Pass the ids of this very batch.")
        self._check_range(ids)
        return ids

    def _without_ids(self, rows: int) -> Tensor | None:
        """Return task ids for a batch for which the caller set none, (rows,), or None."""
        if self.tasks == 1:
            return torch.zeros(rows, dtype=torch.int64)
        if self.training or self.unknown == "error":
            want = f"the task of each sample, 0 ... {self.tasks - 1}"
            ways = (
                "`with intarsia.gating.task_ids(model, ids):`, give `fit` a dataset with 'task_ids'"
            )
            fix = f"Call the model inside {ways}, or set unknown='mean' for evaluation."
            raise ConfigError("task_ids", got="none", want=want, fix=fix)
        return None

    def _check_range(self, ids: Tensor) -> None:
        """Raise ConfigError for an id that is no task.  ids: whole numbers, any shape."""
        if not len(ids) or torch.compiler.is_compiling():
            return
        low, high = (int(v) for v in ids.aminmax())
        if low < 0 or high >= self.tasks:
            got = f"{low} ... {high}"
            fix = "Count tasks from 0; intarsia.methods.mhr.add_task makes room for a new one."
            raise ConfigError("task_ids", got=got, want=f"0 ... {self.tasks - 1}", fix=fix)


def _shares(logits: Tensor) -> Tensor:
    """Return sigmoid(Z) divided by its sum over skills.  logits: Z (..., skills), same shape."""
    raw = logits.sigmoid()
    return raw / (raw.sum(-1, keepdim=True) + SMALL)


@dataclass(frozen=True)
class TaskRouting:
    """w = sigma(Z[task]) / sum over skills, for each head; see TaskRouter.

    Not for tokens: it goes by the task of a sample, which must be known.
    Raises: ConfigError for a setting out of range.
    Source: Poly (arXiv:2202.13914), section 2.2; heads as in MHR (arXiv:2211.03831).
    """

    tasks: int = setting(1, "The number of tasks, each with a row of Z.", least=1)
    skills: int = setting(4, "The number S of skills, which are the experts.", least=1)
    heads: int = setting(1, "The number of heads, each with shares of its own.", least=1)
    noise: bool = setting(
        False, "Whether sigma(Z) is a draw of the relaxed Bernoulli distribution in training."
    )
    unknown: str = setting(
        "error",
        'The weights without task ids in evaluation: "error", a refusal, or "mean", the mean '
        "over the tasks.",
        choices=("error", "mean"),
    )

    def __post_init__(self) -> None:
        check(self)

    def build(self, width: int, *, generator: torch.Generator | None = None) -> TaskRouter:
        """Return a router for tokens of any width.

        width: unused, because tasks are read from ids. generator: source of the random logits.
        """
        return TaskRouter(
            self.tasks,
            self.skills,
            self.heads,
            noise=self.noise,
            unknown=self.unknown,
            generator=generator,
        )


CARD = Card(
    "task",
    kind="router",
    config=TaskRouting,
    paper=Paper("2202.13914", 2022, "Combining Modular Skills in Multitask Learning"),
    tags=frozenset({"learned"}),
    summary="Shares of skills that each task learns, for every head of a layer on its own.",
    family="task routing",
    names=("Task routing", "Polytropon router"),
    exceptions={
        "leaves_padding_out": "a row is a sample; its task decides for all of its tokens",
        "routes_padding_alone": "a row is a sample; its task decides for all of its tokens",
    },
)
