"""Files that are there in full or not at all, and only for the run they belong to."""

from __future__ import annotations

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import host, pictures
from torch.utils.data import Dataset, TensorDataset

from intarsia.adapters import Bottleneck
from intarsia.core.errors import CheckpointError, ConfigError, TrainingError
from intarsia.fitting import fit
from intarsia.train import Interrupted, checkpoint, two_pass

from ..refusals import refused

trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text("abc_", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3)
        | st.dictionaries(st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(trees)
def test_any_state_comes_back_as_it_was(tree: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(checkpoint.flatten({"tree": tree, "w": torch.arange(3)}, tensors))
    loaded = checkpoint.unflatten(json.loads(text), tensors)
    assert loaded["tree"] == tree and type(loaded["tree"]) is type(tree)
    assert torch.equal(loaded["w"], torch.arange(3))


def test_views_and_shared_tensors_are_written(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).view(3, 4)
    state = {"a": matrix[1], "b": matrix.T, "c": matrix, "d": matrix, "e": torch.tensor(2)}
    loaded = checkpoint.load(checkpoint.save(tmp_path, state))
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_only_the_newest_is_kept_and_leftovers_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".save-000009.x1y2").mkdir()  # of a killed write
    for name in ("my notes", "save-mine", "save-000009.tmp"):
        (tmp_path / name).mkdir()
    for value in range(3):
        checkpoint.save(tmp_path, {"value": value})
    inside = {p.name for p in tmp_path.iterdir()}
    assert inside == {"save-000003", "my notes", "save-mine", "save-000009.tmp"}
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and checkpoint.load(newest) == {"value": 2}
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_after_the_last_number_of_six_digits_comes_the_next(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"value": 0}).rename(tmp_path / "save-999999")
    for value in (1, 2):
        checkpoint.save(tmp_path, {"value": value})
    newest = checkpoint.latest(tmp_path)
    assert newest is not None and newest.name == "save-1000001"
    assert checkpoint.load(newest) == {"value": 2}


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Do what Ctrl-C does in a terminal; a shell lets its background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_while_it_is_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.save(tmp_path, {"w": torch.ones(3)})
    real = checkpoint.read_tensors

    def interrupted(*args: Any) -> Any:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # as torch does with it
            raise ValueError("could not determine the shape of object type") from None
        return real(*args)

    monkeypatch.setattr(checkpoint, "read_tensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.load(path)


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with refused(TrainingError, what="checkpoint entry '/a/b'", got="set"):
        checkpoint.save(tmp_path, {"a": {"b": {1}}})


def started(out: Path, **options: Any) -> dict[str, Any]:
    """A run of three epochs that stopped after the second."""
    settings = {"epochs": 3, "batch_size": 8, "out": out, "trackers": (), "checkpoint_steps": 1}

    def stop(_model: object, step: int, _steps: int) -> None:
        if step == 10 and not done:
            done.append(step)
            raise EOFError

    done: list[int] = []
    settings |= {"schedule": stop} | options
    with pytest.raises(EOFError):
        fit(host(), pictures(40), **settings)
    return settings


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FILES = (checkpoint.TENSORS, checkpoint.STATE, checkpoint.MANIFEST)


@pytest.mark.thorough
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "missing"])
def test_a_damaged_file_is_an_error(tmp_path: Path, name: str, damage: str) -> None:
    settings = started(tmp_path / "run")
    path = checkpoint.latest(tmp_path / "run" / "state")
    assert path is not None
    data = bytearray((path / name).read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "empty":
        data = bytearray()
    (path / name).unlink() if damage == "missing" else (path / name).write_bytes(data)
    model = host()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="checkpoint .*save-.*want the files as they were"):
        fit(model, pictures(40), resume=True, **settings)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def other_class_list() -> TensorDataset:
    data = pictures(40)
    data.classes = ["ant", "bee", "cow"]  # pyright: ignore
    return data


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"model": lambda: host(method=Bottleneck(4, norm="none"))}, "trained weights"),
        ({"model": lambda: host(blocks=3)}, "backbone"),
        ({"model": lambda: host(seed=5)}, "backbone"),
        ({"data": lambda: pictures(40, seed=3)}, "data.sha256"),
        ({"data": lambda: pictures(48)}, "data.n"),
        ({"data": other_class_list}, "classes"),
        ({"lr": 1.0}, "training.lr"),
        ({"objective": two_pass}, "objective"),
        ({"smoothing": 0.1}, "recipe.smoothing"),
    ],
    ids=["method", "depth", "weights", "pictures", "count", "classes", "lr", "objective", "recipe"],
)
def test_a_checkpoint_of_another_run_is_an_error(
    tmp_path: Path, change: dict[str, Any], place: str
) -> None:
    settings = started(tmp_path / "run")
    make = change.pop("model", host)
    data = change.pop("data", lambda: pictures(40))
    with pytest.raises(CheckpointError, match=f"{place}.*got .*want"):
        fit(make(), data(), resume=True, **(settings | change))
    assert checkpoint.latest(tmp_path / "run" / "state") is not None


