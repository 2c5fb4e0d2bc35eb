"""Embedding tables are as dense as they say at every step, and follow remembered gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import TensorDataset

from intarsia import fit
from intarsia.core.errors import ConfigError
from intarsia.schedules import Dsl, RigL, grow, masked_weights
from intarsia.schedules.masked import Masking

from ..refusals import refused


class Taste(nn.Module):
    """A user's and an item's vector each; the scores of all items.  (B,) -> (B, items)."""

    def __init__(
        self, users: int = 12, items: int = 9, width: int = 7, sparse: bool = False
    ) -> None:
        super().__init__()
        self.users = nn.Embedding(users, width, sparse=sparse)
        self.items = nn.Embedding(items, width)
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.users(x)) @ self.items.weight.T


def model(seed: int = 0, **settings: Any) -> Taste:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Taste(**settings)


def rows(count: int = 40) -> TensorDataset:
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(12, (count,), generator=draw)
    return TensorDataset(x, (x * 5) % 9)


def adamw(net: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)


OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 8, "lr": 0.05, "trackers": ()}


@pytest.mark.parametrize("store", ["dense", "vectors"])
def test_tables_keep_their_number_of_weights_and_masked_moments_stay_0(store: str) -> None:
    net, steps = model(), 12
    masking = Masking(Dsl(0.3, every=2, store=store), net, seed=0)
    optimizer = masking.masked.optimizer(adamw)(net, 0.05, 0.1)
    means = {n: torch.zeros_like(w) for n, w in masking.weights.items()}
    history: list[dict[str, Tensor]] = []
    with masking.masked.training():
        for step in range(steps):
            masking.before(step, steps)
            x, y = rows().tensors[0][step::4], rows().tensors[1][step::4]
            loss = nn.functional.cross_entropy(net(x), y)
            names = list(masking.weights)
            exact = torch.autograd.grad(
                loss, [masking.weights[n] for n in names], retain_graph=True
            )
            for name, gradient in zip(names, exact, strict=True):
                means[name] = 0.99 * means[name] + 0.01 * gradient.abs()
            before = {n: k.clone() for n, k in masking.masked.kept.items()}
            weights = {n: w.detach().clone() for n, w in masking.weights.items()}
            loss.backward()
            if masking.replaces(step, steps):
                masking.regrow(step, steps)
                share = masking.schedule.share(step, steps)  # pyright: ignore
                for name, mask in masking.masked.kept.items():
                    want = grow(weights[name], before[name], share, means[name])
                    assert torch.equal(mask, want)
            else:
                optimizer.step()
            optimizer.zero_grad()
            history.append({n: k.clone() for n, k in masking.masked.kept.items()})
            for name, weight in masking.weights.items():
                mask = masking.masked.kept[name]
                assert int(mask.sum()) == round(0.3 * mask.numel())
                assert not weight[~mask].any()
                for value in optimizer.state.get(weight, {}).values():
                    assert value.shape != weight.shape or not value[~mask].any()
    assert set(masking.weights) == {"users.weight", "items.weight"}
    assert masking.changes == 5 and not torch.equal(
        history[0]["users.weight"], history[-1]["users.weight"]
    )


def test_without_a_memory_the_batch_decides() -> None:
    """Rows that are not in the batch have the gradient 0, as in the paper."""
    masks: list[Tensor] = []
    for schedule in (Dsl(0.5, every=2, memory=0.0), Dsl(0.5, every=2)):
        net = model()
        fit(net, rows(), schedule=schedule, seed=3, **OPTIONS)
        masks.append(net.users.weight.detach() != 0)
    assert not torch.equal(*masks)
    assert all(int(mask.sum()) <= 42 for mask in masks)  # what has just come may still be 0


def test_all_of_a_table_is_the_dense_run_to_the_bit() -> None:
    models = [model(), model()]
    fit(models[0], rows(), optimizer=adamw, **OPTIONS)
    fit(models[1], rows(), optimizer=adamw, schedule=Dsl(1.0, every=2), **OPTIONS)
    for a, b in zip(*(net.parameters() for net in models), strict=True):
        assert torch.equal(a, b)


def test_the_share_falls_from_a_half_to_half_a_percent() -> None:
    schedule = Dsl()
    assert schedule.share(0, 100) == 0.5 and schedule.share(100, 100) == pytest.approx(0.005)
    assert schedule.share(50, 100) == pytest.approx(0.2525)
    assert [step for step in range(100) if Dsl(every=30).due(step, 100)] == [30, 60, 90]


def test_other_schedules_leave_tables_alone() -> None:
    assert set(masked_weights(model())) == {"mix.weight"}
    assert set(masked_weights(model(), ("*",))) == {"mix.weight"}
    assert set(masked_weights(model(), ("tables", "*"))) == {
        *("users.weight", "items.weight", "mix.weight"),
    }
    assert set(masked_weights(model(), ("users",))) == {"users.weight"}
    net = model()
    fit(net, rows(), schedule=RigL(0.5), **OPTIONS)
    assert (net.users.weight != 0).all()


def test_tables_that_cannot_be_masked_are_refused() -> None:
    with refused(ConfigError, what="layers to mask"):
        Masking(Dsl(), nn.Linear(3, 2), 0)
    with refused(ConfigError, what="table 'users'", got="sparse=True"):
        Masking(Dsl(), model(sparse=True), 0)
    tied: Any = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    tied["head"].weight = tied["embed"].weight
    with refused(ConfigError, what="table 'embed'"):
        Masking(Dsl(), tied, 0)
    assert list(Masking(Dsl(layers=("embed",)), tied, 0).weights) == ["embed.weight"]
    for bad in ({"memory": 1.0}, {"density": 0.0}, {"spread": "global"}):
        settings: Any = bad
        with pytest.raises(ConfigError):
            Dsl(**settings)
