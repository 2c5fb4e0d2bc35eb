"""A record counts for today's code where one of its seeds, run again, has the stored value."""

import dataclasses
from pathlib import Path

import pytest

from intarsia.core.errors import ConfigError
from intarsia_lab.claims import bars, confirming, ledger
from intarsia_lab.claims.confirming import confirm
from intarsia_lab.kit import TIMED, NoControl, Result, Study
from intarsia_lab.pages import claims as pages
from intarsia_lab.pages.confirmed import confirmed

from ...refusals import refused

HERE = ledger.machine()
DIRTY = "a checkout with changes that are not committed"


def a_study(factor=0.1, *, tasks=1, control=None):
    """A claim with a value that each seed has alone; factor: what a change of the code changes."""

    def run(seeds, report):
        values = tuple(factor * (1 + seed) + task for task in range(tasks) for seed in seeds)
        return Result(sum(values) / len(values), 0.1, values)

    control = control or NoControl("A toy.")
    return Study("toy", "Ours is better.", "theirs", 0.9, "<=", run, control, seeds=(3, 4, 5))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a record of older code."""
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(ledger, "code_of", lambda key: "now")
    monkeypatch.setattr(confirming, "code_of", lambda key: "now")
    monkeypatch.setattr(ledger, "claims", lambda: (a_study(),))
    kept(a_study(), tmp_path / "claims")
    return tmp_path / "claims"


def kept(study, folder, **changed):
    record = dataclasses.replace(
        ledger.run_claim(study), **{"code": "before", "commit": ""} | changed
    )
    ledger.save(record, folder)
    return record


def again(study, folder, **options):
    return confirm(study, record_in(folder), folder, "abc", report=print, **options)


def record_in(folder):
    return ledger.read_all(folder)["toy"]


def test_a_seed_with_the_stored_value_makes_a_record_count(folder):
    assert record_in(folder).older and not record_in(folder).counts
    line = again(a_study(), folder)
    assert (line["seeds"], line["equal"], line["then"]) == ([3], True, None)
    record = record_in(folder)
    assert record.counts and not record.older and ledger.state(record) == record.verdict
    assert "Seed 3 run again at commit `abc`" in confirmed(record, [line])[0]
    assert ": 0.4, as stored." in confirmed(record, [line])[0]
    # the file of the record is what it was, and the pages count it
    assert ledger.read(folder / "toy.json").confirmed is None
    pages.write_page(folder, folder.with_suffix(".md"))
    board = folder.with_suffix(".md").read_text()
    assert "1 hold" in board and "1 of them by a record that one seed confirmed." in board


def test_a_sum_in_another_order_is_equal_and_another_training_is_not(folder):
    assert again(a_study(0.1 * (1 + 1e-9)), folder)["equal"]
    assert again(a_study(0.1 * (1 + 1e-4)), folder)["equal"] is False


def test_changed_code_is_published_and_does_not_count(folder):
    line = again(a_study(0.2), folder)
    assert line["equal"] is False and line["got"] == [0.8] and line["stored"] == [0.4]
    assert ": 0.8, 0.4 stored." in confirmed(record_in(folder), bars.read_bars(folder))[0]
    # one equal seed does not outweigh it
    assert again(a_study(), folder, seeds=(4,))["equal"]
    assert record_in(folder).older and not record_in(folder).counts


def test_a_confirmation_is_of_one_record_and_one_code(folder, monkeypatch):
    again(a_study(), folder)
    monkeypatch.setattr(ledger, "code_of", lambda key: "later")
    assert record_in(folder).older
    monkeypatch.setattr(ledger, "code_of", lambda key: "now")
    kept(a_study(0.3), folder)
    assert record_in(folder).older and not confirmed(record_in(folder), bars.read_bars(folder))


@pytest.mark.parametrize(("then", "equal"), [((0.8,), True), ((0.4,), False), (None, False)])
def test_the_code_of_the_record_tells_code_from_processor(folder, then, equal):
    kept(a_study(), folder, commit="abc123")
    ran = []

    def older(name, key, seeds, report):
        ran.append((name, key, seeds))
        return then

    line = again(a_study(0.2), folder, then=older)
    assert ran == [("abc123", "toy", (3,))]
    assert line["equal"] is equal and record_in(folder).counts is equal


@pytest.mark.parametrize("commit", ["", "abc123+"])
def test_on_another_processor_a_difference_decides_nothing(folder, commit):
    kept(a_study(), folder, commit=commit, machine=f"Another {HERE}")
    line = again(a_study(0.2), folder, then=lambda *_: pytest.fail("no clean commit"))
    assert line["equal"] is None and "another processor" in line["why"]
    assert "nothing is decided" in confirmed(record_in(folder), [line])[0]
    # it decides nothing later, either
    assert not record_in(folder).counts
    assert again(a_study(), folder, seeds=(4,))["equal"] and record_in(folder).counts


def test_of_several_comparisons_one_seed_may_have_another_worst(folder, monkeypatch):
    monkeypatch.setitem(confirming.COMPARISONS, "toy", 2)
    assert again(a_study(0.2), folder)["equal"] is None


def test_what_a_seed_cannot_confirm_is_refused(folder):
    fix = "Run it again whole: intarsia reproduce toy"
    with refused(ConfigError, what="record of toy", got="a measured time", fix=fix):
        again(a_study(control=TIMED), folder)
    with refused(ConfigError, what="record of toy", want="against others, <=", fix=fix):
        again(dataclasses.replace(a_study(), baseline="others"), folder)
    with refused(ConfigError, what="--seeds", got="[7]", want="seeds of the record: 3, 4, 5"):
        again(a_study(), folder, seeds=(3, 7))
    got = "1 values of these seeds, and 2 of their run"
    with refused(ConfigError, what="record of toy", got=got):
        again(a_study(tasks=2), folder)
    kept(a_study(), folder, values=(0.4, 0.5))
    with refused(ConfigError, what="record of toy", got="2 values of 3 seeds"):
        again(a_study(), folder)
    assert bars.read_bars(folder) == []


def test_values_of_several_tasks_are_found_in_either_order(folder):
    kept(a_study(tasks=2), folder)
    line = again(a_study(tasks=2), folder, seeds=(3, 5))
    assert line["equal"] and line["stored"] == pytest.approx([0.4, 0.6, 1.4, 1.6])
    by_seed = (0.4, 1.4, 0.5, 1.5, 0.6, 1.6)
    kept(a_study(tasks=2), folder, values=by_seed)
    assert again(a_study(tasks=2), folder, seeds=(4,))["equal"]


def test_the_seed_that_runs_has_a_value_of_its_own(folder):
    record = record_in(folder)
    assert confirming.telling(record) == 3
    assert confirming.telling(dataclasses.replace(record, values=(0.0, 0.0, 2.0))) == 5
    assert confirming.telling(dataclasses.replace(record, values=(0.0, 0.0, 0.0))) == 3


def test_the_chain_grows_by_each_confirmation_once(folder):
    study = a_study()
    ledger.publish(study, record_in(folder), folder)
    again(study, folder)
    again(study, folder)
    lines = bars.read_bars(folder)
    assert [line["line"] for line in lines] == ["bar", "run", "confirmation"]
    assert ledger.verdict_of(study, record_in(folder), lines).word == "holds"


def test_results_of_one_commit_are_read_back_and_no_others(folder, monkeypatch):
    homes = []

    def run(seeds, report):
        homes.append(confirming.cache_dir())
        return a_study().measure(seeds, report)

    before = confirming.cache_dir()
    again(dataclasses.replace(a_study(), measure=run), folder)
    assert homes == [before / "at" / "abc"] and confirming.cache_dir() == before
    assert (homes[0] / "packages").resolve() == before / "packages"
    assert sorted(p.name for p in homes[0].iterdir()) == ["packages", "suites", "weights"]


def test_a_change_of_the_claims_pages_alone_leaves_the_commit_clean(monkeypatch):
    apart_from = []
    monkeypatch.setattr(confirming, "commit", lambda *apart: apart_from.append(apart) or "abc")
    assert confirming.clean_commit(Path("docs/claims.md")) == "abc"
    assert apart_from == [(Path("docs/claims.md"), Path("docs/claims"))]
    for name, got in (("abc+", DIRTY), ("", "no checkout")):
        monkeypatch.setattr(confirming, "commit", lambda *apart, name=name: name)
        with refused(ConfigError, what="--confirm", got=got):
            confirming.clean_commit(Path("docs/claims.md"))


def test_what_waits_is_listed_by_the_seconds_of_a_seed(folder):
    quick, slow = a_study(), dataclasses.replace(a_study(), key="slow", minutes=2)
    records = {"toy": dataclasses.replace(record_in(folder), seconds=9.0)}
    records["slow"] = dataclasses.replace(records["toy"], key="slow", seconds=0.1)
    listed = confirming.waiting((slow, quick), records, [])
    assert [(study.key, seconds) for seconds, study in listed] == [("toy", 3), ("slow", 40)]
    line = again(quick, folder)
    assert [s.key for _, s in confirming.waiting((slow, quick), records, [line])] == ["slow"]
    timed = dataclasses.replace(slow, control=TIMED)
    assert confirming.waiting((timed,), records, []) == []
