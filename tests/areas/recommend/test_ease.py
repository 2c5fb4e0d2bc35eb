"""EASE: the closed form is the minimum, users are ranked by all that they have taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import intarsia
from intarsia.areas.recommend import ease
from intarsia.areas.recommend.ease import Ease
from intarsia.areas.recommend.lightgcn import LightGcn
from intarsia.areas.recommend.recommending import fit_recommender, open_recommender
from intarsia.core.errors import ConfigError, DataError
from intarsia.data.interactions import Interactions

from ...refusals import refused


def _taken(shop: Interactions) -> np.ndarray:
    x = np.zeros((len(shop.user_ids), len(shop.item_ids)))
    x[shop.users, shop.items] = 1
    return x


def test_each_column_is_a_ridge_regression_on_the_other_items(shop: Interactions) -> None:
    """The naive twin: one regression for each item, without itself, instead of one inverse."""
    x, reg = _taken(shop), 3.0
    model: Any = Ease(reg=reg).fit(shop)
    for item in range(x.shape[1]):
        others = np.arange(x.shape[1]) != item
        z = x[:, others]
        expected = np.linalg.solve(z.T @ z + reg * np.eye(z.shape[1]), z.T @ x[:, item])
        got = model.weights.weight[1:, item + 1].numpy()
        np.testing.assert_allclose(got[others], expected, atol=1e-6)
        assert got[item] == 0
    assert not model.weights.weight[0].any() and not model.weights.weight[:, 0].any()


def test_a_user_s_scores_are_sums_of_rows(shop: Interactions) -> None:
    model: Any = Ease(reg=1.0).fit(shop)
    scores = model.scores(0, [3, 5])
    torch.testing.assert_close(scores, model.weights.weight[3] + model.weights.weight[5])
    everyone = model(torch.arange(len(shop.user_ids)))
    x = torch.from_numpy(_taken(shop)).float()
    expected = (x @ model.weights.weight[1:, 1:]).masked_fill(x > 0, -torch.inf)
    torch.testing.assert_close(everyone[:, 1:], expected)
    assert (everyone[:, 0] == -torch.inf).all()


def test_it_answers_for_users_and_for_histories_and_comes_back(
    shop: Interactions, tmp_path: Path
) -> None:
    train, test = shop.leave_last(3)
    done = fit_recommender(Ease(reg=2.0), shop, parts=(train, test, test), out=tmp_path / "run")
    again = open_recommender(tmp_path / "run", mapped=True)
    for query in ("u0", ["1", "4"]):
        assert again.recommend(query, 5) == done.model.recommend(query, 5)
    history = [shop.item_ids[i] for i in shop.items[shop.users == 0]]
    # the newest events of a user count, also those after the fit
    assert again.recommend("u0", 5) == again.recommend(history, 5)
    done.save(tmp_path / "saved")
    assert open_recommender(tmp_path / "saved").recommend("u0", 5) == again.recommend("u0", 5)


def test_it_is_an_estimator_of_events(shop: Interactions) -> None:
    settings = Ease(reg=7.0)
    assert settings.get_params() == {"reg": 7.0} and Ease(**settings.get_params()) == settings
    rows = [("ann", "tea"), ("ann", "milk"), ("bob", "tea"), ("bob", "milk"), ("eve", "tea")]
    model = Ease(reg=0.1).fit(rows)
    assert [hit.item for hit in model.recommend("eve")] == ["milk"]
    assert model.get_params() == {"reg": 0.1}
    trained = LightGcn(width=4).fit(shop, epochs=1, batch_size=64)
    assert len(trained.recommend("u0", 3)) == 3
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows, columns=["userId", "movieId"])
    assert Ease(reg=0.1).fit(frame).recommend("eve") == model.recommend("eve")
    with refused(ConfigError, what="Ease", got="settings, which know no events"):
        settings.recommend("u0")
    with refused(DataError, what="event 0", got="'ab'"):
        settings.fit(["ab"])


def test_bad_input(shop: Interactions, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(ConfigError, what="reg", got=0):
        Ease(reg=0)
    with refused(ConfigError, what="options of training", got="epochs"):
        Ease().fit(shop, epochs=3)
    model: Any = Ease().build(shop)
    with refused(ConfigError, what="Ease", got="a training step"):
        model(torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(ConfigError):
        intarsia.fit(model, model.samples(shop), task=model.task)
    monkeypatch.setattr(ease, "MOST", 5)
    with refused(DataError, what="items", want="at most 5"):
        Ease().fit(shop)
