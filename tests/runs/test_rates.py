"""A learning rate for each method: equal trials, kept, on validation alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from intarsia.core.errors import ConfigError, TrainingError
from intarsia.core.store import Store
from intarsia.runs import rates
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.runs.matrix import PlannedRun, apart_from_rates, planned
from intarsia.runs.rates import RateSearch
from intarsia.train import Training

from ..toys import quiet

BEST = {"bitfit": 3e-2, "lora": 3e-3, "bottleneck": 1e-3}


class Fake:
    """Trials whose accuracy falls with the distance from each method's best rate.

    n: pictures of the validation part.  fails: methods that always fail.  stop: the number of the
    trial at which Ctrl-C comes.
    """

    def __init__(self, n: int = 200, fails: tuple[str, ...] = (), stop: int | None = None) -> None:
        self.n, self.fails, self.stop = n, fails, stop
        self.ran: list[dict[str, Any]] = []

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if len(self.ran) == self.stop:
            raise KeyboardInterrupt
        flat = inputs["experiment"]
        self.ran.append({**flat, "test": inputs["test"]})
        if flat["method"] in self.fails:
            raise ValueError("no memory")
        right = 0.9 - 0.1 * abs(math.log10(flat["lr"] / BEST[flat["method"]]))
        val = {"accuracy": right, "loss": 1.0}
        results = {"val": val, "seconds": 1.0}
        return {"results": results, "sizes": {"val": self.n}, "lines": []}

    def trials(self, method: str) -> set[tuple[float, int]]:
        return {(trial["lr"], trial["seed"]) for trial in self.ran if trial["method"] == method}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return use(monkeypatch, Fake())


def use(monkeypatch: pytest.MonkeyPatch, fake: Fake) -> Fake:
    # a piece of several trials is tried one by one
    monkeypatch.setattr(rates, "run", fake)
    monkeypatch.setattr(rates, "shape_of", lambda *_, **__: "")
    return fake


def plan(
    out: Path, *methods: str, seeds: tuple[int, ...] = (0, 1), **settings: Any
) -> list[PlannedRun]:
    start = Experiment(Pictures("photos"), training=Training(epochs=1)).changed(**settings)
    return planned(start, methods or tuple(BEST), seeds, {}, out)


def found(runs: list[PlannedRun]) -> dict[str, float | None]:
    return {run.method: run.experiment.training.lr for run in runs}


def test_each_method_gets_its_own_rate_after_as_many_trials(fake: Fake, tmp_path: Path) -> None:
    runs = RateSearch().find(plan(tmp_path), tmp_path, quiet)
    assert found(runs) == BEST and len(runs) == 6
    # one grid for all, which grew at both ends: for bitfit to .1, for bottleneck to 3e-4
    grid = {3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1}
    assert all(
        fake.trials(method) == {(rate, seed) for rate in grid for seed in (100, 101)}
        for method in BEST
    )
    assert not any(trial["test"] for trial in fake.ran)
    search = runs[0].search
    assert search is not None
    assert search["rates"] == sorted(grid) and search["samples"] == 200 and search["draws"] == 2
    assert search["rate"] == 3e-2 and not search["limit"] and search["measure"] == "accuracy"
    assert max(search["scores"]) == search["scores"][search["rates"].index(3e-2)]
    assert runs[0].trial({}, quiet=True).inputs["search"] == search
    # a probe's features are computed once
    assert not (tmp_path / "rates").exists()


def test_a_search_that_was_stopped_goes_on_and_one_that_ended_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unstopped = use(monkeypatch, Fake())
    want = found(RateSearch().find(plan(tmp_path / "a"), tmp_path / "a", quiet))
    out = tmp_path / "b"
    first = use(monkeypatch, Fake(stop=7))
    with pytest.raises(KeyboardInterrupt):
        RateSearch().find(plan(out), out, quiet)
    second = use(monkeypatch, Fake())
    assert found(RateSearch().find(plan(out), out, quiet)) == want
    assert len(first.ran) + len(second.ran) == len(unstopped.ran)
    third = use(monkeypatch, Fake())
    runs = RateSearch().find(plan(out, seeds=(0, 1, 2)), out, quiet)
    assert found(runs) == want and not third.ran  # other seeds, the same search


@pytest.mark.parametrize(("n", "draws"), [(150, 2), (149, 3), (3, 3)])
def test_a_small_validation_part_is_drawn_several_times(
    n: int, draws: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = use(monkeypatch, Fake(n))
    runs = RateSearch().find(plan(tmp_path, "lora", seeds=(100, 7)), tmp_path, quiet)
    seeds = [seed for seed in range(100, 105) if seed != 100][:draws]  # that no run has
    assert fake.trials("lora") == {(r, s) for r in (1e-3, 3e-3, 1e-2) for s in seeds}
    assert runs[0].search is not None and runs[0].search["draws"] == draws


def test_a_text_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(monkeypatch, Fake(3))
    text = tmp_path / "notes.txt"
    text.write_text("a b c")
    RateSearch().find(plan(tmp_path, "lora", data=str(text)), tmp_path, quiet)
    assert {seed for _, seed in fake.trials("lora")} == {100}


def test_a_rate_at_the_limit_of_the_search_is_marked(fake: Fake, tmp_path: Path) -> None:
    search = RateSearch((1e-3, 3e-3), reach=(1e-3, 1e-2))
    runs = search.find(plan(tmp_path, "bitfit", "lora"), tmp_path, quiet)
    assert found(runs) == {"bitfit": 1e-2, "lora": 3e-3}
    assert [r.search["limit"] for r in runs[:2] if r.search] == [True, False]


def test_a_method_whose_rate_is_given_is_not_searched_for(fake: Fake, tmp_path: Path) -> None:
    start = Experiment(Pictures("photos"))
    settings, fixed = apart_from_rates({"lora": ["lr=0.5", "rank=4"], "bitfit": ["lr=1e-4"]})
    assert settings == {"lora": ["rank=4"]} and fixed == {"lora": 0.5, "bitfit": 1e-4}
    runs = planned(start, ["bitfit", "lora", "bottleneck"], [0], settings, tmp_path, fixed)
    runs = RateSearch().find(runs, tmp_path, quiet, fixed)
    assert found(runs) == {"bitfit": 1e-4, "lora": 0.5, "bottleneck": 1e-3}
    assert not fake.trials("lora") and [run.search is None for run in runs] == [True, True, False]
    fake.ran.clear()
    only = planned(start, ["lora"], [0], settings, tmp_path / "x", {"lora": 0.5})
    assert RateSearch().find(only, tmp_path / "x", quiet, fixed) == only and not fake.ran


def test_a_search_needs_a_validation_part(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        RateSearch().find(plan(tmp_path, val=0), tmp_path, quiet)
    assert refused.value.got == "--val 0" and "--lr" in refused.value.fix and not fake.ran


@pytest.mark.parametrize(
    "grid", [(), (1e-3,), (1e-3, 1e-3), (1e-3, 0.0), (1e-3, 2.0), (1, math.nan)]
)
def test_a_grid_that_cannot_be(grid: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError) as refused:
        RateSearch(grid)
    assert "two or more different rates" in str(refused.value.want)


def test_a_method_whose_every_trial_failed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = use(monkeypatch, Fake(fails=("lora",)))
    with pytest.raises(TrainingError) as refused:
        RateSearch().find(plan(tmp_path), tmp_path, quiet)
    assert "lora: " in str(refused.value.got) and "no memory" in str(refused.value.got)
    tried = [trial["lr"] for trial in failing.ran if trial["method"] == "lora"]
    assert len(tried) == 2 * len(
        set(tried)
    )  # at two draws; no failed trial is repeated as the grid grows
    rows = Store(tmp_path, "searches.jsonl").rows.values()
    assert sum("val" in row for row in rows) == 24  # what the others tried is kept
    fake = use(monkeypatch, Fake())
    assert found(RateSearch().find(plan(tmp_path), tmp_path, quiet)) == BEST
    assert {trial["method"] for trial in fake.ran} == {"lora"}


def test_runs_of_another_comparison_are_refused_before_the_search(
    fake: Fake, tmp_path: Path
) -> None:
    from intarsia.runs import experiment

    (tmp_path / "lora-0").mkdir()
    (planned_run,) = plan(tmp_path, "lora", seeds=(0,), epochs=7, lr=0.5)
    experiment.save(planned_run.experiment, tmp_path / "lora-0")
    with pytest.raises(ConfigError) as refused:
        RateSearch().find(plan(tmp_path, "lora"), tmp_path, quiet)
    assert refused.value.got == "a run with epochs=7" and not fake.ran  # the rate may differ


def test_a_probe_that_is_fitted_to_convergence_has_no_rate(fake: Fake, tmp_path: Path) -> None:
    runs = RateSearch().find(plan(tmp_path, "linear", "lora"), tmp_path, quiet)
    assert found(runs) == {"linear": None, "lora": 3e-3} and not fake.trials("linear")
    alone = plan(tmp_path / "alone", "linear")
    assert RateSearch().find(alone, tmp_path / "alone", quiet) == alone
