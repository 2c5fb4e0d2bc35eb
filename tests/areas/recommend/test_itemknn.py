"""ItemKNN: similarities are those of the definition, and only the nearest count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from intarsia.areas.recommend import itemknn
from intarsia.areas.recommend.itemknn import ItemKnn
from intarsia.areas.recommend.recommending import fit_recommender, open_recommender
from intarsia.core.errors import ConfigError
from intarsia.data.interactions import Interactions

from ...refusals import refused


def naive_scores(shop: Interactions, neighbours: int, shrink: float) -> np.ndarray:
    """Score by the definition, over sets of users: (users, items)."""
    users = [set(shop.users[shop.items == i].tolist()) for i in range(len(shop.item_ids))]
    scores = np.zeros((len(shop.user_ids), len(users)))
    for j, of_j in enumerate(users):
        similar = {
            i: len(of_i & of_j) / ((len(of_i) * len(of_j)) ** 0.5 + shrink)
            for i, of_i in enumerate(users)
            if i != j and of_i & of_j
        }
        nearest = sorted(similar, key=lambda i: -similar[i])[:neighbours]
        for i in nearest:
            for user in users[i]:
                scores[user, j] += similar[i]
    return scores


@pytest.mark.parametrize("shrink", [0.0, 2.5])
def test_the_scores_are_those_of_the_definition(
    shop: Interactions, shrink: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(itemknn, "ROWS", 4)  # several parts, the last one shorter
    model: Any = ItemKnn(neighbours=99, shrink=shrink).fit(shop)
    scores = model.all_scores(torch.arange(len(shop.user_ids)))
    np.testing.assert_allclose(scores[:, 1:], naive_scores(shop, 99, shrink), rtol=1e-5, atol=1e-7)
    assert not scores[:, 0].any()


def test_only_the_nearest_count() -> None:
    # a is taken with b by three users, with c by one: with one neighbour c gives a nothing
    rows = [(u, i) for u in ("1", "2", "3") for i in ("a", "b")] + [("4", "a"), ("4", "c")]
    one: Any = ItemKnn(neighbours=1, shrink=0.0).fit(rows)
    both: Any = ItemKnn(neighbours=2, shrink=0.0).fit(rows)
    place = {name: i for i, name in enumerate(one.known.item_ids, 1)}
    history = [place["c"]]
    assert one.scores_of_history(history)[place["a"]] == 0
    assert both.scores_of_history(history)[place["a"]] == pytest.approx(1 / 2)
    # shrinking lowers an item of few users more than one of many
    shrunk: Any = ItemKnn(neighbours=2, shrink=4.0).fit(rows)
    ratio = shrunk.scores_of_history(history)[place["a"]] / 0.5
    assert ratio < shrunk.scores_of_history([place["b"]])[place["a"]] / (3 / 12**0.5)


def test_it_comes_back(shop: Interactions, tmp_path: Path) -> None:
    train, test = shop.leave_last(3)
    settings = ItemKnn(neighbours=5)
    done = fit_recommender(settings, shop, parts=(train, test, test), out=tmp_path / "run")
    again = open_recommender(tmp_path / "run", mapped=True)
    for query in ("u0", ["1", "4"]):
        assert again.recommend(query, 5) == done.model.recommend(query, 5)


def test_bad_input() -> None:
    with refused(ConfigError, what="neighbours", got=0):
        ItemKnn(neighbours=0)
    with refused(ConfigError, what="shrink", got=-1):
        ItemKnn(shrink=-1)
