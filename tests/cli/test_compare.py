"""compare, report, demo and reproduce: many runs, kept and gone on with, one table, one page."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from intarsia import Bottleneck, Lora, Mosa, TopK
from intarsia.cli import demo_steps, exporting
from intarsia.core.errors import ConfigError, DataError, TrainingError
from intarsia.experts import Upcycle
from intarsia.runs import matrix, rates
from intarsia.runs.experiment import Adapted, Experiment, Pictures
from intarsia.runs.matrix import PlannedRun, by_method, on_one_adapter, planned, run_all
from intarsia.runs.settings import method
from intarsia.train import Training
from intarsia_lab.cli import words as lab_words
from intarsia_lab.experiments import records
from intarsia_lab.kit import Effect, Result, Study

from ..refusals import refused
from .conftest import QUICK, TINY, Intarsia, photos


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders' names of runs, which are carried out in this process."""
    names: list[str] = []
    real = matrix.run

    def run(inputs: Any) -> Any:
        names.append(Path(inputs["folder"]).name)
        return real(inputs)

    monkeypatch.setattr(matrix, "EXECUTOR", "here")
    monkeypatch.setattr(matrix, "run", run)
    monkeypatch.setattr(rates, "run", run)
    return names


COMPARE = (
    "--methods",
    "linear,bottleneck,mosa",
    "--seeds",
    "0,1",
    "--set",
    "mosa.over.bottleneck=4",
)


def test_compare_gives_one_table_and_one_page(
    intarsia: Intarsia, folder: Path, tmp_path: Path, started: list[str]
) -> None:
    words = (
        "compare",
        folder,
        *TINY,
        *QUICK,
        *COMPARE,
        "--last-blocks",
        "2",
        "--out",
        tmp_path / "c",
    )
    result = intarsia(*words, "--json")
    assert result.code == 0, result.err
    rows = {row["method"]: row for row in result.json["rows"]}
    assert list(rows) == ["linear probe", "bottleneck", "mosa"]
    assert all(row["accuracy"]["n"] == 2 and row["seeds"] == [0, 1] for row in rows.values())
    assert rows["mosa"]["difference"]["n"] == 2
    assert (tmp_path / "c" / "report.html").read_text().startswith("<!")
    # one adapter, split and whole
    settings = [json.loads((tmp_path / "c" / n / "run.json").read_text())["record"]["method"]
                for n in ("mosa-0", "bottleneck-0")]  # fmt: skip
    assert settings[0]["over"] == settings[1]
    # the run that validation chooses is named in all forms, and exported by that
    choice = result.json["chosen"]
    assert choice["validation"].keys() == rows.keys() and choice["method"] in rows
    assert "Chosen on the validation part" in (tmp_path / "c" / "report.html").read_text()
    exported = intarsia("export", tmp_path / "c", "--chosen", "--json")
    assert exported.code == 0, exported.err
    assert exported.json["path"] == str(tmp_path / "c" / "export")
    assert f"Its best run there is {Path(choice['folder']).name}." in exported.words
    result = intarsia("export", choice["folder"], "--chosen")
    assert result.code == 2 and "Leave --chosen out" in result.words
    # nothing is done twice; one that is gone is made again
    assert len(started) == 6
    result = intarsia(*words)
    assert (
        result.code == 0 and "6 of 6 runs are there already" in result.words and len(started) == 6
    )
    assert "linear probe" in result.out and "Report:" in result.out
    assert "--chosen --format timm" in result.out
    (tmp_path / "c" / "mosa-1" / "run.json").unlink()
    assert intarsia(*words).code == 0
    assert len(started) == 7 and started[-1] == "mosa-1"
    # other settings need another folder
    result = intarsia(*words, "--lr", "0.5")
    assert result.code == 2 and "lr=0.01" in result.words and "another --out" in result.words


