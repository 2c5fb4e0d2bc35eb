"""The Gaussian mixture of experts against closed forms, autograd and theory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor

from intarsia.core.errors import ConfigError, ShapeError
from intarsia.models import SoftmaxGaussianMoE, convergence_study, voronoi
from intarsia.models.convergence import TRUTH
from intarsia.models.gaussian_mixture import GATES, Parameters, draw, gradient, log_density

from ..refusals import refused

NAMES = sorted(GATES)
PHI: dict[str, Any] = {
    "linear": lambda z: z,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(  # of its defaults they are a law of conformance
    [SoftmaxGaussianMoE(2, "gelu", "fixed", n_init=1, max_iter=40, random_state=0)]
)
def test_scikit_learns_estimator_checks_pass(estimator: Any, check: Any) -> None:
    check(estimator)


def problem(n: int, k: int = 3, d: int = 2, seed: int = 0) -> tuple[Parameters, Any, Any]:
    random = np.random.default_rng(seed)
    gate, bias = random.normal(size=(k, d)), random.normal(size=k)
    gate[-1], bias[-1] = 0, 0
    params = Parameters(
        gate, bias, 0.7, random.normal(size=(k, d)), random.normal(size=k),
        random.uniform(0.2, 1, k),
    )  # fmt: skip
    x = random.normal(size=(n, d))
    return params, x, random.normal(size=n)


def sample(gate: str, n: int, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    x = random.uniform(-2, 2, (n, 1))
    return x, draw(TRUTH, gate, x, random)


def twin(vector: Tensor, gate: str, x: Tensor, y: Tensor) -> Tensor:
    """log p(y | x) of each sample for the truth's shape: beta_1, beta_0, tau, a, b, nu."""
    zero = vector.new_zeros(1)
    beta1, beta0 = torch.cat([vector[:1], zero]), torch.cat([vector[1:2], zero])
    logits = PHI[gate](x[:, None] * beta1) / vector[2] + beta0
    mean, scale = x[:, None] * vector[3:5] + vector[5:7], vector[7:9].sqrt()
    normal = torch.distributions.Normal(mean, scale).log_prob(y[:, None])
    return (logits.log_softmax(-1) + normal).logsumexp(-1)


def scores(vector: Tensor, gate: str, x: Tensor, y: Tensor, h: float = 1e-5) -> Tensor:
    """The derivatives of each sample's log p(y | x) by central differences.  (n, 9)."""
    sides = [(vector + h * e, vector - h * e) for e in torch.eye(9, dtype=torch.float64)]
    differences = [twin(up, gate, x, y) - twin(down, gate, x, y) for up, down in sides]
    return torch.stack(differences, 1) / (2 * h)


def at_truth() -> Tensor:
    parts = (
        TRUTH.gate[:1].ravel(), TRUTH.bias[:1], [TRUTH.tau], TRUTH.slope.ravel(), TRUTH.intercept,
        TRUTH.variance,
    )  # fmt: skip
    return torch.tensor(np.concatenate(parts))


@given(st.sampled_from(NAMES), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_density_and_gradient_are_those_of_the_definition(
    gate: str, k: int, d: int, seed: int
) -> None:
    params, x, y = problem(7, k, d, seed)
    parts = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in params]
    beta1, beta0, tau, a, b, nu = parts
    points, values = torch.tensor(x), torch.tensor(y)
    share = (PHI[gate](points @ beta1.T) / tau + beta0).softmax(-1)
    mean = points @ a.T + b
    normal = (-((values[:, None] - mean) ** 2) / (2 * nu)).exp() / (2 * torch.pi * nu).sqrt()
    log = (share * normal).sum(-1).log()
    assert_allclose(log_density(params, gate, x, y), log.detach().numpy(), rtol=1e-8)
    log.mean().backward()
    value, slopes = gradient(params, gate, x, y)
    assert value == pytest.approx(log.mean().item())
    logs = {2: params.tau, 5: params.variance}  # by log tau and log nu
    for i, (ours, part) in enumerate(zip(slopes, parts, strict=True)):
        want = torch.zeros_like(part) if part.grad is None else part.grad
        assert_allclose(ours, want.numpy() * logs.get(i, 1.0), atol=1e-9)


