"""Hecate's decisions: who gets copies, who owns what."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from intarsia.placement.materialise import apportion, by_load, materialise, rows_computed


def test_three_loads_get_copies_by_hand() -> None:
    """Section 4.2: t = 3 experts of loads 40, 20 and 10 share |D| m = 4 x 2 slots in proportion.

    8 x 40 / 70 = 4.57, 8 x 20 / 70 = 2.29, 8 x 10 / 70 = 1.14, rounded down 4, 2 and 1. The slot
    that is left belongs to the remainder .57, but an expert has 4 copies at most, one a device; so
    it goes to the next largest remainder, .29: 4, 3, 1.
    """
    assert apportion([40, 20, 10], 8, 4) == [4, 3, 1]


def test_slots_are_taken_back_where_rounding_gained_most_by_hand() -> None:
    """Shares .1 are raised to 1, so that 3.3 and 2.5, rounded down, have a slot too many."""
    assert apportion([33, 25, 1, 1], 6, 4) == [2, 2, 1, 1]


def test_slots_are_dealt_in_proportion_and_capped() -> None:
    assert apportion([0, 0], 4, 3) == [2, 2]
    assert apportion([1000, 1, 1, 1], 4, 3) == [1, 1, 1, 1]


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=12),
    st.integers(1, 5),
    st.integers(0, 4),
    st.integers(0, 12),
)
def test_copies_stay_within_their_slots(
    loads: list[int], devices: int, slots: int, hottest: int
) -> None:
    load, nodes = torch.tensor(loads), torch.arange(devices) // 2
    owner = torch.arange(len(loads)) % devices
    holds = materialise(load, owner, nodes, slots, hottest)
    owned = owner[None] == torch.arange(devices)[:, None]
    assert bool(holds[owned].all())
    assert int((holds & ~owned).sum(1).max()) <= slots
    assert int((holds & ~owned).any(0).sum()) <= hottest
    per_device = load[None].repeat(devices, 1)
    rows = rows_computed(per_device, holds, nodes)
    assert abs(float(rows.sum() - per_device.sum())) < 1e-6, "every pair is computed once"


def test_an_owner_computes_a_share_beside_its_copies_by_hand() -> None:
    """Loads 9, 9, 4 and 4.2; the two hottest get two copies each, so that a third stays at home.

    Their owners have 3 then, less than the other two: the first copy of expert 0 goes to device 1,
    which has 6 with it, the second to device 2 with its 4.
    """
    load, nodes = torch.tensor([9, 9, 4, 4.2]), torch.zeros(4, dtype=torch.int64)
    holds = materialise(load, torch.arange(4), nodes, 1, 2)
    assert holds[:, 0].tolist() == [True, True, True, False]
    assert holds[:, 1].tolist() == [True, True, False, True]


def test_copies_go_to_nodes_that_have_none_by_hand() -> None:
    """Experts 0 and 1 of two copies each: the first copy of 0 leaves the node of its owner."""
    load, nodes = torch.tensor([10.0, 10, 1, 1]), torch.tensor([0, 0, 1, 1])
    holds = materialise(load, torch.arange(4), nodes, 1, 2)
    assert holds[:, 0].tolist() == [True, False, True, True]


def test_copies_take_load_off_the_busiest_device() -> None:
    load, nodes = torch.tensor([40.0, 20, 10, 5, 5, 5, 5, 5]), torch.zeros(4, dtype=torch.int64)
    owner = torch.arange(8) // 2
    per_device = load[None].repeat(4, 1)
    slowest = [
        float(rows_computed(per_device, materialise(load, owner, nodes, m, 8), nodes).max())
        for m in (0, 1, 2, 4, 8)
    ]
    assert max(slowest) == slowest[0] == 240, "the owner of the two hottest"
    assert slowest[-1] == float(per_device.sum()) / 4, "all copies everywhere is data parallelism"


def test_rows_stay_at_home_then_on_their_node() -> None:
    holds = torch.tensor([[True], [False], [False], [True]])
    nodes = torch.tensor([0, 0, 1, 1])
    load = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    assert rows_computed(load, holds, nodes).tolist() == [7.0, 0.0, 0.0, 3.0]
    both = torch.tensor([[True], [True], [False], [False]])  # neither sends its rows to the other
    assert rows_computed(load, both, nodes).tolist() == [5.5, 4.5, 0.0, 0.0]


def test_of_devices_with_equal_loads_the_one_that_owns_fewer_gets_the_next_expert() -> None:
    nodes = torch.zeros(2, dtype=torch.int64)
    assert by_load(torch.zeros(1, 4), nodes, 0).owner.tolist() == [[0, 1, 0, 1]]


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
def test_owners_are_even_over_the_layers(
    layers: int, experts: int, devices: int, hottest: int
) -> None:
    load = torch.randint(0, 30, (layers, experts), generator=torch.Generator().manual_seed(0))
    placed = by_load(load, torch.arange(devices) // 2, hottest)
    assert int(placed.sizes().sum(0).max()) <= -(-layers * experts // devices)
    assert placed.sizes().sum() == layers * experts
