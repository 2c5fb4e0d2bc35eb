"""Measures of rankings of all items, as trec_eval computes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...core.errors import DataError
from ...train.ranked import score_run

MEASURES = ("nDCG@20", "R@20", "RR@10", "Success@20")


def full_sort(
    ranked: Sequence[Iterable[object]],
    relevant: Sequence[Iterable[object]],
    measures: Sequence[str] = MEASURES,
) -> dict[str, float]:
    """Average ranking measures over users, under ir-measures' names; Success@20 is the hit rate.

    ranked: for each user items, best first, as many as the deepest measure needs, from a ranking of
      all items (no sampled negatives); relevant: for each user the items that she took; users who
      took none are left out; measures: names, such as "nDCG@20".
    Raises: DataError for lists of several lengths; otherwise as `score_run`.
    """
    if len(ranked) != len(relevant):
        got, want = f"{len(ranked)} rankings for {len(relevant)} users", "one each"
        raise DataError("rankings", got=got, want=want, fix="Rank for every user.")
    truth = {
        str(u): {str(item): 1 for item in items_of_user} for u, items_of_user in enumerate(relevant)
    }
    # scores fall with the place in the ranking; of equal items the first counts
    run: dict[str, dict[str, float]] = {}
    for user, items in enumerate(ranked):
        order = dict.fromkeys(map(str, items))
        run[str(user)] = {item: -float(place) for place, item in enumerate(order)}
    return score_run(
        {user: items_of_user for user, items_of_user in truth.items() if items_of_user},
        run,
        measures,
    )
