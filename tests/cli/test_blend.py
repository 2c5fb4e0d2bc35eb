"""A blend of runs is a folder that answers with the mean of its members' probabilities."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from intarsia import open_run
from intarsia.core.errors import CheckpointError, ConfigError, DataError
from intarsia.core.sealing import sealed
from intarsia.folders.out.blends import export_blend_timm
from intarsia.reports.runs import read_run
from intarsia.runs.blending import BlendRun, open_blend, write_blend
from intarsia.runs.opening import open_single
from intarsia.runs.runs import RunOnPictures, picture_files

from ..killed import calls_of, killed_at
from ..refusals import refused
from .conftest import QUICK, TINY, Intarsia, photos, picture
from .test_labels import HOW, table  # noqa: F401

WEIGHTS, TEMPERATURES = (2.0, 1.0), (1.5, 0.5)


def fitted(intarsia: Intarsia, data: Path, out: Path, *words: object) -> Path:
    result = intarsia("fit", data, *words, "--split-seed", "0", "--out", out)
    assert result.code == 0, result.err
    return out


@pytest.fixture(scope="module")
def members(
    intarsia: Intarsia, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Two runs of other networks, sizes and scales of pictures; not to be written to."""
    place = tmp_path_factory.mktemp("members")
    other = ("--model", "test_resnet", "--untrained", "--size", "40", "--method", "linear")
    a = fitted(intarsia, folder, place / "a", *TINY, *QUICK)
    return a, fitted(intarsia, folder, place / "b", *other, *QUICK)


