"""What the page says in words is what the runs say in numbers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from intarsia.core.sealing import OPEN, seal_file
from intarsia.reports import numbers
from intarsia.reports.runs import comparison_of, gather, json_rows, read_run
from intarsia.reports.runs.grouping import Comparison
from intarsia.reports.runs.sentences import differences, notices, selection_rule, sentences, title
from intarsia.reports.runs.settings_rows import (
    commands,
    data_parts,
    method_rows,
    run_rows,
    setting_rows,
    value_text,
)
from intarsia.reports.runs.tables import table_of
from intarsia.reports.wording import joined
from intarsia_lab.bench.report.records import Done, MethodName, RunResult, Setup, TaskName
from intarsia_lab.bench.report.summary import tables
from intarsia_lab.bench.report.tables import difference_table

Make = Callable[..., Path]


def test_a_comparison_in_words(runs: Path) -> None:
    comparison = comparison_of(gather([runs]))
    intro, _, result, _, _, cost, guess = sentences(comparison)
    assert intro == (
        "Linear probe, plain adapter and MoSA adapt vit_small_patch14_dinov2 (22.1 M parameters) "
        "to elpv: 4 classes, 1,000 training, 150 validation and 160 test pictures, 3 seeds each."
    )
    best, base = comparison.best, comparison.groups[0]
    difference = 100 * (best.accuracy.mean - base.accuracy.mean)
    assert f"The best, MoSA, gets {100 * best.accuracy.mean:.1f} ± " in result
    assert f": +{difference:.1f} ± " in result and "ahead in 3 of 3 shared seeds." in result
    assert "155 k parameters with the head, 0.70 % of the model" in cost
    assert 'Always answering "whole" would be right for ' in guess
    assert title(comparison) == "Linear probe, plain adapter and MoSA on elpv"
    (shared,) = notices(comparison)
    assert "share the learning rate 0.001" in shared


def test_a_single_run_in_words(make_run: Make) -> None:
    run = read_run(make_run(change={"record": {}}))
    intro, result, _ = sentences(comparison_of([run]))
    assert intro.startswith("MoSA adapts VisionTransformer (22.2 M parameters): 4 classes, 1,000 ")
    assert intro.endswith("1 seed.")
    assert result == f"It gets {100 * run.scores.accuracy:.1f} % of the test pictures right."


def test_a_baseline_that_is_not_beaten_is_said(runs: Path) -> None:
    text = " ".join(sentences(comparison_of(gather([runs]), "mosa")))
    assert "None does better than the baseline, MoSA: it gets " in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"data.test": {"n": 160, "sha256": "x"}}, "same test pictures"),
        ({"data.train": {"n": 1000, "sha256": "x"}}, "same training pictures"),
        ({"record.model": "another"}, "different models"),
        ({"results.test": None}, "some on val"),
        ({"machine.threads": 1}, "different machines"),
        ({"versions.torch": "1.0"}, "versions differ"),
        ({"results.peak_bytes": {"accelerator": 5}}, "different ways"),
        ({"record.data": {"shared_pictures": {"train and test": 3}}}, "3 pictures in both"),
    ],
)
def test_runs_that_cannot_be_compared_fairly(
    make_run: Make, change: dict[str, object], says: str
) -> None:
    runs = [read_run(make_run("a", label="linear probe")), read_run(make_run("b", change=change))]
    texts = notices(comparison_of(runs))
    assert any(says in text for text in texts)
    assert "one seed has no spread" in texts[-1] or "in both" in texts[-1]


Right = Callable[[int, int], float]


@pytest.fixture
def scored(make_run: Make) -> Callable[..., Comparison]:
    """Runs of two methods on the same 36 pictures, by which of them each has right."""

    def make(seeds: int, **rights: Right) -> Comparison:
        items = torch.arange(36)
        for label, right in rights.items():
            for seed in range(seeds):
                hits = torch.tensor([right(i, seed) for i in range(36)], dtype=torch.bool)
                accuracy = float(hits.double().mean())
                change = {"results.test.accuracy": accuracy, "data.test.n": 36}
                folder = make_run(f"{label}{seed}", label=label, seed=seed, change=change)
                logits = torch.eye(4)[torch.where(hits, 0, 1)]
                tensors = {"logits": logits, "labels": torch.zeros(36).long(), "items": items}
                save_file(tensors, folder / "predictions.safetensors", {"split": "test", **OPEN})
                seal_file(folder / "predictions.safetensors")
        first = next(iter(rights))
        return comparison_of(gather([folder.parent]), first)  # pyright: ignore

    return make


def base(i: int, seed: int) -> bool:
    return i % 3 > 0


def test_one_picture_decides_nothing(scored: Callable[..., Comparison]) -> None:
    """The picture is right in all three seeds: over seeds alone that was +2.78 to +2.78, ahead."""
    comparison = scored(3, linear=base, lora=lambda i, seed: i == 0 or base(i, seed))
    (text,) = differences(comparison)
    assert text.startswith("LoRA minus linear: +2.78 points (95 % interval ")
    assert "over 36 test pictures and 3 seeds; 1 picture differs)" in text
    assert text.endswith("The difference is not statistically significant.")
    interval, _ = comparison.groups[1].interval(comparison.groups[0])
    assert interval is not None and interval.low < 0 < interval.high
    assert comparison.leader is None and table_of(comparison).best is None
    result = sentences(comparison)[2]
    assert result.startswith("The highest accuracy is that of LoRA, ") and "best" not in result


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_what_is_ahead_is_bold_and_named(scored: Callable[..., Comparison], seeds: int) -> None:
    comparison = scored(seeds, linear=base, lora=lambda i, seed: i % 4 > 0 or base(i, seed))
    (text,) = differences(comparison)
    ahead = "Of these two trainings that of LoRA is ahead." if seeds == 1 else "LoRA is ahead."
    assert ahead in text and "9 pictures differ" in text
    assert ("One seed says nothing" in text) == (seeds == 1)
    assert ("Two seeds say little" in text) == (seeds == 2)
    assert ("p = 0.004 (exact McNemar test)" in text) == (seeds == 1)
    behind = differences(comparison_of(comparison.runs, "lora"))
    assert ("linear is behind." in behind[0].lower()) and comparison.best.label == "lora"
    if seeds == 1:
        assert comparison.leader is None and table_of(comparison).best is None
        return
    assert comparison.leader is comparison.groups[1] and table_of(comparison).best == 1
    assert sentences(comparison)[2].startswith("The best, LoRA, gets ")


def test_the_best_is_significantly_ahead_of_every_other(scored: Callable[..., Comparison]) -> None:
    ahead = {
        "lora": lambda i, seed: i % 4 > 0 or base(i, seed),
        "dora": lambda i, seed: (i % 4 > 0 or base(i, seed)) and i != 1,
    }
    comparison = scored(3, linear=base, **ahead)
    assert all("is ahead" in text for text in differences(comparison))
    assert comparison.leader is None and table_of(comparison).best is None


def test_a_single_task_of_a_benchmark_is_judged_by_the_same_interval(
    scored: Callable[..., Comparison], tmp_path: Path
) -> None:
    comparison = scored(3, linear=base, lora=lambda i, seed: i % 4 > 0 or base(i, seed))
    task = TaskName("mini", "natural", "toy")
    records = [
        RunResult(
            f"{group.label}-{run.seed}",
            task,
            MethodName(group.label, group.label),
            run.seed,
            Setup("honest", "vit-s", 8),
            run.folder.name,
            Done(run.scores.accuracy, None, None, 10, 5, 1.0, None, None),
        )
        for group in comparison.groups
        for run in group.runs
    ]
    folder = comparison.runs[0].folder.parent
    want, _ = comparison.groups[1].interval(comparison.groups[0])
    assert want is not None
    for runs, cell, note in (
        (folder, numbers.interval(want.low, want.high, 2), ""),
        (None, "\N{EN DASH}", "There is no interval: the folders of the runs are not at hand."),
        (tmp_path / "other", "\N{EN DASH}", "There is no interval: the runs kept no predictions."),
    ):
        (finding,) = tables(records, "linear", runs).findings
        table = difference_table(finding)
        assert table is not None and ((note in table.notes) == bool(note))
        row = next(row for row in table.rows if row[0].text == "lora")
        assert row[2].text == cell


def test_runs_without_numbers_of_their_pictures(make_run: Make) -> None:
    """Positions do where all seeds have one test part; else there is no interval."""
    for missing in (True, False):
        for label in ("mosa", "plain adapter"):
            for seed in range(3):
                change = {"data.test": {"n": 160, "sha256": "x"}} if missing else {}
                folder = make_run(f"{missing}/{label}{seed}", label=label, seed=seed, change=change)
                tensors = load_file(folder / "predictions.safetensors")
                del tensors["items"]
                save_file(tensors, folder / "predictions.safetensors", {"split": "test", **OPEN})
                seal_file(folder / "predictions.safetensors")
        (text,) = differences(comparison_of(gather([folder.parent])))  # pyright: ignore
        assert ("95 % interval" in text) == missing
        assert ("There is no interval: each seed has a test part of its own" in text) != missing


def test_without_predictions_the_reason_is_said(runs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(runs, tmp_path / "runs")
    for file in copy.glob("*/predictions.safetensors"):
        file.unlink()
    comparison = comparison_of(gather([copy]))
    assert all(t.endswith("the runs kept no predictions.") for t in differences(comparison))
    assert table_of(comparison).best is None
    row = json_rows(comparison)[1]["difference"]
    assert row["interval"] == {"missing": "the runs kept no predictions"}


def test_other_scores_have_intervals_too(runs: Path) -> None:
    first, _, last = comparison_of(gather([runs])).groups
    for score in ("accuracy", "balanced_accuracy", "loss"):
        interval, _ = last.interval(first, score)
        assert interval is not None and interval.items == 320
        if score != "loss":
            assert interval.low > 0
        gaps = [
            a.items.values[score] for run in (last, first) for a in run.runs if a.items is not None
        ]
        assert len(gaps) == 6
    interval, missing = last.interval(first, "ece")
    assert interval is None and missing == "ece is no mean over items"


def test_a_score_on_val_that_also_chose_the_epoch(make_run: Make) -> None:
    change = {"results.test": None, "results.selection": {"rule": "val", "epoch": 3}}
    run = read_run(make_run(change=change))
    assert "so it is too high" in notices(comparison_of([run]))[0]
    assert "is not known" in selection_rule([run])


def test_selection_in_words(make_run: Make) -> None:
    selection = {"rule": "val", "epoch": 3, "disjoint_from_train": True}
    run = read_run(make_run(change={"results.selection": selection}))
    assert selection_rule([run]) == (
        "The epoch with the best validation accuracy is the result. No picture of the validation "
        "part is in the training part. The test part was scored once, after training."
    )


def test_settings_are_shared_or_differ(make_run: Make) -> None:
    slow = make_run("slow", label="linear probe", change={"training.lr": 0.01})
    common, varied = setting_rows(comparison_of(gather([slow, make_run("mosa")])))
    assert ("training.epochs", "8") in common
    assert varied == [("training.lr", ["0.01", "0.001"])]
    assert not any("seed" in name or "adapter" in name for name, _ in common)


def test_methods_one_by_one(make_run: Make) -> None:
    two = {
        "a": {"method": "lora", "options": {"rank": 4, "scale": None}},
        "b": {"peft_type": "IA3"},
    }
    folders = [make_run("0", label="linear probe"), make_run("1")]
    folders.append(make_run("2", change={"method.adapters": two}))
    assert [text for _, text in method_rows(comparison_of(gather(folders)))] == [
        "no adapter", "mosa bottleneck=16 on mlp", "a: lora rank=4; b: IA3",
    ]  # fmt: skip


def test_commands_once_and_without_the_folders_of_this_machine(runs: Path) -> None:
    assert commands(gather([runs])) == ["intarsia compare elpv --seeds 3"]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["/a/b/run.py", "--name", "two words"], ["run.py --name 'two words'"]),
        (None, []),
        ([], []),
        (7, []),
    ],
)
def test_commands(make_run: Make, command: object, text: list[str]) -> None:
    assert commands([read_run(make_run(change={"command": command}))]) == text


def test_parts_of_the_data(make_run: Make) -> None:
    part = {"name": "elpv/test", "counts": {"a": 3}, "licence": "CC", "source": "here"}
    change = {"record.data": {"parts": {"test": part}}}
    parts = data_parts(comparison_of([read_run(make_run(change=change))]))
    assert [(p.name, p.count, p.classes) for p in parts["parts"]] == [
        ("training", "1,000", ""), ("validation", "150", ""), ("test", "160", "a 3"),
    ]  # fmt: skip
    assert parts["name"] == "elpv" and parts["same"]
    assert parts["origin"] == [("Source", "here"), ("Licence", "CC")]


def test_other_seeds_with_other_pictures_are_said(runs: Path) -> None:
    assert not data_parts(comparison_of(gather([runs])))["same"]


def test_runs_one_by_one(runs: Path) -> None:
    table = run_rows(comparison_of(gather([runs])))
    assert len(table.rows) == 9
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert [row[-1].text for row in table.rows[-3:]] == ["mosa-0", "mosa-1", "mosa-2"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"), (True, "yes"), (0.001, "0.001"), ("x", "x"), ([], ""),
        (["a", "b"], "a, b"), ({"a": 1}, '{"a": 1}'), ([{"a": 1}], '[{"a": 1}]'),
        ([f"blocks.{i}.mlp" for i in range(12)] + ["head"], "blocks.*.mlp (12 times), head"),
    ],
)  # fmt: skip
def test_values_as_text(value: object, text: str) -> None:
    assert value_text(value) == text


def test_joined() -> None:
    assert [joined(["a", "b", "c"][:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
