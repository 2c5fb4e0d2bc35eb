"""What the shells complete is what the verbs take, and costs no import of torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import timm
import typer

from intarsia.cli import app, completing, early
from intarsia.cli.options import FIELDS
from intarsia.core.registry import keys
from intarsia.core.schema import METADATA

GROUP: Any = typer.main.get_group(app)
COMPLETED = """
import contextlib, io, json, os, sys
from intarsia.cli import main
asked, sys.argv = json.loads(sys.argv[1]), ["intarsia"]
found = []
for shell, line in asked:
    os.environ["_INTARSIA_COMPLETE"] = f"complete_{shell}"
    os.environ["_TYPER_COMPLETE_ARGS"] = os.environ["COMP_WORDS"] = line
    os.environ["COMP_CWORD"] = str(len(line.split(" ")) - 1)
    os.environ["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main()
    found.append(said.getvalue().split("\\n"))
print(json.dumps([found, "torch" in sys.modules]))
"""
METHOD = "intarsia fit elpv --method mosa"
WANTED = {
    "intarsia fit elpv --model vit_small_patch14_dinov2": "vit_small_patch14_dinov2",
    "intarsia fit fash": "fashion-mnist",
    "intarsia fit elpv --method mosa --set over": "over=",
    "intarsia fit ml-100k --task ranking --method ": "neumf",
    "intarsia fit ml-100k --task sessions --method o": "onerec",
    "intarsia compare elpv --methods linear,lor": "linear,lora",
    "intarsia export runs/x --format o": "onnx",
}


def test_a_shell_completes_methods_and_values_without_torch() -> None:
    """Complete all lines of all shells in one process, which must not import torch."""
    shells = ("bash", "zsh", "fish")
    pairs = [*((shell, METHOD) for shell in shells), *(("bash", line) for line in WANTED)]
    words = [sys.executable, "-c", COMPLETED, json.dumps(pairs)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    completions, heavy = json.loads(done.stdout)
    assert not heavy
    for shell, lines in zip(shells, completions, strict=False):
        assert any("mosa" in line for line in lines), shell
    for word, lines in zip(WANTED.values(), completions[len(shells) :], strict=True):
        assert word in lines


def test_every_word_that_is_offered_is_taken() -> None:
    assert set(completing.method_names("")) == {k for kind in early.RUN for k in keys(kind)}
    assert {*early.BACKBONES, *timm.list_models()} >= set(completing.models("vit_"))
    assert set(completing.models("")) >= {*early.BACKBONES, *timm.list_models("resnet*")}


def test_every_setting_with_words_of_its_own_is_completed() -> None:
    parameters = {p.name: p for p in GROUP.get_command(None, "fit").params}
    for name, (item, _) in FIELDS.items():
        declared = item.metadata[METADATA]
        if declared.choices or declared.offers or name in completing.OF_OPTION:
            assert parameters[name]._custom_shell_complete is not None, name


# verb, option: words that have to be among those it is offered
WORDS = {
    ("fit", "precision"): "bf16",
    ("fit", "objective"): "two_pass",
    ("fit", "schedule"): "fixed_mask",
    ("fit", "augment"): "crop",
    ("fit", "select"): "val",
    ("fit", "device"): "mps",
    ("fit", "class_weights"): "balanced",
    ("fit", "trackers"): "csv",
    ("fit", "plan"): "fssdp",
    ("fit", "task"): "sparse-retrieval",
    ("fit", "see"): "pixels",
    ("fit", "hear"): "log-mel",
    ("compare", "precision"): "bf16",
    ("auto", "precision"): "bf16",
    ("evaluate", "part"): "test",
    ("list", "family"): "pruning",
    ("list", "kind"): "adapter",
    ("list", "tag"): "linear",
    ("export", "form"): "gguf",
    ("export", "quant"): "q4_0",
    ("serve", "policy"): "lfu",
    ("serve", "dtype"): "bfloat16",
    ("serve", "engine"): "vllm",
    ("serve", "batching"): "none",
    ("simulate", "plan"): "tutel",
    ("simulate", "policy"): "belady",
    ("place", "by"): "eplb",
    ("compress", "format"): "gqsa",
    ("compress", "calib"): "mixed",
    ("sparsify", "method"): "wanda",
    ("sparsify", "base"): "magnitude",
    ("sparsify", "layout"): "bitmask",
    ("sparsify", "sequential"): "layer",
    ("convert", "layout"): "bitmask",
    ("unlearn", "loss"): "npo",
    ("unlearn", "by"): "lift",
    ("components", "model"): "gsc",
    ("index", "stored"): "uint8",
    ("index", "form"): "trec",
    ("generate", "dtype"): "auto",
    ("demo", "data"): "elpv",
}


@pytest.mark.parametrize(("verb", "name"), WORDS, ids=" ".join)
def test_a_word_of_a_closed_list_is_completed(verb: str, name: str) -> None:
    command = GROUP.get_command(None, verb)
    (option,) = (p for p in command.params if p.name == name)
    word = WORDS[verb, name]
    items = option.shell_complete(typer.Context(command), word[:-1])
    assert word in {item.value for item in items}
