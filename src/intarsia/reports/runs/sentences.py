"""A comparison in plain sentences, and what a reader should know before believing it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import numbers
from ..sheet import Spread
from ..wording import capital, joined, method_name
from . import rates
from .grouping import Comparison, RunGroup, model_of, set_of
from .reading import FinishedRun

PART_NAMES = {"train": "training", "val": "validation", "test": "test"}
HOW_CHOSEN = {
    "last": "A run's result is that of its last epoch, whatever its scores.",
    "val": "The epoch with the best validation accuracy is the result.",
}


def title(comparison: Comparison) -> str:
    """Return the heading of a report: the methods and the data set."""
    data = set_of(comparison.runs[0])
    return f"{_methods(comparison)} on {data}" if data else _methods(comparison)


def _methods(comparison: Comparison) -> str:
    """Return the methods' names as a list in words; for more than four only their number."""
    labels = [_name(group) for group in comparison.groups]
    return capital(joined(labels)) if len(labels) <= 4 else f"{len(labels)} methods"


def _name(group: RunGroup) -> str:
    """Return a group's method as its paper writes it."""
    return method_name(group.label)


def sentences(comparison: Comparison) -> list[str]:
    """Return the report's sentences: the run, its data, and its result."""
    lines = [_task_sentence(comparison), *choices(comparison.runs)]
    lines += [choice_sentence(comparison)] if len(comparison.groups) > 1 else []
    lines.append(_result_sentence(comparison))
    lines += differences(comparison)
    if comparison.baseline is not None and comparison.best is not comparison.baseline:
        lines.append(_cost_sentence(comparison.best, comparison.baseline))
    if (guess := _guessing_sentence(comparison)) is not None:
        lines.append(guess)
    if (text := _perplexity_sentence(comparison.best)) is not None:
        lines.append(text)
    return lines + rates.described(comparison)


def _task_sentence(comparison: Comparison) -> str:
    """Return the sentence that says which methods adapt which model to which data."""
    run = comparison.runs[0]
    several = len(comparison.groups) > 1
    text = f"{_methods(comparison)} adapt{'' if several else 's'} {model_of(run)}"
    text += f" ({numbers.count(run.costs.parameters)} parameters)"
    text += f" to {set_of(run)}" if set_of(run) else ""
    facts = [numbers.plural(n, "class", "classes")] if (n := _class_count(run)) else []
    if sizes := sizes_of(run):
        parts = [f"{n:,} {PART_NAMES.get(part, part)}" for part, n in sizes.items()]
        facts.append(
            f"{joined(parts)} {'pictures' if run.samples == 'pictures' else 'rows of text'}"
        )
    # methods may have different numbers of seeds: "2 to 3 seeds each"
    counts = sorted({len(group.runs) for group in comparison.groups})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else ""
    seeds = seeds or numbers.plural(counts[0], "seed")
    facts.append(f"{seeds} each" if several else seeds)
    return f"{text}: {', '.join(facts)}."


def _result_sentence(comparison: Comparison) -> str:
    """Return the sentence that says which method is best and how it differs from the baseline."""
    best, base = comparison.best, comparison.baseline
    part = PART_NAMES.get(best.runs[0].scores.split, best.runs[0].scores.split)
    # `samples` is a word: "pictures" or "tokens"
    right = f"{numbers.accuracy(best.accuracy)} of the {part} {best.runs[0].samples} right"
    if comparison.several_labels:
        right = (
            f"a {comparison.measure} of {numbers.accuracy(best.accuracy)} on the {part} pictures"
        )
    if base is None:
        return f"It gets {right}."
    if best is base:
        return f"None does better than the baseline, {_name(base)}: it gets {right}."
    difference = best.difference(base)
    # without a seed in common, the difference of the means
    apart = Spread(best.accuracy.mean - base.accuracy.mean, None, 0)
    spread = apart if difference is None else difference.spread
    text = f"The highest {comparison.measure} is that of {_name(best)}, {right}"
    if comparison.leader is not None:
        text = f"The best, {_name(best)}, gets {right}"
    text += f": {numbers.points(spread)} percentage points against {_name(base)}"
    if difference is not None and difference.n > 1:
        text += f", ahead in {difference.ahead} of {difference.n} shared seeds"
    return f"{text}."


