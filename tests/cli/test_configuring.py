"""`--config`, `--device` and `--quiet`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from intarsia.cli import configuring
from intarsia.cli.configuring import read_config, with_config
from intarsia.core.errors import CheckpointError, ConfigError, UnknownName
from intarsia.core.quiet import QUIET, kept_quiet, quiet
from intarsia.train.processes import device_named

from ..refusals import refused
from .conftest import QUICK, TINY, Intarsia
from .test_fit import weights


@pytest.mark.parametrize("name", ["run.json", "experiment.json", "."])
def test_a_runs_own_file_repeats_it(
    intarsia: Intarsia, run: Path, tmp_path: Path, name: str
) -> None:
    result = intarsia("fit", "--config", run / name, "--tracker", "csv", "--out", tmp_path / "r")
    assert result.code == 0, result.err
    ours, theirs = weights(run), weights(tmp_path / "r")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_given_overrides_the_file_and_is_said(
    intarsia: Intarsia, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.json").write_text('{"data": "nosuch", "epochs": 1, "method": "linear"}')
    result = intarsia("fit", "--config", tmp_path / "own.json", "--epochs", "2")
    assert (
        result.code == 2 and "--epochs 2 in place of 1 of" in result.err and "nosuch" in result.err
    )
    result = intarsia("fit", "--config", run, "--resume", "--out", run)
    assert result.code == 2 and "it alone" in result.words


def test_a_toml_file_has_the_same_options(intarsia: Intarsia, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        f"""data = "{folder}"  # pictures
method = "lora"
settings = ["rank=2"]
model = "test_vit"
pretrained = false
size = 32
epochs = 1
lr = 1e-2
images = 0.5
"""
    )
    result = intarsia("fit", "--config", file, "--batch-size", "8", "--out", tmp_path / "r")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "r" / "experiment.json").read_text())
    assert record["settings"] == ["rank=2"] and record["lr"] == 1e-2 and record["images"] == 0.5


@pytest.mark.parametrize(
    ("name", "text", "error", "got"),
    [
        ("own.toml", "epochs = ", CheckpointError, None),
        ("own.toml", "a" + ".a" * 10_000 + " = 1", CheckpointError, None),
        ("own.toml", "a = " + "[" * 100_000, CheckpointError, None),
        ("own.toml", 'epochs = "3"', ConfigError, "'3'"),
        ("own.toml", "epochs = 2026-11-29", ConfigError, None),
        ("own.yaml", "epochs: 3", ConfigError, "YAML"),
        ("own.YML", "epochs: 3", ConfigError, "YAML"),
    ],
)
def test_toml_is_checked_as_json_is_and_yaml_is_refused(
    tmp_path: Path, name: str, text: str, error: type[ConfigError], got: str | None
) -> None:
    (tmp_path / name).write_text(text)
    with refused(error, **({} if got is None else {"got": got})):
        read_config(tmp_path / name)


def test_settings_go_with_their_method() -> None:
    notes, file = list[str](), Path("own.json")
    config = {"method": "mosa", "settings": ["experts=4"], "epochs": 3}

    def read(words: set[str], **options: object) -> dict[str, object]:
        notes.clear()
        defaults = {"settings": None, "method": "mosa", "epochs": 20}
        return with_config(file, defaults | options, words, notes.append)[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configuring, "read_config", lambda _: dict(config))
        changed = read({"method"}, method="lora")
        assert changed["settings"] is None and changed["epochs"] == 3
        assert any("Without --set experts=4 of own.json, which is for mosa" in t for t in notes)
        repeated = read({"method", "settings"}, method="lora", settings=["rank=4"])
        assert repeated["settings"] == ["rank=4"] and "--set" in " ".join(notes)
        for typed in ({"method"}, {"epochs"}):
            assert read(typed)["settings"] == ["experts=4"] and "Without" not in " ".join(notes)


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("{", CheckpointError, "a JSON object"),
        ("[]", ConfigError, "the options of a run"),
        ('{"epoch": 3}', UnknownName, "Did you mean epochs"),
        ('{"epochs": "3"}', ConfigError, "want a whole number"),
        ('{"lr": true}', ConfigError, "want nothing or a number"),
        ('{"settings": "experts=4"}', ConfigError, "several with commas"),
        ('{"record": {}}', ConfigError, "in its program"),
    ],
)
def test_a_file_that_cannot_be(
    tmp_path: Path, text: str, error: type[Exception], says: str
) -> None:
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(error, match=says):
        read_config(tmp_path / "own.json")


def test_quiet_says_results_only(intarsia: Intarsia, folder: Path, tmp_path: Path) -> None:
    words = ("fit", folder, *TINY, *QUICK, "--method", "linear")
    plain = intarsia(*words, "--out", tmp_path / "a")
    result = intarsia("--quiet", *words, "--out", tmp_path / "b")
    assert result.code == 0 and result.err == "" and "accuracy" in result.out
    assert "Training" in plain.err and not quiet()
    assert "unknown method" in intarsia("-q", "show", "nosuch").err


def test_quiet_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(QUIET, "0")
    with kept_quiet():
        assert quiet()
    assert not quiet()


def test_a_run_on_a_named_device(intarsia: Intarsia, folder: Path, tmp_path: Path) -> None:
    words = ("fit", folder, *TINY, *QUICK, "--method", "linear", "--out", tmp_path / "r")
    result = intarsia(*words, "--device", "cpu")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "r" / "run.json").read_text())["running"]["device"] == "cpu"
    assert intarsia("evaluate", tmp_path / "r", "--device", "cpu").code == 0


def test_a_device_that_is_not_there(
    intarsia: Intarsia, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    result = intarsia("fit", folder, *TINY, "--device", f"cuda:{count}", "--out", tmp_path / "r")
    assert result.code == 2 and f"'cuda:{count}'" in result.words and "one of cpu" in result.words
    assert not (tmp_path / "r").exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_named("cuda:1") == torch.device("cuda", 1)
    assert device_named("cpu") == torch.device("cpu")
    with refused(ConfigError, what="device", got="'cuda:2'"):
        device_named("cuda:2")
