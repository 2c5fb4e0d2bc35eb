"""Arms next to each other: means, spreads, and differences paired by task and seed.

A spread is the sample standard deviation, sqrt(sum (x - mean)^2 / (n - 1)).  A difference is taken
between two arms on the same task from the same seed; everything else is a mean of such pairs.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, Generic, TypeVar

import numpy as np

from ..core.errors import ShapeError
from . import statistics
from .statistics import (
    DECIMALS,
    PairedInterval,
    bootstrap_interval,
    paired_interval,
    task_means,
    wilcoxon,
)

A = TypeVar("A")  # who is compared
T = TypeVar("T")  # on what
R = TypeVar("R")  # what came out


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for one value) of n values."""

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    def text(self, form: str = ".1f") -> str:
        """Return "3.3 ± 0.2", mean and deviation; without ± for one value.

        form: format of both numbers; a sign stays with the mean.
        """
        mean = f"{self.mean:{form}}"
        return mean if self.deviation is None else f"{mean} ± {self.deviation:{form.lstrip('+')}}"


def suite_mean(accuracy: np.ndarray, weight: np.ndarray | None = None) -> Spread:
    """Return the weighted mean of accuracies over tasks, and its spread over seeds.

    accuracy: (tasks, seeds); NaN only in seeds that are NaN throughout, which are left out. weight:
      (tasks,), None = all alike.
    Raises: ShapeError where a task lacks a seed: such a mean would mix unequal tasks.
    """
    # a seed that no task has finished yet is left out
    seeds = accuracy[:, ~np.isnan(accuracy).all(0)]
    if not seeds.size or np.isnan(seeds).any():
        subject = "accuracies of a suite"
        got, want = "a task without one of the seeds", "the same seeds in every task"
        raise ShapeError(subject, got=got, want=want, fix="Take the tasks that are complete.")
    weight = np.full(len(seeds), 1 / len(seeds)) if weight is None else weight
    # a sum in a fixed order of values: the order of the tasks must not show in the last digit
    return Spread.of([math.fsum(column * weight) for column in seeds.T])


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation, 0 for one value."""
    return Spread.of(values).deviation or 0.0


@dataclass(frozen=True, eq=False)
class Differences:
    """Differences of one arm minus another, by task and seed: at least one pair.

    pairs: (tasks, seeds), NaN where either arm has no value.  over_items: on one task, the interval
    over its test items and the seeds, where the runs have kept the values for it.
    """

    pairs: np.ndarray
    over_items: PairedInterval | None = None

    @classmethod
    def of(cls, ours: np.ndarray, theirs: np.ndarray) -> Differences | None:
        """Subtract the results of one method from another's, pair by pair; None without a pair.

        ours, theirs: (tasks, seeds), NaN = no result.
        """
        # equal values in another order of sums would differ in the last bits
        pairs = np.round(ours - theirs, DECIMALS) + 0.0  # no -0
        return None if np.isnan(pairs).all() else cls(pairs)

    @classmethod
    def by_seed(cls, ours: Mapping[int, float], theirs: Mapping[int, float]) -> Differences | None:
        """Subtract the results of two methods on one task at the seeds that both have, or None."""
        shared = [seed for seed in ours if seed in theirs]
        values = [np.array([[arm[seed] for seed in shared]]) for arm in (ours, theirs)]
        return cls.of(*values) if shared else None

    @cached_property
    def by_task(self) -> np.ndarray:
        """Means over seeds.  (tasks,), NaN without a pair."""
        return np.round(task_means(self.pairs), DECIMALS) + 0.0

    @property
    def known(self) -> np.ndarray:
        """The pairs that there are, in a row."""
        return self.pairs[~np.isnan(self.pairs)]

    @property
    def mean(self) -> float:
        """Mean over tasks of the means over seeds."""
        means = self.by_task[~np.isnan(self.by_task)]
        return math.fsum(means) / len(means)

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.known)

    @property
    def spread(self) -> Spread:
        """Mean and sample standard deviation of the pairs."""
        return Spread.of(self.known.tolist())

    @property
    def ahead(self) -> int:
        """Number of pairs with a value higher than the other arm's."""
        return int((self.known > 0).sum())

    @property
    def behind(self) -> int:
        """Number of pairs with a value lower than the other arm's."""
        return int((self.known < 0).sum())

    @property
    def record(self) -> tuple[int, int, int]:
        """Tasks on which it was ahead, equal and behind."""
        gaps = self.by_task[~np.isnan(self.by_task)]
        return int((gaps > 0).sum()), int((gaps == 0).sum()), int((gaps < 0).sum())

    @cached_property
    def p(self) -> float | None:
        """P-value of Wilcoxon's signed-rank test across tasks, uncorrected; None for one task."""
        return wilcoxon(self.by_task[~np.isnan(self.by_task)])

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean: bootstrap over tasks and seeds; for one task over its items.

        Tasks come first, since the question is what happens on other tasks of this kind; three
        seeds of one task are not three tasks.  Drawing seeds as well keeps the noise of training in
        the interval and makes it a little wider than drawing tasks alone, on the safe side.  With
        one task it is over that task's items and the seeds; None without `over_items`, since seeds
        alone say nothing about other items.
        """
        complete = ~np.isnan(self.by_task)
        # one task is no sample of tasks: its own items are the sample then
        if complete.sum() > 1:
            return bootstrap_interval(self.pairs[complete], seed=0)
        return self.over_items and (self.over_items.low, self.over_items.high)

    @property
    def half_width(self) -> float:
        """Half width of the 95 % t-interval of the mean over all pairs; infinite for one pair."""
        low, high = statistics.t_interval(self.known.tolist())
        return (high - low) / 2

    @property
    def t_interval(self) -> tuple[float, float]:
        """The 95 % t-interval of the mean, all pairs being one sample.

        For pairs that are draws of everything that varies; of a task's seeds it says nothing about
        other test items.
        """
        return self.mean - self.half_width, self.mean + self.half_width


@dataclass(frozen=True, eq=False)
class ItemValues:
    """Values of one run for each item of the part that it was scored on.

    items: (n,) int64, equal where the item is, in whatever seed.  values: (n,), bool for right or
    wrong, else numbers.  weights: (n,), of each in the mean, None = all alike.
    """

    items: np.ndarray
    values: np.ndarray
    weights: np.ndarray | None = None


def paired(
    ours: Mapping[int, ItemValues], theirs: Mapping[int, ItemValues]
) -> PairedInterval | None:
    """Return the interval of two methods' difference on one task, over its items and shared seeds.

    ours, theirs: seed -> values of the items. None without a shared seed, and where the items of a
      seed are not the same.
    """
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    if not pairs or not all(np.array_equal(a.items, b.items) for a, b in pairs):
        return None
    # the weights belong to the items, which both arms share
    weights = [a.weights for a, _ in pairs if a.weights is not None]
    return paired_interval(
        [a.items for a, _ in pairs],
        [a.values for a, _ in pairs],
        [b.values for _, b in pairs],
        weights or None,
    )


class BySeed(abc.ABC):
    """The results of one arm on one task, by seed."""

    @abc.abstractmethod
    def by_seed(self, name: str) -> dict[int, float]:
        """Return seed -> value of that name, where there is one."""

    def spread(self, name: str) -> Spread | None:
        """Return the spread over the seeds; None without a value."""
        values = list(self.by_seed(name).values())
        return Spread.of(values) if values else None

    def minus(self, base: BySeed, name: str) -> Differences | None:
        """Subtract the values of another method at the same seeds; None without a seed in common.

        name: of the value to compare, such as "accuracy".
        """
        return Differences.by_seed(self.by_seed(name), base.by_seed(name))

    def ratio(self, base: BySeed, name: str) -> float | None:
        """Return how many times as large a value is as another method's: mean over shared seeds.

        None without a shared seed at which the other method's value is not 0.
        """
        theirs = base.by_seed(name)
        ratios = [v / theirs[s] for s, v in self.by_seed(name).items() if theirs.get(s)]
        return fmean(ratios) if ratios else None


@dataclass(frozen=True, eq=False)
class Sheet(Generic[A, T, R]):
    """Results by arm, task and seed; what may be compared stands in one sheet.

    read: a result and the name of a value -> the value, None where there is none.
    """

    arms: tuple[A, ...]
    tasks: tuple[T, ...]
    seeds: tuple[int, ...]
    results: Mapping[tuple[A, T, int], R]
    read: Callable[[R, str], float | None]

    def values(self, name: str) -> np.ndarray:
        """Return one value of every result as an array, (arms, tasks, seeds), NaN if not known.

        An arm is a method that is compared. The array is read-only.
        """
        if name not in self._values_read:
            arms, tasks, seeds = self._places
            table = np.full((len(arms), len(tasks), len(seeds)), np.nan)
            for (arm, task, seed), result in self.results.items():
                if (value := self.read(result, name)) is not None:
                    table[arms[arm], tasks[task], seeds[seed]] = value
            # the array is cached and shared, so nobody may change it
            table.flags.writeable = False
            self._values_read[name] = table
        return self._values_read[name]

    @cached_property
    def _values_read(self) -> dict[str, np.ndarray]:
        """Values read so far: a page asks for one name again and again."""
        return {}

    @cached_property
    def _places(self) -> tuple[dict[A, int], dict[T, int], dict[int, int]]:
        arms = {arm: i for i, arm in enumerate(self.arms)}
        tasks = {task: i for i, task in enumerate(self.tasks)}
        return arms, tasks, {seed: i for i, seed in enumerate(self.seeds)}

    def by_seed(self, arm: A, task: T) -> list[R]:
        """Return an arm's results on a task, in the order of the seeds."""
        return [self.results[arm, task, seed] for seed in self.seeds]

    def of(self, arm: A, name: str) -> np.ndarray:
        """Return a value of one arm's results.  (tasks, seeds)."""
        return self.values(name)[self.arms.index(arm)]

    def minus(self, arm: A, base: A, name: str) -> Differences | None:
        """Subtract one arm's results from another's, paired by task and seed; None without a pair.

        name: of the value to compare, such as "accuracy".
        """
        values: Any = self.values(name)
        return Differences.of(values[self.arms.index(arm)], values[self.arms.index(base)])

    @cached_property
    def begun(self) -> np.ndarray:
        """The seeds that an arm has any result of, done or failed.  (arms, seeds), bool."""
        # on any task
        pairs = {(arm, seed) for arm, _, seed in self.results}
        return np.array([[(arm, seed) in pairs for seed in self.seeds] for arm in self.arms])
