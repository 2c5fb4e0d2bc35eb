"""Which runtime is the better choice: by time and quality together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from intarsia.formats import rivals as module
from intarsia.formats.rivals import Rivals, RuntimeFigures, advice, rivals
from intarsia.kernels import native


def table(*choices: RuntimeFigures, quality: str = "perplexity") -> Rivals:
    return Rivals("a net", "ms", quality, "do this", choices, "today", "an abacus")


FAST, GOOD = (
    RuntimeFigures("fast", None, 2.0, None, 30.0),
    RuntimeFigures("good", None, 5.0, None, 20.0),
)
OURS = RuntimeFigures("ours", "bitmask", 6.0, 1.0, 25.0)


def test_a_choice_is_better_in_both_or_not_at_all() -> None:
    assert table(FAST, OURS).better("bitmask") is None
    assert table(FAST, GOOD, OURS).better("bitmask") == (GOOD, OURS)
    assert table(GOOD, replace(OURS, ms=4.0)).better("bitmask") is None
    assert table(GOOD, OURS, quality="accuracy").better("bitmask") is None
    assert table(FAST, GOOD, OURS, quality="accuracy").better("bitmask") == (FAST, OURS)
    # of several of one format, that of the best quality counts
    worse = replace(OURS, ms=1.0, quality=90.0)
    assert table(GOOD, worse, OURS).better("bitmask") == (GOOD, OURS)
    assert table(GOOD, OURS).better("columns") is None
    # bits that were not measured have no figures
    eight = replace(OURS, bits=8)
    assert table(GOOD, eight).better("bitmask", 8) == (GOOD, eight)
    assert table(GOOD, eight).better("bitmask", 4) is None


def test_an_unknown_quality_leaves_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = replace(OURS, quality=None)
    assert table(FAST, GOOD, blind).better("bitmask") == (FAST, blind)
    assert table(replace(FAST, quality=None), OURS).better("bitmask") is None
    monkeypatch.setattr(module, "rivals", lambda _: table(FAST, blind))
    line = advice("text", "bitmask")
    assert line is not None and "the faster choice" in line and "against 25" not in line


def test_the_published_table_gives_lines_with_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, form in (("text", "bitmask"), ("picture", "chw")):
        better, line = rivals(kind).better(form), advice(kind, form)
        assert (line is None) == (better is None)
        assert line is None or rivals(kind).command in line
    monkeypatch.setattr(native, "instructions", lambda: "an abacus")
    line = advice("picture", "chw")
    assert line is None or "here: an abacus" in line
