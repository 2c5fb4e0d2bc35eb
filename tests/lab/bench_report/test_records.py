"""A record survives the file; the file survives a kill; whatever else is wrong is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import CheckpointError, DataError, TrainingError
from intarsia_lab.bench.report.records import (
    Done,
    Failed,
    MethodName,
    RunResult,
    Setup,
    TaskName,
    append,
    only,
    read,
)

from ...refusals import refused

Make = Callable[..., RunResult]

words = st.text(max_size=12)
shares = st.floats(0, 1)
sizes = st.integers(0, 10**12)
outcomes = st.builds(Failed, words) | st.builds(
    lambda head, bare, **rest: Done(trained=head + bare, trained_without_head=bare, **rest),
    sizes, sizes, accuracy=shares, balanced_accuracy=st.none() | shares,
    loss=st.none() | st.floats(0, 99), seconds=st.floats(0, 1e6),
    cpu_seconds=st.none() | st.floats(0, 1e6), peak_bytes=st.none() | sizes,
    own_task_accuracy=st.none() | shares,
)  # fmt: skip
results = st.builds(
    RunResult, words, st.builds(TaskName, words, words, words, st.booleans()),
    st.builds(MethodName, words, words), st.integers(0, 99),
    st.builds(Setup, words, words, st.integers(0, 99),
              st.dictionaries(words, st.integers() | words), st.integers(0, 99)),
    words, outcomes,
)  # fmt: skip


@given(results)
def test_a_record_comes_back_from_json(result: RunResult) -> None:
    assert RunResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_a_line_from_before_joint_tasks_still_reads(make_result: Make, tmp_path: Path) -> None:
    raw = make_result().to_dict()
    del raw["outcome"]["own_task_accuracy"]
    (tmp_path / "r.jsonl").write_text(json.dumps(raw) + "\n")
    assert read(tmp_path / "r.jsonl") == [make_result()]


def test_the_file_keeps_order_and_the_last_line_of_a_key(make_result: Make, tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    first, second = make_result(accuracy=None), make_result(seed=1)
    for result in (first, second, make_result()):
        append(path, result)
    assert read(path) == [make_result(), second]
    assert len(path.read_text().splitlines()) == 3
    assert only(read(path), "failed") == []


def test_a_kill_at_any_byte_loses_one_line_at_most(make_result: Make, tmp_path: Path) -> None:
    path, old, new = tmp_path / "r.jsonl", make_result(), make_result(seed=1)
    append(path, old)
    size = path.stat().st_size
    append(path, new)
    content = path.read_bytes()
    for end in range(size, len(content)):
        path.write_bytes(content[:end])
        assert read(path) == [old]
        if end % 10 == 0 or end == len(content) - 1:  # each append waits for the disk
            append(path, new)
            assert path.read_bytes() == content
    path.write_bytes(content[: size - 5])
    assert read(path) == []


def test_a_long_torn_line_is_removed(make_result: Make, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append(path, make_result())
    content = path.read_bytes()
    path.write_bytes(content + b"x" * 10_000)
    append(path, make_result())
    assert path.read_bytes() == content * 2


def test_a_second_writer_waits_for_the_first(make_result: Make, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    writer = Thread(target=append, args=(path, make_result()))
    with FileLock(f"{path}.lock"):
        writer.start()
        writer.join(0.2)
        assert writer.is_alive() and not path.exists()
    writer.join()
    assert read(path) == [make_result()]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", "0", "result.seed"),
        ("seed", True, "result.seed"),
        ("task.synthetic", 1, "result.task.synthetic"),
        ("outcome.accuracy", 1.2, "accuracy of a result"),
        ("outcome.accuracy", float("nan"), "accuracy of a result"),
        ("outcome.loss", float("inf"), "loss of a result"),
        ("outcome.seconds", -1, "seconds of a result"),
        ("outcome.trained", 99, "trained of a result"),
        ("outcome.peak_bytes", 1.5, "result.outcome.peak_bytes"),
        ("setup.tried", -1, "tried of a result"),
        ("status", "lost", "status of a result"),
        ("status", "failed", "result.outcome"),
        ("extra", 1, "result"),
        ("task", [], "result.task"),
    ],
)
def test_a_wrong_value_is_named(make_result: Make, field: str, value: Any, message: str) -> None:
    raw = make_result().to_dict()
    *path, last = field.split(".")
    place = raw
    for name in path:
        place = place[name]
    place[last] = value
    with refused(DataError, what=message):
        RunResult.from_dict(raw)


def test_a_missing_value_is_named(make_result: Make) -> None:
    raw = make_result().to_dict()
    del raw["task"]["group"]
    with refused(DataError, what="result.task", got="no ['group']"):
        RunResult.from_dict(raw)


def test_another_version_s_record_is_refused(make_result: Make, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(make_result().to_dict() | {"format": 2}) + "\n")
    with refused(CheckpointError) as caught:
        read(path)
    assert "format of a result: got 2, want 1" in str(caught.value.got)


@pytest.mark.parametrize("line", ["{", "[]", "\0"])
def test_a_damaged_line_is_named(make_result: Make, tmp_path: Path, line: str) -> None:
    path = tmp_path / "r.jsonl"
    append(path, make_result())
    path.write_text(path.read_text() + line + "\n")
    append(path, make_result(seed=1))
    with pytest.raises(CheckpointError, match="line 2"):
        read(path)


def test_places_without_a_file(make_result: Make, tmp_path: Path) -> None:
    with refused(DataError, got="FileNotFoundError"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError):
        append(tmp_path / "file" / "r.jsonl", make_result())
