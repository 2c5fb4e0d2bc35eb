"""A sheet in plain sentences: the runs, their outcome, missing results and why."""

from __future__ import annotations

from intarsia.reports import numbers, statistics
from intarsia.reports.wording import capital, joined

from .sheets import SuiteSheet, epochs_of, gaps
from .summary import Findings, MethodRow, trials_of


def heading(findings: Findings) -> str:
    """Return suite, backbone and protocol of a sheet in words."""
    title = findings.sheet.title
    return f"{title.suite}, {title.model}, protocol {title.protocol}"


def over_seeds(findings: Findings) -> str:
    """Return the words for the seeds that the numbers of a sheet are means of."""
    seeds = _seeds(findings)
    return "one seed" if seeds == "1 seed" else f"mean ± sample standard deviation over {seeds}"


def _seeds(findings: Findings) -> str:
    """Return the number of seeds in words, as a range where methods have unlike numbers."""
    counts = sorted({int(n) for n in findings.sheet.begun.sum(1)})
    fewest, most_seeds = counts[0], counts[-1]
    return (
        f"{fewest} to {most_seeds} seeds" if fewest < most_seeds else numbers.plural(fewest, "seed")
    )


def sentences(findings: Findings) -> list[str]:
    """Return sentences on a sheet: the runs, which method leads, whether ranks differ.

    findings: statistics of the sheet, the results of one suite, backbone and protocol.
    """
    sheet = findings.sheet
    groups = len(sheet.groups())
    scope = numbers.plural(len(sheet.arms), "method")
    scope += f" on {numbers.plural(len(sheet.tasks), 'task')}"
    scope += f" in {groups} groups" if groups > 1 else ""
    lines = [
        f"{scope}, {_seeds(findings)} each: suite {sheet.title.suite}, backbone "
        f"{sheet.title.model}, protocol {sheet.title.protocol}."
    ]
    lines += _leaders(findings)
    lines += _against(findings)
    lines += _ranks(findings)
    return lines


def _leaders(findings: Findings) -> list[str]:
    """Return a sentence on the method with the largest mean, by group mean and by task mean."""
    rows = [row for row in findings.rows if row.shared is not None]
    if len(rows) < 2:
        return []
    shared = int(findings.sheet.shared.sum())
    scope = f" over the {numbers.plural(shared, 'shared task')}" if findings.ragged else ""

    def leader(kind: str) -> tuple[str, str]:
        """Return the best method by one kind of mean, and its accuracy in words."""
        row = max(rows, key=lambda row: getattr(row.shared, kind).mean)
        return row.method.label, numbers.accuracy(getattr(row.shared, kind))

    (first, group), (second, task) = leader("group"), leader("task")
    # both means name the same method, or the sentence says that they differ
    if first == second:
        return [f"{capital(first)} leads{scope}: group mean {group}, task mean {task}."]
    return [f"By group mean {first} ({group}) leads{scope}, by task mean {second} ({task})."]


def _against(findings: Findings) -> list[str]:
    """Return a sentence on the methods that differ significantly from the baseline."""
    base = findings.baseline
    if base is None:
        return []
    # after Holm's correction
    sure = [row for row in findings.rows if row.p is not None and row.p < statistics.ALPHA]
    if not any(row.difference for row in findings.rows):
        return []
    if not sure:
        return [f"No method differs from {base.label} across tasks (Wilcoxon, Holm, 0.05)."]
    better = [row for row in sure if row.difference and row.difference.mean > 0]
    worse = [row for row in sure if row not in better]
    parts = [
        f"{joined([_gain(row) for row in rows])} {verb}"
        for rows, verb in ((better, "above"), (worse, "below"))
        if rows
    ]
    return [f"Across tasks (Wilcoxon, Holm, 0.05), against {base.label}: {'; '.join(parts)}."]


def _gain(row: MethodRow) -> str:
    """Return a method and its difference to the baseline, in words."""
    assert row.difference is not None
    return f"{row.method.label} ({numbers.signed(100 * row.difference.mean)} points)"


def _ranks(findings: Findings) -> list[str]:
    """Return a sentence on Friedman's test of equal ranks; none if it was not computed."""
    ranking = findings.ranking
    if ranking is None:
        return []
    # p may be a bound, as "< 0.001", before which no equals sign stands
    p = numbers.probability(ranking.p)
    return [
        f"Friedman's test of equal ranks over {numbers.plural(ranking.tasks, 'task')}: p "
        f"{p if p.startswith('<') else f'= {p}'}; average ranks more than {ranking.critical:.2f} "
        "apart differ (Nemenyi, 0.05)."
    ]