def choice_sentence(comparison: Comparison) -> str:
    """Return the sentence that says which run the validation part chooses, or why none."""
    choice, missing = comparison.choice
    if choice is None:
        return f"No method is chosen: {missing}, and the test part is not for choosing."
    groups, ranks = comparison.groups, choice.ranks
    place = groups.index(choice.group)
    seeds = numbers.plural(len(choice.seeds), "seed")
    score = _validation_score(choice.run, ranks[place][0])
    text = f"Chosen on the validation part: {_name(choice.group)}, {score} over {seeds}"
    # The best of the others tells how near the choice was.
    behind = [i for i in range(len(groups)) if i != place]
    if behind:
        second = max(behind, key=lambda i: ranks[i])
        text += f"; {_name(groups[second])} {_why_behind(choice.run, ranks[place], ranks[second])}"
    return f"{text}. Its best run there is {choice.run.folder.name}."


def _why_behind(run: FinishedRun, first: Sequence[float], second: Sequence[float]) -> str:
    """Return words that say why the second method of a choice is behind the first."""
    # first, second: ranks (score, -loss, -trained parameters), the larger the better
    if first[0] > second[0]:
        return f"has {_validation_score(run, second[0])}"
    reasons = ("has the higher loss", "trains more parameters")
    decided = (text for text, a, b in zip(reasons, first[1:], second[1:], strict=True) if a > b)
    return f"has as much, but {next(decided, 'was named later')}"


def _validation_score(run: FinishedRun, score: float) -> str:
    """Return a mean validation score in words, such as "91.3 % right" or "perplexity 7.10"."""
    if run.samples == "tokens":
        return f"perplexity {1 / score:.2f}" if score else "no finite perplexity"
    if run.scores.measure != "accuracy":
        return f"a {run.scores.measure.replace('_', ' ')} of {numbers.percent(score)}"
    return f"{numbers.percent(score)} right"


def differences(comparison: Comparison) -> list[str]:
    """Return a sentence for each method about its difference to the baseline."""
    base = comparison.baseline
    if base is None:
        return []
    return [difference_sentence(group, base) for group in comparison.others()]


def difference_sentence(group: RunGroup, base: RunGroup) -> str:
    """Return the sentence about a method's difference to another, with its confidence interval.

    If there is no interval, it says why.
    """
    interval, missing = group.interval(base)
    pairs = group.difference(base)
    # seeds in common are paired; without any, the means are compared
    mean = group.accuracy.mean - base.accuracy.mean if pairs is None else pairs.mean
    name = _name(group)
    text = f"{capital(name)} minus {_name(base)}: {numbers.signed(100 * mean, 2)} points"
    if interval is None:
        return f"{text}. There is no interval: {missing}."
    run = group.runs[0]
    kind = _item_name(run)
    differ = (
        f"{numbers.plural(interval.differing, kind)} differ{'s' if interval.differing == 1 else ''}"
    )
    part = PART_NAMES.get(run.scores.split, run.scores.split)
    over = f"{interval.items:,} {part} {kind}s and {numbers.plural(interval.seeds, 'seed')}"
    # the verdict counts only if the interval is on one side of 0, see below
    side = "ahead" if interval.low > 0 else "behind"
    verdict = f"{capital(name)} is {side}."
    if interval.seeds == 1:
        verdict = f"Of these two trainings that of {name} is {side}."
    if not interval.significant:
        verdict = "The difference is not statistically significant."
    test = (
        ""
        if interval.p is None
        else f", p = {numbers.probability(interval.p)} (exact McNemar test)"
    )
    test = test.replace("= <", "<")
    ends = f"{numbers.signed(100 * interval.low, 2)} to {numbers.signed(100 * interval.high, 2)}"
    text = f"{text} (95 % interval {ends} over {over}; {differ}{test}). {verdict}"
    return f"{text} {_FEW[interval.seeds]}" if interval.seeds in _FEW else text


