"""How a method meets a task, as data: protocols with results that never share a column."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from types import MappingProxyType
from typing import Any

from intarsia.core.checks import RATE_REACH
from intarsia.core.errors import ConfigError
from intarsia.methods import Official
from intarsia.methods.mosa import PUBLISHED as RECIPES
from intarsia.runs import searching, settings
from intarsia.runs.choosing.arms import BenchArm, named
from intarsia.runs.experiment import Experiment
from intarsia.runs.own_rates import converges

from ..materials.suites import JOINED, JOINT

OFFICIAL = "official"  # the protocol, and the key of the recipe
BY_SET = ("fgvc", "gicd")  # suites with a published recipe for each set


@dataclass(frozen=True)
class ChosenOn:
    """The tasks and seeds on which values are chosen once for all tasks of a suite.

    tasks: "suite/task" each; the mean accuracy on their validation parts decides; seeds: of those
    runs, which no run that counts has.  reach: the lowest and the highest rate that the grid may be
    extended to, for all methods, while an edge of it is the best for one of them.
    """

    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    reach: tuple[float, float] = RATE_REACH


@dataclass(frozen=True)
class Protocol:
    """Rules that hold for all tasks.

    training: values of `Training` and `Recipe` that all methods share.
    grid: values by name that the validation part chooses from; their product is the search.
    only: methods it is defined for; none = all.
    starts: values of a plan's start that it fixes, instead of a profile's; see `departures`.
    chosen_on: None = each task and seed chooses for itself.
    calibrate: without a grid, one run for each that counts still trains on the training part alone,
    so that a temperature can be fitted on the validation part.
    A search trains on the training part and reads the validation part. The run that counts trains
    on both parts, or with `chosen_on` on the first alone; it looks at the test part once, and is
    its last epoch.
    """

    name: str
    about: str
    training: Mapping[str, Any]
    grid: Mapping[str, tuple[float, ...]] = field(
        default_factory=lambda: MappingProxyType(dict[str, tuple[float, ...]]())
    )
    only: tuple[str, ...] = ()
    starts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType(dict[str, Any]()))
    chosen_on: ChosenOn | None = None
    calibrate: bool = False

    def check(self, arm: BenchArm) -> None:
        """Check that the protocol has a rule for a method.  Raises: ConfigError.

        arm: the method; a published recipe is defined for its own method alone.
        """
        if self.only and arm.name not in self.only:
            subject = f"method {arm.name!r} under protocol {self.name!r}"
            fix = "Use --protocol honest or tuned."
            raise ConfigError(subject, got="no rule for it", want=f"one of {self.only}", fix=fix)

    def final(self, arm: BenchArm, start: Experiment, task: str) -> Experiment:
        """Return the settings of a method's run on a task with a test score that counts.

        arm: the method; start: settings of all runs; task: "suite/task". The learning rate and
        other settings are the method's own; where they are searched for, the caller replaces them
        by those that the search chose.
        """
        # Such a run is trained on the validation part too, which the search has used by then. Where
        # one search on a few tasks chose for all (`chosen_on`), it is trained on the first part.
        parts = {"data": task + JOINED, "val": 0} if self.chosen_on is None else {"data": task}
        values: dict[str, Any] = {**parts, **self.training}
        run = arm.settings.into(start.changed(**values))
        return _as_published(run, task) if self.name == OFFICIAL else run

    def departures(self, start: Experiment) -> tuple[str, ...]:
        """Return a sentence for each setting that differs from the published protocol.

        start: settings of all runs of a plan.
        """
        flat = start.flat()
        return tuple(
            f"Not as published: {tell(flat[name])} in place of {_bare(self.starts[name])}."
            for name, tell in _TOLD.items()
            if name in self.starts and flat[name] != self.starts[name]
        )

    def search(self, arm: BenchArm, start: Experiment, task: str) -> list[Experiment]:
        """Return the runs that choose settings by their validation accuracy; none without a grid.

        arm: the method; start: settings of all runs; task: "suite/task". "lr" in the grid
        multiplies the method's own rate; with `chosen_on` it is the rate itself, and the runs are
        the ones of its tasks and seeds, whatever the task.
        """
        if not (self.grid or self.calibrate):
            return []
        on = self.chosen_on
        if on is not None:
            starts = [(name, start.changed(seed=seed)) for name in on.tasks for seed in on.seeds]
        else:
            starts = [(task, start)]
        runs: list[Experiment] = []
        for name, begun in starts:
            # a search trains on the training part and reads the validation part: the test part is
            # not touched
            base = self.final(arm, begun, name).changed(data=name, val=None)
            if converges(base) and self.grid:  # a probe to convergence has nothing to search
                return []
            for values in product(*self.grid.values()):
                overrides = dict(zip(self.grid, values, strict=True))
                # a factor of each method's own rate, since methods differ by orders of magnitude
                if "lr" in overrides and on is None and base.training.lr is not None:
                    overrides["lr"] *= base.training.lr
                runs.append(base.changed(**overrides))
        return runs

    def best(
        self, runs: Sequence[Experiment], ends: Sequence[Mapping[str, Any]]
    ) -> tuple[Experiment, Mapping[str, Any]] | None:
        """Return the run with the best settings of a search, and that run's result.

        runs: all runs of the search; ends: their results. Best is the highest mean accuracy on
        validation data, of equal ones the lower loss; a run that failed counts as 0. None if all
        failed.
        """
        scores = searching.scores_by(runs, ends, self.grid)
        if not scores:
            return None
        # scores_by averages over the tasks and seeds of a search
        best = dict(zip(self.grid, searching.best_of(scores), strict=True))
        pairs = zip(runs, ends, strict=True)
        return next((run, end) for run, end in pairs if best.items() <= run.flat().items())

    def wider(
        self, searched: Iterable[tuple[Sequence[Experiment], Sequence[Mapping[str, Any]]]]
    ) -> Protocol | None:
        """Return the protocol with a rate beyond each edge of its grid that won a search.

        searched: the runs of each search, and their results. None if no edge won, if the limit is
        reached, or if each task chooses for itself.
        """
        if self.chosen_on is None:
            return None
        # each search by its rates alone: rate -> (accuracy, minus the loss)
        scores = [searching.scores_by(runs, ends, ["lr"]) for runs, ends in searched]
        winners = [
            searching.winning_edge({rate: score for (rate,), score in by_rate.items()})
            for by_rate in scores
            if by_rate
        ]
        rates = searching.extended(self.grid["lr"], winners, self.chosen_on.reach)
        return None if rates == self.grid["lr"] else replace(self, grid={**self.grid, "lr": rates})

    def settle(self, final: Experiment, best: Experiment) -> Experiment:
        """Return the run that counts, with what the search chose.

        final: the run before; best: the best run of the search.
        """
        flat = best.flat()
        return final.changed(**{name: flat[name] for name in self.grid})


HONEST = Protocol(
    "honest",
    "One setting of each method for all tasks; the last epoch.",
    MappingProxyType({"weight_decay": 0.01, "batch_size": 32, "select": "last"}),
)
TUNED = Protocol(
    "tuned",
    "A declared grid for every method, chosen on the validation part; its runs are counted.",
    HONEST.training,
    MappingProxyType({"lr": (0.3, 1.0, 3.0), "weight_decay": (0.01, 0.1)}),
)
EVEN = Protocol(
    "even",
    "One rate of each method for all tasks, chosen from one grid on validation parts of three.",
    HONEST.training,
    MappingProxyType({"lr": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)}),
    chosen_on=ChosenOn(("mini/elpv", "mini/emoji", "mini/mnist"), (100,)),
)
PUBLISHED = Protocol(
    OFFICIAL,
    "MoSA's released recipe for each set: rate, width, parts, epochs, pictures, optimiser.",
    MappingProxyType({"weight_decay": 0.01, "select": "last"}),
    only=("mosa",),
    starts=MappingProxyType(
        {"epochs": 100, "size": 224, "precision": "fp32", "last_blocks": None, "frozen_once": False}
    ),
)
PROTOCOLS = (HONEST, TUNED, EVEN, PUBLISHED)


def protocol(name: str) -> Protocol:
    """Return the protocol of that name.  Raises: UnknownName."""
    return named("protocol", name, PROTOCOLS)


def published(spec: str) -> Official:
    """Return the released recipe for a task.

    spec: "suite/task". Tasks joined by "+" have the multi-task recipe, suites of BY_SET one for
    each set, others VTAB-1k's.
    """
    suite, _, task = spec.removesuffix(JOINED).partition("/")
    if task == JOINT or "+" in task:
        return RECIPES["multi-task"]
    return RECIPES[task if suite in BY_SET else "vtab"]


def _as_published(run: Experiment, spec: str) -> Experiment:
    """Return a run with the adapter, rate, batch size and crops of the released recipe."""
    recipe = published(spec)
    cells = Official(recipe.bottleneck, recipe.experts, recipe.split, deep=recipe.deep)
    return run.changed(
        method=OFFICIAL,
        settings=settings.words(cells),
        objective="plain",  # it has its own
        lr=recipe.lr,
        batch_size=recipe.batch_size,
        augment="crop" if spec.partition("/")[0] in BY_SET else "none",
        frozen_once=False,  # its dropout is in every block
    )


_TOLD: Mapping[str, Callable[[Any], str]] = {
    "epochs": lambda value: f"{value} epochs",
    "size": lambda value: "the model's own size in px" if value is None else f"{value} px",
    "precision": str,
    "last_blocks": lambda value: f"the last {value} blocks",
}


def _bare(value: Any) -> str:
    """Return a value of the protocol in words; None is all blocks."""
    return "all" if value is None else str(value)