def test_the_validation_part_is_held_to_where_the_checkpoint_knows_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "epochs": 1, "batch_size": 8, "out": tmp_path, "trackers": (), "select": "val",
    }  # fmt: skip
    unstopped = fit(host(), pictures(40), pictures(20, seed=1), **settings)
    with refused(CheckpointError, what="checkpoint of another run, val.sha256"):
        fit(host(), pictures(40), pictures(20, seed=2), resume=True, **settings)
    path = checkpoint.latest(tmp_path / "state")
    assert path is not None
    state = checkpoint.load(path)
    del state["identity"]["val"], state["identity"]["task"]  # as it was written before
    checkpoint.save(tmp_path / "state", state)
    again = fit(host(), pictures(40), pictures(20, seed=1), resume=True, **settings)
    assert unstopped.val is not None and again.val is not None
    assert torch.equal(unstopped.val.logits, again.val.logits)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_replaced_picture_of_any_part_is_seen(tmp_path: Path, part: str) -> None:
    sets = {"val": pictures(20, seed=1), "test": pictures(20, seed=2)}
    settings = started(tmp_path / "run", resume=False)
    unstopped = fit(host(), pictures(40), **sets, **(settings | {"out": tmp_path / "r"}))
    assert unstopped.test is not None
    x, y = (t.clone() for t in sets[part].tensors)
    x[3] += 1
    with pytest.raises(CheckpointError, match=f"another run, {part}.sha256"):
        again: dict[str, Any] = settings | {"out": tmp_path / "r", "resume": True}
        fit(host(), pictures(40), **(sets | {part: TensorDataset(x, y)}), **again)
    fit(host(), pictures(40), test=sets["test"], **again)  # one may be left out


@pytest.mark.parametrize("size", [60, 3_000, 20_000])
def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path, size: int) -> None:
    settings = started(tmp_path / "run")
    path = checkpoint.latest(tmp_path / "run" / "state")
    assert path is not None
    before = checkpoint.load(path)["step"]
    with no_room(size), pytest.raises(TrainingError, match="writing to .*Free some space"):
        fit(host(), pictures(40), resume=True, **settings)
    assert checkpoint.load(path)["step"] == before == 10
    run = fit(host(), pictures(40), resume=True, **settings)
    unstopped = fit(host(), pictures(40), **(settings | {"out": tmp_path / "whole"}))
    names = [[line["loss"] for line in r.history] for r in (run, unstopped)]
    assert names[0] == names[1] and len(names[0]) == 15


def test_resume_of_a_finished_run_trains_nothing_more(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "out": tmp_path, "trackers": ()}
    first = fit(host(), pictures(40), test=pictures(20, seed=1), **settings)
    model = host()
    again = fit(model, pictures(40), test=pictures(20, seed=1), resume=True, **settings)
    assert first.test is not None and again.test is not None
    assert torch.equal(first.test.logits, again.test.logits)
    times = [[x["seconds"] for x in r.history if x["split"] == "train"] for r in (first, again)]
    assert times[0] == times[1] and len(times[0]) == 10  # no step was taken again


