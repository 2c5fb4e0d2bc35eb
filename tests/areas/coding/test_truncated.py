"""Expectation truncation against enumeration of all states, one sample and one state at a time."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.random import RandomState
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import multivariate_normal, norm

from intarsia.areas.coding import BSC, DSC, GSC, MCA, MMCA, TSC
from intarsia.areas.coding.samples import block_of
from intarsia.areas.coding.states import States
from intarsia.core.errors import CheckpointError, ConfigError, DataError, ShapeError

from ...refusals import refused

MODELS = {"bsc": BSC, "tsc": TSC, "dsc": DSC, "mca": MCA, "mmca": MMCA, "gsc": GSC}
MODELS |= {"gsc_full": partial(GSC, slab="full"), "mca_soft": partial(MCA, maximum="soft")}
MODELS |= {"mmca_soft": partial(MMCA, maximum="soft")}
LINEAR = ("bsc", "tsc", "dsc", "gsc")
H, D = 4, 5


def data(n: int = 30, seed: int = 0, missing: bool = False) -> Any:
    random = np.random.default_rng(seed)
    on = random.random((n, H)) < 0.3
    x = np.abs(on @ random.normal(size=(H, D)) * 2 + 0.3 * random.normal(size=(n, D)))
    if missing:
        x[random.random(x.shape) < 0.2] = np.nan
        x[np.isnan(x).all(axis=1), 0] = 1.0
    return x


def whole(name: str, **kw: Any) -> Any:
    """A model that keeps all states, so that truncation changes nothing."""
    kw = {"n_iter": 3, "temperature": 1.0, "random_state": 0, "reseed": False} | kw
    return MODELS[name](H, n_candidates=H, max_active=H, **kw)


def priors(model: Any) -> dict[float, float]:
    """p(s_h = v), of the models whose causes share it."""
    values = {TSC: (-1.0, 1.0), DSC: (-1.0, 1.0, 2.0)}.get(type(model), (1.0,))
    by_value = dict(zip(values, model.prior_, strict=True))
    return {0.0: 1 - sum(by_value.values())} | by_value


def twin_mean(model: Any, s: Any) -> Any:
    """The data of a state without noise."""
    w = model.components_
    if isinstance(model, MCA | MMCA) and model.maximum == "soft" and np.count_nonzero(s) > 1:
        rho, parts = 21 if isinstance(model, MCA) else 6, np.array(s)[:, None] * w
        signed = (np.sign(parts) * np.abs(parts) ** rho).sum(axis=0)
        return np.sign(signed) * np.abs(signed) ** (1 / rho)
    if isinstance(model, MCA):
        return (np.array(s)[:, None] * w).max(axis=0)
    if isinstance(model, MMCA):
        parts = np.array(s)[:, None] * w
        return parts[np.abs(parts).argmax(axis=0), np.arange(D)]
    return np.array(s) @ w


def slab_of(model: Any, on: Any) -> Any:
    """The covariance of the strengths that are on."""
    psi = model.slab_variance_
    return psi[np.ix_(on, on)] if psi.ndim == 2 else np.diag(psi[on])


def twin(model: Any, y: Any) -> tuple[Any, list[Any]]:
    """log p(y, s) of all states of one sample, and the states."""
    observed = ~np.isnan(y)
    noise, log_densities, states = float(model.noise_variance_), [], []
    if isinstance(model, GSC):
        pi = model.prior_
        for s in itertools.product((0, 1), repeat=H):
            b = np.array(s, dtype=bool)
            w = model.components_[b][:, observed]
            cov = noise * np.eye(observed.sum()) + w.T @ slab_of(model, b) @ w
            log = multivariate_normal.logpdf(y[observed], model.slab_mean_[b] @ w, cov)
            log_densities.append(log + np.log(np.where(b, pi, 1 - pi)).sum())
            states.append(s)
        return np.array(log_densities), states
    share = priors(model)
    for s in itertools.product(share, repeat=H):
        log = norm.logpdf(y[observed], twin_mean(model, s)[observed], np.sqrt(noise)).sum()
        log_densities.append(log + sum(np.log(share[v]) for v in s))
        states.append(s)
    return np.array(log_densities), states


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_with_all_states_the_evidence_and_the_code_are_those_of_enumeration(
    name: str, missing: bool
) -> None:
    x = data(missing=missing)
    model = whole(name).fit(x)
    for y, score, code, clean in zip(
        x, model.score_samples(x), model.transform(x), model.denoise(x), strict=True
    ):
        log, states = twin(model, y)
        assert_allclose(score, np.logaddexp.reduce(log), rtol=1e-8)
        q = np.exp(log - np.logaddexp.reduce(log))
        if not name.startswith("gsc"):
            assert_allclose(code, q @ np.array(states), atol=1e-9)
            means = np.array([twin_mean(model, s) for s in states])
            assert_allclose(clean, q @ means, atol=1e-9)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_with_all_states_the_evidence_never_falls(name: str, missing: bool) -> None:
    model = whole(name, n_iter=40, data_cut=False).fit(data(60, missing=missing))
    assert (np.diff(model.evidences_) > -1e-9).all()
    assert model.evidences_[-1] > model.evidences_[0] + 0.1


@pytest.mark.parametrize("slab", ["diagonal", "full"])
def test_the_posterior_of_strengths_is_the_gaussians(slab: str) -> None:
    x = data(8)
    model = whole("gsc", slab=slab).fit(x)
    for y, code in zip(x, model.transform(x), strict=True):
        log, states = twin(model, y)
        q, mean = np.exp(log - np.logaddexp.reduce(log)), np.zeros(H)
        for share, s in zip(q, states, strict=True):
            b = np.array(s, dtype=bool)
            w, mu = model.components_[b], model.slab_mean_[b]
            prior = np.linalg.inv(slab_of(model, b)) if b.any() else 0
            covariance = np.linalg.inv(w @ w.T / model.noise_variance_ + prior)
            mean[b] += share * (mu + covariance @ w @ (y - mu @ w) / model.noise_variance_)
        assert_allclose(code, mean, atol=1e-9)


def test_a_spike_and_slab_density_integrates_to_one() -> None:
    """The density without the 1/2 of the Gaussian's exponent does not."""
    model = GSC(2, n_candidates=2, max_active=2, n_iter=4, random_state=0)
    x = np.random.default_rng(0).normal(size=(40, 1)) * 2 + 1
    model.fit(x)
    grid = np.linspace(-60, 60, 20001)
    density = np.exp(model.score_samples(grid[:, None]))
    assert_allclose(np.trapezoid(density, grid), 1, rtol=1e-6)


