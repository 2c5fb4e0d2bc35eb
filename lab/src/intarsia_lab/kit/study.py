"""A paper's headline as an experiment that holds, fails, is not decided, or is void."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from intarsia.core.checks import one_of
from intarsia.core.errors import ConfigError
from intarsia.reports.statistics import paired_interval, t_interval

from .control import Control, NoControl
from .rates import ArmRate, FixedRate, Rates

Report = Callable[[str], None]
Word = Literal["holds", "fails", "not decided", "void"]
SENSES = ("<=", ">=", "within")
POWER = 0.8
MOST_SEEDS = 10_000
CERTAIN = 40.0  # a mean so many standard errors from 0 is seen by two seeds, in 99 % of the draws


@dataclass(frozen=True)
class Effect:
    """A paper's own effect on its own table, in the claim's unit, and its source.

    null: the value if nothing differed, 0 of a difference and 1 of a ratio.  interval: the paper's
    own uncertainty, where it prints one.
    """

    value: float
    source: str
    null: float = 0.0
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class UnknownEffect:
    """A paper's effect in the claim's unit that was not found, and why, in a sentence."""

    reason: str


@dataclass(frozen=True)
class Result:
    """Result of a claim's run: its figure, one value for each seed, and its table.

    got: the figure in the table, the values' mean or the worst of several.  spread: standard
    deviation of the values.  items: the 95 % interval over test items and seeds together, where the
    run recorded items; else the interval is Student's, over the values.  rates: the arms' rates.
    """

    got: float
    spread: float
    values: tuple[float, ...]
    table: tuple[Mapping[str, Any], ...] = ()
    note: str = ""
    items: tuple[float, float] | None = None
    rates: tuple[ArmRate, ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval; infinite for fewer than two values, which decide nothing."""
        if self.items is not None:
            return self.items
        return t_interval(self.values) if len(self.values) > 1 else (-math.inf, math.inf)