def test_compare_finds_a_rate_for_each_method_on_validation(
    intarsia: Intarsia, folder: Path, tmp_path: Path, started: list[str]
) -> None:
    out = tmp_path / "c"
    words = ("compare", folder, *TINY, "--epochs", "1", "--batch-size", "8", "--methods", "lora")
    words = (*words, "--seeds", "0", "--rates", "1e-3,1e-2", "--out", out)
    result = intarsia(*words, "--json")
    assert result.code == 0, result.err
    rows = {row["method"]: row for row in result.json["rows"]}
    assert list(rows) == ["lora", "linear probe"]  # which stands beside what was named
    row, search = rows["lora"], rows["lora"]["search"]
    assert row["lr"] == search["rate"] and {1e-3, 1e-2} <= set(search["rates"])
    assert search["draws"] == 3
    record = json.loads((out / "lora-0/run.json").read_text())
    assert record["record"]["search"] == search and record["training"]["lr"] == row["lr"]
    assert f"--lr {row['lr']}" in record["record"]["command"]
    # the probe is fitted to convergence, without a rate
    probe = json.loads((out / "linear-0/run.json").read_text())
    assert probe["training"]["lr"] is None and probe["results"]["steps"] == 0
    assert rows["linear probe"]["search"] is None and rows["linear probe"]["lr"] is None
    assert (
        not (out / "rates").exists()
        and "learning rates (0.001" in (out / "report.html").read_text()
    )
    count = len(started)
    result = intarsia(*words)
    assert (
        result.code == 0
        and len(started) == count
        and "tried" in result.out
        and "Rate" in result.out
    )
    # a rate for all is another comparison
    result = intarsia(*words[:-4], "--lr", "0.7", "--out", out)
    assert result.code == 2 and "another --out" in result.words and len(started) == count


def test_a_comparison_without_a_probe(
    intarsia: Intarsia, folder: Path, tmp_path: Path, started: list[str]
) -> None:
    words = ("compare", folder, *TINY, *QUICK, "--methods", "lora", "--seeds", "0", "--no-linear")
    result = intarsia(*words, "--set", "lora.lr=0.02", "--out", tmp_path / "c", "--json")
    assert result.code == 0 and started == ["lora-0"]
    assert [(row["method"], row["lr"]) for row in result.json["rows"]] == [("lora", 0.02)]
    # without a validation part there is nothing to choose by, and the test part does not stand in
    result = intarsia(*words, "--val", "0", "--out", tmp_path / "d")
    assert result.code == 0 and "--chosen" not in result.out
    with refused(DataError, what=f"choice in {tmp_path / 'd'}"):
        exporting._chosen_run(tmp_path / "d")


def test_a_text_s_rate_is_the_one_of_lowest_perplexity(
    intarsia: Intarsia, mixture: Path, tmp_path: Path, started: list[str]
) -> None:
    data = tmp_path / "notes.txt"
    data.write_text("the cat sat on the mat. " * 60)
    words = ("compare", data, "-m", mixture, "--methods", "lora", "--seeds", "0", "--length", "16")
    words = (*words, "--epochs", "1", "--rates", "1e-3,1e-1", "--out", tmp_path / "c", "--json")
    result = intarsia(*words)
    assert result.code == 0, result.err
    (row,) = result.json["rows"]  # no probe of a text
    search = row["search"]
    assert search["measure"] == "perplexity" and search["draws"] == 1
    scores = dict(zip(search["rates"], search["scores"], strict=True))
    assert row["lr"] == max(scores, key=lambda rate: scores[rate])
    assert "lowest perplexity on" in (tmp_path / "c" / "report.html").read_text()


