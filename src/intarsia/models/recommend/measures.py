"""How good rankings of all items are, by trec_eval's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...core.errors import DataError
from ...train.ranked import score_run

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
    Raises: DataError for lists of several lengths; otherwise as `score_run`.
    """
    if len(ranked) != len(wanted):
        got, want = f"{len(ranked)} rankings for {len(wanted)} users", "one each"
        raise DataError("rankings", got=got, want=want, fix="Rank for every user.")
    truth = {str(u): {str(item): 1 for item in own} for u, own in enumerate(wanted)}
    run: dict[str, dict[str, float]] = {}
    for user, items in enumerate(ranked):
        order = dict.fromkeys(map(str, items))
        run[str(user)] = {item: -float(place) for place, item in enumerate(order)}
    return score_run({user: own for user, own in truth.items() if own}, run, measures)
