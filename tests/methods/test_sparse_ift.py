"""Sparse-IFT: each layer multiplies as often as before; its zeros move, and stay as many."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

import intarsia
from intarsia import fit
from intarsia.core.errors import ConfigError, FoldError, TargetError
from intarsia.methods.sparse_ift import KINDS
from intarsia.mixtures.iso_flop import Doped, Parallel
from intarsia.schedules import FixedMask, Gradual, RigL, Set, masked_weights
from intarsia.sparse import SparseIft, flop_audit

from ..refusals import refused

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.05, "trackers": ()}


class Block(nn.Module):
    """Two convolutions with batch norms, beside what they get."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_one = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_two = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm_two(self.two(self.norm_one(self.one(x)).relu()))).relu()


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    stem = (nn.Conv2d(1, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(*stem, Block(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


def vit() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, in_chans=1, **sizes)


def pictures(count: int = 4) -> Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def rows() -> TensorDataset:
    return TensorDataset(pictures(32), torch.arange(32) % 3)


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    return model.eval()(pictures())


@torch.no_grad()
def moved(model: nn.Module) -> nn.Module:
    """Statistics and scales of norms as a training leaves them."""
    draw = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
    return model


@pytest.mark.parametrize("make", [convolutions, vit])
@pytest.mark.parametrize("kind", ["wide", "parallel", "doped"])
def test_at_density_1_it_is_the_dense_model_bit_for_bit(
    make: Callable[[], nn.Module], kind: str
) -> None:
    model, dense = intarsia.apply(make(), SparseIft(kind, 1.0)), make()
    assert torch.equal(outputs(model), outputs(dense))
    assert list(model.state_dict()) == list(dense.state_dict()) and not flop_audit(model)


@pytest.mark.parametrize("make", [convolutions, vit])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.5, 0.25, 0.1])
def test_each_layer_multiplies_as_often_as_the_dense_one(
    make: Callable[[], nn.Module], kind: str, density: float
) -> None:
    before = {n: m.weight.numel() for n, m in make().named_modules() if hasattr(m, "weight")}
    model = intarsia.apply(make(), SparseIft(kind, density), seed=3)
    rows = flop_audit(model)
    assert rows
    for row in rows:
        assert row.before == before[row.layer]
        assert abs(row.ratio - 1) <= 0.02 and row.after == row.before
    assert outputs(model).shape == (4, 3)
    model.train()(pictures()).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_widths_and_ranks_are_those_of_the_paper() -> None:
    s, k, inputs, outs = 0.75, 9, 6, 6
    wide = intarsia.apply(convolutions(), SparseIft("wide"))
    assert wide[3].one.weight.shape == (12, 12, 3, 3)  # sqrt q = 2
    assert (wide[0].in_channels, wide[-1].out_features) == (1, 3)
    factors = intarsia.apply(convolutions(), SparseIft("factorised"))[3].one
    rank = math.ceil(k * inputs * outs / ((1 - s) * (k * inputs + outs)))
    assert (factors.u.out_channels, factors.v.in_channels) == (rank, rank)
    doped = intarsia.apply(convolutions(), SparseIft("doped"))[3].one
    assert doped.u.out_channels == math.floor(s * k * inputs * outs / (k * inputs + outs))
    assert len(intarsia.apply(convolutions(), SparseIft("parallel"))[3].one.layers) == 4
    mlp = intarsia.apply(vit(), SparseIft("wide")).blocks[0].mlp
    assert (mlp.fc1.weight.shape, mlp.fc2.weight.shape) == ((512, 32), (32, 512))


@pytest.mark.parametrize("density", [0.5, 0.25, 0.1])
def test_a_flattened_map_is_as_wide_as_its_channels(density: float) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3, 4), nn.Flatten()),
        *(nn.Linear(5 * 9, 12), nn.ReLU(), nn.Linear(12, 3)),
    )
    model = intarsia.apply(net, SparseIft("wide", density))
    assert outputs(model).shape == (4, 3)
    assert all(row.after == row.before for row in flop_audit(model))


@pytest.mark.parametrize(
    ("kind", "ratio"), [("wide", 1), ("doped", 1), ("parallel", 1), ("factorised", 0.5**0.5)]
)
def test_first_outputs_vary_as_those_of_the_dense_layer(kind: str, ratio: float) -> None:
    """The ReLU between two factors takes half of the variance."""
    sizes = (4, 256, 256, 4)
    dense = nn.Sequential(*map(nn.Linear, sizes[:-1], sizes[1:])).requires_grad_(False)
    dense[1].weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    change = SparseIft(kind, 0.25, layers=None if kind == "wide" else ("1",))
    layer: Any = intarsia.apply(copy.deepcopy(dense), change)[1].requires_grad_(False)
    x = torch.randn(400, 512, generator=torch.Generator().manual_seed(1))
    want = dense[1](x[:, :256]).std() * ratio
    for branch in layer.layers if kind == "parallel" else [layer]:
        y = branch(x if kind == "wide" else x[:, :256])
        assert float(y.std()) == pytest.approx(float(want), rel=0.1)


