"""Search under a time limit: methods, rates, epochs, depths and sizes, judged on held-out pictures.

The training pictures are dealt into five folds. A candidate is trained without a fold and answers
it; as many folds take their turn as give ENOUGH answers, so that few pictures are all used
(cross-validation) and many are held out once. First all methods are looked at on two folds. Then
neighbours of the best of each method join, the leader's first, and what is clearly behind the
leader after two folds is given up. In the last third of the time the finalists are trained again
at other seeds, to make the choice between them surer. What a part would take is estimated before
it begins, from what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ..core.checks import RATE_REACH
from ..core.errors import TrainingError
from ..experiments import searching
from ..experiments.experiment import Experiment
from ..reports import numbers
from ..reports.runs.reading import measure
from . import judging
from .arms import BenchArm
from .folded import FOLDS, Candidate, Folded, Row, describe_settings

ENOUGH = 400  # answers that decide, of different pictures
SCREEN = 2  # folds of the first look at a candidate
FIRST_STEPS = 60  # optimiser steps of the first look, within these epochs
FEWEST_EPOCHS, FIRST_EPOCHS, MOST_EPOCHS = 2, 20, 160
SCREENING = 0.25  # of the minutes, for the first look at all methods
EXPLORING = 0.67  # of the minutes, before the finalists are trained again
FINALISTS, REPEATS = 3, 4  # and how many seeds they have at most

Report = Callable[[str], None]
Move = tuple[Candidate, int]
"""A candidate, and up to which part it is to be trained."""


@dataclass
class Search:
    """Search for the best candidate within a time; a killed one goes on from its folder.

    folded: trains candidates and stores their answers.  arms: the methods with their settings.
    sizes: sides of pictures, px.  depth: blocks of the model.  seconds: time for the whole search.
    """

    folded: Folded
    arms: Sequence[BenchArm]
    sizes: Sequence[int]
    depth: int
    seconds: float
    report: Report

    def __post_init__(self) -> None:
        """Begin with no candidates; set how many folds each one answers: `screen`, then `full`."""
        self.rows: dict[str, Row] = {}
        self.order: list[Row] | None = None  # of `ranked`, until something is trained
        # as many folds as hold ENOUGH pictures together
        self.full = min(FOLDS, -(-ENOUGH // self.folded.held))
        self.screen = min(SCREEN, self.full)

    def run(self) -> list[Row]:
        """Search until the time is up; return all candidates, the best first.

        Those that failed, or answered too few folds to be compared, come last.
        Raises: TrainingError if nothing trains.
        """
        # A linear probe computes its features once, and would tell nothing about an epoch's cost.
        pilot = next((arm for arm in self.arms if arm.name != "linear"), self.arms[0])
        self.folded.time_sizes(pilot, self.sizes, SCREENING * self.seconds)
        self._advance((candidate, self.screen) for candidate in self._first_look())
        ranked = self.ranked()
        # The better half of the methods answers all folds.
        self._advance((row.candidate, self.full) for row in ranked[: -(-len(ranked) // 2)])
        # What comes next depends on the answers, so no more than one for each job is begun.
        while self._advance(self._next_steps(), at_most=self.folded.jobs):
            pass
        if not (ranked := self.ranked()):
            fix, want = "Mend that, or leave --methods out.", "one candidate that trains"
            got = next(row.error for row in self.rows.values())
            raise TrainingError("search", got=got, want=want, fix=fix)
        return ranked + [row for row in self.rows.values() if row not in ranked]

    def ranked(self) -> list[Row]:
        """Return the candidates that can be compared, the best first.

        Each training of a candidate leaves out a different fold of the pictures, which it answers.
        Candidates that were trained `full` times or more can be compared; before there is one,
        those that were trained most often. Finalists are those of the most trainings, where that
        is more than `full`, at further seeds: they come first, ranked by all of their answers. The
        others keep the order of `_comparable`: by the answers to folds that all of them answered.
        """
        if self.order is None:
            base = self._comparable()
            most_parts = max((row.parts for row in base), default=0)
            finalists = [row for row in base if row.parts == most_parts > self.full]
            answers = [self.folded.answers(row, most_parts) for row in finalists]
            first = [finalists[i] for i in judging.order(answers)]
            self.order = first + [row for row in base if row not in first]
        return self.order

    def _comparable(self) -> list[Row]:
        """Return the candidates that answered the most folds of the pictures, the best first.

        The `parts` of a candidate is its number of trainings so far; each left out one fold of the
        pictures, which the candidate then answered. n is the largest number of parts, but at most
        `full`. Candidates with n parts or more are returned, ranked by their first n parts.
        """
        trained = [row for row in self.rows.values() if row.parts and not row.error]
        parts = min(self.full, max((row.parts for row in trained), default=0))
        level_rows = [row for row in trained if row.parts >= parts]
        return [
            level_rows[i]
            for i in judging.order([self.folded.answers(row, parts) for row in level_rows])
        ]

    def _first_look(self) -> list[Candidate]:
        """List the first candidates: every method, at the largest affordable size of pictures.

        Each is to answer `screen` folds, for a quick comparison. The size and the epochs are chosen
        so that all of these trainings together take at most the share SCREENING of the time.
        """
        train = self.folded.trained
        steps = -(-train // self.folded.start.training.batch_size)
        epochs = min(max(-(-FIRST_STEPS // steps), FEWEST_EPOCHS), FIRST_EPOCHS)

        def takes(size: int, epochs: int) -> float:
            part_seconds = self.folded.costs[size].of(train, self.folded.held, epochs)
            return len(self.arms) * self.screen * part_seconds

        affordable = [s for s in self.folded.costs if takes(s, epochs) < SCREENING * self.seconds]
        size = max(affordable, default=min(self.folded.costs))
        while epochs > 1 and takes(size, epochs) > SCREENING * self.seconds:
            epochs -= 1
        start = self.folded.start.changed(size=size, epochs=epochs)
        return [(arm.name, arm.settings.into(start)) for arm in self.arms]

    def _next_steps(self) -> Iterator[Move]:
        """Yield (candidate, its total number of trainings), the most promising first.

        A training leaves out one fold of the pictures, at one seed. The candidate is a new one that
        differs from a good one in a setting, or one that has not answered all folds yet, or a
        finalist, which gets one more seed. In the last third of the time finalists come first.
        """
        ranked = self.ranked()
        # Neighbours first, then candidates that have not answered all folds yet.
        exploring = [(c, self.full) for c in self._neighbours(ranked)]
        exploring += [(r.candidate, self.full) for r in self.rows.values()]
        level = [row for row in self._comparable() if row.parts >= self.full]
        finalists = [row for row in level[:FINALISTS] if not self._may_give_up(row)]
        # One more seed for the finalists that have the fewest.
        target = min((row.parts for row in finalists), default=0) + self.full
        target = min(target, REPEATS * FOLDS)
        confirming = [(row.candidate, target) for row in finalists if len(finalists) > 1]
        early = self.folded.spent < EXPLORING * self.seconds
        # Late in the search a surer choice is worth more than another candidate.
        yield from exploring + confirming if early else confirming + exploring

    def _neighbours(self, ranked: Sequence[Row]) -> Iterator[Candidate]:
        """Yield candidates that differ in one setting from a trained one, its neighbours.

        ranked: the trained candidates, the best first. Neighbours of the best candidate of each
        method come first, then those of every candidate. A neighbour has a lower or higher rate,
        twice the epochs, twice the adapted blocks, or the next larger or smaller size of pictures.
        """
        best: dict[str, Row] = {}
        for row in ranked:
            # rows are ranked, so the first one of a method is its best
            best.setdefault(row.name, row)
        for row in (*best.values(), *ranked):
            experiment = row.experiment
            rate = experiment.training.lr
            for neighbour_rate in searching.extended([rate], [rate], RATE_REACH):
                yield row.name, experiment.changed(lr=neighbour_rate)
            if 2 * experiment.training.epochs <= MOST_EPOCHS:
                yield row.name, experiment.changed(epochs=2 * experiment.training.epochs)
            blocks = experiment.adapted.last_blocks
            if blocks and blocks < self.depth:
                yield row.name, experiment.changed(last_blocks=min(2 * blocks, self.depth))
            sizes = sorted(self.folded.costs)
            position = sizes.index(experiment.adapted.size or sizes[0])
            for size in (*sizes[position + 1 : position + 2], *sizes[:position][-1:]):
                yield row.name, experiment.changed(size=size)

    def _advance(self, moves: Iterable[Move], at_most: int | None = None) -> bool:
        """Train candidates, as many at a time as there are jobs; return True if any was trained.

        moves: pairs (candidate, its total number of trainings, those it has had included); each
        training leaves out one fold of the pictures, at one seed. A candidate that falls clearly
        behind the leader stops early; one for which there is no time is skipped. at_most: how many
        candidates may be started; None = all.
        """
        waiting, working, begun = iter(moves), list[Move](), 0
        while True:
            while len(working) < self.folded.jobs and begun != at_most:
                if (move := self._next_to_begin(waiting, working)) is None:
                    break
                working.append(move)
                begun += 1
            if not working:
                return begun > 0
            rows = [self._row_of(*candidate) for candidate, _ in working]
            for row in self.folded.answer(rows):
                self.rows[row.experiment.key] = row
            # new answers: the ranking is computed anew when it is next asked for
            self.order = None
            ended = [move for move in working if not self._goes_on(*move)]
            working = [move for move in working if move not in ended]
            for candidate, _ in ended:
                self._report_end(*candidate)

    def _next_to_begin(self, waiting: Iterator[Move], working: Sequence[Move]) -> Move | None:
        """Return the next candidate to train: the first with trainings to do and time for them.

        waiting: pairs (candidate, its total number of trainings); the result and the pairs before
        it are taken off. working: the pairs in training now; their candidates are not started
        again. Returns a pair, None if none is left. If nothing was trained yet, the candidate gets
        fewer epochs or a single training where the time is too short.
        """
        for (name, experiment), parts in waiting:
            if any((name, experiment) == candidate for candidate, _ in working):
                continue
            # Without one candidate there is no result: the first is shortened, never refused.
            if not working and not any(row.parts for row in self.rows.values()):
                experiment = self._shorten_first(name, experiment)
                parts = parts if self._fits(name, experiment, parts) else 1
            elif not self._fits(name, experiment, parts):
                continue
            if self._goes_on((name, experiment), parts):
                return (name, experiment), parts
        return None

    def _goes_on(self, candidate: Candidate, parts: int) -> bool:
        """Decide whether a candidate is to be trained once more, with its next fold left out.

        candidate: its method's name and its settings. parts: the number of trainings at which it is
        done. The first `screen` trainings, a quick comparison of all methods, are made unless one
        fails; after them a candidate that is clearly behind the leader is given up.
        """
        row = self._row_of(*candidate)
        if row.error or row.parts >= parts:
            return False
        return row.parts < self.screen or not self._may_give_up(row)

    def _report_end(self, name: str, experiment: Experiment) -> None:
        """Report a candidate's result, and how much of the time has passed, as a line of progress.

        name, experiment: the candidate's method and all of its settings.
        """
        elapsed, total = map(numbers.seconds, (self.folded.spent, self.seconds))
        line = f"{name}, {describe_settings(experiment)}: "
        line += _describe_result(self._row_of(name, experiment))
        self.report(f"{line}; {elapsed} of {total} gone.")

    def _may_give_up(self, row: Row) -> bool:
        """Decide whether a candidate is clearly behind the leader, so that it may be given up.

        row: the candidate. It is compared with the leader by the same number of trainings of both:
        the temperature that divides a candidate's logits is fitted to all answers that are read.
        """
        ranked = self.ranked()
        leader = ranked[0] if ranked else row
        level = min(row.parts, leader.parts)
        if leader is row or not level:
            return False
        return judging.behind(*(self.folded.answers(r, level) for r in (row, leader)))

    def _row_of(self, name: str, experiment: Experiment) -> Row:
        """Return the results of a candidate so far; an empty row if it was not trained yet."""
        return self.rows.get(experiment.key, Row(name, experiment))

    def _fits(self, name: str, experiment: Experiment, parts: int) -> bool:
        """Decide whether there is time to train a candidate, and then the final choice.

        name, experiment: the candidate's method and settings. parts: the total number of trainings
        that it is to have; only those that it has not had yet take time. The final choice is
        trained on all pictures and scored on the test part.
        """
        remaining_parts = range(self._row_of(name, experiment).parts, parts)
        part_seconds = self.folded.takes(name, experiment, remaining_parts)
        leaders = [row.candidate for row in self.ranked()[:1]]
        # The last fit may be of this candidate, or of the leader.
        last_seconds = max(self.folded.last_fit(*c) for c in [(name, experiment), *leaders])
        return self.folded.spent + part_seconds + last_seconds < self.seconds

    def _shorten_first(self, name: str, experiment: Experiment) -> Experiment:
        """Return the settings of the first candidate, with fewer epochs if the time is too short.

        name, experiment: its method and settings. The remaining time has to suffice for two
        trainings: one on all folds but one, and the final one on all pictures. However little there
        is, the candidate gets one epoch, so that the search has a result.
        """
        requested = experiment.training.epochs
        one_epoch, two_epochs = (
            self.folded.takes(name, experiment.changed(epochs=epochs), range(1))
            for epochs in (1, 2)
        )
        per_epoch, overhead = two_epochs - one_epoch, one_epoch - (two_epochs - one_epoch)
        # An epoch of the last fit takes as much longer as it has more pictures.
        ratio = len(self.folded.labels) / self.folded.trained
        available = self.seconds - self.folded.spent - overhead
        available -= self.folded.last_fit(name, experiment.changed(epochs=1)) - ratio * per_epoch
        of_both = (1 + ratio) * per_epoch
        epochs = max(1, min(requested, int(available / of_both))) if of_both > 0 else requested
        if epochs < requested:
            seconds = numbers.seconds(per_epoch)
            self.report(f"The first candidate gets {epochs} of {requested} epochs of {seconds}.")
        return experiment.changed(epochs=epochs)


def _describe_result(row: Row) -> str:
    """Describe a candidate's score on held-out pictures, or its error, for a line of progress.

    row: the candidate with its answers so far. Returns for example "93.1 % on 400 held-out
    pictures".
    """
    if row.answers is None or row.error:
        return f"FAILED, {row.error}"
    share = numbers.percent(row.val[measure(row.val)])
    return f"{share} on {row.answers.pictures:,} held-out pictures"
