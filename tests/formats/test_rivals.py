"""Which choice is better: by time and quality together, or by quality alone."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from intarsia.formats import rivals as module
from intarsia.formats.rivals import (
    TIMES,
    Rivals,
    RuntimeFigures,
    TimedRun,
    advice,
    record,
    rivals,
)
from intarsia.kernels import native


def run(*choices: RuntimeFigures, day: str = "today", quality: str = "perplexity") -> TimedRun:
    return TimedRun(day, "an abacus", "beads", "count.py", quality, choices)


def table(*choices: RuntimeFigures, quality: str = "perplexity") -> Rivals:
    return Rivals("a net", "ms", "do this", (run(*choices, quality=quality),))


FAST, GOOD = (
    RuntimeFigures("fast", None, 2.0, None, 30.0),
    RuntimeFigures("good", None, 5.0, None, 20.0),
)
OURS = RuntimeFigures("ours", "bitmask", 6.0, 1.0, 25.0)
COMMAND = "intarsia compress MODEL --format blockint --bits 4"
INT4 = RuntimeFigures("int4", "blockint", 4.0, 1.0, 20.0, bits=4, command=COMMAND)
GROUPS = RuntimeFigures("groups", "gqsa", 1.0, 1.0, 20.0 * TIMES + 1, bits=4, density=0.5)


def faster(choices: Rivals, format: str, bits: int | None = None) -> object:
    better = choices.better(format, bits)
    return better and (better.choice, better.ours)


def test_a_choice_is_better_in_both_or_not_at_all() -> None:
    assert faster(table(FAST, OURS), "bitmask") is None
    assert faster(table(FAST, GOOD, OURS), "bitmask") == (GOOD, OURS)
    assert faster(table(GOOD, replace(OURS, ms=4.0)), "bitmask") is None
    assert faster(table(GOOD, OURS, quality="accuracy"), "bitmask") is None
    assert faster(table(FAST, GOOD, OURS, quality="accuracy"), "bitmask") == (FAST, OURS)
    # of several of one format, that of the best quality counts
    worse = replace(OURS, ms=1.0, quality=90.0)
    assert faster(table(GOOD, worse, OURS), "bitmask") == (GOOD, OURS)
    assert faster(table(GOOD, OURS), "columns") is None
    # bits that were not measured have no figures
    eight = replace(OURS, bits=8)
    assert faster(table(GOOD, eight), "bitmask", 8) == (GOOD, eight)
    assert faster(table(GOOD, eight), "bitmask", 4) is None


def test_a_format_of_ours_is_a_choice_where_a_command_writes_it() -> None:
    assert faster(table(INT4, OURS), "bitmask") == (INT4, OURS)
    assert faster(table(replace(INT4, command=""), OURS), "bitmask") is None
    assert faster(table(INT4), "blockint") is None, "it is no choice instead of itself"


def test_figures_of_two_runs_are_not_compared() -> None:
    apart = replace(table(OURS), runs=(run(OURS), run(GOOD, day="yesterday")))
    assert faster(apart, "bitmask") is None
    # the newest run with the format counts
    older = replace(apart, runs=(run(FAST), run(GOOD, OURS)))
    assert faster(older, "bitmask") == (GOOD, OURS)


def test_a_format_beyond_twice_the_loss_of_dense_4_bits_is_of_no_use() -> None:
    small = table(FAST, INT4, GROUPS)
    assert small.runs[0].faster(GROUPS) is None, "nothing is faster and as good"
    better = small.better("gqsa", 4, 0.5)
    assert better is not None and (better.choice, better.ours) == (INT4, GROUPS)
    # fewer weights are no better, more may be
    assert small.better("gqsa", 4, 0.3) is not None
    assert small.better("gqsa", 4, 0.75) is None
    # of a density that was measured no larger one counts
    more = table(INT4, replace(GROUPS, quality=21.0, density=0.75), GROUPS)
    assert more.better("gqsa", 4, 0.5) is not None and more.better("gqsa", 4, 0.6) is None
    # dense 4 bits are ours, also where another runtime's are better
    other = replace(INT4, name="Q4", format=None, ms=9.0, quality=15.0)
    better = table(other, INT4, GROUPS).better("gqsa", 4, 0.5)
    assert better is not None and better.choice == INT4
    assert table(INT4, replace(GROUPS, quality=20.0 * TIMES)).better("gqsa") is None
    assert table(FAST, GROUPS).better("gqsa") is None, "no dense 4 bits in the run"
    assert table(INT4, replace(GROUPS, quality=None)).better("gqsa") is None
    assert table(INT4, GROUPS, quality="accuracy").better("gqsa") is None


def test_the_line_names_the_dense_choice_and_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "rivals", lambda _: table(FAST, INT4, GROUPS))
    line = advice("text", "gqsa", 4, 0.5)
    assert line is not None and "groups has perplexity 41" in line and "int4 20" in line
    assert COMMAND in line
    assert advice("text", "gqsa", 4, 0.9) is None and advice("text", "blockint", 4, 1.0) is None
    # the fastest of ours is judged where no format is named
    assert advice("text") == line
    four_bits = replace(INT4, name="Q4", format=None, command="")
    monkeypatch.setattr(module, "rivals", lambda _: table(four_bits, GROUPS))
    assert (line := advice("text", "gqsa")) is not None and line.endswith("do this")


def test_an_unknown_quality_leaves_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = replace(OURS, quality=None)
    assert faster(table(FAST, GOOD, blind), "bitmask") == (FAST, blind)
    assert faster(table(replace(FAST, quality=None), OURS), "bitmask") is None
    monkeypatch.setattr(module, "rivals", lambda _: table(FAST, blind))
    line = advice("text", "bitmask")
    assert line is not None and "the faster choice" in line and "against 25" not in line


def test_the_published_table_gives_lines_with_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, form in (("text", "bitmask"), ("picture", "chw")):
        better, line = rivals(kind).better(form), advice(kind, form)
        assert (line is None) == (better is None)
        assert better is None or (better.choice.command or rivals(kind).command) in str(line)
    # half of the groups, untrained, is measured to be of no use
    line = advice("text", "gqsa", 4, 0.5)
    assert line is not None and "--format blockint --bits 4" in line
    monkeypatch.setattr(native, "instructions", lambda: "an abacus")
    line = advice("picture", "chw")
    assert line is None or "here: an abacus" in line


def test_a_new_run_takes_the_place_of_those_that_it_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rivals.json"
    file.write_text(json.dumps({"text": asdict(table(FAST, OURS, INT4)), "picture": {}}))
    monkeypatch.setattr(module, "FILE", file)
    rivals.cache_clear()
    try:
        record("text", run(GOOD, OURS, day="tomorrow"))
        days = [entry.day for entry in rivals("text").runs]
        assert days == ["tomorrow", "today"], "int4 is in the older run alone"
        record("text", run(INT4, OURS, day="after"))
        assert [entry.day for entry in rivals("text").runs] == ["after"]
    finally:
        rivals.cache_clear()
