"""Links are measured alike everywhere, and the strategy that is chosen by them is one of four."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from intarsia.cli import processes
from intarsia.core.errors import ConfigError, UnknownName
from intarsia.parallel import Processes
from intarsia.parallel.auto import NAMED, Auto, strategy_named
from intarsia.parallel.strategy import Strategy
from intarsia.parallel.trial import ExpertTrial, compare_with_one
from intarsia.placement import ExpertSize, Topology
from intarsia.placement.measuring import levels

from ..refusals import refused

SIZE = ExpertSize(64, 256)


def test_processes_measure_the_same_links(group: Processes) -> None:
    from fitting_jobs import links  # pyright: ignore[reportMissingImports]

    first, *rest = group.run(links)
    assert first.devices == 4 and bool((first.flops > 0).all() & (first.memory > 0).all())
    assert torch.equal(first.bandwidth, first.bandwidth.T)
    for matrix in rest:
        assert all(torch.equal(getattr(first, n), getattr(matrix, n)) for n in vars(first))


def test_without_processes_nothing_is_measured() -> None:
    with refused(ConfigError, what="topology", got="no processes"):
        Topology.measured()


def test_noise_is_no_topology_and_two_levels_are() -> None:
    node = torch.arange(4) // 2
    local = node[:, None] == node
    noise = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = 1 + 0.2 * (noise + noise.T)
    diagonal = torch.eye(4, dtype=torch.bool)
    rates, delays = levels(torch.where(local, 300e9, 25e9) * noise, 1e-6 * noise)
    assert rates[~diagonal].unique().numel() == delays[~diagonal].unique().numel() == 2
    topology = Topology(rates, delays, *(torch.ones(4),) * 3)
    assert topology.nodes().tolist() == [0, 0, 1, 1]
    flat, _ = levels(1e9 * noise, noise)
    assert flat[~diagonal].unique().numel() == 1 and flat[diagonal].isinf().all()


def test_the_fastest_is_chosen_and_what_cannot_be_is_passed_over() -> None:
    slow, fast = (Topology.two_level(1, 4, intra=(rate, 0.0)) for rate in (1e6, 1e15))
    for links in (slow, fast):
        assert isinstance(Auto().chosen(8, SIZE, links), Strategy)
    assert Auto(tokens=64).chosen(2, SIZE, slow) is not None  # E / D is none: Tutel or DeepSpeed
    uneven = Auto(tokens=64).chosen(3, SIZE, slow)  # neither of 3 and 4 divides the other
    assert type(uneven).__name__ in ("ExpertParallel", "Fssdp")
    with refused(ConfigError, what="tokens", got=0):
        Auto(tokens=0)


def test_it_is_a_strategy_like_the_others(group: Processes) -> None:
    assert sum(group.run(compare_with_one, Auto(tokens=64), ExpertTrial(layers=1))) > 0


def test_options_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(count: int | None, plan: str | None = None, **settings: Any) -> str | None:
        return processes.plan_of({"expert_parallel": count, "plan": plan, **settings})

    plans = {name: type(strategy_named(name)).__name__ for name in NAMED}
    assert plans["coordinated"] == "DeepSpeed" and plans["tutel"] == "Tutel"
    assert asked(None) is None and asked(1) == "auto"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert asked(2, "fssdp") == "fssdp"
    with refused(ConfigError, what="--expert-parallel", got="2 processes"):
        asked(4)
    with refused(ConfigError, what="--plan"):
        asked(None, "ep")
    with refused(UnknownName, what="--plan", got="'fsdp'"):
        asked(2, "fsdp")
    with refused(ConfigError, what="--expert-parallel", got="--task sessions"):
        asked(2, task="sessions")
    with refused(ConfigError, what="--expert-parallel", got=0):
        asked(0)


@pytest.mark.thorough
def test_two_processes_fit_by_words_as_one_does(group: Processes, tmp_path: Path) -> None:
    """The commands of docs/how-to/share-out-experts.md run on two gloo processes."""
    from fitting_jobs import by_words  # pyright: ignore[reportMissingImports]

    draws = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            values = 50 + 140 * label + draws.integers(0, 40, (32, 32, 3))
            image = Image.fromarray(values.astype("uint8"))
            image.save(tmp_path / "photos" / name / f"{i}.png")
    words = ["fit", str(tmp_path / "photos"), "--model", "test_vit", "--untrained", "--size", "32"]
    words += ["--method", "upcycle", "--set", "experts=4", "--epochs", "1", "--batch-size", "4"]
    words += ["--test", "4", "--val", "0"]
    shared = [*words, "--expert-parallel", "2", "--plan", "ep", "--out", str(tmp_path / "two")]
    with Processes(2, 300) as two:
        two.run(by_words, shared)
    with Processes(1, 300) as process:
        process.run(by_words, [*words, "--out", str(tmp_path / "one")])
    losses = [_loss(tmp_path / name) for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def _loss(run: Path) -> float:
    import json

    return json.loads((run / "run.json").read_text())["results"]["test"]["loss"]