def test_a_wide_net_keeps_depthwise_layers_and_starts_with_fresh_norms() -> None:
    deep = nn.Conv2d(6, 6, 3, groups=6)
    parts = (nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), deep, nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1))
    net = moved(nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))
    model = intarsia.apply(net, SparseIft("wide", 0.25))
    assert (model[2].groups, model[2].weight.shape) == (12, (12, 1, 3, 3))
    for norm in (model[1], model[3]):
        start = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
        assert norm.num_features == 12
        assert all(
            torch.equal(getattr(norm, n), torch.full((12,), float(v))) for n, v in start.items()
        )
    assert outputs(model).shape == (4, 3)


class Beside(nn.Module):
    """A layer that reads two layers' outputs side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 7), nn.Linear(7, 9)
        self.three, self.head = nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        return self.head(self.three(torch.cat([y, self.two(y)], -1)))


def test_widths_side_by_side_are_whole_multiples_or_refused() -> None:
    with refused(TargetError, what="layer 'three'"):
        SparseIft("wide", 0.1).plan(Beside())
    model = intarsia.apply(Beside(), SparseIft("wide", 0.111111))
    assert model(torch.ones(2, 4)).shape == (2, 2)


def test_branches_of_a_convolution_vary_together_as_it_did() -> None:
    """Their sum has the dense norm's variance and mean, as norms of independent branches add."""
    dense = moved(convolutions())
    model = intarsia.apply(copy.deepcopy(dense), SparseIft("parallel", 0.25))
    norms: Any = model.get_submodule("3.one").norms  # pyright: ignore
    old: Any = dense.get_submodule("3.norm_one")
    assert len(norms) == 4
    assert_close(sum(n.weight.square() for n in norms), old.weight.square())
    assert_close(sum(n.bias for n in norms), old.bias)


def test_layers_are_the_sums_that_they_say() -> None:
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    layers, norms = [nn.Linear(5, 4) for _ in range(3)], [nn.LayerNorm(4) for _ in range(3)]
    want = sum(n(layer(x)) for n, layer in zip(norms, layers, strict=True))
    assert_close(Parallel(layers, norms)(x), want)
    sparse, u, v = nn.Linear(5, 4), nn.Linear(5, 2, bias=False), nn.Linear(2, 4, bias=False)
    want = x @ (sparse.weight + v.weight @ u.weight).T + sparse.bias
    assert_close(Doped(sparse, u, v)(x), want)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["parallel", "doped"])
def test_convolutions_fold_to_the_stock_net(kind: str, bias: bool) -> None:
    net = convolutions()
    if bias:
        net[3].one.bias = nn.Parameter(torch.rand(6))
    names = list(net.state_dict())
    model = moved(intarsia.apply(net, SparseIft(kind)))
    stock = intarsia.fold(model)
    assert list(stock.state_dict()) == names and not flop_audit(stock)
    assert_close(outputs(stock), outputs(model), atol=1e-5, rtol=1e-4)
    assert flop_audit(model)


def test_timms_norms_keep_their_activation() -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_efficientnet", num_classes=3, in_chans=1)
    names = list(net.state_dict())
    model = moved(intarsia.apply(net, SparseIft("parallel", 0.5)))
    stock = intarsia.fold(model)
    assert list(stock.state_dict()) == names
    assert_close(outputs(stock), outputs(model), atol=1e-4, rtol=1e-3)


def test_linear_branches_do_not_fold() -> None:
    with refused(FoldError, what="parallel branches", got="LayerNorm"):
        intarsia.fold(intarsia.apply(vit(), SparseIft("parallel")))
    net = convolutions()
    net[3].norm_one = nn.BatchNorm2d(6, track_running_stats=False)
    with refused(FoldError, what="parallel branches", got="BatchNorm2d"):
        intarsia.fold(intarsia.apply(net, SparseIft("parallel")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", [None, Set(every=2), RigL(density=None, every=2)])
def test_a_training_moves_the_zeros_and_keeps_their_number(kind: str, schedule: Any) -> None:
    model = intarsia.apply(convolutions(), SparseIft(kind))
    before = {n: p.detach() != 0 for n, p in model.named_parameters() if p.dim() > 1}
    counts: list[list[int]] = []

    def watched(model: nn.Module, lr: float, weight_decay: float) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr)
        optimizer.register_step_post_hook(
            lambda *_: counts.append([row.after for row in flop_audit(model)])
        )
        return optimizer

    fit(model, rows(), schedule=schedule, optimizer=watched, **QUICK)
    for row, *after in zip(flop_audit(model), *counts, strict=True):
        assert max(after) <= row.before  # a grown weight is 0 until its first step
        assert after[0] == row.before
    weights = masked_weights(model)
    equal = [
        torch.equal(w.detach() != 0, before[n]) for n, w in weights.items() if not before[n].all()
    ]
    assert all(equal) == (schedule is None)  # whose first change would come at step 100


def test_fixed_masks_are_those_of_the_start() -> None:
    model = intarsia.apply(convolutions(), SparseIft("wide"))
    zeros = {n: p.detach() == 0 for n, p in model.named_parameters() if p.dim() > 1}
    fit(model, rows(), schedule=FixedMask(), **QUICK)
    assert all(torch.equal(model.get_parameter(n) == 0, z) for n, z in zeros.items())


@pytest.mark.parametrize("kind", KINDS)
def test_it_comes_back_from_its_folder(kind: str, tmp_path: Path) -> None:
    model = moved(intarsia.apply(convolutions(), SparseIft(kind), seed=5))
    intarsia.save(model, tmp_path / "saved")
    again = intarsia.load(convolutions(), tmp_path / "saved")
    assert torch.equal(outputs(again), outputs(model))
    assert flop_audit(again) == flop_audit(model)


def test_transformers_opens_a_wide_language_model(tmp_path: Path) -> None:
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
    model = intarsia.apply(model, SparseIft("wide", 0.25))
    assert len(flop_audit(model)) == 6
    model.save_pretrained(tmp_path)
    again, ids = LlamaForCausalLM.from_pretrained(tmp_path), torch.arange(6)[None]
    assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)