def test_texts_are_compared_by_methods_that_they_can_have(
    intarsia: Intarsia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: list[Any] = []

    def fail(inputs: Any) -> Any:
        requests.append(inputs["experiment"])
        raise ValueError("no machine for it")

    monkeypatch.setattr(matrix, "EXECUTOR", "here")
    monkeypatch.setattr(matrix, "run", fail)
    data = tmp_path / "answers.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n' * 9)
    words = ("compare", data, "--seeds", "0", "--lr", "1e-3", "--out", tmp_path / "c")
    assert intarsia(*words).code == 2
    assert [(request["model"], request["method"]) for request in requests] == [
        ("smollm2", "lora"), ("smollm2", "mixlora"),
    ]  # fmt: skip
    requests.clear()
    assert intarsia(*words, "-m", "mine", "--methods", "mixlora").code == 2
    assert [(request["model"], request["method"]) for request in requests] == [("mine", "mixlora")]
    requests.clear()
    for rival in ("linear", "official"):
        result = intarsia(*words, "--methods", f"lora,{rival}")
        assert "a method without a classifier" in result.words and not requests


def test_report_of_runs(intarsia: Intarsia, run: Path, tmp_path: Path) -> None:
    result = intarsia("report", run, "--out", tmp_path / "page.html")
    assert result.code == 0 and "mosa" in result.out
    assert "mosa" in (tmp_path / "page.html").read_text()
    result = intarsia("report", run, "--out", tmp_path / "page.html", "--json")
    assert result.json["rows"][0]["method"] == "mosa"
    result = intarsia("report", run, "--baseline", "lora", "--out", tmp_path / "page.html")
    assert result.code == 2 and "baseline" in result.words
    result = intarsia("report", tmp_path / "none")
    assert result.code == 2 and "no such folder" in result.words


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--methods linear,moza", "or mosa?"),
        ("--seeds x", "For example: --seeds=0,1"),
        ("--methods linear,linear", "each once"),
        ("--methods ,", "at least one"),
        ("--seeds 0,x", "several with commas"),
        ("--seeds 0,0", "each once"),
        ("--set experts=2", "METHOD.name=value"),
        ("--set bitfit.rank=2", "one of bottleneck, linear, lora, mosa"),
        ("--lr 0", "want above 0"),
        ("--lr nan", "want"),
        ("--set lora.lr=-1", "--set lora.lr"),
        ("--set lora.lr=fast", "--set lora.lr"),
        ("--set bitfit.lr=1", "one of bottleneck, linear, lora, mosa"),
        ("--rates 1e-3", "two or more different rates"),
        ("--rates 1e-3,1e-3", "two or more different rates"),
        ("--rates 1e-3,0", "from 1e-06 to 1"),
        ("--rates 1e-3,nan", "from 1e-06 to 1"),
        ("--rates 1e-3,x", "numbers with commas"),
        ("--rates ,", "got none"),
        ("--rates 1e-3,1e-2 --lr 1e-3", "a search, or one rate for all"),
        ("--methods lora --no-linear --set lora.lr=1 --rates 1e-3,1e-2", "a method to search for"),
        ("--val 0", "want a validation part"),
        ("--set mosa.exprts=2", "Did you mean experts"),
        ("--jobs 0", "--jobs"),
        ("--baseline linear", "Did you mean linear probe"),
        ("--methods vpt-deep,mosa --baseline lora", "linear probe, mosa, vpt-deep"),
    ],
)
def test_bad_contests(
    intarsia: Intarsia,
    folder: Path,
    tmp_path: Path,
    started: list[str],
    words: str,
    says: str,
) -> None:
    result = intarsia("compare", folder, *TINY, *words.split(), "--out", tmp_path / "c")
    assert result.code == 2 and says in result.words and not started


