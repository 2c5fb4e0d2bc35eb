"""What stands under *Run it* on a method's page runs, alone, as it stands."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

from intarsia.catalog import cards, describe
from intarsia_lab.pages.methods import page
from intarsia_lab.pages.running import command, program

METHODS = {
    described["name"]: described for card in cards() if "doc" in (described := describe(card))
}
PROGRAMS = {name: text for name, described in METHODS.items() if (text := program(described))}
COMMAND_ALONE = {"inference_free", "m2trec", "onerec"}


def test_every_method_has_a_program_or_a_command() -> None:
    assert METHODS.keys() - PROGRAMS.keys() == COMMAND_ALONE
    assert all(command(METHODS[name]) for name in COMMAND_ALONE)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_short_and_names_its_method(name: str) -> None:
    statements = ast.parse(PROGRAMS[name]).body
    imports = [s for s in statements if isinstance(s, ast.Import | ast.ImportFrom)]
    assert 2 <= len(statements) - len(imports) <= 6 and len(PROGRAMS[name].splitlines()) <= 16
    assert all(len(line) <= 100 for line in PROGRAMS[name].splitlines())
    assert f"{METHODS[name]['python']}(" in PROGRAMS[name]
    assert f"```python\n{PROGRAMS[name]}\n```" in page(METHODS[name])


@pytest.mark.thorough
@pytest.mark.filterwarnings(  # toys: random weights, and few of them
    "ignore::intarsia.gating.load.CollapseWarning", "ignore:90% of the groups:UserWarning"
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_as_it_stands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "program.py"
    file.write_text(PROGRAMS[name])
    runpy.run_path(str(file))