def test_a_density_by_hand() -> None:
    """p(y | x) = sum_i softmax_i(beta_1i x / tau + beta_0i) N(y; a_i x + b_i, nu_i), two experts.

    x = 1, y = 0; beta_1 = (2, 0), beta_0 = 0, tau = 1: shares .8808 and .1192; a = 0, b = (0, 1),
    nu = 1: densities .3989 and .2420. p = .8808 x .3989 + .1192 x .2420 = .3802, its logarithm
    -.9670. With beta_1 = 4 and tau = 2 it is the same, which is why tau cannot be learned.
    """
    zeros = np.zeros((2, 1))
    params = Parameters(
        np.array([[2.0], [0]]), np.zeros(2), 1.0, zeros, np.array([0.0, 1]), np.ones(2)
    )
    x, y = np.ones((1, 1)), np.zeros(1)
    assert log_density(params, "linear", x, y).item() == pytest.approx(-0.9670, abs=1e-4)
    scaled = params._replace(gate=2 * params.gate, tau=2.0)
    assert log_density(scaled, "linear", x, y).item() == pytest.approx(-0.9670, abs=1e-4)


@pytest.mark.parametrize("gate", NAMES)
def test_scaling_gate_and_temperature_changes_nothing_for_the_linear_gate_only(
    gate: str,
) -> None:
    params, x, y = problem(50)
    scaled = params._replace(gate=3 * params.gate, tau=3 * params.tau)
    off = np.abs(log_density(params, gate, x, y) - log_density(scaled, gate, x, y)).max()
    assert off < 1e-10 if gate == "linear" else off > 1e-3


@pytest.mark.parametrize("gate", ["linear", "sigmoid"])
def test_information_at_the_truth_is_singular_for_the_linear_gate_only(gate: str) -> None:
    x, y = (torch.tensor(part) for part in sample(gate, 4000))
    truth = at_truth()

    def loss(vector: Tensor) -> Tensor:
        return -twin(vector, gate, x[:, 0], y).mean()

    hessian = torch.autograd.functional.hessian(loss, truth)
    assert isinstance(hessian, Tensor)
    flat = torch.zeros_like(truth)
    flat[0], flat[2] = truth[0], truth[2]  # along which (beta_1, tau) grow together
    flat = flat / flat.norm()
    score = scores(truth, gate, x[:, 0], y)
    information = score.T @ score / len(score)
    if gate == "linear":
        assert abs((flat @ hessian @ flat).item()) < 1e-8
        assert_allclose((score @ flat).numpy(), 0, atol=1e-6)  # du/dtau = -beta_1/tau du/dbeta_1
        assert abs(torch.linalg.eigvalsh(information)[0].item()) < 1e-9
    else:
        for matrix in (hessian, information):
            assert torch.linalg.eigvalsh(matrix)[0].item() > 1e-4


@pytest.mark.parametrize("gate", NAMES)
def test_the_score_has_mean_zero_at_the_truth(gate: str) -> None:
    n = 4000
    x, y = (torch.tensor(part) for part in sample(gate, n))
    score = scores(at_truth(), gate, x[:, 0], y)
    scaled = score.mean(0) / score.std(0)
    assert float(scaled.abs().max()) <= 4 / n**0.5


def test_one_expert_is_ordinary_least_squares() -> None:
    _, x, y = problem(40, 1, 3)
    ours = SoftmaxGaussianMoE(1, tol=1e-9).fit(x, y)
    plain = LinearRegression().fit(x, y)
    assert_allclose(ours.coef_[0], plain.coef_, atol=1e-6)
    assert_allclose(ours.intercept_[0], plain.intercept_, atol=1e-6)
    assert_allclose(ours.variance_[0], np.square(y - plain.predict(x)).mean(), rtol=1e-6)
    assert_allclose(ours.predict(x), plain.predict(x), atol=1e-6)
    assert ours.score(x, y) == pytest.approx(plain.score(x, y))