def test_strengths_that_rise_together_are_found_by_a_full_slab_alone() -> None:
    """z_1 = z_0 exactly, W the unit vectors: Psi has the covariance 1 beside the variances 1."""
    random = np.random.default_rng(0)
    z = 3 + random.normal(size=(400, 1)) @ np.ones((1, 2))
    x = z * (random.random((400, 2)) < 0.7) + 0.1 * random.normal(size=(400, 2))
    settings: Any = {"n_iter": 300, "data_cut": False, "random_state": 0, "temperature": 2.0}
    full, diagonal = (GSC(2, slab=slab, **settings).fit(x) for slab in ("full", "diagonal"))
    w, psi = full.components_, full.slab_variance_
    order = np.abs(w).argmax(axis=1)
    assert_array_equal(np.sort(order), [0, 1])
    size = np.abs(w).max(axis=1)
    assert_allclose(psi * np.outer(size, size), np.ones((2, 2)), atol=0.2)
    assert full.score(x) > diagonal.score(x) + 0.5


def test_a_full_slab_without_covariances_is_a_diagonal_one() -> None:
    x = data(20)
    model = whole("gsc").fit(x)
    full = whole("gsc", slab="full").fit(x)
    for name in ("components_", "noise_variance_", "prior_", "slab_mean_"):
        setattr(full, name, getattr(model, name))
    full.slab_variance_ = np.diag(model.slab_variance_)
    assert_allclose(full.score_samples(x), model.score_samples(x), rtol=1e-9)
    assert_allclose(full.transform(x), model.transform(x), rtol=1e-9)


