"""An experiment as data, carried out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from intarsia.core.errors import ConfigError, UnknownName
from intarsia.core.locks import alone
from intarsia.runs.execute import carry_out
from intarsia.runs.experiment import Adapted, Experiment, Pictures
from intarsia.runs.once import of_part
from intarsia.runs.runs import open_pictures, pictures_to_score, score
from intarsia.runs.settings import chosen
from intarsia.runs.shared import SharedWork
from intarsia.train import Metrics, Run, Running, Training, folder

from ..refusals import refused


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTARSIA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def run(data: str, shared: SharedWork | None = None, *, score: bool = True, **values: Any) -> Run:
    start = Experiment(Pictures(data, images=64, val=32, test=64)).changed(
        model="test_vit", size=32, pretrained=False, epochs=2, method="linear", frozen_once=True
    )
    return carry_out(start.changed(**values), Running(), lambda _: None, shared, score=score)


JOINT = "mini/synthetic-location+synthetic-orientation"


def test_joint_tasks_have_one_head_or_one_each() -> None:
    results = run(JOINT).record["results"]["test"]
    heads = run(JOINT, objective="task_heads").record["results"]["test"]
    assert results["own_task_accuracy"] >= results["accuracy"]
    assert heads["own_task_accuracy"] >= heads["accuracy"]
    assert results["loss"] != heads["loss"]
    smooth = run(JOINT, objective="task_heads+two_pass:add=1").record["results"]["test"]
    assert "own_task_accuracy" in smooth


def test_task_heads_want_several_tasks() -> None:
    with refused(ConfigError, what="--objective task_heads"):
        run("mini/synthetic-location", objective="task_heads")
    with refused(UnknownName, what="unknown objective", got="'plane'"):
        run(JOINT, objective="task_heads+plane")


def test_labels_that_are_places_are_not_augmented() -> None:
    with refused(ConfigError, what="--augment", got="'light' for mini/synthetic-location"):
        run("mini/synthetic-location", augment="light", frozen_once=False)
    with refused(ConfigError, what="--augment", got="'light' for mini/mnist+synthetic-location"):
        run("mini/mnist+synthetic-location", augment="light", frozen_once=False)


def test_the_last_blocks_of_a_baseline_are_in_the_record() -> None:
    records = [
        run("mini/synthetic-location", method="bitfit", frozen_once=False, **options).record[
            "record"
        ]
        for options in ({}, {"last_blocks": 1})
    ]
    methods = [record["method"] for record in records]
    assert methods == ["bitfit", {"method": "bitfit", "last_blocks": 1}]


def test_a_search_makes_nothing_of_the_test_part(tmp_path: Path) -> None:
    options = {"method": "last-k", "score": False}
    outcome = run("mini/synthetic-location", SharedWork(tmp_path), **options)
    assert outcome.test is None and "test" not in outcome.record["data"]
    kinds = [path.name.partition("-")[0] for path in tmp_path.glob("*.safetensors")]
    assert sorted(kinds) == ["pixels", "pixels", "tokens", "tokens"]


def test_what_is_shared_changes_nothing(tmp_path: Path) -> None:
    data, shared = "mini/synthetic-location", SharedWork(tmp_path)
    alone = [
        run(data, method=m, frozen_once=m == "linear").record["results"]["test"]
        for m in ("linear", "full")
    ]
    for again in range(2):
        for method, want in zip(("linear", "full"), alone, strict=True):
            frozen = method == "linear"
            got = run(data, shared, method=method, frozen_once=frozen).record["results"]["test"]
            assert got["accuracy"] == want["accuracy"], again


def test_what_is_shared_is_made_once_and_few_are_held(tmp_path: Path) -> None:
    calls: list[int] = []

    def make(n: int) -> int:
        calls.append(n)
        return n

    shared = SharedWork(keep=2)
    for n in (1, 2, 1, 3, 1, 2):
        assert shared.get("kind", {"n": n}, lambda n=n: make(n)) == n
    assert calls == [1, 2, 3, 2]
    assert shared.get("other", {"n": 1}, lambda: make(9)) == 9


def test_a_method_of_phases_is_carried_out_and_opened_again(tmp_path: Path) -> None:
    start = Experiment(Pictures("mini/synthetic-location", images=32, val=16, test=16)).changed(
        model="test_vit", size=32, pretrained=False, epochs=1, method="lt_sft",
        settings=("count=40",),
    )  # fmt: skip
    out = tmp_path / "run"
    done = carry_out(start, Running(out=out), lambda _: None)
    stored = json.loads((out / "adapter" / "adapter_config.json").read_text())
    counts = [int(entry.rpartition("=")[2]) for entry in stored["options"]["entries"]]
    assert stored["method"] == "sparse" and sum(counts) == 40
    assert done.record["record"]["method"]["method"] == "lt_sft"
    assert (out / "phases" / "1-all" / "run.json").is_file()
    again = carry_out(start, Running(out=out, resume=True), lambda _: None)
    assert again.record["results"]["test"] == done.record["results"]["test"]


def test_a_kill_before_the_last_file_is_no_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """run.json is written once, after all else, with what the experiment adds to it."""
    start = Experiment(Pictures(JOINT, images=32, val=32, test=32)).changed(
        model="test_vit", size=32, pretrained=False, epochs=1, method="last-k", frozen_once=True
    )
    written: list[dict[str, Any]] = []

    def write(path: Path, record: dict[str, Any]) -> None:
        assert (path.parent / "mistakes").is_dir() and (path.parent / "adapter").is_dir()
        written.append(record)

    monkeypatch.setattr(folder, "write_json", write)
    done = carry_out(start, Running(out=tmp_path / "run"), lambda _: None)
    (record,) = written
    assert record.pop("sha256")["files"].keys() >= {"adapter/host.safetensors"}
    assert record == done.record and not (tmp_path / "run" / "run.json").exists()
    assert record["results"]["seconds_once"] and record["results"]["test"]["own_task_accuracy"]


def test_a_folder_that_another_process_works_in_is_refused(tmp_path: Path) -> None:
    start = Experiment(Pictures("mini/synthetic-location", images=32, val=16, test=16))
    out = tmp_path / "run"
    refused: list[BaseException] = []

    def second(resume: bool) -> None:
        try:
            carry_out(start, Running(out=out, resume=resume), lambda _: None)
        except ConfigError as error:
            refused.append(error)

    with alone(out):
        for resume in (False, True):
            thread = Thread(target=second, args=(resume,))
            thread.start()
            thread.join()
        assert not any(out.iterdir())
    assert len(refused) == 2 and all("another process works on" in str(e) for e in refused)


ANY = {
    "an adapter": ("lora", ("rank=2",)),
    "a baseline": ("bitfit", ()),
    "PEFT's": ("peft-lora", ("r=2", "roles=qkv,projection")),
    "prompts": ("vpt-deep", ("prompts=2",)),
    "a recipe": ("official", ("bottleneck=4",)),
    "experts": ("upcycle", ("router=topk", "router.experts=4", "capacity.factor=2")),
    "experts of a size": ("upcycle", ("router=topk", "experts=3", "residual=sum")),
}


# untrained routers may well collapse in one epoch
@pytest.mark.filterwarnings("ignore::intarsia.gating.load.CollapseWarning")
@pytest.mark.parametrize("case", ANY)
def test_any_change_is_trained_and_opened_again(case: str, tmp_path: Path) -> None:
    method, settings = ANY[case]
    start = Experiment(Pictures("mini/synthetic-location", images=32, val=16, test=16)).changed(
        model="test_vit", size=32, pretrained=False, epochs=1, method=method, settings=settings
    )
    out = tmp_path / "run"
    done = carry_out(start, Running(out=out), lambda _: None)
    logits = load_file(out / "predictions.safetensors")["logits"]
    key = {"official": "mosa"}.get(method, method)
    method_record = done.record["record"]["method"]
    assert key == (method_record if isinstance(method_record, str) else method_record["method"])

    def scored() -> Tensor:
        opened = open_pictures(out)
        images = pictures_to_score(opened, None, "test", lambda _: None)
        return score(opened, images).logits

    assert_close(scored(), logits)


def test_a_change_is_put_into_the_last_blocks() -> None:
    outcomes = [
        run("mini/synthetic-location", method="upcycle", frozen_once=False, **options)
        for options in ({"settings": ("router.experts=2",)}, {"last_blocks": 1})
    ]
    layers = [len(outcome.record["results"]["routing"]) for outcome in outcomes]
    assert layers[0] > layers[1] == 1


@pytest.mark.parametrize(
    ("settings", "error", "field"),
    [
        (("router=topp", "router.expert=2"), UnknownName, "unknown setting of 'topp'"),
        (("router=lora",), UnknownName, "unknown method for --set router"),
        (("capacity.factors=2",), UnknownName, "unknown setting of 'capacity'"),
        (("capacity.factor=many",), ConfigError, "--set capacity.factor"),
        (("how=copied",), ConfigError, "how"),
        (("how.x=1",), ConfigError, "--set how.x"),
    ],
)
def test_a_wrong_setting_of_a_change(
    settings: tuple[str, ...], error: type[Exception], field: str
) -> None:
    with refused(error, what=field):
        chosen(Adapted(method="upcycle", settings=settings), Training())


def test_targets_are_for_cells() -> None:
    with refused(ConfigError, what="--target with method 'upcycle'"):
        chosen(Adapted(method="upcycle", targets=("mlp",)), Training())
    with refused(ConfigError, what="--set lr", got="lr=0.1"):
        chosen(Adapted(method="official", settings=("lr=0.1",)), Training())


def test_run_json_has_the_pictures_whatever_was_computed_of_them(tmp_path: Path) -> None:
    data, shared = "mini/synthetic-location", SharedWork(tmp_path)
    outcomes = [
        run(data, frozen_once=False),
        run(data),  # blocks computed once
        run(data, shared),
        run(data, shared, method="bitfit", last_blocks=1),  # features of another block
        run(data, size=64),
    ]
    reseeded = run(data, seed=1)
    for part in ("train", "val", "test"):
        (digest,) = {outcome.record["data"][part]["sha256"] for outcome in outcomes}
        assert reseeded.record["data"][part]["sha256"] != digest


@pytest.mark.parametrize("method", ["lora", "mosa", "bottleneck"])
def test_what_is_left_out_changes_nothing(method: str) -> None:
    values: dict[str, Any] = {"method": method, "last_blocks": 2, "lr": 1e-2}
    start = Experiment(Pictures("mini/synthetic-location", images=37, val=16, test=16)).changed(
        model="test_vit", size=32, pretrained=False, epochs=2, batch_size=8, **values
    )
    for frozen in (True, False):
        experiment = start.changed(frozen_once=frozen)
        whole_run, short = (
            carry_out(experiment, Running(), lambda _: None, untrimmed=w) for w in (True, False)
        )
        losses = [[line["loss"] for line in outcome.history] for outcome in (whole_run, short)]
        assert_close(*losses, rtol=1e-4, atol=1e-4)
        assert isinstance(whole_run.test, Metrics) and isinstance(short.test, Metrics)
        assert_close(short.test.logits, whole_run.test.logits, rtol=1e-3, atol=1e-3)
        assert short.record["data"] == whole_run.record["data"]


def test_a_pruner_takes_its_rows_from_the_training_data_and_its_zeros_stay(tmp_path: Path) -> None:
    start = Experiment(Pictures("mini/synthetic-location", images=64, val=32, test=64)).changed(
        model="test_vit", size=32, pretrained=False, epochs=1, method="dsnot",
        settings=("base=sparsegpt", "base.density=0.25", "base.layers=*.mlp.*"),
    )  # fmt: skip
    outcome = carry_out(start, Running(out=tmp_path / "run"), lambda _: None)
    assert outcome.record["recipe"]["schedule"]["name"] == "FixedMask"
    state = open_pictures(tmp_path / "run").model.state_dict()
    pruned = [w for n, w in state.items() if ".mlp.fc" in n and n.endswith("weight")]
    assert pruned
    for weight in pruned:
        assert float((weight != 0).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert bool((state["blocks.0.attn.qkv.weight"] != 0).all())


def test_blocks_are_no_layers_of_a_pruner() -> None:
    for method, setting in (("wanda", "layers="), ("dsnot", "base.layers=")):
        with refused(ConfigError, got="places for cells") as caught:
            chosen(Adapted(method=method, last_blocks=2), Training())
        assert setting in caught.value.fix
    start = Experiment(Pictures("elpv")).changed(method="wanda", last_blocks=2)
    assert start.suited().adapted.last_blocks is None


def test_what_is_scored_on_is_told_apart_by_its_own_pictures() -> None:
    record = {"trunk": "t", "pictures": {"train": "a", "test": "c"}}
    two = {"trunk": "t", "pictures": {"train": "b", "test": "c"}}
    assert of_part(record, "test") == of_part(two, "test") != of_part(record, "train")
    assert of_part(record, "train") != of_part(two, "train")
    assert of_part({**record, "trunk": "u"}, "test") != of_part(record, "test")
