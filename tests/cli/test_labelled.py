"""The verbs on labelled texts and on tables of numbers."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import intarsia as library
from intarsia.core.errors import ConfigError, UnknownName
from intarsia.reports.statistics import paired_interval
from intarsia.runs.choosing import texts as searching
from intarsia.runs.choosing.judging import HeldOutAnswers
from intarsia.runs.labelled import LabelledRun, open_labelled
from intarsia.runs.labelled_report import adapting, arms_of, comparison_report

from ..labelled import texts, write_csv, write_numbers
from ..language_models import llama
from .conftest import Intarsia

COLUMNS = ("--text", "words", "--label", "kind")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("texts") / "texts.csv", 16, ("words", "kind"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def run(intarsia: Intarsia, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of TF-IDF; not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "run"
    result = intarsia("fit", data, *COLUMNS, "--out", out)
    assert result.code == 0, result.err
    return out


def test_fit_repeats_itself(intarsia: Intarsia, run: Path, data: Path, tmp_path: Path) -> None:
    opened = library.open_run(run)
    assert isinstance(opened, LabelledRun)
    words = shlex.split(opened.settings.command())
    assert words[:2] == ["intarsia", "fit"]
    again = intarsia(*words[1:], "--out", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    mine, theirs = (open_labelled(place).record["results"] for place in (run, tmp_path / "again"))
    assert mine["test"] == theirs["test"] == again.json["test"]


def test_fit_refuses_what_it_would_ignore(intarsia: Intarsia, run: Path, data: Path) -> None:
    for words in (
        ("--epochs", "3"),
        ("--method", "mixtral"),
        ("--method", "tfidff"),
        ("--out", run),
        ("--method", "words", "--model", "minilm"),
        ("--method", "lora=words"),
    ):
        result = intarsia("fit", data, *COLUMNS, *words)
        assert result.code == 2, words
    assert intarsia("fit", data, "--text", "none").code == 2


def test_a_labelled_jsonl_is_classified_and_said_so(intarsia: Intarsia, tmp_path: Path) -> None:
    rows = [json.dumps({"text": t, "label": n}) for t, n in zip(*texts(), strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    result = intarsia("fit", tmp_path / "a.jsonl", "--method", "words", "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert "a classifier is fitted" in result.err
    assert isinstance(library.open_run(tmp_path / "run"), LabelledRun)


def test_predict_and_evaluate(intarsia: Intarsia, run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("the cat and the dog\nbread and soup\n")
    answers = intarsia("predict", run, tmp_path / "new.txt", "--json").json
    ours = open_labelled(run).predict(["the cat and the dog", "bread and soup"])
    assert [answer["class"] for answer in answers] == [answer["class"] for answer in ours]
    assert sum(answers[0]["classes"].values()) == pytest.approx(1)
    lines = intarsia("predict", run, data, "--csv").out.splitlines()
    assert len(lines) == 49
    scores = intarsia("evaluate", run, "--json").json
    assert scores["accuracy"] == open_labelled(run).record["results"]["test"]["accuracy"]
    assert intarsia("evaluate", run, data, "--json").json["n"] == 48
    assert intarsia("evaluate", run, "--part", "val").code == 2


BLOCKED = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["tfidf", "words+MODEL@1:16", "words+lora=MODEL@2:16"])
def test_the_export_needs_no_intarsia(
    intarsia: Intarsia, data: Path, model: Path, tmp_path: Path, method: str
) -> None:
    method = method.replace("MODEL", str(model))
    fitted = intarsia("fit", data, *COLUMNS, "--method", method, "--out", tmp_path / "run")
    assert fitted.code == 0, fitted.err
    result = intarsia("export", tmp_path / "run", "--out", tmp_path / "export")
    assert result.code == 0, result.err
    file = tmp_path / "new.txt"
    file.write_text("the cat and the dog\nbread and soup\n\u00e9t\u00e9 x\n")
    without = ["intarsia", "safetensors", "sklearn", "scipy"]
    without = [*without, "torch", "transformers"] if method == "tfidf" else without[:1]
    script = [sys.executable, "-I", "-c", BLOCKED.format(blocked=without)]
    command = [*script, str(tmp_path / "export" / "predict.py"), str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [line.split("\t") for line in lines]
    ours = open_labelled(tmp_path / "run").predict(file.read_text().splitlines())
    for row, answer in zip(rows, ours, strict=True):
        assert row[2] == answer["class"]
        assert float(row[3]) == pytest.approx(answer["classes"][row[2]], abs=1e-4)
    assert intarsia("export", tmp_path / "run", "--format", "onnx").code == 2


def test_compare_and_report(intarsia: Intarsia, data: Path, tmp_path: Path) -> None:
    words = ("--methods", "words,tfidf", "--seeds", "0,1", "--out", tmp_path / "runs")
    first = intarsia("compare", data, *COLUMNS, *words)
    assert first.code == 0, first.err
    assert (tmp_path / "runs" / "report.html").is_file()
    again = intarsia("report", tmp_path / "runs", "--out", tmp_path / "page.html", "--json").json
    methods = [(row["method"], row["seed"]) for row in again["rows"]]
    assert sorted(methods) == [("tfidf", 0), ("tfidf", 1), ("words", 0), ("words", 1)]


def test_an_adapter_is_compared_with_frozen_features(
    intarsia: Intarsia, data: Path, model: Path, tmp_path: Path
) -> None:
    words = ("--methods", "words,lora", "--model", f"{model}@1:16", "--out", tmp_path / "runs")
    result = intarsia("compare", data, *COLUMNS, *words, "--json")
    assert result.code == 0, result.err
    assert {row["method"] for row in result.json["rows"]} == {"words", f"lora={model}@1:16"}
    arms = arms_of([tmp_path / "runs"])
    pages = [comparison_report(arms, arm.method) for arm in arms]
    # against words it is the sentence on the baseline, where the adapter is the best
    assert all(any("gainst" in sentence for sentence in page.sentences) for page in pages)
    assert intarsia("compare", data, *COLUMNS, "--model", model, "--methods", "words").code == 2


def test_the_sentence_on_an_adapter() -> None:
    right = np.arange(100) < 60
    other = np.arange(100) < 20
    gap = paired_interval([np.arange(100)], [right], [other])
    assert adapting(gap, "lora=m", "m").startswith("lora=m: against m: +40.0 points")
    gap = paired_interval([np.arange(100)], [other], [right])
    assert adapting(gap, "lora=m", "m").startswith("Adapting does not pay here. lora=m: against m")
    assert "does not pay" in adapting(None, "lora=m", "m")


def test_a_table_of_numbers_gets_the_probe_alone(intarsia: Intarsia, tmp_path: Path) -> None:
    table = write_numbers(tmp_path / "a.csv")
    result = intarsia("auto", table, "--label", "kind", "--out", tmp_path / "auto", "--json")
    assert result.code == 0, result.err
    assert "nothing else" in result.err
    assert result.json["method"] == "numbers"
    answers = intarsia("predict", tmp_path / "auto" / "choice", table, "--json").json
    assert len(answers) == 40


def plain(text: str) -> str:
    """Return a text without times."""
    return re.sub(r"\d+(\.\d)? s", "", text)


def test_auto_chooses_and_goes_on(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"text": "words", "label": "kind"}
    options |= {"methods": ["tfidf", "lora"], "model": f"{model}:16", "out": tmp_path / "auto"}
    lines: list[str] = []
    found = library.auto(data, report=lines.append, **options)
    assert any(line.startswith("First answer, words") for line in lines)
    words = [candidate.word.replace(str(model), "MODEL") for candidate in found.candidates]
    assert words[:2] == ["words", "tfidf"]
    assert re.fullmatch(r"MODEL@\d:16", words[2])
    assert words[3:] == ["lora=MODEL@2:16"]
    assert found.sentences[0].startswith("Chosen: ")
    assert "TF-IDF of words" in found.sentences[1]
    assert "dapt" in found.sentences[2] or "lora=" in found.sentences[2]
    assert found.report.is_file()
    assert found.open().evaluate()["accuracy"] == found.test["accuracy"]

    # what is stored is not fitted again
    (tmp_path / "auto" / "report.html").unlink()
    fitted: list[str] = []
    fitted_member: Callable[..., Any] = searching.fitted_member

    def counted(word: str, *rest: Any) -> Any:
        fitted.append(word)
        return fitted_member(word, *rest)

    monkeypatch.setattr(searching, "fitted_member", counted)
    again = library.auto(out=tmp_path / "auto", resume=True, report=lines.append)
    assert again.sentences == found.sentences
    assert not fitted
    assert again.run.settings.method == found.run.settings.method
    rows = open_labelled(found.folder).settings.splits().test.rows
    shares = [f.run.classifier.predict_proba(rows) for f in (found, again)]
    assert np.abs(shares[0] - shares[1]).max() < 1e-6


@pytest.mark.parametrize(
    ("right", "order"),
    [
        ({"first": 30}, "words tfidf first lora=first second lora=second"),
        ({"second": 30}, "words tfidf first second lora=second lora=first"),
        ({"first": 21}, "words tfidf first second lora=first lora=second"),
    ],
)
def test_an_adapter_follows_its_model_where_the_features_are_ahead_of_tfidf(
    right: dict[str, int],
    order: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """right: answers out of 32; where a word is not named it has 20, with the same ones right."""

    def candidate(self: searching.TextSearch, word: str) -> searching.TextCandidate:
        rows = len(self.splits.train)
        labels = torch.from_numpy(self.splits.train.labels)
        sure = 0.9 * (torch.arange(rows) % 32 < right.get(word, 20)).double()
        shares = torch.full((rows, len(self.splits.train.classes)), 0.01, dtype=torch.float64)
        shares[:, 0] = 0.05
        shares[torch.arange(rows), labels] += sure
        answers = HeldOutAnswers.of_shares(np.arange(rows), shares, labels)
        return searching.TextCandidate(word, answers, 1.0)

    monkeypatch.setattr(searching.TextSearch, "_candidate", candidate)
    monkeypatch.setattr(searching, "deeper", lambda adapter, model: f"{adapter}={model}")
    splits = searching.LabelledFit(str(data), "words", "kind").splits()
    request = {"seed": 0, "minutes": 1.0, "methods": ["tfidf", "first", "second", "lora"]}
    search = searching.TextSearch(splits, request, tmp_path / "auto", 0.0, lambda _: None)
    assert [candidate.word for candidate in search.candidates()] == order.split()


def test_auto_refuses_before_any_work(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"text": "words", "label": "kind", "out": tmp_path / "auto"}
    with pytest.raises(ConfigError, match="minutes"):
        library.auto(data, minutes=0.01, **options)
    with pytest.raises(UnknownName, match="method"):
        library.auto(data, methods=["mixtral"], **options)
    with pytest.raises(UnknownName, match="option"):
        library.auto(data, epochs=3, **options)
    assert not (tmp_path / "auto").exists()


def test_what_takes_too_long_is_left_out(data: Path, model: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    search = searching.TextSearch(
        searching.LabelledFit(str(data), "words", "kind").splits(),
        {
            "seed": 0,
            "minutes": 0.0,
            "methods": ["tfidf", f"{model}", f"lora={model}"],
            "one": False,
        },
        tmp_path / "auto",
        0.0,
        lines.append,
    )
    assert [candidate.word for candidate in search.candidates()] == ["words"]
    assert sum("left out" in line for line in lines) == 3