def test_noise_of_the_old_components_is_their_residual() -> None:
    """sigma^2 = mean <||y - W s||^2> / D under the W before the step, which is never less."""
    x = data(25)
    before, new = (whole("bsc", n_iter=n).fit(x) for n in (1, 2))
    old = whole("bsc", n_iter=2, noise_from="old").fit(x)
    before_old = whole("bsc", n_iter=1, noise_from="old").fit(x)
    assert_allclose(before.components_, before_old.components_)
    off = 0.0
    for y in x:
        log, states = twin(before_old, y)
        for q, s in zip(np.exp(log - np.logaddexp.reduce(log)), states, strict=True):
            off += q * np.square(y - np.array(s) @ before_old.components_).sum()
    assert_allclose(old.noise_variance_, off / x.size, rtol=1e-9)
    assert before_old.noise_variance_ > before.noise_variance_
    assert not np.allclose(old.components_, new.components_)


@pytest.mark.parametrize("name", ["bsc", "gsc"])
def test_one_step_is_the_closed_form_of_the_model(name: str) -> None:
    """W, sigma^2 and the shares after a step from those before it, by sums over all states."""
    x = data(25)
    before, after = (whole(name, n_iter=n).fit(x) for n in (1, 2))
    ss, ys, n_on, off = np.zeros((H, H)), np.zeros((H, D)), np.zeros(H), []
    for y in x:
        log, states = twin(before, y)
        for q, s in zip(np.exp(log - np.logaddexp.reduce(log)), states, strict=True):
            b, mean, cov = np.array(s, dtype=bool), np.array(s, float), np.zeros((H, H))
            if name == "gsc":
                w, mu = before.components_[b], before.slab_mean_[b]
                noise, psi = before.noise_variance_, before.slab_variance_[b]
                covariance = np.linalg.inv(w @ w.T / noise + np.diag(1 / psi))
                mean[b] = mu + covariance @ w @ (y - mu @ w) / noise
                cov[np.ix_(b, b)] = covariance
            ss += q * (np.outer(mean, mean) + cov)
            ys += q * np.outer(mean, y)
            n_on += q * b
            off.append((q, y, mean, cov))
    w = np.linalg.solve(ss, ys)
    assert_allclose(after.components_, w, rtol=1e-6)
    noise = sum(q * (np.square(y - m @ w).sum() + np.trace(w.T @ c @ w)) for q, y, m, c in off)
    assert_allclose(after.noise_variance_, noise / x.size, rtol=1e-6)
    share = n_on / len(x) if name == "gsc" else [n_on.sum() / len(x) / H]
    assert_allclose(after.prior_, share, rtol=1e-6)


def test_a_truncated_evidence_is_a_bound_that_more_states_raise() -> None:
    x = data(20)
    model = BSC(H, n_candidates=H, max_active=H, n_iter=5, random_state=0).fit(x)
    exact = model.score_samples(x)
    scores = [model.set_params(max_active=g).score_samples(x) for g in (1, 2, 3)]
    for low, high in itertools.pairwise([*scores, exact]):
        assert (low <= high + 1e-12).all()