def over_items(
    items: Sequence[np.ndarray], ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> tuple[float, float]:
    """Return the 95 % interval of a paired difference over test items and seeds together.

    items, ours, theirs: for each seed the numbers of the test items, and both arms' values of them,
    (items,) each; see `reports.statistics.paired_interval`. Infinite where that has no interval.
    """
    paired = paired_interval(items, ours, theirs)
    return (-math.inf, math.inf) if paired is None else (paired.low, paired.high)


class Verdict(NamedTuple):
    """Verdict in one of four words, and its reason in a sentence."""

    word: Word
    reason: str = ""


@dataclass(frozen=True)
class Study:
    """The smallest honest experiment for a headline; its target is fixed before the run.

    `measure(seeds, report)` carries out all that is not stored and returns a Result; its interval
    is compared with `target` ("at most" where `sense` is "<=", "at least" where it is ">=", between
    -target and target where it is "within"). `control` is a condition that must hold before
    anything is judged, or says in a sentence why there can be none. `rates` is the grid of learning
    rates that its arms choose from, or the one rate of all; None where nothing is trained. `effect`
    is the paper's own, or says why it is not known. `needs` is "cpu", "gpu" or "long". `work` names
    model and data in a few words. `system` is the short name of the paper if this is its headline,
    else "", and `unit` is what its figure counts, as in "points of accuracy". `scale` says in a
    sentence what larger experiment decides what this one cannot.

    Raises: ConfigError without a control, for a headline without an effect, an unknown sense.
    """

    key: str
    sentence: str
    baseline: str
    target: float
    sense: str
    measure: Callable[[tuple[int, ...], Report], Result]
    control: Control | NoControl | None = None
    effect: Effect | UnknownEffect | None = None
    rates: Rates | FixedRate | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    needs: str = "cpu"
    minutes: float = 1.0
    work: str = ""
    system: str = ""
    unit: str = ""
    scale: str = ""

    def __post_init__(self) -> None:
        """Check that the study has a control, and the effect of the paper that it repeats."""
        one_of("sense", self.sense, SENSES)
        if self.control is None:
            want = "a positive control, or the reason why there can be none"
            fix = "Pass control=Control(...), or control=NoControl('...')."
            raise ConfigError(f"control of claim {self.key}", got=None, want=want, fix=fix)
        if self.system and self.effect is None:
            want = "the paper's own effect with its source, or the word that it is not known"
            fix = "Pass effect=Effect(1.3, 'table 2'), or effect=UnknownEffect('...')."
            raise ConfigError(f"effect of claim {self.key}", got=None, want=want, fix=fix)

    @property
    def bound(self) -> str:
        """The target with its sense, as in ">= 1.3"."""
        return f"{self.sense} {self.target:g}"

    def judge(self, result: Result) -> Verdict:
        """Return the verdict on a result: the one rule for all claims.

        A failed control makes it *void*, and so do learning rates that were chosen unfairly (see
        `failure` of the rates). It *holds* if the whole 95 % interval is on the target's side, and
        *fails* if the whole interval is on the other side; `got` must lie on the same side, since
        it may be the worst of several figures, outside the interval of their mean. Otherwise it is
        *not decided*.
        """
        if failure := self.failure(result):
            return Verdict("void", failure)
        word = self.word(result)
        return Verdict(word, self._undecided(result) if word == "not decided" else "")

    def failure(self, result: Result) -> str:
        """Return why a result means nothing; "" if the experiment worked."""
        assert self.control is not None
        if not all(map(math.isfinite, (result.got, *result.values))):
            return "A measured value is not a number."
        # the experiment must have worked at all, and each arm have had its own fair rate
        failure = self.control.failure(result.table)
        return failure or ("" if self.rates is None else self.rates.failure(result.rates))

    def word(self, result: Result) -> Word:
        """Return the verdict by the target alone: of a result's whole interval, and its figure."""
        low, high = result.interval
        points = (low, high, result.got)
        target = self.target
        if self.sense == "within":
            # a tie: inside on both ends; outside only beyond one of them
            right = all(abs(point) <= target for point in points)
            wrong = low > target or high < -target
        else:
            sign = 1 if self.sense == ">=" else -1
            sides = [sign * (point - target) >= 0 for point in points]
            right, wrong = all(sides), not any(sides)
        if right or wrong:
            return "holds" if right else "fails"
        return "not decided"

    def _undecided(self, result: Result) -> str:
        """Return why a claim is not decided, and how many seeds would decide it, in a sentence."""
        low, high = result.interval
        if not math.isfinite(low):
            return "A single value has no interval: three seeds would say how many decide it."
        if len(result.values) < 2:
            return "The target lies inside the interval over test items of a single value."
        mean = statistics.mean(result.values)
        # of the two targets of a tie, the nearer one
        nearest = math.copysign(self.target, mean) if self.sense == "within" else self.target
        reason, distance = "The target lies inside the interval", mean - nearest
        if not low <= nearest <= high:
            # the mean is clear, but the figure is the worst of several
            reason = "The figure, the worst of several, lies on the other side than their mean"
            distance = result.got - nearest
        count = seeds_needed(result.values, distance)
        if count is None:
            return f"{reason}; {MOST_SEEDS} seeds would not decide it."
        return f"{reason}; about {count} seeds would decide it."

    def power(self, result: Result) -> str:
        """Return a sentence on how many seeds would show the paper's own effect, by a run's spread.

        result: of the run. "" where the effect is not known, or a single value has no spread.
        """
        if not isinstance(self.effect, Effect) or len(result.values) < 2:
            return ""
        count = seeds_needed(result.values, self.effect.value - self.effect.null)
        needed = f"more than {MOST_SEEDS}" if count is None else f"{count}"
        return (
            f"With the spread of this run, {needed} seeds see the paper's effect with "
            f"{POWER:.0%} power; it has {len(result.values)} values."
        ).replace("%", " %")


def seeds_needed(pilot: Sequence[float], effect: float) -> int | None:
    """Return how many seeds show an effect with 80 % power in a two-sided t-test at 5 %.

    pilot: values of at least two seeds, only their standard deviation s counts; effect: the
    difference to be shown. It is the least n at which a noncentral t with n - 1 degrees of freedom
    and centre |effect| sqrt(n) / s passes the critical value in 80 % of the draws. None if
    `MOST_SEEDS` are too few.
    """
    from scipy.stats import nct, t

    spread = statistics.stdev(pilot)
    if spread == 0:
        return 2
    # the effect in standard deviations, as power tables have it
    standard = abs(effect) / spread

    def shows(count: int) -> bool:
        """Return True if so many seeds show the effect with 80 % power."""
        if standard * math.sqrt(count) > CERTAIN:
            return True
        critical = t.ppf(0.975, count - 1)
        return bool(nct.sf(critical, count - 1, standard * math.sqrt(count)) >= POWER)

    # power grows with the seeds: double until they are enough, then halve the step; counts far
    # beyond the answer would cost a minute, since their distribution converges slowly
    low, high = 1, 2
    while not shows(high):
        if high == MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle, high)
    return high
