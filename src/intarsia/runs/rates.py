"""Find a learning rate for each method of a comparison, on validation parts.

One grid for all methods, so that each has as many trials; it grows for all while an edge of it is
the best for one. The draws of the search are at seeds that no run of the comparison has, and one
rate of a method holds for all seeds. No trial looks at a test part.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice, product
from pathlib import Path
from typing import Any

from ..core.checks import RATE_REACH, rate_grid
from ..core.errors import ConfigError
from ..core.store import Store
from ..data.corpora import is_text
from ..reports import numbers
from ..reports.runs.reading import measure
from . import searching
from .experiment import Experiment
from .matrix import PlannedRun, Report
from .one_run import run, shape_of, shared_in
from .own_rates import converges
from .pool import Trial, TrialEnd, refuse_failed, run_told

RATES = (1e-3, 3e-3, 1e-2)
"""The grid to begin with."""
FIRST_SEED = 100  # of the draws
DRAWS, MOST_DRAWS = 2, 3  # of pictures: in one draw alone a rate may be good by chance
ENOUGH = 150  # pictures of a validation part; with fewer there are MOST_DRAWS
FOLDER = "rates"  # of the trials, below the comparison's


@dataclass(frozen=True)
class RateSearch:
    """The rates that every method of a comparison tries, and how the trials are carried out.

    rates: to begin with.  reach: the lowest and the highest rate that the grid may grow to.
    jobs: trials at a time.  threads: number of torch threads in each.  running: other fields of
    `Running`. ray: on a Ray cluster.

    Raises: ConfigError on a grid that cannot be.
    """

    rates: Sequence[float] = RATES
    reach: tuple[float, float] = RATE_REACH
    jobs: int = 1
    threads: int | None = None
    running: Mapping[str, Any] = field(default_factory=lambda: dict[str, Any]())
    ray: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", rate_grid("rates", self.rates))

    def find(
        self, runs: Sequence[PlannedRun], out: Path, report: Report, fixed: Collection[str] = ()
    ) -> list[PlannedRun]:
        """Search each method's learning rate on validation parts; return the runs with the rates.

        Each method tries every rate at several seeds ("draws"); its score at a rate is the mean
        over the draws, averaged with the neighbouring rates. out: folder that stores the scores, so
        that a stopped search can resume. fixed: methods that keep their rate.
        Raises: ConfigError for a run without a validation part, and for finished runs of another
        comparison in their folders; TrainingError if all trials of a method failed.
        """
        # one experiment stands for all seeds of a method: the search has seeds of its own
        # a probe that is fitted to convergence has no rate
        fixed = {*fixed, *(r.method for r in runs if converges(r.experiment))}
        bases = {r.method: r.experiment for r in runs if r.method not in fixed}
        if not bases:
            return list(runs)
        for r in runs:
            _check_validation(r.experiment)
            # refuses folders of another comparison now; the rate may differ, since it is searched
            r.finished(but=() if r.method in fixed else ("lr",))
        run_seeds = {r.experiment.training.seed for r in runs}
        # no run of the comparison is scored on a draw that its rate was chosen by
        seeds = list(islice((s for s in count(FIRST_SEED) if s not in run_seeds), MOST_DRAWS))
        store = Store(out, searching.SEARCHES)
        for key in [key for key, row in store.rows.items() if "error" in row]:
            del store.rows[key]  # it is tried once more, and once only
        trials = _Trials(bases, out / FOLDER, store, self, report)
        # the first draw shows the size of the validation part, and so how many draws are needed
        trials.train(self.rates, seeds[:1])
        searches = trials.search_wider(self.rates, seeds[: trials.draws(seeds[0])])
        shutil.rmtree(out / FOLDER, ignore_errors=True)  # of trials that failed
        # the shared pixels and tokens of the search are not needed any more
        shared_in.cache_clear()
        failed = [
            f"{method}: {search['error']}"
            for method, search in searches.items()
            if "error" in search
        ]
        refuse_failed(failed, len(searches))
        return [
            r.at_rate(searches[r.method]["rate"], searches[r.method]) if r.method in searches else r
            for r in runs
        ]


@dataclass(frozen=True)
class _Trials:
    """Trials of a search; bases: the experiment of each method, but for its rate and seed."""

    bases: Mapping[str, Experiment]
    out: Path
    store: Store
    settings: RateSearch
    report: Report

    def of(self, method: str, rates: Sequence[float], seeds: Sequence[int]) -> list[Experiment]:
        """Return the experiments of one method: every rate at every seed."""
        base = self.bases[method]
        return [base.changed(lr=rate, seed=seed) for rate, seed in product(rates, seeds)]

    def train(self, rates: Sequence[float], seeds: Sequence[int]) -> None:
        """Train every method at these rates and seeds, but for results that are stored already."""
        trials = [self._trial(e) for m in self.bases for e in self.of(m, rates, seeds)]
        # one after the other they share their data in memory with the trials of later rounds
        local = "here" if self.settings.jobs == 1 else "processes"
        pool_options: dict[str, Any] = {
            "jobs": self.settings.jobs,
            "executor": "ray" if self.settings.ray else local,
        }
        pool_options |= {
            "threads": self.settings.threads,
            "report": self.report,
            "describe": _score_in_words,
        }

        def run_missing(missing: Sequence[Trial], done: Callable[[TrialEnd], None]) -> None:
            """Run trials; call `done` with the result of each, and remove its run folder."""

            def ended(end: TrialEnd) -> None:
                """Pass on a trial's result, and remove its run folder unless it failed."""
                done(end)
                if end.result is not None:  # its score is all that is wanted of it
                    shutil.rmtree(end.trial.inputs["folder"], ignore_errors=True)

            if missing:
                self.report(f"Searching learning rates on validation: {len(missing)} trials.")
            run_told(missing, run, done=ended, **pool_options)

        searching.carry_missing(trials, self.store, run_missing, again=False)

    def _trial(self, experiment: Experiment) -> Trial:
        """Return the training of an experiment as a trial, scored on the validation part alone."""
        key = experiment.key
        inputs: dict[str, Any] = {
            "key": key,
            "experiment": experiment.flat(),
            "folder": str((self.out / key).absolute()),
            "shared": None,
            "test": False,
            "evaluate_every": int(
                experiment.recipe.select == "val" or experiment.recipe.patience is not None
            ),
            "running": {k: v for k, v in self.settings.running.items() if k != "trackers"},
        }
        name = (
            f"{experiment.label}, rate {experiment.training.lr:g}, seed {experiment.training.seed}"
        )
        shape = shape_of(experiment, test=False, running=inputs["running"])
        return Trial(name, inputs, kind=experiment.label, stack=shape)

    def ends(self, experiments: Sequence[Experiment]) -> list[Mapping[str, Any]]:
        """Return the kept ends of trials."""
        return [self.store[experiment.key] for experiment in experiments]

    def draws(self, seed: int) -> int:
        """Return at how many seeds each rate is tried: more where the validation part is small."""
        if any(is_text(base.pictures.data) for base in self.bases.values()):
            return 1
        return MOST_DRAWS if self._size([seed]) < ENOUGH else DRAWS

    def _size(self, seeds: Sequence[int]) -> int:
        """Return the size of a draw's validation part, 0 if every trial failed."""
        rates = self.settings.rates
        ends = [end for m in self.bases for end in self.ends(self.of(m, rates, seeds))]
        return next((end["n"] for end in ends if "n" in end), 0)

    def search_wider(
        self, rates: Sequence[float], seeds: Sequence[int]
    ) -> dict[str, dict[str, Any]]:
        """Train all trials, adding rates while the best is at an edge; return the searches."""
        while True:
            self.train(rates, seeds)
            scores = {m: self._scores(m, rates, seeds) for m in self.bases}
            winners = [
                searching.winning_edge(searching.smoothed(method_scores, rates))
                for method_scores in scores.values()
                if method_scores
            ]
            # the grid grows for all methods when one of them is best at an edge
            wider = searching.extended(rates, winners, self.settings.reach)
            if wider == tuple(rates):
                break
            added = " and ".join(f"{rate:g}" for rate in wider if rate not in rates)
            self.report(f"A method's best rate is at an edge of the grid; tried as well: {added}.")
            rates = wider
        return {m: self._described(m, scores[m], rates, seeds) for m in self.bases}

    def _scores(
        self, method: str, rates: Sequence[float], seeds: Sequence[int]
    ) -> dict[float, searching.Score]:
        """Return the validation score of each rate for a method, the mean over the seeds."""
        trials = self.of(method, rates, seeds)
        by_rate = searching.scores_by(trials, self.ends(trials), ["lr"])
        return {rate: score for (rate,), score in by_rate.items()}

    def _described(
        self,
        method: str,
        scores: Mapping[float, searching.Score],
        rates: Sequence[float],
        seeds: Sequence[int],
    ) -> dict[str, Any]:
        """Return what a run's record says of its search: the best rate, and all scores."""
        ends = self.ends(self.of(method, rates, seeds))
        if not scores:
            return {"error": ends[0]["error"]}
        # all trials of a method have the same measure, so that any of them names it
        val = next(end["val"] for end in ends if "val" in end)
        # a rate counts with its neighbours, so that a lucky trial does not win
        smooth = searching.smoothed(scores, rates)
        best = searching.best_of(smooth)
        self.report(f"{self.bases[method].label}: rate {best:g}, the best of {len(rates)}.")
        return {
            "rate": best,
            "rates": list(rates),
            "scores": [scores[rate][0] if rate in scores else None for rate in rates],
            "measure": "perplexity" if "perplexity" in val else measure(val),
            "draws": len(seeds),
            "samples": self._size(seeds),
            "limit": searching.winning_edge(smooth) is not None,
        }


def _check_validation(experiment: Experiment) -> None:
    if experiment.pictures.val == 0:
        want, fix = "a validation part", "Leave --val out, or fix one rate for all: --lr 3e-3."
        raise ConfigError("search for learning rates", got="--val 0", want=want, fix=fix)


def _score_in_words(result: Mapping[str, Any]) -> str:
    """Describe the validation score of a trial in a few words, or why it is unusable."""
    scores = result["results"]["val"]
    if wrong := searching.unusable(scores, "val"):
        return f"FAILED, {wrong}"
    if "perplexity" in scores:
        return f"perplexity {scores['perplexity']:.2f} on validation"
    return f"{numbers.percent(searching.score_of(scores))} on validation"
