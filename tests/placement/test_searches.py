"""Searches against brute force, and engines' bytes against a loop over tokens."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ConfigError
from intarsia.placement import (
    ExpertSize,
    Placement,
    Topology,
    Trace,
    expert_parallel,
    place,
    quality,
)
from intarsia.placement.balance import JointSwaps, longest_first, swap_until_even
from intarsia.placement.engines import COUNTS, ENGINES, PAIR, destinations, homes
from intarsia.placement.eplb import Eplb, replicate
from intarsia.placement.exflow import ExFlow
from intarsia.placement.moetuner import (
    MoeTuner,
    cluster_devices,
    cluster_traffic,
    even_clusters,
    slowest,
    uneven,
)

from ..refusals import refused
from .traces import random_trace


def every_even(experts: int, devices: int) -> list[Tensor]:
    """Yield all placements of experts in equal counts, by brute force."""
    per_device = experts // devices
    ways = itertools.product(range(devices), repeat=experts)
    return [torch.tensor(w) for w in ways if all(w.count(d) == per_device for d in range(devices))]


@pytest.mark.parametrize(("experts", "devices"), [(8, 4), (6, 3)])
def test_the_first_programme_is_brute_force_s(experts: int, devices: int) -> None:
    ways = every_even(experts, devices)
    load = random_trace(experts=experts).load()[0]
    best = min(uneven(load, way, devices) for way in ways)
    clusters = even_clusters(load, devices, gap=0.0, nodes=10**6)
    assert clusters is not None and clusters.bincount().tolist() == [experts // devices] * devices
    assert_close(uneven(load, clusters, devices), best, atol=1e-9, rtol=0)
    first = longest_first(load, devices)
    assert uneven(load, swap_until_even(load, first, devices), devices) <= uneven(
        load, first, devices
    )


def test_the_programmes_of_moetuner_by_hand() -> None:
    """Programme 1, min sum_c |T_c - mean|, and programme 2, min max_{i != j} C_ij / B_ij.

    Loads 6, 4, 3 and 1 on two devices have a mean of 7: (6, 4) and (3, 1) are |10 - 7| + |4 - 7| =
    6 uneven, (6, 1) and (4, 3) are 0. Between two layers 5 rows go from cluster 0 to 1, 2 back and
    1 stays in each, over links of 1: with the clusters in order the slower way takes 5, with those
    of the second layer exchanged 1.
    """
    load = torch.tensor([6.0, 4, 3, 1])
    assert uneven(load, torch.tensor([0, 0, 1, 1]), 2) == 6
    assert even_clusters(load, 2, gap=0.0, nodes=10**6).tolist() == [0, 1, 1, 0]  # pyright: ignore
    traffic = torch.tensor([[1.0, 5], [2, 1]], dtype=torch.float64)
    order = cluster_devices([traffic], torch.ones(2, 2).double(), 2, 5)
    assert order.tolist() in ([[0, 1], [1, 0]], [[1, 0], [0, 1]])


@pytest.mark.parametrize("devices", [2, 3])
def test_the_second_programme_is_brute_force_s(devices: int) -> None:
    draws = torch.Generator().manual_seed(0)
    traffic = [torch.rand(devices, devices, generator=draws).double() for _ in range(2)]
    links = 1 + torch.rand(devices, devices, generator=draws).double()
    permutations = [torch.tensor(p) for p in itertools.permutations(range(devices))]

    def cost(orders: tuple[Tensor, ...]) -> float:
        inverses = [order.argsort() for order in orders]
        moved = [c[a][:, b] for c, a, b in zip(traffic, inverses, inverses[1:], strict=False)]
        return sum(float(slowest(m, links)) for m in moved)

    best = min(map(cost, itertools.product(permutations, repeat=3)))
    assert_close(cost(tuple(cluster_devices(traffic, links, 3, 5))), best, atol=1e-12, rtol=0)


def test_traffic_goes_from_the_earlier_layer_s_clusters_to_the_later_one_s() -> None:
    transitions = torch.zeros(4, 4)
    transitions[0, 2], transitions[1, 3], transitions[3, 1] = 3, 5, 2
    source, target = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    assert cluster_traffic(transitions, source, target, 2).tolist() == [[0, 3], [2, 5]]


def test_a_slow_way_is_left_to_where_little_goes() -> None:
    """9 rows stay in each cluster, 5 go from 0 to 1: over the link of 10, not over that of 1."""
    traffic = torch.tensor([[9.0, 5], [0, 9]], dtype=torch.float64)
    links = torch.tensor([[1.0, 1], [10, 1]], dtype=torch.float64)
    assert cluster_devices([traffic], links, 2, 5).tolist() == [[1, 0], [1, 0]]


def test_the_time_of_traffic_is_its_slowest_link_s_and_a_little_of_all() -> None:
    traffic = torch.tensor([[9.0, 4.0], [6.0, 9.0]])
    bandwidth = torch.tensor([[1.0, 2.0], [4.0, 1.0]])
    assert_close(slowest(traffic, bandwidth), torch.tensor(2 + 1e-4 * (2 + 1.5)))


def test_the_programme_is_solved_where_swaps_leave_loads_uneven() -> None:
    draw = torch.Generator().manual_seed(0)
    better = 0
    for _ in range(30):
        load = torch.randint(1, 60, (8,), generator=draw)
        near = uneven(load, swap_until_even(load, longest_first(load, 2), 2), 2)
        ours = uneven(load, MoeTuner().clusters(load, 2), 2)
        best = min(uneven(load, choice, 2) for choice in every_even(8, 2))
        assert best <= ours <= near and ours - best <= 2e-2 * int(load.sum())
        better += ours < near
    assert better


def test_the_slowest_link_decides_not_the_sum_of_all() -> None:
    """Links take 5 and 0 in order, 4 and 3 exchanged: more in all, and sooner done."""
    traffic = torch.tensor([[4.0, 5], [0, 3]], dtype=torch.float64)
    order = cluster_devices([traffic], torch.ones(2, 2).double(), 2, 5)
    assert order[0].tolist() == order[1].flip(0).tolist()


def test_many_devices_follow_what_each_cluster_sends() -> None:
    """Cluster i sends all it has to cluster i + 1: with both on one device nothing travels."""
    traffic = torch.eye(6, dtype=torch.float64).roll(1, 1)
    order = cluster_devices([traffic, traffic], torch.ones(6, 6).double(), 3, 9)
    for before, after in itertools.pairwise(order):
        assert after.roll(-1).tolist() == before.tolist()


def test_many_devices_take_the_fast_links() -> None:
    """Cluster 0 sends to two clusters: one lies with it, the other over the fast link."""
    traffic, links = torch.zeros(6, 6).double(), torch.ones(6, 6).double()
    traffic[0, :2], links[0, 3] = 1.0, 10.0
    first, second = cluster_devices([traffic], links, 2, 9)
    assert first[0] == 0 and second[:2].sort().values.tolist() == [0, 3]


def test_many_devices_are_ordered_one_layer_at_a_time() -> None:
    trace, links = random_trace(experts=12), Topology.two_level(3, 2)
    placed = MoeTuner().place(trace, links)
    assert placed.sizes().unique().tolist() == [2]
    assert quality(trace, placed).cross < 1


@pytest.mark.parametrize("seed", range(3))
def test_a_placement_has_the_traffic_of_the_best_order(seed: int) -> None:
    """Orders of three devices that go round are not their own inverse."""
    trace = random_trace(experts=6, seed=seed)
    links = 1 + torch.rand(3, 3, generator=torch.Generator().manual_seed(seed)).double()
    settings = MoeTuner()
    clusters = [settings.clusters(load, 3) for load in trace.load()]
    orders = [torch.tensor(p) for p in itertools.permutations(range(3))]

    def seconds(owner: list[Tensor]) -> float:
        pairs = enumerate(itertools.pairwise(owner))
        moved = [cluster_traffic(trace.transitions(i), a, b, 3) for i, (a, b) in pairs]
        return sum(float(slowest(m, links)) for m in moved)

    ways = itertools.product(orders, repeat=3)
    best = min(seconds([o[c] for o, c in zip(way, clusters, strict=True)]) for way in ways)
    topology = replace(Topology.uniform(3), bandwidth=links)
    assert_close(seconds([*settings.place(trace, topology).owner]), best)


def test_joint_swaps_lower_what_they_are_asked_for() -> None:
    trace = random_trace(tokens=200, layers=4)
    links = Topology.uniform(4)
    plain = quality(trace, Placement.contiguous(4, 8, 4))
    stay, home = (
        quality(trace, JointSwaps(objective).place(trace, links)) for objective in ("stay", "home")
    )
    assert stay.cross < plain.cross and stay.cross < home.cross
    start = torch.stack([swap_until_even(load, longest_first(load, 4), 4) for load in trace.load()])
    assert home.destinations < quality(trace, Placement.of(start, 4)).destinations
    flow = quality(trace, ExFlow().place(trace, links))
    assert flow.cross <= plain.cross


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("k", [2, 3])
def test_tokens_go_to_no_more_devices_than_with_experts_in_order(seed: int, k: int) -> None:
    """Busy experts of the same tokens lie side by side, where balance alone takes them apart."""
    weight = torch.tensor([8.0, 7, 6, 0.5, 0.5, 0.3, 0.3, 0.3]).expand(300, 8)
    draws = torch.Generator().manual_seed(seed)
    experts = torch.stack([torch.multinomial(weight, k, generator=draws) for _ in range(2)], 1)
    trace = Trace(experts, 8, torch.arange(300) // 10, torch.arange(300) % 10)
    links, plain = Topology.uniform(4), quality(trace, Placement.contiguous(2, 8, 4))
    home = quality(trace, JointSwaps("home").place(trace, links))
    start = torch.stack([swap_until_even(load, longest_first(load, 4), 4) for load in trace.load()])
    assert quality(trace, Placement.of(start, 4)).destinations > plain.destinations
    assert home.destinations <= plain.destinations
    assert home.imbalance <= plain.imbalance + 1e-9


def test_the_slack_bounds_the_load() -> None:
    trace = random_trace(tokens=200, layers=2)
    tight = quality(trace, JointSwaps(slack=1.0).place(trace, Topology.uniform(4)))
    start = torch.stack([swap_until_even(load, longest_first(load, 4), 4) for load in trace.load()])
    assert tight.imbalance <= quality(trace, Placement.of(start, 4)).imbalance + 1e-9


def test_eplb_copies_the_busiest_and_evens_the_load() -> None:
    trace, links = random_trace(tokens=200), Topology.uniform(4)
    without, with_copies = (Eplb(n).place(trace, links) for n in (0, 4))
    assert without.sizes().unique().tolist() == [2]
    assert with_copies.holds.sum((1, 2)).tolist() == [12] * 3
    busiest = trace.load().argmax(1)
    assert bool((with_copies.holds[torch.arange(3), :, busiest].sum(1) > 1).all())
    assert quality(trace, with_copies).imbalance < quality(trace, without).imbalance
    assert replicate([4.0, 1.0], 2, 3) == [0, 0, 0, 1]
    with refused(ConfigError, what="redundant"):
        replicate([4.0, 1.0], 1, 1)


def test_eplb_keeps_groups_on_their_node() -> None:
    trace, links = random_trace(experts=12), Topology.two_level(2, 2)
    placed = Eplb(groups=4).place(trace, links)
    node = links.nodes()[placed.owner].view(3, 4, 3)
    assert bool((node == node[:, :, :1]).all())
    with refused(ConfigError, what="groups", got="5 for 12 experts"):
        Eplb(groups=5).place(trace, links)


def test_eplb_needs_the_loads_alone() -> None:
    trace = random_trace()
    placed = place(trace.load(), 4, by=Eplb(4))
    by_trace = Eplb(4).place(trace, Topology.uniform(4))
    assert torch.equal(placed.holds, by_trace.holds) and torch.equal(placed.owner, by_trace.owner)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("copies", [False, True])
def test_the_plan_s_bytes_are_those_of_a_loop(engine: str, copies: bool) -> None:
    trace, links, size = random_trace(), Topology.two_level(2, 2), ExpertSize(5, 3, item=4)
    trace.expert[4, 1, 1] = -1
    placed = place(trace, links)
    if copies:
        placed.holds[:, 3, :3] = True
    plan = expert_parallel(trace, placed, size, engine=engine, nodes=links.nodes(), backward=True)
    want = {name: torch.zeros(4, 4, dtype=torch.int64) for name in ("there", "back")}
    home = homes(trace, 4).tolist()

    def sent(a: int, b: int, forward: int, back: int) -> None:
        want["there"][a, b] += forward * (a != b)
        want["back"][b, a] += back * (a != b)

    for layer in range(3):
        experts = trace.expert[:, layer].long()
        for a in range(4):
            for b in range(4):
                sent(a, b, COUNTS, 0)
        for row in range(len(trace)):
            target = home[row]
            if engine == "stay":
                before = int(placed.owner[layer - 1, trace.expert[row, layer - 1, 0]])
                target = int(placed.owner[layer, experts[row, 0]])
                sent(before if layer else home[row], target, size.row, size.row)
            pair_device = destinations(
                experts[row : row + 1],
                torch.tensor([target]),
                placed.holds[layer],
                links.nodes(),
                torch.tensor([row]),
            )[0].tolist()
            for device in {d for d in pair_device if d >= 0}:
                sent(target, device, size.row, size.row)
                sent(device, target, size.row, size.row)
            for device in pair_device:
                if device >= 0:
                    sent(target, device, PAIR + size.item, size.item)
    if engine == "stay":
        for row in range(len(trace)):
            sent(int(placed.owner[2, trace.expert[row, 2, 0]]), home[row], size.row, size.row)
    forward = sum(s.bytes for s in plan.steps if s.resource == "link" and ".back" not in s.name)  # pyright: ignore
    assert torch.equal(forward, want["there"])  # pyright: ignore
    assert torch.equal(plan.bytes(), want["there"] + want["back"])
    flops = sum(float(s.flops.sum()) for s in plan.steps if s.flops is not None)  # pyright: ignore
    assert flops == 3 * (trace.expert >= 0).sum() * size.flops


@pytest.mark.parametrize("devices", [2, 8])
def test_a_placement_for_other_devices_is_refused(devices: int) -> None:
    placed, links = Placement.contiguous(3, 8, 4), Topology.uniform(devices)
    with refused(ConfigError, what="topology", want="of 4, as the placement has"):
        expert_parallel(random_trace(), placed, ExpertSize(4, 2), nodes=links.nodes())


def test_a_copy_close_by_is_taken() -> None:
    holds = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 1]]).bool()  # (D, E)
    nodes = torch.tensor([0, 0, 1, 1])
    expert = torch.tensor([[0, 1], [0, -1], [0, 1], [1, 0]])
    source, row = torch.tensor([0, 2, 2, 3]), torch.arange(4)
    chosen_device = destinations(expert, source, holds, nodes, row).tolist()
    assert chosen_device == [[0, 1], [3, -1], [3, 3], [3, 3]]
    apart = destinations(expert[:, :1], source * 0 + 2, holds, torch.arange(4), row)
    assert apart.flatten().tolist() == [0, 1, 3, 3]  # in turn; the last asks for expert 1: 1 or 3


def test_what_is_no_search_is_refused() -> None:
    with refused(ConfigError, what="by", got="<class 'intarsia.placement.moetuner.MoeTuner'>"):
        place(random_trace(), 4, MoeTuner)  # pyright: ignore
    with refused(ConfigError, what="devices", got="3 for 8 experts"):
        place(random_trace(), 3)
    with refused(ConfigError, what="placement", got="2 layers of 8 experts"):
        quality(random_trace(), Placement.contiguous(2, 8, 4))
    with refused(ConfigError, what="size of an expert"):
        ExpertSize.of(random_trace())
