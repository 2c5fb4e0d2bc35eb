"""The commands stand in groups, and three of them are named to begin with."""

from __future__ import annotations

import re
import shlex
from typing import Any

import typer

from intarsia.cli import app
from intarsia.cli.groups import GROUPS, OTHERS, TO_BEGIN_WITH, group_of
from intarsia.core.plugins import LABORATORY

from .conftest import Intarsia

GROUP: Any = typer.main.get_group(app)


def test_every_command_stands_in_one_group() -> None:
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted(GROUP.list_commands(None)) and len({*names}) == len(names)
    assert group_of("fit") == "Adapt" and group_of("of another distribution") == OTHERS


def test_the_help_shows_the_groups_in_order(intarsia: Intarsia) -> None:
    out = intarsia("--help").out
    places = [out.index(f"─ {group} ─") for group in GROUPS]
    assert places == sorted(places) and "─ Commands ─" not in out
    # what an install of the library alone does not have is marked in both lists
    assert out.count("(laboratory)") == len(LABORATORY)
    assert f"pip install ./lab): {', '.join(LABORATORY)}." in intarsia().out


def test_a_flag_has_no_type_in_the_help(intarsia: Intarsia) -> None:
    for words in ((), ("compress",), ("codec",), ("codec", "encode")):
        out = intarsia(*words, "--help").out
        assert "--help" in out and "<bool>" not in out


def test_the_program_alone_names_groups_and_commands_to_begin_with(intarsia: Intarsia) -> None:
    overview = intarsia()
    assert overview.code == 0
    lines = overview.out.splitlines()
    assert max(map(len, lines)) <= 100
    for group, names in GROUPS.items():
        assert any(line.split() == [*group.split(), *", ".join(names).split()] for line in lines)
    for command in TO_BEGIN_WITH:
        assert command in overview.out
        program, name, *words = shlex.split(command)
        assert program == "intarsia"
        # The parser alone: nothing runs.
        GROUP.get_command(None, name).make_context(name, words)


def test_the_first_panel_of_fit_has_the_options_of_a_first_hour(intarsia: Intarsia) -> None:
    panels = intarsia("fit", "--help").out.split("╭─ ")
    (first,) = [panel for panel in panels if panel.startswith("Options ")]
    options = re.findall(r"^│ (--[\w-]+)", first, re.M)
    assert {"--model", "--method", "--epochs", "--lr", "--images", "--out"} <= {*options}
    assert len(options) <= 12 and len(panels) > 8
