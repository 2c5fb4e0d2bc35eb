"""Candidates are compared picture by picture; near ties are decided by the loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from intarsia.reports.statistics import share_interval
from intarsia.runs.choosing import blending, judging
from intarsia.runs.choosing.certainty import Certainty, share
from intarsia.runs.choosing.folded import Row
from intarsia.runs.choosing.judging import HeldOutAnswers
from intarsia.runs.experiment import Experiment, Pictures


def answers(score: list[int], loss: list[float]) -> HeldOutAnswers:
    """Return answers to the pictures 0, 1, ... of class 0, with these scores and losses."""
    n = len(score)
    shares = torch.full((n, 2), 0.5)
    arrays = np.arange(n), np.array(score, float), np.array(loss, float)
    totals = {"accuracy": float(np.mean(score))}
    return HeldOutAnswers(*arrays, shares, torch.zeros(n, dtype=torch.int64), totals)


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


def test_only_pictures_that_both_answered_are_compared() -> None:
    first, second = answers([1, 1, 1], [1.0] * 3), answers([0, 0], [1.0] * 2)
    ours, theirs = first.shared_rows(second)
    assert first.picture[ours].tolist() == second.picture[theirs].tolist() == [0, 1]
    assert judging.gap(first, second, "score") == (1.0, 0.0)


def test_answers_have_one_temperature_over_all_parts() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    logits = torch.randn(40, 2, generator=draw) + torch.eye(2)[labels]
    parts = [(np.arange(20), logits[:20], labels[:20])]
    parts.append((np.arange(20, 40), logits[20:], labels[20:]))
    once = HeldOutAnswers.of(parts)
    sharp = HeldOutAnswers.of([(p, 50 * x, y) for p, x, y in parts])
    plain = F.cross_entropy(50 * logits, labels)
    assert sharp.loss.mean() < 0.5 * float(plain)  # being too sure costs little
    assert sharp.score.tolist() == once.score.tolist()
    assert once.pictures == 40 and once.totals["accuracy"] == once.score.mean()
    wanted = F.cross_entropy(logits.double() / once.temperature, labels, reduction="none")
    torch.testing.assert_close(torch.from_numpy(once.loss), wanted)


def test_pictures_of_several_labels_are_judged_by_the_order_of_their_logits() -> None:
    labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    logits = torch.tensor([[2.0, -1.0, 1.0], [1.0, 0.0, -1.0]])
    held_out = HeldOutAnswers.of([(np.arange(2), logits, labels)])
    assert held_out.score.tolist() == [1.0, 0.5]
    assert "mean_average_precision" in held_out.totals
    wanted = F.binary_cross_entropy_with_logits(
        logits.double(), labels.double(), reduction="none"
    ).mean(1)
    torch.testing.assert_close(torch.from_numpy(held_out.loss), wanted)


def of_shares(shares: torch.Tensor, labels: torch.Tensor) -> HeldOutAnswers:
    return HeldOutAnswers.of_shares(np.arange(len(labels)), shares, labels)


def experts() -> list[HeldOutAnswers]:
    """Return two candidates that are each right on a half, and a third that is worse than both."""
    labels = torch.arange(120) % 2
    right = torch.where(labels[:, None] == torch.arange(2), 0.95, 0.05).double()
    unsure = torch.full((120, 2), 0.5).double()
    first = torch.arange(120)[:, None] < 60
    candidates = [torch.where(first, right, unsure), torch.where(first, unsure, right)]
    return [of_shares(shares, labels) for shares in [*candidates, 1 - 0.9 * right]]


def test_a_blend_has_the_members_that_lower_the_loss() -> None:
    candidates = experts()
    blend = blending.greedy(candidates)
    assert set(blend.members) == {0, 1} and sum(blend.weights) == pytest.approx(1.0)
    answers = blend.answers(candidates)
    naive = sum(w * candidates[k].shares for k, w in zip(blend.members, blend.weights, strict=True))
    torch.testing.assert_close(answers.shares, naive)
    assert answers.loss.mean() < min(c.loss.mean() for c in candidates)
    chosen, honest = blending.chosen(candidates, seed=0)
    assert set(chosen.members) == {0, 1} and len(honest.score) == 120
    alone, _ = blending.chosen(candidates, seed=0, one=True)
    assert len(alone.members) == 1


def test_a_blend_has_no_member_for_which_there_is_no_time() -> None:
    candidates = experts()
    best = blending.best_single(candidates).members
    assert blending.greedy(candidates, lambda members: len(members) < 2).members == best
    blend, _ = blending.chosen(candidates, 0, lambda members: set(members) <= {*best, 2})
    assert set(blend.members) <= {*best, 2}


def test_the_best_probe_keeps_a_quarter_of_a_choice_with_an_adapter() -> None:
    candidates = experts()
    blend = blending.with_probe(candidates, blending.greedy, [2])
    assert dict(zip(blend.members, blend.weights, strict=True)) == {0: 0.375, 1: 0.375, 2: 0.25}
    choice, _ = blending.chosen(candidates, seed=0, probes=[2])
    assert choice.weights[choice.members.index(2)] == 0.25
    # no adapter in it, a larger share already, no time for one more fit: the choice stays
    plain = blending.greedy(candidates)
    assert blending.with_probe(candidates, blending.greedy, [0, 1]) == plain
    assert blending.with_probe(candidates, blending.greedy, [0]) == plain
    late = blending.with_probe(candidates, blending.greedy, [2], lambda members: 2 not in members)
    assert late == plain
    alone, _ = blending.chosen(candidates, seed=0, one=True, probes=[2])
    assert len(alone.members) == 1


def test_the_best_probe_is_the_choice_where_honest_answers_are_clearly_behind_it() -> None:
    """Adapters that guess, each lucky on other pictures, next to a probe right on half of them."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 4
    guesses = torch.rand(40, 100, 4, generator=draw, dtype=torch.float64).softmax(2)
    right = torch.eye(4, dtype=torch.float64)[labels]
    probe = torch.where(
        torch.arange(100)[:, None] % 8 < 4, 0.25 + 0.01 * right, 0.25 - 0.01 * right
    )
    candidates = [of_shares(shares, labels) for shares in [*guesses, probe]]
    choice, honest = blending.chosen(candidates, seed=0, one=True, probes=[40])
    assert choice == blending.Blend((40,), (1.0,))
    assert honest.score.mean() == candidates[40].score.mean() == 0.52
    choice, _ = blending.chosen(candidates, seed=0, one=True, probes=[0])
    assert choice.members != (0,)


