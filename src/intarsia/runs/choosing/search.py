"""Search under a time limit: probes on every backbone, then adapters where probes are best.

The training pictures are dealt into five folds. A candidate is trained without a fold and answers
it; as many folds take their turn as give enough answers, so that few pictures are all used
(cross-validation) and many are held out once. First a converged probe on each backbone at each
size, which takes seconds and is the first answer; then adapters on the two best backbones, all on
two folds, the better half on all. Then neighbours of the best of each method join, and a candidate
clearly behind the best adapter after two folds is given up. At the end the best other method is
trained with the settings of the choice, so that the two differ in nothing else. What a part would
take is estimated before it begins, from the times measured so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ...core.checks import RATE_REACH
from ...core.errors import IntarsiaError, TrainingError
from ...reports import numbers
from ...reports.runs.reading import measure
from .. import searching
from ..experiment import Experiment
from . import blending, judging
from .folded import Candidate, Folded, Row, describe_settings, place_of
from .views import PROBE, PictureView

SCREEN = 2  # folds of the first look at a candidate
FIRST_STEPS = 60  # optimiser steps of the first look, within these epochs
FEWEST_EPOCHS, FIRST_EPOCHS, MOST_EPOCHS = 8, 20, 160
PROBING = 0.6  # of the minutes, for probes at further sizes
SCREENING = 0.4  # of the minutes, for the first look at all methods
EXPLORING = 0.85  # of the minutes, before the other method gets the choice's settings
PLACES = 2  # backbones, or sizes of one, on which adapters are trained
SEEDS = 3  # of the best adapter, as members of a blend
FINISHING = 3.0  # seconds of the table and the page

Report = Callable[[str], None]
Move = tuple[Candidate, int]
"""A candidate, and up to which part it is to be trained."""


def best_probe(rows: Sequence[Row]) -> Row | None:
    """Return the probe with the most right answers to the held-out pictures; None = no probe."""
    probes = [(row, row.answers) for row in rows if row.name == PROBE and row.answers is not None]
    if not probes:
        return None
    answers = [held_out for _, held_out in probes]
    return probes[blending.best_probe(answers, range(len(probes)))][0]


@dataclass
class Search:
    """Search for the best candidate within a time; a killed one resumes from its folder.

    folded: trains candidates and stores their answers.  views: backbones at their picture sizes,
    the smallest first.  seconds: time for the whole search.  one: the choice is to be one model.
    """

    folded: Folded
    views: Sequence[PictureView]
    seconds: float
    report: Report
    one: bool = False

    def __post_init__(self) -> None:
        """Begin with no candidates; set how many folds each one answers: `screen`, then `full`."""
        self.rows: dict[str, Row] = {}
        self.order: list[Row] | None = None  # of `ranked`, until something is trained
        self.team: list[Row] | None = None  # of `_members`, until something is trained
        self.full = self.folded.full
        self.screen = min(SCREEN, self.full)
        self.places: list[PictureView] = []
        self.began = 0.0  # seconds before the search, of reading the pictures

    def run(self) -> list[Row]:
        """Search until the time is up; return all candidates, the best first.

        Those that failed, or answered too few folds to be compared, come last.
        Raises: TrainingError if nothing trains.
        """
        self.began = self.folded.spent
        self._fit_probes()
        self.places = self._best_places()
        self._advance((candidate, self.screen) for candidate in self._first_look())
        adapters = [row for row in self.rows.values() if row.name != PROBE and not row.error]
        level = judging.order([row.answers for row in adapters if row.answers is not None])
        # The better half of the adapters answers all folds.
        better = [adapters[i] for i in level[: -(-len(level) // 2)]]
        self._advance((row.candidate, self.full) for row in better)
        # What comes next depends on the answers, so no more than one for each job is begun.
        while self._advance(self._next_steps(), at_most=self.folded.jobs):
            pass
        ranked = self.ranked()
        return ranked + [row for row in self.rows.values() if row not in ranked]

    def _fit_probes(self) -> None:
        """Fit a probe on each view, as far as its time allows, and report the first good answer."""
        errors: list[str] = []
        for view in self.views:
            if self.rows and not self._affords_probe(view):
                self.report(f"{view.name}: left out, its features would take too long.")
                continue
            before = self.folded.spent
            try:
                row = self.folded.probe(view)
            except IntarsiaError as error:
                if len(self.views) == 1:
                    raise
                errors.append(f"{view.name}: {error}")
                self.report(f"{view.name}: FAILED, {error}")
                continue
            self.rows[row.experiment.key], self.order = row, None
            seconds = numbers.seconds(self.folded.spent - before)
            note = "" if len(self.rows) > 1 else "; a first answer, better ones may follow"
            self.report(f"Probe on {view.name}: {_describe_result(row)}, in {seconds}{note}.")
        if not self.rows:
            got = errors[0] if errors else "none"
            want, fix = "one candidate that trains", "Mend that, or name another --model."
            raise TrainingError("search", got=got, want=want, fix=fix)

    def _affords_probe(self, view: PictureView) -> bool:
        """Decide whether the features of a view fit into the probes' share of the time."""
        costs = self.folded.costs
        probed = [p for p in costs if p.model == view.model] or list(costs)
        nearest = max(probed, key=lambda p: p.size)
        image_seconds = costs[nearest].once * (view.size / max(nearest.size, 1)) ** 2
        images = len(self.folded.labels)
        last = image_seconds * (images + len(self.folded.splits.test)) + FINISHING
        begun, seconds_left = self.folded.spent - self.began, self.seconds - self.began
        fits = self.folded.spent + image_seconds * images + last < self.seconds
        return fits and begun + image_seconds * images < PROBING * seconds_left

    def _best_places(self) -> list[PictureView]:
        """Return the views on which adapters are trained, the best first.

        Sizes at which an adapter would not answer all folds in its share of the time are passed
        over where there are smaller ones.
        """
        view_at = {(view.model, view.size): view for view in self.views}
        ranked = [view_at[place_of(row.experiment)] for row in self.ranked()]
        smallest = {view.model: view for view in reversed(self.views)}
        ranked = [v for v in ranked if v == smallest[v.model] or self._affords_adapter(v)]
        best: dict[str, PictureView] = {}
        for view in ranked:
            best.setdefault(view.model, view)
        places = list(best.values()) if len(best) > 1 else ranked
        return places[:PLACES]

    def _affords_adapter(self, view: PictureView) -> bool:
        """Decide whether a short training on a view, on all folds, fits into the first look."""
        if not view.arms:
            return True
        start = view.start.changed(epochs=FEWEST_EPOCHS)
        candidate = view.arms[0].name, view.arms[0].settings.into(start)
        return self.folded.takes(*candidate, range(self.full)) < SCREENING * self.seconds

    def ranked(self) -> list[Row]:
        """Return the candidates that can be compared, the best first.

        They are those that answered all folds that take their turn.
        """
        if self.order is None:
            level = [row for row in self.rows.values() if row.parts >= self.full and not row.error]
            order = judging.order([self.folded.answers(row, self.full) for row in level])
            self.order = [level[i] for i in order]
        return self.order

    def chosen(self) -> tuple[blending.Blend, judging.HeldOutAnswers]:
        """Choose among `ranked`: a blend or one candidate, with honest answers of this choice.

        A blend is taken only if its last fits are expected to end within the time.
        """
        answers = [row.answers for row in self.ranked() if row.answers is not None]
        last_seconds = [self.folded.last_fit(*row.candidate) for row in self.ranked()]
        seconds_left = self.seconds - self.folded.spent - FINISHING

        def affords(members: Iterable[int]) -> bool:
            return sum(last_seconds[member] for member in members) <= seconds_left

        seed, probes = self.folded.split_seed, self._probes()
        return blending.chosen(answers, seed, affords, one=self.one, probes=probes)

    def _probes(self) -> list[int]:
        """Return the positions of the converged probes in `ranked`."""
        return [i for i, row in enumerate(self.ranked()) if row.name == PROBE]

    def _members(self) -> list[Row]:
        """Return the candidates that would be trained on all pictures if time were up now."""
        if self.order is None or self.team is None:
            ranked = self.ranked()
            answers = [row.answers for row in ranked if row.answers is not None]
            choose = blending.ways(self.one, self._probes())[-1]
            self.team = [ranked[i] for i in choose(answers).members] if answers else []
        return self.team

    def _first_look(self) -> list[Candidate]:
        """List the first adapters: every method on each place.

        Each is to answer `screen` folds, for a quick comparison. The epochs are chosen so that all
        of these trainings together take at most the share SCREENING of the time, but no fewer than
        FEWEST_EPOCHS: where they do not fit, fewer methods are looked at.
        """
        steps = -(-self.folded.trained // self.folded.start.training.batch_size)
        epochs = min(max(-(-FIRST_STEPS // steps), FEWEST_EPOCHS), FIRST_EPOCHS)

        def look(epochs: int) -> list[Candidate]:
            """List the first method of every place, then every second one, and so on."""
            starts = [(view, view.start.changed(epochs=epochs)) for view in self.places]
            longest = max((len(view.arms) for view in self.places), default=0)
            return [
                (view.arms[i].name, view.arms[i].settings.into(start))
                for i in range(longest)
                for view, start in starts
                if i < len(view.arms)
            ]

        def takes(epochs: int) -> float:
            return sum(self.folded.takes(*c, range(self.screen)) for c in look(epochs))

        while epochs > FEWEST_EPOCHS and takes(epochs) > SCREENING * self.seconds:
            epochs -= 1
        return look(epochs)

    def _next_steps(self) -> Iterator[Move]:
        """Yield (candidate, its total number of trainings), the most promising first."""
        adapters = [row for row in self.ranked() if row.name != PROBE]
        exploring = [(c, self.full) for c in self._neighbours(adapters)]
        exploring += [(r.candidate, self.full) for r in self.rows.values() if r.name != PROBE]
        twins = [(c, self.full) for c in self._twins()]
        early = self.folded.spent < EXPLORING * self.seconds
        yield from exploring + twins if early else twins + exploring

    def _twins(self) -> Iterator[Candidate]:
        """Yield the best other method with the best adapter's backbone, size, epochs, depth."""
        adapters = [row for row in self.ranked() if row.name != PROBE]
        trained = [row for row in self.rows.values() if row.name != PROBE and row.answers]
        if not adapters:
            return
        best = adapters[0]
        rivals = [row for row in (*adapters, *trained) if row.name != best.name]
        if rivals:
            yield rivals[0].name, twin_of(rivals[0].experiment, best.experiment)

    def _neighbours(self, ranked: Sequence[Row]) -> Iterator[Candidate]:
        """Yield candidates that differ in one setting from a trained adapter, its neighbours."""
        for row in ranked[:1] if not self.one else ():
            first = self.folded.start.training.seed
            for seed in range(first + 1, first + SEEDS):
                keeping = {"split_seed": self.folded.split_seed}
                yield row.name, row.experiment.changed(seed=seed, **keeping)
        ranked = [row for row in ranked if self._is_first_seed(row.experiment)]
        best: dict[str, Row] = {}
        for row in ranked:
            # rows are ranked, so the first one of a method is its best
            best.setdefault(row.name, row)
        depth = {(view.model, view.size): view.depth for view in self.views}
        for row in (*best.values(), *ranked):
            experiment = row.experiment
            if 2 * experiment.training.epochs <= MOST_EPOCHS:
                yield row.name, experiment.changed(epochs=2 * experiment.training.epochs)
            rate = experiment.training.rate
            for neighbour_rate in searching.extended([rate], [rate], RATE_REACH):
                yield row.name, experiment.changed(lr=neighbour_rate)
            blocks, depth_here = experiment.adapted.last_blocks, depth[place_of(experiment)]
            if blocks and blocks < depth_here:
                wider = min(2 * blocks, depth_here)
                # with every block trained there is nothing left to compute once
                yield (
                    row.name,
                    experiment.changed(last_blocks=wider, frozen_once=wider < depth_here),
                )

    def _is_first_seed(self, experiment: Experiment) -> bool:
        """Return True for a candidate of the search's own seed."""
        return experiment.training.seed == self.folded.start.training.seed

    def _advance(self, moves: Iterable[Move], at_most: int | None = None) -> bool:
        """Train candidates, as many at a time as there are jobs; return True if any was trained."""
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
            # new answers: the ranking is computed again when it is next asked for
            self.order = self.team = None
            ended = [move for move in working if not self._goes_on(*move)]
            working = [move for move in working if move not in ended]
            for candidate, _ in ended:
                self._report_end(*candidate)

    def _next_to_begin(self, waiting: Iterator[Move], working: Sequence[Move]) -> Move | None:
        """Return the next candidate to train: the first with trainings to do and time for them."""
        for (name, experiment), parts in waiting:
            if any((name, experiment) == candidate for candidate, _ in working):
                continue
            if not self._fits(name, experiment, parts):
                continue
            if self._goes_on((name, experiment), parts):
                return (name, experiment), parts
        return None

    def _goes_on(self, candidate: Candidate, parts: int) -> bool:
        """Decide whether a candidate is to be trained once more, with its next fold left out."""
        row = self._row_of(*candidate)
        if row.error or row.parts >= parts:
            return False
        return row.parts < self.screen or not self._may_give_up(row)

    def _report_end(self, name: str, experiment: Experiment) -> None:
        """Report a candidate's result, and how much of the time has passed."""
        elapsed, total = map(numbers.seconds, (self.folded.spent, self.seconds))
        line = f"{name}, {describe_settings(experiment)}: "
        line += _describe_result(self._row_of(name, experiment))
        self.report(f"{line}; {elapsed} of {total} gone.")

    def _may_give_up(self, row: Row) -> bool:
        """Decide whether a candidate is clearly behind the best adapter, and may be given up."""
        ranked = [other for other in self.ranked() if other.name != PROBE]
        leader = ranked[0] if ranked else row
        level = min(row.parts, leader.parts)
        if leader is row or not level:
            return False
        return judging.behind(*(self.folded.answers(r, level) for r in (row, leader)))

    def _row_of(self, name: str, experiment: Experiment) -> Row:
        """Return the results of a candidate so far; an empty row if it was not trained yet."""
        return self.rows.get(experiment.key, Row(name, experiment))

    def _fits(self, name: str, experiment: Experiment, parts: int) -> bool:
        """Decide whether there is time to train a candidate, and then the final choice."""
        # parts: how many folds it is to be trained without, in all, those that are done included
        remaining_parts = range(self._row_of(name, experiment).parts, parts)
        part_seconds = self.folded.takes(name, experiment, remaining_parts)
        # The last fits may be of the present choice, or of this candidate alone; a blend of both
        # is taken if there is time.
        now = sum(self.folded.last_fit(*row.candidate) for row in self._members())
        last_seconds = FINISHING + max(now, self.folded.last_fit(name, experiment))
        return self.folded.spent + part_seconds + last_seconds < self.seconds


def twin_of(experiment: Experiment, best: Experiment) -> Experiment:
    """Return an experiment with the backbone, size, epochs, depth and seed of another one."""
    names = ("model", "size", "epochs", "last_blocks", "frozen_once", "seed", "split_seed")
    flat = best.flat()
    return experiment.changed(**{name: flat[name] for name in names}).suited()


def _describe_result(row: Row) -> str:
    """Describe a candidate's score on held-out pictures, or its error, for a line of progress."""
    if row.answers is None or row.error:
        return f"FAILED, {row.error}"
    share = numbers.percent(row.val[measure(row.val)])
    return f"{share} on {row.answers.pictures:,} held-out pictures"
