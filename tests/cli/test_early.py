"""What is refused before torch is imported is what the library would refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import pytest

from intarsia.cli import early, names
from intarsia.cli.options import shared
from intarsia.cli.values import check_options
from intarsia.core import registry
from intarsia.core.errors import ConfigError, DataError, IntarsiaError, UnknownName
from intarsia.runs.experiment import FILE
from intarsia.train.settings import settle
from intarsia_lab.cli import names as lab_names
from intarsia_lab.cli import words

from ..refusals import refused
from .conftest import Intarsia

STALE = "run: make generate"


def test_the_names_are_those_of_the_library() -> None:
    """Compare them as sets: the next `make generate` sorts what two branches add."""
    for file, lists in ((registry.NAMES, names.names()), (words.NAMES, lab_names.names())):
        lines = names.text(lists).splitlines()
        assert set(file.read_text().splitlines()) == set(lines), STALE


def test_every_list_has_its_names() -> None:
    assert {"mosa", "stack-pairs"} <= set(words.EXPERIMENTS) and "mosa houlsby" in early.ARMS
    assert early.RECOMMENDERS["sessions"][0] == "m2trec" and len(early.RECOMMENDERS) == 2
    lists = (early.SETS, early.CORPORA, early.BACKBONES, early.FORMATS, early.QUANTS)
    ours = (words.ROUTERS, words.SUITES, words.PROFILES, words.PROTOCOLS)
    assert all((*lists, *ours, *early.RECOMMENDERS.values()))


@pytest.mark.parametrize("spec", ["elpv", "mini/elpv", "vtab-1k/joint@train+val", "austen", "."])
def test_data_that_may_exist_are_let_through(spec: str) -> None:
    early.check_data(spec)


@pytest.mark.parametrize(
    ("spec", "error", "got"),
    [
        ("elpw", UnknownName, "'elpw'"),
        ("vtab/cifar", UnknownName, "'vtab'"),
        ("photos/none", DataError, "nothing there"),
        ("answers.jsonl", DataError, "nothing there"),
        ("x" * 5000 + "/y", DataError, "nothing there"),
    ],
)
def test_data_that_cannot_be_are_refused(spec: str, error: type[Exception], got: str) -> None:
    with refused(error, got=got):
        early.check_data(spec)


def test_a_text_without_labels_is_refused_before_anything_is_imported(
    intarsia: Intarsia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("a line\n" * 9)
    monkeypatch.setitem(sys.modules, "intarsia.runs.choosing.auto", None)
    for data in (str(tmp_path / "notes.txt"), "austen"):
        result = intarsia("auto", data)
        assert result.code == 2 and "got a text" in result.words
        assert "`intarsia fit`" in result.words


@pytest.mark.parametrize(
    "options",
    [{"objective": "two_pass:add=1"}, {"objective": "task_heads+two_pass"}, {"precision": None}],
)
def test_words_with_settings_and_words_left_out_are_let_through(options: dict[str, object]) -> None:
    check_options(options)


def test_a_word_that_is_none_of_an_option_is_refused() -> None:
    with refused(UnknownName, what="--objective", got="'two_pas'", near=("two_pass",)):
        check_options({"objective": "two_pas:add=1"})


def test_a_method_is_named_by_its_key_or_by_its_paper() -> None:
    messages: list[str] = []
    assert early.method_key("lora", messages.append) == "lora" and not messages
    assert early.method_key("official", messages.append) == "official" and not messages
    assert early.method_key("Split & Merge", messages.append) == "mosa"
    assert messages == ["Method 'Split & Merge' is mosa."]
    with pytest.raises(UnknownName):
        early.method_key("RMoE", messages.append)  # a router, which is no method of a run


def test_settings_are_held_against_the_index() -> None:
    early.check_settings("mosa", ["over.bottleneck=16", "experts=4"])
    early.check_settings("peft-dora", ["r=8"])  # PEFT's own are known to PEFT
    with refused(UnknownName, what="unknown setting of 'mosa'", got="'expert'", near=("experts",)):
        early.check_settings("mosa", ["expert=4"])


def test_a_run_is_a_folder(tmp_path: Path) -> None:
    with refused(ConfigError, got="an empty folder"):
        early.check_run(tmp_path)
    with refused(ConfigError, got="no such folder"):
        early.check_run(tmp_path / "none")
    (tmp_path / FILE).write_text("{}")
    early.check_run(tmp_path)


def test_fit_says_which_method_a_name_stands_for(intarsia: Intarsia) -> None:
    result = intarsia("fit", "elpv", "--method", "LT-SFT", "--set", "nosuch=1")
    assert (
        "Method 'LT-SFT' is lt_sft." in result.err and "unknown setting of 'lt_sft'" in result.words
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 0),
        ("accumulate", 3),
        ("lr", float("nan")),
        ("weight_decay", -1.0),
        ("seed", -1),
        ("warmup", 1.0),
        ("mixup", -0.1),
        ("cutmix", -0.1),
        ("smoothing", 1.0),
        ("clip", 0.0),
        ("workers", -1),
        ("patience", 0),
        ("select", "test"),
        ("class_weights", "a"),
        ("class_weights", "a=0"),
    ],
)
def test_a_number_is_refused_early_where_the_library_refuses_it(name: str, value: Any) -> None:
    options = {"batch_size": 32} | {name: value}
    with pytest.raises(IntarsiaError) as ours:
        check_options(options)
    with pytest.raises(IntarsiaError) as theirs:
        settle(None, cast(Any, options))
    assert (ours.value.want, ours.value.got) == (theirs.value.want, theirs.value.got)


def test_numbers_that_can_be_are_let_through() -> None:
    check_options({p.name: p.default for p in shared()} | {"class_weights": "a=1, b=2.5"})
    assert early.numbers("--seeds", "0, 2") == (0, 2)
    for text in ("", "a", "0;1"):
        with refused(ConfigError, what="--seeds"):
            early.numbers("--seeds", text)
