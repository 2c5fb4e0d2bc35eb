"""A soup of pruned models keeps their zeros; with one candidate it is pruning in rounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import intarsia
from intarsia import fit, fit_in_phases
from intarsia.core.errors import CheckpointError, ConfigError, DataError
from intarsia.methods import SparseModelSoup
from intarsia.mixtures.sparse_soup import greedy, mixed, nonzeros, pairs
from intarsia.schedules import FixedMask, Imp, masked_weights, prune
from intarsia.schedules.retrain import RETRAIN, Retrain
from intarsia.train.batch_norms import recalibrate

from ..refusals import refused

OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 0.05, "trackers": ()}
QUICK: dict[str, Any] = {"density": 0.3, "rounds": 2, "candidates": 2}


def with_(changes: dict[str, Any]) -> dict[str, Any]:
    return OPTIONS | changes


def net(norm: bool = False, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = [nn.BatchNorm1d(20)] if norm else []
        return nn.Sequential(nn.Linear(6, 20), *middle, nn.Tanh(), nn.Linear(20, 3))


def rows(count: int = 40, seed: int = 1) -> TensorDataset:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=draw) * 3 + 2
    return TensorDataset(x, (x[:, 0] > x[:, 1]).long() + (x[:, 2] > 2).long())


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(t, second[n]) for n, t in first.items())


def masks(state: Any) -> dict[str, Tensor]:
    return {n: t != 0 for n, t in state.items() if t.dim() > 1}


def test_one_candidate_is_pruning_in_rounds_bit_for_bit() -> None:
    states: list[dict[str, Tensor]] = []
    for method in (SparseModelSoup(0.3, 2, 1), Imp(0.3, 2)):
        model = net(norm=True)
        options: Any = (
            {} if isinstance(method, SparseModelSoup) else {"lr_factor": Retrain().factor()}
        )
        fit_in_phases(model, method, rows(), **OPTIONS, **options)
        states.append(copied(model))
    assert same(*states)


def test_equal_seeds_give_the_candidate() -> None:
    model = net()
    fit_in_phases(model, SparseModelSoup(**QUICK, values=(7, 7)), rows(), **OPTIONS)
    alone = net()
    method = SparseModelSoup(0.3, 2, 1, values=(7,))
    fit_in_phases(alone, method, rows(), **OPTIONS)
    assert same(copied(model), copied(alone))


def test_a_soup_has_its_candidates_zeros_and_no_fewer() -> None:
    model = net()
    states: list[dict[str, Tensor]] = []

    class Watched(SparseModelSoup):
        def phases(self, model: nn.Module, *, seed: int = 0) -> Any:
            inner = super().phases(model, seed=seed)
            try:
                while True:
                    states.append(copied(model)) if len(states) else None
                    phase = next(inner)
                    states.append(copied(model))
                    yield phase
            except StopIteration as end:
                return end.value

    run = fit_in_phases(model, Watched(**QUICK), rows(), **OPTIONS)
    weights = masked_weights(model)
    kept_weights = {n: run.found.partition.mask(n, 0) for n in weights}
    assert same({n: w.detach() != 0 for n, w in weights.items()}, kept_weights)
    assert run.found.partition.density() == pytest.approx(0.3, abs=0.01)
    assert run.found.members == ((0, 1), (0, 1)) and min(run.found.distance) > 0
    counts = [sum(int(m.sum()) for m in masks(s).values()) for s in states]
    assert counts == sorted(counts, reverse=True)
    assert [name for name, _ in run.runs] == [
        f"round-{r}-candidate-{c}" for r in (1, 2) for c in (1, 2)
    ]


@given(st.integers(0, 99), st.integers(2, 5))
def test_the_mean_is_the_mean_and_of_equal_models_their_bits(seed: int, count: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    mask = torch.rand(4, 5, generator=draw) < 0.5
    states = [{"w": torch.randn(4, 5, generator=draw) * mask} for _ in range(count)]
    mean = mixed(states)
    torch.testing.assert_close(mean["w"], torch.stack([s["w"] for s in states]).mean(0))
    assert not mean["w"][~mask].any() and nonzeros(mean) <= nonzeros(states[0])
    assert same(mixed([states[0]] * count), states[0])
    shares = [1.0] + [0.0] * (count - 1)
    assert same(mixed(states, shares), states[0])


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=5))
def test_a_greedy_soup_is_no_worse_than_its_best_candidate(values: list[int]) -> None:
    states = [{"w": torch.tensor([[float(v), 1.0]])} for v in values if v] or []
    if len(states) < 2:
        return

    def score(state: Any) -> float:  # the nearer to 1 the better
        return -abs(float(state["w"][0, 0]) - 1)

    picked = greedy(states, score)
    assert picked.score >= max(map(score, states)) and picked.score == score(picked.state)
    expected = mixed([states[i] for i in picked.indices]) if len(picked.indices) > 1 else None
    assert expected is None or same(picked.state, expected)


def test_equal_scores_are_taken_in() -> None:
    states = [{"w": torch.tensor([[float(v)]])} for v in (1, 2, 3)]
    assert greedy(states, lambda _: 1.0).indices == (0, 1, 2)
    assert greedy(states, lambda s: -float(s["w"])).indices == (0,)


def test_greedy_chooses_by_val_and_never_without_one() -> None:
    method = SparseModelSoup(**QUICK, pick="greedy")
    model = net(norm=True)
    run = fit_in_phases(model, method, rows(), rows(30, seed=2), **OPTIONS)
    assert all(set(c) <= {0, 1} and c for c in run.found.members)
    with refused(DataError, what="val", got="none"):
        fit_in_phases(net(), method, rows(), **OPTIONS)
    with refused(DataError, what="val"):
        fit_in_phases(net(), method, rows(), rows(), **OPTIONS)


def test_without_new_statistics_of_batch_norms_a_soup_is_worse() -> None:
    """Candidates around one model: their mean varies less than each of them does."""
    train, test = rows(200), rows(200, seed=5)
    model = net(norm=True)
    fit(model, train, **with_({"epochs": 8}))
    best, states = copied(model), list[dict[str, Tensor]]()
    draw = torch.Generator().manual_seed(0)
    for _ in range(6):
        model.load_state_dict(best)
        with torch.no_grad():
            model[0].weight.add_(torch.randn(20, 6, generator=draw))  # pyright: ignore
        recalibrate(model, [train.tensors[0]])
        states.append(copied(model))
    model.load_state_dict(mixed(states))
    norm: Any = model[1]  # pyright: ignore
    stale = float(intarsia.evaluate(model, test).loss)
    recalibrate(model, [train.tensors[0]])
    assert float(intarsia.evaluate(model, test).loss) < stale
    hidden = model[0](train.tensors[0]).detach()  # pyright: ignore
    torch.testing.assert_close(norm.running_mean, hidden.mean(0))
    assert norm.momentum == 0.1


@pytest.mark.parametrize("vary", ["weight_decay", "length", "retrain"])
def test_candidates_differ_in_what_varies(vary: str) -> None:
    values = {"weight_decay": (0.0, 0.5), "length": (0.5, 1.5), "retrain": ("clr", "ft")}[vary]
    method = SparseModelSoup(0.5, 1, 2, vary, values)
    run = fit_in_phases(net(), method, rows(), **OPTIONS)
    first_record, second_record = (r.record for _, r in run.runs)
    if vary == "length":
        assert [r["training"]["epochs"] for r in (first_record, second_record)] == [1, 3]
    elif vary == "weight_decay":
        assert [r["training"]["weight_decay"] for r in (first_record, second_record)] == [0.0, 0.5]
    else:
        assert first_record["recipe"]["lr_factor"] != second_record["recipe"]["lr_factor"]
    assert (
        first_record["training"]["seed"] == second_record["training"]["seed"]
        and min(run.found.distance) > 0
    )


def test_a_killed_soup_ends_in_the_same_bits(tmp_path: Path) -> None:
    method = SparseModelSoup(**QUICK, pick="greedy")
    uninterrupted = net(norm=True)
    fit_in_phases(uninterrupted, method, rows(), rows(30, seed=2), **OPTIONS)
    calls: list[int] = []
    often = OPTIONS | {"checkpoint_steps": 1, "out": tmp_path / "run"}

    def stop(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 27:  # in the second round
            raise KeyboardInterrupt

    class Stopped(SparseModelSoup):
        def phases(self, model: nn.Module, *, seed: int = 0) -> Any:
            hook = model.register_forward_hook(stop)
            try:
                return (yield from super().phases(model, seed=seed))
            finally:
                hook.remove()

    with pytest.raises(KeyboardInterrupt):
        fit_in_phases(
            net(norm=True), Stopped(**QUICK, pick="greedy"), rows(), rows(30, seed=2), **often
        )
    again = net(norm=True)
    fit_in_phases(again, method, rows(), rows(30, seed=2), resume=True, **often)
    assert same(copied(again), copied(uninterrupted))


@pytest.mark.parametrize("kind", RETRAIN)
def test_rates_of_a_retraining_rise_for_a_tenth_and_then_never(kind: str) -> None:
    factor = Retrain(kind, share=0.25).factor(0.4)
    if factor is None:
        assert kind == "own"
        return
    rates = [factor(step, 40) for step in range(40)]
    rise = 0 if kind in ("lrw", "ft") else 4
    assert all(0 <= a < b for a, b in zip(rates[:rise], rates[1:], strict=False))
    assert all(a >= b >= 0 for a, b in zip(rates[rise:], rates[rise + 1 :], strict=False))
    first = {"allr": 0.4, "lrw": 0.01, "ft": 0.01}.get(kind, 1.0)
    assert rates[rise] == pytest.approx(first) and (not rise or rates[0] == 0)
    cold = Retrain(kind, share=0.25, warmup=0).factor(0.4)
    assert cold is not None and cold(0, 40) == pytest.approx(first)


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("llr", (1, 0.75, 0.5, 0)),
        ("allr", (0.4, 0.3, 0.2, 0)),
        ("clr", (1, 0.5 + 0.125**0.5, 0.5, 0)),
        ("slr", (1, 0.5, 0.2, 0.1)),
        ("lrw", (0.2, 0.2, 0.1, 0.1)),
        ("ft", (0.1, 0.1, 0.1, 0.1)),
    ],
)
def test_rates_at_quarters_of_a_retraining(kind: str, rates: tuple[float, ...]) -> None:
    retrain = Retrain(kind, (1.0, 0.5, 0.2, 0.1), share=0.5 if kind == "lrw" else 0.25, warmup=0)
    factor = retrain.factor(0.4)
    assert factor is not None
    assert [factor(step, 8) for step in (0, 2, 4, 8)] == pytest.approx(rates)


def test_pairs_of_candidates_have_the_distance_and_the_cosine_of_their_weights() -> None:
    weights = ((3.0, 0.0), (0.0, 4.0), (3.0, 4.0))
    states = [{"w": torch.tensor(w), "steps": torch.tensor(i)} for i, w in enumerate(weights)]
    rows = [tuple(row[n] for n in ("a", "b", "distance", "cosine")) for row in pairs(states)]
    want = [(0, 1, 5, 0), (0, 2, 4, 0.6), (1, 2, 3, 0.8)]
    assert [pytest.approx(row) for row in want] == rows


def test_a_replay_is_as_slow_as_the_last_part_of_the_original() -> None:
    replay = Retrain("lrw", (1.0, 0.5, 0.2, 0.1), share=0.5).factor()
    assert replay is not None
    assert [replay(step, 4) for step in range(4)] == [0.2, 0.2, 0.1, 0.1]


def test_allr_is_scaled_by_what_was_pruned() -> None:
    model = net()
    method = SparseModelSoup(0.5, 1, 1, retrain=Retrain("allr", warmup=0))
    (phase, *_) = list(zip(method.phases(model), [0]))  # noqa: B905
    rate = phase[0].options["lr_factor"](0, 10)
    dense, pruned = net(), net()
    prune(pruned, 0.5)
    a, b = (torch.cat([w.flatten() for w in masked_weights(m).values()]) for m in (dense, pruned))
    d1 = float(((a - b).norm() / a.norm() / 0.5**0.5).detach())
    assert rate == pytest.approx(max(d1, 0.1), rel=1e-3)


def test_bad_candidates_are_refused(tmp_path: Path) -> None:
    a = {"conv.weight": torch.tensor([[1.0, 0.0, 2.0]]), "conv.bias": torch.zeros(1)}
    invalid: dict[str, tuple[Any, str]] = {
        "mask": (
            {"conv.weight": torch.tensor([[0.0, 3.0, 2.0]])},
            "they differ in 2 places of conv",
        ),
        "shape": ({"conv.weight": torch.ones(1, 4)}, r"shape \(1, 3\) and \(1, 4\)"),
        "dtype": ({"conv.weight": a["conv.weight"].half()}, "type torch.float32 and torch.float16"),
        "name": ({"head.weight": torch.ones(1, 1)}, "1 names in one of them only, as head.weight"),
        "nan": ({"conv.weight": a["conv.weight"] * torch.nan}, "not finite"),
    }
    for change, says in invalid.values():
        with pytest.raises(ConfigError, match=says):
            intarsia.soup([a, a | change])
    with refused(ConfigError, what="soup"):
        intarsia.soup([a])
    for weights in ([1.0], [0.5, 0.6], [2.0, -1.0]):
        with refused(ConfigError, what="weights of a soup"):
            intarsia.soup([a, a], weights)
    for name, change in (("b", {}), ("c", invalid["mask"][0])):
        (tmp_path / name).mkdir()
        save_file(a | change, tmp_path / name / "model.safetensors")
    b, c = tmp_path / "b", tmp_path / "c"
    with refused(ConfigError, got="they differ in 2 places of conv"):
        intarsia.soup([b, c])
    assert same(intarsia.soup([b, b]), a)
    with refused(CheckpointError, got="no *.safetensors"):
        intarsia.soup([b, tmp_path])
    (c / "model.safetensors").write_bytes(b"x" * 40)
    with refused(CheckpointError, got=SafetensorError):
        intarsia.soup([b, c])


def test_settings_that_cannot_be_are_refused() -> None:
    wrong: list[dict[str, Any]] = [
        {"density": 0.0}, {"rounds": 0}, {"candidates": 0}, {"vary": "sead"}, {"pick": "best"},
        {"values": (1,)}, {"vary": "length"}, {"retrain": "clr"}, {"values": (1, "two", 3)},
        {"vary": "weight_decay", "values": (0, 1e-4, "1e-4x")},
        {"vary": "weight_decay", "values": (0, 1e-4, -1)},
        {"vary": "length", "values": (1, 2, 0)}, {"vary": "length", "values": (1, 2, math.nan)},
        {"vary": "retrain", "values": ("llr", "clr", "cosine")},
    ]  # fmt: skip
    for settings in wrong:  # before a candidate is trained
        with pytest.raises(ConfigError):
            SparseModelSoup(**settings)
    assert SparseModelSoup(vary="length", values=("1", 2, 0.5)).values == (1.0, 2.0, 0.5)
    with refused(ConfigError, what="kind", got="'linear'"):
        Retrain("linear")


def test_models_are_candidates_too() -> None:
    models = [net(seed=s) for s in (0, 0)]
    prune(models[0], 0.5)
    prune(models[1], 0.5)
    for seed, model in enumerate(models):
        fit(model, rows(), schedule=FixedMask(), **with_({"seed": seed}))
    models[0] = intarsia.soup(models)
    assert masks(models[0].state_dict()).keys() == {"0.weight", "2.weight"}
    assert same(*(masks(m.state_dict()) for m in models))


def test_each_soup_counts_the_statistics_of_its_batch_norms_again() -> None:
    averaged: list[Tensor] = []

    class Ended:
        model = net(norm=True)

        def recalibrate(self, _: float) -> None:
            averaged.append(self.model.state_dict()["0.weight"].clone())

    first, second = net(norm=True, seed=1), net(norm=True, seed=2)
    states, members, distances = [copied(first)], list[tuple[int, ...]](), list[float]()
    Ended.model.load_state_dict(second.state_dict())
    SparseModelSoup(candidates=2)._average_candidates(
        Ended(),  # pyright: ignore[reportArgumentType]
        states=states, members_of_rounds=members, distances=distances, last=True,
    )  # fmt: skip
    want = (first.get_parameter("0.weight") + second.get_parameter("0.weight")) / 2
    assert len(averaged) == 1 and torch.allclose(averaged[0], want) and members == [(0, 1)]


def test_weights_of_one_size_move_by_all_that_a_round_prunes() -> None:
    """ALLR's distance is relative to the share of what was left that goes: 1 in each round."""
    model = net()
    with torch.no_grad():
        for weight in masked_weights(model).values():
            weight.copy_(torch.where(weight > 0, 1.0, -1.0))
    retrain = Retrain("allr", share=0.01, warmup=0)
    method = SparseModelSoup(density=0.25, rounds=2, candidates=1, retrain=retrain)
    rates = [phase.options["lr_factor"](0, 10) for phase in method.phases(model)]
    assert rates == pytest.approx([1, 1])
