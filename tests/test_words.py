"""The measure of names, summaries and comments, and the ratchet that holds them."""

from __future__ import annotations

import ast
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from intarsia.cli import app
from intarsia.cli.groups import HOMES

ROOT = Path(__file__).parents[1]
WORKSHOP = re.compile(
    r"\b(bars?|floors?|walks?|kept cells?|naive twins?|told apart|workshop)\b", re.IGNORECASE
)
# a picture's bars, the coding papers' data of bars, and a function of mathematics
ALLOWED = re.compile(
    r"progress bar|with a bar and the time|A bar is the standard|bars: ±|bars and|prosper-bars|"
    r"noise \(bars|error bars?|bars data|nine of ten bars|drawn bars|signed bars|bars of \|",
    re.IGNORECASE,
)
# what happened, and papers' own symbols
INTERNAL = ("docs/log", "docs/claims", "docs/methods", "docs/pictures")
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "words.py"))
SAMPLE = '''
class Route:
    """What a token takes."""

    def choose(self, found, width):
        """Choose the experts."""
        # the largest of those of a row wins
        told, score = found  # noqa: F841
        return [one for one in score]
'''


def pages() -> Iterator[Path]:
    """Yield the pages that users read."""
    yield ROOT / "README.md"
    for page in sorted((ROOT / "docs").rglob("*.md")):
        if not str(page.relative_to(ROOT)).startswith(INTERNAL):
            yield page


def helps() -> dict[str, str]:
    """Return the help of every command, with that of its options."""
    group: Any = typer.main.get_group(app)
    texts: dict[str, str] = {}
    for name in HOMES:
        command = group.get_command(None, name)
        options = (getattr(option, "help", None) or "" for option in command.params)
        texts[f"intarsia {name}"] = "\n".join((command.help or "", *options))
    return texts


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setitem(SCRIPT["measure"].__globals__, "ROOT", tmp_path)
    (tmp_path / "sample.py").write_text(SAMPLE)
    return SCRIPT["measure"](tmp_path)


def test_names_summaries_and_comments_are_counted(words: object) -> None:
    assert words.vague == ["sample.py:5 found", "sample.py:8 told", "sample.py:9 one"]  # pyright: ignore
    assert words.weak == ["sample.py:2 What a token takes."]  # pyright: ignore
    assert (words.names, words.summaries, words.comments) == (6, 2, 1)  # pyright: ignore
    assert (words.words, words.unsaid) == (13, 1)  # pyright: ignore


def test_a_share_may_only_get_better() -> None:
    before = {"vague names": 2.0, "weak summaries": 3.0, "comments": 4.0}
    assert not SCRIPT["worse"](before, before)
    assert SCRIPT["worse"]({**before, "vague names": 2.2}, before) == [
        "vague names 2.2, recorded 2.0"
    ]
    assert SCRIPT["worse"]({**before, "comments": 3.5}, before)
    assert SCRIPT["worse"]({"phrases": 8.5}, {"phrases": 3.0})
    assert not SCRIPT["worse"]({"phrases": 7.5}, {"phrases": 3.0})
    assert SCRIPT["better"]({"comments": 3.5, "vague names": 1.0}, before) == {
        "comments": 4.0,
        "vague names": 1.0,
    }


def test_every_folder_has_a_record() -> None:
    names = {str(path.relative_to(SCRIPT["ROOT"])) for path in SCRIPT["folders"]()}
    assert json.loads(SCRIPT["RECORD"].read_text()).keys() == names


def test_a_declared_setting_is_a_description_and_no_code() -> None:
    text = (
        'class A:\n    rank: int = setting(\n        8, "The rank r."\n    )\n    plain: int = 1\n'
    )
    assert SCRIPT["declaration_lines"](ast.parse(text)) == 3


def test_names_of_comprehensions_and_lambdas_count() -> None:
    names = [name for _, name in SCRIPT["stored_names"](ast.parse("f = lambda a: [b for b in a]"))]
    assert sorted(names) == ["a", "b", "f"]


def test_no_page_and_no_help_speaks_the_language_of_the_workshop() -> None:
    texts = {str(page.relative_to(ROOT)): page.read_text() for page in pages()} | helps()
    misspelt = {
        name: words
        for name, text in texts.items()
        if (words := WORKSHOP.findall(ALLOWED.sub("", text)))
    }
    assert not misspelt


def test_words_of_the_workshop_are_found() -> None:
    assert WORKSHOP.findall("both are told apart by a walk; the bars and the floor") == [
        "told apart",
        "walk",
        "bars",
        "floor",
    ]
