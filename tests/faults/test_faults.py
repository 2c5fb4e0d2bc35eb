"""The list of faults fits the source as it is, and a few of them are caught."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from intarsia_lab.experiments import studies

from .planting import OFFICIAL, ROOT, Fault, faults, sample
from .running import UNUSABLE, Seen, answers, begun, ended, look_for, note

SURVEY = "Survey of compressed mixtures"  # it has no method of its own


@pytest.mark.parametrize("file", sorted({fault.file for fault in faults()}, key=str))
def test_each_fault_fits_once_and_is_python(file: Path) -> None:
    text = (ROOT / file).read_text()
    for fault in faults():
        if fault.file == file:
            compile(fault.planted(text), str(file), "exec")


def test_every_system_has_a_fault_and_tests_that_exist() -> None:
    assert {fault.system for fault in faults()} == {s.system for s in studies()} - {SURVEY}
    for path in {path for fault in faults() for path in fault.tests}:
        record = path.removeprefix(OFFICIAL).strip("[]")
        official = ROOT / "tests" / "reference" / f"{record}.safetensors"
        assert official.is_file() if path.startswith(OFFICIAL) else (ROOT / path).exists(), path
    assert len({(fault.system, fault.says) for fault in faults()}) == len(faults())


@pytest.mark.parametrize("line", ["nowhere in it", "a"])
def test_a_line_that_does_not_fit_once_is_refused(line: str) -> None:
    fault = Fault("a system", (), Path("a.py"), line, "b", "A sentence.")
    with pytest.raises(ValueError, match="a system: got . places for .* in a.py, want one"):
        fault.planted("a = a")


def test_a_sample_is_always_the_same() -> None:
    assert sample(faults(), 5) == sample(faults(), 5) != sample(faults(), 5, seed=1)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("test", "says"),
    [("", ""), ("assert False", "tests/test_a.py::test_a"), ("import os; os.abort()", "signal 6")],
)
def test_a_tree_says_which_test_failed(tmp_path: Path, test: str, says: str) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text(f"def test_a():\n    {test or 'pass'}\n")
    assert ended(begun(tmp_path, ["tests/test_a.py"]), tmp_path).endswith(says)


@pytest.mark.thorough
def test_a_process_that_cannot_begin_says_why_and_leaves_its_parent_alone(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"pytest ended with 4:(?s:.*)nowhere.py"):
        ended(begun(tmp_path, ["nowhere.py"]), tmp_path)
    with pytest.raises(RuntimeError, match=rf"ended with {UNUSABLE}:(?s:.*)TypeError"):
        ended(begun(tmp_path, [0]), tmp_path)  # pyright: ignore[reportArgumentType]


@pytest.mark.thorough
def test_a_run_that_was_cut_off_goes_on_behind_its_last_answer(tmp_path: Path) -> None:
    first, second, third = sample(faults(), 3)
    file = tmp_path / "answers.jsonl"
    assert answers(file, [first]) == []
    for answer in (Seen(first, "tests/test_a.py::test_a"), Seen(second, "")):
        note(file, answer)
    changed = replace(second, line="another line"), replace(second, tests=("tests/test_b.py",))
    caught, wider = Seen(first, "tests/test_a.py::test_a"), replace(first, tests=())
    assert answers(file, [third, *changed, first]) == [caught]
    assert answers(file, [wider, second]) == [replace(caught, fault=wider), Seen(second, "")]
    # nothing is left to plant: what failed is run once without a fault, and this is no test at all
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        list(look_for([first], seen=answers(file, [first])))


@pytest.mark.thorough
def test_a_sample_of_five_is_caught() -> None:
    """A fork of its own process would have what this one has imported."""
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "tests.faults", "--sample", "5"]
    done = subprocess.run(words, cwd=ROOT, env=here, capture_output=True, text=True)
    assert done.stdout.endswith("5 of 5 caught\n"), done.stdout + done.stderr
