"""Runs that step together end as they do alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import PatchDropout
from torch import nn
from torch.testing import assert_close

from intarsia import Bottleneck, adapt
from intarsia.adapters.bottleneck import BottleneckCell
from intarsia.data import backbone
from intarsia.hosts import together
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.runs.one_run import run, shape_of
from intarsia.runs.pool import Trial, TrialEnd, pieces, run_trials
from intarsia.train.loop import Loop
from intarsia.train.stack import Seat, Seated, stacked

START = Experiment(Pictures("mini/synthetic-location", images=21, val=17, test=19)).changed(
    model="test_vit", size=32, pretrained=False, epochs=2, batch_size=8, last_blocks=2, lr=1e-2,
    frozen_once=True,
)  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "settings": ("rank=2", "dropout=0.2")},
    "mosa": {"method": "mosa", "settings": ("over.bottleneck=4", "over.activation=gelu")},
    "r-drop": {
        "method": "bottleneck",
        "objective": "two_pass:add=1",
        "select": "val",
        "settings": ("placement=houlsby", "dropout=.1"),
    },
    "whole blocks": {
        "method": "bottleneck",
        "frozen_once": False,
        "settings": ("activation=gelu",),
    },
    "dora": {"method": "peft-dora", "settings": ("r=2",)},
}


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTARSIA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def one_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained trunk that does not depend on the seed, as a pretrained one; the head does."""

    def made(*args: Any, seed: int, **settings: Any) -> Any:
        model: Any = backbone(*args, seed=0, **settings)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.head.reset_parameters()
        return model

    monkeypatch.setattr("intarsia.runs.execute.backbone", made)


def inputs(folder: Path, **changes: Any) -> dict[str, Any]:
    return {"experiment": START.changed(**changes).flat(), "folder": str(folder)}


