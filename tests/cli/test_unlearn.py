"""`intarsia unlearn`: the text is forgotten, the folder opens, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ..language_models import plain_text
from .conftest import Intarsia


def test_a_text_is_unlearned(intarsia: Intarsia, mixture: Path, tmp_path: Path) -> None:
    a, b, out = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "out"
    a.write_text(plain_text(20))
    b.write_text("".join(f"and so on, {i} times over;\n" for i in range(40)))
    arguments = (
        "--forget",
        a,
        "--retain",
        b,
        "--rows",
        8,
        "--length",
        16,
        "--steps",
        5,
        "--lr",
        0.1,
    )
    result = intarsia("unlearn", mixture, *arguments, "--by", "lift", "--out", out, "--json")
    assert result.code == 0, result.err
    path, (layer, expert) = result.json["path"], result.json["at"]
    assert path[-1]["forget"] > path[0]["forget"] and "tokens" in result.json["doubts"][0]
    assert json.loads((out / "unlearn.json").read_text())["affinity"][layer][expert] > 0
    old, new = (AutoModelForCausalLM.from_pretrained(folder) for folder in (mixture, out))
    second = 1 - layer
    for name, weight in old.state_dict().items():
        if f"layers.{layer}.mlp" not in name:
            assert torch.equal(new.state_dict()[name], weight), name
    assert f"layers.{second}.mlp.gate.weight" in str(list(old.state_dict()))
    options = ("--at", f"{layer},{expert}", "--loss", "ga", "--out", tmp_path / "two")
    result = intarsia("unlearn", mixture, *arguments, *options)
    assert result.code == 0 and f"expert {expert} of layer {layer}" in result.out, result.err
    assert result.out.rstrip().endswith("two")  # the folder that was written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--loss", "nop"), "Did you mean npo"),
        (("--by", "left"), "Did you mean lift"),
        (("--out", "out"), "--loss ga"),
        (("--retain", "elpv", "--out", "out"), "a corpus"),
        (("--loss", "ga", "--at", "3", "--out", "out"), "--at 3,7"),
        (("--loss", "ga", "--steps", "0", "--out", "out"), "at least 1"),
        (("--loss", "ga"), "--out out"),
        (("--loss", "ga", "--out", "out"), "language model"),
    ],
)
def test_what_cannot_be_is_refused(
    intarsia: Intarsia,
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    result = intarsia("unlearn", "nothing", "--forget", "austen", *words)
    assert result.code == 2 and message in result.words


def test_a_missing_file_is_told_before_what_else_is_missing(intarsia: Intarsia) -> None:
    result = intarsia("unlearn", "model", "--forget", "nothing.jsonl")
    assert result.code == 2 and "nothing.jsonl" in result.words
