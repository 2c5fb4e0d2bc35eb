"""The converged linear probe: against a plain optimiser, its folds, and how `fit` uses it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from sklearn.neighbors import NearestCentroid
from tiny import host, pictures
from torch import Tensor

from intarsia import evaluate, fit
from intarsia.hosts.attach.select import train_part
from intarsia.train.folds import deal
from intarsia.train.probe import STRENGTHS, converged_probe
from intarsia.train.scores import comparing_temperature, wrong_and_loss


def blobs(n: int, d: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw n rows around a mean for each class, on axes of unlike size."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = generator.normal(size=(n, d)) + generator.normal(size=(classes, d))[y]
    return x * np.linspace(0.1, 10, d) + 5, y


def scaled(x: np.ndarray, scaling: str) -> np.ndarray:
    """Centre the features, and divide each by its own deviation, or all by one."""
    centred = x - x.mean(0)
    return centred / (x.std(0) if scaling == "each" else np.sqrt((centred**2).mean()))


def naive_optimum(rows: np.ndarray, y: np.ndarray, c: float) -> Tensor:
    """Return logits of the rows at the minimum of C sum loss + |W|^2 / 2, by torch's L-BFGS."""
    z = torch.from_numpy(rows)
    labels, classes = torch.from_numpy(y), int(y.max()) + 1
    weight = torch.zeros(classes, z.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    search = {"line_search_fn": "strong_wolfe", "tolerance_grad": 1e-10, "max_iter": 2000}
    optimiser = torch.optim.LBFGS([weight, bias], **search)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(z @ weight.T + bias, labels, reduction="sum")
        total = c * loss + (weight**2).sum() / 2
        total.backward()
        return total

    optimiser.step(closure)  # pyright: ignore
    return (z @ weight.T + bias).detach()


@pytest.mark.parametrize("scaling", ["one", "each"])
@pytest.mark.parametrize("d", [6, 200])
def test_the_probe_is_at_the_minimum(d: int, scaling: str) -> None:
    x, y = blobs(60, d)
    fold = deal(y, 5, 0)
    probe = converged_probe(x, y, 3, fold=fold, strengths=[0.1], scalings=[scaling])
    logits = probe(torch.from_numpy(x).float()).double()
    wanted = naive_optimum(scaled(x, scaling), y, 0.1)
    shares = logits.softmax(1), wanted.softmax(1)
    torch.testing.assert_close(*shares, atol=2e-3, rtol=0)


def test_held_out_logits_are_those_of_a_probe_without_the_fold() -> None:
    x, y = blobs(50, 8)
    fold = deal(y, 5, 1)
    options = {"strengths": [0.03], "scalings": ["one"]}
    probe = converged_probe(x, y, 3, fold=fold, held=2, **options)
    for number in range(2):
        out = fold == number
        alone = converged_probe(x[~out], y[~out], 3, fold=fold[~out], held=1, **options)
        torch.testing.assert_close(
            probe.held_out[torch.from_numpy(out)],
            alone(torch.from_numpy(x[out]).float()),
            atol=1e-3,
            rtol=1e-3,
        )
    assert bool(probe.held_out[torch.from_numpy(fold >= 2)].isnan().all())


def test_a_fold_is_answered_at_the_choice_of_the_other_folds() -> None:
    random = np.random.default_rng(3)
    y = np.arange(40) % 4
    x = random.normal(size=(40, 12)) + 0.6 * np.eye(12)[y]
    fold, strengths = deal(y, 5, 0), [1e-4, 1e-2, 1.0]
    labels = torch.from_numpy(y)
    alone = {
        c: converged_probe(x, y, 4, fold=fold, strengths=[c], scalings=["one"]).held_out
        for c in strengths
    }

    def best(rows: np.ndarray) -> float:
        return min(strengths, key=lambda c: wrong_and_loss(alone[c][rows], labels[rows]))

    probe = converged_probe(x, y, 4, fold=fold, strengths=strengths, scalings=["one"])
    assert probe.strength == best(fold >= 0)
    choices = [best(fold != number) for number in range(5)]
    assert len(set(choices)) > 1  # else this says nothing
    temperature = {c: comparing_temperature(alone[c], labels) for c in strengths}
    for number, c in enumerate(choices):
        answers = alone[c][fold == number] * temperature[probe.strength] / temperature[c]
        torch.testing.assert_close(probe.held_out[fold == number], answers, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scaling", ["one", "each"])
def test_the_scaling_that_answers_more_is_chosen(scaling: str) -> None:
    random = np.random.default_rng(0)
    y = np.arange(120) % 3
    signal = np.eye(3)[y] + 0.3 * random.normal(size=(120, 3))
    noise = random.normal(size=(120, 300))
    # small features that say nothing, or large ones: a common scale mutes the ones, and not these
    x = np.hstack([signal, noise * (0.02 if scaling == "one" else 50)])
    assert converged_probe(x, y, 3, fold=deal(y, 5, 0)).scaling == scaling


@pytest.mark.parametrize("scaling", ["one", "each"])
def test_strength_zero_is_the_nearest_class_mean(scaling: str) -> None:
    x, y = blobs(40, 5)
    probe = converged_probe(x, y, 3, fold=deal(y, 5, 0), strengths=[0.0], scalings=[scaling])
    z = scaled(x, scaling)
    wanted = NearestCentroid().fit(z, y).predict(z)
    assert np.array_equal(probe(torch.from_numpy(x)).argmax(1).numpy(), wanted)


def test_a_label_of_its_own_regression_each_where_several_apply() -> None:
    x, y = blobs(60, 5)
    several = np.eye(3, dtype=int)[y]
    several[:, 2] = 1  # a label that every row has
    probe = converged_probe(x, several, 3, fold=deal(y, 5, 0))
    guess = probe(torch.from_numpy(x).float()) > 0
    assert bool(guess[:, 2].all()) and probe.held_out.shape == (60, 3)
    assert not bool(probe.held_out.isnan().any())


def test_sparse_rows_give_the_probe_of_the_same_dense_rows_unscaled() -> None:
    x, y = blobs(60, 5)
    x = np.where(x > 5, x, 0.0)
    x /= np.linalg.norm(x, axis=1, keepdims=True).clip(1e-9)
    probe = converged_probe(csr_array(x), y, 3, fold=deal(y, 5, 0))
    logits = torch.from_numpy(csr_array(x) @ probe.weight.T.double().numpy()) + probe.bias
    torch.testing.assert_close(probe(torch.from_numpy(x).float()), logits.float())


def test_a_class_that_the_fitted_rows_lack_is_not_chosen() -> None:
    x, y = blobs(40, 5)
    probe = converged_probe(x, y, 5, fold=deal(y, 5, 0))
    assert set(probe(torch.from_numpy(x).float()).argmax(1).tolist()) <= {0, 1, 2}


def test_fit_takes_no_step_for_a_head_alone_without_a_rate() -> None:
    model = train_part(host(), "linear")
    run = fit(model, pictures(120), trackers=())
    assert run.record["results"]["steps"] == 0
    solution = run.record["results"]["solution"]
    assert solution["strength"] in STRENGTHS[solution["scaling"]]
    assert evaluate(model, pictures(120)).loss == pytest.approx(
        run.record["results"]["solution"]["train"]["loss"], abs=1e-5
    )


@pytest.mark.parametrize("option", [{"lr": 1e-3}, {"smoothing": 0.1}, {"ema": 0.9}])
def test_fit_takes_steps_where_a_rate_or_another_loss_is_asked_for(
    option: dict[str, float],
) -> None:
    model = train_part(host(), "linear")
    run = fit(model, pictures(40), epochs=1, trackers=(), **option)  # pyright: ignore
    assert run.record["results"]["steps"] > 0