def test_an_em_step_never_lowers_the_likelihood_and_stays_at_the_maximum() -> None:
    x, y = sample("sigmoid", 500)
    design = np.column_stack([x, np.ones(len(x))])

    def step(params: Parameters, share: Any) -> Parameters:
        """The closed part of an EM step: experts by weighted least squares."""
        solved = [np.linalg.lstsq(design * w[:, None] ** 0.5, y * w**0.5)[0] for w in share.T]
        coef = np.stack(solved)
        off = np.square(y[:, None] - design @ coef.T)
        variance = (share * off).sum(0) / share.sum(0)
        return params._replace(slope=coef[:, :1], intercept=coef[:, 1], variance=variance)

    model = SoftmaxGaussianMoE(2, random_state=0)
    with pytest.warns(ConvergenceWarning):
        clone(model).set_params(max_iter=2, n_init=1).fit(x, y)
    params = TRUTH._replace(slope=TRUTH.slope + 0.5, intercept=TRUTH.intercept - 0.4)
    values = [log_density(params, "sigmoid", x, y).mean()]
    for _ in range(10):
        share = np.stack([np.exp(log_density(params, "sigmoid", x, y))] * 2, 1)
        fresh = model.fit(x, y, start=params)  # only to read responsibilities at a point
        fresh.gate_, fresh.bias_, fresh.tau_, fresh.coef_, fresh.intercept_, fresh.variance_ = (
            params
        )
        share = fresh.responsibilities(x, y)
        assert_allclose(share.sum(1), 1)
        params = step(params, share)
        values.append(log_density(params, "sigmoid", x, y).mean())
    assert (np.diff(values) > -1e-12).all() and values[-1] > values[0] + 0.1
    best = model.fit(x, y, start=params)
    again = step(best.parameters, best.responsibilities(x, y))
    assert_allclose(again.slope, best.coef_, atol=1e-4)
    assert best.score_samples(x, y).mean() >= values[-1]


@pytest.mark.parametrize("gate", ["linear", "sigmoid"])
def test_it_finds_the_experts_in_any_units(gate: str) -> None:
    x, y = sample(gate, 3000)
    near = SoftmaxGaussianMoE(2, gate).fit(x, y, start=TRUTH)
    assert voronoi(near.parameters, TRUTH)["experts"] < 0.15
    assert near.log_likelihood_ == pytest.approx(near.score_samples(x, y).mean())
    rescaled = SoftmaxGaussianMoE(2, gate, random_state=0).fit(x, y)
    assert rescaled.log_likelihood_ > near.log_likelihood_ - 0.01
    scaled = Parameters(
        TRUTH.gate / 10, TRUTH.bias, TRUTH.tau, TRUTH.slope / 2, 5 * TRUTH.intercept + 7,
        25 * TRUTH.variance,
    )  # fmt: skip
    far = SoftmaxGaussianMoE(2, gate).fit(10 * x, 5 * y + 7, start=scaled)
    assert_allclose(far.predict(10 * x), 5 * near.predict(x) + 7, atol=0.02)
    assert far.log_likelihood_ == pytest.approx(near.log_likelihood_ - np.log(5), abs=1e-5)


def test_a_search_that_ends_at_its_start_returns_it_in_the_units_of_the_data() -> None:
    params, x, y = problem(60)
    model = SoftmaxGaussianMoE(3, "tanh", tol=1e6).fit(3 * x, 5 * y + 7, start=params)
    for ours, theirs in zip(model.parameters, params, strict=True):
        assert_allclose(ours, theirs, rtol=1e-9)


