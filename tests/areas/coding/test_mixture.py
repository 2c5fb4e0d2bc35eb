"""Mixtures of Gaussians and of Poisson distributions against the densities of scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import gammaln
from scipy.stats import multivariate_normal, poisson
from sklearn.mixture import GaussianMixture

from intarsia.areas.coding import MoG, MoP
from intarsia.core.errors import ConfigError, DataError

H, D = 3, 4
MODELS = {
    "full": lambda **kw: MoG(H, random_state=0, **kw),
    "diagonal": lambda **kw: MoG(H, random_state=0, covariance="diagonal", **kw),
    "mop": lambda **kw: MoP(H, random_state=0, **kw),
    "scaled": lambda **kw: MoP(H, random_state=0, total=40.0, **kw),
}


def data(n: int = 90) -> Any:
    """Counts of three kinds."""
    random = np.random.default_rng(0)
    rates = np.array([[9, 1, 1, 3], [1, 9, 3, 1], [2, 2, 9, 9.0]])
    return random.poisson(rates[random.integers(0, H, n)]).astype(float)


def log_joint(model: Any, y: Any) -> Any:
    """log pi_h p(y | h) of one sample, by scipy."""
    rows = []
    if isinstance(model, MoP) and model.total is not None:
        y = (model.total - D) * y / y.sum() + 1
    for h, w in enumerate(model.components_):
        if isinstance(model, MoP) and model.total is None:
            log = poisson.logpmf(y, w).sum()
        elif isinstance(model, MoP):  # no counts any more: the density of a Poisson's form
            log = (y * np.log(w) - w - gammaln(y + 1)).sum()
        else:
            sigma = model.covariances_[h]
            log = multivariate_normal.logpdf(y, w, sigma if sigma.ndim == 2 else np.diag(sigma))
        rows.append(log + np.log(model.prior_[h]))
    return np.array(rows)


@pytest.mark.parametrize("name", MODELS)
def test_evidence_and_posterior_are_those_of_the_densities(name: str) -> None:
    x = data()
    model = MODELS[name](n_iter=5).fit(x)
    shares, clean = model.transform(x), model.denoise(x)
    for y, score, q, mean in zip(x, model.score_samples(x), shares, clean, strict=True):
        log = log_joint(model, y)
        assert_allclose(score, np.logaddexp.reduce(log), rtol=1e-9)
        assert_allclose(q, np.exp(log - np.logaddexp.reduce(log)), atol=1e-9)
        assert_allclose(mean, q @ model.components_)
    assert_array_equal(model.predict(x), shares.argmax(axis=1))
    top = model.posterior(x, n_states=H)
    assert_array_equal(top.states[:, 0].argmax(axis=1), model.predict(x))
    assert_allclose(top.probabilities.sum(axis=1), 1)  # and no state without a component


@pytest.mark.parametrize("name", ["full", "diagonal", "mop"])
def test_one_step_is_the_closed_form_of_the_model(name: str) -> None:
    x, settings = data(), {"temperature": 1.0, "reseed": False}
    before, after = (MODELS[name](n_iter=n, **settings).fit(x) for n in (1, 2))
    log = np.array([log_joint(before, y) for y in x])
    q = np.exp(log - np.logaddexp.reduce(log, axis=1, keepdims=True))
    assert_allclose(after.prior_, q.mean(axis=0), rtol=1e-9)
    w = q.T @ x / q.sum(axis=0)[:, None]
    assert_allclose(after.components_, w, rtol=1e-9)
    for h in range(H if name != "mop" else 0):
        off = x - w[h]
        sigma = (q[:, h, None] * off).T @ off / q[:, h].sum()
        expected = np.diag(sigma) if name == "diagonal" else sigma
        assert_allclose(after.covariances_[h], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["full", "diagonal", "mop"])
def test_the_evidence_never_falls(name: str) -> None:
    model = MODELS[name](n_iter=40, temperature=1.0).fit(data())
    assert (np.diff(model.evidences_) > -1e-4).all()  # the floor of a variance adds what it adds
    assert model.evidences_[-1] > model.evidences_[0] + 0.1


def test_from_one_start_a_mixture_of_gaussians_is_that_of_scikit_learn() -> None:
    x = data()
    model = MODELS["full"](n_iter=60, temperature=1.0).fit(x)
    peer = GaussianMixture(
        H,
        means_init=model.components_,
        weights_init=model.prior_,
        precisions_init=np.linalg.inv(model.covariances_),
        max_iter=1,
        reg_covar=1e-9,
    )
    with pytest.warns(Warning, match="converge"):
        peer.fit(x)
    assert_allclose(peer.means_, model.components_, rtol=1e-2)
    assert_allclose(peer.score(x), model.score(x), rtol=1e-3)


def test_kinds_of_counts_are_found() -> None:
    x = data(300)
    rates = np.array([[9, 1, 1, 3], [1, 9, 3, 1], [2, 2, 9, 9.0]])
    for name in ("mop", "diagonal"):
        w = MODELS[name](n_iter=100).fit(x).components_
        for rate in rates:
            assert np.abs(w - rate).max(axis=1).min() < 1


def test_a_sample_of_another_length_is_of_the_same_kind_where_lengths_are_scaled() -> None:
    x = data(200)
    model = MODELS["scaled"](n_iter=60).fit(x)
    assert_allclose(model.components_.sum(axis=1), 40)
    assert_array_equal(model.predict(7 * x), model.predict(x))
    assert (MODELS["mop"](n_iter=60).fit(x).predict(7 * x) != model.predict(x)).any()


def test_an_unused_component_is_given_to_the_sample_that_is_explained_worst() -> None:
    class Far(MoG):
        def _start(self, *args: Any) -> Any:
            params = super()._start(*args)
            params["W"][0] = 1e3
            return params

    x = data()
    x[7] = 60.0
    model = Far(H, covariance="diagonal", n_iter=3, temperature=1.0, random_state=0).fit(x)
    assert model.reseeded_ >= 1 and model.usage_.min() > 0
    assert_allclose(model.prior_.sum(), 1)


def test_usage_is_a_share_of_the_samples_that_were_not_left_out() -> None:
    class Halved(MoG):
        def _cut(self, *args: Any) -> float:
            return 0.5

    model = Halved(H, n_iter=2, random_state=0).fit(data())
    assert_allclose(model.usage_.sum(), 1)


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    x = data()
    model = MODELS[name](n_iter=3).fit(x)
    again = type(model).load(model.save(tmp_path / "m"))
    assert again == model
    assert_array_equal(again.transform(x), model.transform(x))


def test_bad_input_is_refused() -> None:
    x = data()
    for model, field in (
        (MoG(H, covariance="tied"), "covariance"),
        (MoP(H, total=4.0), "total"),
        (MoG(0), "n_components"),
        (MoP(H, temperature=0.5), "temperature"),
    ):
        with pytest.raises(ConfigError) as refusal:
            model.fit(x)
        assert refusal.value.what == field
    with pytest.raises(DataError) as negative:
        MoP(H).fit(-x)
    assert "MoG" in str(negative.value.fix)
    holes = x.copy()
    holes[0, 0] = np.nan
    for model in (MoG(H), MoP(H)):
        with pytest.raises(ValueError, match="NaN"):
            model.fit(holes)