def test_a_run_that_fails_stops_no_other_and_is_run_again(
    intarsia: Intarsia,
    folder: Path,
    tmp_path: Path,
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = matrix.run

    def fail(inputs: Any) -> Any:
        if inputs["experiment"]["method"] == "linear":
            raise ValueError("no memory")
        return real(inputs)

    words = ("compare", folder, *TINY, *QUICK, "--methods", "linear,bottleneck", "--seeds", "0")
    words = (*words, "--out", tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(matrix, "run", fail)
        result = intarsia(*words)
    assert (
        result.code == 2
        and "no memory" in result.words
        and "finished trials are kept" in result.words
    )
    assert started == ["bottleneck-0"]
    result = intarsia(*words)
    assert result.code == 0 and started == ["bottleneck-0", "linear-0"]
    assert "1 of 2 runs are there already" in result.words


def test_ctrl_c_starts_no_further_run(
    intarsia: Intarsia, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def stopped(inputs: Any) -> Any:
        calls.append(inputs)
        raise KeyboardInterrupt

    monkeypatch.setattr(matrix, "EXECUTOR", "here")
    monkeypatch.setattr(matrix, "run", stopped)
    result = intarsia("compare", folder, *TINY, "--lr", "1e-3", "--out", tmp_path / "c")
    assert result.code == 130 and "same command again" in result.words and len(calls) == 1


def test_changes_and_methods_are_compared(tmp_path: Path) -> None:
    start = Experiment(Pictures("mini/elpv")).changed(last_blocks=2, frozen_once=True)
    names = ("linear", "mosa", "upcycle", "add_momentum")
    changes = by_method(["upcycle.router=topk", "upcycle.router.experts=3"])
    settings = on_one_adapter(start, names, changes, lambda _: None)
    runs = [run.experiment for run in planned(start, names, [0], settings, tmp_path)]
    assert [run.adapted.method for run in runs] == list(names)
    assert [run.adapted.last_blocks for run in runs] == [None, 2, 2, None]
    assert [run.adapted.frozen_once for run in runs] == [True, True, False, False]
    change = method("upcycle", runs[2].adapted.settings)
    assert change == Upcycle(TopK(experts=3))


def test_settings_by_method() -> None:
    assert by_method(["mosa.over.rank=2", "lora.rank=4", "mosa.experts=2"]) == {
        "mosa": ["over.rank=2", "experts=2"], "lora": ["rank=4"],
    }  # fmt: skip
    with refused(ConfigError, what="--set rank"):
        by_method(["rank=4"])


def test_a_mixture_and_the_plain_adapter_are_one_adapter() -> None:
    messages: list[str] = []
    start = Experiment(Pictures("x"))
    settings = on_one_adapter(
        start, ["linear", "bottleneck", "adamix", "lora", "mosa"],
        {"adamix": ["over.bottleneck=8"]}, messages.append,
    )  # fmt: skip
    over = Bottleneck(8, activation="gelu")
    assert method("bottleneck", settings["bottleneck"]) == over  # pyright: ignore[reportArgumentType]
    assert method("mosa", settings["mosa"]) == Mosa(over=over)  # pyright: ignore[reportArgumentType]
    assert "lora" not in settings and len(messages) == 2
    changes = {"bottleneck": ["bottleneck=4"], "mosa": ["over=lora"]}
    assert on_one_adapter(start, ["bottleneck", "mosa"], changes, messages.append) == changes
    assert on_one_adapter(start, ["lora"], {}, messages.append) == {}
    settings = on_one_adapter(
        start, ["lora", "mosa"], {"mosa": ["over=lora", "over.rank=4"]}, messages.append
    )
    assert method("lora", settings["lora"]) == Lora(4)  # pyright: ignore[reportArgumentType]


@pytest.mark.thorough
def test_a_run_in_a_process_of_its_own(folder: Path, tmp_path: Path) -> None:
    adapted = Adapted("test_vit", 32, method="linear", pretrained=False)
    experiment = Experiment(Pictures(str(folder)), adapted, Training(epochs=1))
    runs = [PlannedRun(experiment.changed(seed=seed), tmp_path / f"r{seed}") for seed in (0, 1)]
    wrong = PlannedRun(experiment.changed(data=str(tmp_path / "none")), tmp_path / "w")
    assert not runs[0].finished()
    lines: list[str] = []
    with refused(TrainingError, what="1 of 3 trials"):
        run_all([*runs, wrong], jobs=2, report=lines.append, threads=1)
    assert all(run.finished() for run in runs) and not wrong.finished()
    assert sum("% of the test part right" in line for line in lines) == 2
    # each line has its run's name, and what every seed says is said once
    assert all(line.startswith((f"{experiment.label}, seed ", "[")) for line in lines)
    assert sum("Fitting linear" in line for line in lines) == 1
    # neither a thread nor a tracker was forgotten on the way
    record = json.loads((tmp_path / "r0" / "run.json").read_text())
    assert record["machine"]["threads"] == 1


@pytest.mark.thorough
def test_the_demo_from_pictures_to_page(
    intarsia: Intarsia, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[str]
) -> None:
    for name, value in {"VAL": 4, "TEST": 6, "BLOCKS": 2, "COMPARED": 6}.items():
        monkeypatch.setattr(demo_steps, name, value)
    no_more = functools.partial(demo_steps.RateSearch, reach=(1e-3, 1e-2))  # adds no rates
    monkeypatch.setattr(demo_steps, "RateSearch", no_more)
    monkeypatch.setattr(demo_steps, "obtain", lambda _: None)
    words = (
        "demo", "--data", photos(tmp_path / "photos"), "--model", "test_vit", "--untrained",
        "--size", "32", "--images", "12", "--epochs", "2", "--seeds", "0", "--jobs", "1",
        "--out", tmp_path / "demo", "--device", "cpu",
    )  # fmt: skip
    assert intarsia(*words[:-1], "cuda:77").code == 2 and not started
    result = intarsia(*words)
    assert result.code == 0, result.err
    for text in ("linear probe", "lora", "bottleneck", "mosa", "Report:"):
        assert text in result.out
    # a probe that was chosen has nothing to fold
    assert "rebuilt by timm" in result.words and "agree on 6 of 6" in result.words
    assert "Chosen on the validation part" in result.words
    assert "What adapting gained:" in result.words and "MoSA minus bottleneck" in result.words
    assert (tmp_path / "demo" / "report.html").is_file()
    assert (tmp_path / "demo" / "stock" / "model.safetensors").is_file()
    trained = len(started)  # the search for rates and four runs
    result = intarsia(*words, "--json")
    assert result.code == 0 and len(result.json["rows"]) == 4 and len(started) == trained


def test_assets_are_obtained_in_another_process() -> None:
    demo = demo_steps.Demo("no set", "no model", 32, 1, 1, (0,), Path("x"), pretrained=False)
    demo_steps.obtain(demo)  # nothing to obtain: no error
    assert demo_steps.faster_precision(torch.device("cpu")) in ("fp32", "bf16")


def measure(seeds: tuple[int, ...], report: Any) -> Result:
    report("measuring")
    return Result(
        0.5, tuple(0.5 + seed / 10 for seed in seeds), ({"method": "ours", "score": 0.5},)
    )


def toy(key: str, effect: Effect | None) -> Study:
    words = {
        "question": "Is it?",
        "work": "a toy",
        "baseline": "nothing",
        "differs": "It is small.",
    }
    return Study(key, "Toys", "2312.02923", effect=effect, unit="points", measure=measure, **words)


@pytest.fixture
def toys_of_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Effect("twice", "a model", "table 1", 1, (2.0,))
    monkeypatch.setattr(records, "studies", lambda: (toy("small", found), toy("tiny", None)))
    monkeypatch.setattr(lab_words, "EXPERIMENTS", ("small", "tiny"))


@pytest.mark.usefixtures("toys_of_papers")
def test_experiments_are_run_kept_and_published(intarsia: Intarsia, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    result = intarsia("reproduce", "small", "--out", page)
    assert result.code == 0, result.err
    assert "The paper: twice; a model (table 1)" in result.out and "same sign" in result.out
    assert "ours" in result.out and "No stored result to compare with." in result.out
    text = (tmp_path / "results" / "toys.md").read_text()
    assert text.index("The paper says") < text.index("Here:") < text.index("Run it")
    assert "1 with the paper's sign" in page.read_text()
    # the second run says how it lies to the first
    again = intarsia("reproduce", "small", "--out", page, "--seeds", "1,2")
    assert "lies inside the interval of the stored value" in again.out
    assert intarsia("reproduce", "tiny", "--out", page, "--json").json["value"] == 0.5
    assert {p.name for p in (tmp_path / "results").glob("*.json")} == {"small.json", "tiny.json"}
    listed = intarsia("reproduce", "--out", page, "--json").json
    assert [row["name"] for row in listed] == ["small", "tiny"]
    assert "Is it?" in intarsia("reproduce", "--out", page).out


@pytest.mark.usefixtures("toys_of_papers")
def test_wrong_experiments(intarsia: Intarsia, tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    assert "Did you mean small" in intarsia("reproduce", "smal", "--out", page).words
    assert "several with commas" in intarsia("reproduce", "small", "--seeds", "x").words
    assert "a file, beside which" in intarsia("reproduce", "--out", tmp_path / "x").words
    # a damaged record is left out of the page, which names it
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tiny.json").write_text("{}")
    assert intarsia("reproduce", "small", "--out", page).code == 0
    assert "record tiny.json" in page.read_text() and "Run it again" in page.read_text()


def test_auto_chooses_and_says_what_else(
    intarsia: Intarsia, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("auto", folder, "--methods", "linear", *TINY)
    result = intarsia(*words, "--minutes", "0.001", "--json")
    assert result.code == 0, result.err
    assert result.json["rows"][0]["method"] == "linear" and "accuracy" in result.json["test"]
    assert intarsia(*words).code == 2
    result = intarsia("auto", "--resume", "--out", "runs/auto-photos")
    assert result.code == 0 and "chosen" in result.out and "report.html" in result.out
    assert intarsia("evaluate", "runs/auto-photos/choice").code == 0


@pytest.mark.parametrize("verb", ["compare", "compare-routers"])
def test_a_folder_in_use_is_refused(
    intarsia: Intarsia, folder: Path, tmp_path: Path, verb: str
) -> None:
    """The lock of the whole folder, which another process holds, not those of its runs."""
    program = "import sys; from intarsia.core.locks import alone\n"
    program += "with alone(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(tmp_path / "runs")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    data, options = folder, (*TINY, *QUICK)
    if verb == "compare-routers":
        data, options = "austen", ("--routers", "topk,switch")
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        result = intarsia(verb, data, *options, "--seeds", "0", "--out", tmp_path / "runs")
        assert process.stdin is not None
        process.stdin.close()
    assert result.code == 2 and "another process works on" in result.words
