"""N:M weights forward and backward, dense gradients, exact zeros at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import TensorDataset

from intarsia import fit
from intarsia.core import NofM, Partition
from intarsia.core.errors import ConfigError, ShapeError
from intarsia.mixtures import StackedExperts
from intarsia.schedules import Bdwp
from intarsia.schedules.bdwp import n_of_m_mask

from ..refusals import refused

OPTIONS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.05, "trackers": ()}


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Linear(8, 3))


def rows(count: int = 40, seed: int = 1) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(count, 6, generator=draw), torch.randint(3, (count,), generator=draw)
    )


def adamw(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)


def naive_mask(line: list[float], n: int, m: int) -> list[bool]:
    mask = [False] * len(line)
    for start in range(0, len(line), m):
        group = range(start, min(start + m, len(line)))
        for i in sorted(group, key=lambda i: (-abs(line[i]), i))[:n]:
            mask[i] = True
    return mask


def naive(weight: Tensor, n: int, m: int, axis: int) -> Tensor:
    lines = weight.movedim(axis, -1)
    masks = [naive_mask(line, n, m) for line in lines.reshape(-1, lines.shape[-1]).tolist()]
    return weight * torch.tensor(masks).view(lines.shape).movedim(-1, axis)


sizes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))


@given(sizes, st.integers(0, 99))
def test_y_has_w_f_and_dx_has_w_b_and_dw_is_dense(size: tuple[int, ...], seed: int) -> None:
    rows_in, rows_out, n, extra = size
    m = n + extra
    draw = torch.Generator().manual_seed(seed)
    layer = nn.Linear(rows_in, rows_out)
    values = torch.randint(-3, 4, (rows_out, rows_in), generator=draw)  # with equal ones
    layer.weight.data = values.float()
    x = torch.randn(3, rows_in, generator=draw, requires_grad=True)
    dy = torch.randn(3, rows_out, generator=draw)
    w_f, w_b = (naive(layer.weight.detach(), n, m, axis) for axis in (1, 0))
    weights = {"both": (w_f, w_b), "forward": (w_f, w_f), "backward": (layer.weight.detach(), w_b)}
    for directions, (ahead, back) in weights.items():
        x.grad = layer.weight.grad = layer.bias.grad = None
        with Bdwp(f"{n}:{m}", directions).training(layer):
            y = layer(x)
            y.backward(dy)
        assert x.grad is not None and layer.weight.grad is not None
        assert layer.bias.grad is not None
        torch.testing.assert_close(y, x @ ahead.T + layer.bias)
        torch.testing.assert_close(x.grad, dy @ back)
        torch.testing.assert_close(layer.weight.grad, dy.T @ x)
        torch.testing.assert_close(layer.bias.grad, dy.sum(0))


@pytest.mark.parametrize("same_padding", [False, True])
def test_convolutions_group_by_channel_at_each_place_of_the_kernel(same_padding: bool) -> None:
    torch.manual_seed(0)
    layer: Any = (Conv2dSame if same_padding else nn.Conv2d)(5, 6, 3, stride=2, bias=False)
    w_f, w_b = (naive(layer.weight.detach(), 1, 3, axis) for axis in (1, 0))
    x = torch.randn(2, 5, 8, 8, requires_grad=True)
    padded = nn.functional.pad(x, (0, 1, 0, 1)) if same_padding else x
    want_y = nn.functional.conv2d(padded, w_f, stride=2)
    dy = torch.randn_like(want_y)
    (dx,) = torch.autograd.grad(nn.functional.conv2d(padded, w_b, stride=2), x, dy)
    free = torch.zeros_like(layer.weight, requires_grad=True)
    (dw,) = torch.autograd.grad(nn.functional.conv2d(padded.detach(), free, stride=2), free, dy)
    with Bdwp("1:3").training(layer):
        y = layer(x)
        y.backward(dy)
    for got, want in ((y, want_y), (x.grad, dx), (layer.weight.grad, dw)):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_transposed_convolution_groups_its_own_inputs_and_outputs() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(8, 6, 2, stride=2)  # its weight is (in, out, 2, 2)
    w_f, w_b = (naive(layer.weight.detach(), 1, 2, axis) for axis in (0, 1))
    x = torch.randn(2, 8, 3, 3, requires_grad=True)
    dy = torch.randn(2, 6, 7, 7)
    run = nn.functional.conv_transpose2d
    size: Any = {"stride": 2, "output_padding": 1}
    (dx,) = torch.autograd.grad(run(x, w_b, **size), x, dy)
    with Bdwp("1:2").training(layer) as end:
        y = layer(input=x, output_size=(7, 7))
        y.backward(dy)
        end()
    torch.testing.assert_close(y, run(x, w_f, layer.bias, **size))
    torch.testing.assert_close(x.grad, dx, rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.weight.detach(), w_f)
    with refused(ShapeError, what="weight of ''", got=8), Bdwp("1:3", pad=False).training(layer):
        pass


@given(sizes, st.integers(0, 9))
def test_n_of_each_group_is_kept(size: tuple[int, ...], seed: int) -> None:
    out, inside, n, extra = size
    m = n + extra
    weight = torch.randn(out, inside, 2, generator=torch.Generator().manual_seed(seed))
    for axis in (0, 1):
        mask = n_of_m_mask(weight, NofM(n, m, axis))
        for start in range(0, weight.shape[axis], m):
            group = mask.narrow(axis, start, min(m, weight.shape[axis] - start))
            assert (group.sum(axis) == min(n, group.shape[axis])).all()


def test_all_of_each_group_is_the_dense_training_to_the_bit() -> None:
    nets = [net(), net()]
    fit(nets[0], rows(), optimizer=adamw, **OPTIONS)
    fit(nets[1], rows(), optimizer=adamw, schedule=Bdwp("4:4"), **OPTIONS)
    for a, b in zip(*(m.parameters() for m in nets), strict=True):
        assert torch.equal(a, b)


def test_a_trained_model_is_stock_with_n_of_m_weights() -> None:
    model: Any = net()
    run = fit(model, rows(), rows(seed=2), schedule=Bdwp("1:4", layers=("0", "2")), **OPTIONS)
    masks = {n: p != 0 for n, p in model.named_parameters() if n in ("2.weight",)}
    Partition.from_masks(masks, pattern=NofM(1, 4))  # or raises
    assert (model[0].weight != 0).sum(1).tolist() == [2] * 16  # 4 + 2 inputs
    assert (model[3].weight != 0).all()
    assert run.val is not None
    logits = model(rows(seed=2).tensors[0])
    right = (logits.argmax(1) == rows(seed=2).tensors[1]).float().mean()
    assert run.val.scores()["accuracy"] == pytest.approx(float(right))
    assert not any("forward" in vars(m) for m in model.modules())


def test_a_killed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stops(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
        optimizer, steps = adamw(model, lr, weight_decay), [0]

        def count(*_: Any) -> None:
            steps[0] += 1
            if steps[0] > 7:
                raise Stop

        optimizer.register_step_pre_hook(count)
        return optimizer

    stops.__qualname__ = "adamw"
    options: Any = OPTIONS | {"schedule": Bdwp("1:2"), "checkpoint_steps": 1, "select": "val"}
    val = rows(seed=5)
    full, half, again = net(), net(), net()
    fit(full, rows(), val, optimizer=adamw, **options)
    with pytest.raises(Stop):
        fit(half, rows(), val, optimizer=stops, out=tmp_path / "run", **options)
    assert all(bool((p != 0).all()) for n, p in half.named_parameters() if "weight" in n)
    fit(again, rows(), val, optimizer=adamw, out=tmp_path / "run", resume=True, **options)
    for a, b in zip(full.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_trains_vits_inside_their_blocks() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=2
    )
    data = TensorDataset(torch.randn(8, 3, 32, 32), torch.arange(8) % 2)
    once: Any = OPTIONS | {"epochs": 1}
    fit(model, data, schedule=Bdwp("2:4"), precision="bf16", **once)
    density = {n: float((p != 0).float().mean()) for n, p in model.named_parameters()}
    assert density["blocks.0.attn.qkv.weight"] == density["blocks.0.mlp.fc2.weight"] == 0.5
    assert density["patch_embed.proj.weight"] == density["head.weight"] == 1.0


def test_a_layer_that_is_not_called_stays_dense_and_is_told() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.MultiheadAttention(6, 2), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x, x, x)[0])

    model = Attention()
    with pytest.warns(UserWarning, match=r"stay dense: \['inner\.out_proj\.weight'\]"):
        fit(model, rows(), schedule=Bdwp("1:2"), **OPTIONS)
    assert (model.inner.out_proj.weight != 0).all()
    assert float((model.head.weight != 0).float().mean()) == 0.5


def test_what_cannot_be_is_refused() -> None:
    with refused(ConfigError, what="pattern", got="'5:4'"):
        Bdwp("5:4")
    with refused(ConfigError, what="pattern", got="'2'"):
        Bdwp("2")
    with refused(ConfigError, what="directions", got="'up'"):
        Bdwp(directions="up")
    with refused(ShapeError, what="weight of '0'", got=6):
        fit(net(), rows(), schedule=Bdwp("1:4", pad=False), **OPTIONS)
    experts = StackedExperts(2, 6, 8, generator=torch.Generator())
    with refused(ConfigError, what="layers of bdwp", got="'up'"), Bdwp().training(experts):
        pass
    with refused(ConfigError, what="layers to mask"):
        fit(net(), rows(), schedule=Bdwp(layers=("9",)), **OPTIONS)


def test_products_by_hand() -> None:
    """y = x W_f^T, dx = dy W_b, dW = dy^T x: W_f keeps n of m along the inputs, W_b along the
    outputs, both of the dense W.

    W = ((3, 4), (1, 2)) with 1:2: W_f = ((0, 4), (0, 2)), W_b = ((3, 4), (0, 0)). With x = (1, 1)
    and dy = (1, 1): y = (4, 2), dx = (3, 4), dW all ones.
    """
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    x = torch.ones(1, 2, requires_grad=True)
    with Bdwp("1:2").training(layer):
        y = layer(x)
        y.sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    assert (y.tolist(), x.grad.tolist()) == ([[4, 2]], [[3, 4]])
    assert layer.weight.grad.tolist() == [[1, 1], [1, 1]]
