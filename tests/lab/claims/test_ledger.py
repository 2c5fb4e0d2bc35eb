"""Claims are judged by their bar, kept, and printed as they came out."""

import ast
import dataclasses
import json
from importlib import import_module
from pathlib import Path
from unittest.mock import ANY

import pytest

from intarsia.core.errors import CheckpointError, UnknownName
from intarsia.reports.sheet import deviation
from intarsia_lab.claims import claims, ledger, standing, verdicts
from intarsia_lab.claims.bars import read_bars
from intarsia_lab.kit import ArmRate, FixedRate, NoControl, Result, Study, above

from ...refusals import refused


def a_claim(got, *, sense=">=", bar=0.5, minutes=1.0):
    def run(seeds, report):
        report("running")
        return Result(got, 0.1, tuple(got for _ in seeds), ({"arm": "ours", "score": got},), "So.")

    return Study(
        "toy", "Ours is better.", "theirs", bar, sense, run, NoControl("A toy."), minutes=minutes
    )


@pytest.mark.parametrize(
    ("got", "sense", "word"),
    [(0.5, ">=", "holds"), (0.4, ">=", "fails"), (0.4, "<=", "holds"), (0.6, "<=", "fails")],
)
def test_the_target_decides(got, sense, word):
    lines = []
    record = ledger.run_claim(a_claim(got, sense=sense), report=lines.append)
    assert (record.verdict, record.target) == (word, f"{sense} 0.5")
    assert record.values == (got,) * 3 and record.interval == pytest.approx((got, got))
    assert lines == ["running"]


def test_a_record_survives_the_file(tmp_path, monkeypatch):
    rated = dataclasses.replace(a_claim(0.4), rates=FixedRate(5e-3, {"ours": 10}, "A toy."))
    record = ledger.run_claim(rated, seeds=(7, 8))
    assert record.rates == (ArmRate("ours", 5e-3, 10),)
    assert record.command == "intarsia reproduce toy --seeds 7,8"
    assert ledger.read(ledger.save(record, tmp_path)) == record


def test_a_record_of_other_code_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "code_of", lambda key: {"toy": "now"}[key])
    record = ledger.run_claim(a_claim(0.6))
    assert record.code == "now" and not record.older and ledger.state(record) == "holds"
    for code in ("before", ""):  # "" in records of before there were digests
        assert ledger.state(dataclasses.replace(record, code=code)) == "holds" + ledger.OLDER


def test_a_record_without_a_digest_opens_as_older():
    folder = Path(__file__).parents[2] / "docs" / "claims"
    records = [ledger.read(path) for path in folder.glob("*.json")]
    assert all(record.older for record in records if not record.code)


def test_claims_come_from_every_file_of_the_folder_that_has_some():
    folder = Path(ledger.__file__).parent
    modules = [
        import_module(f"intarsia_lab.claims.{p.stem}") for p in sorted(folder.glob("[a-z]*.py"))
    ]
    assert [c.key for c in claims()] == [c.key for m in modules for c in getattr(m, "CLAIMS", ())]


def test_a_foreign_record_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"key": "x"}))
    with refused(CheckpointError, what="record x.json", got="'values'"):
        ledger.read(tmp_path / "x.json")


def test_an_unknown_claim_names_its_neighbours():
    with refused(
        UnknownName,
        what="unknown claim",
        got="'mosa-lang'",
        near=("mosa-long", "mos-saving", "moa-gap"),
    ):
        ledger.claim("mosa-lang")


def test_a_published_spread_is_the_deviation_of_its_values():
    records = [
        ledger.read(path) for path in (Path(__file__).parents[3] / "docs" / "claims").glob("*.json")
    ]
    assert records
    for record in records:
        assert record.spread == pytest.approx(deviation(record.values)), record.key


def test_no_two_claims_are_the_headline_of_one_paper():
    names = [c.system for c in claims() if c.system]
    assert len(names) == len(set(names)) >= 46
    assert not [c.key for c in claims() if c.system and not c.work]


def test_kept_records_are_judged_by_the_control_of_today(tmp_path, monkeypatch):
    record = ledger.run_claim(a_claim(0.6))
    ledger.save(record, tmp_path)
    strict = dataclasses.replace(a_claim(0.6), control=above("Ours scores .7.", "score", 0.7))
    monkeypatch.setattr(ledger, "claims", lambda: (strict,))
    assert ledger.judge_again(tmp_path)["toy"] == ("holds", ("void", ANY))
    now = ledger.read(tmp_path / "toy.json")
    assert (now.verdict, now.values) == ("void", record.values) and "Ours scores .7." in now.reason
    assert ledger.judge_again(tmp_path) == {}


def test_a_figure_is_held_against_the_target_of_today(tmp_path, monkeypatch):
    ledger.save(ledger.run_claim(a_claim(0.6)), tmp_path)
    monkeypatch.setattr(ledger, "claims", lambda: (dataclasses.replace(a_claim(0.6), target=0.7),))
    word = ledger.judge_again(tmp_path)["toy"][1].word
    assert word == verdicts.NOT_REPRODUCED  # a toy is in no paper's regime
    record = ledger.read(tmp_path / "toy.json")
    assert record.target == ">= 0.5"  # of its run


def test_a_record_of_another_sense_is_void(tmp_path, monkeypatch):
    ledger.save(ledger.run_claim(a_claim(0.6)), tmp_path)
    monkeypatch.setattr(ledger, "claims", lambda: (a_claim(0.6, sense="<="),))
    assert ledger.judge_again(tmp_path)["toy"][1].word == "void"


def test_a_claim_belongs_to_the_paper_of_its_key_or_its_number():
    papers = {key: ledger.paper_of(key) for key in ("mos-order", "uoe-choice", "mosa", "rigl")}
    assert {key: study and study.system for key, study in papers.items()} == {
        "mos-order": "MoS",
        "uoe-choice": "Union of Experts",
        "mosa": "MoSA",
        "rigl": None,
    }


def test_the_published_verdicts_are_those_of_the_rule():
    claims_by_key = {c.key: c for c in claims()}
    lines = read_bars(Path(__file__).parents[3] / "docs" / "claims")
    for path in (Path(__file__).parents[3] / "docs" / "claims").glob("*.json"):
        record = ledger.read(path)
        verdict = ledger.verdict_of(claims_by_key[record.key], record, lines)
        assert (record.verdict, record.reason) == verdict, record.key


def test_a_headline_that_does_not_hold_says_what_would_decide_it():
    folder = Path(__file__).parents[3] / "docs" / "claims"
    records = {path.stem: ledger.read(path) for path in folder.glob("*.json")}
    holding = {key for key, record in records.items() if record.verdict == "holds"}
    # no larger experiment decides a check, which counts as no evidence
    silent = [c.key for c in claims() if c.system and c.key not in holding and not c.scale]
    assert {*silent} <= standing.CHECKS


def test_no_claim_imports_another():
    for path in Path(ledger.__file__).parent.glob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        siblings = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 1]
        judging = ("__init__", "bars", "confirming", "ledger", "standing", "verdicts")
        assert path.stem in judging or not siblings, path.name
