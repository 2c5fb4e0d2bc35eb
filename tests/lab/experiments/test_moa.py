"""What MoA is compared with has as many keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from intarsia.data.small_models import SmallModel, small_decoder
from intarsia.hosts.spans.spans import Spans
from intarsia_lab.experiments import moa


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[str, Any] = {"CHECK": 96, "EXTEND": 128, "BLOCK": 4}
    for name, value in sizes.items():
        monkeypatch.setattr(moa, name, value)


@pytest.mark.usefixtures("small")
def test_rivals_have_the_mean_span_of_what_was_chosen() -> None:
    spans = Spans.of(torch.tensor([[12, 60, 96], [20, 20, 40]]), sink=4, block=4)
    rivals = moa.rivals(spans, 0)
    mean = float(spans.at(96).double().mean())
    for name in ("uniform", "random"):
        rival = rivals[name]
        assert rival is not None
        assert mean - 1e-9 <= float(rival.at(96).double().mean()) <= mean + 4
    uniform, random = rivals["uniform"], rivals["random"]
    assert uniform is not None and random is not None
    assert len(uniform.at(96).unique()) == 1
    assert len(random.at(96).unique()) > 2
    assert rivals["dense"] is None


@pytest.mark.usefixtures("small")
def test_losses_are_of_the_arms() -> None:
    spans = Spans.of(torch.tensor([[12, 60, 96], [20, 20, 128]]), sink=4, block=4)
    model = small_decoder(SmallModel(24, 2, 3, 48), tokens=32, length=128)
    ids = torch.randint(0, 32, (2, 96), generator=torch.Generator().manual_seed(0))
    losses = {name: moa._loss(model, rival, ids) for name, rival in moa.rivals(spans, 0).items()}
    assert len(set(losses.values())) == 4
    assert model.config._attn_implementation == "sdpa"
