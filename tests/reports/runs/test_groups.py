"""Means and sample spreads over seeds, paired differences, labels that tell apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import DataError, UnknownName
from intarsia.reports.runs import comparison_of, gather, json_rows, read_run
from intarsia.reports.runs.grouping import label_of
from intarsia.reports.runs.items import run_items
from intarsia.reports.sheet import Spread

from ...refusals import refused

Make = Callable[..., Path]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_spread_is_the_sample_deviation(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread.n == len(values)
    assert spread.mean == pytest.approx(np.mean(values))
    assert spread.deviation == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_one_value_has_no_spread() -> None:
    assert Spread.of([0.5]) == Spread(0.5, None, 1)


def test_seeds_of_one_method_are_one_group(runs: Path) -> None:
    comparison = comparison_of(gather([runs]))
    assert [g.label for g in comparison.groups] == ["linear probe", "plain adapter", "mosa"]
    assert all([run.seed for run in g.runs] == [0, 1, 2] for g in comparison.groups)
    assert comparison.baseline is comparison.groups[0]
    assert comparison.best is comparison.groups[2]
    assert len(comparison.others()) == 2


def test_differences_are_paired_by_seed(make_run: Make) -> None:
    def scored(name: str, label: str, seed: int, accuracy: float) -> Path:
        folder = make_run(name, label=label, seed=seed, change={"results.test.accuracy": accuracy})
        return folder

    folders = [
        scored("a0", "linear probe", 0, 0.5), scored("a1", "linear probe", 1, 0.7),
        scored("b1", "mosa", 1, 0.8), scored("b0", "mosa", 0, 0.65), scored("b2", "mosa", 2, 0.1),
    ]  # fmt: skip
    for folder in folders:
        (folder / "predictions.safetensors").unlink()
    base, mosa = comparison_of(gather(folders)).groups
    difference = mosa.difference(base)
    assert (difference.n, difference.ahead) == (2, 2)  # seed 2 has no partner
    assert difference.mean == pytest.approx(0.125)
    assert difference.spread.deviation == pytest.approx(np.std([0.15, 0.1], ddof=1))


def test_without_a_shared_seed_only_means_are_compared(make_run: Make) -> None:
    first, second = make_run("a", label="linear probe", seed=0), make_run("b", label="mosa", seed=1)
    base, mosa = comparison_of(gather([first, second])).groups
    assert mosa.difference(base) is None
    row = json_rows(comparison_of(gather([first, second])))[1]["difference"]
    apart = mosa.accuracy.mean - base.accuracy.mean
    missing = {"missing": "no seed in common"}
    plain = {"mean": pytest.approx(apart), "deviation": None, "n": 0, "ahead": 0}
    assert row == plain | {"interval": missing}


def test_settings_keep_groups_apart_and_label_them(make_run: Make) -> None:
    changes = [{}, {"training.lr": 0.01}, {"training.lr": 0.01, "training.seed": 7}]
    runs = gather([make_run(str(i), change=change) for i, change in enumerate(changes)])
    groups = comparison_of(runs).groups
    assert [g.label for g in groups] == ["mosa (lr=0.001)", "mosa (lr=0.01)"]
    assert [len(g.runs) for g in groups] == [1, 2]


def test_fewer_training_images_are_another_setting(make_run: Make) -> None:
    small = make_run("few", change={"data.train": {"n": 200, "sha256": "0"}})
    labels = [g.label for g in comparison_of(gather([make_run("many"), small])).groups]
    assert labels == ["mosa (train=1000)", "mosa (train=200)"]


def test_a_repeated_seed_is_no_second_sample(make_run: Make) -> None:
    with refused(DataError, what="runs of 'mosa'"):
        comparison_of(gather([make_run("a"), make_run("b")]))


def test_baseline_by_name(runs: Path) -> None:
    gathered = gather([runs])
    assert comparison_of(gathered, "plain adapter").baseline is not None
    with refused(UnknownName, what="unknown baseline", got="'mossa'", near=("mosa",)):
        comparison_of(gathered, "mossa")


def test_a_single_group_has_no_baseline(make_run: Make) -> None:
    assert comparison_of([read_run(make_run())]).baseline is None


def test_nothing_to_compare() -> None:
    with refused(DataError, what="runs", got=0):
        comparison_of([])


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"record": {"label": "mine"}}, "mine"),
        ({"record": {}}, "mosa"),
        ({"record": None}, "mosa"),
        ({"record": {}, "objective": {"name": "two_pass", "reg": 1}}, "mosa, two_pass"),
        ({"record": {}, "method.adapters.default": {"peft_type": "LORA"}}, "LORA"),
        ({"record": {}, "method": {}, "parameters.trained_without_head": 0}, "linear probe"),
        ({"record": {}, "method": {}, "parameters.all": 154_756}, "full fine-tuning"),
        ({"record": {}, "method": {}}, "partial fine-tuning"),
    ],
)
def test_label(make_run: Make, change: dict[str, object], label: str) -> None:
    assert label_of(read_run(make_run(change=change))) == label


def test_what_decides_a_result_keeps_groups_apart(make_run: Make) -> None:
    """PEFT's own settings, the size of the pictures, a baseline's settings."""
    change = "method.adapters"
    ranks = [{change: {"default": {"peft_type": "LORA", "r": r}}} for r in (8, 64)]
    sizes = [{"record.inputs": {"size": [s, s]}} for s in (56, 224)]
    blocks = [{change: {}, "record.method": {"method": "bitfit", "last_blocks": n}} for n in (0, 6)]
    for i, pair in enumerate((ranks, sizes, blocks)):
        runs = [make_run(f"{i}{j}", label="one", change=c) for j, c in enumerate(pair)]
        assert len(comparison_of(gather(runs)).groups) == 2
    moved = [{change: {"default": {"peft_type": "LORA", "base_model_name_or_path": p},},
              "training.seed": s} for s, p in enumerate("ab")]  # fmt: skip
    runs = [make_run(f"m{i}", label="one", change=c) for i, c in enumerate(moved)]
    assert len(comparison_of(gather(runs)).groups) == 1


def test_what_the_seed_chose_keeps_no_seeds_apart(make_run: Make) -> None:
    """S2FT's channels and LT-SFT's entries are other ones at each seed; what was asked is not."""

    def run(name: str, seed: int, share: float, layer: str = "fc2") -> Path:
        options = {"down": share, "channels": [["blocks.0.mlp.fc2", f"{seed}"]]}
        adapter = {"method": "s2ft", "options": options, "target_modules": [layer]}
        settings = {"method": "s2ft", "down": share, "channels": []}
        change = {"method.adapters": {"default": adapter}, "record.method": settings}
        return make_run(name, label="s2ft", seed=seed, change=change)

    folders = [run("a", 0, 0.03), run("b", 1, 0.03), run("c", 0, 0.06), run("d", 0, 0.03, "fc1")]
    groups = comparison_of(gather(folders)).groups
    assert [len(group.runs) for group in groups] == [2, 1, 1]
    assert "down=0.06" in groups[1].label and "channels" not in groups[1].label


def test_texts_are_items_whose_tokens_are_weights() -> None:
    tensors = {
        "loss": np.array([2.0, 9.0, 0.0]),
        "tokens": np.array([4, 6, 0]),
        "hits": np.array([1, 3, 0]),
        "items": np.array([7, 5, 3]),
    }
    items = run_items(tensors, "part")
    assert items.numbered and items.values.keys() == {"accuracy", "loss"}
    for score, mean in (("accuracy", 0.4), ("loss", 1.1)):
        item = items.values[score]
        assert item.items.tolist() == [7, 5] and item.weights is not None
        assert np.average(item.values, weights=item.weights) == pytest.approx(mean)
    assert not run_items({"scores": np.zeros((3, 2))}, "part").values
