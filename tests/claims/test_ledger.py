"""Claims are judged by their bar, kept, and printed as they came out."""

import json

import pytest

from intarsia.claims import claims, ledger
from intarsia.core import Claim, Result
from intarsia.core.errors import CheckpointError, UnknownName


def a_claim(got, *, sense=">=", bar=0.5):
    def run(seeds, report):
        report("running")
        return Result(got, 0.1, tuple(got for _ in seeds), ({"arm": "ours", "score": got},), "So.")

    return Claim("toy", "Ours is better.", "theirs", bar, sense, run)


@pytest.mark.parametrize(
    ("got", "sense", "holds"),
    [(0.5, ">=", True), (0.4, ">=", False), (0.4, "<=", True), (0.6, "<=", False)],
)
def test_the_bar_decides(got, sense, holds):
    lines = []
    record = ledger.run_claim(a_claim(got, sense=sense), report=lines.append)
    assert record.holds is holds
    assert record.values == (got,) * 3
    assert lines == ["running"]


def test_a_record_survives_the_file_and_a_failed_one_is_printed_as_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "claims", lambda: (a_claim(0.4),))
    record = ledger.run_claim(a_claim(0.4), seeds=(7,))
    path = ledger.save(record, tmp_path)
    assert ledger.read(path) == record
    ledger.write_page(tmp_path, tmp_path / "claims.md")
    page = (tmp_path / "claims.md").read_text()
    assert "**fails**" in page
    assert "intarsia claim toy --seeds 7" in page
    assert "| ours | 0.4 |" in page


def test_what_was_not_run_says_so(tmp_path):
    ledger.write_page(tmp_path, tmp_path / "claims.md")
    page = (tmp_path / "claims.md").read_text()
    assert page.count("not run") == len(claims())


def test_a_foreign_record_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"key": "x"}))
    with pytest.raises(CheckpointError, match="Run the claim again"):
        ledger.read(tmp_path / "x.json")


def test_an_unknown_claim_names_its_neighbours():
    with pytest.raises(UnknownName, match="Did you mean .*mosa"):
        ledger.claim("mosa-lang")
