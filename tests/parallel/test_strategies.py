"""Strategies on four processes: degrees, groups, slices, copies; and what goes wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from intarsia.conformance import check, parallels
from intarsia.conformance.cards import CARD_LAWS
from intarsia.core import Card, Paper
from intarsia.core.errors import ConfigError, ConformanceError, TrainingError
from intarsia.parallel import DeepSpeed, Fssdp, Processes, Strategy, Tutel
from intarsia.parallel.layout import cut, having, joined, packed, stacked, unpacked
from intarsia.parallel.trial import LINKS, ExpertTrial, compare_with_one
from intarsia.parallel.tutel import degrees, received, slice_weights
from intarsia.placement import ExpertSize, Topology, Trace, simulate

from ..refusals import refused


@pytest.mark.parametrize(
    ("strategy", "trial"),
    [
        (Tutel(0), ExpertTrial(experts=2, layers=1)),
        (Tutel(1, chunks=2, exchange="hierarchical"), ExpertTrial(experts=2, layers=1, bias=True)),
        (Tutel(2), ExpertTrial(experts=1, layers=1)),
        (Tutel(4), ExpertTrial(experts=1, layers=1, bias=True)),
        (DeepSpeed(1, "hierarchical"), ExpertTrial(experts=2, layers=1, bias=True)),
        (DeepSpeed(2, "flat"), ExpertTrial(experts=8, layers=1)),
        (DeepSpeed(2, "coordinated"), ExpertTrial(experts=1, layers=1)),
        (Fssdp(2, 3, calibrate=True), ExpertTrial(layers=1, past=1)),
        (Fssdp(3, 3), ExpertTrial(layers=1, past=1)),
    ],
)
def test_settings_are_one_process(group: Processes, strategy: Strategy, trial: ExpertTrial) -> None:
    group.run(compare_with_one, strategy, trial)


def toy(fault: str) -> Card:
    from faulty_strategy import Faulty  # pyright: ignore[reportMissingImports]

    return Card(
        "toy",
        kind="parallel",
        config=Faulty,
        paper=Paper("2006.16668", 2020, "A paper"),
        tiny={"fault": fault},
        summary="A toy.",
        family="toys",
    )


FAULTS = {
    "twice": "is_one_process",
    "sends more": "is_one_process",
    "rough": "is_close_where_sums_are_rounded",
    "empty": "takes_whoever_has_nothing",
    "dense": "takes_tokens_of_all_experts_and_of_one",
    "draws": "plans_the_same_each_time",
    "no rows": "deals_out_every_row",
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """End soon the processes that a failed one has left waiting."""
    monkeypatch.setattr("intarsia.parallel.processes.STRAGGLERS", 0.5)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(group: Processes, fault: str) -> None:
    (law,) = [law for law in check(toy(fault)) if law.name == FAULTS[fault]]
    with pytest.raises(ConformanceError):
        law()


def test_every_law_is_seen_to_fail() -> None:
    laws = {law.__name__ for law in parallels.LAWS} - {law.__name__ for law in CARD_LAWS}
    assert laws == set(FAULTS.values())


@pytest.mark.usefixtures("impatient")
def test_processes_answer_by_rank_and_a_failure_ends_them_all(group: Processes) -> None:
    from faulty_strategy import misbehaves, rank_plus  # pyright: ignore[reportMissingImports]

    with Processes(4, seconds=20) as four:
        assert four.run(rank_plus, 3) == [3, 4, 5, 6]
        with refused(TrainingError, what="process 2"):
            four.run(misbehaves, "raises")
        assert four.run(rank_plus, 0) == [0, 1, 2, 3], "started again"
        begun = time.monotonic()
        with refused(TrainingError, what="process 2"):
            four.run(misbehaves, "dies")
        assert time.monotonic() - begun < 15, "the others were told"
    slow = refused(TrainingError, what="processes [0, 1, 2, 3]")
    with Processes(4, seconds=1) as four, slow:
        four.run(misbehaves, "sleeps")


def test_a_dead_or_slow_peer_is_named_with_the_exchange() -> None:
    from intarsia.processes import exchange

    def rank(group: Any = None) -> int:
        return 1

    patch = pytest.MonkeyPatch()
    patch.setattr(exchange.dist, "get_rank", rank)
    patch.setattr(exchange.dist, "get_world_size", lambda group=None: 4)
    reset = RuntimeError("[gloo/pair.cc] Connection closed by peer [127.0.0.1]:9")
    text = str(exchange.lost("exchange '3.dispatch'", reset))
    assert "'3.dispatch' in process 1 of 4" in text and "a process that is gone" in text
    late = RuntimeError("Timed out waiting 1000ms for recv operation to complete")
    assert "no answer in time" in str(exchange.lost("x", late))
    patch.undo()


def test_slices_add_up_to_the_whole() -> None:
    trial = ExpertTrial(experts=3, hidden=6, bias=True)
    full = trial.layers_of()[0]
    units = torch.arange(3)
    parts = [cut(full, units, part, 3) for part in range(3)]
    x, expert = trial.rows(6), torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.equal(torch.stack([piece(x, expert) for piece in parts]).sum(0), full(x, expert))
    again = joined([unpacked(packed(piece), piece) for piece in parts], full)
    assert all(torch.equal(again[name], weight) for name, weight in full.named_parameters())
    assert torch.equal(having(parts[0], again, 3)(x, expert), full(x, expert))
    with refused(ConfigError, what="slices of experts", got="6 hidden units for 4 parts"):
        cut(full, units, 0, 4)
    with refused(ConfigError, what="experts", got="Identity"):
        stacked(torch.nn.Identity())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("experts", [1, 2, 4, 8])
@pytest.mark.parametrize("tokens", [8, 400])
def test_tutel_takes_the_degree_whose_plan_sends_least(experts: int, tokens: int) -> None:
    """Section 3: the formula is the plan's own bytes, and their least is what is taken."""
    trial = ExpertTrial(experts=experts)
    trace = trial.trace().rows(slice(0, 24))
    size = ExpertSize(5, max(4, 3200 // tokens), 8, False)
    volumes: dict[int, int] = {}
    for degree in degrees(experts, 4):
        plan = Tutel(degree).plan(trace, size, LINKS)
        volumes[degree] = int(plan.bytes(["weights", "dispatch", "combine"]).sum())
        from intarsia.parallel.blocks import planned_capacity

        rows = Tutel().rows(trace, 4)
        places = [
            planned_capacity(trace.expert[:, layer], rows, experts, max(1, 4 // experts))
            for layer in range(trace.layers)
        ]
        want = sum(received(degree, experts, 4, c, size) for c in places) * 4
        assert volumes[degree] == want
    best = Tutel(by="bytes").plan(trace, size, LINKS).bytes(["weights", "dispatch", "combine"])
    assert int(best.sum()) <= min(volumes.values())


@pytest.mark.parametrize("tokens", [128, 8192])
def test_tutel_takes_the_degree_that_is_simulated_as_fastest(tokens: int) -> None:
    """Two nodes: links between them are slow, so that the fewest bytes may take longer."""
    links, size = Topology.two_level(2, 4), ExpertSize(1024, 1024)
    draws = torch.Generator().manual_seed(0)
    row = torch.arange(tokens)
    expert = torch.randint(2, (tokens, 1, 1), generator=draws)
    trace = Trace(expert, 2, row // 16, row % 16)

    def seconds(settings: Tutel) -> float:
        return simulate(settings.plan(trace, size, links), links).seconds

    fastest = min(seconds(Tutel(degree)) for degree in degrees(2, 8))
    assert seconds(Tutel()) == fastest <= seconds(Tutel(by="bytes"))


def test_chunks_are_sent_while_others_are_computed() -> None:
    trial, size = ExpertTrial(experts=4), ExpertSize(4096, 4096)
    trace, links = trial.trace(), Topology.two_level(2, 2, flops=1e12)
    seconds = [simulate(Tutel(1, c).plan(trace, size, links), links).seconds for c in (1, 2)]
    unsplit, cut_up = (
        int(Tutel(1, c).plan(trace, size, links).bytes(["dispatch"]).sum()) for c in (1, 2)
    )
    assert cut_up >= unsplit  # tables are rounded up
    assert seconds[1] < seconds[0] * cut_up / unsplit
    tuned = Tutel.tuned(trace, size, links)
    assert simulate(tuned.plan(trace, size, links), links).seconds <= min(seconds)


@pytest.mark.parametrize("degree", degrees(2, 4))
def test_a_backward_multiplies_twice_as_much(degree: int) -> None:
    """Rows give the gradients of weights, and weights those of rows."""
    trial = ExpertTrial(experts=2)
    plan = Tutel(degree).plan(trial.trace(), ExpertSize(8, 8), LINKS, backward=True)
    work = {step.name: step.flops for step in plan.steps if step.resource == "compute"}
    forward = {name: flops for name, flops in work.items() if not name.endswith(".back")}
    assert len(work) == 2 * len(forward) > 0
    for name, flops in forward.items():
        assert flops is not None and torch.equal(work[f"{name}.back"], 2 * flops)


def test_coordinated_exchange_sends_a_part_of_flat() -> None:
    """Section 5.3: 1 / L of the bytes of an exchange, and a gather among the L ranks."""
    trace, size = ExpertTrial().trace(), ExpertSize(8, 8)
    links = Topology.two_level(2, 4)
    flat = DeepSpeed(2, "flat").plan(trace, size, links).bytes(["dispatch", "combine"])
    plan = DeepSpeed(2, "coordinated").plan(trace, size, links)
    parts = plan.bytes(["dispatch", "combine"])
    exchanges = [s.bytes for s in plan.steps if s.phase == "join" and s.bytes is not None]
    assert torch.equal(2 * parts, flat) or int(2 * parts.sum()) >= int(flat.sum())
    assert all(torch.equal(e.sign().sum(1), torch.ones(8, dtype=torch.int64)) for e in exchanges)
    hops = [
        int((s.bytes > 0).sum(1).max())
        for s in DeepSpeed(1, "hierarchical").plan(trace, size, links).steps
        if s.bytes is not None and s.phase.startswith("dispatch")
    ]
    assert hops[:2] == [3, 1], "G + D / G messages for D"


@pytest.mark.parametrize(("slowest", "copied"), [(1e9, 1), (1e-3, 0)])
def test_copies_come_if_they_save_more_than_the_slowest_link_takes(
    slowest: float, copied: int
) -> None:
    """Expert 0 was expected to be busy, expert 1 is; links inside a node are always fast."""
    links = Topology.two_level(2, 2, (1e12, 0.0), (slowest, 0.0), flops=1e6)
    load = torch.tensor([[0.0, 100, 0, 0]] * 4)
    method = Fssdp(1, 1, calibrate=True)
    past = [torch.tensor([100.0, 0, 0, 0])]
    holds = method.holds(past, load, torch.arange(4), ExpertSize(64, 64), links)
    assert holds[:, copied].all() and holds[:, 1 - copied].sum() == 1


def test_the_last_batches_say_which_copies_come() -> None:
    earlier, later = torch.tensor([100.0, 0, 0, 0]), torch.tensor([0.0, 100, 0, 0])
    past = [earlier] * 3 + [later] * 2
    load, size = torch.zeros(4, 4), ExpertSize(64, 64)
    holds = Fssdp(1, 1, window=2).holds(past, load, torch.arange(4), size, LINKS)
    assert holds[:, 1].all() and holds[:, 0].sum() == 1


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Tutel(-1), "degree"),
        (lambda: Tutel(exchange="ring"), "exchange"),
        (lambda: Tutel(by="luck"), "by"),
        (lambda: Tutel(3).chosen(4, 8, ExpertSize(2, 2), Topology.uniform(4)), "one of"),
        (lambda: degrees(6, 4), "Try 2 or 3"),
        (lambda: DeepSpeed(0), "tensor"),
        (lambda: DeepSpeed(3).groups(8, LINKS), "devices"),
        (lambda: DeepSpeed(1, "hierarchical").groups(6, Topology.two_level(2, 3)), None),
        (lambda: Fssdp(-1), "memory"),
        (lambda: Fssdp(window=0), "window"),
        (lambda: Fssdp(reshard=-1), "reshard"),
    ],
)
def test_settings_that_cannot_be_are_refused(call: Any, match: str | None) -> None:
    if match is None:
        call()
        return
    with pytest.raises(ConfigError, match=match):
        call()


def test_bytes_of_a_slice_are_those_of_its_matrices_and_biases() -> None:
    plain, gated = ExpertSize(8, 6, 4, gated=False), ExpertSize(8, 6, 4)
    assert slice_weights(plain, 1) == 2 * 8 * 6 * 4 and slice_weights(plain, 3) == 2 * 8 * 2 * 4
    assert slice_weights(gated, 2) == 3 * 8 * 3 * 4
    bias = ExpertSize(8, 6, 4, bias=True)
    assert slice_weights(bias, 2) == (3 * 8 * 3 + 2 * 3 + 8) * 4
