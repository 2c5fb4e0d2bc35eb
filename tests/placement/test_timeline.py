"""Times of a plan: worked out by hand, and never less than the longest chain."""

from __future__ import annotations

import json

import pytest
import torch

from intarsia.core.errors import ConfigError
from intarsia.placement import DevicePlan, ExpertSize, PlanStep, Topology, place, simulate
from intarsia.placement.engines import expert_parallel
from intarsia.placement.timeline import rows_to_hide

from ..refusals import refused
from .made import made

LINKS = Topology.two_level(1, 2, intra=(10.0, 1.0), flops=2.0, load=5.0)


def test_times_by_hand() -> None:
    sent = torch.tensor([[0, 30], [10, 0]])
    steps = (
        PlanStep("send", 0, "dispatch", "link", bytes=sent),  # 30 / 10 + 1 = 4 s
        PlanStep("load", 0, "load", "load", bytes=torch.tensor([[5, 0], [0, 50]])),  # 1 s, 10 s
        PlanStep("make", 0, "expert", "compute", ("send", "load"), flops=torch.tensor([4.0, 2.0])),
        PlanStep("back", 0, "combine", "link", ("make",), bytes=sent.T),
    )
    line = simulate(DevicePlan(steps, 2), LINKS)
    ends = {(s.name, s.device): s.end for s in line.spans}
    assert ends["make", 0] == 4 + 2 and ends["make", 1] == 10 + 1
    assert line.seconds == ends["back", 0] == 11 + 4
    assert [s.name for s in line.critical()] == ["load", "make", "back"]
    assert dict(line.binds()) == {"compute": 1.0, "link": 4.0, "load": 10.0}
    assert line.busy("load") == 10 and line.busy("link") == 8
    events = json.loads(line.chrome())["traceEvents"]
    assert len(events) == 8 and {e["ph"] for e in events} == {"X"}


def test_a_plan_is_the_same_from_its_json() -> None:
    trace = made()
    plan = expert_parallel(trace, place(trace, 4), ExpertSize(4, 2), backward=True)
    again = DevicePlan.from_json(plan.to_json())
    assert again.digest() == plan.digest() and torch.equal(again.bytes(), plan.bytes())
    assert simulate(again, Topology.uniform(4)) == simulate(plan, Topology.uniform(4))
    assert plan.bytes(["counts"]).sum() == 3 * 12 * 16


def test_what_is_no_plan_is_refused() -> None:
    step = PlanStep("a", 0, "x", "link")
    with refused(ConfigError, what="steps of a plan"):
        DevicePlan((step, step), 2)
    with refused(ConfigError, what="steps of a plan"):
        DevicePlan((PlanStep("a", 0, "x", "link", ("b",)),), 2)
    with refused(ConfigError, what="step 'a'"):
        PlanStep("a", 0, "x", "link", bytes=torch.eye(2))
    with refused(ConfigError, what="resource", got="'wire'"):
        PlanStep("a", 0, "x", "wire")
    with refused(ConfigError, what="topology", got="3 devices"):
        simulate(DevicePlan((step,), 2), Topology.uniform(3))


def test_rows_that_hide_a_load() -> None:
    fast = Topology.two_level(1, 1, flops=790e12, load=55e9)
    assert rows_to_hide(2, fast) == pytest.approx(14_364, abs=1)
