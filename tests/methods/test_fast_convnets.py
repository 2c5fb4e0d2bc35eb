"""Nets in CHW have the outputs of the masked dense net, are saved, and refused where slower."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia import compress
from intarsia.core.errors import ConfigError, FoldError, IntarsiaError, ShapeError, TargetError
from intarsia.kernels import native
from intarsia.sparse import Chw, chw_report
from intarsia.sparse.swap.chw_net import ChwNet


class Block(nn.Module):
    """Stem, a block with squeeze and excitation, a layer that no kernel knows, a head."""

    def __init__(self, act: Callable[[], nn.Module], unknown: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), act())
        self.expand = nn.Sequential(nn.Conv2d(8, 18, 1, bias=False), nn.BatchNorm2d(18), act())
        self.depth = nn.Conv2d(18, 18, 5, 1, 2, groups=18)
        self.reduce, self.excite = nn.Conv2d(18, 5, 1), nn.Conv2d(5, 18, 1)
        self.project = nn.Sequential(nn.Conv2d(18, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.between = nn.AvgPool2d(2) if unknown else nn.Identity()
        self.act, self.last = act(), nn.Conv2d(8, 9, 3, 2, 1)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depth(self.expand(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        x = self.act(self.project(y * gate) + x)
        x = self.last(self.between(x))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def pruned(net: nn.Module, share: float = 0.3) -> nn.Module:
    """Make a net in evaluation, with random statistics and a share of its 1x1 weights left."""
    draw = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.running_var, 0.5),
                (module.weight, 0.5),
                (module.bias, -0.5),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, low + 1, generator=draw)
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            keep = torch.rand(module.weight.shape, generator=draw) < share
            module.weight.data.mul_(keep)
    return net.eval()


def picture(side: int = 32, count: int = 1) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(side))


@torch.no_grad()
def agree(net: nn.Module, fast: nn.Module, *pictures: Tensor) -> None:
    for x in pictures:
        assert_close(fast(x), net(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("act", [nn.ReLU6, nn.Hardswish, nn.SiLU])
@pytest.mark.parametrize("unknown", [False, True])
def test_a_net_keeps_its_outputs_at_any_size(act: Any, unknown: bool) -> None:
    net = pruned(Block(act, unknown))
    for rows in (1, 4):
        fast = compress(net, Chw(rows=rows), picture(), force=True)
        agree(net, fast, picture(), picture(23), picture(32, count=3), picture(32, count=3)[:0])
    report = chw_report(fast)
    assert report.clusters == 1 + unknown
    assert report.left == (("between",) if unknown else ())
    assert report.layout_changes == 2 * report.clusters
    densities = {layer.path: layer.density for layer in report.layers}
    weight = net.get_submodule("expand.0").weight
    assert isinstance(weight, Tensor)
    assert densities["expand.0"] == pytest.approx(float((weight != 0).float().mean()), abs=1e-5)
    assert densities["stem.0"] == 1


def test_a_net_of_timm_is_one_call_and_its_forms_are_measured() -> None:
    net = pruned(timm.create_model("mobilenetv3_small_050", num_classes=5))
    fast = compress(net, Chw(), picture(), force=True)
    agree(net, fast, picture(), picture(40))
    report = chw_report(fast)
    assert (report.clusters, report.left, report.layout_changes) == (1, (), 2)
    if native.load() is not None:
        assert all(str(layer.rows) in layer.measured for layer in report.layers)
        with native.using("off"):  # in torch, where there is no compiler
            agree(net, fast, picture())


def test_it_is_saved_and_loaded_into_the_dense_net(tmp_path: Path) -> None:
    net = pruned(Block(nn.SiLU))
    fast = compress(net, Chw(rows=2, force=True), picture())
    intarsia.save(fast, tmp_path / "fast")
    again = intarsia.load(Block(nn.SiLU), tmp_path / "fast")
    assert isinstance(again, ChwNet)
    agree(fast, again, picture(), picture(48))
    assert chw_report(again) == chw_report(fast)


@pytest.mark.parametrize("zeros", [True, False])
def test_layers_without_a_weight_and_with_all(zeros: bool) -> None:
    net = pruned(Block(nn.ReLU), 0.0 if zeros else 2.0)
    agree(net, compress(net, Chw(rows=4), picture(), force=True), picture())


class Standard(nn.Conv2d):
    """A weight without its mean, as timm's `StdConv2d` has it."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight - self.weight.mean(), self.bias)


