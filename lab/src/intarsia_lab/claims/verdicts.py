"""The verdict on a figure, by every bar that it ever had and by seeds that nobody had seen."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from intarsia.reports.sheet import deviation
from intarsia.reports.statistics import ALPHA, t_interval

from ..kit import TIMED, Design, Result, Study
from .bars import Line, of_claim
from .designs import COMPARISONS, DESIGNS
from .standing import CHECK, OWN_REGIME, WITHDRAWN, class_of

NOT_REPRODUCED = "not reproduced at this scale"
DECIDED = ("holds", "fails", NOT_REPRODUCED)
WORDS = (*DECIDED, "not decided", "void", "withdrawn", "not run")
LATER = 0.01  # in so many claims may any look after the first err, on both sides together


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
    does so by every bar that its statistic ever had. It fails in the paper's own regime alone. A
    headline decides nothing where its design lacks something, see `lacking`.

    A *look* is a draw of fresh seeds after others with another word: the second look and later ones
    are judged by a wider interval, see `level_of`.
    """
    if study.key in WITHDRAWN:
        return Standing("withdrawn", WITHDRAWN[study.key])
    design = design_of(study)
    if failure := study.failure(result) or (design.failure(result.table) if design else ""):
        return Standing("void", failure)
    fresh = _evidence(study, result, seeds, of_claim(lines, study.key, "run"))
    if isinstance(fresh, Standing):
        return fresh
    look, first_word = fresh.look, study.word(fresh.result)
    judged = _at_look(study, fresh.result, look)
    word, reason = _by_bars(study, judged, lines)
    widened = first_word != "not decided" and study.word(judged) == "not decided"
    if look > 1 and widened:
        reason = f"At 95 % it {first_word}; the target lies inside the wider interval."
    # a check, and what was published for data of this very kind, fail here as in the paper
    own_scale = class_of(study.key) == CHECK or study.key in OWN_REGIME
    if word == "fails" and not own_scale:
        word, reason = NOT_REPRODUCED, "Model, length, data or machine are not the paper's."
    lacks = lacking(study, result) if word in DECIDED else []
    if lacks:
        verb = "is not reproduced" if word == NOT_REPRODUCED else word
        word, reason = "not decided", f"By its interval it {verb}; it has {', '.join(lacks)}."
    at_level = f"As look {look} it is judged at {100 * level_of(look):.2f} %. " if look > 1 else ""
    return Standing(word, f"{fresh.sentence}{at_level}{reason}".strip())


def interval_of(
    study: Study, result: Result, seeds: Sequence[int], lines: Sequence[Line]
) -> tuple[float, float]:
    """Return the interval that decides: of fresh seeds alone, at the level of its look.

    It is the result's own where nothing of it is new, see `standing_of` for the arguments.
    """
    fresh = _evidence(study, result, seeds, of_claim(lines, study.key, "run"))
    if isinstance(fresh, Standing):
        return result.interval
    return _at_look(study, fresh.result, fresh.look).interval


# a phrase of a reason, and the few words that stand next to the verdict; the first one counts
BRIEFLY = {
    "Its bar was moved": "bar moved",
    "Its seeds were seen": "seeds seen",
    "An earlier run of the same seeds": "a rerun changed the word",
    "no arm that must lose": "no arm that must lose",
    "no strong cheap arm": "no strong cheap arm",
    "no trivial arm": "no trivial arm",
    "an interval that leaves out": "test items not in its interval",
    "no rate that each arm chose": "one rate for all arms",
    "Only the worst of its comparisons": "no interval of all comparisons",
    "inside the wider interval": "inside the interval of a later look",
    "A single value": "a single value",
    "The figure, the worst of several": "the worst of several",
    "The target lies inside": "bar inside the interval",
    "No rate of its own": "no rate of its own",
    "control failed": "control failed",
}


def briefly(reason: str) -> str:
    """Return the reason of a verdict in a few words; "" for one that has none."""
    return next((words for phrase, words in BRIEFLY.items() if phrase in reason), "")


class _Evidence(NamedTuple):
    """The part of a result that no earlier design had, in words, too, and which look it is."""

    result: Result
    sentence: str
    look: int


def _evidence(
    study: Study, result: Result, seeds: Sequence[int], runs: Sequence[Line]
) -> _Evidence | Standing:
    """Return what of a result is new; a verdict where nothing is.  runs: of the claim, so far."""
    values = list(result.values)
    first_run = next((n for n, run in enumerate(runs) if run["values"] == values), len(runs))
    earlier = runs[:first_run]
    bound = runs[first_run]["bound"] if first_run < len(runs) else study.bound
    # a time is measured again by every run, whatever the number of the draw
    timed = study.control is TIMED
    question = (study.baseline, bound, sorted(seeds))
    other_designs = [
        r for r in earlier if timed or (r["statistic"], r["bound"], sorted(r["seeds"])) != question
    ]
    words = {_judged(study, bound, _of_run(run)) for run in earlier if run not in other_designs}
    sentence = ""
    # values of seeds that another design had are known: the rest alone is new
    spent = set[int]() if timed else {seed for run in other_designs for seed in run["seeds"]}
    if spent:
        fresh = _of_seeds(result, seeds, [seed for seed in seeds if seed not in spent])
        if fresh is None:
            reason = "Its seeds were seen by an earlier design of the claim; fresh ones decide."
            return Standing("not decided", reason)
        result, sentence = fresh, _said(fresh)
    if words - {_judged(study, bound, result)}:
        reason = "An earlier run of the same seeds had another verdict; fresh ones decide."
        return Standing("not decided", reason)
    return _Evidence(result, sentence, _look(study, result, other_designs))


