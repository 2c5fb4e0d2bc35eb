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
from intarsia_lab.claims import claims, ledger
from intarsia_lab.kit import NoControl, Result, Study, above

from ...refusals import refused

# whose spread is a range, a half-width or a share of the bar
RANGES = ("bi", "mosa", "mosa-budget", "mosa-long")


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


def test_a_record_survives_the_file_and_a_failed_one_is_printed_as_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "claims", lambda: (a_claim(0.4),))
    record = ledger.run_claim(a_claim(0.4), seeds=(7, 8))
    path = ledger.save(record, tmp_path)
    assert ledger.read(path) == record
    ledger.write_page(tmp_path, tmp_path / "claims.md")
    page = (tmp_path / "claims.md").read_text()
    assert "**fails**" in page and "| fails | 0 | 1 |" in page
    assert "intarsia reproduce toy --seeds 7,8" in page
    assert "| ours | 0.4 |" in page
    folded = page.partition("<details")[2]  # note and table are opened by who wants them
    assert "So." in folded and "| ours | 0.4 |" in folded and "</details>" in folded


def test_a_record_of_other_code_is_marked_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "claims", lambda: (a_claim(0.6),))
    monkeypatch.setattr(ledger, "code_of", lambda key: {"toy": "now"}[key])
    record = ledger.run_claim(a_claim(0.6))
    assert record.code == "now" and not record.older
    ledger.save(record, tmp_path)
    ledger.write_page(tmp_path, tmp_path / "claims.md")
    assert ledger.OLDER not in (tmp_path / "claims.md").read_text()
    for code in ("before", ""):  # "" in records of before there were digests
        ledger.save(dataclasses.replace(record, code=code), tmp_path)
        ledger.write_page(tmp_path, tmp_path / "claims.md")
        page = (tmp_path / "claims.md").read_text()
        assert page.count(ledger.OLDER) == 2 and f"**holds**{ledger.OLDER} |" in page
        assert ledger.state(ledger.read(tmp_path / "toy.json")) == "holds" + ledger.OLDER


def test_a_record_without_a_digest_opens_as_older():
    folder = Path(__file__).parents[2] / "docs" / "claims"
    records = [ledger.read(path) for path in folder.glob("*.json")]
    assert all(record.older for record in records if not record.code)


def test_what_was_not_run_says_so(tmp_path):
    ledger.write_page(tmp_path, tmp_path / "claims.md")
    page = (tmp_path / "claims.md").read_text()
    papers = sum(bool(c.system) for c in claims())
    of_verdicts = 1  # the row of the table that counts them
    assert page.count("| not run |") == len(claims()) + papers + of_verdicts


def test_claims_come_from_every_file_of_the_folder_that_has_some():
    folder = Path(ledger.__file__).parent
    modules = [
        import_module(f"intarsia_lab.claims.{p.stem}") for p in sorted(folder.glob("[a-z]*.py"))
    ]
    assert [c.key for c in claims()] == [c.key for m in modules for c in getattr(m, "CLAIMS", ())]


@pytest.mark.parametrize(
    ("seconds", "minutes", "said"),
    [
        (0.3, 20, "from cached results"),
        (0.3, 0.02, "1 second"),
        (18.7, 0.5, "19 seconds"),
        (60, 20, "1 minute"),
        (571, 20, "10 minutes"),
    ],
)
def test_what_a_run_cost(tmp_path, monkeypatch, seconds, minutes, said):
    found = a_claim(0.4, minutes=minutes)
    monkeypatch.setattr(ledger, "claims", lambda: (found,))
    record = dataclasses.replace(ledger.run_claim(found, report=print), seconds=seconds)
    ledger.save(record, tmp_path)
    ledger.write_page(tmp_path, tmp_path / "claims.md")
    assert f", {said}; " in (tmp_path / "claims.md").read_text()


def test_rows_without_some_of_the_keys_have_empty_cells():
    rows = [{"entries": "none", "nats": 1.0}, {"entries": "a + b"}, {"nats": 2.0, "more": "x"}]
    wanted = ["| entries | nats | more |", "|---|---|---|"]
    wanted += ["| none | 1.0 |  |", "| a + b |  |  |", "|  | 2.0 | x |"]
    assert ledger.markdown(rows) == wanted
    assert not ledger.markdown([])


def test_a_foreign_record_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"key": "x"}))
    with refused(CheckpointError, what="record x.json", got="'values'"):
        ledger.read(tmp_path / "x.json")


def test_an_unknown_claim_names_its_neighbours():
    with refused(
        UnknownName, what="unknown claim", got="'mosa-lang'", near=("mosa-long", "moa-gap", "mosa")
    ):
        ledger.claim("mosa-lang")


def test_the_page_of_claims_is_that_of_their_records(tmp_path):
    docs = Path(__file__).parents[3] / "docs"
    ledger.write_page(docs / "claims", tmp_path / "claims.md")
    # which records are of older code changes with every commit; `make generate` writes it anew
    now, page = ((folder / "claims.md").read_text() for folder in (tmp_path, docs))
    assert now.replace(ledger.OLDER, "") == page.replace(ledger.OLDER, "")


def test_a_published_spread_is_the_deviation_of_its_values():
    records = [
        ledger.read(path) for path in (Path(__file__).parents[3] / "docs" / "claims").glob("*.json")
    ]
    assert records
    for record in records:
        if record.key not in RANGES:
            assert record.spread == pytest.approx(deviation(record.values)), record.key


def test_the_page_opens_with_a_row_for_each_paper_and_its_interval(tmp_path, monkeypatch):
    headline = dataclasses.replace(a_claim(0.4), system="Toys", work="blocks on a carpet")
    monkeypatch.setattr(ledger, "claims", lambda: (headline, a_claim(0.4)))
    ends = -0.484, 4.484
    record = dataclasses.replace(ledger.run_claim(headline), values=(1.0, 2.0, 3.0), interval=ends)
    ledger.save(record, tmp_path)
    assert ledger.judge_again(tmp_path)["toy"][1].word == "not decided"
    ledger.write_page(tmp_path, tmp_path / "claims.md")
    page = (tmp_path / "claims.md").read_text()
    row = next(line for line in page.splitlines() if "blocks on a carpet" in line)
    assert row.startswith("| [Toys](#toy) | Ours is better. |") and "not decided" in row
    assert "0.400 [-0.484, 4.484]" in row  # 2 ± 4.303 / sqrt(3)
    assert "| not known |" in row and "0 of 2 hold" in row
    assert page.index("A row for each paper") < page.index("## All claims")


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


def test_a_record_of_another_target_is_void(tmp_path, monkeypatch):
    ledger.save(ledger.run_claim(a_claim(0.6)), tmp_path)
    monkeypatch.setattr(ledger, "claims", lambda: (dataclasses.replace(a_claim(0.6), target=0.55),))
    assert ledger.judge_again(tmp_path)["toy"][1].word == "void"


def test_the_published_verdicts_are_those_of_the_rule():
    known = {c.key: c for c in claims()}
    for path in (Path(__file__).parents[3] / "docs" / "claims").glob("*.json"):
        record = ledger.read(path)
        verdict = ledger.verdict_of(known[record.key], record)
        assert (record.verdict, record.reason) == verdict, record.key


def test_no_claim_imports_another():
    for path in Path(ledger.__file__).parent.glob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        siblings = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level == 1]
        assert path.stem in ("__init__", "ledger") or not siblings, path.name
