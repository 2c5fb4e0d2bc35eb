"""What holds for every task: it learns, parts of a batch add up, a stopped run goes on the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import CASES, Case, histories
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from intarsia.core.errors import ConfigError, DataError
from intarsia.fitting import fit
from intarsia.schedules import OnceFitted
from intarsia.train import (
    Classes,
    Interrupted,
    MultiLabel,
    NextItem,
    Outcome,
    Pairs,
    Reconstruction,
    Regression,
    Task,
    Tokens,
    evaluate,
    plain,
    task_of,
    two_pass,
)
from intarsia.train.objectives import logits_of
from intarsia.train.order import Reader

from ..refusals import refused

QUICK: dict[str, Any] = {"batch_size": 8, "lr": 0.05, "trackers": (), "weight_decay": 0.0}
every_task = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def learned(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.thorough
@every_task
def test_it_learns(case: Case) -> None:
    model = case.build()
    before = evaluate(model, case.data(60, 5), task=case.task).scores()
    run = fit(
        model, case.data(160, 1), test=case.data(60, 5), task=case.task, epochs=case.epochs,
        **QUICK,
    )  # fmt: skip
    assert run.test is not None
    after = run.test.scores()
    assert after[case.score] >= case.bar > before[case.score]
    assert after["loss"] < before["loss"]
    assert run.record["results"]["test"] == after


@every_task
def test_parts_of_a_batch_add_up_to_it(case: Case) -> None:
    states = []
    for accumulate in (1, 2):
        model = case.build().double()
        data = case.data(16, 1)
        if isinstance(data, TensorDataset):
            wide = (t.double() if t.is_floating_point() else t for t in data.tensors)
            data = TensorDataset(*wide)
        fit(model, data, task=case.task, epochs=2, accumulate=accumulate, **QUICK)
        states.append(learned(model))
    for first, second in zip(*states, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-12)


@pytest.mark.thorough
@every_task
@pytest.mark.parametrize("stop", [2, 5])
def test_a_stopped_run_goes_on_with_the_same_bits(case: Case, stop: int, tmp_path: Path) -> None:
    def run(out: Path, stop: int | None, resume: bool = False) -> tuple[list[Tensor], Any]:
        calls = [0]

        def objective(model: nn.Module, x: Any, loss_of: Any) -> Outcome:
            calls[0] += 1
            if calls[0] == stop:
                os.kill(os.getpid(), signal.SIGINT)
            return plain(model, x, loss_of)

        model = case.build()
        sets = case.data(24, 1), case.data(10, 2)
        done = fit(
            model, *sets, task=case.task, objective=objective, epochs=3, out=out, resume=resume,
            select="val", **QUICK,
        )  # fmt: skip
        lines = [{k: v for k, v in first.items() if k != "seconds"} for first in done.history]
        return learned(model), (lines, done.record["results"]["val"])

    unstopped = run(tmp_path / "whole", None)
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", stop)
    weights, record = run(tmp_path / "stopped", None, resume=True)
    assert record == unstopped[1]
    assert all(
        torch.equal(first, second) for first, second in zip(weights, unstopped[0], strict=True)
    )


@every_task
def test_scores_do_not_depend_on_the_batches(case: Case) -> None:
    model, data = case.build(), case.data(11, 3)
    scores = [evaluate(model, data, task=case.task, batch_size=b).scores() for b in (1, 4, 11)]
    for by_batch in scores[1:]:
        assert by_batch == pytest.approx(scores[0], rel=1e-5)
    reader = Reader(data, seed=0, task=case.task)
    batches = [reader[(0, (0, 1, 2, 3))], reader[(0, tuple(range(4, 11)))]]
    assert case.task.score(model, batches) == pytest.approx(scores[0], rel=1e-5)


@every_task
def test_half_precision_learns_nearly_the_same(case: Case) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        run = fit(
            case.build(), case.data(40, 1), task=case.task, epochs=2, precision=precision, **QUICK
        )  # fmt: skip
        losses.append([line["loss"] for line in run.history])
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.02)
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


@every_task
def test_two_equal_outputs_are_no_distance_apart(case: Case) -> None:
    model = case.build()
    x, y = Reader(case.data(8, 3), seed=0, task=case.task)[(0, tuple(range(8)))]
    loss_of = case.task.loss_of((x, y))
    still = two_pass(model, x, loss_of)
    assert float(still.parts["divergence"].detach()) == pytest.approx(0, abs=1e-6)
    model.register_forward_hook(lambda _m, _x, z: z + torch.randn(z.shape))
    away = two_pass(model, x, loss_of).parts["divergence"]
    assert away.ndim == 0 and float(away.detach()) > 0.01


@every_task
def test_a_loss_knows_its_targets_and_no_more(case: Case) -> None:
    """The gradient is of the mean over what `count` counts: twice the batch, the same loss."""
    model = case.build()
    reader = Reader(case.data(8, 3), seed=0, task=case.task)
    once, twice = (reader[(0, items)] for items in ((0, 1, 2, 3), (0, 1, 2, 3) * 2))
    losses = [case.task.loss(model, batch).loss.item() for batch in (once, twice)]
    assert case.task.count(twice) == 2 * case.task.count(once) > 0
    if not isinstance(case.task, Pairs):  # there the other rows are the negatives
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    loss_of = case.task.loss_of(once)
    assert losses[0] == pytest.approx(loss_of(logits_of(model, once[0])).item())


BAD = {
    "classes": (Classes(), [(torch.zeros(6), 0.5)], "want one whole number for each image"),
    "tokens": (Tokens(), [(torch.zeros(6), 1)], "want one whole number for each token"),
    "labels": (MultiLabel(), [(torch.zeros(6), torch.tensor([0, 2]))], "a row of 0 and 1"),
    "regression": (Regression(), [(torch.zeros(6), float("nan"))], "want finite numbers"),
    "zero": (NextItem(), [(torch.tensor([1, 2]), 0)], "items counted from 1"),
    "empty": (NextItem(), [(torch.tensor([]).long(), 1)], "want the items before the next one"),
    "named": (NextItem(), [{"history": torch.tensor([1]), "label": 1}], "before the next one"),
    "single": (Pairs(), [torch.zeros(6)], r"want \(image, label\)"),
    "input": (Reconstruction(), [torch.zeros(6).long()], "one floating-point tensor each"),
}


@pytest.mark.parametrize(("task", "rows", "says"), BAD.values(), ids=BAD)
def test_bad_samples_are_refused(task: Task, rows: Any, says: str) -> None:
    with pytest.raises(DataError, match=f"got.*{says}"):
        fit(nn.Linear(6, 2), rows, task=task, epochs=1)


HEADS = {
    "tokens": (Tokens(), [(torch.zeros(6), torch.tensor([1, 2]))]),
    "labels": (MultiLabel(), [(torch.zeros(6), torch.tensor([1, 0, 1]))]),
    "regression": (Regression(), [(torch.zeros(6), 0.5)]),
    "reconstruction": (Reconstruction(), [torch.zeros(6)]),
}


@pytest.mark.parametrize(("task", "rows"), HEADS.values(), ids=HEADS)
def test_a_head_that_does_not_fit_is_refused(task: Task, rows: Any) -> None:
    with refused(DataError, what="the model's output"):
        fit(nn.Linear(6, 2), rows, task=task, epochs=1)


def test_items_beyond_the_model_are_refused() -> None:
    data = [(torch.tensor([1, 1]), 3)]
    with refused(DataError, what="labels", got="1 ... 3"):
        fit(nn.Embedding(5, 2), data, task=NextItem(), epochs=1)  # pyright: ignore


def test_a_task_is_chosen_by_its_labels() -> None:
    x = torch.zeros(6)
    for label, want in (
        (1, Classes), (torch.tensor([0, 1]), MultiLabel), (torch.tensor([True, False]), MultiLabel),
        (0.5, Regression), (torch.zeros(2), Regression), (torch.tensor([4, 5]), Tokens),
    ):  # fmt: skip
        assert type(task_of([(x, label)])) is want  # pyright: ignore
    ids = {"input_ids": torch.tensor([0, 1]), "labels": torch.tensor([0, 1])}
    assert task_of([ids]) == Tokens()  # pyright: ignore
    run = fit(nn.Linear(6, 4), CASES["classes"].data(8, 0), smoothing=0.1, epochs=1, trackers=())
    assert run.record["task"] == {
        "name": "Classes", "classes": None, "smoothing": 0.1, "mixup": 0.0, "cutmix": 0.0,
        "weights": None,
    }  # fmt: skip


def test_settings_that_a_task_has_not_are_refused() -> None:
    data = CASES["regression"].data(8, 0)
    with refused(ConfigError, what="smoothing", got="0.1 for Regression"):
        fit(nn.Linear(6, 2), data, smoothing=0.1)
    with refused(ConfigError, what="mixup", got="0.2 for Classes"):
        fit(nn.Linear(6, 4), CASES["classes"].data(8, 0), task=Classes(), mixup=0.2)
    with refused(ConfigError, what="schedule", got="OnceFitted for Regression"):
        fit(nn.Linear(6, 2), data, schedule=OnceFitted(1))
    for bad in (dict(temperature=0.0), dict(group=1), dict(k=0)):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Pairs(**bad)
    with refused(ConfigError, what="peak", got=0.0):
        Reconstruction(peak=0.0)


def test_negatives_of_the_whole_batch_cannot_be_had_in_parts() -> None:
    case = CASES["pairs"]
    fit(case.build(), case.data(8, 0), task=Pairs(), epochs=1, batch_size=4)
    with refused(ConfigError, what="a batch of Pairs"):
        fit(case.build(), case.data(8, 0), task=Pairs(), epochs=1, batch_size=4, accumulate=2)


def test_histories_are_padded_on_the_left() -> None:
    data = histories(3, 0)
    x, y = Reader(data, seed=0, task=NextItem())[(0, (0, 1, 2))]  # pyright: ignore
    assert isinstance(x, Tensor)
    for row, target, (history, following) in zip(x, y, data, strict=True):
        assert row[row != 0].tolist() == history.tolist()
        assert target[target != -100].tolist() == [*history[1:].tolist(), following]
        assert row[-1] == history[-1]
