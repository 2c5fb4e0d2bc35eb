"""What the shells complete is what the verbs take, and costs no import of torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import timm
import typer

from intarsia.cli import app, completing, early
from intarsia.core.registry import keys

MAIN = "from intarsia.cli import main; main()"


def completed(shell: str, line: str) -> tuple[list[str], bool]:
    """The words that a shell is given for a line, and whether torch was imported for it."""
    env = os.environ | {"_INTARSIA_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
    env |= {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    env |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    words = [sys.executable, "-X", "importtime", "-c", MAIN]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    heavy = any(line.split()[-1] == "torch" for line in done.stderr.splitlines() if line.split())
    return done.stdout.split("\n"), heavy


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_a_method_without_torch(shell: str) -> None:
    found, heavy = completed(shell, "intarsia fit elpv --method mosa")
    assert any("mosa" in line for line in found) and not heavy


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("intarsia fit elpv --model vit_small_patch14_dinov2", "vit_small_patch14_dinov2"),
        ("intarsia fit fash", "fashion-mnist"),
        ("intarsia fit elpv --method mosa --set over", "over="),
        ("intarsia compare elpv --methods linear,lor", "linear,lora"),
        ("intarsia export runs/x --format o", "onnx"),
    ],
)
def test_values_are_completed(line: str, word: str) -> None:
    found, heavy = completed("bash", line)
    assert word in found and not heavy


def test_every_word_that_is_offered_is_taken() -> None:
    assert {key for key, _ in completing.methods("")} == {
        k for kind in early.RUN for k in keys(kind)
    }
    assert {*early.BACKBONES, *timm.list_models()} >= set(completing.models("vit_"))
    assert set(completing.models("")) >= {*early.BACKBONES, *timm.list_models("resnet*")}


def test_every_option_of_words_is_completed() -> None:
    parameters = {p.name: p for p in typer.main.get_group(app).commands["fit"].params}
    for name in completing.OF_OPTION.keys() & parameters.keys():
        assert parameters[name]._custom_shell_complete is not None, name  # pyright: ignore
