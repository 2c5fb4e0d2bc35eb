"""Trainings whose experts are on several processes are those of one; checkpoints fit any number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from intarsia.core.errors import ConfigError, TrainingError
from intarsia.parallel import DeepSpeed, ExpertParallel, Fssdp, Processes, Strategy, Tutel
from intarsia.train.settings import Running
from intarsia.train.straggler import Busy, straggler

from ..refusals import refused

CLOSE = 1e-12


SECONDS = 300  # four trainings on a machine that does other things, too


@pytest.fixture(scope="module")
def four(group: Processes) -> Iterator[Processes]:
    group.close()
    with Processes(4, SECONDS) as processes:
        yield processes


@pytest.fixture(scope="module")
def two(group: Processes) -> Iterator[Processes]:
    with Processes(2, SECONDS) as processes:
        yield processes


@pytest.mark.parametrize(
    ("strategy", "experts"),
    [(Fssdp(1, 3), 6), (Tutel(), 2), (DeepSpeed(), 4), (ExpertParallel(), 4)],
)
def test_what_processes_write_is_read_by_each_and_whole(
    four: Processes, strategy: Strategy, experts: int, tmp_path: Path
) -> None:
    from fitting_jobs import round_trip  # pyright: ignore[reportMissingImports]

    four.run(round_trip, strategy, experts, tmp_path)


@pytest.mark.thorough
def test_a_run_goes_on_with_other_numbers_of_processes(
    four: Processes,
    two: Processes,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """4, then 2, then 3 processes, AdamW with clipped gradients: the weights of one process."""
    from fitting_jobs import resumed, trained  # pyright: ignore[reportMissingImports]

    want, losses = trained(None, 6)
    strategy, folder = Fssdp(1, 3), tmp_path / "run"
    four.run(trained, strategy, 6, folder, 2)
    files = {p.name: p.stat().st_size for p in folder.glob("state/*/*")}
    parts = [f"part-{rank:05d}-of-00004.safetensors" for rank in (1, 2, 3, 4)]
    assert sorted(files) == ["manifest.json", *parts, "state.json"]
    run = two.run(resumed, strategy, 6, folder, 4)
    assert run == [({}, [])] * 2
    with Processes(3, SECONDS) as three:
        outcomes = three.run(resumed, strategy, 6, folder, 99)
    for weights, scores in outcomes:
        assert weights.keys() == want.keys()
        off = max(float((weights[n] - want[n]).abs().max()) for n in want)
        record_property("off", off)
        assert off < CLOSE
        assert scores == pytest.approx(losses, rel=1e-6)


@pytest.mark.thorough
def test_experts_change_their_owners_with_all_that_is_remembered_of_them(
    four: Processes, tmp_path: Path
) -> None:
    """AdamW's moments and the best epoch go along: one process's weights.

    With a checkpoint in between, too, whose owners are those of that step.
    """
    from fitting_jobs import trained, with_owners  # pyright: ignore[reportMissingImports]

    want, losses = trained(None, 6)
    strategy, folder = Fssdp(1, 3, reshard=2), tmp_path / "run"
    owners: list[list[int]] = []
    for weights, scores, owners in four.run(with_owners, strategy, 6):
        assert owners[0] == owners[1] != owners[2] == owners[3]
        assert sorted(owners[2][:6]) != [0, 0, 1, 2, 2, 3]  # not as many of each layer any more
        assert max(float((weights[n] - want[n]).abs().max()) for n in want) < CLOSE
        assert scores == pytest.approx(losses, rel=1e-6)
    four.run(trained, strategy, 6, folder, 3)
    for weights, _, again in four.run(with_owners, strategy, 6, folder, True):
        assert again == owners[3:]
        assert max(float((weights[n] - want[n]).abs().max()) for n in want) < CLOSE


def test_the_mean_of_gradients_does_not_depend_on_their_place(four: Processes) -> None:
    from fitting_jobs import order_free  # pyright: ignore[reportMissingImports]

    four.run(order_free)


@pytest.mark.parametrize(("strategy", "experts"), [(Fssdp(1, 3), 6), (Tutel(), 2)])
def test_all_write_the_file_that_one_process_would(
    four: Processes, strategy: Strategy, experts: int, tmp_path: Path
) -> None:
    """Whole experts, and slices of hidden units: the same bytes."""
    from fitting_jobs import ended  # pyright: ignore[reportMissingImports]

    assert [equal for *_, equal in four.run(ended, strategy, experts, tmp_path, True)] == [True] * 4


def test_no_process_has_all_experts_from_the_first_step_to_the_folder(
    two: Processes, tmp_path: Path
) -> None:
    from fitting_jobs import ended, net  # pyright: ignore[reportMissingImports]

    gathered = two.run(ended, ExpertParallel(), 4, tmp_path / "gathered", True)
    alone = two.run(ended, ExpertParallel(), 4, tmp_path / "alone", False)
    parameters = sum(p.numel() for p in net(4).parameters())
    experts = sum(p.numel() for n, p in net(4).named_parameters() if ".experts." in n)
    assert gathered == [(4, parameters, True)] * 2
    assert [outcome[:2] for outcome in alone] == [(2, parameters - experts // 2)] * 2
    files = [tmp_path / n / "adapter" / "trained.safetensors" for n in ("gathered", "alone")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("strategy", [ExpertParallel(), Fssdp(1, 2), None])
def test_the_log_names_the_process_that_others_wait_for(
    two: Processes, strategy: Strategy | None
) -> None:
    """The slow process sleeps in each step; None: data-parallel alone.

    Without taking off what is waited for all are busy for as long, within a hundredth.
    """
    from fitting_jobs import slowed  # pyright: ignore[reportMissingImports]

    log = two.run(slowed, strategy, 0.3)[0]
    train = [line for line in log if line["split"] == "train"]
    ends = [line for line in train if line["step"] % 3 == 0]
    assert [line["straggler"] for line in ends] == [1, 1]
    assert all(line["straggler_share"] > 0.05 for line in ends)
    assert not any("straggler" in line for line in train if line not in ends)


def test_the_share_of_a_straggler() -> None:
    assert straggler([1.0, 3.0, 2.0]) == {"straggler": 1, "straggler_share": 0.5}
    assert straggler([2.0, 2.0])["straggler_share"] == 0.0 == straggler([0.0])["straggler_share"]


def test_time_in_exchanges_is_not_busy() -> None:
    now = iter([0.0, 1.0, 4.0, 10.0])  # a step of 10 s, of which 3 in an exchange
    accelerator: Any = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    busy = Busy(accelerator, clock=lambda: next(now))
    with busy.step(), busy.meter.waiting():
        pass
    assert (busy.seconds, busy.meter.seconds) == (7.0, 3.0)
    assert busy.end_epoch() == {} and busy.seconds == 0.0


def test_processes_with_other_models_are_told(two: Processes) -> None:
    from fitting_jobs import other_models  # pyright: ignore[reportMissingImports]

    with refused(TrainingError, what="model and strategy"):
        two.run(other_models, ExpertParallel())


def test_what_cannot_be_shared_out_is_refused() -> None:
    with refused(ConfigError, what="parallel", got="<class 'intarsia.parallel.fssdp.Fssdp'>"):
        Running(parallel=Fssdp)  # pyright: ignore[reportArgumentType]
    with refused(ConfigError, what="gather=False"):
        Running(gather=False)
    with refused(ConfigError, what="recompute"):
        Running(parallel=Fssdp(), recompute=True)
