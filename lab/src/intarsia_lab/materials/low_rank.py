"""LoRA, PiSSA and DoRA by PEFT's own code, as baselines on pictures, and their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import nn

from intarsia.core import Method
from intarsia.core.change import Change
from intarsia.folders.verbs import apply
from intarsia.methods.peft_methods import PeftMethod, of_settings
from intarsia.reports.sheet import Sheet
from intarsia.runs.pool import Arm
from intarsia.train import Training

from ..kit import ArmRate, Rates, Report
from ..kit.arms import shown
from .picture_cells import Budget, PictureCells, StudyRecipe, StudyScore
from .tails import bare_tail

Found = Sheet[str, str, StudyScore]

GRID = (1e-3, 3e-3, 1e-2)
TUNED = 100  # the seed of the trainings by which rates are chosen; none of them is scored
LINEAR = ("qkv", "projection", "mlp_linear")  # every linear map of a block
PEFT = ("LoRA", "PiSSA", "DoRA")


def by_peft(kind: str, rank: int, roles: Sequence[str] = LINEAR) -> PeftMethod:
    """Return LoRA, PiSSA or DoRA as PEFT has it, with a scale of 1.

    PiSSA starts at the largest singular values of each weight, which keeps the rest; DoRA trains a
    magnitude for each output as well. kind: one of PEFT; rank: r; roles: which linear maps of a
    block.
    """
    # alpha = r gives the scale alpha / r = 1
    settings: dict[str, Any] = {"r": rank, "lora_alpha": rank, "roles": tuple(roles)}
    if kind == "PiSSA":
        settings["init_lora_weights"] = "pissa"
    if kind == "DoRA":
        return of_settings("dora", use_dora=True, **settings)
    return of_settings("lora", **settings)


def trained(model: nn.Module) -> int:
    """Return the number of parameters that a model trains."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameters(method: Method | Change, first: int) -> int:
    """Count the parameters that a method trains in ViT-S's blocks, without the head.

    first: number of the first block that is adapted.
    """
    if isinstance(method, PeftMethod) and method.settings["init_lora_weights"] == "pissa":
        method = method.with_settings(init_lora_weights=True)  # no singular values to count
    tail = bare_tail(first)
    head = sum(p.numel() for p in tail.head.parameters())
    return trained(apply(tail, method)) - head


@dataclass(frozen=True)
class OnPictures:
    """Adapters of the blocks of ViT-S from number `first` on, each at its own rate."""

    methods: Mapping[str, Method | Change]
    base: Training
    first: int
    budget: Budget
    sets: Sequence[str] = ("elpv", "photo-rotation")

    def rates(self, names: Sequence[str]) -> Rates:
        """Return the learning rates from which each of these adapters chooses its own.

        names: of the adapters.
        """
        # ceil(images / batch) steps an epoch
        steps = self.budget.epochs * -(-self.budget.images // self.base.batch_size)
        return Rates(GRID, dict.fromkeys(names, steps))

    def measure(
        self, names: Sequence[str], seeds: Sequence[int], report: Report
    ) -> tuple[Found, tuple[ArmRate, ...]]:
        """Train the adapters on all data sets and seeds; return scores and learning rates.

        names: of the adapters; seeds: of the runs; report: prints progress. Each adapter chooses
          its rate by validation first.
        """
        arm_rates = self.rates(names).choose(
            lambda name, rate: self._validation_accuracy(name, rate, report)
        )
        arms = [self._arm(rate.arm, rate.rate) for rate in arm_rates]
        cells = PictureCells(base=self.base, first=self.first)
        sheets = cells.sheets(arms, [self.budget], self.sets, seeds, report)
        return sheets[self.budget.name], arm_rates

    def _arm(self, name: str, rate: float) -> Arm[StudyRecipe]:
        return Arm(name, StudyRecipe(lambda _: self.methods[name], lr=rate))

    def _validation_accuracy(self, name: str, rate: float, report: Report) -> float:
        """Return an adapter's mean accuracy on validation pictures at a learning rate."""
        cells = PictureCells(base=self.base, first=self.first, part="val")
        arm = self._arm(name, rate)
        accuracy = fmean(cells.cell(s, self.budget, arm, TUNED).accuracy for s in self.sets)
        report(f"  {name} at rate {rate:g}: {accuracy:.1f} % on validation pictures")
        return accuracy


def rows_of(sheet: Found, counted: str, count: Callable[[str], int]) -> tuple[dict[str, Any], ...]:
    """Return a table's line for each adapter: a count, and its accuracy on each data set.

    sheet: scores; counted: title of the count's column; count: adapter's name -> its count.
    """
    rows: list[dict[str, Any]] = []
    for name in sheet.arms:
        line: dict[str, Any] = {"adapter": name, counted: count(name)}
        for task, values in zip(sheet.tasks, sheet.of(name, "accuracy"), strict=True):
            line[f"{task}, %"] = shown(values.tolist(), ".1f")
        rows.append(line)
    return tuple(rows)