def notes(findings: Findings) -> list[str]:
    """Return the sentences that limit a comparison of methods.

    They tell missing results, unequal numbers of seeds, of tried settings and of epochs, unexpected
    origins of scores, and the time of the searches. findings: statistics of a sheet (one suite,
    model and protocol).
    """
    sheet = findings.sheet
    lines = []
    # ragged: some method lacks a task
    if findings.ragged:
        # more trials find better settings by chance alone
        lines.append(
            "A method without all tasks has no mean over the suite; costs and ranks are over "
            f"the {numbers.plural(int(sheet.shared.sum()), 'task')} that all methods share."
        )
    lines += gaps(sheet)
    # begun: (methods, seeds) bool, the seeds that a method has any run of
    if len(set(sheet.begun.sum(1))) > 1:
        counts = zip(sheet.arms, sheet.begun.sum(1), strict=True)
        listing = joined([f"{method.label} {n}" for method, n in counts])
        lines.append(f"The methods have unequal numbers of seeds: {listing}.")
    if len(tried := trials_of(sheet)) > 1:
        listing = joined([str(number) for number in sorted(tried)])
        lines.append(
            f"Not ranked: settings were chosen among {listing} runs, not the same for all."
        )
    lines += _lengths(sheet)
    lines += _origins(sheet)
    # what a search cost is no part of a run's own time
    searched = [r.setup for r in sheet.results.values() if r.setup.tried]
    if searched:
        tried = [setup.tried for setup in searched]
        spent = numbers.seconds(sum(setup.search_seconds for setup in searched))
        span = str(min(tried)) if min(tried) == max(tried) else f"{min(tried)} to {max(tried)}"
        lines.append(
            f"In {len(tried)} of {len(sheet.results)} runs, settings were chosen among {span}, "
            f"which took {spent} in all; time and memory are those of the final run."
        )
    return lines


def _lengths(sheet: SuiteSheet) -> list[str]:
    """Return a sentence on the usual number of epochs and on the methods that had others."""
    trained = epochs_of(sheet)
    if not trained:
        return []
    spans = {m: (min(epochs), max(epochs)) for m, epochs in sorted(trained.items())}
    # the most common span of epochs, of equally common ones the longest
    usual = max(spans.values(), key=lambda span: (list(spans.values()).count(span), span))
    exceptions = [f"{m.label} for {_span(span)}" for m, span in spans.items() if span != usual]
    return [f"Trained for {_span(usual)} epochs{'; ' + joined(exceptions) if exceptions else ''}."]


def _span(span: tuple[int, int]) -> str:
    """Return a range of epochs in words."""
    return str(span[0]) if span[0] == span[1] else f"{span[0]} to {span[1]}"


def _origins(sheet: SuiteSheet) -> list[str]:
    """Return sentences on scores with an origin that a reader would not expect."""
    choices: dict[str, set[str]] = {}
    twins: dict[str, int] = {}
    pictures: dict[tuple[str, int], set[str]] = {}
    for (method, task, seed), result in sorted(sheet.results.items()):
        origin = result.origin
        for name, value in origin.chosen.items():
            choices.setdefault(f"{method.label} {name}", set()).add(f"{value}")
        twins[task.name] = max(origin.twins or 0, twins.get(task.name, 0))
        pictures.setdefault((task.name, seed), set()).update({origin.pictures} - {""})
    codes = {result.origin.code for result in sheet.results.values()} - {""}
    # digests of pictures and labels: one task and seed should have one
    mixed = [
        f"{task} (seed {seed})" for (task, seed), digests in pictures.items() if len(digests) > 1
    ]
    doubled = [f"{task} {count:,}" for task, count in twins.items() if count]
    listing = [f"{choice} = {' or '.join(sorted(values))}" for choice, values in choices.items()]
    lines = [
        (listing, "Chosen by the method for so many images and epochs: {}."),
        (doubled, "Pictures of the test part that were trained on, too: {}."),
        (mixed, "Methods saw different pictures, so do not compare them there: {}."),
        (
            [f"{len(codes)}"] if len(codes) > 1 else [],
            "The results are of {} versions of the source.",
        ),
    ]
    return [text.format(joined(items)) for items, text in lines if items]
