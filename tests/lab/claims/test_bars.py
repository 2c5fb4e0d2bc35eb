"""A bar that was moved, seeds that were seen and a verdict that was taken back decide nothing."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from intarsia.core.errors import CheckpointError, ConfigError
from intarsia_lab.claims import bars, claims, ledger, standing, verdicts
from intarsia_lab.claims.verdicts import NOT_REPRODUCED, standing_of
from intarsia_lab.kit import (
    TIMED,
    Design,
    FixedRate,
    Missing,
    NoControl,
    Rates,
    Result,
    Study,
    TableArm,
    UnknownEffect,
    above,
    below,
)

from ...refusals import refused

PUBLISHED = Path(__file__).parents[3] / "docs" / "claims"
TIGHT = (0.58, 0.6, 0.62)  # above .5 and below .7; .6 lies inside their interval


def a_study(target=0.5, *, key="toy", baseline="theirs", control=None):
    control = control or NoControl("A toy.")
    return Study(key, "Ours is better.", baseline, target, ">=", lambda *_: a_result(), control)


def a_result(values=TIGHT):
    return Result(sum(values) / len(values), 0.0, tuple(values))


def a_bar(study):
    return bars.bar_of(study, "2026-01-01", "abc")


def a_run(values, study, seeds=(0, 1, 2)):
    line = {"line": "run", "claim": study.key, "date": "2026-01-01", "commit": "abc"}
    line |= {"statistic": study.baseline, "bound": study.bound, "seeds": list(seeds)}
    return line | {"figure": a_result(values).got, "values": list(values), "interval": None}


def word(study, lines=(), values=TIGHT, seeds=(0, 1, 2)):
    return standing_of(study, a_result(values), seeds, lines).word


@pytest.mark.parametrize("first", [0.7, 0.6, 0.4])
def test_a_figure_holds_only_by_every_bar_that_it_ever_had(first):
    lines = [a_bar(a_study(first)), a_run(TIGHT, a_study(first)), a_bar(a_study(0.5))]
    verdict = standing_of(a_study(0.5), a_result(), (0, 1, 2), lines)
    assert verdict.word == ("holds" if first < 0.5 else "not decided")
    if first > 0.5:
        assert verdict.reason.startswith(f"Its bar was moved: by >= {first:g}")


def test_a_raised_bar_makes_no_failure():
    lines = [a_bar(a_study(0.5)), a_run(TIGHT, a_study(0.5))]
    assert word(a_study(0.7), lines) == "not decided"
    assert word(a_study(0.7)) == NOT_REPRODUCED  # with one bar and no earlier figure


def test_seeds_are_spent_once():
    other = a_study(baseline="a weaker rival")
    lines = [a_bar(other), a_run((0.4, 0.5, 0.6), other)]
    assert word(a_study(), lines) == "not decided"
    # two fresh seeds of five: .61 and .63 decide, and the first three do not count
    values = (0.1, 0.2, 0.3, 0.61, 0.63)
    verdict = standing_of(a_study(), a_result(values), range(5), lines)
    assert verdict.word == "not decided" and verdict.reason.startswith("By its 2 seeds")
    values = (0.1, 0.2, 0.3, 0.610, 0.611)
    assert word(a_study(), lines, values, range(5)) == "holds"


def test_a_rerun_of_the_same_seeds_cannot_change_the_word():
    earlier = a_run((0.3, 0.5, 0.7), a_study())
    assert word(a_study(), [earlier]) == "not decided"
    assert word(a_study(), [a_run((0.59, 0.6, 0.61), a_study())]) == "holds"
    # a time is another sample in every run, and another look
    assert word(a_study(control=TIMED), [earlier]) == "not decided"
    assert word(a_study(control=TIMED), [earlier], (0.599, 0.6, 0.601)) == "holds"
    assert word(a_study(control=TIMED), [a_run((0.59, 0.6, 0.61), a_study())]) == "holds"


def test_all_looks_after_the_first_share_one_percent():
    levels = [verdicts.level_of(look) for look in range(1, 500)]
    assert levels[0] == 0.95 and levels == [levels[0], *sorted(levels[1:])]
    assert sum(1 - level for level in levels[1:]) <= 0.01
    # five seeds decided nothing: five fresh ones are held against 99.5 %, not against 95
    first = a_run((0.3, 0.4, 0.5, 0.6, 0.7), a_study(), range(5))
    fresh = (0.52, 0.56, 0.6, 0.64, 0.68)
    verdict = standing_of(a_study(), a_result((*first["values"], *fresh)), range(10), [first])
    assert a_study().word(a_result(fresh)) == "holds" and verdict.word == "not decided"
    assert "As look 2 it is judged at 99.50 %. At 95 % it holds" in verdict.reason
    assert word(a_study(), [first], (*first["values"], 0.6, 0.61, 0.6, 0.61, 0.6), range(10)) == (
        "holds"
    )
    # a rerun of what was decided is no new chance
    decided = a_run((0.6, 0.61, 0.6, 0.61, 0.6), a_study(), range(5))
    assert word(a_study(), [decided], (*decided["values"], *fresh), range(10)) == "holds"


def test_an_interval_over_items_decides_where_every_seed_is_fresh():
    easier = a_study(baseline="a weaker rival")
    lines = [a_bar(easier), a_run((0.6, 0.61, 0.62), easier)]
    of_items = dataclasses.replace(a_result(), items=(0.55, 0.65))
    assert standing_of(a_study(), of_items, (3, 4, 5), lines).word == "holds"
    # of some of its seeds nobody knows the interval
    verdict = standing_of(a_study(), of_items, (2, 3, 4), lines)
    assert verdict.word == "not decided" and verdict.reason.startswith("Its seeds were seen")


def test_the_worst_of_several_holds_by_the_interval_of_all_alone():
    study = a_study(key="dsl")  # one of two comparisons; its record has the lower one
    verdict = standing_of(study, a_result(), (0, 1, 2), [])
    assert verdict.word == "not decided" and "Only the worst" in verdict.reason
    low = (0.399, 0.4, 0.401)
    assert word(study, values=low) == NOT_REPRODUCED
    assert word(study, values=(0.38, 0.4, 0.45)) == "not decided"  # at 95 % it would fail
    of_all = dataclasses.replace(a_result(), items=(0.55, 0.7))
    assert standing_of(study, of_all, (0, 1, 2), []).word == "holds"


def a_headline(design, monkeypatch, *, rates=None, sentence="Ours is better."):
    study = dataclasses.replace(
        a_study(), system="Toys", effect=UnknownEffect("A toy."), rates=rates, sentence=sentence
    )
    monkeypatch.setitem(verdicts.DESIGNS, "toy", design)
    return study


TABLE = ({"arm": "ours", "score": "0.6"}, {"arm": "cheap", "score": "0.7"})
OURS, CHEAP = (TableArm(name, ("score",), {"arm": name}) for name in ("ours", "cheap"))
LOSES = above("Ours is above chance.", "score", 0.5, {"arm": "ours"})
WHOLE = Design(OURS, OURS, OURS, LOSES, "seeds", alike="A toy.")


@pytest.mark.parametrize(
    ("change", "lack"),
    [
        ({}, ""),
        ({"trivial": Missing("chance")}, "no trivial arm (chance)"),
        ({"strong": Missing("TF-IDF")}, "no strong cheap arm (TF-IDF)"),
        ({"strong": TableArm("EPLB", ("score",), {"arm": "EPLB"})}, "no row of EPLB"),
        ({"strong": CHEAP}, "no word in its sentence on cheap, which wins"),
        ({"sensitive": Missing("half")}, "no arm that must lose, or means that reaches the bar"),
        ({"sample": Missing("items")}, "an interval that leaves out items"),
        ({"alike": ""}, "no rate that each arm chose"),
    ],
)
def test_a_headline_decides_nothing_without_all_that_the_rules_want(change, lack, monkeypatch):
    study = a_headline(dataclasses.replace(WHOLE, **change), monkeypatch)
    result = dataclasses.replace(a_result(), table=TABLE)
    verdict = standing_of(study, result, (0, 1, 2), [])
    assert verdict.word == ("not decided" if lack else "holds") and lack in verdict.reason
    assert standing_of(a_study(), result, (0, 1, 2), []).word == "holds"  # no headline


def test_what_wins_is_named_and_each_arm_chooses_its_rate(monkeypatch):
    result = dataclasses.replace(a_result(), table=TABLE)
    named = a_headline(
        dataclasses.replace(WHOLE, strong=CHEAP), monkeypatch, sentence="Cheap wins."
    )
    assert standing_of(named, result, (0, 1, 2), []).word == "holds"
    steps = {"ours": 1, "cheap": 1}
    design = dataclasses.replace(WHOLE, alike="")
    rates = FixedRate(1e-3, steps)
    study = a_headline(design, monkeypatch, rates=rates)
    assert standing_of(study, result, (0, 1, 2), []).word == "not decided"
    assert "no rate" not in str(design.lacks(TABLE, Rates((1e-3, 1e-2, 1e-1), steps)))


def test_where_the_sensitive_arm_does_not_lose_the_figure_is_void(monkeypatch):
    must_lose = below("Cheap loses.", "score", 0.5, {"arm": "cheap"})
    study = a_headline(dataclasses.replace(WHOLE, sensitive=must_lose), monkeypatch)
    verdict = standing_of(study, dataclasses.replace(a_result(), table=TABLE), (0, 1, 2), [])
    assert verdict == ("void", "The control failed: Cheap loses.")


def test_a_headline_that_does_not_declare_its_rivals_is_no_claim(monkeypatch):
    study = dataclasses.replace(a_study(), system="Toys", effect=UnknownEffect("A toy."))
    with refused(ConfigError, what="headline toy", got="no row in papers.PAPERS"):
        ledger.check_declared(study)
    monkeypatch.setitem(ledger.PAPERS, "toy", ledger.PAPERS["mosa"])
    with refused(ConfigError, what="headline toy", got="no row in designs.DESIGNS"):
        ledger.check_declared(study)
    monkeypatch.setitem(ledger.DESIGNS, "toy", WHOLE)
    ledger.check_declared(study)
    with refused(ConfigError, what="what a claim misses"):
        Missing("")


def test_every_declared_arm_stands_in_the_published_table():
    keys = {c.key for c in claims() if c.system}
    assert set(ledger.PAPERS) == keys and set(ledger.DESIGNS) == keys - standing.CHECKS
    assert set(verdicts.COMPARISONS) <= {c.key for c in claims()}
    for key, design in ledger.DESIGNS.items():
        table = ledger.read(PUBLISHED / f"{key}.json").table
        assert "no row of" not in str(design.lacks(table, None)), key
        assert not design.failure(table), key


def test_no_line_of_the_ledger_ever_went():
    command = ["git", "log", "--numstat", "--format=", "--", f"docs/claims/{bars.NAME}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PUBLISHED.parents[1])
    if done.returncode:
        pytest.skip("not a checkout")
    assert all(line.split()[1] == "0" for line in done.stdout.splitlines() if line.strip())


def test_failing_is_kept_for_the_paper_s_own_regime():
    lower = (0.38, 0.4, 0.42)
    assert word(a_study(), values=lower) == NOT_REPRODUCED
    assert word(a_study(key="gaussian-moe"), values=lower) == "fails"
    assert word(a_study(key="qmoe-size"), values=lower) == "fails"


def test_what_was_taken_back_stays_so():
    assert {word(a_study(key=key)) for key in standing.WITHDRAWN} == {"withdrawn"}


def test_the_ledger_only_grows(tmp_path):
    bars.append(tmp_path, [a_bar(a_study()), a_bar(a_study(0.6))])
    bars.append(tmp_path, [a_bar(a_study(0.6)), a_run(TIGHT, a_study(0.6))])
    assert [line["line"] for line in bars.read_bars(tmp_path)] == ["bar", "bar", "run"]
    path = tmp_path / bars.NAME
    first, *rest = path.read_text().splitlines()
    for damaged in ([first.replace("0.5", "0.4"), *rest], rest, [first, *rest[1:]]):
        path.write_text("\n".join(damaged) + "\n")
        with refused(
            CheckpointError, fix="Put the lines back that were changed: the ledger only grows."
        ):
            bars.read_bars(tmp_path)


def test_every_target_of_today_and_every_record_is_in_the_ledger():
    lines = bars.read_bars(PUBLISHED)
    known = {bars.identity(line) for line in lines}
    missing = [c.key for c in claims() if bars.identity(a_bar(c)) not in known]
    assert not missing, "run `make generate`"
    runs = {(line["claim"], json.dumps(line["values"])) for line in lines if line["line"] == "run"}
    for path in PUBLISHED.glob("*.json"):
        record = ledger.read(path)
        assert (record.key, json.dumps(list(record.values))) in runs, path.name


def test_every_headline_says_what_it_is_evidence_of():
    keys, headlines = {c.key for c in claims()}, {c.key for c in claims() if c.system}
    named = [standing.CONTRASTS, standing.VARIANTS, standing.CHECKS]
    assert sum(len(names) for names in named) == len(frozenset.union(*named))
    assert headlines <= frozenset.union(*named) <= keys
    assert {*standing.OWN_REGIME, *standing.WITHDRAWN} <= keys


def test_a_run_is_published_by_its_ledger(tmp_path):
    study = a_study(0.5)
    record = ledger.publish(study, ledger.run_claim(study), tmp_path)
    assert record.verdict == "holds" and ledger.read(tmp_path / "toy.json") == record
    lowered = dataclasses.replace(study, target=0.4)
    assert ledger.publish(lowered, ledger.run_claim(lowered), tmp_path).verdict == "holds"
    raised = dataclasses.replace(study, target=0.6)
    assert ledger.publish(raised, ledger.run_claim(raised), tmp_path).verdict == "not decided"
    assert len(bars.read_bars(tmp_path)) == 6


def test_no_record_without_a_clean_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "commit", lambda: "abc+")
    ledger.refuse_uncommitted(tmp_path)  # elsewhere nobody takes it for a published one
    with refused(ConfigError, what="--out"):
        ledger.refuse_uncommitted(PUBLISHED)
    monkeypatch.setattr(ledger, "commit", lambda: "abc")
    ledger.refuse_uncommitted(PUBLISHED)


def test_figures_of_the_areas_are_those_of_the_records():
    signals = (PUBLISHED.parent / "areas" / "signals.md").read_text()
    record = ledger.read(PUBLISHED / "prosper-bars.json")
    ours = [r["seeds with 9 or 10"] for r in record.table if r["bars of"] == r["model"]]
    nine, seeds = (sum(int(cell.split(" of ")[i]) for cell in ours) for i in range(2))
    assert f"{len(record.values)} seeds each | in {nine} of {seeds};" in signals
    senses = (PUBLISHED.parent / "areas" / "see-and-hear.md").read_text()
    words = {ledger.read(PUBLISHED / f"{key}.json").verdict for key in ("uni-moe", "slime")}
    assert words == {"not decided"} and "both\n[claims](../claims.md) are *not decided*" in senses
    mixtures = (PUBLISHED.parent / "areas" / "mixtures.md").read_text()
    routing = (PUBLISHED.parent / "benchmarks" / "routing.md").read_text()
    rows = [line.split(" | ") for line in routing.splitlines() if "/ grouped_mm" in line]
    shares = {name.removeprefix("| "): share for name, share, *_ in rows}
    eight, many = "bf16, E = 8, h = 1536", "bf16, E = 64, h = 384"
    both = shares[f"{eight}, T = 2,048, forward + backward / grouped_mm"]
    forward = shares[f"{many}, T = 2,048, forward / grouped_mm"]
    assert f"| {both} of its time |" in mixtures and f"| {forward} of its time" in mixtures


def test_every_undecided_record_has_a_few_words_and_an_interval_that_says_so():
    lines = bars.read_bars(PUBLISHED)
    for study in claims():
        record = (
            ledger.read(PUBLISHED / f"{study.key}.json")
            if (PUBLISHED / f"{study.key}.json").is_file()
            else None
        )
        if record is None or record.verdict != "not decided":
            continue
        words = verdicts.briefly(record.reason)
        assert words, record.key
        # where the bar is said to lie inside, it lies inside the interval that judged
        if words in ("bar inside the interval", "inside the interval of a later look"):
            low, high = verdicts.interval_of(study, record.result, record.seeds, lines)
            ends = (-study.target, study.target) if study.sense == "within" else (study.target,)
            assert any(low <= end <= high for end in ends), record.key