def test_ternary_causes_are_binary_ones_of_both_signs() -> None:
    """TSC with one cause on at most is BSC with each component and its opposite."""
    x = data(20)
    ternary = TSC(H, n_candidates=H, max_active=1, n_iter=5, random_state=0).fit(x)
    binary = BSC(2 * H, n_candidates=2 * H, max_active=1, n_iter=1, random_state=0).fit(x)
    w, pi = ternary.components_, ternary.prior_
    binary.components_, binary.noise_variance_ = np.concatenate([-w, w]), ternary.noise_variance_
    binary.prior_ = pi[:1] / (1 - pi.sum()) / (1 + pi[:1] / (1 - pi.sum()))  # equal odds
    code = binary.transform(x)
    assert_allclose(ternary.transform(x), code[:, H:] - code[:, :H], atol=1e-9)


def test_a_slab_of_no_width_is_a_binary_cause() -> None:
    x = data(20)
    binary = whole("bsc").fit(x)
    slab = whole("gsc").fit(x)
    slab.components_, slab.noise_variance_ = binary.components_, binary.noise_variance_
    slab.prior_ = np.full(H, binary.prior_[0])
    slab.slab_mean_, slab.slab_variance_ = np.ones(H), np.full(H, 1e-9)
    assert_allclose(slab.score_samples(x), binary.score_samples(x), rtol=1e-5)


def test_the_larger_of_two_causes_is_by_value_or_by_magnitude() -> None:
    first, second = np.array([-3.0, 1.0, 2.0]), np.array([2.0, -2.0, 1.0])
    assert_array_equal(MCA(2)._larger(first, second), [2, 1, 2])
    assert_array_equal(MMCA(2)._larger(first, second), [-3, -2, 2])


@pytest.mark.parametrize("kind", [MCA, MMCA])
def test_the_temperature_divides_the_prior_where_it_is_annealed(kind: Any) -> None:
    """The log evidence of a first step at T is log sum (p(y | s) p(s))^(1 / T) or p(s) whole."""
    x, heat = data(20), 4.0
    settings = {"n_candidates": H, "max_active": H, "n_iter": 1, "random_state": 0, "reseed": False}
    begun = {a: kind(H, temperature=heat, anneal_prior=a, **settings).fit(x) for a in (True, False)}
    model = kind(H, temperature=heat, **settings)
    model.n_features_in_ = D
    params = model._start(x.mean(axis=0), np.sqrt(x.var(axis=0).mean()), RandomState(0))
    joint = model._joint(params, block_of(x, False), model._states(), heat)
    for annealed, fitted in begun.items():
        prior = joint.prior / heat if annealed else joint.prior
        expected = np.logaddexp.reduce(joint.likelihood / heat + prior, axis=1).mean()
        assert_allclose(fitted.evidences_[0], expected)