_FEW = {
    1: "One seed says nothing about other trainings.",
    2: "Two seeds say little about other trainings.",
}


def _item_name(run: FinishedRun) -> str:
    return "picture" if run.samples == "pictures" else "text"


def _cost_sentence(best: RunGroup, base: RunGroup) -> str:
    """Return the sentence about the best method's trained parameters, and its time."""
    costs = best.runs[0].costs
    share = costs.trained / costs.parameters
    digits = 1 if share > 0.01 else 2
    small = "less than 0.01 %" if share < 0.0001 else numbers.percent(share, digits)
    text = (
        f"It trains {numbers.count(costs.trained)} parameters with the head, {small} of the model"
    )
    if base.seconds.mean > 0:
        text += f", in {numbers.ratio(best.seconds.mean / base.seconds.mean)} the baseline's time"
    return f"{text}."


def _items_name(runs: Sequence[FinishedRun]) -> str:
    return "texts" if any(run.samples == "tokens" for run in runs) else "pictures"


def _perplexity_sentence(best: RunGroup) -> str | None:
    """Return the sentence about a text model's perplexity after and before training, or None."""
    run = best.runs[0]
    after, before = run.record["results"].get(run.scores.split, {}), run.given.get("before")
    if run.samples != "tokens":
        return None
    now = (
        f"perplexity {after['perplexity']:.2f}, exact match {numbers.percent(after['exact_match'])}"
    )
    if not isinstance(before, Mapping):
        return f"{capital(now)}."
    then = f"{before['perplexity']:.2f} and {numbers.percent(before['exact_match'])}"
    return f"{capital(now)}; before training {then}."


def _guessing_sentence(comparison: Comparison) -> str | None:
    """Return the sentence about how often the most frequent class is right; None if not known."""
    answers = comparison.best.runs[0].answers
    if answers is None:
        return None
    # the score of a model that has learned nothing but the commonest class
    counts = np.bincount(answers.labels, minlength=len(answers.classes))
    share = numbers.percent(float(counts.max() / counts.sum()))
    name = answers.classes[int(counts.argmax())]
    return f'Always answering "{name}" would be right for {share}.'


def notices(comparison: Comparison) -> list[str]:
    """Return warnings for the reader: ways in which the runs differ besides the method."""
    runs, groups = comparison.runs, comparison.groups
    kind = _items_name(runs)
    lines = [
        text
        for differs, text in (
            (
                _differs_at_a_seed(runs, "test"),
                f"Not all methods were scored on the same test {kind}.",
            ),
            (
                _differs_at_a_seed(runs, "train"),
                f"Not all methods learned from the same training {kind}.",
            ),
            (_differ(runs, model_of), "The runs start from different models."),
            (
                _differ(runs, lambda r: r.scores.split),
                "Some runs were scored on test, some on val.",
            ),
            (_differ(runs, lambda r: r.record.get("machine")), _MACHINES),
            (_differ(runs, lambda r: r.record.get("versions")), "Package versions differ."),
            (_differ(runs, lambda r: r.costs.peak_kind), "Memory was measured in different ways."),
        )
        if differs
    ]
    if any(run.scores.split == "val" for run in runs):
        chose_epoch = any(selection_of(run).get("rule") == "val" for run in runs)
        text = f"There is no test part: {comparison.measure} is that of the validation {kind}"
        lines.append(
            f"{text}, which also chose the epoch, so it is too high." if chose_epoch else f"{text}."
        )
    if any(run.scores.measure != "accuracy" for run in runs):
        lines.append(
            "A picture may have several labels, so there is no confusion matrix: a label is there "
            "or not, and is not taken for another."
        )
    if (text := rates.shared(comparison)) is not None:
        lines.append(text)
    if len(groups) > 1 and any(len(group.runs) == 1 for group in groups):
        lines.append("A method with one seed has no spread: its difference may be chance.")
    return lines + _shared_pictures(runs)


