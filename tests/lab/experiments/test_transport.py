"""The experiment on sparse transport in its smallest form, and the plan beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from intarsia.mixtures.zcode_m3 import mixtures_in
from intarsia_lab.experiments import transport
from intarsia_lab.materials import picture_cells, tails

from ...toys import quiet


def trunk(classes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 28, "embed_dim": 16, "num_heads": 2, "depth": 12}
    return timm.create_model("vit_small_patch14_dinov2", num_classes=classes, **sizes)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Narrow blocks on random tokens, two and four experts; cells in a folder of their own."""

    def prepare(name: str, count: int, first: int) -> tuple[Any, ...]:
        order, labels = np.arange(40), torch.arange(40) % 2
        return torch.randn(40, 5, 16).bfloat16(), labels, order[:24], order[24:], 2

    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    monkeypatch.setattr(picture_cells, "_trunk", trunk)
    monkeypatch.setattr(picture_cells, "prepare", prepare)
    monkeypatch.setattr(transport, "EXPERTS", (2, 4))
    tails.pictures.cache_clear()
    yield
    tails.pictures.cache_clear()


@pytest.mark.thorough
def test_each_router_is_judged_at_its_own_rate(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "IMAGES", 8)
    loss = transport.against((0,), quiet)
    routers = (transport.PLAN, *transport.RIVALS)
    assert loss.value > 0 and len(loss.table) == 2 * len(routers)
    assert [rate.arm for rate in loss.rates] == list(routers)
    plans = [row for row in loss.table if row["router"] == transport.PLAN]
    assert all(float(row["largest load / mean"]) <= 1.1 for row in plans)


def test_experts_alone_learn_and_their_weights_do_not_depend_on_their_number() -> None:
    sizes = list[int]()
    for experts in (2, 4):
        model = transport.with_experts(
            tails.split_at(trunk(2), 10)[1], transport.top_1(experts, 0.0), 0
        )
        (mixture,) = mixtures_in(model).values()
        learned = {id(p) for p in model.parameters() if p.requires_grad}
        ids = {id(p) for p in (*mixture.parameters(), *model.head.parameters())}  # pyright: ignore
        assert learned == ids
        sizes.append(mixture.experts.up.numel())  # pyright: ignore
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_sinkhorn_then_top_c_fills_every_column(tokens: int) -> None:
    router = transport.Sinkhorn(4, capacity=1.0).build(8, generator=torch.Generator())
    p = torch.rand(tokens, 4).softmax(-1)
    plan = router.plan(p)
    assert ((plan > 0).sum(0) == math.ceil(tokens / 4)).all()
