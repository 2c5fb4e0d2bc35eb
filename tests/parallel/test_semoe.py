"""SE-MoE: levels, memory ahead, columns, elastic tasks and buckets."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError
from intarsia.parallel import Processes, SeMoe, bucketed, elastic
from intarsia.parallel.semoe import memory
from intarsia.parallel.trial import LINKS, ExpertTrial
from intarsia.placement import ExpertSize, Topology, simulate
from intarsia.train.processes import EXCHANGE

from ..refusals import refused


def test_a_table_cut_by_columns_is_the_table(group: Processes) -> None:
    """Outputs and gradients ==, a quarter of the bytes each; ids of uneven number, or none."""
    from embedding_job import by_columns  # pyright: ignore[reportMissingImports]

    assert group.run(by_columns) == [True] * 4


def test_weights_ahead_take_less_time_and_move_the_same() -> None:
    """Section 3.3: both dimensions ahead < one < none."""
    trial, size = ExpertTrial(layers=4), ExpertSize(1024, 1024)
    links = Topology.two_level(2, 2, load=1e9, flops=1e10)
    plans = [
        SeMoe(prefetch=kind, dense=10**8).plan(trial.trace(), size, links)
        for kind in ("none", "1d", "2d")
    ]
    times = [simulate(plan, links).seconds for plan in plans]
    assert times == sorted(times, reverse=True) and times[2] < times[1] < times[0]
    assert len({int(plan.bytes().sum()) for plan in plans}) == 1
    assert all(simulate(plan, links).busy("load") > 0 for plan in plans)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5), st.integers(1, 3))
def test_elastic_tasks_are_within_four_thirds_of_the_best(work: list[int], devices: int) -> None:
    shares = elastic(work, devices)
    done = [sum(row[task] for row in shares) for task in range(len(work))]
    assert done == pytest.approx(work)
    best = min(
        max(
            sum(w for w, device in zip(work, places, strict=True) if device == d)
            for d in range(devices)
        )
        for places in product(range(devices), repeat=len(work))
    )
    assert max(map(sum, shares)) <= 4 / 3 * best + 1e-9


def test_heavy_tasks_are_split_and_light_ones_share() -> None:
    shares = elastic([8, 1, 1, 1, 1], 3)
    assert max(map(sum, shares)) == 4.0
    assert sum(row[0] > 0 for row in shares) == 2
    assert max(map(sum, elastic([5, 1], 2))) == 3.5  # not whole multiples of the mean
    with refused(ConfigError, what="devices", got=0):
        elastic([1], 0)
    with refused(ConfigError, what="weight of a task", got=-1):
        elastic([-1], 2)


def test_a_bucket_is_one_call_and_the_same_values() -> None:
    calls: list[int] = []

    def doubled(flat: torch.Tensor) -> torch.Tensor:
        calls.append(len(flat))
        return 2 * flat

    tensors = [torch.arange(6.0).view(2, 3), torch.ones(()), torch.zeros(0, 4)]
    sums = bucketed(tensors, doubled)
    assert calls == [7]
    assert all(torch.equal(a, 2 * b) for a, b in zip(sums, tensors, strict=True))


def test_memory_is_counted() -> None:
    assert memory(100, 1000, 4, 0.5) == {"gpu": 900.0, "cpu": 8000.0, "disk": 12000.0}


def test_settings_that_cannot_be_are_refused() -> None:
    with refused(ConfigError, what="prefetch", got="'3d'"):
        SeMoe(prefetch="3d")
    with refused(ConfigError, what="exchange", got="'ring'"):
        SeMoe(exchange="ring")
    assert SeMoe().plan(ExpertTrial().trace(), ExpertSize(4, 4), LINKS).steps


def test_a_job_has_as_long_as_an_exchange() -> None:
    assert Processes(1).seconds == EXCHANGE