def test_with_one_cause_the_maximum_is_the_sum() -> None:
    x = data(20)
    largest, added = (MODELS[n](H, max_active=1, n_iter=6, random_state=0) for n in ("mca", "bsc"))
    largest.fit(x)
    added.fit(x)
    for name in ("components_", "noise_variance_", "prior_"):
        setattr(added, name, getattr(largest, name))
    assert_allclose(added.score_samples(x), largest.score_samples(x), rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_of_a_posterior_are_sorted_and_add_up(name: str) -> None:
    x = data(12)
    model = MODELS[name](H, n_candidates=3, max_active=2, n_iter=4, random_state=0).fit(x)
    posterior = model.posterior(x, n_states=1000)
    assert_allclose(posterior.probabilities.sum(axis=1), 1)
    assert (np.diff(posterior.probabilities, axis=1) <= 1e-15).all()
    if not name.startswith("gsc"):
        code = (posterior.states * posterior.probabilities[..., None]).sum(axis=1)
        assert_allclose(code, model.transform(x), atol=1e-12)
    assert (np.count_nonzero(posterior.states, axis=2) <= 2).all()


def bars() -> Any:
    pictures = np.zeros((6, 3, 3))
    for i in range(3):
        pictures[i, i] = pictures[3 + i, :, i] = 10
    return pictures.reshape(6, 9)


@pytest.mark.parametrize("name", ["bsc", "mca", "gsc"])
def test_bars_are_found(name: str) -> None:
    random, truth = np.random.default_rng(0), bars()
    on = (random.random((300, 6)) < 0.25).astype(float)
    clean = (on[:, :, None] * truth).max(axis=1) if name == "mca" else on @ truth
    x = np.abs(clean + random.normal(size=clean.shape))
    model = MODELS[name](6, n_candidates=5, max_active=4, n_iter=50, random_state=1).fit(x)
    w = model.components_
    w, t = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (w, truth))
    assert ((w @ t.T).max(axis=0) > 0.9).sum() >= 5


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_the_same_to_the_bit(name: str, tmp_path: Path) -> None:
    x = data(12)
    model = MODELS[name](3, n_iter=3, random_state=0).fit(x)
    again = type(model).load(model.save(tmp_path / "m"))
    assert again == model
    for attribute, value in vars(model).items():
        assert_array_equal(getattr(again, attribute), value)
    assert_array_equal(again.transform(x), model.transform(x))
    model.save(tmp_path / "m")  # replaces its own folder
    with pytest.raises(CheckpointError, match=r"Load it with"):
        (TSC if name == "bsc" else BSC).load(tmp_path / "m")


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    folder = BSC(2, n_iter=1, random_state=0).fit(data()).save(tmp_path / "m")
    raw = bytearray((folder / "tensors.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "tensors.safetensors").write_bytes(raw)
    with refused(CheckpointError, got="bytes that changed after they were written"):
        BSC.load(folder)
    (folder / "card.json").write_text('{"format": 1}')
    with refused(CheckpointError, got="KeyError: 'key'"):
        BSC.load(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("")
    with refused(ConfigError, got="other files in it, such as 'letter.txt'"):
        BSC(2, n_iter=1, random_state=0).fit(data()).save(tmp_path / "full")


def test_inpainting_fills_what_is_missing_and_nothing_else() -> None:
    truth, random = bars(), np.random.default_rng(0)
    model = BSC(6, max_active=3, n_iter=1, random_state=0).fit(random.normal(size=(50, 9)))
    model.components_, model.noise_variance_ = truth, np.array(0.01)
    x = truth[:2].copy()
    x[0, 1] = x[1, 4] = np.nan  # a pixel of the bar
    assert_allclose(model.inpaint(x), truth[:2], atol=1e-6)
    assert_array_equal(model.inpaint(truth[:2]), truth[:2])


class Far(BSC):
    """Its first component is too long to be ever on at the start."""

    def _start(self, *args: Any) -> Any:
        params = super()._start(*args)
        params["W"][0] = 1e6
        return params


def test_an_unused_component_is_given_to_the_sample_that_is_explained_worst() -> None:
    x = data(40)
    x[7] = 30.0
    unchanged = Far(H, n_iter=2, random_state=3, temperature=1.0).fit(x)
    assert unchanged.reseeded_ == 1
    assert unchanged.evidences_[1] > unchanged.evidences_[0]
    assert Far(H, n_iter=2, random_state=3, reseed=False).fit(x).reseeded_ == 0


@pytest.mark.parametrize(
    ("settings", "x", "got"),
    [
        ({"n_candidates": 5}, None, "5"),
        ({"n_candidates": 2, "max_active": 3}, None, "3"),
        ({"temperature": 0.5}, None, "0.5"),
        ({"n_iter": 0}, None, "0"),
        ({"n_components": 40}, None, "30 samples for n_components=40"),
        ({"n_components": 40, "n_candidates": 40, "max_active": 8}, None, "100,146,683"),
        ({}, np.ones((9, 3)), "samples that are all equal"),
        ({}, np.full((9, 3), np.nan), "no value in 9 rows, the first of them 0"),
        (
            {},
            np.where(np.arange(3) == 1, np.nan, np.eye(9, 3)),
            "no value in 1 columns, the first of them 1",
        ),
    ],
)
def test_bad_input_is_refused(settings: Any, x: Any, got: str) -> None:
    with refused(ConfigError, DataError, got=got):
        BSC(**({"n_components": H, "n_iter": 2} | settings)).fit(data() if x is None else x)


def test_bad_input_of_single_models_is_refused() -> None:
    with refused(DataError, what="Negative values in data"):
        MCA(2, n_iter=1).fit(-data())
    for kind, setting in ((BSC, "noise_from"), (MCA, "maximum"), (GSC, "slab")):
        with pytest.raises(ConfigError) as refusal:
            cast(Any, kind)(2, n_iter=1, **{setting: "other"}).fit(data())
        assert refusal.value.what == setting and "other" in str(refusal.value.got)
    for values in ((0, 1), (1, 1), ()):
        with refused(ConfigError, what="values", want="numbers that differ, none of them 0"):
            DSC(2, n_iter=1, values=values).fit(data())
    with refused(ConfigError, what="values", want="a finite number"):
        DSC(2, n_iter=1, values=(np.nan,)).fit(data())
    model = BSC(2, n_iter=1, random_state=0).fit(data())
    with refused(DataError, what="codes", got=(2, 3)):
        model.inverse_transform(np.ones((2, 3)))
    with refused(ShapeError, what="component"):
        model.plot_components()


@pytest.mark.parametrize("name", MODELS)
def test_another_unit_of_the_data_is_another_unit_of_the_model(name: str) -> None:
    """Volts as well as microvolts."""
    x, unit = data(30, seed=1), 1e-6
    plain, small = (MODELS[name](H, n_iter=12, random_state=0).fit(x * u) for u in (1, unit))
    assert_allclose(small.components_ / unit, plain.components_, rtol=1e-6, atol=1e-9)
    assert_allclose(small.noise_variance_ / unit**2, plain.noise_variance_, rtol=1e-6)
    assert_allclose(small.transform(x * unit), plain.transform(x), rtol=1e-6, atol=1e-9)


def test_strengths_of_data_far_from_zero_are_refused_and_the_cure_cures() -> None:
    x = data(60) + 1e7
    model = GSC(H, n_iter=30, random_state=0)
    with refused(
        DataError, what="X", got="a mean far above what varies, so that components are one"
    ):
        model.fit(x)
    assert np.isfinite(model.fit(x - x.mean(axis=0)).evidences_).all()


def test_settings_of_a_search_are_saved(tmp_path: Path) -> None:
    """np.int64(2) is what a grid of np.arange gives."""
    model = DSC(np.int64(2), n_iter=1, random_state=np.int64(0), values=np.array([1.0, 2.0]))  # pyright: ignore
    again = DSC.load(model.fit(data()).save(tmp_path / "m"))
    assert (again.n_components, again.random_state, again.values) == (2, 0, (1.0, 2.0))
    assert_array_equal(again.transform(data()), model.transform(data()))


def test_components_become_tiles(tmp_path: Path) -> None:
    model = BSC(3, n_iter=2, random_state=0).fit(data())
    picture = model.plot_components(tmp_path / "w.png", shape=(1, D))
    assert (tmp_path / "w.png").is_file() and picture.mode == "L"
    tile = np.asarray(picture)[2 : 2 + 9, 2 : 2 + 45][4, 4::9]  # the most used, 9 px for each value
    w = model.components_[np.argmax(model.usage_)]
    assert_allclose(tile, np.round(127.5 * (1 + w / np.abs(w).max())), atol=1)


def test_states_are_the_subsets_of_candidates() -> None:
    states = States(4, 3, (1.0, -2.0))
    assert len(states.table) == 6 * 4 + 4 * 8 == len({tuple(r) for r in states.table.tolist()})
    assert_array_equal(states.counts.sum(axis=1), (states.table != 0).sum(axis=1))
    for level in states.levels:
        assert level.parent.max() < 10