def test_a_row_of_zeros_is_told() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.warns(UserWarning, match="a row of zeros is a dead unit"):
        intarsia.apply(net, SparseIft("wide", 0.02))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"density": 0}, "density"),
        ({"density": 1.5}, "density"),
        ({"kind": "tall"}, "kind"),
        ({"kind": "parallel", "density": 0.3}, "density of parallel branches"),
        ({"kind": "wide", "layers": ("one",)}, "layers of 'wide'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        SparseIft(**settings)


def test_models_that_cannot_be_changed_stay_as_they_were() -> None:
    adapted = intarsia.adapt(vit(), "lora")
    with refused(TargetError, what="model", got="one with adapters"):
        intarsia.apply(adapted, SparseIft("doped"))
    norm = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), norm=nn.LayerNorm(4), b=nn.Linear(4, 2)))
    for net, change, says in (
        (norm, SparseIft("wide"), "LayerNorm.*batch norms"),
        (nn.Sequential(nn.Linear(4, 2)), SparseIft("wide"), "at least two"),
        (convolutions(), SparseIft("doped", layers=("nowhere",)), "nowhere"),
        (convolutions(), SparseIft("parallel", layers=("3.one", "0")), "'0'"),
        (nn.Conv2d(3, 4, 3, groups=1), SparseIft("doped"), "layers"),
    ):
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(TargetError, match=says):
            intarsia.apply(net, change)
        assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_a_layer_of_one_input_is_left_or_refused() -> None:
    net = nn.Sequential(Block(4), nn.Flatten(), nn.Linear(1024, 3))
    net[0].two = nn.Conv2d(4, 1, 1, bias=False)
    net[0].norm_two = nn.BatchNorm2d(1)
    net[0].add_module("three", nn.Conv2d(1, 4, 1, bias=False))
    assert "0.three" not in dict(SparseIft("doped").plan(net).decided["layers"])
    with refused(TargetError, what="layer '0.three'"):
        SparseIft("doped", layers=("0.three",)).plan(net)


def test_the_least_rank_of_a_doped_layer_is_one() -> None:
    net = nn.Sequential(Block(4), nn.Flatten(), nn.Linear(1024, 3))
    net[0].two = nn.Conv2d(4, 4, 1, bias=False)
    doped: Any = intarsia.apply(net, SparseIft("doped", 0.5, layers=("0.two",)))
    assert doped[0].two.u.out_channels == 1


def test_schedules_that_would_change_the_count_are_refused() -> None:
    model = intarsia.apply(convolutions(), SparseIft("wide", 0.25))
    with refused(ConfigError, what="schedule's density", got=0.5):
        fit(model, rows(), schedule=RigL(density=0.5), **QUICK)
    for density in (0.1, 0.25):  # of layers that are not all as dense
        with refused(
            ConfigError,
            what="schedule of an iso-FLOP model",
            want="as many weights in each layer as it has",
        ):
            fit(model, rows(), schedule=Gradual(density), **QUICK)
    with refused(ConfigError, what="schedule of an iso-FLOP model", got="function"):
        fit(model, rows(), schedule=lambda *_: None, **QUICK)
    with refused(ConfigError, what="fixed mask"):
        fit(convolutions(), rows(), schedule=Set(density=None), **QUICK)


def test_masks_repeat_no_draws_of_another_change_with_the_same_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seeds: set[int] = set()
    monkeypatch.setattr(
        "intarsia.methods.sparse_ift.sparsify_layer", lambda *a: seeds.add(a[-1].initial_seed())
    )
    for seed in (0, 1):
        intarsia.apply(convolutions(), SparseIft("wide"), seed=seed)
    assert len(seeds) == 2 and not seeds & {0, 1}
