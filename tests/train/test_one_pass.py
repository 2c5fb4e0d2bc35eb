"""PACE in one pass: each sample against its own logits of the epoch before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from intarsia import fit
from intarsia.core.errors import ConfigError
from intarsia.methods import Pace
from intarsia.runs.once import reads_logits_only
from intarsia.runs.settings import method, objective
from intarsia.train import OnePass, TargetLoss, plain, task_heads
from intarsia.train.one_pass import Memory

from ..refusals import refused
from .tiny import host, pictures

SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.05, "trackers": ()}
TRAIN = pictures(20)


def run(objective: Any, **settings: Any) -> dict[str, torch.Tensor]:
    model = host()
    fit(model, TRAIN, objective=objective, **(SETTINGS | settings))
    return model.state_dict()


def test_the_distance_is_to_the_sample_s_own_logits_of_before() -> None:
    model = torch.nn.Linear(4, 3)
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    memory = Memory(OnePass(2.0), 7)
    first = memory.of([6, 0, 3, 1, 2])(model, x, TargetLoss(F.cross_entropy, y))
    assert first.parts["distance"] == 0 and first.loss == first.parts["task"]
    before = model(x).detach()
    with torch.no_grad():
        model.weight += 1
    # others, one of them never seen, in another order
    indices, rows = [3, 5, 6], x[[2, 4, 0]]
    result = memory.of(indices)(model, rows, TargetLoss(F.cross_entropy, y[:3]))
    gone = (model(rows[0]) - before[2]).square().sum() + (model(rows[2]) - before[0]).square().sum()
    assert_close(result.parts["distance"], gone / 3)
    assert_close(result.loss, F.cross_entropy(model(rows), y[:3]) + 2 * gone / 3)
    result.loss.backward()
    assert model.weight.grad is not None and not memory.logits.requires_grad


def test_weight_0_is_plain_and_more_is_not() -> None:
    first, second, third = run(plain), run(OnePass(0.0)), run(OnePass())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_in_one_epoch_nothing_is_there_to_be_held_against() -> None:
    first, second = run(plain, epochs=1), run(OnePass(), epochs=1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_parts_of_a_batch_find_their_own_samples() -> None:
    first, second = run(OnePass()), run(OnePass(), accumulate=2)
    for name, value in first.items():
        assert_close(value, second[name], rtol=1e-3, atol=1e-4)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def stop(_model: object, step: int, _steps: int) -> None:
        if step == 5 and not done:
            done.append(step)
            raise EOFError

    settings = SETTINGS | {"objective": OnePass(), "schedule": stop, "checkpoint_steps": 2}
    unstopped, again, done = host(), host(), [0]
    fit(unstopped, TRAIN, **settings)
    done.clear()
    with pytest.raises(EOFError):
        fit(host(), TRAIN, out=tmp_path, **settings)
    fit(again, TRAIN, out=tmp_path, resume=True, **settings)
    for name, value in unstopped.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_method_asks_for_it_by_name() -> None:
    settings = method("pace", ["one_pass=true", "weight=0.5"])
    assert objective("plain", settings) == OnePass(0.5) and reads_logits_only(OnePass())
    # what one pass holds against includes what was learned since: its own weight is smaller
    assert Pace(one_pass=True).trained_by == OnePass(0.03)
    with refused(ConfigError, what="every", got="every=2 with one_pass"):
        Pace(every=2, one_pass=True)


def test_what_cannot_be_is_refused() -> None:
    with refused(ConfigError, what="weight", got=-1):
        OnePass(-1)

    def inside(model: Any, x: Any, loss_of: Any) -> Any:
        return task_heads(model, x, loss_of, groups=[[0], [1, 2]], over=OnePass())

    with refused(
        ConfigError,
        what="objective OnePass",
        got="a step that does not say which samples it has, as inside task_heads",
    ):
        fit(host(), TRAIN, objective=inside, **SETTINGS)

    loss_of = TargetLoss(F.cross_entropy, torch.zeros(2, 5, dtype=torch.long))
    with refused(ConfigError, what="objective OnePass", got="outputs (2, 5, 3)"):
        Memory(OnePass(), 2).of([0, 1])(torch.nn.Linear(4, 3), torch.randn(2, 5, 4), loss_of)
