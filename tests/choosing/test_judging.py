"""Candidates are compared picture by picture; near ties are decided by the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.choosing import judging
from intarsia.choosing.certainty import Certainty
from intarsia.choosing.folded import Row
from intarsia.choosing.judging import HeldOutAnswers
from intarsia.experiments.experiment import Experiment, Pictures


def answers(score: list[int], loss: list[float], seed: int = 0) -> HeldOutAnswers:
    """Return answers to the pictures 0, 1, ..."""
    n = len(score)
    place = np.arange(n), np.full(n, seed)
    return HeldOutAnswers(*place, np.array(score, float), np.array(loss, float), {"accuracy": 0.0})


def test_a_score_decides_beyond_one_standard_error_and_the_loss_within_it() -> None:
    """Compare 14 right answers of 20 with 13, where one more was right and none fewer.

    The paired difference is .05 with a standard error of sqrt(.05 * .95 / 19) = .05: a tie, which
    the loss decides. Against 8 right answers it is .3 with .105: no tie, whatever the loss.
    """
    top = answers([1] * 14 + [0] * 6, [1.0] * 20)
    near = answers([1] * 13 + [0] * 7, [0.9] * 20)
    far = answers([1] * 8 + [0] * 12, [0.1] * 20)
    mean, error = judging.gap(top, near, "score")
    assert mean == pytest.approx(0.05) and error == pytest.approx(0.05)
    assert judging.order([far, top, near]) == [2, 1, 0]


def test_a_candidate_is_given_up_for_a_clearly_higher_loss_alone() -> None:
    leader = answers([1] * 10 + [0] * 10, [1.0] * 20)
    worse = [1.5, 1.3] * 10
    assert judging.behind(answers([1] * 10 + [0] * 10, worse), leader)
    assert not judging.behind(answers([1] * 11 + [0] * 9, worse), leader)  # but more is right
    assert not judging.behind(answers([1] * 10 + [0] * 10, [1.5, 0.5] * 10), leader)
    single = answers([1], [9.0])
    assert not judging.behind(single, leader)  # of one picture nothing is clear


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_the_order_holds_every_candidate_and_does_not_depend_on_theirs(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    candidates = [
        answers(random.integers(0, 2, 15).tolist(), random.random(15).tolist()) for _ in range(n)
    ]
    ranked = judging.order(candidates)
    assert sorted(ranked) == list(range(n))
    turned = judging.order(candidates[::-1])
    assert [n - 1 - i for i in turned] == ranked


def test_seeds_of_a_picture_are_averaged_and_only_shared_ones_count() -> None:
    first = HeldOutAnswers(np.array([0, 1, 0]), np.array([0, 0, 1]), np.ones(3), np.ones(3), {})
    second = HeldOutAnswers(np.array([1, 0, 0]), np.array([0, 0, 2]), np.zeros(3), np.zeros(3), {})
    ours, theirs = first.shared_rows(second)
    assert first.picture[ours].tolist() == second.picture[theirs].tolist() == [0, 1]
    assert judging.gap(first, second, "score") == (1.0, 0.0)


def test_answers_have_one_temperature_over_all_parts() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    logits = torch.randn(40, 2, generator=draw) + torch.eye(2)[labels]
    parts = [(0, np.arange(20), logits[:20], labels[:20])]
    parts.append((0, np.arange(20, 40), logits[20:], labels[20:]))
    once = HeldOutAnswers.of(parts)
    sharp = HeldOutAnswers.of([(s, p, 50 * x, y) for s, p, x, y in parts])
    plain = F.cross_entropy(50 * logits, labels)
    assert sharp.loss.mean() < 0.5 * float(plain)  # being too sure costs little
    assert sharp.score.tolist() == once.score.tolist()
    assert once.pictures == 40 and once.totals["accuracy"] == once.score.mean()


def test_pictures_of_several_labels_are_judged_by_the_order_of_their_logits() -> None:
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    logits = torch.tensor([[2.0, -1.0, 1.0], [1.0, 0.0, -1.0]])
    held_out = HeldOutAnswers.of([(0, np.arange(2), logits, labels)])
    assert held_out.score.tolist() == [1.0, 0.5]
    assert "mean_average_precision" in held_out.totals


def row(name: str, held_out: HeldOutAnswers, lr: float = 1e-3) -> Row:
    return Row(name, Experiment(Pictures("x")).changed(lr=lr), held_out, 5)


def test_a_choice_is_sure_where_the_interval_of_the_best_other_method_says_so() -> None:
    best = row("lora", answers([1] * 90 + [0] * 10, [1.0] * 100))
    same_method = row("lora", answers([1] * 89 + [0] * 11, [1.0] * 100), lr=3e-3)
    other_method = row("dora", answers([1] * 60 + [0] * 40, [1.0] * 100))
    sure = Certainty.of([best, same_method, other_method])
    assert sure.sure and [d.method for d in sure.differences] == ["dora"]
    assert sure.record()["differences"][0]["mean"] == pytest.approx(0.3)
    near = Certainty.of([best, row("dora", answers([1] * 88 + [0] * 12, [1.0] * 100))])
    assert not near.sure and "do not decide" in near.statement
    assert not Certainty.of([best, same_method]).differences