def test_the_level_of_a_choice_among_many_is_not_the_best_of_them() -> None:
    """Candidates that guess are right on half; the best of forty seems to be right on more."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 2
    shares = torch.rand(40, 100, generator=draw).double()
    candidates = [of_shares(torch.stack([s, 1 - s], 1), labels) for s in shares]
    best = max(c.score.mean() for c in candidates)
    _, honest = blending.chosen(candidates, seed=0, one=True)
    assert honest.score.mean() < best - 0.05


def test_the_level_has_an_interval_over_pictures() -> None:
    """81 of 100: [72.2, 87.5] by the printed formula of Wilson's interval."""
    p, n, z = 0.81, 100, 1.959964
    middle, half = p + z**2 / (2 * n), z * (p * (1 - p) / n + (z / (2 * n)) ** 2) ** 0.5
    expected = [(middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert share_interval(p, n) == pytest.approx(expected, abs=1e-6)
    assert share(p, n) == "81.0 % (95 % interval 72 to 87)"
    # all right of a few is no certainty
    assert share_interval(1.0, 10)[0] < 0.75


def row(name: str, held_out: HeldOutAnswers, **changes: Any) -> Row:
    experiment = Experiment(Pictures("x")).changed(size=56, **changes)
    return Row(name, experiment, held_out, 5)


def certainty_of(*rows: Row) -> Certainty:
    """Return the certainty of a choice of the first of some rows, the best first."""
    search: Any = SimpleNamespace(
        ranked=lambda: list(rows), rows=dict(enumerate(rows)), full=5, report=print
    )
    chosen = rows[0].answers
    assert chosen is not None
    return Certainty.of(search, blending.Blend((0,), (1.0,)), chosen)


PROBE = {"method": "linear", "lr": None}


def test_adapting_pays_where_the_interval_to_the_best_probe_says_so() -> None:
    best = row("lora", answers([1] * 90 + [0] * 10, [1.0] * 100), epochs=8)
    probe = row("linear", answers([1] * 60 + [0] * 40, [1.0] * 100), **PROBE)
    sure = certainty_of(best, probe)
    assert sure.sure and sure.adapts and "adapting pays" in sure.statement
    assert sure.record()["probe"]["mean"] == pytest.approx(0.3) and sure.twin is None
    near = certainty_of(best, row("linear", answers([1] * 88 + [0] * 12, [1.0] * 100), **PROBE))
    assert not near.sure and "do not decide whether adapting pays" in near.statement
    won = certainty_of(probe, best)
    assert won.probe is None and "adapting does not pay" in won.statement
    alone = certainty_of(probe)
    assert "no adapter was trained" in alone.statement


def test_another_method_is_compared_with_the_same_settings_alone() -> None:
    best = row("lora", answers([1] * 90 + [0] * 10, [1.0] * 100), epochs=8)
    shorter = row("glora", answers([1] * 80 + [0] * 20, [1.0] * 100), epochs=4)
    equal = row("dora", answers([1] * 89 + [0] * 11, [1.0] * 100), epochs=8)
    assert certainty_of(best, shorter).twin is None
    twin = certainty_of(best, shorter, equal).twin
    assert twin is not None and twin[1].method == "dora" and "do not decide" in twin[1].verdict