def test_resume_without_a_checkpoint_starts_at_the_beginning(tmp_path: Path) -> None:
    run = fit(host(), pictures(16), epochs=1, batch_size=8, out=tmp_path / "new", resume=True)
    assert len(run.history) == 2


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 8, "out": tmp_path, "trackers": ()}
    fit(host(), pictures(16), **settings)
    with refused(ConfigError, got="a folder with a run in it"):
        fit(host(), pictures(16), **settings)
    file = tmp_path / "file"
    file.touch()
    with refused(ConfigError, got="a file"):
        fit(host(), pictures(16), **(settings | {"out": file}))
    with refused(ConfigError, what="resume", got="no run folder"):
        fit(host(), pictures(16), resume=True)


@pytest.mark.parametrize("metrics", ["lost", "short", "garbage"])
def test_a_run_goes_on_without_its_curve(tmp_path: Path, metrics: str) -> None:
    unstopped = fit(host(), pictures(40), **(started(tmp_path / "whole") | {"resume": True}))
    settings = started(tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if metrics == "lost":
        path.unlink()
    else:
        path.write_bytes(b"".join(lines[:3]) + (lines[3][:9] if metrics == "short" else b"\0" * 99))
    model = host()
    with pytest.warns(UserWarning, match=r"metrics\.jsonl has .* bytes .* has a gap"):
        run = fit(model, pictures(40), **(settings | {"resume": True}))
    lines_left = 0 if metrics == "lost" else 3
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in rows] == [*range(1, lines_left + 1), *range(11, 16)]
    assert rows[-1]["loss"] == unstopped.history[-1]["loss"] and list(run.history) == rows


def test_a_rate_that_led_to_no_number_leaves_its_folder_to_a_lower_one(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "out": out, "trackers": ()}
    with refused(TrainingError, what="loss at step 2", got="nan"):
        fit(host(), pictures(40), lr=1e30, checkpoint_steps=1, **settings)
    (out / "notes.txt").write_text("mine")
    assert json.loads((out / "failed.json").read_text())["error"]
    run = fit(host(), pictures(40), lr=1e-3, **settings)
    fresh = fit(host(), pictures(40), lr=1e-3, **(settings | {"out": None}))
    assert [line["loss"] for line in run.history] == [line["loss"] for line in fresh.history]
    assert (out / "notes.txt").exists() and not (out / "failed.json").exists()
    with refused(ConfigError, got="a folder with a run in it"):
        fit(host(), pictures(40), lr=1e-3, **settings)


def test_a_score_that_ctrl_c_cut_short_is_taken_when_the_run_goes_on(
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {"epochs": 3, "batch_size": 8, "select": "val", "trackers": ()}
    sets = pictures(40), pictures(40, seed=1)
    unstopped = fit(host(), *sets, **settings)
    scored: list[int] = []

    class Impatient(Dataset[Any]):
        """Somebody presses Ctrl-C while it is scored for the second time."""

        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            scored.append(index)
            if len(scored) == 45:
                signal.raise_signal(signal.SIGINT)
            return sets[1][index]

    val = Impatient()
    settings |= {"out": tmp_path / "run"}
    with pytest.raises(Interrupted, match="after step 10 of 15"):
        fit(host(), sets[0], val, **settings)
    assert len(scored) == 40 + 32  # the second of its two batches was not read
    run = fit(host(), sets[0], val, resume=True, **settings)
    drop = {"seconds"}
    ours, theirs = ([{k: v for k, v in line.items() if k not in drop} for line in r.history]
                    for r in (run, unstopped))  # fmt: skip
    assert ours == theirs and run.record["results"]["val"] == unstopped.record["results"]["val"]