_MACHINES = "The runs are from different machines or thread counts: do not compare their times."


def _shared_pictures(runs: Iterable[FinishedRun]) -> list[str]:
    """Return a warning for each two parts of the data, as train and test, that share pictures."""
    counts: dict[str, int] = {}
    for run in runs:
        data = run.given.get("data")
        shared = data.get("shared_pictures") if isinstance(data, Mapping) else None
        # the largest number over seeds, since each seed may draw its own parts
        for pair, n in shared.items() if isinstance(shared, Mapping) else ():
            if isinstance(n, int) and n > 0:
                counts[str(pair)] = max(n, counts.get(str(pair), 0))
    return [
        f"{numbers.plural(n, 'picture')} in both parts of {pair}." for pair, n in counts.items()
    ]


def _differs_at_a_seed(runs: Iterable[FinishedRun], part: str) -> bool:
    """Return True if two runs of the same seed have different samples in a part of the data."""
    hashes_by_seed: dict[int, set[object]] = defaultdict(set)
    for run in runs:
        part_record = data_of(run).get(part, {})
        hashes_by_seed[run.seed].add(part_record.get("sha256"))
    return any(len(hashes) > 1 for hashes in hashes_by_seed.values())


def _differ(runs: Iterable[FinishedRun], value_of: Callable[[FinishedRun], Any]) -> bool:
    return len({json.dumps(value_of(run), sort_keys=True, default=str) for run in runs}) > 1


def data_of(run: FinishedRun) -> dict[str, Mapping[str, Any]]:
    """Return the record of each part of a run's data, by the part's name."""
    data = run.record.get("data")
    data = data if isinstance(data, Mapping) else {}
    return {
        str(part): part_record
        for part, part_record in data.items()
        if isinstance(part_record, Mapping)
    }


def sizes_of(run: FinishedRun) -> dict[str, int]:
    """Return the number of pictures, or rows of text, in each part of a run's data."""
    return {
        part: n
        for part, part_record in data_of(run).items()
        if isinstance(n := part_record.get("n"), int)
    }


def selection_of(run: FinishedRun) -> Mapping[str, Any]:
    """Return the record of how a run's result was chosen: rule, epoch, disjoint_from_train."""
    selection = run.record["results"].get("selection")
    return selection if isinstance(selection, Mapping) else {}


def choices(runs: Sequence[FinishedRun]) -> list[str]:
    """Return the statements of `intarsia auto` about its choice, for the runs that it chose."""
    records = [run.given.get("choice") for run in runs]
    return [str(choice["statement"]) for choice in records if isinstance(choice, Mapping)]


def selection_rule(runs: Sequence[FinishedRun]) -> str:
    """Return sentences about how the epoch of the results was chosen."""
    # each rule once, in the order of the runs
    rules = dict.fromkeys(str(selection_of(run).get("rule")) for run in runs)
    text = " ".join(HOW_CHOSEN.get(rule, f"Selection: {rule}.") for rule in rules)
    # `intarsia auto` chooses everything, so that a rule for the epoch alone would mislead
    if len(choices(runs)) == len(runs):
        text = "All settings were chosen on held-out training pictures, as said above."
    text = text.replace("accuracy", runs[0].scores.measure.replace("_", " "))
    if "val" in rules:
        disjoint = {selection_of(run).get("disjoint_from_train") for run in runs}
        sure = disjoint <= {True}
        text += (
            " No picture of the validation part is in the training part."
            if sure
            else " Whether the validation part shares pictures with training is not known."
        )
    if any(run.scores.split == "test" for run in runs):
        before = any("before" in run.given for run in runs)
        text += f" The test part was scored {'before and' if before else 'once,'} after training."
    return text


def _class_count(run: FinishedRun) -> int | None:
    return len(run.answers.classes) if run.answers is not None else None
