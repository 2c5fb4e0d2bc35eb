"""Claims on trained sparse CNNs: what their arms prune, how equal time is found, what is judged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from intarsia.fitting import fit
from intarsia.kernels import native
from intarsia_lab.claims import sparse_cnns, wide_sparse
from intarsia_lab.materials import convnet_times, lite0, thin_resnets


def test_whole_filters_go_little_by_little_and_stay_away() -> None:
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    rows = TensorDataset(torch.randn(64, 3, 6, 6, generator=draw), torch.arange(64) % 2)
    settings: Any = {"epochs": 4, "batch_size": 8, "lr": 1e-2, "trackers": ()}
    fit(net, rows, schedule=sparse_cnns.Filters(0.5, every=2, layers=("0",)), **settings)
    weight: Any = net.get_submodule("0").weight
    alive = weight.flatten(1).any(1)
    assert int(alive.sum()) == 4 and bool(weight[alive].all())


def test_every_arm_has_its_schedule() -> None:
    net = lite0.backbone(lite0.LITE0, classes=2, pretrained=False)
    for arm, density in sparse_cnns.ARMS:
        schedule = sparse_cnns.schedule_of(arm, density, net)
        if schedule is None:
            assert arm in (sparse_cnns.DENSE, sparse_cnns.AGAIN)
            continue
        blocks = arm in (sparse_cnns.PLAIN, sparse_cnns.MOVED)
        assert (schedule.density, schedule.rows) == (density, 4 if blocks else 1)
        assert schedule.layers is not None and "conv_stem" not in schedule.layers
        assert not any("conv_dw" in path for path in schedule.layers)
    pointwise = sparse_cnns.schedule_of(sparse_cnns.POINTWISE, 0.2, net)
    assert pointwise is not None and pointwise.layers == ("1x1",)


def test_the_order_is_judged_by_its_smallest_step(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"unstructured": 9.0, "blocks, rearranged": 8.0, "blocks": 8.5, "whole filters": 5.0}

    def cell(arm: tuple[str, float], name: str, seed: int, lr: float, part: str = "test") -> float:
        return points.get(arm[0], 8.25) + seed - abs(lr - 0.01)  # 0.01 is best for all

    monkeypatch.setattr(sparse_cnns, "cell", cell)
    result = sparse_cnns.of_order((0, 1), lambda _: None)
    assert result.got == -0.5 and "whole filters" in str(result.table[5])
    assert {rate.rate for rate in result.rates} == {0.01} and len(result.rates) == 9
    assert sparse_cnns.of_blocks((0, 1), lambda _: None).values == (-0.25, -0.25)


@pytest.mark.parametrize("spent", [1.5, 9.0])
def test_the_dense_net_of_equal_time_is_no_faster(
    spent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {str(w): 1 + w for w in wide_sparse.WIDTHS} | {"sparse": spent}
    monkeypatch.setattr(wide_sparse, "stored", lambda *_, **__: times)
    wide_sparse.chosen.cache_clear()
    try:
        assert wide_sparse.chosen() == (0.5 if spent < 2 else 1.6, times)
    finally:
        wide_sparse.chosen.cache_clear()


def test_crops_are_as_lite0_reads_them_and_their_sides_differ() -> None:
    tall = torch.arange(256).repeat(3, 300, 1)[:, :, :250].to(torch.uint8)  # brighter to the right
    crops = lite0.crops([tall], 6, torch.Generator().manual_seed(0))
    assert crops.shape == (6, 3, 224, 224) and -1 <= float(crops.min()) <= float(crops.max()) <= 1
    spans = crops[:, 0, 0, -1] - crops[:, 0, 0, 0]
    assert len({round(float(s), 3) for s in spans}) > 3


@pytest.mark.skipif(native.load() is None, reason="no C compiler here, or off")
def test_times_and_training_of_the_smallest_nets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))
    for name, value in (("WIDTHS", (0.4,)), ("OFTEN", 1), ("NET_EPOCHS", 1)):
        monkeypatch.setattr(wide_sparse, name, value)
    monkeypatch.setattr(wide_sparse, "dense_runtimes", lambda *_: {"peer fp32": lambda _: None})
    monkeypatch.setattr(convnet_times, "REPEATS", 1)
    assert set(wide_sparse.milliseconds()) == {"sparse", "0.4"}
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(256, 1, 28, 28, generator=draw), torch.arange(256) % 10
    monkeypatch.setattr(thin_resnets, "rows", lambda part: TensorDataset(*images))
    counts: list[float] = []

    def scored(net: nn.Module) -> float:
        weights = wide_sparse.masked_weights(net, wide_sparse.POINTWISE).values()
        counts.append(
            sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
        )
        return 50.0

    monkeypatch.setattr(thin_resnets, "accuracy", scored)
    assert wide_sparse.trained("sparse", "", 0) == 50
    assert counts[0] == pytest.approx(wide_sparse.SPARSE, abs=0.01)
