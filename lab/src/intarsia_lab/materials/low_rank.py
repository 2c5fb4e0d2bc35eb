"""LoRA, PiSSA and DoRA by PEFT's own code, as baselines of claims on pictures, and their table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import nn

from intarsia.core import Method
from intarsia.core.change import Change
from intarsia.experiments.pool import Arm
from intarsia.hosts import apply
from intarsia.methods.peft_methods import PeftMethod, of_settings
from intarsia.reports.sheet import Differences, Sheet
from intarsia.train import Training

from ..kit import ArmRate, Rates, Report
from ..kit.arms import shown
from .picture_cells import Budget, PictureCells, StudyRecipe, StudyScore
from .tails import bare_tail

Found = Sheet[str, str, StudyScore]

GRID = (1e-3, 3e-3, 1e-2)
TUNED = 100  # the seed of the trainings by which rates are chosen; none of them judges a claim
LINEAR = ("qkv", "projection", "mlp_linear")  # every linear map of a block
PEFT = ("LoRA", "PiSSA", "DoRA")


def by_peft(kind: str, rank: int, roles: Sequence[str] = LINEAR) -> PeftMethod:
    """Return a method of `PEFT` with a scale of 1.

    PiSSA starts at the largest singular values of each weight, which keeps the rest; DoRA trains a
    magnitude for each output beside the rank.
    """
    settings: dict[str, Any] = {"r": rank, "lora_alpha": rank, "roles": tuple(roles)}
    if kind == "PiSSA":
        settings["init_lora_weights"] = "pissa"
    if kind == "DoRA":
        return of_settings("dora", use_dora=True, **settings)
    return of_settings("lora", **settings)


def trained(model: nn.Module) -> int:
    """Parameters that a model trains."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def parameters(method: Method | Change, first: int) -> int:
    """Count a method's trained parameters in the blocks from `first` on, without the head."""
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
        """Return the grid that these adapters choose from, with the steps of their trainings."""
        steps = self.budget.epochs * -(-self.budget.images // self.base.batch_size)
        return Rates(GRID, dict.fromkeys(names, steps))

    def measure(
        self, names: Sequence[str], seeds: Sequence[int], report: Report
    ) -> tuple[Found, tuple[ArmRate, ...]]:
        """Return the scores of these adapters on the sets, and the rate that each has chosen."""
        arm_rates = self.rates(names).choose(lambda name, rate: self._validated(name, rate, report))
        arms = [self._arm(rate.arm, rate.rate) for rate in arm_rates]
        cells = PictureCells(base=self.base, first=self.first)
        sheets = cells.sheets(arms, [self.budget], self.sets, seeds, report)
        return sheets[self.budget.name], arm_rates

    def _arm(self, name: str, rate: float) -> Arm[StudyRecipe]:
        return Arm(name, StudyRecipe(lambda _: self.methods[name], lr=rate))

    def _validated(self, name: str, rate: float, report: Report) -> float:
        """Return the mean accuracy on validation pictures, by which no claim is judged."""
        cells = PictureCells(base=self.base, first=self.first, part="val")
        arm = self._arm(name, rate)
        accuracy = fmean(cells.cell(s, self.budget, arm, TUNED).accuracy for s in self.sets)
        report(f"  {name} at rate {rate:g}: {accuracy:.1f} % on validation pictures")
        return accuracy


def rows_of(sheet: Found, counted: str, count: Callable[[str], int]) -> tuple[dict[str, Any], ...]:
    """Return a table's line for each adapter: a count, and its accuracy on each set.

    sheet: scores; counted: title of the count's column; count: maps an adapter's name to it.
    """
    rows: list[dict[str, Any]] = []
    for name in sheet.arms:
        line: dict[str, Any] = {"adapter": name, counted: count(name)}
        for task, values in zip(sheet.tasks, sheet.of(name, "accuracy"), strict=True):
            line[f"{task}, %"] = shown(values.tolist(), ".1f")
        rows.append(line)
    return tuple(rows)


def less_the_best(
    sheet: Found, ours: str, rivals: Sequence[str], called: str
) -> tuple[list[float], str]:
    """Return the accuracy of `ours` less that of the best rival, by seed, and a sentence on it.

    sheet: scores; rivals: names of the other adapters; called: what the sentence calls them.
    """
    best = max(rivals, key=lambda name: float(sheet.of(name, "accuracy").mean()))
    gain = Differences.of(sheet.of(ours, "accuracy"), sheet.of(best, "accuracy"))
    assert gain is not None
    words = (
        f"The best of the three is {best}; {called} less it: {gain.mean:+.2f} points, 95 % "
        f"interval of {gain.n} pairs (set, seed) {gain.mean - gain.half_width:+.2f} ... "
        f"{gain.mean + gain.half_width:+.2f}."
    )
    return gain.pairs.mean(0).tolist(), words
