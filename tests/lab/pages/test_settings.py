"""What is generated from the fields of settings is what they say, now."""

from __future__ import annotations

from pathlib import Path

from intarsia.core.schema import options_of
from intarsia.runs.experiment import GROUPS
from intarsia.train.settings import Running, keywords
from intarsia_lab.pages.settings import ONLY_COMMAND_LINE, OPTIONS, options_text, page

DOCS = Path(__file__).parents[3] / "docs"
STALE = "run: make generate"


def test_the_keywords_of_fit_are_those_of_the_fields() -> None:
    assert OPTIONS.read_text() == options_text(), STALE
    assert all(f"    {name}: " in options_text() for name in keywords(Running()))


def test_the_page_has_every_option() -> None:
    text = page()
    assert (DOCS / "settings.md").read_text() == text, STALE
    for item, _ in options_of(*GROUPS, Running, *ONLY_COMMAND_LINE):
        assert f"| `{item.name}` |" in text
