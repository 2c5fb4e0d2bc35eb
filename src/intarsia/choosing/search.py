"""A search under a clock: methods, rates, epochs, depths and sizes, judged on held-out pictures.

The training pictures are dealt into five folds. A candidate is trained without a fold and answers
it; as many folds take their turn as give ENOUGH answers, so that few pictures are all used
(cross-validation) and many are held out once. First all methods are looked at on two folds. Then
neighbours of the best of each method join, the leader's first, and what is clearly behind the
leader after two folds is given up. In the last third of the time the finalists are trained again
at other seeds, to make the choice between them surer. What a part would take is estimated before
it begins, from what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..core.checks import RATE_REACH
from ..core.errors import TrainingError
from ..core.store import key_of
from ..experiments import searching
from ..experiments.experiment import Experiment
from ..results import numbers
from ..results.runs.reading import measure
from . import judging
from .arms import BenchArm
from .folded import FOLDS, Candidate, Folded, Row, described

ENOUGH = 400  # answers that decide, of different pictures
SCREEN = 2  # folds of the first look at a candidate
FIRST_STEPS = 60  # optimiser steps of the first look, within these epochs
FEWEST_EPOCHS, FIRST_EPOCHS, MOST_EPOCHS = 2, 20, 160
SCREENING = 0.25  # of the minutes, for the first look at all methods
EXPLORING = 0.67  # of the minutes, before the finalists are trained again
FINALISTS, REPEATS = 3, 4  # and how many seeds they have at most

Report = Callable[[str], None]


@dataclass
class Search:
    """The candidates, the clock, and what has been trained; a killed one goes on from its folder.

    folded: what trains them.  depth: blocks of the model.  seconds: of everything.
    """

    folded: Folded
    arms: Sequence[BenchArm]
    sizes: Sequence[int]
    depth: int
    seconds: float
    report: Report

    def __post_init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.order: list[Row] | None = None  # of `ranked`, until something is trained
        self.full = min(FOLDS, -(-ENOUGH // self.folded.held))
        self.screen = min(SCREEN, self.full)

    def run(self) -> list[Row]:
        """Return all that was tried, the best first.  Raises: TrainingError if nothing trains."""
        pilot = next((arm for arm in self.arms if arm.name != "linear"), self.arms[0])
        self.folded.time_sizes(pilot, self.sizes, SCREENING * self.seconds)
        for candidate in self._first_look():
            self._advance(candidate, self.screen)
        ranked = self.ranked()
        for row in ranked[: -(-len(ranked) // 2)]:
            self._advance(row.candidate, self.full)
        while any(self._advance(*move) for move in self._moves()):
            pass
        if not (ranked := self.ranked()):
            fix, want = "Mend that, or leave --methods out.", "one candidate that trains"
            got = next(row.error for row in self.rows.values())
            raise TrainingError("search", got=got, want=want, fix=fix)
        return ranked + [row for row in self.rows.values() if row not in ranked]

    def ranked(self) -> list[Row]:
        """Return the candidates that have answered the same pictures, the best first.

        Those with more answers, the finalists, come first and are judged by all of them.
        """
        if self.order is None:
            base = self._base()
            most = max((row.parts for row in base), default=0)
            final = [row for row in base if row.parts == most > self.full]
            answers = [self.folded.answers(row, most) for row in final]
            first = [final[i] for i in judging.order(answers)]
            self.order = first + [row for row in base if row not in first]
        return self.order

    def _base(self) -> list[Row]:
        """Return the candidates with as many answers as any has, up to `full` parts, in order."""
        known = [row for row in self.rows.values() if row.parts and not row.error]
        level = min(self.full, max((row.parts for row in known), default=0))
        deep = [row for row in known if row.parts >= level]
        return [deep[i] for i in judging.order([self.folded.answers(row, level) for row in deep])]

    def _first_look(self) -> list[Candidate]:
        """Return every method at the largest size that leaves time for the rest of the search."""
        train = self.folded.trained
        steps = -(-train // self.folded.start.training.batch_size)
        epochs = min(max(-(-FIRST_STEPS // steps), FEWEST_EPOCHS), FIRST_EPOCHS)

        def takes(size: int, epochs: int) -> float:
            each = self.folded.costs[size].of(train, self.folded.held, epochs)
            return len(self.arms) * self.screen * each

        fitting = [s for s in self.folded.costs if takes(s, epochs) < SCREENING * self.seconds]
        size = max(fitting, default=min(self.folded.costs))
        while epochs > 1 and takes(size, epochs) > SCREENING * self.seconds:
            epochs -= 1
        start = self.folded.start.changed(size=size, epochs=epochs)
        return [(arm.name, arm.settings.into(start)) for arm in self.arms]

    def _moves(self) -> Iterator[tuple[Candidate, int]]:
        """Yield what could be trained next, and up to which part, the most promising first."""
        ranked = self.ranked()
        exploring = [(c, self.full) for c in self._neighbours(ranked)]
        exploring += [(r.candidate, self.full) for r in self.rows.values()]
        level = [row for row in self._base() if row.parts >= self.full]
        finalists = [row for row in level[:FINALISTS] if not self._behind(row)]
        target = min((row.parts for row in finalists), default=0) + self.full
        target = min(target, REPEATS * FOLDS)
        confirming = [(row.candidate, target) for row in finalists if len(finalists) > 1]
        early = self.folded.spent < EXPLORING * self.seconds
        yield from exploring + confirming if early else confirming + exploring

    def _neighbours(self, ranked: Sequence[Row]) -> Iterator[Candidate]:
        """Yield neighbours of the best candidate of each method, then those of the others."""
        best: dict[str, Row] = {}
        for row in ranked:
            best.setdefault(row.name, row)
        for row in (*best.values(), *ranked):
            experiment = row.experiment
            rate = experiment.training.lr
            for other in searching.extended([rate], [rate], RATE_REACH):
                yield row.name, experiment.changed(lr=other)
            if 2 * experiment.training.epochs <= MOST_EPOCHS:
                yield row.name, experiment.changed(epochs=2 * experiment.training.epochs)
            blocks = experiment.adapted.last_blocks
            if blocks and blocks < self.depth:
                yield row.name, experiment.changed(last_blocks=min(2 * blocks, self.depth))
            known = sorted(self.folded.costs)
            place = known.index(experiment.adapted.size or known[0])
            for size in (*known[place + 1 : place + 2], *known[:place][-1:]):
                yield row.name, experiment.changed(size=size)

    def _advance(self, candidate: Candidate, parts: int) -> bool:
        """Train a candidate until it has answered so many parts; tell whether it was trained.

        Not if there is no time for all of them, and no longer than it keeps up with the leader.
        """
        name, experiment = candidate
        if not any(row.parts for row in self.rows.values()):
            experiment = self._cut(name, experiment)
            parts = parts if self._fits(name, experiment, parts) else 1
        elif not self._fits(name, experiment, parts):
            return False
        before = self.folded.spent
        while not (row := self._row(name, experiment)).error and row.parts < parts:
            if row.parts >= self.screen and self._behind(row):
                break
            self.rows[key_of(experiment.flat())] = self.folded.answer(row)
            self.order = None
        if self.folded.spent > before:
            gone, of = map(numbers.seconds, (self.folded.spent, self.seconds))
            self.report(f"{name}, {described(experiment)}: {_result(row)}; {gone} of {of} gone.")
        return self.folded.spent > before

    def _behind(self, row: Row) -> bool:
        """Tell whether a candidate may be given up, by the parts that the leader answered, too.

        Of the same pictures alone: a temperature of other ones would move the loss.
        """
        ranked = self.ranked()
        leader = ranked[0] if ranked else row
        level = min(row.parts, leader.parts)
        if leader is row or not level:
            return False
        return judging.behind(*(self.folded.answers(r, level) for r in (row, leader)))

    def _row(self, name: str, experiment: Experiment) -> Row:
        return self.rows.get(key_of(experiment.flat()), Row(name, experiment))

    def _fits(self, name: str, experiment: Experiment, parts: int) -> bool:
        """Tell whether parts of a candidate leave time for the last fit, of it or the leader."""
        left = range(self._row(name, experiment).parts, parts)
        took = self.folded.takes(name, experiment, left)
        leaders = [row.candidate for row in self.ranked()[:1]]
        last = max(self.folded.last_fit(*c) for c in [(name, experiment), *leaders])
        return self.folded.spent + took + last < self.seconds

    def _cut(self, name: str, experiment: Experiment) -> Experiment:
        """Return the first candidate, which always trains, with as many epochs as there is time.

        Half of what is left, for the last fit takes as long; at least 1.
        """
        asked, again = experiment.training.epochs, len(self.folded.labels) / self.folded.trained
        none, first = (
            self.folded.takes(name, experiment.changed(epochs=epochs), range(1))
            for epochs in (1, 2)
        )
        each, none = first - none, none - (first - none)
        left = self.seconds - self.folded.spent - none
        left -= self.folded.last_fit(name, experiment.changed(epochs=1)) - again * each
        each *= 1 + again
        epochs = max(1, min(asked, int(left / each))) if each > 0 else asked
        if epochs < asked:
            took = numbers.seconds(each / (1 + again))
            self.report(f"The first candidate gets {epochs} of {asked} epochs of about {took}.")
        return experiment.changed(epochs=epochs)


def _result(row: Row) -> str:
    if row.answers is None or row.error:
        return f"FAILED, {row.error}"
    share = numbers.percent(row.val[measure(row.val)])
    return f"{share} on {row.answers.pictures:,} held-out pictures"
