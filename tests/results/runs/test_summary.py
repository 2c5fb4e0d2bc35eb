"""What the page says in words is what the runs say in numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from intarsia.results import numbers
from intarsia.results.runs import comparison_of, gather, read_run
from intarsia.results.runs.sentences import differences, notices, selection_rule, sentences, title
from intarsia.results.runs.settings_rows import (
    commands,
    data_parts,
    method_rows,
    run_rows,
    setting_rows,
    value_text,
)
from intarsia.results.wording import joined

Make = Callable[..., Path]


def test_a_comparison_in_words(runs: Path) -> None:
    comparison = comparison_of(gather([runs]))
    what, result, _, _, cost, guess = sentences(comparison)
    assert what == (
        "Linear probe, plain adapter and mosa adapt vit_small_patch14_dinov2 (22.1 M parameters) "
        "to elpv: 4 classes, 1,000 training, 150 validation and 160 test pictures, 3 seeds each."
    )
    best, base = comparison.best, comparison.groups[0]
    difference = 100 * (best.accuracy.mean - base.accuracy.mean)
    assert f"The best, mosa, gets {100 * best.accuracy.mean:.1f} ± " in result
    assert f": +{difference:.1f} ± " in result and "ahead in 3 of 3 shared seeds." in result
    assert "155 k parameters with the head, 0.70 % of the model" in cost
    assert 'Always answering "whole" would be right for ' in guess
    assert title(comparison) == "Linear probe, plain adapter and mosa on elpv"
    (shared,) = notices(comparison)
    assert "share the learning rate 0.001" in shared


def test_a_single_run_in_words(make_run: Make) -> None:
    run = read_run(make_run(change={"record": {}}))
    what, result, _ = sentences(comparison_of([run]))
    assert what.startswith("Mosa adapts VisionTransformer (22.2 M parameters): 4 classes, 1,000 ")
    assert what.endswith("1 seed.")
    assert result == f"It gets {100 * run.scores.accuracy:.1f} % of the test pictures right."


def test_a_baseline_that_is_not_beaten_is_said(runs: Path) -> None:
    text = " ".join(sentences(comparison_of(gather([runs]), "mosa")))
    assert "None does better than the baseline, mosa: it gets " in text


def test_a_difference_within_the_spread_is_said(make_run: Make) -> None:
    scores = {"plain adapter": (0.70, 0.80), "mosa": (0.75, 0.78)}
    folders = [
        make_run(f"{label}{seed}", label=label, seed=seed, change={"results.test.accuracy": value})
        for label, values in scores.items()
        for seed, value in enumerate(values)
    ]
    for folder in folders:
        (folder / "predictions.safetensors").unlink()
    text = sentences(comparison_of(gather(folders)))[1]
    assert "+1.5 ± 4.9" in text and "ahead in 1 of 2" in text
    assert text.endswith("that is within the spread over seeds.")


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
    found = notices(comparison_of(runs))
    assert any(says in text for text in found)
    assert "one seed has no spread" in found[-1] or "in both" in found[-1]


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ((0.70, 0.73, 0.71), "+1.33 points (95 % interval"),
        ((0.70, 0.73, 0.70), "these pairs cannot tell them apart."),
        ((0.70, 0.71, 0.70), "mosa is behind."),
        ((0.73, 0.74, 0.73), "mosa is ahead."),
    ],
)
def test_a_difference_comes_with_its_interval(
    make_run: Make, scores: tuple[float, ...], says: str
) -> None:
    base = {"mosa": scores, "plain adapter": (0.70, 0.70, 0.70)}
    if "behind" in says:
        base["plain adapter"] = (0.74, 0.75, 0.73)
    folders = [
        make_run(f"{label}{seed}", label=label, seed=seed, change={"results.test.accuracy": value})
        for label, values in base.items()
        for seed, value in enumerate(values)
    ]
    for folder in folders:
        (folder / "predictions.safetensors").unlink()
    comparison = comparison_of(gather(folders), "plain adapter")
    (told,) = differences(comparison)
    assert told.startswith("Mosa minus plain adapter: ") and "; 3 pairs): " in told
    assert says in told and told in sentences(comparison)
    gaps = np.array(base["mosa"]) - np.array(base["plain adapter"])
    low, high = stats.t.interval(0.95, 2, gaps.mean(), stats.sem(gaps))
    assert numbers.signed(100 * low, 2) in told and numbers.signed(100 * high, 2) in told


def test_two_pairs_have_no_interval(make_run: Make) -> None:
    folders = [
        make_run(f"{m}{s}", label=m, seed=s) for m in ("mosa", "plain adapter") for s in (0, 1)
    ]
    assert differences(comparison_of(gather(folders))) == []


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
    common, own = setting_rows(comparison_of(gather([slow, make_run("mosa")])))
    assert ("training.epochs", "8") in common
    assert own == [("training.lr", ["0.01", "0.001"])]
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
    found = data_parts(comparison_of([read_run(make_run(change=change))]))
    assert [(p.name, p.count, p.classes) for p in found["parts"]] == [
        ("training", "1,000", ""), ("validation", "150", ""), ("test", "160", "a 3"),
    ]  # fmt: skip
    assert found["name"] == "elpv" and found["same"]
    assert found["origin"] == [("Source", "here"), ("Licence", "CC")]


def test_other_seeds_with_other_pictures_are_said(runs: Path) -> None:
    assert not data_parts(comparison_of(gather([runs])))["same"]


def test_runs_one_by_one(runs: Path) -> None:
    found = run_rows(comparison_of(gather([runs])))
    assert len(found["rows"]) == 9
    assert all(len(row) == len(found["columns"]) for row in found["rows"])
    assert [row[-1] for row in found["rows"][-3:]] == ["mosa-0", "mosa-1", "mosa-2"]


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
