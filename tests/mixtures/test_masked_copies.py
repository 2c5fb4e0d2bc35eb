"""One stored tensor under SplitAdamW equals N masked copies, as published, step for step."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from intarsia.adapters import Bottleneck, BottleneckCell
from intarsia.core import Site
from intarsia.gating import passes
from intarsia.methods import Mosa, MosaCell
from intarsia.mixtures import SplitLinear
from intarsia.mixtures.split_optimizer import split_adamw
from intarsia.routers import RandomRouter

WIDTH, BLOCKS, CLASSES, EXPERTS = 6, 2, 3, 4


class Tower(nn.Module):
    """x -> x + frozen(x) + cell(x), twice, then a head."""

    def __init__(self, cells: list[nn.Module]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.frozen = torch.randn(BLOCKS, WIDTH, WIDTH, generator=generator).double() / 4
        self.cells = nn.ModuleList(cells)
        self.head = nn.Linear(WIDTH, CLASSES, dtype=torch.float64)
        nn.init.normal_(self.head.weight, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        for frozen, cell in zip(self.frozen, self.cells, strict=True):
            x = x + torch.tanh(x @ frozen) + cell(x)
        return self.head(x.mean(1))


def ours(split: str) -> Tower:
    generator = torch.Generator().manual_seed(0)
    over = Bottleneck(5, activation="gelu", norm="layer", scale=0.5)
    config = Mosa(over, EXPERTS, split=split, draw="batch", scaling="paper", decay="official")
    cells = [config.build(Site("b", WIDTH, WIDTH), generator=generator) for _ in range(BLOCKS)]
    return Tower([cell.double() for cell in cells])


class Copies(nn.Module):
    """N whole, separate linear layers, each with a mask for its gradient."""

    def __init__(self, layer: SplitLinear) -> None:
        super().__init__()
        self.experts = nn.ModuleList()
        self.masks: list[Tensor] = []
        for i in range(layer.experts):
            expert = nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64)
            expert.weight.data.copy_(layer.weight.data)
            expert.bias.data.zero_()
            self.experts.append(expert)
            self.masks.append((layer.owner == i).long())

    def mask_gradients(self) -> None:
        for expert, mask in zip(self.experts, self.masks, strict=True):
            weight = cast(nn.Linear, expert).weight
            if weight.grad is not None:
                weight.grad *= mask

    def mean(self) -> tuple[Tensor, Tensor]:
        layers = [cast(nn.Linear, e) for e in self.experts]
        return (
            torch.stack([e.weight for e in layers]).mean(0),
            torch.stack([e.bias for e in layers]).mean(0),
        )


class CopiedCell(nn.Module):
    """A bottleneck whose split sides are Copies, with draws equal to those of a MosaCell."""

    def __init__(self, cell: MosaCell) -> None:
        super().__init__()
        body = cast(BottleneckCell, copy.deepcopy(cell.body))
        self.routers = copy.deepcopy(cell.routers)
        self.norm, self.act, self.scale = body.norm, body.act, body.scale
        self.sides = nn.ModuleDict(
            {
                side: Copies(layer) if isinstance(layer, SplitLinear) else layer
                for side, layer in (("down", body.down), ("up", body.up))
            }
        )
        self.queue: dict[str, list[int]] = {side: [] for side in self.routers}

    def draw(self, count: int) -> None:
        """Draw for the next `count` forwards."""
        for side, router in self.routers.items():
            cast(RandomRouter, router).context.passes = count
            gates = router(torch.empty(count, 1)).dense()
            self.queue[side] = gates.argmax(1).tolist()

    def side(self, name: str) -> nn.Module:
        layer = self.sides[name]
        if isinstance(layer, Copies):
            return layer.experts[self.queue[name].pop(0)]
        return layer

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.side("down"), self.side("up")
        return cast(Tensor, self.scale) * up(self.act(down(self.norm(x))))


class OldAdamW:
    """Adam with bias correction in the step size, eps beside sqrt(v), decay after the step."""

    def __init__(self, model: nn.Module, lr: float, decay: float, eps: float) -> None:
        self.model, self.lr, self.decay, self.eps = model, lr, decay, eps
        self.state: dict[str, list[Any]] = {}

    def step(self) -> None:
        for name, p in self.model.named_parameters():
            if p.grad is None:
                continue
            state = self.state.setdefault(name, [0, torch.zeros_like(p), torch.zeros_like(p)])
            state[0] += 1
            t, m, v = state
            m.mul_(0.9).add_(p.grad, alpha=0.1)
            v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            rate = self.lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            p.data.addcdiv_(m, v.sqrt() + self.eps, value=-rate)
            if not name.endswith("bias"):  # the gain of the adapter's norm is decayed, as published
                p.data.add_(p.data, alpha=-self.lr * self.decay)


def published_loss(first: Tensor, second: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of pass 1 and the symmetric divergence, each target detached."""
    a, b = first.log_softmax(-1), second.log_softmax(-1)
    kl = partial(F.kl_div, reduction="batchmean", log_target=True)
    return F.cross_entropy(first, y) + 0.5 * (kl(a, b.detach()) + kl(b, a.detach()))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (8,), generator=generator)


@pytest.mark.thorough
@pytest.mark.parametrize("update", ["dense", "lazy"])
@pytest.mark.parametrize("split", ["up", "down", "both"])
def test_one_tensor_equals_n_masked_copies(split: str, update: str) -> None:
    model = ours(split)
    copies = Tower([CopiedCell(cast(MosaCell, cell)) for cell in model.cells])
    copies.head.load_state_dict(model.head.state_dict())
    lr, decay, eps = 1e-2, 0.1, 1e-6
    optimizer = split_adamw(
        model, lr, decay, norm_decays=True, eps=eps, update=update, variant="huggingface"
    )
    oracle = OldAdamW(copies, lr, decay, eps)
    start = [p.detach().clone() for p in model.parameters()]
    for step in range(80):
        x, y = batch(step)
        with passes(model, 2):
            loss = published_loss(*model(torch.cat([x, x])).chunk(2), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        for cell in copies.cells:
            cast(CopiedCell, cell).draw(2)
        expected = published_loss(copies(x), copies(x), y)
        copies.zero_grad(set_to_none=update == "lazy")
        expected.backward()
        for module in copies.modules():
            if isinstance(module, Copies):
                module.mask_gradients()
        oracle.step()
        assert abs(loss.item() - expected.item()) < 1e-10
    # something has been learned, and the decay of unowned entries shows
    assert all(not torch.allclose(a, b) for a, b in zip(start, model.parameters(), strict=True))
    for cell, twin in zip(model.cells, copies.cells, strict=True):
        merged = cast(BottleneckCell, cast(MosaCell, cell).merged())
        for side in ("down", "up"):
            layer = cast(nn.Linear, getattr(merged, side))
            copied = cast(CopiedCell, twin).sides[side]
            weight, bias = copied.mean() if isinstance(copied, Copies) else copied.parameters()
            assert_close(layer.weight, weight, atol=1e-10, rtol=0)
            assert_close(layer.bias, bias, atol=1e-10, rtol=0)
    if split != "up":
        rho = cast(MosaCell, model.cells[0]).body.down.rho
        assert isinstance(rho, Tensor)
        assert float(rho.max()) < 0.99