def test_the_last_gate_stays_zero_and_a_fixed_temperature_stays() -> None:
    _, x, y = problem(60)
    model = SoftmaxGaussianMoE(3, "tanh", "fixed", tau=0.3, n_init=1, random_state=0).fit(x, y)
    assert model.tau_ == 0.3 and not model.gate_[-1].any() and model.bias_[-1] == 0
    learnt = clone(model).set_params(temperature="learn").fit(x, y)
    assert learnt.tau_ != 0.3 and not learnt.gate_[-1].any()
    assert_allclose(model.gates(x).sum(1), 1)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fits_are_reproducible_and_densities_bounded() -> None:
    _, x, y = problem(12)
    first, second = (SoftmaxGaussianMoE(4, random_state=3, max_iter=150) for _ in range(2))
    with np.errstate(all="raise", under="ignore"):
        first.fit(x, y)
    assert_allclose(first.predict(x), second.fit(x, y).predict(x))
    assert (first.variance_ >= 0.99e-6 * y.var()).all()
    assert first == second and first != SoftmaxGaussianMoE(3)


def test_voronoi_losses_ignore_the_order_of_experts_and_use_powers() -> None:
    swapped = Parameters(
        *(np.asarray(p)[::-1] if np.ndim(p) else p for p in TRUTH)
    )  # labels swapped: the zero gate first
    assert voronoi(TRUTH, TRUTH) == {"gate": 0, "ratio": 0, "experts": 0, "mass": 0}
    assert voronoi(swapped, TRUTH) == {"gate": 0, "ratio": 0, "experts": 0, "mass": 0}
    off = TRUTH._replace(intercept=TRUTH.intercept + [0.1, 0.0])
    assert voronoi(off, TRUTH)["experts"] == pytest.approx(0.1 * np.exp(-1))
    # two fitted experts at the first true one: squared, and their masses add up
    split = Parameters(
        np.array([[4.0], [4.0], [0.0]]), np.array([-1 - np.log(2)] * 2 + [0.0]), 0.5,
        np.array([[1.5], [1.5], [-1.0]]), np.array([0.6, 0.4, -0.5]), np.array([0.09, 0.09, 0.16]),
    )  # fmt: skip
    losses = voronoi(split, TRUTH)
    assert losses["experts"] == pytest.approx(0.01 * np.exp(-1))
    assert losses["mass"] == pytest.approx(0, abs=1e-12)


def test_a_study_is_reproducible_and_experts_converge() -> None:
    studies = [
        convergence_study("linear", sizes=(200, 3200), replicates=2, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert studies[0] == studies[1] != studies[2]
    assert studies[0].slope("experts") < -0.2
    # no data move a start: its error is that of the noise, which falls with nothing
    assert min(studies[0].starts["experts"]) > max(studies[0].errors["experts"])
    at_the_truth = convergence_study("linear", sizes=(200, 300), replicates=2, noise=0.0)
    assert at_the_truth.starts["experts"] == at_the_truth.starts["gate"] == (0.0, 0.0)
    with refused(ConfigError, what="sizes"):
        convergence_study("linear", sizes=(200,))
    with refused(ConfigError, what="gate", got="'relu'"):
        convergence_study("relu", sizes=(200, 300))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"n_experts": 0}, "n_experts"),
        ({"gate": "relu"}, "gate"),
        ({"temperature": "free"}, "temperature"),
        ({"tau": 0.0}, "tau"),
        ({"tol": 0.0}, "tol"),
        ({"n_init": 0}, "n_init"),
    ],
)
def test_bad_settings_are_refused_by_fit(settings: dict[str, Any], field: str) -> None:
    _, x, y = problem(9)
    with refused(ConfigError, what=field):
        SoftmaxGaussianMoE(**settings).fit(x, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_start_or_a_y_that_does_not_fit_is_refused() -> None:
    x, y = sample("linear", 50)
    for wrong in (TRUTH._replace(tau=-1.0), TRUTH._replace(gate=TRUTH.gate + 1), problem(3)[0]):
        with refused(ShapeError, what="start"):
            SoftmaxGaussianMoE(2).fit(x, y, start=wrong)
    model = SoftmaxGaussianMoE(2, n_init=1, random_state=0).fit(x, y)
    with refused(ShapeError, what="y", got=(3,)):
        model.score_samples(x, y[:3])
    for wrong in (y[:, None], y[:1]):  # which broadcast
        with refused(ShapeError, what="y"):
            model.responsibilities(x, wrong)
