"""The measure of names, summaries and comments, and the ratchet that holds them."""

from __future__ import annotations

import ast
import json
import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "words.py"))
SAMPLE = '''
class Route:
    """What a token takes."""

    def choose(self, found, width):
        """Choose the experts."""
        # the largest score wins
        told, score = found  # noqa: F841
        return [one for one in score]
'''


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setitem(SCRIPT["measure"].__globals__, "ROOT", tmp_path)
    (tmp_path / "sample.py").write_text(SAMPLE)
    return SCRIPT["measure"](tmp_path)


def test_names_summaries_and_comments_are_counted(words: object) -> None:
    assert words.vague == ["sample.py:5 found", "sample.py:8 told", "sample.py:9 one"]  # pyright: ignore
    assert words.weak == ["sample.py:2 What a token takes."]  # pyright: ignore
    assert (words.names, words.summaries, words.comments) == (6, 2, 1)  # pyright: ignore


def test_a_share_may_only_get_better() -> None:
    before = {"vague names": 2.0, "weak summaries": 3.0, "comments": 4.0}
    assert not SCRIPT["worse"](before, before)
    assert SCRIPT["worse"]({**before, "vague names": 2.2}, before) == [
        "vague names 2.2, recorded 2.0"
    ]
    assert SCRIPT["worse"]({**before, "comments": 3.5}, before)
    assert SCRIPT["better"]({"comments": 3.5, "vague names": 1.0}, before) == {
        "comments": 4.0,
        "vague names": 1.0,
    }


def test_every_folder_has_a_record() -> None:
    names = {str(path.relative_to(SCRIPT["ROOT"])) for path in SCRIPT["folders"]()}
    assert json.loads(SCRIPT["RECORD"].read_text()).keys() == names


def test_names_of_comprehensions_and_lambdas_count() -> None:
    names = [name for _, name in SCRIPT["stored_names"](ast.parse("f = lambda a: [b for b in a]"))]
    assert sorted(names) == ["a", "b", "f"]
