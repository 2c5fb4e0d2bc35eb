"""What is refused before torch is imported is what the library would refuse."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from intarsia.bench.profiles import PROFILES
from intarsia.bench.protocols import PROTOCOLS
from intarsia.cli import early
from intarsia.core.errors import ConfigError, DataError, UnknownName
from intarsia.data import corpora, sets, suites, texts
from intarsia.data.transforms import Augment
from intarsia.experiments.settings import HEADS
from intarsia.train import OBJECTIVES
from intarsia.train.settings import PRECISIONS

from .conftest import Intarsia


def test_the_lists_are_those_of_the_library() -> None:
    assert set(early.SETS) == set(sets.names())
    assert set(early.CORPORA) == set(corpora.names())
    assert set(early.SUITES) == set(suites.MODULES)
    assert set(early.TEXTS) == set(texts.SUFFIXES)
    library = {
        "augment": get_args(Augment),
        "precision": PRECISIONS,
        "objective": (*OBJECTIVES, HEADS),
        "suite": tuple(suites.MODULES),
        "profile": tuple(p.name for p in PROFILES),
        "protocol": tuple(p.name for p in PROTOCOLS),
    }
    assert {n: set(words) for n, words in early.CHOICES.items()} == {
        n: set(words) for n, words in library.items()
    }


@pytest.mark.parametrize("spec", ["elpv", "mini/elpv", "vtab-1k/joint@train+val", "austen", "."])
def test_data_that_may_exist_are_let_through(spec: str) -> None:
    early.check_data(spec)


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("elpw", UnknownName, "Did you mean elpv"),
        ("vtab/cifar", UnknownName, "unknown suite"),
        ("photos/none", DataError, "nothing there"),
        ("answers.jsonl", DataError, "nothing there"),
    ],
)
def test_data_that_cannot_be_are_refused(spec: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        early.check_data(spec)


@pytest.mark.parametrize(
    "given",
    [{"objective": "two_pass:add=1"}, {"objective": "task_heads+two_pass"}, {"precision": None}],
)
def test_words_with_settings_and_words_left_out_are_let_through(given: dict[str, object]) -> None:
    early.check_choices(given)


def test_a_word_that_is_none_of_an_option_is_refused() -> None:
    with pytest.raises(UnknownName, match="Did you mean two_pass"):
        early.check_choices({"objective": "two_pas:add=1"})


def test_a_method_is_named_by_its_key_or_by_its_paper() -> None:
    said: list[str] = []
    assert early.method_key("lora", said.append) == "lora" and not said
    assert early.method_key("official", said.append) == "official" and not said
    assert early.method_key("Split & Merge", said.append) == "mosa"
    assert said == ["Method 'Split & Merge' is mosa."]
    with pytest.raises(UnknownName):
        early.method_key("RMoE", said.append)  # a router, which is no method of a run


def test_settings_are_held_against_the_index() -> None:
    early.check_settings("mosa", ["over.bottleneck=16", "experts=4"])
    early.check_settings("peft-dora", ["r=8"])  # PEFT's own are known to PEFT
    with pytest.raises(UnknownName, match="unknown setting of 'mosa'.*Did you mean experts"):
        early.check_settings("mosa", ["expert=4"])


def test_a_run_is_a_folder(tmp_path: Path) -> None:
    early.check_run(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        early.check_run(tmp_path / "none")


def test_fit_says_which_method_a_name_stands_for(intarsia: Intarsia) -> None:
    said = intarsia("fit", "elpv", "--method", "LT-SFT", "--set", "nosuch=1")
    assert "Method 'LT-SFT' is lt_sft." in said.err and "unknown setting of 'lt_sft'" in said.words
