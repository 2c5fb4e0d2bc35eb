"""The experiments on traces, on a mixture that was trained for four steps."""

from __future__ import annotations

import pytest
import torch

from intarsia_lab.experiments import expertflow, moetuner, study
from intarsia_lab.materials import routing_traces


@pytest.mark.usefixtures("mixture")
def test_a_seed_s_traces_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HELD_OUT", "TRAINED"):
        monkeypatch.setattr(routing_traces, name, 3)
    moetuner.placed.cache_clear()
    messages: list[str] = []
    first = routing_traces.traces(0, messages.append)
    assert len(messages) == 1 and {len(first[kind]) for kind in ("balanced", "skewed")} == {768}
    again = routing_traces.traces(0, messages.append)
    assert len(messages) == 1 and torch.equal(first["skewed"].expert, again["skewed"].expert)
    assert len(routing_traces.kept(0, "trained")) == 768
    monkeypatch.setattr(expertflow, "AT_ONCE", 2)
    result = study("expertflow-regroup").measure((0,), messages.append)
    assert 0 < result.value < 1.5 and result.table
    result = study("moetuner").measure((0,), messages.append)
    assert 0.5 < result.value < 1.5 and len(result.table) == 7


def test_the_losses_are_those_of_a_loop() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = tuple(torch.randn(20, 16, generator=draws) for _ in range(3))
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    theirs = load_balancing_loss_func(logits, 16, 2)
    torch.testing.assert_close(2 * routing_traces.summed(logits), theirs)
    even = torch.zeros(40, 16).scatter(1, torch.arange(40)[:, None] % 16, 1e-3)
    assert routing_traces.each_layer((even,)).item() == pytest.approx(1.0, abs=0.2)


def test_nothing_is_gained_where_nothing_is() -> None:
    trace = routing_traces.uniform(0, tokens=2560)
    assert trace.load().float().std(1).max() < 40
    drifts = routing_traces.drawn(0, tokens=2560)
    share = drifts.load().double() / drifts.load().sum(1, keepdim=True)
    assert float(share.max(1).values.min()) > 0.1
