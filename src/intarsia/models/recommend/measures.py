"""How good rankings are, among all items, by trec_eval's numbers (ir-measures)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...core.errors import ConfigError, DataError, MissingExtra

MEASURES = ("nDCG@20", "R@20", "RR@10", "Success@20")


def full_sort(
    ranked: Sequence[Iterable[object]],
    wanted: Sequence[Iterable[object]],
    measures: Sequence[str] = MEASURES,
) -> dict[str, float]:
    """The mean over users of measures as ir-measures names them; Success@20 is the hit rate.

    ranked: of each user items, best first, as many as the deepest measure looks at, from a ranking
    of all items (no sampled negatives).  wanted: of each user the items that she took.  Users who
    took none are left out.
    Raises: DataError for lists of several lengths, or no user with an item; ConfigError for a
    measure that is not known; MissingExtra without ir-measures.
    """
    if len(ranked) != len(wanted):
        got, want = f"{len(ranked)} rankings for {len(wanted)} users", "one each"
        raise DataError("rankings", got=got, want=want, fix="Rank for every user.")
    try:
        import ir_measures
    except ImportError as error:
        raise MissingExtra("ir-measures", "rec") from error
    try:
        asked: list[Any] = [ir_measures.parse_measure(name) for name in measures]
    except (ValueError, NameError) as error:
        fix = "For example: nDCG@20, R@20, RR@10, Success@20."
        raise ConfigError("measures", got=error, want="names of ir-measures", fix=fix) from error
    truth = {str(u): {str(i): 1 for i in own} for u, own in enumerate(wanted)}
    truth = {user: own for user, own in truth.items() if own}
    if not truth:
        fix = "Score users who have test events."
        raise DataError("wanted items", got="none", want="one user with one", fix=fix)
    runs: dict[str, dict[str, float]] = {}
    for user, items in enumerate(ranked):
        if str(user) in truth:
            places = list(dict.fromkeys(map(str, items)))
            runs[str(user)] = {item: -float(place) for place, item in enumerate(places)}
    found = ir_measures.calc_aggregate(asked, truth, runs)
    return {str(measure): float(found[measure]) for measure in asked}
