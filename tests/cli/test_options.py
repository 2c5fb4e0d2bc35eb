"""One rule for each option that commands share: a table of commands by options, held as a law."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from .conftest import Intarsia, commands

COMMANDS = dict(commands())
FILES = "it reads and writes files, and computes nothing"
OWN_MACHINE = "its products are those of this machine's CPU"
SAME_BITS = "both sides have to draw the same bits, which devices do not promise each other"
LISTS = "it prints what is known, and computes nothing"
# options, by the commands that have none, each with its reason
WITHOUT: Mapping[str, Mapping[str, str]] = {
    "--json": {"serve": "it answers by HTTP until it is stopped"},
    "--threads": {
        **dict.fromkeys(("blend", "convert", "offload", "report"), FILES),
        **dict.fromkeys(("list", "show"), LISTS),
        "search": "it looks a query's words up, and no model runs",
        "components": "it computes by numpy, whose library has its own OMP_NUM_THREADS",
        "place": "its solvers have threads of their own",
        "simulate": "it counts bytes and operations",
        "cycles": "it counts cycles",
        "demo": "each of its runs has one thread, and --jobs says how many at a time",
    },
    "--device": {
        **dict.fromkeys(("blend", "convert", "offload", "report"), FILES),
        **dict.fromkeys(("list", "show"), LISTS),
        **dict.fromkeys(("compress", "combine", "doctor", "serve", "spans"), OWN_MACHINE),
        **dict.fromkeys(("place", "simulate", "cycles"), "it computes about devices, not on them"),
        **dict.fromkeys(("codec encode", "codec decode", "codec train"), SAME_BITS),
        "components": "it computes by numpy",
        "export": "the exported file is compared where it runs, on the CPU",
        "index": "its encoder runs on the CPU, as sentence-transformers is told",
        "search": "no model runs",
        "recommend": "its tables are pages of a file",
        "reproduce": "an experiment names the device that it is about",
        "compare-routers": "its small models are compared on one CPU thread each",
    },
}
DRAWS = {"--rows", "--calibration", "--steps", "--epochs", "--images", "--crops", "--patches"}
FURTHER = {
    ("place", "--write"): "the model whose experts are put in order, beside the placement",
    ("place", "--sglang"): "the same placement once more, as SGLang reads it",
    ("components", "run"): "the model, which a later call draws again; --out is the picture",
}
START = re.compile(r"^[A-Z`'\"].*[.]$")
VAGUE = re.compile(
    r"^(Of|What|Whether|How|Which|That|Those|Where|As|Such|With|At|So|Also|Likewise|Other)\b"
)


def options(command: str) -> Mapping[str, Any]:
    """Return the options of a command by their long names, and -k."""
    params = [p for p in COMMANDS[command].params if p.param_type_name == "option"]
    return {max((*p.opts, *p.secondary_opts), key=len): p for p in params if not p.hidden}


def parameters() -> Iterator[tuple[str, str, Any]]:
    for command in COMMANDS:
        for parameter in COMMANDS[command].params:
            if parameter.name != "help" and not getattr(parameter, "hidden", False):
                yield command, max(parameter.opts or parameter.secondary_opts, key=len), parameter


@pytest.mark.parametrize("option", WITHOUT)
def test_an_option_is_everywhere_but_for_a_reason(option: str) -> None:
    without = {command for command in COMMANDS if option not in options(command)}
    assert without == WITHOUT[option].keys()


def test_all_that_a_command_writes_is_named_by_out() -> None:
    for command, name, parameter in parameters():
        if re.search(r"\bto write\b|^Write", parameter.help or ""):
            assert name == "--out" or (command, name) in FURTHER, (command, name)
    for command in COMMANDS:
        if (out := options(command).get("--out")) is not None:
            assert out.opts == ["--out", "-o"] and re.search(r"^The .*", out.help), command
    written = {"--save", "--page", "--to", "--output", "--report", "--run", "--dest"}
    assert not [c for c in COMMANDS if written & options(c).keys()]


def test_whoever_draws_has_a_seed() -> None:
    for command in COMMANDS:
        draws = DRAWS & options(command).keys()
        seeds = {"--seed", "--seeds"} & options(command).keys()
        assert len(seeds) <= 1 and (seeds or not draws), (command, draws)


def test_a_common_option_is_declared_once() -> None:
    """Every command that has a common option has it with the same help and short form."""
    for option in ("--json", "--threads", "--device", "--seed", "--length", "--max-pixels"):
        forms = {(p.help, tuple(p.opts)) for c in COMMANDS if (p := options(c).get(option))}
        assert len(forms) == 1, (option, forms)


def test_an_option_has_one_short_form() -> None:
    forms: dict[str, set[tuple[str, ...]]] = {}
    for command in COMMANDS:
        for name, parameter in options(command).items():
            short = tuple(o for o in parameter.opts if not o.startswith("--"))
            forms.setdefault(name, set()).add(short)
    assert not {name: short for name, short in forms.items() if len(short) > 1}


def test_size_is_pixels_and_length_is_tokens() -> None:
    units = {"--size": "pixels", "--length": "Tokens"}
    for option, unit in units.items():
        for command in COMMANDS:
            if (parameter := options(command).get(option)) is not None:
                assert unit in parameter.help, (command, parameter.help)


def test_a_help_says_what_the_value_is() -> None:
    texts = {(command, name): parameter.help or "" for command, name, parameter in parameters()}
    assert not {place: text for place, text in texts.items() if VAGUE.match(text)}
    assert not {place: text for place, text in texts.items() if not START.match(text)}


@pytest.mark.parametrize(
    ("words", "got"),
    [
        (("fit", "elpv", "--length", "64"), "64 for pictures"),
        (("fit", "austen", "--size", "64"), "64 for a text"),
        (("simulate", "t", "-o", "a.txt"), "one .json"),
        (("simulate", "t", "-o", "a.html", "-o", "b.html"), "one .json"),
        (("sparsify", "smollm2", "-o", "new", "--threads", "0"), "at least 1"),
        (("codec", "encode", "a.png", "--seed", "-1"), "0 ... "),
        (("trace", "m", "austen", "-o", "t", "--length", "1"), "at least 2"),
        (("trace", "m", "austen", "-o", "t", "--device", "gpu"), "'gpu'"),
    ],
)
def test_what_an_option_cannot_be_is_refused(
    intarsia: Intarsia, words: tuple[str, ...], got: str, tmp_path: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal = intarsia(*words)
    assert refusal.code == 2 and got in refusal.words, refusal.err
