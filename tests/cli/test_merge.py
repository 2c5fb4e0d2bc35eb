"""`intarsia merge`: an average of runs is a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from intarsia import open_run
from intarsia.core.sealing import check_settings, sealed
from intarsia.runs.souping import soup_runs

from ..killed import calls_of, killed_at
from .conftest import QUICK, TINY, Intarsia


def fitted(intarsia: Intarsia, folder: Path, out: Path, *words: str, model: str = "") -> Path:
    options = ("--model", model, "--untrained", "--size", "32") if model else TINY
    options += ("--method", "magnitude", "--set", "density=0.5", "--split-seed", "0")
    result = intarsia("fit", str(folder), *options, *QUICK, *words, "--out", str(out))
    assert result.code == 0, result.err
    return out


def test_runs_are_averaged_into_a_run(intarsia: Intarsia, folder: Path, tmp_path: Path) -> None:
    a = fitted(intarsia, folder, tmp_path / "a")
    b = fitted(intarsia, folder, tmp_path / "b", "--weight-decay", "0.3", "--epochs", "3")
    out = tmp_path / "merged"
    result = intarsia("merge", str(a), str(b), "--out", str(out), "--json")
    assert result.code == 0, result.err
    assert result.json["chosen"] == [str(a), str(b)] and result.json["distance"] > 0
    states = [open_run(run).model.state_dict() for run in (a, b, out)]
    for name, mean in states[2].items():
        torch.testing.assert_close(mean, (states[0][name] + states[1][name]) / 2)
        if mean.dim() > 1:
            assert torch.equal(mean != 0, states[0][name] != 0)
    scored = intarsia("evaluate", str(out), "--json")
    assert scored.json["accuracy"] == pytest.approx(result.json["results"]["test"]["accuracy"])
    record = json.loads((out / "run.json").read_text())
    assert record["record"]["soup"]["by"] is None and record["record"]["label"].startswith("soup")
    greedy = tmp_path / "greedy"
    result = intarsia("merge", str(a), str(b), "--out", str(greedy), "--greedy", "--line", "--json")
    assert result.code == 0, result.err
    points = result.json["line"]["points"]
    assert [round(share, 1) for share, _ in points] == [i / 10 for i in range(11)]
    (pair,) = result.json["pairs"]
    assert (pair["a"], pair["b"]) == (0, 1) and pair["distance"] > 0 and 0 < pair["cosine"] <= 1
    page = tmp_path / "page.html"
    assert intarsia("report", str(greedy), "--out", str(page)).code == 0
    assert "Candidates of the soup" in page.read_text() and "plot-line" in page.read_text()
    scores = [json.loads((r / "run.json").read_text())["results"]["val"] for r in (a, b)]
    best = max(score["accuracy"] for score in scores)
    assert result.json["by"] == "val" and result.json["results"]["val"]["accuracy"] >= best
    foreign = tmp_path / "other"  # of another split
    shutil.copytree(b, foreign)
    path = foreign / "run.json"
    record, files = check_settings(path, json.loads(path.read_text()))
    record["record"]["data"]["parts"]["train"]["sha256"] = "0" * 64
    path.write_text(json.dumps(sealed(record, files)))
    for words, message in (
        ((str(a), str(foreign), "--out", str(tmp_path / "no")), "other parts of data"),
        ((str(a), "--out", str(tmp_path / "no")), "1 run"),
        ((str(a), str(b)), "--out"),
        ((str(a), str(b), "--out", str(out)), "other files in it"),
        ((str(a), str(tmp_path), "--out", str(tmp_path / "no")), "a folder with 1 .html file"),
        ((str(a), f"{a}/.", "--out", str(tmp_path / "no")), "more than once"),
        ((str(a), str(b), "--weights", "1,x", "--out", str(tmp_path / "no")), "'1,x'"),
        ((str(a), str(b), "--weights", "1,1", "--out", str(tmp_path / "no")), "add up to 1"),
    ):
        result = intarsia("merge", *words)
        assert result.code == 2 and message in result.words, result.err
        assert not (tmp_path / "no").exists()


def test_batch_norms_are_counted_anew(intarsia: Intarsia, folder: Path, tmp_path: Path) -> None:
    runs = [
        fitted(intarsia, folder, tmp_path / n, "--epochs", n, model="test_resnet") for n in "12"
    ]
    out = tmp_path / "merged"
    result = intarsia("merge", *map(str, runs), "--out", str(out))
    assert result.code == 0, result.err
    states = [open_run(run).model.state_dict() for run in (*runs, out)]
    name = next(n for n in states[0] if n.endswith("running_var"))
    mean = (states[0][name] + states[1][name]) / 2
    assert not torch.allclose(states[2][name], mean)
    assert int(states[2][name.replace("running_var", "num_batches_tracked")]) > 0


@pytest.mark.slow
def test_killed_at_any_moment_a_merge_is_whole_or_not_there(
    intarsia: Intarsia, folder: Path, tmp_path: Path
) -> None:
    runs = [fitted(intarsia, folder, tmp_path / n, "--weight-decay", n[1]) for n in ("a0", "b1")]
    kept, out = {path.name for path in tmp_path.iterdir()}, tmp_path / "merged"

    def work() -> None:
        soup_runs(runs, out)

    total = calls_of(work)
    want = open_run(out).model.state_dict()
    ends = set[bool]()
    # most calls come while the runs are read, those at the end put the result in place
    for number in {*np.linspace(0, total - 1, 6).astype(int).tolist(), *range(total - 8, total)}:
        shutil.rmtree(out, ignore_errors=True)
        assert killed_at(number, work)
        ends.add(out.exists())
        if not out.exists():
            work()
        assert all(torch.equal(t, want[n]) for n, t in open_run(out).model.state_dict().items())
        assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == kept | {
            "merged"
        }
    assert False in ends
