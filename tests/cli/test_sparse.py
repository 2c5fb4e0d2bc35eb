"""`sparsify`, `convert` and `fit --schedule` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
)

import intarsia as intarsia_lib

from ..language_models import plain_text
from .conftest import QUICK, TINY, Intarsia


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(plain_text())
    return file


def test_a_model_is_pruned_saved_packed_and_converted(
    intarsia: Intarsia, llama: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("sparsify", str(llama), "--calib", str(text), "--rows", "8", "--length", "64")
    result = intarsia(*arguments, "--method", "dsnot", "--out", str(out), "--errors", "--json")
    assert result.code == 0, result.err
    assert result.json["density"] == pytest.approx(0.5, abs=0.01)
    assert "block 2/2 model.layers.1 density 0.500" in result.words
    record = json.loads((out / "sparsify.json").read_text())
    assert record["calibration"]["rows"] == 8 and len(record["layers"]) == 14
    assert all(row["error_masked"] > 0 and row["error"] > 0 for row in record["layers"])
    assert record["perplexity"]["pruned"] != record["perplexity"]["dense"] > 1
    parts = record["parts"]
    assert parts["kept values"] + parts["bitmasks"] == record["bytes"]["bitmask"]
    assert parts["kept values"] + parts["zeros left out"] == record["bytes"]["dense"]
    page = tmp_path / "page.html"
    said_too = intarsia("report", str(out), "--out", str(page), "--json")
    assert said_too.code == 0 and said_too.json["models"][0]["method"] == "dsnot"
    assert "dsnot on wanda" in page.read_text()
    assert not (tmp_path / "out.walk").exists()
    # the same again: its own folder is replaced, also by one of another layout
    few = ("--test", "0", "--method", "magnitude", "--out", str(tmp_path / "twice"))
    for layout in ("bitmask", "dense"):
        twice = intarsia(*arguments, *few, "--layout", layout)
        assert twice.code == 0 and "Next:  intarsia " in twice.out, twice.err
    assert "intarsia compress" in twice.out
    (tmp_path / "twice" / "notes.txt").write_text("theirs")
    refusal = intarsia(*arguments, *few)
    assert refusal.code == 2 and "other files in it" in refusal.words
    pruned = AutoModelForCausalLM.from_pretrained(out)
    assert float((pruned.model.layers[0].mlp.up_proj.weight == 0).float().mean()) == 0.5
    packed, again = tmp_path / "packed", tmp_path / "again"
    assert intarsia("convert", str(out), "--out", str(packed), "--layout", "bitmask").code == 0
    back = intarsia("convert", str(packed), "--out", str(again))
    assert back.code == 0 and "already" not in back.err
    copied = intarsia("convert", str(again), "--out", str(tmp_path / "same"))
    assert copied.code == 0 and "are dense already" in copied.err
    state = AutoModelForCausalLM.from_pretrained(again).state_dict()
    assert all(torch.equal(t, state[n]) for n, t in pruned.state_dict().items())
    assert (packed / "sparse.safetensors").stat().st_size < (
        out / "model.safetensors"
    ).stat().st_size


def test_what_is_left_is_trained_with_the_zeros_kept(
    intarsia: Intarsia, llama: Path, text: Path, tmp_path: Path
) -> None:
    words = ("sparsify", str(llama), "--calib", str(text), "--rows", "8", "--length", "64")
    words = (*words, "--test", "2", "--pattern", "2:4")
    assert intarsia(*words, "--out", str(tmp_path / "pruned")).code == 0
    result = intarsia(*words, "--recover", "0.01", "--out", str(tmp_path / "out"))
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "out" / "sparsify.json").read_text())
    assert record["recovery"]["minutes"] == 0.01 and record["recovery"]["steps"] >= 1
    values = record["perplexity"]
    assert all(f"{values[name]:.1f} {name}" in result.out for name in ("dense", "pruned"))
    assert f"{values['recovered']:.1f} recovered" in result.out
    assert f"of recovery in {record['recovery']['steps']} steps" in result.out
    # the zeros are those of the pruning; all other weights may have moved
    pruned, recovered = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("pruned", "out")
    )
    gates = [name for name in pruned if name.endswith("gate_proj.weight")]
    assert gates and all(
        torch.equal(pruned[name] == 0, recovered[name] == 0)
        and not torch.equal(pruned[name], recovered[name])
        for name in gates
    )
    page = tmp_path / "page.html"
    page_of_both = intarsia("report", str(tmp_path / "out"), "--out", str(page), "--json")
    assert page_of_both.code == 0, page_of_both.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recover", "0", "--out", "out"), "got 0"),
        (("--method", "wnada"), "got 'wnada'"),
        (("--density", "0"), "got 0"),
        (("--layout", "zip"), "UnknownChoice: --layout"),
        (("--rows", "3"), "got 3"),
        (("--calib", "elpv"), "got elpv"),
        ((), "got nothing"),
        (("--out", "."), "other files in it"),
    ],
)
def test_what_cannot_be_is_refused(
    intarsia: Intarsia, words: tuple[str, ...], message: str
) -> None:
    result = intarsia("sparsify", "smollm2", *words)
    assert result.code == 2 and message in result.words


def test_converting_nothing_is_refused(intarsia: Intarsia, tmp_path: Path) -> None:
    result = intarsia("convert", str(tmp_path / "no"), "--out", str(tmp_path / "new"))
    assert result.code == 2 and "nothing there" in result.words


def test_a_run_is_sparse_from_the_start(intarsia: Intarsia, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("fit", str(folder), *TINY, *QUICK, "--method", "full", "--out", str(out))
    result = intarsia(*arguments, "--schedule", "rigl:every=2", "--density", "0.25")
    assert result.code == 0, result.err
    record = json.loads((out / "run.json").read_text())
    masks, recipe = record["results"]["masks"], record["recipe"]
    assert masks["changes"] and all(0 < c["exchanged"] <= 0.3 for c in masks["changes"])
    ever = [change["ever"] for change in masks["changes"]]
    assert ever == sorted(ever) and ever[0] > 0.25
    page = tmp_path / "page.html"
    assert intarsia("report", str(out), "--out", str(page)).code == 0
    assert "full fine-tuning, RigL" in page.read_text() and "plot-masks" in page.read_text()
    assert recipe["schedule"]["name"] == "RigL" and recipe["schedule"]["density"] == 0.25
    # layers inside the blocks, and no others
    assert all(name.startswith("blocks.") for name in recipe["schedule"]["layers"])
    for words, message in (
        (("--schedule", "regl"), "Did you mean rigl?"),
        (("--density", "0.3"), "got it with no --schedule"),
        (("--schedule", "rigl:evry=3"), "evry"),
    ):
        result = intarsia("fit", str(folder), *TINY, *QUICK, *words, "--out", str(tmp_path / "no"))
        assert result.code == 2 and message in result.words, result.err


def test_a_training_with_n_of_m_weights_and_its_cycles(
    intarsia: Intarsia, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ("fit", str(folder), *TINY, *QUICK, "--method", "full", "--out", str(out))
    result = intarsia(*arguments, "--schedule", "bdwp:pattern=1:2")
    assert result.code == 0, result.err
    recipe = json.loads((out / "run.json").read_text())["recipe"]
    assert recipe["schedule"]["name"] == "Bdwp" and recipe["schedule"]["pattern"] == "1:2"
    weight = intarsia_lib.open_run(out).model.get_parameter("blocks.0.mlp.fc1.weight")
    assert float((weight != 0).float().mean()) == 0.5
    for words, message in (
        (("bdwp:pattern=3:2",), "3:2"),
        (("bdwp", "--density", "0.5"), "got it with bdwp"),
    ):
        no = ("--out", str(tmp_path / "no"), "--schedule")
        result = intarsia("fit", str(folder), *TINY, *QUICK, *no, *words)
        assert result.code == 2 and message in result.words, result.err
    result = intarsia("cycles", "test_vit", "--pattern", "1:4", "--json")
    record = json.loads(result.out)
    assert record["times"] == pytest.approx(record["dense"] / record["cycles"]) and record["layers"]
    result = intarsia("cycles", "test_vit", "--size", "32")
    assert result.code == 0 and "blocks.0.mlp.fc1" in result.out and "times as fast" in result.out


def test_a_sparse_model_follows_its_dense_one(
    intarsia: Intarsia, llama: Path, text: Path, tmp_path: Path
) -> None:
    pruned, run, student = (tmp_path / name for name in ("pruned", "run", "other"))
    arguments = ("sparsify", str(llama), "--method", "magnitude", "--calib", str(text))
    assert intarsia(*arguments, "--rows", "8", "--length", "32", "--out", str(pruned)).code == 0
    arguments = ("fit", str(text), "--model", str(pruned), "--method", "full", "--length", "32")
    arguments += ("--epochs", "1", "--batch-size", "8", "--images", "16", "--objective")
    sparse = ("--schedule", "fixed_mask", "--out")
    result = intarsia(*arguments, "squarehead:kl=0.5", "--teacher", str(llama), *sparse, str(run))
    assert result.code == 0, result.err
    record = json.loads((run / "run.json").read_text())
    assert record["objective"]["kl"] == 0.5
    assert record["objective"]["teacher"]["name"] == "LlamaForCausalLM"
    # a run may teach as well
    result = intarsia(*arguments, "squarehead", "--teacher", str(run), *sparse, str(student))
    assert result.code == 0, result.err
    out = ("--out", str(tmp_path / "merged"), "--json")
    result = intarsia("merge", str(run), str(student), *out)
    assert result.code == 0, result.err
    assert result.json["results"]["test"]["loss"] > 0
    for words in (("plain", "--teacher", str(llama)), ("squarehead",), ("squarehed",)):
        result = intarsia(*arguments, *words, "--out", str(tmp_path / "no"))
        assert result.code == 2
        assert "--teacher" in result.words or "Did you mean squarehead?" in result.words


def test_a_sparse_picture_model_follows_a_run(
    intarsia: Intarsia, folder: Path, tmp_path: Path
) -> None:
    dense, run = tmp_path / "dense", tmp_path / "run"
    arguments = ("fit", str(folder), *TINY, *QUICK, "--method", "full")
    assert intarsia(*arguments, "--out", str(dense)).code == 0
    arguments += ("--objective", "squarehead", "--teacher", str(dense))
    result = intarsia(
        *arguments, "--schedule", "gradual:every=1", "--density", "0.5", "--out", str(run)
    )
    assert result.code == 0, result.err
    assert '"feature"' in (run / "metrics.jsonl").read_text()
    result = intarsia(*arguments, "--frozen-once", "--out", str(tmp_path / "no"))
    assert result.code == 2 and "--frozen-once with it" in result.words


@pytest.mark.parametrize(
    "words", [("sparsify", "smollm2", "--out", "out"), ("convert", ".", "--out", "b")]
)
def test_a_layout_of_a_library_that_is_missing_is_refused_before_the_work(
    intarsia: Intarsia, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("intarsia.cli.sparsifying.find_spec", lambda name: None)
    result = intarsia(*words, "--layout", "pack-quantized")
    assert result.code == 2 and "pip install 'intarsia[hf-int4]'" in result.words
