"""A search under a clock: successive halving over methods, sizes, epochs and rates, on validation.

A short pilot of each size says what an image costs there. Every rung trains what is left of the
candidates for twice the epochs of the rung before; the better half goes on, and from the second
rung on neighbours of the leader join. What a candidate would take is estimated before
it begins, from what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import TrainingError
from ..experiments.experiment import Experiment
from ..experiments.one_run import run as one_run
from ..experiments.pool import Trial, TrialEnd, run_trials
from ..results import numbers
from ..results.runs.reading import measure
from ..results.store import Store, key_of
from .arms import BenchArm
from .budget import SCORING, SETTING_UP

FIRST_EPOCHS, MOST_EPOCHS = 5, 80
PILOT_IMAGES, PILOT_EPOCHS = 64, 2
SIZE_SHARE = 0.15  # of the minutes, which one candidate of a size may take in the first rung
FINISHING = 3.0  # seconds of the table and the page
RATES = (0.3, 3.0)  # of the leader's: neighbours

Report = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """A candidate that was trained: its validation scores and its seconds; or why it failed.

    beside: of the seconds, those that were not training.
    """

    experiment: Experiment
    name: str
    val: Mapping[str, float]
    seconds: float
    beside: float
    folder: Path
    error: str = ""

    @property
    def score(self) -> tuple[float, float]:
        """Higher is better; the loss decides among equals."""
        return self.val[measure(self.val)], -self.val["loss"]


@dataclass(frozen=True)
class Cost:
    """Seconds: of a run beside its training, and of an image, once and in each epoch."""

    overhead: float
    once: float
    each: float

    def of(self, images: int, val: int, epochs: int, *, fresh: bool = True) -> float:
        """Of a run.  fresh: what is computed once is not there yet."""
        seen = epochs * (images + SCORING * val) * self.each
        return self.overhead + seen + fresh * (images + val) * self.once


@dataclass
class Search:
    """The candidates, the clock, and what has been trained; a killed one goes on from its folder.

    start: what all candidates share.  counts: images of train, val and test.  seconds: of
    everything.  running: fields of `Running`.
    """

    start: Experiment
    arms: Sequence[BenchArm]
    sizes: Sequence[int]
    counts: tuple[int, int, int]
    seconds: float
    out: Path
    report: Report
    running: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.store = Store(self.out / "search.jsonl")
        self.spent, self.costs = 0.0, dict[int, Cost]()
        self.beside = SETTING_UP  # of a run's seconds, before a candidate's are known
        self.rows: list[Row] = []

    def run(self) -> list[Row]:
        """All that was trained, the best first.  Raises: TrainingError if nothing could be."""
        self._time_sizes()
        epochs = FIRST_EPOCHS
        left = [self._candidate(arm, size, epochs) for size in self.costs for arm in self.arms]
        while found := sorted(self._rung(left), key=lambda row: row.score, reverse=True):
            epochs *= 2
            best = self.best[0]
            if epochs > MOST_EPOCHS or (epochs > 2 * FIRST_EPOCHS and best not in found):
                break  # twice the epochs gave nothing
            left = [(r.name, r.experiment) for r in found[: -(-len(found) // 2)]]
            if epochs > 2 * FIRST_EPOCHS:
                left += [(best.name, near) for near in _neighbours(best.experiment)]
            left = [(name, one.changed(epochs=epochs)) for name, one in left]
        if not self.best:
            fix = "Mend that, or leave --methods out."
            want = "one candidate that trains"
            raise TrainingError("search", got=self.rows[0].error, want=want, fix=fix)
        return self.best

    @property
    def best(self) -> list[Row]:
        """Those that have a score, the best first; of equals the one that was cheaper."""
        known = [row for row in self.rows if not row.error]
        return sorted(known, key=lambda row: (*row.score, -row.seconds), reverse=True)

    def _last_look(self, one: Experiment) -> float:
        """Seconds of scoring a candidate on the test part, and of the table and the page."""
        cost = self._cost(one)
        return cost.overhead + self.counts[2] * (cost.once + SCORING * cost.each) + FINISHING

    def _candidate(self, arm: BenchArm, size: int, epochs: int) -> tuple[str, Experiment]:
        one = arm.settings.into(self.start.changed(size=size, epochs=epochs))
        return arm.name, one

    def _time_sizes(self) -> None:
        """A pilot of each size that the clock allows; the smallest is always there."""
        arm = next((a for a in self.arms if a.name != "linear"), self.arms[0])
        images, val = (min(PILOT_IMAGES, count) for count in self.counts[:2])
        took, before = 0.0, 1
        for size in self.sizes:
            if self.costs and took * (size / before) ** 2 > SIZE_SHARE * self.seconds:
                break
            _, one = self._candidate(arm, size, PILOT_EPOCHS)
            row = self._trained("pilot", one.changed(images=images, val=val))
            if row.error:
                raise TrainingError("pilot", got=row.error, want="a run", fix="Mend that.")
            once = self.store[key_of(row.experiment.flat())]["once"]
            trained = row.seconds - row.beside
            each = (trained - once) / images / PILOT_EPOCHS
            cost = Cost(SETTING_UP, once / images, each)
            if self.costs and cost.of(*self.counts[:2], FIRST_EPOCHS) > SIZE_SHARE * self.seconds:
                break
            self.costs[size], took, before = cost, trained, size
            self.beside = row.beside
        self.rows.clear()  # pilots are no candidates

    def _fits(self, one: Experiment) -> bool:
        """Whether a candidate leaves time for the look at the test part; the first always does."""
        if not self.best:
            return True
        again = any(row.experiment.adapted.size == one.adapted.size for row in self.rows)
        took = self._cost(one).of(*self.counts[:2], one.training.epochs, fresh=not again)
        return self.spent + took + self._last_look(one) < self.seconds

    def _cut(self, one: Experiment) -> Experiment:
        """The first candidate, which always trains, with the epochs there is time for, 1 at least.

        By what its size's pilot measured of a step.
        """
        cost, asked = self._cost(one), one.training.epochs
        none, first = (cost.of(*self.counts[:2], epochs) for epochs in (0, 1))
        left, pass_over = self.seconds - self.spent - self._last_look(one) - none, first - none
        epochs = max(1, min(asked, int(left / pass_over))) if pass_over > 0 else asked
        if epochs < asked:
            self.report(
                f"The first candidate gets {epochs} of {asked} epochs: an epoch takes about "
                f"{numbers.seconds(pass_over)}."
            )
        return one.changed(epochs=epochs)

    def _cost(self, one: Experiment) -> Cost:
        """Of a candidate; what a run takes beside its training is that of the last one."""
        cost = self.costs[one.adapted.size or 0]
        trained = [row for row in self.rows if not row.error]
        return replace(cost, overhead=trained[-1].beside if trained else self.beside)

    def _rung(self, asked: Sequence[tuple[str, Experiment]]) -> list[Row]:
        """Train the candidates that there is time for, in their order; those with a score."""
        found: list[Row] = []
        for name, one in asked:
            one = one if self.best else self._cut(one)
            if all(row.experiment != one for row in self.rows) and self._fits(one):
                found.append(self._trained(name, one))
        return [row for row in found if not row.error]

    def _trained(self, name: str, one: Experiment) -> Row:
        """Train it, unless it is kept."""
        key = key_of(one.flat())
        inputs = {
            "experiment": one.flat(),
            "folder": str(self._folder(key)),
            "shared": str((self.out / "shared").absolute()),
            "test": False,
            "running": self.running,
        }

        def done(end: TrialEnd) -> None:
            row: dict[str, Any] = {"seconds": end.seconds, "error": end.error}
            if end.result is not None:
                found = end.result["results"]
                once = found.get("seconds_once", 0.0)
                row |= {"val": found["val"], "trained": found["seconds"], "once": once}
            self.store.add(key, row)
            gone, of = map(numbers.seconds, (self.spent + end.seconds, self.seconds))
            self.report(
                f"{end.trial.name}: {_said(end)}, {end.seconds:.0f} s; {gone} of {of} gone."
            )

        if key not in self.store:
            trial = Trial(f"{name}, {told(one)}", inputs)
            run_trials([trial], one_run, jobs=1, executor="here", done=done)
        kept = self.store[key]
        beside = kept["seconds"] - kept.get("trained", 0.0)
        val, folder = kept.get("val") or {}, self._folder(key)
        row = Row(one, name, val, kept["seconds"], beside, folder, kept["error"])
        self.spent += row.seconds
        self.rows.append(row)
        return row

    def _folder(self, key: str) -> Path:
        return (self.out / "search" / key).absolute()


def told(one: Experiment) -> str:
    """What is searched for, of a candidate."""
    return f"{one.adapted.size} px, {one.training.epochs} epochs, rate {one.training.lr:g}"


def _neighbours(one: Experiment) -> Iterator[Experiment]:
    """The same at other rates, and deeper."""
    for factor in RATES:
        yield one.changed(lr=float(f"{factor * one.training.lr:.1g}"))
    if one.adapted.last_blocks:
        yield one.changed(last_blocks=2 * one.adapted.last_blocks)


def _said(end: TrialEnd) -> str:
    if end.result is None:
        return f"FAILED, {end.error}"
    scores = end.result["results"]["val"]
    return f"{numbers.percent(scores[measure(scores)])} on val"
