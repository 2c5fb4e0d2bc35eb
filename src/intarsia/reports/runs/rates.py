"""Learning rates of a comparison, and how each was found: a column, sentences and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..charts import Axis, Chart, Series
from ..looks import Look
from ..report import Figure
from ..table import Column, Entry
from ..wording import capital, joined, method_name
from .grouping import Comparison, RunGroup

COLUMN = Column("Rate", "Learning rate; “limit”: the search may try no rate beyond it")


def rate_of(group: RunGroup) -> float | None:
    """Return the learning rate of a group's runs."""
    rate = group.runs[0].record["training"].get("lr")
    return rate if isinstance(rate, int | float) else None


def search_of(group: RunGroup) -> Mapping[str, Any] | None:
    """Return the record of the search for a group's learning rate; None without a search."""
    search = group.runs[0].given.get("search")
    return search if isinstance(search, Mapping) else None


def entry(group: RunGroup) -> Entry:
    """Return the entry of the results table for a group's learning rate.

    The entry has the note "limit" if the search chose the lowest or the highest rate that it may
    try, so that a better one may lie beyond.
    """
    rate = rate_of(group)
    limit = (search_of(group) or {}).get("limit")
    return Entry("" if rate is None else f"{rate:g}", "limit" if limit else "")


def _named(labels: Sequence[str]) -> str:
    """Return methods as their papers write them, at the beginning of a sentence."""
    return capital(joined([*map(method_name, labels)]))


def described(comparison: Comparison) -> list[str]:
    """Return sentences about how the learning rates were found; none if none was searched for."""
    searches = {group.label: search for group in comparison.groups if (search := search_of(group))}
    if not searches:
        return []
    # methods that were searched in the same way share a sentence
    alike: dict[str, list[str]] = {}  # labels by search text, which differs between folders
    for label, search in searches.items():
        alike.setdefault(_search_text(search, comparison), []).append(label)
    texts = [
        f"{'Each method' if len(alike) == 1 < len(searches) else _named(labels)} {tried}"
        for tried, labels in alike.items()
    ]
    if _has_own_splits(comparison):
        texts.append("Each seed draws its own test part, in which some of these samples may be.")
    # methods that were not searched for
    unsearched = [g for g in comparison.groups if g.label not in searches]
    if fixed := [group.label for group in unsearched if rate_of(group) is not None]:
        texts.append(f"The rate of {joined([*map(method_name, fixed)])} was given.")
    if solved := [group.label for group in unsearched if rate_of(group) is None]:
        texts.append(f"{_named(solved)} is fitted to convergence, without a rate.")
    if ends := [label for label, search in searches.items() if search["limit"]]:
        names = joined([*map(method_name, ends)])
        texts.append(f"A better rate of {names} may lie beyond the limit of the search.")
    return texts


def _search_text(search: Mapping[str, Any], comparison: Comparison) -> str:
    """Return the predicate of a sentence about a search: "tried 5 learning rates (...) and ..."."""
    rates, draws = [f"{rate:g}" for rate in search["rates"]], search["draws"]
    perplexity = search["measure"] == "perplexity"
    best = "lowest perplexity" if perplexity else f"highest {search['measure'].replace('_', ' ')}"
    kind = "rows" if comparison.runs[0].samples == "tokens" else "pictures"
    samples = f"{search['samples']:,} validation {kind}"
    samples = samples if draws == 1 else f"{draws} draws of {samples}"
    return (
        f"tried {len(rates)} learning rates ({', '.join(rates)}) and has the one with the {best} "
        f"on {samples}, averaged with its neighbours, for all seeds; no trial looked at its test "
        "part."
    )


def _has_own_splits(comparison: Comparison) -> bool:
    """Return True if the test parts differ between runs."""
    parts = [run.record["data"].get("test") or {} for run in comparison.runs]
    return len({part.get("sha256") for part in parts}) > 1


def shared(comparison: Comparison) -> str | None:
    """Return a warning if several methods share one learning rate that nobody searched for."""
    groups = comparison.groups
    rates = {rate_of(group) for group in groups}
    # a rate that was chosen for one method favours it
    if len(groups) < 2 or len(rates) > 1 or None in rates or any(map(search_of, groups)):
        return None
    return (
        f"All methods share the learning rate {rates.pop():g}, which may suit some of them better "
        "than others."
    )


def series_of(comparison: Comparison, looks: Sequence[Look]) -> list[Series]:
    """Return, for each method with a search, validation scores by learning rate, for a chart.

    Scores are in percent, for texts perplexities; the rate that the method uses has a larger mark.
    """
    series: list[Series] = []
    for number, group in enumerate(comparison.groups):
        if (search := search_of(group)) is None:
            continue
        tried = zip(search["rates"], search["scores"], strict=True)
        scores = [(rate, score) for rate, score in tried if score]  # None: every trial failed
        perplexity = search["measure"] == "perplexity"
        xs = [rate for rate, _ in scores]
        # the search's score of a text is 1 / perplexity
        ys = [1 / score if perplexity else 100 * score for _, score in scores]
        hover = [f"{y:.4g} at {x:g}" for x, y in zip(xs, ys, strict=True)]
        sizes = [13.0 if rate == search["rate"] else 7.0 for rate in xs]
        look, choice = looks[number], {"group": number}
        series.append(Series(group.label, xs, ys, look, hover, sizes=sizes, when=choice))
    return series


def against_rates(comparison: Comparison, looks: Sequence[Look]) -> Figure | None:
    """Draw validation scores over the tried learning rates; None if there was no search."""
    if not (series := series_of(comparison, looks)):
        return None
    searches = [search for group in comparison.groups if (search := search_of(group))]
    up = Axis(f"Validation {comparison.measure}", " %")
    up = Axis("Validation perplexity") if searches[-1]["measure"] == "perplexity" else up
    label = "Validation score against learning rate; the rates are in the table of results"
    drawing = Chart(series, Axis("Learning rate", log=True), up)
    caption = "The large mark is the rate that the method has."
    return Figure("rates", label, drawing, "On validation, by learning rate.", caption)
