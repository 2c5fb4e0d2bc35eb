"""A ring of layers: the simulator's time is the recurrence's, and the period the closed form's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError
from intarsia.placement.layer_ring import period, ring, ring_seconds
from intarsia.placement.timeline import simulate
from intarsia.placement.topology import Topology


def seconds(layers: int, slots: int, c: float, load: float, rounds: int = 1) -> float:
    unit = torch.ones(1)
    topology = Topology(torch.ones(1, 1), torch.zeros(1, 1), unit * 1e3, unit * 1e3, unit)
    plan = ring(layers, slots, flops=c * 1e3, bytes=round(load * 1e3), rounds=rounds)
    return simulate(plan, topology).seconds


@given(
    st.integers(2, 7), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)
)
def test_the_simulator_is_the_recurrence(
    layers: int, slots: int, c: int, load: int, rounds: int
) -> None:
    if slots < layers:
        simulated = seconds(layers, slots, c, load, rounds)
        assert simulated == pytest.approx(ring_seconds(layers * rounds, slots, c, load), abs=1e-9)


def test_the_period_is_the_closed_form() -> None:
    for slots, c, load in ((1, 2.0, 3.0), (2, 2.0, 3.0), (2, 3.0, 2.0), (3, 5.0, 1.0)):
        long, short = (ring_seconds(turns, slots, c, load) for turns in (120, 60))
        assert (long - short) / 60 == pytest.approx(period(slots, c, load))
    assert seconds(8, 2, 3.0, 2.0) == pytest.approx(8 * 3.0 + 2.0)  # loads are hidden but the first
    assert seconds(8, 1, 3.0, 2.0) == pytest.approx(8 * 5.0)  # by turns


def test_all_in_memory_is_read_once() -> None:
    assert seconds(4, 4, 3.0, 1.0, rounds=3) == pytest.approx(1.0 + 12 * 3.0)
    plan = ring(4, 4, flops=1.0, bytes=8, rounds=3)
    assert sum(step.resource == "load" for step in plan.steps) == 4
    assert sum(step.resource == "load" for step in ring(4, 2, flops=1.0, bytes=8).steps) == 4


def test_fewer_than_one_is_refused() -> None:
    for bad in ({"layers": 0}, {"slots": 0}, {"rounds": 0}):
        with pytest.raises(ConfigError):
            ring(**({"layers": 2, "slots": 1, "rounds": 1} | bad), flops=1.0, bytes=1)
