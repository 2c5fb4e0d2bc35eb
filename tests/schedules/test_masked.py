"""What is masked is 0 everywhere; masks change by exact counts; a run resumes with its masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import TensorDataset
from transformers import MixtralConfig, MixtralForCausalLM

from intarsia import fit, fit_in_phases
from intarsia.core.errors import CheckpointError, ConfigError, TrainingError
from intarsia.mixtures import Mixture, StackedExperts
from intarsia.routers import TopK
from intarsia.schedules import (
    Bdwp,
    Dsl,
    FixedMask,
    Gradual,
    Imp,
    Masked,
    RigL,
    Set,
    grow,
    masked_weights,
    prune,
)
from intarsia.schedules.gradual import cubic
from intarsia.schedules.masked import Masking
from intarsia.schedules.phases import Make

from ..refusals import refused


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))


def rows(count: int = 40) -> TensorDataset:
    draw = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(count, 6, generator=draw), torch.randint(3, (count,), generator=draw)
    )


def adamw(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)


def kept_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: w.detach() != 0 for n, w in masked_weights(model).items()}


def density_of(model: nn.Module) -> float:
    masks = list(kept_of(model).values())
    return sum(int(k.sum()) for k in masks) / sum(k.numel() for k in masks)


OPTIONS: dict[str, Any] = {"epochs": 4, "batch_size": 8, "lr": 0.05, "trackers": ()}


def test_a_clipped_gradient_is_that_of_kept_weights() -> None:
    model = net()
    part = prune(model, 0.6)
    masked = Masked(masked_weights(model), part)
    model(torch.ones(2, 6)).square().sum().backward()
    masked.mask_gradients()
    for name, weight in masked.weights.items():
        assert weight.grad is not None
        assert not weight.grad[~part.mask(name, 0)].any() and weight.grad.any()


@pytest.mark.parametrize("store", ["dense", "vectors"])
def test_zeros_stay_zeros_through_fit(store: str) -> None:
    model = net()
    part = prune(model, 0.4)
    fit(model, rows(), schedule=FixedMask(store=store), clip=0.1, **OPTIONS)
    for name, mask in kept_of(model).items():
        assert torch.equal(mask, part.mask(name, 0))


def test_zeros_stay_wherever_they_are() -> None:
    # in fused experts of transformers, which are no layers, and in a head outside of blocks
    sizes: dict[str, Any] = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1}
    model = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=3))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "experts" in name or name == "lm_head.weight":
                weight.view(-1)[::2] = 0
    zeros = {name: weight == 0 for name, weight in model.state_dict().items()}
    ids = torch.arange(24).view(4, 6)
    texts = [{"input_ids": row, "labels": row} for row in ids]
    fit(model, texts, epochs=2, batch_size=2, lr=1e-2, schedule=FixedMask(), trackers=())
    for name, weight in model.state_dict().items():
        assert not weight[zeros[name]].any(), name
    assert (model.lm_head.weight != 0).float().mean() == 0.5


def test_vectors_hold_states_of_kept_weights_only() -> None:
    model = net()
    part = prune(model, 0.25)
    masked = Masked(masked_weights(model), part, "vectors")
    optimizer = masked.optimizer(adamw)(model, 0.1, 0.0)
    with masked.training():
        model(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
    count = sum(s["exp_avg"].numel() for s in optimizer.state.values())
    biases = 20 + 3
    assert count == int(part.sizes()) + biases


def test_a_model_without_zeros_has_no_mask_to_keep() -> None:
    with refused(ConfigError, what="fixed mask"):
        fit(net(), rows(), schedule=FixedMask(), **OPTIONS)


def factored(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return torch.optim.Adafactor(model.parameters(), lr=lr)


def amsgrad(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return AdamW(model.parameters(), lr=lr, amsgrad=True)


def test_states_that_cannot_be_masked_are_refused_by_name() -> None:
    model = net()
    prune(model, 0.5)
    with refused(ConfigError, what="optimizer", got="AdamW(amsgrad=True)"):
        fit(model, rows(), schedule=FixedMask(), optimizer=amsgrad, **OPTIONS)
    with refused(TrainingError, what="masked training"):
        fit(model, rows(), schedule=FixedMask(), optimizer=factored, **OPTIONS)


def momentum(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    return SGD(model.parameters(), lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True)


@pytest.mark.parametrize("make", [adamw, momentum])
def test_momentum_does_not_come_back(make: Make) -> None:
    model = net()
    schedule = Gradual(density=0.2, every=2, spread="global")
    fit(model, rows(), schedule=schedule, optimizer=make, **OPTIONS)
    assert density_of(model) == pytest.approx(0.2, abs=0.01)


def test_the_cubic_schedule() -> None:
    assert cubic(0, 0.1, 0.9) == pytest.approx(0.1) and cubic(1, 0.1, 0.9) == 0.9
    assert cubic(0.5, 0, 0.8) == pytest.approx(0.8 - 0.8 / 8)
    schedule = Gradual(density=0.25, start=0.1, stop=0.6, every=10)
    due = [step for step in range(100) if schedule.due(step, 100)]
    assert due == [10, 20, 30, 40, 50, 60]
    assert schedule.density_at(10, 100) == 1 and schedule.density_at(60, 100) == 0.25


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 30), st.integers(1, 9))
def test_a_run_of_any_length_comes_to_its_density(
    start: float, stop: float, steps: int, period: int
) -> None:
    schedule = Gradual(0.25, *sorted((start, stop)), every=period)
    due = [step for step in range(steps) if schedule.due(step, steps)]
    assert due and schedule.density_at(due[-1], steps) == 0.25


@pytest.mark.parametrize(
    "schedule",
    [
        RigL(0.5, every=3),
        Set(0.5, every=3),
        Gradual(0.5, every=3),
        Dsl(0.5, every=3, layers=None),
    ],
)
def test_masks_resume_with_the_run(schedule: Any, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stops(stop: int) -> Callable[..., Any]:
        def make(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
            optimizer = adamw(model, lr, weight_decay)
            steps = [0]

            def count(*_: Any) -> None:
                steps[0] += 1
                if steps[0] > stop:
                    raise Stop

            optimizer.register_step_pre_hook(count)
            return optimizer

        return make

    full = net()
    fit(full, rows(), schedule=schedule, optimizer=adamw, **OPTIONS)
    half = net()
    often = OPTIONS | {"checkpoint_steps": 1, "out": tmp_path / "run", "schedule": schedule}
    factory = stops(8)
    factory.__qualname__ = "adamw"  # the same settings as those of the run that goes on
    with pytest.raises(Stop):
        fit(half, rows(), optimizer=factory, **often)
    again = net()
    fit(again, rows(), optimizer=adamw, resume=True, **often)
    for a, b in zip(full.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert density_of(again) == pytest.approx(0.5, abs=0.01)


def test_rigl_exchanges_weights_and_keeps_their_number() -> None:
    model = net()
    schedule = RigL(density=0.5, every=4, drop=0.5, spread="uniform")
    fit(model, rows(), schedule=schedule, seed=3, **OPTIONS)
    after = kept_of(model)
    still = net()
    fit(still, rows(), schedule=RigL(density=0.5, stop=0.0, spread="uniform"), seed=3, **OPTIONS)
    start = kept_of(still)
    assert all(int(start[n].sum()) == int(after[n].sum()) for n in start)
    assert any(not torch.equal(start[n], after[n]) for n in start)


@pytest.mark.parametrize("factors", [[torch.nan, 1.0, torch.inf], [1.0, 1.0, torch.inf]])
@pytest.mark.parametrize("store", ["dense", "vectors"])
def test_gradients_that_overflow_change_no_mask(store: str, factors: list[float]) -> None:
    model: Any = net()
    masking = Masking(RigL(0.5, every=1, store=store), model, 0)
    before = masking.digest()
    with masking.masked.training():
        masking.before(1, 10)
        (model(torch.ones(2, 6)) * torch.tensor(factors)).sum().backward()
    assert masking.replaces(1, 10)
    masking.regrow(1, 10)
    assert masking.digest() == before and not masking.changes
    with masking.masked.training():
        model.zero_grad()
        masking.before(2, 10)
        model(torch.randn(8, 6)).square().sum().backward()
    masking.replaces(2, 10)
    masking.regrow(2, 10)
    assert masking.changes == 1


def test_one_gradient_that_overflows_changes_no_mask() -> None:
    model: Any = net()
    masking = Masking(RigL(0.5, every=1), model, 0)
    before = masking.digest()
    model(torch.ones(2, 6)).sum().backward()
    first, *rest = [weight.grad for weight in masking.weights.values()]
    first[0, 0] = torch.inf
    assert rest
    masking.regrow(1, 10)
    assert masking.digest() == before and not masking.changes


def naive_grow(w: Tensor, before: Tensor, drop: float, score: Tensor) -> Tensor:
    places = range(w.numel())
    count = int(before.sum())
    some = min(round(drop * count), w.numel() - count)
    inside = [i for i in places if bool(before[i])]
    stays = sorted(inside, key=lambda i: (-float(w[i].abs()), i))[: count - some]
    outside = [i for i in places if i not in stays]
    new = sorted(outside, key=lambda i: (-float(score[i]), i))[:some]
    mask = torch.zeros_like(before)
    mask[[*stays, *new]] = True
    return mask


@given(st.integers(1, 12), st.floats(0, 1), st.integers(0, 99))
def test_the_smallest_go_and_the_largest_scores_come(size: int, drop: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    w, score = (torch.randint(-3, 4, (size,), generator=draw).float() for _ in range(2))
    mask = torch.rand(size, generator=draw) < 0.6
    grown = grow(w, mask, drop, score.abs())
    assert torch.equal(grown, naive_grow(w, mask, drop, score.abs()))
    at_random = grow(w, mask, drop, generator=draw)
    assert int(at_random.sum()) == int(grown.sum()) == int(mask.sum())


@pytest.mark.parametrize("choose", [{"select": "val"}, {"patience": 1}])
def test_the_best_epoch_is_one_of_the_density_that_was_asked_for(choose: dict[str, Any]) -> None:
    model, late = net(), Gradual(0.2, every=1, stop=0.8)
    val = TensorDataset(*(t[40:] for t in rows(60).tensors))  # other samples
    options = OPTIONS | {"epochs": 10, "lr": 0.3}  # so that early epochs are better
    run = fit(model, rows(), val, schedule=late, **options, **choose)
    assert run.record["results"]["selection"]["epoch"] >= 9
    assert density_of(model) == pytest.approx(0.2, abs=0.01)


def test_growing_needs_a_score_or_a_generator() -> None:
    with refused(ConfigError, what="generator", got=0):
        grow(torch.ones(3), torch.ones(3).bool(), 0.3)


def test_iterative_pruning_only_ever_removes(tmp_path: Path) -> None:
    model, pruned, method = net(), net(), Imp(density=0.125, rounds=3)
    history: list[dict[str, Tensor]] = []
    for phase in method.phases(pruned):
        assert isinstance(phase.schedule, FixedMask)
        history.append(kept_of(pruned))
        with torch.no_grad():
            for n, w in masked_weights(pruned).items():
                w.add_(0.1 * torch.randn_like(w) * history[-1][n])
    for before, after in zip(history, history[1:], strict=False):
        assert all(not (after[n] & ~before[n]).any() for n in before)
    done = fit_in_phases(model, method, rows(), out=tmp_path / "imp", **OPTIONS)
    assert density_of(model) == pytest.approx(0.125, abs=0.01)
    assert done.found.density() == pytest.approx(0.125, abs=0.01)
    assert [name for name, _ in done.runs] == ["round-1", "round-2", "round-3"]
    resumed = net()
    again = OPTIONS | {"resume": True}
    fit_in_phases(resumed, method, rows(), out=tmp_path / "imp", **again)
    pairs = zip(model.parameters(), resumed.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_layers_are_named_by_globs() -> None:
    model = nn.ModuleDict(
        {"a": nn.Conv2d(2, 4, 1), "b": nn.Conv2d(4, 4, 3, groups=4), "c": nn.Linear(4, 2)}
    )
    assert list(masked_weights(model)) == ["a.weight", "c.weight"]
    assert list(masked_weights(model, ["1x1"])) == ["a.weight"]
    assert list(masked_weights(model, ["b", "c"])) == ["b.weight", "c.weight"]
    with refused(ConfigError, what="layers to mask"):
        masked_weights(model, ["c", "d"])
    with refused(ConfigError, what="layers to mask"):
        masked_weights(model.requires_grad_(False))


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_weight_that_is_computed_cannot_be_masked(norm: Callable[..., Any]) -> None:
    model: Any = net()
    norm(model[0])
    assert list(masked_weights(model, computed=True)) == ["0.weight", "2.weight"]
    for schedule in (RigL(0.5), Gradual(0.5), Bdwp("1:2")):
        with refused(ConfigError, what="layer '0'"):
            fit(model, rows(), schedule=schedule, **OPTIONS)
    with refused(ConfigError, what="layer '0'"):
        prune(model, 0.5)
    assert list(masked_weights(model, ["2"])) == ["2.weight"]
    if norm is parametrizations.weight_norm:
        parametrize.remove_parametrizations(model[0], "weight")
    else:
        nn.utils.remove_weight_norm(model[0])
    fit(model, rows(), schedule=Gradual(0.5, every=1), **OPTIONS)
    assert density_of(model) == pytest.approx(0.5, abs=0.01)


def test_masks_of_another_run_are_refused() -> None:
    from intarsia.schedules import Masking

    first, second = Masking(RigL(0.5), net(), 0), Masking(Set(0.5), net(), 0)
    with refused(CheckpointError, what="masks"):
        second.load_state(first.state())
    with refused(ConfigError, what="store", got="'sparse'"):
        RigL(store="sparse")
    with refused(ConfigError, what="masks", got="1 parts of ['0.weight', '2.weight'] ..."):
        Masked({}, prune(net(), 0.5))


@pytest.mark.parametrize("store", ["dense", "vectors"])
def test_rigl_gives_each_expert_of_a_mixture_its_own_density(store: str) -> None:
    torch.manual_seed(0)
    experts = StackedExperts(3, 12, 20, generator=torch.Generator().manual_seed(1))
    router = TopK(experts=3, active=2).build(12, generator=torch.Generator().manual_seed(2))
    model = nn.Sequential(Mixture(experts, router), nn.Linear(12, 4))
    assert set(masked_weights(model)) == {"0.experts.up", "0.experts.down", "1.weight"}
    assert list(masked_weights(model, ["experts.up"])) == ["0.experts.up"]
    schedule = RigL(density=0.3, every=2, spread="uniform", store=store)
    masking = Masking(schedule, model, 0)
    first = {n: k.clone() for n, k in masking.masked.kept.items()}
    make = masking.masked.optimizer(lambda m, lr, wd: torch.optim.AdamW(m.parameters(), lr))
    optimizer, steps = make(model, 1e-2, 0.0), 8
    with masking.masked.training():
        for step in range(steps):
            masking.before(step, steps)
            optimizer.zero_grad()
            model(torch.randn(32, 12)).square().mean().backward()
            if masking.replaces(step, steps):
                masking.regrow(step, steps)
            else:
                optimizer.step()
            mask = masking.masked.kept["0.experts.up"]
            assert mask.sum((1, 2)).tolist() == [72] * 3 and not bool(experts.up[~mask].any())
    assert masking.changes == 2  # at steps 2 and 4, of 6 = 0.75 * 8
    assert not torch.equal(first["0.experts.up"], masking.masked.kept["0.experts.up"])
    resumed = Masking(schedule, model, 1)
    resumed.load_state(masking.state())
    assert resumed.digest() == masking.digest()


@pytest.mark.parametrize(("spread", "rows"), [("uniform", 1), ("uniform", 2), ("global", 1)])
def test_gradual_pruning_brings_nothing_back(spread: str, rows: int) -> None:
    # at the first step all may stay, and zeros stay zeros
    schedule = Gradual(0.5, spread=spread, rows=rows)
    draw = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(4, 6, generator=draw)}
    masks = {"a": torch.rand(4, 6, generator=draw) < 0.3}
    assert schedule.density_at(0, 10) == 1
    assert torch.equal(schedule.update(weights, masks, {}, (0, 10), draw)["a"], masks["a"])


def test_the_cubic_by_hand() -> None:
    """s_t = s_f + (s_i - s_f)(1 - t)^3: from 0 to .75, half-way .75 - .75 / 8 = .65625."""
    sparsity = [1 - Gradual(0.25, stop=1).density_at(step, 11) for step in (0, 5, 10)]
    assert sparsity == pytest.approx([0, 0.65625, 0.75])
