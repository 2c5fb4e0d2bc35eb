"""Arms of an experiment, carried out for every task and seed, and the result they give."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.utils.data import TensorDataset

from intarsia.reports.sheet import Sheet, Spread
from intarsia.runs.pool import Arm, Trial, TrialEnd, refuse_failed, run_told
from intarsia.train import evaluate
from intarsia.train.scores import Metrics

from .rates import ArmRate
from .study import Report, Result

S = TypeVar("S")  # of an arm
T = TypeVar("T")  # a task
R = TypeVar("R")  # what came out


def in_words(result: Any) -> str:
    """Return a result's numbers as text, each with its name if it has one.

    result: a number, a NamedTuple or a mapping of numbers, nested or not.
    """
    if isinstance(result, float | int):
        return f"{result:.4g}"
    result = result._asdict() if hasattr(result, "_asdict") else result
    return ", ".join(f"{name} {in_words(value)}" for name, value in result.items())


def class_scores(model: torch.nn.Module, rows: TensorDataset, batch_size: int = 64) -> Metrics:
    """Return the scores of a classification model: accuracy, loss and others.

    rows: inputs and labels; batch_size: of the evaluation.
    """
    scores = evaluate(model, rows, batch_size=batch_size)
    assert isinstance(scores, Metrics)
    return scores


def result_of(
    values: Sequence[float],
    rows: Iterable[Mapping[str, Any]],
    note: str = "",
    over: Callable[[Sequence[float]], float] = statistics.mean,
    rates: tuple[ArmRate, ...] = (),
) -> Result:
    """Return a study's result from one value for each seed.

    rows: of its table; note: the sentences below it; over: the figure from the values, by default
    their mean; rates: the learning rate of each arm.
    """
    values = tuple(values)
    return Result(over(values), values, tuple(rows), note, rates=rates)


def by_arm(
    arms: Mapping[str, S],
    seeds: Sequence[int],
    work: Callable[[S, int], R],
    report: Report,
    describe: Callable[[R], str] = in_words,
) -> dict[str, list[R]]:
    """Run every arm with every seed on a single task; return its results in the order of the seeds.

    arms: name -> settings; work: (settings, seed) -> result; report: receives progress lines;
    describe: a result in a few words.
    """
    named = [Arm(name, settings) for name, settings in arms.items()]
    # "" is the task: there is one alone
    sheet = each(named, seeds, lambda arm, _, seed: work(arm, seed), report, describe=describe)
    return {name: sheet.by_seed(name, "") for name in arms}


def by_seed(
    seeds: Sequence[int], work: Callable[[int], Mapping[str, R]], report: Report
) -> dict[str, list[R]]:
    """Run arms that depend on each other, all of a seed together; return results by arm.

    work: a seed -> the result of each arm; report: receives progress lines. Results are in the
    order of the seeds.
    """
    # one nameless arm does the work of a seed
    results = by_arm({"": work}, seeds, lambda run, seed: run(seed), report)[""]
    return {name: [arms[name] for arms in results] for name in results[0]}


def judge(
    results: Mapping[str, Sequence[R]],
    figure: Callable[[Mapping[str, R]], float],
    row: Callable[[str, Sequence[R]], Mapping[str, Any]],
    note: str = "",
    over: Callable[[Sequence[float]], float] = statistics.mean,
    rates: tuple[ArmRate, ...] = (),
) -> Result:
    """Return a study's result from the results of each arm, in the order of the seeds.

    figure: the results of a seed by arm -> the seed's value; row: an arm's name and results -> its
    line of the table; note: the sentences below the table; over: the figure from the values; rates:
    the learning rate of each arm.
    """
    # a seed's arms side by side, as `values_of_arm` in the next line: figures are of pairs
    seeds = zip(*results.values(), strict=True)
    values = [figure(dict(zip(results, values_of_arm, strict=True))) for values_of_arm in seeds]
    rows = [row(name, values_of_arm) for name, values_of_arm in results.items()]
    return result_of(values, rows, note, over, rates)


def row_of(head: str, columns: Mapping[str, tuple[str, str]]) -> Callable[..., dict[str, Any]]:
    """Return a `row` for `judge` that has means and spreads over seeds.

    head: title of the first column, which names the arms; columns: title -> (attribute of a result,
    "" = the result itself; format of its number).
    """

    def row(name: str, results: Sequence[Any]) -> dict[str, Any]:
        """Return an arm's line of the table."""
        values = {
            title: shown(
                [getattr(result, attribute) if attribute else result for result in results], form
            )
            for title, (attribute, form) in columns.items()
        }
        return {head: name} | values

    return row


def shown(values: Sequence[float], form: str) -> str:
    """Return the mean and spread of values as text for a table.

    form: format of a number, as ".2f".
    """
    return Spread.of(values).text(form)


def each(
    arms: Sequence[Arm[S]],
    seeds: Sequence[int],
    work: Callable[[S, T, int], R],
    report: Report,
    *,
    tasks: Sequence[T] = ("",),
    describe: Callable[[R], str] = in_words,
) -> Sheet[str, T, R]:
    """Run every arm on every task from every seed, in this process, on one thread; return a sheet.

    arms: names and settings; work: (an arm's settings, a task, a seed) -> result; report: receives
    progress lines; tasks: by default a single one without a name; describe: a result in a few
    words. The sheet has the arms' names, and reads attributes of the results.

    Raises: TrainingError when all others have run, if some failed.
    """
    results: dict[tuple[str, T, int], R] = {}

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run one arm on one task and seed, and keep its result in `results`."""
        arm, task, seed = inputs["arm"], inputs["task"], inputs["seed"]
        with threads(1):  # tiny batches: two threads cost more than they give
            # kept as it is; the pool's result is only its description in words
            result = results[arm.name, task, seed] = work(arm.settings, task, seed)
        return {"said": describe(result)}

    # seed by seed, so that a stopped run has whole pairs
    trials = [
        Trial(_title(arm, task, seed), {"arm": arm, "task": task, "seed": seed})
        for seed in seeds
        for task in tasks
        for arm in arms
    ]
    # one failed run stops no other; all failures are raised together in the end
    failed: list[str] = []

    def done(end: TrialEnd) -> None:
        """Note the error of a run that failed."""
        if end.result is None:
            failed.append(f"{end.trial.name}: {end.error}")

    run_told(
        trials,
        run,
        jobs=1,
        done=done,
        describe=lambda end: end["said"],
        report=report,
        executor="here",
    )
    refuse_failed(failed, len(trials))
    return Sheet(tuple(arm.name for arm in arms), tuple(tasks), tuple(seeds), results, getattr)


def _title(arm: Arm[Any], task: object, seed: int) -> str:
    """Return the words for a run in progress lines.  task: a name, a tuple of names, or ""."""
    words = task if isinstance(task, tuple) else (task,) if task else ()
    return ", ".join([*map(str, words), f"seed {seed}", *([arm.name] if arm.name else [])])


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads inside the context, and as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def judged(
    seeds: Iterable[int],
    cells: Callable[[int], S],
    *,
    figure: Callable[[S], float],
    rows: Callable[[int, S], Iterable[Mapping[str, Any]]],
    note: str,
) -> Result:
    """Return a study's result from experiments with arms that belong together, seed by seed.

    cells: a seed -> the results of all its arms; figure: these -> the seed's value; rows: (seed,
    results) -> lines of the table; note: the sentences below it.
    """
    by_seed = [(seed, cells(seed)) for seed in seeds]
    table = [row for seed, results in by_seed for row in rows(seed, results)]
    return result_of([figure(results) for _, results in by_seed], table, note)