def equal(first: Path, second: Path) -> None:
    """Losses, weights and predictions."""
    logs = [
        [json.loads(x) for x in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (first, second)
    ]
    assert_close(*([line["loss"] for line in log] for log in logs), rtol=1e-3, atol=1e-4)
    for file in ("adapter/adapter_model.safetensors", "predictions.safetensors"):
        assert_close(load_file(first / file), load_file(second / file), rtol=1e-2, atol=1e-3)


def ends(outcome: Mapping[str, Any]) -> list[Any]:
    assert all(not end["error"] for end in outcome["ends"]), outcome
    return [end["result"] for end in outcome["ends"]]


@pytest.mark.thorough
@pytest.mark.parametrize("name", METHODS)
def test_a_run_ends_as_it_does_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [{"seed": 0}, {"seed": 1, "lr": 3e-3, "weight_decay": 0.1}, {"seed": 2}]
    runs = [METHODS[name] | change for change in changes[: 3 if name == "mosa" else 2]]
    models_made: list[object] = []
    build = together.on_one_trunk

    def noted(*args: Any) -> Any:
        models_made.append(build(*args))
        return models_made[-1]

    monkeypatch.setattr("intarsia.runs.one_run.on_one_trunk", noted)
    stack = [inputs(tmp_path / f"stack-{n}", **change) for n, change in enumerate(runs)]
    results = ends(run({"stack": stack}))
    assert models_made and all(model is not None for model in models_made)
    for n, change in enumerate(runs):
        alone = run(inputs(tmp_path / f"alone-{n}", **change))
        equal(tmp_path / f"stack-{n}", tmp_path / f"alone-{n}")
        assert results[n]["parameters"] == alone["parameters"]
        assert results[n]["results"]["cpu_seconds"] > 0


class Stop(RuntimeError):
    """A run that is cut off."""


def test_one_that_fails_leaves_the_others_and_goes_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = [inputs(tmp_path / f"{n}", **METHODS["lora"], seed=n) for n in range(3)]
    for member in stack:
        member["running"] = {"checkpoint_steps": 2}
    step = Loop._step

    def cut(self: Loop, *parts: Any) -> None:
        if self.training.seed == 1 and self.at.step == 3:
            raise Stop("cut off")
        step(self, *parts)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_step", cut)
        results = run({"stack": stack})["ends"]
    assert ["cut off" in end["error"] for end in results] == [False, True, False]
    ends(run({"stack": stack[1:2]}))
    for n in range(3):
        run(inputs(tmp_path / f"alone-{n}", **METHODS["lora"], seed=n))
        equal(tmp_path / str(n), tmp_path / f"alone-{n}")


def test_runs_at_different_steps_go_on_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = [inputs(tmp_path / f"{n}", **METHODS["mosa"], seed=n) for n in range(2)]
    for member, steps in zip(stack, (2, 3), strict=True):
        member["running"] = {"checkpoint_steps": steps}
    step = Loop._step

    def cut(self: Loop, *parts: Any) -> None:
        if self.at.step == 5:
            raise Stop("cut off")
        step(self, *parts)

    with monkeypatch.context() as patched:
        patched.setattr(Loop, "_step", cut)
        results = run({"stack": stack})["ends"]
    assert all("cut off" in end["error"] for end in results)
    ends(run({"stack": stack}))
    for n in range(2):
        run(inputs(tmp_path / f"alone-{n}", **METHODS["mosa"], seed=n))
        equal(tmp_path / str(n), tmp_path / f"alone-{n}")


def test_draws_of_a_gpu_move_on_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter in place of a GPU's generator: each forward draws its next number."""
    gpu = [torch.zeros(1, dtype=torch.int64)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [gpu[0].clone()])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: gpu.__setitem__(0, *states))

    class Draws(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gpu[0] = gpu[0] + 1
            return x + gpu[0]

    def job(seat: Seat) -> list[int]:
        model = Seated(Draws(), seat)
        return [int(model(torch.zeros(1))) for _ in range(3)]

    assert stacked([job, job], lambda *_: None) == [[1, 2, 3], [1, 2, 3]]


def test_what_may_step_together() -> None:
    start = START.changed(**METHODS["lora"])
    shape = shape_of(start)
    assert shape and shape == shape_of(start.changed(seed=7, lr=1.0, weight_decay=0.5))
    assert shape != shape_of(start.changed(epochs=3)) and shape != shape_of(start, test=False)
    assert not shape_of(start.changed(method="full", settings=(), last_blocks=None))


def models(count: int, change: Any = None) -> list[nn.Module]:
    adapted: list[nn.Module] = []
    for n in range(count):
        torch.manual_seed(0)
        host = timm.create_model("test_vit", num_classes=3, img_size=32)
        if change and n:
            change(host)
        adapted.append(adapt(host, Bottleneck(4), seed=n))
    return adapted


def test_only_runs_on_equal_trunks_step_together() -> None:
    rows = [torch.randn(3, 3, 32, 32) for _ in range(2)]
    assert together.on_one_trunk(models(2), rows) is not None
    assert together.on_one_trunk(models(1), rows[:1]) is None

    def other(host: Any) -> None:
        for parameter in host.blocks.parameters():
            parameter.data += 0.01

    assert together.on_one_trunk(models(2, other), rows) is None  # nothing is shared
    mixed = models(2)
    for model in mixed:
        block = together.base_of(model).blocks[0]
        block.register_forward_hook(lambda _m, _x, y: y + y.mean(0, keepdim=True))
    assert together.on_one_trunk(mixed, rows) is None


@pytest.mark.parametrize("kind", ["attention", "patches", "adapters"])
def test_whatever_is_dropped_is_drawn_as_alone(kind: str) -> None:
    both: list[Any] = models(2)
    draws = torch.Generator().manual_seed(0)
    for model in both:
        host = together.base_of(model)
        if kind == "attention":
            host.blocks[0].attn.attn_drop.p = 0.5  # drawn inside a fused attention
        elif kind == "patches":
            host.patch_drop = PatchDropout(0.5)
        for cell in (m for m in model.modules() if isinstance(m, BottleneckCell)):
            cell.dropout.p = 0.5 if kind == "adapters" else 0.0
            cell.up.weight.data += torch.randn(cell.up.weight.shape, generator=draws)
        model.train()
    states = [torch.Generator().manual_seed(n).get_state() for n in range(4)]

    @contextmanager
    def own(number: int) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(states[number])
            yield
            states[number] = torch.get_rng_state()

    rows = [torch.randn(3, 3, 32, 32, generator=draws) for _ in both]
    with torch.no_grad():
        joined = together.on_one_trunk(both, rows)
        assert joined is not None
        outputs = joined(rows, own)
        joined.close()
        states[2:] = [torch.Generator().manual_seed(n).get_state() for n in range(2)]
        for number, (model, x) in enumerate(zip(both, rows, strict=True)):
            with own(2 + number):
                assert_close(outputs[number], model(x), rtol=1e-4, atol=1e-5)


def test_pieces_of_trials() -> None:
    def trial(number: int, stack: str) -> Trial:
        return Trial(str(number), {"number": number}, stack=stack)

    def names(trials: list[Trial], jobs: int) -> list[str]:
        return ["".join(t.name for t in piece) for piece in pieces(trials, jobs)]

    some = [trial(n, stack) for n, stack in enumerate(["a", "", "b", "a", "", "b", "a"])]
    assert names(some, 2) == ["036", "1", "25", "4"]
    assert names([trial(n, "a") for n in range(3)], 2) == ["01", "2"]
    assert names([trial(n, "a") for n in range(3)], 9) == ["0", "1", "2"]
    assert [len(p) for p in pieces([trial(n, "a") for n in range(13)], 1)] == [5, 5, 3]


def dies_together(inputs: Mapping[str, Any]) -> dict[str, Any]:
    if "stack" in inputs:
        raise MemoryError("too many")
    return {"number": inputs["number"]}


def test_a_piece_that_cannot_be_is_tried_one_by_one() -> None:
    trials = [Trial(str(n), {"number": n}, stack="a") for n in range(3)]
    ends: list[TrialEnd] = []
    run_trials(trials, dies_together, jobs=1, done=ends.append, executor="here")
    assert [end.result for end in ends] == [{"number": n} for n in range(3)]
