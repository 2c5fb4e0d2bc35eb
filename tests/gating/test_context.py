"""The modules that are told of a batch: looked for once where they stay, each time where not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from intarsia.gating import RandomSource, before_step, contexts, finding_once, join, redraw


class Falling(nn.Module):
    """Something that changes along a run."""

    def before_step(self, step: int, steps: int) -> None:
        self.at = step, steps


def model(*modules: nn.Module) -> Any:
    sources = (RandomSource(torch.Generator().manual_seed(n)) for n in range(2))
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(*sources), *modules)
    join(network)
    return network


def test_inside_nothing_is_looked_for_and_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = model()
    outer = nn.Sequential(inner)
    want = contexts(inner)
    with finding_once(inner, outer), finding_once(inner):
        monkeypatch.setattr(nn.Module, "modules", lambda *_: pytest.fail("looked for again"))
        before_step(outer, 3, 9)
        redraw(outer)
        assert contexts(inner) == contexts(outer) == want and want[0].step == 3
        monkeypatch.undo()
    assert vars(inner).keys() == vars(model()).keys()
    inner.append(RandomSource(torch.Generator()))  # not joined: a context of its own
    assert len(contexts(inner)) == 2


def test_a_model_that_changes_along_a_run_is_looked_through() -> None:
    module = Falling()
    network = model(module)
    with finding_once(network):
        network.append(two := Falling())
        before_step(network, 1, 5)
        assert module.at == two.at == (1, 5)