class Twice(nn.Module):
    """a(x) + 2 b(x), and the other way round."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), last

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(x).add(y, alpha=2) if self.last else torch.add(y, self.b(x), alpha=2)


class Dropping(nn.Sequential):
    """Drops by a function while it trains, as nets of timm do before their head."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(input), 0.5, self.training)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(Standard(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 4, 7, stride=7), nn.ReLU(), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
        Twice(last=False),
        Twice(last=True),
    ],
)
def test_what_kernels_do_not_do_stays_in_torch(net: nn.Module) -> None:
    net.eval()
    agree(net, compress(net, Chw(rows=1), picture(28), force=True), picture(28))


def test_a_net_in_training_is_compressed_as_it_evaluates() -> None:
    net = Dropping(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 64, 1)).train()
    fast = compress(net, Chw(rows=1), picture(), force=True)
    assert net.training
    agree(net.eval(), fast.eval(), picture())


@pytest.mark.parametrize("rows", [1, 4])
def test_pictures_of_other_channels_are_refused(rows: int) -> None:
    fast = compress(Block(nn.ReLU).eval(), Chw(rows=rows), picture(), force=True)
    for count in (1, 4):
        with pytest.raises(ShapeError, match="step 0, 'conv'"):
            fast(torch.randn(1, count, 32, 32))


def refused(change: Chw, example: Any, net: nn.Module | None = None) -> IntarsiaError:
    with pytest.raises(IntarsiaError) as caught:
        compress(Block(nn.ReLU).eval() if net is None else net, change, example)
    return caught.value


def test_what_cannot_be_is_refused() -> None:
    assert isinstance(refused(Chw(), picture(count=2)), ConfigError)  # several pictures
    assert "example" in str(refused(Chw(), ()))
    assert "float32" in str(refused(Chw(rows=1, force=True), picture(), Block(nn.ReLU).double()))
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    assert isinstance(refused(Chw(), torch.randn(1, 3, 2, 2), mlp), TargetError)
    with pytest.raises(ConfigError, match="rows"):
        Chw(rows=3)

    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    assert "path depends on its data" in str(refused(Chw(), picture(), Branches()))
    fast = compress(Block(nn.ReLU).eval(), Chw(rows=1, force=True), picture())
    assert "in CHW already" in str(refused(Chw(rows=1), picture(), fast))
    with pytest.raises(FoldError):
        Chw().fold(fast)
    with pytest.raises(ConfigError, match="Train the net"):
        fast(picture().requires_grad_())
    for module in fast.modules():
        if hasattr(module, "batches"):
            module.batches = False
    with pytest.raises(ShapeError, match="one: of several"):
        fast(picture(count=2))
    with pytest.raises(TargetError, match=r"intarsia\.compress"):
        chw_report(nn.Linear(2, 2))


def test_a_net_that_is_faster_dense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.load() is None:
        pytest.skip(native.why())
    times = iter([2.0, 1.0])
    monkeypatch.setattr("intarsia.methods.fast_convnets.net_seconds", lambda *_: next(times))
    assert "less than the 1000.00 ms" in str(refused(Chw(rows=1), picture()))
    times = iter([1.0, 2.0])
    fast = compress(Block(nn.ReLU).eval(), Chw(rows=1), picture())
    assert chw_report(fast).milliseconds == {"before": 2000, "after": 1000}


def test_a_product_by_hand() -> None:
    """An output channel is the sum over the input channels that are kept, pixel by pixel.

    w = (2, 0, -1) keeps channels 0 and 2. Two pixels with channels (1, 5, 3) and (4, 9, 1):
    2 1 - 3 = -1 and 2 4 - 1 = 7.
    """
    form, weight = intarsia.formats.RowBlocks(rows=1), torch.tensor([[2.0, 0.0, -1.0]])
    stored = form.encode(weight)
    assert stored["channels"].tolist() == [0, 2] and stored["values"].flatten().tolist() == [2, -1]
    y = form.matmul(torch.tensor([[1.0, 5.0, 3.0], [4.0, 9.0, 1.0]]), stored, weight.shape)
    assert y.tolist() == [[-1], [7]]
