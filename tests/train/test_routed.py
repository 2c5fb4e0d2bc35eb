"""What routers know of a run survives its checkpoint: the search, and who got how much."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CLASSES, pictures
from torch import nn

from intarsia import TopK
from intarsia.core.errors import CheckpointError
from intarsia.fitting import fit
from intarsia.gating import learned_routers
from intarsia.mixtures import Mixture, StackedExperts
from intarsia.routers import Comet, PermutationSearch
from intarsia.train import Interrupted

from ..refusals import refused

OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.05, "seed": 0}


def model(config: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draws = torch.Generator().manual_seed(0)
        experts = StackedExperts(4, 48, 8, generator=draws)
        mixture = Mixture(experts, config.build(48, generator=draws))
        return nn.Sequential(nn.Flatten(), mixture, nn.Linear(48, CLASSES))


def search(steps: int = 4) -> PermutationSearch:
    return PermutationSearch(Comet(4, 2), steps=steps)


def stop_at(step: int, also: Any = None) -> Any:
    def schedule(net: nn.Module, now: int, steps: int) -> None:
        if also is not None:
            also(net, now, steps)
        if now == step:
            raise KeyboardInterrupt

    return schedule


def halted(net: nn.Module, out: Path, step: int, **options: Any) -> None:
    """Trained up to a step, with a checkpoint at each."""
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        fit(net, pictures(40), out=out, checkpoint_steps=1, schedule=stop_at(step, **options),
            **OPTIONS)  # fmt: skip


def test_a_search_that_was_over_is_over_when_it_goes_on(tmp_path: Path) -> None:
    unstopped = model(search())
    fit(unstopped, pictures(40), **OPTIONS)
    halted(model(search()), tmp_path, 7)
    net = model(search())
    go_on = stop_at(99)
    fit(net, pictures(40), out=tmp_path, resume=True, schedule=go_on, checkpoint_steps=1,
        **OPTIONS)  # fmt: skip
    (router,) = [m for m in net.modules() if hasattr(m, "is_final")]
    assert router.is_final and int(router.step) == 4  # type: ignore[arg-type]
    for first, second in zip(
        net.state_dict().values(), unstopped.state_dict().values(), strict=True
    ):
        assert torch.equal(first, second)


def test_an_epoch_before_the_end_of_a_search_can_be_the_best(tmp_path: Path) -> None:
    net = model(search(steps=12))
    val = pictures(40, seed=1)
    worse = {"lr": 0.5, "select": "val"}  # the first epoch is best
    run = fit(net, pictures(40), val, **{**OPTIONS, **worse})
    (router,) = [m for m in net.modules() if hasattr(m, "is_final")]
    best = run.record["results"]["selection"]["epoch"]
    assert router.is_final == (5 * best > 12)
    assert torch.isfinite(net(val.tensors[0])).all()


def test_loads_of_a_run_that_was_stopped_are_those_of_the_whole(tmp_path: Path) -> None:
    want = fit(model(TopK(4)), pictures(40), **OPTIONS)
    halted(model(TopK(4)), tmp_path, 7)
    options: dict[str, Any] = {"out": tmp_path, "resume": True, "checkpoint_steps": 1}
    options["schedule"] = stop_at(99)
    got = fit(model(TopK(4)), pictures(40), **options, **OPTIONS)
    names = ("load_variation", "load_entropy")
    curves = [[[x[n] for n in names] for x in r.history if n_in(x)] for r in (want, got)]
    assert curves[0][1:] == curves[1][-2:] and curves[0]
    assert got.record["results"]["routing"] == want.record["results"]["routing"]
    again = fit(model(TopK(4)), pictures(40), **options, **OPTIONS)  # it was done
    assert again.record["results"]["routing"] == want.record["results"]["routing"]
    assert learned_routers(model(TopK(4)))


def n_in(line: dict[str, Any]) -> bool:
    return "load_variation" in line


def test_a_finished_run_without_its_state_is_left_alone(tmp_path: Path) -> None:
    fit(model(TopK(4)), pictures(40), out=tmp_path, **OPTIONS)
    before = (tmp_path / "metrics.jsonl").read_text()
    for path in sorted((tmp_path / "state").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with refused(CheckpointError, got="a finished one without its state/"):
        fit(model(TopK(4)), pictures(40), out=tmp_path, resume=True, **OPTIONS)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert json.loads((tmp_path / "run.json").read_text())["results"]["routing"]


def test_what_chooses_must_be_the_same_when_a_run_goes_on(tmp_path: Path) -> None:
    options = {"out": tmp_path, "select": "val", "checkpoint_steps": 1}
    with pytest.raises((KeyboardInterrupt, Interrupted)):
        fit(model(TopK(4)), pictures(40), pictures(20, seed=1), schedule=stop_at(7), **options,
            **OPTIONS)  # fmt: skip
    with refused(CheckpointError, what="checkpoint of another run, val.sha256"):
        fit(model(TopK(4)), pictures(40), pictures(20, seed=2), resume=True,
            schedule=stop_at(99), **options, **OPTIONS)  # fmt: skip
