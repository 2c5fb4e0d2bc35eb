"""The losses and scores of tasks beside their naive twins and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
    ndcg_score,
    r2_score,
    top_k_accuracy_score,
)
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from intarsia.core.errors import DataError
from intarsia.train import (
    Classes,
    Heads,
    Metrics,
    MultiLabel,
    NextItem,
    Pairs,
    Reconstruction,
    Regression,
    task_heads,
)
from intarsia.train.outcome import TargetLoss, divergence_of
from intarsia.train.scores import rank_of, ranking

from ..refusals import refused

seeds = st.integers(0, 2**20)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def divergence(loss_of: TargetLoss, target: Tensor, output: Tensor) -> float:
    return float(divergence_of(loss_of)(target, output))


@given(st.integers(2, 30), st.integers(2, 12), st.integers(1, 5), seeds)
def test_ranking_scores_are_those_of_sklearn(n: int, items: int, k: int, seed: int) -> None:
    logits = normal(n, items, seed=seed)
    label = torch.randint(items, (n,), generator=torch.Generator().manual_seed(seed))
    ranks = rank_of(logits.gather(1, label[:, None])[:, 0], logits)
    measures = ranking(ranks, k)
    truth = F.one_hot(label, items).numpy()
    assert measures[f"ndcg_{k}"] == pytest.approx(ndcg_score(truth, logits.numpy(), k=k))
    assert measures["reciprocal_rank"] == pytest.approx(
        label_ranking_average_precision_score(truth, logits.numpy())
    )
    if k < items and items > 2:  # sklearn has two classes apart, and warns where all are hits
        want = top_k_accuracy_score(label, logits.numpy(), k=k, labels=np.arange(items))
        assert measures[f"hit_rate_{k}"] == pytest.approx(want)


def test_ties_and_numbers_that_are_none_rank_last() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [math.nan, 0.0, 1.0]])
    assert rank_of(scores[:, 0], scores).tolist() == [2, 3]


@given(st.integers(2, 30), st.integers(1, 5), seeds)
def test_scores_of_labels_are_those_of_sklearn(n: int, labels: int, seed: int) -> None:
    logits, y = normal(n, labels, seed=seed), (normal(n, labels, seed=seed + 1) > 0).double()
    y[0, 0] = 1
    values = MultiLabel().scores(logits, y).values
    occur = [i for i in range(labels) if y[:, i].any()]
    precisions = [average_precision_score(y[:, i].numpy(), logits[:, i].numpy()) for i in occur]
    assert values["mean_average_precision"] == pytest.approx(np.mean(precisions))
    p = logits.sigmoid()
    naive = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    assert values["loss"] == pytest.approx(float(naive))
    if labels > 1:  # sklearn takes one for two classes
        want = f1_score(y.numpy(), (p > 0.5).numpy(), average="macro", zero_division=0.0)
        assert values["f1"] == pytest.approx(want)
    loss_of = MultiLabel().loss_of((logits, y.float()))
    assert float(loss_of(logits)) == pytest.approx(float(naive))
    other_logits = normal(n, labels, seed=seed + 2)
    want = kl_divergence(Bernoulli(logits=other_logits), Bernoulli(logits=logits)).mean()
    assert divergence(loss_of, other_logits, logits) == pytest.approx(float(want))


def test_labels_that_never_occur_have_no_average_precision() -> None:
    logits, y = normal(4, 2, seed=0), torch.tensor([[1.0, 0], [0, 0], [1, 0], [0, 0]])
    alone = MultiLabel().scores(logits[:, :1], y[:, :1]).values["mean_average_precision"]
    assert MultiLabel().scores(logits, y).values["mean_average_precision"] == alone
    with refused(DataError, what="evaluation labels"):
        MultiLabel().scores(logits, y * 0)


@given(st.integers(2, 20), st.integers(1, 3), seeds)
def test_scores_of_numbers(n: int, outputs: int, seed: int) -> None:
    predicted, target = normal(n, outputs, seed=seed), normal(n, outputs, seed=seed + 1)
    values = Regression().scores(predicted, target).values
    assert values["loss"] == pytest.approx(float((predicted - target).square().mean()))
    assert values["absolute_error"] == pytest.approx(float((predicted - target).abs().mean()))
    assert values["r2"] == pytest.approx(r2_score(target.numpy(), predicted.numpy()))
    assert "r2" not in Regression().scores(predicted[:1], target[:1]).values
    batch = Regression().batch(predicted, target)
    assert float(Regression().loss_of(batch)(predicted)) == pytest.approx(values["loss"])
    assert divergence(Regression().loss_of(batch), target, predicted) == pytest.approx(
        values["loss"]
    )


def test_one_number_may_have_an_axis_of_its_own_or_none() -> None:
    batch = Regression().batch(torch.zeros(3, 2), torch.tensor([1.0, 2.0, 3.0]))
    loss = Regression().loss_of(batch)
    assert loss(torch.zeros(3)) == loss(torch.zeros(3, 1)) == pytest.approx(14 / 3)


def test_the_error_of_a_reconstruction_in_decibels() -> None:
    x = normal(5, 3, 4, seed=0)
    task = Reconstruction(peak=2.0)
    away = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)[:, None, None]
    values = task.scores(*task.rows(x + away, task.batch(x, None))).values
    ratios = [10 * math.log10(4 / a**2) for a in (0.1, 0.2, 0.3, 0.4, 0.5)]
    assert values["psnr"] == pytest.approx(sum(ratios) / 5)
    assert values["absolute_error"] == pytest.approx(0.3)
    assert values["loss"] == pytest.approx(0.11)


@pytest.mark.parametrize("every_item", [True, False])
def test_items_are_predicted_from_what_came_before(every_item: bool) -> None:
    task = NextItem(every=every_item, k=2)
    x, y = task.batch(*task.collate([(torch.tensor([3, 1]), 2), (torch.tensor([4]), 1)]))
    assert isinstance(x, Tensor) and x.tolist() == [[3, 1], [0, 4]]
    logits = normal(2, 2, 5, seed=0)
    chances = logits.log_softmax(-1)
    output = logits if every_item else logits[:, -1]
    expected = [chances[0, 1, 2], chances[1, 1, 1]] + ([chances[0, 0, 1]] if every_item else [])
    assert float(task.loss_of((x, y))(output)) == pytest.approx(
        -float(sum(expected)) / len(expected)
    )
    assert task.count((x, y)) == len(expected)
    scores = task.scores(*task.rows(output, (x, y)))
    assert scores.loss == pytest.approx(-float(chances[0, 1, 2] + chances[1, 1, 1]) / 2)
    assert scores.best == scores.values["ndcg_2"]


def naive_info_nce(queries: Tensor, documents: Tensor, temperature: float) -> float:
    total = 0.0
    for i in range(len(queries)):
        for query, documents_of_query in ((queries[i], documents), (documents[i], queries)):
            near = [
                float(F.cosine_similarity(query, document, dim=0)) / temperature
                for document in documents_of_query
            ]
            total += math.log(sum(math.exp(value) for value in near)) - near[i]
    return total / (2 * len(queries))


@given(st.integers(1, 9), st.sampled_from([None, 2, 3]), seeds)
def test_pairs_are_told_from_the_others_of_their_group(
    count: int, group: int | None, seed: int
) -> None:
    vectors, task = normal(2 * count, 4, seed=seed), Pairs(temperature=0.5, group=group)
    batch = task.batch(vectors, None)
    assert task.count(batch) == count
    parts = [part.split(group or count) for part in vectors.chunk(2)]
    want = sum(naive_info_nce(q, d, 0.5) * len(q) for q, d in zip(*parts, strict=True)) / count
    assert float(task.loss_of(batch)(vectors)) == pytest.approx(want, rel=1e-5)


def test_similarities_are_not_rounded_by_autocast() -> None:
    task, vectors = Pairs(), normal(16, 4, seed=0).float()
    loss_of = task.loss_of(task.batch(vectors, None))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss_of(vectors)
    assert torch.equal(inside, loss_of(vectors))


@given(st.integers(2, 30), seeds)
def test_retrieval_among_all_documents_is_that_of_sklearn(count: int, seed: int) -> None:
    task = Pairs(k=3)
    rows = task.rows(normal(2 * count, 4, seed=seed), (torch.zeros(1), torch.zeros(1)))
    values, near = task.scores(*rows).values, (rows[0] @ rows[1].T).numpy()
    assert values["ndcg_3"] == pytest.approx(ndcg_score(np.eye(count), near, k=3))
    want = F.cross_entropy(torch.as_tensor(near) / 0.05, torch.arange(count))
    assert values["loss"] == pytest.approx(float(want))


def test_chunks_of_queries_are_scored_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Pairs()
    rows = task.rows(normal(20, 4, seed=1), (torch.zeros(1), torch.zeros(1)))
    values = task.scores(*rows).values
    monkeypatch.setattr("intarsia.train.tasks.pairs.ROWS", 3)
    assert task.scores(*rows).values == pytest.approx(values)


def test_heads_are_the_objective_of_task_heads() -> None:
    logits, y = normal(6, 4, seed=2), torch.tensor([0, 1, 0, 3, 0, 2])
    groups = ([0, 3], [2, 1])
    model = torch.nn.Identity()
    batch = logits, y
    ours = Heads(groups=groups).loss(model, batch).loss
    theirs = task_heads(model, logits, Classes().loss_of(batch), groups=groups).loss
    naive = sum(
        F.cross_entropy(z[list(g)], torch.tensor(g.index(int(label))))
        for z, label in zip(logits, y, strict=True)
        for g in groups
        if label in g
    )
    assert ours == theirs == pytest.approx(float(naive) / 6)
    metrics = Heads(groups=groups).scores(logits, y)
    assert isinstance(metrics, Metrics)
    assert metrics.scores()["own_task_accuracy"] >= metrics.accuracy