@pytest.fixture(scope="module")
def blend(members: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their blend; not to be written to."""
    out = tmp_path_factory.mktemp("blends") / "blend"
    return write_blend(out, members, WEIGHTS, TEMPERATURES)


def shares(run: RunOnPictures, pictures: list[Path], temperature: float = 1.0) -> torch.Tensor:
    """A run's own probabilities of each class, (pictures, classes)."""
    rows = [[dict(p.classes)[name] for name in run.classes] for p in run.predict(pictures)]
    probabilities = torch.tensor(rows)
    if run.several_labels:
        return (probabilities.logit() / temperature).sigmoid()
    return (probabilities.log() / temperature).softmax(1)


def opened(folder: Path) -> RunOnPictures:
    run = open_run(folder)
    assert isinstance(run, RunOnPictures)
    return run


def mean_of(runs: list[RunOnPictures], files: list[Path]) -> torch.Tensor:
    parts = zip(runs, WEIGHTS, TEMPERATURES, strict=True)
    return sum((w / 3 * shares(run, files, t) for run, w, t in parts), torch.zeros(()))


def test_the_verb_writes_what_the_function_writes(
    intarsia: Intarsia, members: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "blend"
    result = intarsia("blend", *members, "--out", out, "--weights", "2,1", "--json")
    assert result.code == 0, result.err
    assert result.json["weights"] == pytest.approx([2 / 3, 1 / 3])
    # its own folder may be written again
    again = intarsia("blend", *members, "--out", out)
    assert again.code == 0 and "intarsia export" in again.out
    want = write_blend(tmp_path / "want", members)
    assert opened(out).evaluate() == opened(want).evaluate()
    assert read_run(out).given["command"].startswith("intarsia")


def test_the_verb_refuses_before_its_work(
    intarsia: Intarsia, members: tuple[Path, Path], blend: Path, tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "blend")
    for words in (
        (members[0], *out),
        (*members, *out, "--weights", "two,1"),
        (*members, *out, "--weights", "1"),
        (*members, *out, "--weights", "1,-1"),
        (members[0], blend, *out),
        (members[0], members[0], *out),
        (members[0], tmp_path, *out),
        (*members, "--out", members[0]),
        members,
    ):
        assert intarsia("blend", *words).code == 2, words
    assert not (tmp_path / "blend").exists()


def test_a_blend_answers_with_the_mean(
    members: tuple[Path, Path], blend: Path, folder: Path
) -> None:
    run, files = open_run(blend), picture_files([folder])
    assert isinstance(run, BlendRun) and run.classes == ("dark", "light")
    sizes = [member.inputs.size for member in run.members]
    assert sizes == [(32, 32), (40, 40)] and run.members[0].inputs != run.members[1].inputs
    torch.testing.assert_close(shares(run, files), mean_of([*map(opened, members)], files))


def test_labels_that_apply_together_are_blended_each_by_itself(
    intarsia: Intarsia, tmp_path: Path, table: Path  # noqa: F811
) -> None:  # fmt: skip
    both = [
        fitted(intarsia, table, tmp_path / method, *TINY, *HOW, "--method", method)
        for method in ("mosa", "linear")
    ]
    run = opened(write_blend(tmp_path / "blend", both, WEIGHTS, TEMPERATURES))
    files = picture_files([table.parent])
    assert run.several_labels
    torch.testing.assert_close(
        shares(run, files), mean_of([*map(opened, both)], files), atol=1e-5, rtol=1e-4
    )
    stored = read_run(tmp_path / "blend").record["results"]["test"]
    assert run.evaluate()["f1"] == pytest.approx(stored["f1"])


def test_the_stored_scores_are_those_of_the_blend(intarsia: Intarsia, blend: Path) -> None:
    stored = json.loads((blend / "run.json").read_text())["results"]["test"]
    scores = intarsia("evaluate", blend, "--json").json
    assert scores["accuracy"] == stored["accuracy"]
    assert scores["loss"] == pytest.approx(stored["loss"], abs=1e-6)


def test_an_unreadable_picture_costs_no_other(
    intarsia: Intarsia, blend: Path, tmp_path: Path
) -> None:
    picture(tmp_path / "good.png", 50, 1)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page = tmp_path / "page.html"
    result = intarsia("predict", blend, tmp_path, "--json", "--out", page)
    assert result.code == 1 and "broken.png: cannot be read" in result.words
    bad, good = result.json
    assert bad["error"] and not bad["classes"]
    assert sum(good["classes"].values()) == pytest.approx(1, abs=1e-5)
    assert "good.png" in page.read_text()


def test_other_pictures_with_damaged_ones(intarsia: Intarsia, blend: Path, tmp_path: Path) -> None:
    new = photos(tmp_path / "more", n=3)
    (new / "dark" / "bad.png").write_text("no picture")
    result = intarsia("evaluate", blend, new, "--skip-unreadable", "--json")
    assert result.json["n"] == 6


def test_a_report_has_the_blend_beside_its_members(
    intarsia: Intarsia, members: tuple[Path, Path], blend: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    result = intarsia("report", blend, *members, "--out", page)
    assert result.code == 0, result.err
    # the same pictures: differences are paired
    assert "blend of lora and linear probe" in result.out and "interval" in result.out


def test_a_part_that_one_member_trained_on_scores_no_blend(
    intarsia: Intarsia, members: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(members[1], other)
    record = json.loads((other / "run.json").read_text())
    record["record"]["data"]["parts"]["val"]["sha256"] = "0" * 64
    (other / "run.json").write_text(json.dumps(record))
    out = write_blend(tmp_path / "blend", [members[0], other])
    kept = read_run(out).record["record"]["data"]["parts"]
    assert kept.keys() == {"train", "test"}


def test_members_may_move(members: tuple[Path, Path], blend: Path, tmp_path: Path) -> None:
    places = [shutil.copytree(member, tmp_path / member.name) for member in members]
    out = write_blend(tmp_path / "blend", places, WEIGHTS, TEMPERATURES, move=True)
    assert not any(place.exists() for place in places)
    assert (out / "blend.json").read_bytes() != b"" and isinstance(open_run(out), BlendRun)


def test_temperatures_are_those_that_the_runs_fitted(
    members: tuple[Path, Path], tmp_path: Path
) -> None:
    fitted_one = tmp_path / "fitted"
    shutil.copytree(members[0], fitted_one)
    record = json.loads((fitted_one / "run.json").read_text())
    record["results"]["test"]["temperature"] = 2.5
    (fitted_one / "run.json").write_text(json.dumps(record))
    out = write_blend(tmp_path / "blend", [fitted_one, members[1]])
    content = json.loads((out / "blend.json").read_text())
    assert content["temperatures"] == [2.5, 1.0] and content["weights"] == [0.5, 0.5]


@pytest.mark.thorough
def test_a_killed_writer_leaves_the_old_blend_or_the_new_one(
    members: tuple[Path, Path], tmp_path: Path
) -> None:
    places = [shutil.copytree(member, tmp_path / member.name) for member in members]
    out = write_blend(tmp_path / "blend", places, [1, 1])

    def work() -> None:
        write_blend(out, places, [3, 1], move=True)

    total = calls_of(work)  # moves the members
    for number in np.linspace(0, total - 1, 12).astype(int).tolist():
        for member in members:
            shutil.copytree(member, tmp_path / member.name, dirs_exist_ok=True)
        killed_at(number, work)
        run = open_blend(out)
        assert run.weights in ((0.5, 0.5), (0.75, 0.25))


@pytest.mark.parametrize(
    "values",
    [
        {"format": True},
        {"format": 2},
        {"format": None},
        {"weights": [0.5, 0.6]},
        {"weights": [1.0]},
        {"weights": [True, 0.0]},
        {"weights": [1.5, -0.5]},
        {"weights": "half"},
        {"temperatures": [1.0, 0.0]},
        {"temperatures": [1.0, float("inf")]},
        {"temperatures": [1.0, 1.0, 1.0]},
        {"classes": ["dark", "bright"]},
        {"classes": "dark"},
        {"classes": [1, 2]},
        {"weights": [0.4, 0.3, 0.3], "temperatures": [1.0, 1.0, 1.0]},  # no third member
    ],
)  # fmt: skip
def test_values_that_no_blend_has(blend: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    copy = shutil.copytree(blend, tmp_path / "copy")
    content = json.loads((copy / "blend.json").read_text())
    files = content.pop("sha256")["files"]
    (copy / "blend.json").write_text(json.dumps(sealed(content | values, files)))
    with refused(CheckpointError):
        open_run(copy)


@pytest.mark.parametrize(
    "damage",
    [
        lambda copy: (copy / "blend.json").write_text("{"),
        lambda copy: (copy / "blend.json").write_text("[]"),
        lambda copy: (copy / "blend.json").write_bytes(b"\xff\x00"),
        lambda copy: shutil.rmtree(copy / "members" / "1"),
        lambda copy: (copy / "members" / "0" / "experiment.json").unlink(),
        lambda copy: (copy / "run.json").write_text("{}"),
        lambda copy: (copy / "run.json").unlink(),
    ],
)
def test_a_damaged_folder(blend: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    copy = shutil.copytree(blend, tmp_path / "copy")
    damage(copy)
    with refused(CheckpointError):
        open_run(copy)


def test_members_that_do_not_fit(
    intarsia: Intarsia, members: tuple[Path, Path], blend: Path, tmp_path: Path
) -> None:
    out, (a, b) = tmp_path / "out", members
    with refused(ConfigError, what="members"):
        write_blend(out, [a])
    with refused(ConfigError, got="it twice"):
        write_blend(out, [a, a])
    with refused(ConfigError, got="a blend"):
        write_blend(out, [a, blend])
    for weights in ([1], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")]):
        with refused(ConfigError, what="weights"):
            write_blend(out, [a, b], weights)
    with refused(ConfigError, what="temperatures"):
        write_blend(out, [a, b], temperatures=[1, 0])
    with refused(ConfigError, what=f"member {blend / 'members' / '0'}"):
        write_blend(blend, [blend / "members" / "0", a])
    classes = photos(tmp_path / "photos", classes=("dark", "bright"))
    other = fitted(intarsia, classes, tmp_path / "other", *TINY, *QUICK)
    with refused(ConfigError, what=f"classes of {other}"):
        write_blend(out, [a, other])
    resplit = tmp_path / "resplit"
    shutil.copytree(b, resplit)
    record = json.loads((resplit / "run.json").read_text())
    record["record"]["data"]["parts"]["test"]["sha256"] = "0" * 64
    (resplit / "run.json").write_text(json.dumps(record))
    with refused(ConfigError, what=f"pictures scored by {resplit}"):
        write_blend(out, [a, resplit])
    shutil.copytree(b, tmp_path / "bare")
    (tmp_path / "bare" / "predictions.safetensors").unlink()
    with refused(DataError, what=f"answers of {tmp_path / 'bare'}"):
        write_blend(out, [a, tmp_path / "bare"])
    assert not out.exists()


ALONE = """
import runpy, sys
sys.modules.update(dict.fromkeys(("intarsia", "peft", "transformers")))
scripts, files = sys.argv[1:4], sys.argv[4:]
for script in scripts:
    sys.argv = [script, *files]
    try:
        runpy.run_path(script)
    except SystemExit as end:
        print("END", end.code)
"""


def said_alone(scripts: list[Path], files: list[Path]) -> list[list[str]]:
    """The words of each line that the scripts print, in a process without the library."""
    words = [sys.executable, "-c", ALONE, *map(str, scripts), *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no picture that can be read") == len(scripts)
    return [line.split() for line in done.stdout.splitlines()]


def exported(intarsia: Intarsia, run: Path, folder: Path) -> list[Path]:
    """The scripts of a blend's exports in all three forms."""
    places = {"timm": folder / "stock", "onnx": folder / "m.onnx", "torch": folder / "p.pt2"}
    for form, place in places.items():
        result = intarsia("export", run, "--format", form, "--out", place, "--json")
        assert result.code == 0, result.err
        assert any("output difference" in line for line in result.json["checks"])
    return [folder / name for name in ("stock/predict.py", "m.onnx.predict.py", "p.pt2.predict.py")]


@pytest.mark.thorough
def test_exports_answer_as_the_blend_without_the_library(
    intarsia: Intarsia, blend: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = [tmp_path / "broken.png", folder / "dark" / "0.png", folder / "light" / "1.png"]
    scripts = exported(intarsia, blend, tmp_path)
    want = [(str(p.file), *p.classes[0]) for p in opened(blend).predict(files[1:])]
    rows = said_alone(scripts, files)
    assert len(rows) == 3 * 3
    for first in range(0, 9, 3):
        for (file, name, share), row in zip(want, rows[first : first + 2], strict=True):
            assert row[:2] == [file, name] and float(row[2]) == pytest.approx(share, abs=2e-4)
        # an unreadable file is named, and is the exit code's reason
        assert rows[first + 2][:3] == ["END", "1", "of"]
    how = json.loads((tmp_path / "stock" / "config.json").read_text())["preprocessing"]
    assert [member["crop"] for member in how["members"]] == [[32, 32], [40, 40]]
    meta = {p.key: p.value for p in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(meta["preprocessing"]) == how


@pytest.mark.thorough
def test_an_onnx_blend_has_an_input_for_each_member(
    intarsia: Intarsia, blend: Path, tmp_path: Path
) -> None:
    place = tmp_path / "m.onnx"
    result = intarsia("export", blend, "--format", "onnx", "--keep-adapter", "--out", place)
    assert result.code == 0, result.err
    session = onnxruntime.InferenceSession(place)
    shapes = {entry.name: entry.shape[1:] for entry in session.get_inputs()}
    assert shapes == {"pixels_0": [3, 32, 32], "pixels_1": [3, 40, 40]}
    pixels = {name: np.zeros((3, *shape), np.float32) for name, shape in shapes.items()}
    (logits,) = session.run(["logits"], pixels)
    np.testing.assert_allclose(np.exp(logits).sum(1), 1, atol=1e-5)  # of probabilities


def test_what_no_blend_can_be_exported_as(intarsia: Intarsia, blend: Path, tmp_path: Path) -> None:
    for words in (
        ("--format", "onnx", "--int8", "--out", tmp_path / "m.onnx"),
        ("--format", "timm", "--keep-adapter", "--out", tmp_path / "m"),
        ("--chosen", "--out", tmp_path / "m"),
    ):
        assert intarsia("export", blend, *words).code == 2, words
    with refused(ConfigError, what="members"):
        export_blend_timm([], tmp_path / "m", classes=["a", "b"])
    # an earlier export is replaced, another folder is not
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years")
    assert intarsia("export", blend, "--out", tmp_path / "mine").code == 2


def test_what_needs_one_model_refuses_a_blend(
    intarsia: Intarsia, members: tuple[Path, Path], blend: Path, tmp_path: Path
) -> None:
    for words in (
        ("evaluate", blend, "--size", "64"),
        ("merge", blend, members[0], "--out", tmp_path / "x"),
        ("compress", blend, "--out", tmp_path / "x"),
        ("fit", "--resume", "--out", blend),
        ("export", blend, "--format", "gguf", "--out", tmp_path / "x.gguf"),
    ):
        result = intarsia(*words)
        assert result.code == 2 and "blend" in result.words, words
    with refused(ConfigError, want="a single run of `intarsia fit`"):
        open_single(blend)
