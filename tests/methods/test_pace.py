"""PACE: noise on an adapter's output, two draws that should agree, and nothing of it at zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from intarsia.adapters import Bottleneck, Lora
from intarsia.core import Site
from intarsia.core.errors import ConfigError
from intarsia.fitting import fit
from intarsia.gating import before_step, join
from intarsia.methods import Mosa, Pace
from intarsia.mixtures.noisy import ScaledOutput
from intarsia.runs.choosing.arms import EXTRA, arm
from intarsia.runs.execute import method_of, recipe_of
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.train import pace, plain, two_pass

from ..refusals import refused

WIDTH = 6
OVER = Bottleneck(3, activation="gelu", norm="none")
OVERS = [OVER, Lora(2), Mosa(OVER)]


class Host(nn.Module):
    """Tokens (B, 2, 6) through frozen maps with cells beside them, a mean, a head."""

    def __init__(self, method: Any, blocks: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        site = Site("b", WIDTH, WIDTH, method.position)
        self.cells = nn.ModuleList(method.build(site, generator=generator) for _ in range(blocks))
        self.head = nn.Linear(WIDTH, 3)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        join(self)

    def forward(self, x: Tensor) -> Tensor:
        for cell in self.cells:
            x = x + cell(x)
        return self.head(x.mean(1))


def moved(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model.double()


def rows(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 2, WIDTH, generator=generator)
    return x, torch.randint(3, (count,), generator=generator)


@contextmanager
def drawing(cell: ScaledOutput, *draws: Tensor) -> Iterator[None]:
    """Make the cell's noise these tensors, one after the other, while the context is open."""
    queue = iter(draws)
    cell.noise.normal = lambda *_: next(queue)  # pyright: ignore
    try:
        yield
    finally:
        del cell.noise.normal


def learned(method: Any, **settings: Any) -> dict[str, Tensor]:
    model = Host(method)
    train = TensorDataset(*rows(10))
    fit(model, train, epochs=2, batch_size=4, lr=0.1, trackers=(), **settings)
    return {name.replace("body.", "", 1): p for name, p in model.state_dict().items()}


@pytest.mark.parametrize("over", OVERS, ids=["bottleneck", "lora", "mosa"])
def test_without_noise_and_without_weight_it_is_the_adapter_bit_for_bit(over: Any) -> None:
    method = Pace(over, sigma=0, weight=0)
    adapter_weights, nothing = learned(over), learned(method, objective=method.trained_by)
    if not isinstance(over, Mosa):  # whose own names begin with body.
        assert adapter_weights.keys() == nothing.keys()
    for expected, right in zip(adapter_weights.values(), nothing.values(), strict=True):
        assert torch.equal(expected, right)
    loud = Pace(over, sigma=1.0)
    changed = learned(loud, objective=loud.trained_by)
    assert any(not torch.equal(changed[name], nothing[name]) for name in nothing)


def test_the_noise_multiplies_the_output_alike_at_all_tokens() -> None:
    site = Site("b", WIDTH, WIDTH)
    cell = moved(Pace(OVER, sigma=0.5).build(site, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(2000, 2, WIDTH, dtype=torch.float64)
    factor = cell.train()(x) / cell.body(x)
    assert_close(factor[:, 0], factor[:, 1])
    e = (factor[:, 0] - 1) / 0.5
    assert abs(e.mean()) < 0.05 and abs(e.std() - 1) < 0.05
    assert abs(torch.corrcoef(e.T) - torch.eye(WIDTH)).max() < 0.1  # each output has its own
    assert torch.equal(cell.eval()(x), cell.body(x))
    assert torch.equal(cell.merged()(x), cell.body(x))


@pytest.mark.parametrize("over", OVERS[:2], ids=["bottleneck", "lora"])
@pytest.mark.parametrize("count", [1, 5])
def test_the_loss_is_that_of_two_passes_one_after_the_other(over: Any, count: int) -> None:
    model = moved(Host(Pace(over, sigma=0.7), blocks=1)).train()
    (cell,), (x, y) = model.cells, rows(count)
    x, first, second = x.double(), torch.randn(count, WIDTH), torch.randn(count, WIDTH)
    loss_of = partial(_cross_entropy, y)
    with drawing(cell, first, second):
        our_loss = pace(model, x, loss_of, weight=0.3)
    with drawing(cell, first):
        z1 = plain(model, x, loss_of).logits
    with drawing(cell, second):
        z2 = plain(model, x, loss_of).logits
    want = F.cross_entropy(z1, y) + 0.3 * (z1 - z2).square().sum(1).mean()
    assert_close(our_loss.loss, want)
    assert_close(our_loss.logits, z1)
    gradients = [torch.autograd.grad(loss, [*model.parameters()]) for loss in (our_loss.loss, want)]
    for ours, right in zip(*gradients, strict=True):
        assert_close(ours, right)


def _cross_entropy(y: Tensor, logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, y)


def test_every_other_step_has_one_pass() -> None:
    method = Pace(OVER, every=2)
    train = TensorDataset(*rows(12))
    run = fit(Host(method), train, epochs=1, batch_size=2, trackers=(), objective=method.trained_by)
    assert ["distance" in line for line in run.history] == [True, False] * 3


def test_a_step_is_known_only_where_cells_draw() -> None:
    x, y = rows(2)
    with refused(ConfigError, what="every", got="2 in a model without cells that draw"):
        pace(Host(OVER), x, partial(_cross_entropy, y), every=2)
    model = Host(Pace(OVER))
    before_step(model, 1, 4)
    assert "distance" not in pace(model, x, partial(_cross_entropy, y), every=2).parts


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"sigma": -1.0}, "sigma"),
        ({"weight": -1.0}, "weight"),
        ({"every": 0}, "every"),
        ({"over": Pace()}, "over"),
        ({"over": 3}, "over"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with refused(ConfigError, what=field):
        Pace(**settings)


def test_a_command_trains_it_by_its_own_loss_unless_another_is_asked_for() -> None:
    start = Experiment(Pictures("mini/elpv"))
    experiment = arm("pace").settings.into(start)
    objective = recipe_of(method_of(experiment), experiment)["objective"]
    assert objective.func is pace and objective.keywords == {"weight": 1.0, "every": 1}
    with_two_pass = experiment.changed(objective="two_pass")
    assert recipe_of(method_of(with_two_pass), with_two_pass)["objective"] is two_pass
    assert {named_arm.name for named_arm in EXTRA} >= {"pace", "drop_connect"}
