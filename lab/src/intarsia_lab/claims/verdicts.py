"""The verdict on a figure, by every bar that it ever had and by seeds that nobody had seen."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from intarsia.reports.sheet import deviation
from intarsia.reports.statistics import t_interval

from ..kit import TIMED, Result, Study
from .bars import Line, of_claim
from .standing import CHECK, OWN_REGIME, WITHDRAWN, class_of

NOT_REPRODUCED = "not reproduced at this scale"
WORDS = ("holds", "fails", NOT_REPRODUCED, "not decided", "void", "withdrawn", "not run")


class Standing(NamedTuple):
    """A verdict in one of WORDS, and its reason in a sentence."""

    word: str
    reason: str = ""


def standing_of(
    study: Study, result: Result, seeds: Sequence[int], lines: Sequence[Line]
) -> Standing:
    """Return the verdict on a stored result.

    study: its claim of today; result: of the run; seeds: of the run; lines: the ledger of bars, see
    `bars.read_bars`. A verdict that was taken back is *withdrawn*. Seeds that an earlier design had
    decide nothing, and of a rerun neither does a word that changed. A figure holds, or fails, if it
    does so by every bar that its statistic ever had. It fails in the paper's own regime alone.
    """
    if study.key in WITHDRAWN:
        return Standing("withdrawn", WITHDRAWN[study.key])
    if failure := study.failure(result):
        return Standing("void", failure)
    runs = of_claim(lines, study.key, "run")
    values = list(result.values)
    first_run = next((n for n, run in enumerate(runs) if run["values"] == values), len(runs))
    # a time is measured again by every run, whatever the number of the draw
    earlier = [] if study.control is TIMED else runs[:first_run]
    bound = runs[first_run]["bound"] if first_run < len(runs) else study.bound
    design = (study.baseline, bound, sorted(seeds))
    of_other_designs = [
        r for r in earlier if (r["statistic"], r["bound"], sorted(r["seeds"])) != design
    ]
    if of_other_designs:
        spent = {seed for run in of_other_designs for seed in run["seeds"]}
        fresh = _of_seeds(result, seeds, [seed for seed in seeds if seed not in spent])
        if fresh is None:
            reason = "Its seeds were seen by an earlier design of the claim; fresh ones decide."
            return Standing("not decided", reason)
        result = fresh
    judged_by = "" if not of_other_designs else _said(result)
    words = {_judged(study, bound, _of_run(run)) for run in earlier if run not in of_other_designs}
    if words - {_judged(study, bound, result)}:
        reason = "An earlier run of the same seeds had another verdict; fresh ones decide."
        return Standing("not decided", reason)
    word, reason = _by_bars(study, result, lines)
    if word == "fails" and class_of(study.key) != CHECK and study.key not in OWN_REGIME:
        word, reason = NOT_REPRODUCED, "Model, length, data or machine are not the paper's."
    return Standing(word, f"{judged_by}{reason}".strip())


def _by_bars(study: Study, result: Result, lines: Sequence[Line]) -> Standing:
    """Return the verdict by every bar that the claim's statistic ever had, and by today's."""
    bounds = [
        f"{bar['sense']} {bar['value']:g}"
        for bar in of_claim(lines, study.key, "bar")
        if (bar["statistic"], bar["sense"]) == (study.baseline, study.sense)
    ]
    bounds = list(dict.fromkeys([*bounds, study.bound]))
    words = {bound: _judged(study, bound, result) for bound in bounds}
    if len(set(words.values())) == 1:
        return Standing(*study.judge(result))
    parts = [f"by {bound} it is {_adjective(word)}" for bound, word in words.items()]
    return Standing("not decided", f"Its bar was moved: {', '.join(parts)}; the first one counts.")


def _said(result: Result) -> str:
    """Return what a figure is over fresh seeds alone, in a sentence."""
    low, high = result.interval
    figure = f"{result.got:.3f} [{low:.3f}, {high:.3f}]"
    return f"By its {len(result.values)} seeds that no earlier design had: {figure}. "


def _adjective(word: str) -> str:
    """Return a verdict as what a claim is."""
    return {"holds": "held", "fails": "missed"}.get(word, word)


def _judged(study: Study, bound: str, result: Result) -> str:
    """Return the word on a figure by another bound of the claim, such as ">= 1.3"."""
    sense, value = bound.split()
    return dataclasses.replace(study, sense=sense, target=float(value)).word(result)


def _of_run(run: Line) -> Result:
    """Return a run of the ledger as the result that it was; its table was not kept."""
    ends = run["interval"]
    return Result(
        run["figure"], 0.0, tuple(run["values"]), items=None if ends is None else tuple(ends)
    )


def _of_seeds(result: Result, seeds: Sequence[int], fresh_seeds: Sequence[int]) -> Result | None:
    """Return the result of some of its seeds alone."""
    if len(fresh_seeds) < 2 or len(result.values) != len(seeds):
        return None
    if not all(map(math.isclose, result.interval, t_interval(result.values))):
        return None
    values = tuple(v for v, seed in zip(result.values, seeds, strict=True) if seed in fresh_seeds)
    return dataclasses.replace(
        result, got=statistics.mean(values), spread=deviation(values), values=values, items=None
    )
