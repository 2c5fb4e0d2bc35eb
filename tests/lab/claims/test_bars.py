"""A bar that was moved, seeds that were seen and a verdict that was taken back decide nothing."""

import dataclasses
import json
from pathlib import Path

import pytest

from intarsia.core.errors import CheckpointError, ConfigError
from intarsia_lab.claims import bars, claims, ledger, standing
from intarsia_lab.claims.verdicts import NOT_REPRODUCED, standing_of
from intarsia_lab.kit import TIMED, NoControl, Result, Study

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
    # a time is another sample in every run
    assert word(a_study(control=TIMED), [earlier]) == "holds"


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


def test_figures_in_sentences_are_those_of_the_records():
    record = ledger.read(PUBLISHED / "prosper-bars.json")
    found = sum(value >= 9 for value in record.values)
    assert f"in {found} of {len(record.values)} seeds" in " ".join(
        ledger.claim("prosper-bars").sentence.split()
    )


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
