"""A sheet in plain sentences: what was run, what came out, what is missing and why."""

from __future__ import annotations

from intarsia.reports import numbers, statistics
from intarsia.reports.wording import capital, joined

from .sheets import SuiteSheet, epochs_of, gaps
from .summary import Findings, MethodRow, trials_of


def heading(findings: Findings) -> str:
    """Suite, backbone and protocol of a sheet."""
    title = findings.sheet.title
    return f"{title.suite}, {title.model}, protocol {title.protocol}"


def over_seeds(findings: Findings) -> str:
    """What the numbers are means of."""
    seeds = _seeds(findings)
    return "one seed" if seeds == "1 seed" else f"mean ± sample standard deviation over {seeds}"


def _seeds(findings: Findings) -> str:
    counts = sorted({int(n) for n in findings.sheet.begun.sum(1)})
    few, many = counts[0], counts[-1]
    return f"{few} to {many} seeds" if few < many else numbers.plural(few, "seed")


def sentences(findings: Findings) -> list[str]:
    """What was run, who leads by how much, and whether ranks differ by more than chance."""
    sheet = findings.sheet
    groups = len(sheet.groups())
    what = numbers.plural(len(sheet.arms), "method")
    what += f" on {numbers.plural(len(sheet.tasks), 'task')}"
    what += f" in {groups} groups" if groups > 1 else ""
    found = [
        f"{what}, {_seeds(findings)} each: suite {sheet.title.suite}, backbone "
        f"{sheet.title.model}, protocol {sheet.title.protocol}."
    ]
    found += _leaders(findings)
    found += _against(findings)
    found += _ranks(findings)
    return found


def _leaders(findings: Findings) -> list[str]:
    rows = [row for row in findings.rows if row.shared is not None]
    if len(rows) < 2:
        return []
    shared = int(findings.sheet.shared.sum())
    where = f" over the {numbers.plural(shared, 'shared task')}" if findings.ragged else ""

    def leader(kind: str) -> tuple[str, str]:
        row = max(rows, key=lambda row: getattr(row.shared, kind).mean)
        return row.method.label, numbers.accuracy(getattr(row.shared, kind))

    (first, group), (other, task) = leader("group"), leader("task")
    if first == other:
        return [f"{capital(first)} leads{where}: group mean {group}, task mean {task}."]
    return [f"By group mean {first} ({group}) leads{where}, by task mean {other} ({task})."]


def _against(findings: Findings) -> list[str]:
    base = findings.baseline
    if base is None:
        return []
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
    assert row.difference is not None
    return f"{row.method.label} ({numbers.signed(100 * row.difference.mean)} points)"


def _ranks(findings: Findings) -> list[str]:
    found = findings.ranking
    if found is None:
        return []
    p = numbers.probability(found.p)
    return [
        f"Friedman's test of equal ranks over {numbers.plural(found.tasks, 'task')}: p "
        f"{p if p.startswith('<') else f'= {p}'}; average ranks more than {found.critical:.2f} "
        "apart differ (Nemenyi, 0.05)."
    ]


def notes(findings: Findings) -> list[str]:
    """What a reader must know before comparing rows: what is missing and why, uneven efforts."""
    sheet = findings.sheet
    found = []
    if findings.ragged:
        found.append(
            "A method without all tasks has no mean over the suite; costs and ranks are over "
            f"the {numbers.plural(int(sheet.shared.sum()), 'task')} that all methods share."
        )
    found += gaps(sheet)
    if len(set(sheet.begun.sum(1))) > 1:
        counts = zip(sheet.arms, sheet.begun.sum(1), strict=True)
        told = joined([f"{method.label} {n}" for method, n in counts])
        found.append(f"The methods have unequal numbers of seeds: {told}.")
    if len(tried := trials_of(sheet)) > 1:
        told = joined([str(number) for number in sorted(tried)])
        found.append(f"Not ranked: settings were chosen among {told} runs, not the same for all.")
    found += _lengths(sheet)
    found += _origins(sheet)
    searched = [r.setup for r in sheet.results.values() if r.setup.tried]
    if searched:
        tried = [setup.tried for setup in searched]
        spent = numbers.seconds(sum(setup.search_seconds for setup in searched))
        span = str(min(tried)) if min(tried) == max(tried) else f"{min(tried)} to {max(tried)}"
        found.append(
            f"In {len(tried)} of {len(sheet.results)} cells, settings were chosen among {span}, "
            f"which took {spent} in all; time and memory are those of the final run."
        )
    return found


def _lengths(sheet: SuiteSheet) -> list[str]:
    """For how many epochs, and which methods for others."""
    trained = epochs_of(sheet)
    if not trained:
        return []
    spans = {m: (min(epochs), max(epochs)) for m, epochs in sorted(trained.items())}
    usual = max(spans.values(), key=lambda span: (list(spans.values()).count(span), span))
    others = [f"{m.label} for {_span(span)}" for m, span in spans.items() if span != usual]
    return [f"Trained for {_span(usual)} epochs{'; ' + joined(others) if others else ''}."]


def _span(span: tuple[int, int]) -> str:
    return str(span[0]) if span[0] == span[1] else f"{span[0]} to {span[1]}"


def _origins(sheet: SuiteSheet) -> list[str]:
    """What scores came out of, where a reader would not expect it."""
    chosen: dict[str, set[str]] = {}
    twins: dict[str, int] = {}
    seen: dict[tuple[str, int], set[str]] = {}
    for (method, task, seed), result in sorted(sheet.results.items()):
        origin = result.origin
        for name, value in origin.chosen.items():
            chosen.setdefault(f"{method.label} {name}", set()).add(f"{value}")
        twins[task.name] = max(origin.twins or 0, twins.get(task.name, 0))
        seen.setdefault((task.name, seed), set()).update({origin.pictures} - {""})
    codes = {result.origin.code for result in sheet.results.values()} - {""}
    mixed = [f"{task} (seed {seed})" for (task, seed), found in seen.items() if len(found) > 1]
    doubled = [f"{task} {count:,}" for task, count in twins.items() if count]
    told = [f"{what} = {' or '.join(sorted(values))}" for what, values in chosen.items()]
    lines = [
        (told, "Chosen by the method for so many images and epochs: {}."),
        (doubled, "Pictures of the test part that were trained on, too: {}."),
        (mixed, "Methods saw different pictures, so do not compare them there: {}."),
        (
            [f"{len(codes)}"] if len(codes) > 1 else [],
            "The results are of {} versions of the source.",
        ),
    ]
    return [text.format(joined(items)) for items, text in lines if items]
