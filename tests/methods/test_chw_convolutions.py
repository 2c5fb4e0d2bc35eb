"""Nets of k x k convolutions: residual, in groups, behind a maximum; saved before and now."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import intarsia
from intarsia import compress
from intarsia.core.change import steps_of
from intarsia.kernels import native
from intarsia.sparse import Chw, chw_report
from intarsia.sparse.swap.chw import lowered
from intarsia.sparse.swap.chw_cluster import ChwCluster

from ..kernels.counts import on_threads
from .test_chw_codes import relative
from .test_fast_convnets import agree, picture, pruned


class Residual(nn.Module):
    """Stem, maximum, a block of 3 x 3, one in groups whose addition has a convolution, a head."""

    def __init__(self, unknown: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.most = nn.MaxPool2d(3, 2, 1)
        self.a = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.grouped = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, groups=2), nn.BatchNorm2d(12))
        self.short = nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.between = nn.ELU() if unknown else nn.Identity()
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.most(self.stem(x))
        x = torch.relu(self.b(self.a(x)) + x)
        x = torch.relu(self.short(x) + self.between(self.grouped(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_net_keeps_its_outputs_at_any_size(rows: int, unknown: bool) -> None:
    net = pruned(Residual(unknown))
    fast = compress(net, Chw(rows=rows), picture(), force=True)
    agree(net, fast, picture(), picture(23), picture(32, count=3))
    report = chw_report(fast)
    # what torch adds and takes the mean of, its head reads
    assert report.left == (("between", "head") if unknown else ())
    assert report.clusters == 1


@torch.no_grad()
def test_codes_are_near_the_numbers_in_every_build() -> None:
    net, pictures = pruned(Residual(), 1.0), picture(48, count=8)
    fast = compress(net, Chw(values="int8", force=True), pictures)
    want = net(pictures)
    assert 1e-4 < relative(fast(pictures), want) < 0.05
    (cluster,) = [m for m in fast.modules() if isinstance(m, ChwCluster)]
    steps = {name: step for name, step in zip(cluster.names, cluster.steps, strict=True)}
    convolutions = [step for step in steps.values() if step.kind == "conv"]
    assert len(convolutions) == 5 and all(step.coded for step in convolutions)
    assert sum(step.other is not None for step in convolutions) == 2
    # a maximum of codes is a code
    (largest,) = [step for step in steps.values() if step.kind == "max"]
    assert largest.result_coding is not None
    with native.using("off"):
        by_torch = fast(pictures)
    for build in ("native", "avx2", "portable"):
        with native.using(build):
            assert relative(fast(pictures), by_torch) < 0.01
            single = torch.cat([fast(x) for x in pictures.split(1)])
            assert torch.equal(single, fast(pictures))
            several = [fast(pictures) for _ in on_threads(1, 3)]
            assert torch.equal(*several)


def test_dilated_ones_stay_in_torch() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, dilation=2), nn.ReLU())
    net = nn.Sequential(*net, nn.Conv2d(4, 5, 3, padding=1)).eval()
    for values in ("fp32", "int8"):
        fast = compress(net, Chw(values=values, force=True), picture())
        assert chw_report(fast).left == ("2", "3")


def test_a_part_reads_what_the_one_before_it_made() -> None:
    """torch does not compute a layer a second time for a later part that adds its result."""
    net = pruned(timm.create_model("regnety_002", num_classes=4, zero_init_last=False))
    fast = compress(net, Chw(rows=4, force=True), picture())
    agree(net, fast, picture())
    assert chw_report(fast).left == () and chw_report(fast).clusters == 1

    class Around(Residual):
        def forward(self, x: Tensor) -> Tensor:
            x = self.most(self.stem(x))
            return self.b(nn.functional.elu(self.a(x))) + x

    net = pruned(Around())
    fast = compress(net, Chw(rows=4, force=True), picture())
    agree(net, fast, picture())
    assert chw_report(fast).clusters == 2
    assert not [name for name in chw_report(fast).left if "stem" in name or "a" in name.split(".")]


@torch.no_grad()
@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_a_folder_of_before_opens(
    values: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nets that were saved when k x k convolutions were numbers keep their parts."""
    net, pictures = pruned(Residual()), picture(32, count=4 if values == "int8" else 1)
    with monkeypatch.context() as before:
        of_before = partial(lowered, kxk=False)
        before.setattr(
            "intarsia.methods.fast_convnets.lowered", lambda net, x, *_: of_before(net, x)
        )
        fast = compress(net, Chw(values=values, rows=4, force=True), pictures)
        decided = steps_of(fast)[-1].plan.decided
        assert isinstance(decided, dict) and decided.pop("whole") is True
        intarsia.save(fast, tmp_path / "fast")
    assert chw_report(fast).clusters > 1
    again = intarsia.load(Residual().eval(), tmp_path / "fast")
    assert torch.equal(again(pictures), fast(pictures))


@torch.no_grad()
def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    net, pictures = pruned(Residual()), picture(32, count=4)
    fast = compress(net, Chw(values="int8", force=True), pictures)
    intarsia.save(fast, tmp_path / "fast")
    again = intarsia.load(Residual().eval(), tmp_path / "fast")
    assert torch.equal(again(pictures), fast(pictures))