def design_of(study: Study) -> Design | None:
    """Return the design of a headline that counts as evidence; None for other claims."""
    return DESIGNS.get(study.key) if study.system and class_of(study.key) != CHECK else None


def lacking(study: Study, result: Result) -> list[str]:
    """Return what a headline does not have of what the rules want, in words; none if all is there.

    A rival that wins in its table has to be named in its sentence.
    """
    design = design_of(study)
    if design is None:
        return []
    lacks = design.lacks(result.table, study.rates)
    winner = design.winner(result.table)
    named = winner is None or winner.name.casefold() in study.sentence.casefold()
    if winner is not None and winner != design.ours and not named:
        lacks.append(f"no word in its sentence on {winner.name}, which wins")
    return lacks


def level_of(look: int) -> float:
    """Return the level of the interval that decides at a claim's first, second, ... look.

    It is 95 % at the first. Any later look that had to be fresh, since the ones before had another
    word, errs in LATER / (look (look - 1)) of claims: all of them together in LATER at most.
    """
    return 1 - (ALPHA if look == 1 else LATER / (look * (look - 1)))


def _look(study: Study, result: Result, earlier: Sequence[Line]) -> int:
    """Return which look a result is: 1, and one more for each earlier draw with another word."""
    word = study.word(result)
    # a draw that had this word before takes no further chance
    chances = [run for run in earlier if _judged(study, run["bound"], _of_run(run)) != word]
    return 1 + len({tuple(run["values"]) for run in chances})


def _at_look(study: Study, result: Result, look: int) -> Result:
    """Return a result with the interval that decides at a look.

    Of a claim that is judged by the worst of several comparisons, older records have the worst one
    alone: no end of its interval tells then that the others hold.
    """
    from scipy.stats import t

    count, level = COMPARISONS.get(study.key, 1), level_of(look)
    low, high = result.interval
    alone = math.isfinite(low) and _is_student(result)
    if not math.isfinite(low) or (look == 1 and not (alone and count > 1)):
        return result
    # Student's quantile at that level; of another interval the same ratio of quantiles
    if alone:
        low, high = t_interval(result.values, 1 - (1 - level) / count)
        if count > 1:
            low, high = (low, math.inf) if study.sense == "<=" else (-math.inf, high)
    else:
        freedom = max(1, len(result.values) - 1)
        wider = float(t.ppf((1 + level) / 2, freedom) / t.ppf(1 - ALPHA / 2, freedom))
        low, high = (result.got - wider * (result.got - end) for end in (low, high))
    return dataclasses.replace(result, items=(low, high))


def _by_bars(study: Study, result: Result, lines: Sequence[Line]) -> Standing:
    """Return the verdict by every bar that the claim's statistic ever had, and by today's."""
    bounds = [
        f"{bar['sense']} {bar['value']:g}"
        for bar in of_claim(lines, study.key, "bar")
        if (bar["statistic"], bar["sense"]) == (study.baseline, study.sense)
    ]
    bounds = list(dict.fromkeys([*bounds, study.bound]))
    words = {bound: _judged(study, bound, result) for bound in bounds}
    one_sided = math.inf in map(abs, result.interval) and len(result.values) > 1
    if one_sided and set(words.values()) == {"not decided"}:
        reason = "Only the worst of its comparisons was stored, with no interval of all."
        return Standing("not decided", reason)
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


def _is_student(result: Result) -> bool:
    """Return whether a result's interval is Student's, over its values alone."""
    return len(result.values) > 1 and all(
        map(math.isclose, result.interval, t_interval(result.values))
    )


def _of_seeds(result: Result, seeds: Sequence[int], fresh_seeds: Sequence[int]) -> Result | None:
    """Return the result of some of its seeds alone; of items only that of all seeds is known."""
    if len(fresh_seeds) == len(seeds) and not _is_student(result):
        return result
    if len(fresh_seeds) < 2 or len(result.values) != len(seeds) or not _is_student(result):
        return None
    values = tuple(v for v, seed in zip(result.values, seeds, strict=True) if seed in fresh_seeds)
    return dataclasses.replace(
        result, got=statistics.mean(values), spread=deviation(values), values=values, items=None
    )
