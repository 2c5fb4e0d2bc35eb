"""The run folder explains itself; the bar and the trackers say what happens."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import CLASSES, host, pictures
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from intarsia import Mosa, adapt, load
from intarsia.adapters import Bottleneck
from intarsia.core.errors import ConfigError, MissingExtra, TrainingError
from intarsia.core.sealing import sha256
from intarsia.core.store import append_line
from intarsia.data.loaders import ImageTensors
from intarsia.fitting import fit
from intarsia.train import evaluate, progress, two_pass
from intarsia.train.folder import Log, owned
from intarsia.train.precision import learned_state
from intarsia.train.record import describe, item_numbers, parameter_counts

from ..refusals import refused

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "lr": 1e-2}


def vit() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=1, embed_dim=32, num_heads=2,
            num_classes=CLASSES,
        )  # fmt: skip


def large(count: int, seed: int = 0) -> TensorDataset:
    x, y = pictures(count, seed).tensors
    return TensorDataset(x.repeat_interleave(4, 2).repeat_interleave(4, 3), y)


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json", "state"])
def test_a_link_in_a_run_folder_leads_nowhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "victim.txt")
    with refused(ConfigError, got=f"a link in it, {name}"), owned(tmp_path / "run", True):
        pass
    with pytest.raises(TrainingError):  # a link that comes later is not followed, either
        Log(tmp_path / "run" / name).open(0)
    with pytest.raises(TrainingError):
        append_line(tmp_path / "run" / name, {"a": 1})
    assert (tmp_path / "victim.txt").read_text() == "mine"


def test_a_run_leaves_a_folder_that_says_everything(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    model = adapt(vit(), Mosa(over=Bottleneck(4, activation="gelu")))
    run = fit(
        model, large(40), large(20, 1), test=large(20, 2), out=out, objective=two_pass,
        record={"source": Path("x"), "classes": ("a", "b")}, **QUICK,
    )  # fmt: skip
    assert {p.name for p in out.iterdir()} == {
        "README.txt", "adapter", "metrics.jsonl", "predictions.safetensors", "run.json",
        "state", "tensorboard",
    }  # fmt: skip
    for name in ("run.json", "metrics.jsonl", "adapter", "predictions.safetensors", "state"):
        assert name in (out / "README.txt").read_text()
    record = json.loads((out / "run.json").read_text())
    weights = out / "adapter" / "adapter_model.safetensors"
    assert record.pop("sha256")["files"][f"adapter/{weights.name}"] == sha256(weights)
    assert record == json.loads(json.dumps(dict(run.record)))
    assert record.keys() == {
        "format", "command", "started", "method", "parameters", "objective", "training", "recipe",
        "running", "data", "machine", "versions", "record", "results", "task",
    }  # fmt: skip
    assert record["method"]["adapters"]["default"]["method"] == "mosa"
    assert record["data"]["test"]["n"] == 20 and len(record["data"]["train"]["sha256"]) == 64
    assert record["record"] == {"source": "x", "classes": ["a", "b"]}
    assert run.test is not None and record["results"]["test"] == run.test.scores()
    assert record["results"]["peak_bytes"]["resident"] > 2**20
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert tuple(lines) == run.history
    assert [line["split"] for line in lines] == [
        *["train"] * 5,
        "val",
        *["train"] * 5,
        "val",
        "test",
    ]
    assert lines[0].keys() == {
        "step", "epoch", "split", "lr", "loss", "accuracy", "task", "divergence", "seconds",
    }  # fmt: skip
    assert [line["epoch"] for line in lines[:7]] == [1] * 6 + [2]
    with safe_open(out / "predictions.safetensors", "pt") as file:
        assert file.metadata()["split"] == "test"
    tensors = load_file(out / "predictions.safetensors")
    assert torch.equal(tensors["logits"], run.test.logits)
    assert torch.equal(tensors["items"], item_numbers(large(20, 2)))  # pyright: ignore
    again = load(vit(), out / "adapter")
    assert evaluate(again, large(20, 2)).scores() == run.test.scores()
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == list(range(1, 11))
    assert [e.step for e in events.Scalars("val/accuracy")] == [5, 10]


def test_a_sample_has_one_number_in_every_set() -> None:
    images = large(20)
    numbers = item_numbers(images)
    assert numbers is not None and len(set(numbers.tolist())) == 20 and int(numbers.min()) >= 0
    part = item_numbers(Subset(images, [7, 3]))
    assert part is not None and part.tolist() == numbers[[7, 3]].tolist()
    numbered = ImageTensors(*images.tensors, digests=[f"{i % 5}" for i in range(20)])
    by_digest = item_numbers(numbered)  # by the pictures, not by what was computed of them
    assert by_digest is not None and torch.equal(by_digest[:5], by_digest[5:10])
    assert item_numbers(TextFiles()) is None


class TextFiles(Dataset[Any]):
    """Samples that nothing is known of without reading them."""

    def __len__(self) -> int:
        return 3


def test_a_model_that_is_no_peft_model_saves_what_it_learned(tmp_path: Path) -> None:
    model = host()
    fit(model, pictures(16), out=tmp_path, trackers=(), **QUICK)
    tensors = load_file(tmp_path / "adapter" / "trained.safetensors")
    state = learned_state(model)
    assert tensors.keys() == state.keys() and "blocks.0.mlp.0.weight" not in tensors
    assert all(torch.equal(tensors[name], value) for name, value in state.items())
    assert not (tmp_path / "predictions.safetensors").exists()
    assert not (tmp_path / "tensorboard").exists()


def test_parameters_are_counted_with_and_without_the_head() -> None:
    model = adapt(vit(), Bottleneck(4))
    counts = parameter_counts(model)
    head = 32 * CLASSES + CLASSES
    assert counts["trained"] - counts["trained_without_head"] == head
    assert counts["trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts["all"] > counts["trained"]


def test_functions_are_described_by_name() -> None:
    from functools import partial

    assert describe(two_pass) == "two_pass"
    assert describe(partial(two_pass, reg=0.5)) == {"name": "two_pass", "reg": 0.5}
    assert describe(nn.ReLU()) == "ReLU"
    first, second = (describe(nn.Linear(2, 2)) for _ in range(2))
    assert first["name"] == "Linear" and first["sha256"] != second["sha256"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_the_bar_shows_scores_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    stream = Terminal() if terminal else io.StringIO()
    console = Console(file=stream, width=120, force_terminal=terminal)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    fit(host(), pictures(16), pictures(8, seed=1), **QUICK)
    output = stream.getvalue()
    assert bool(output) == terminal
    if terminal:
        assert "epoch 2/2" in output and "4/4" in output and "val accuracy" in output


def test_trackers_that_are_not_installed_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert progress.tracker_names(None, tmp_path) == []
    with refused(MissingExtra, what="optional dependency 'tensorboard'"):
        progress.tracker_names(["tensorboard"], tmp_path)
    with refused(ConfigError, what="tracker 'wandb'"):
        progress.tracker_names(["wandb"], tmp_path)


def test_a_resumed_run_purges_what_tensorboard_had_beyond(tmp_path: Path) -> None:
    def stop(_model: object, step: int, _steps: int) -> None:
        if step == 7 and not done:
            done.append(step)
            raise EOFError

    done: list[int] = []
    settings = QUICK | {"schedule": stop, "checkpoint_steps": 5, "out": tmp_path}
    with pytest.raises(EOFError):
        fit(host(), pictures(40), **settings)
    time.sleep(1.1)  # event files are read in the order of their names, which count in seconds
    fit(host(), pictures(40), resume=True, **settings)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == list(range(1, 11))


def test_csv_beside_tensorboard_forgets_what_a_killed_run_wrote(tmp_path: Path) -> None:
    def stop(_model: object, step: int, _steps: int) -> None:
        if step == 7 and not done:
            done.append(step)
            raise EOFError

    done: list[int] = []
    settings = QUICK | {"schedule": stop, "checkpoint_steps": 5, "out": tmp_path}
    settings |= {"trackers": ["csv", "tensorboard"]}
    with pytest.raises(EOFError):
        fit(host(), pictures(40), **settings)
    run = fit(host(), pictures(40), resume=True, **settings)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["name"] == "train/loss"]
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert [float(row["value"]) for row in rows] == [line["loss"] for line in run.history]
    assert any((tmp_path / "tensorboard").iterdir())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of mlflow's database
@pytest.mark.parametrize("trackers", [("wandb",), ("mlflow",), ("wandb", "mlflow", "tensorboard")])
def test_trackers_work_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trackers: tuple[str, ...]
) -> None:
    for name in trackers:
        pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    run = fit(
        host(), pictures(40), **(QUICK | {"trackers": [*trackers, "csv"], "out": tmp_path / "r"})
    )
    assert (tmp_path / "r" / "metrics.csv").is_file() and run.test is None
    assert "wandb" not in trackers or any((tmp_path / "r" / "wandb").glob("offline-run-*"))


def test_a_tracker_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no account")

    monkeypatch.setattr(progress.Accelerator, "init_trackers", refuse)
    with refused(ConfigError, what="tracker tensorboard"):
        fit(host(), pictures(40), **(QUICK | {"trackers": ["tensorboard"], "out": tmp_path}))


def test_a_folder_that_was_deleted_during_the_run_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingError) as caught, owned(out, False):
        shutil.rmtree(out)
        (out / "adapter").mkdir(parents=True)  # as writing the results does
    assert caught.value.what == f"run folder {out}"
    assert str(out / "adapter") in caught.value.fix
    with owned(tmp_path / "other", False):
        (tmp_path / "other" / "adapter").mkdir()
