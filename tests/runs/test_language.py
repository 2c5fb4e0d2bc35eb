"""Experiments on texts: from a file and a folder with a model to scores before and after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from intarsia.cli.app import app
from intarsia.core.errors import CheckpointError, ConfigError, DataError, UnknownName
from intarsia.core.sealing import sealed
from intarsia.data.texts import read_prompts
from intarsia.reports.runs.page import write_report
from intarsia.runs import language
from intarsia.runs.execute import carry_out
from intarsia.runs.experiment import Experiment, Pictures
from intarsia.runs.opening import open_run
from intarsia.runs.writing import TextRun
from intarsia.train import Run, Running, TokenMetrics

from ..refusals import refused


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random Llama whose tokens are bytes, as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {c: i for i, c in enumerate(["<end>", *alphabet])}
    bytes_ = Tokenizer(models.BPE(vocab=words, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytes_, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def answers(tmp_path: Path) -> str:
    file = tmp_path / "answers.jsonl"
    rows = [{"prompt": f"number {i}?", "response": "odd" if i % 2 else "even"} for i in range(60)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


Carry = Callable[..., Run]


@pytest.fixture
def carry(model: str, answers: str) -> Carry:
    def run(data: str = answers, out: Path | None = None, score: bool = True, **values: Any) -> Run:
        start = Experiment(Pictures(data, val=0)).changed(
            model=model, length=32, method="lora", epochs=2, batch_size=8, lr=3e-2,
            settings=("rank=4", "roles=qkv,mlp_linear"),
        )  # fmt: skip
        return carry_out(start.changed(**values), Running(out=out), lambda _: None, score=score)

    return run


def test_scores_before_and_after(carry: Carry, tmp_path: Path) -> None:
    run = carry(out=tmp_path / "run")
    before, after = run.record["record"]["before"], run.record["results"]["test"]
    assert isinstance(run.test, TokenMetrics)
    # which of them is the better one is not for sixty rows to say
    assert after["loss"] != before["loss"] and after["perplexity"] != before["perplexity"]
    assert set(before) == set(after)
    parts = run.record["data"]
    assert parts["train"]["sha256"] != parts["test"]["sha256"] != hashlib.sha256(b"").hexdigest()
    page = write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "rows of text" in page and "before training" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert "LoRA on answers" in page and "before and after training" in page
    assert "tokens right" in page and "Where it errs" not in page


@pytest.mark.parametrize("method", ["lora", "norms", "full", "peft-dora"])
def test_evaluate_reads_a_run_back(method: str, carry: Carry, answers: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {"settings": ("rank=4",)} if method == "lora" else {"settings": ()}
    run = carry(out=out, **({"method": method, "lr": 1e-3} | settings))
    result = CliRunner().invoke(app, ["evaluate", str(out), "--json"])
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    assert run.test is not None and scores["loss"] == pytest.approx(run.test.loss, rel=1e-4)
    by_part = CliRunner().invoke(app, ["evaluate", str(out), answers, "--part", "train"])
    assert by_part.exit_code == 0 and "perplexity" in by_part.stdout
    counts = {
        part: json.loads(
            CliRunner().invoke(app, ["evaluate", str(out), answers, *options, "--json"]).stdout
        )["n"]
        for part, options in (("whole", ()), *((p, ("--part", p)) for p in ("train", "test")))
    }
    assert counts.pop("whole") == sum(counts.values())


def test_a_text_file_needs_no_more_than_its_path(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("to be or not to be, that is the question. " * 40)
    words = ["fit", "notes.txt", "-m", model, "--length", "32", "--epochs", "1", "--lr", "1e-2"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "test, before" in result.stdout and "exact match" in result.stdout
    record = json.loads(Path("runs/notes-lora-0/run.json").read_text())
    assert record["record"]["method"]["method"] == "lora"
    assert record["record"]["data"]["form"] == "text"


def test_what_means_nothing_for_texts_is_refused(carry: Carry) -> None:
    for wrong in ({"shots": 3}, {"augment": "light"}, {"mixup": 0.2}, {"frozen_once": True}):
        with pytest.raises(ConfigError, match="for a text"):
            carry(**wrong)
    with refused(ConfigError, what="method 'linear'"):
        carry(method="linear", settings=())
    with refused(ConfigError, what="method 'bitfit'"):  # a Llama has no biases
        carry(method="bitfit", settings=())
    with refused(UnknownName, what="unknown method", got="'lara'"):
        carry(method="lara", settings=())


def test_short_texts_are_scored_and_changed_ones_are_not(
    carry: Carry, answers: str, tmp_path: Path
) -> None:
    out, rows = tmp_path / "run", tmp_path / "other.jsonl"
    carry(out=out, epochs=1, test=20)
    lines = Path(answers).read_text().splitlines()

    def found(data: str | None, part: str | None = None) -> int:
        return open_run(out).evaluate(data, part)["n"]

    rows.write_text(lines[0])
    assert found(str(rows)) == found(str(rows), "all") == 1
    rows.write_text("\n".join(lines[:10]))  # fewer than the run's --test
    assert (found(str(rows), "test"), found(str(rows), "val")) == (1, 1)
    assert found(None) == found(answers, "test") == 20
    with refused(UnknownName, what="unknown part", got="'val'"):
        found(None, "val")
    Path(answers).write_text("\n".join(lines[1:]))
    assert found(answers) == 59
    for source in (None, answers):
        with refused(DataError, got="other data than the run had"):
            found(source, "test")


def test_a_search_does_not_score_the_test_part(carry: Carry) -> None:
    run = carry(score=False, epochs=1)
    assert run.test is None and "before" not in run.record["record"]


def test_the_last_blocks_of_a_baseline_are_in_the_record(carry: Carry) -> None:
    run = carry(method="norms", settings=(), last_blocks=1, epochs=1)
    assert run.record["record"]["method"] == {"method": "norms", "last_blocks": 1}
    assert carry(method="norms", settings=(), epochs=1).record["record"]["method"] == "norms"


def test_another_model_than_the_run_s_is_refused(carry: Carry, model: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    carry(out=out, epochs=1)
    file = out / "run.json"
    record = json.loads(file.read_text())
    record["record"]["trunk"] = "0" * 64
    file.write_text(json.dumps(record))
    with refused(CheckpointError, got="settings that changed after they were written"):
        open_run(out)
    seal = record.pop("sha256")
    file.write_text(json.dumps(record))
    with refused(CheckpointError, got="settings without the digests that were written with them"):
        open_run(out)
    file.write_text(json.dumps(sealed(record, seal["files"])))
    with refused(CheckpointError, got="weights fc9c72a8d34a"):
        open_run(out)


Predict = Callable[..., list[dict[str, str]]]


@pytest.fixture
def predict() -> Predict:
    def said(*words: object, stdin: str | None = None) -> list[dict[str, str]]:
        done = CliRunner().invoke(app, ["predict", *map(str, words)], input=stdin)
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]

    return said


def test_predict_goes_on_from_the_prompts_of_a_file_of_answers(
    carry: Carry, predict: Predict, answers: str, tmp_path: Path
) -> None:
    out, some = tmp_path / "run", tmp_path / "some.jsonl"
    carry(out=out, epochs=1)
    rows = [
        {"prompt": "number 1?"}, {"question": "number 2?", "answer": "is left out"},
        {"messages": [{"role": "user", "content": "number 3?"}]},
        {"text": "number 4 is"},
    ]  # fmt: skip
    some.write_text("\n".join(map(json.dumps, rows)))
    lines = predict(out, some, "--tokens", 3)
    texts = ["number 1?", "number 2?", "number 3?", "number 4 is"]
    assert [line["prompt"] for line in lines] == texts
    assert all(line.keys() == {"prompt", "completion"} for line in lines)
    writer = open_run(out)
    assert isinstance(writer, TextRun) and writer.asked
    for line, prompt in zip(lines, read_prompts(some, writer.tokenizer), strict=True):
        ids = prompt.ids
        for _ in range(3):  # the naive twin: without a cache, token by token
            with torch.no_grad():
                best = writer.model(input_ids=ids[None]).logits[0, -1].argmax()
            if int(best) == writer.tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, best[None]])
        assert line["completion"] == writer.tokenizer.decode(ids[len(prompt.ids) :])
    assert writer.predict(some, tokens=3) == lines
    assert writer.predict("number 1?", tokens=3) == lines[:1] and writer.classes == ()
    piped = predict(out, "-", "--tokens", 3, stdin='number 1?\n\n{"text": "number 4 is"}\n')
    assert piped == [lines[0], lines[3]]


def test_predict_goes_on_from_lines_of_a_run_on_a_text(
    carry: Carry, predict: Predict, tmp_path: Path
) -> None:
    text, out = tmp_path / "notes.txt", tmp_path / "run"
    text.write_text("to be or not to be, that is the question. " * 40)
    carry(str(text), out=out, epochs=1)
    lines = tmp_path / "lines.txt"
    lines.write_text("to be\nor not\n")
    predictions = predict(out, lines, "--tokens", 2)
    assert [line["prompt"] for line in predictions] == ["to be", "or not"]
    writer = open_run(out)
    assert isinstance(writer, TextRun) and not writer.asked
    assert (
        read_prompts(["to be"], writer.tokenizer, as_questions=False)[0].ids.tolist()
        == (writer.tokenizer("to be")["input_ids"])
    )
    for words, message in {
        (out, lines, "--csv"): "JSON lines", (out, lines, "--tokens", 0): "at least 1",
        (out, lines, "--tokens", 10**6): "together", (out, tmp_path / "none.txt"): "no such file",
    }.items():  # fmt: skip
        done = CliRunner().invoke(app, ["predict", *map(str, words)])
        assert done.exit_code == 2 and message in " ".join(done.output.split()), done.output
    done = CliRunner().invoke(app, ["predict", str(out), "-"], input="\n")
    assert done.exit_code == 2 and "prompts in the input" in done.output


@pytest.mark.parametrize(
    ("line", "got"),
    [
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ('{"response": "yes"}', "keys ['answer', 'response']"),
        ('{"text": ""}', "no token"),
        ('{"messages": [{"role": "user"}]}', "messages without 'content'"),
    ],
)
def test_lines_that_are_no_prompts_are_named(line: str, got: str, model: str) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    with refused(DataError, got=got):
        read_prompts([line], tokenizer)


def test_a_missing_text_is_noticed_before_the_model(
    carry: Carry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "language_model", lambda *_, **__: pytest.fail("obtained"))
    (tmp_path / "bad.jsonl").write_text("{")
    (tmp_path / "folder.txt").mkdir()
    for name in ("none.txt", "bad.jsonl", "folder.txt"):
        with pytest.raises(DataError):
            carry(str(tmp_path / name))


def test_a_model_is_pruned_with_rows_of_the_text_and_trained(carry: Carry, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i} of a text, which says {i * i}.\n" for i in range(80)))
    out = tmp_path / "run"
    settings: dict[str, Any] = {"settings": ("density=0.25",), "epochs": 1, "lr": 1e-3}
    outcome = carry(str(text), out, method="wanda", **settings)
    weight: Any = open_run(out).model.get_submodule("model.layers.0.mlp.up_proj").weight
    assert int((weight != 0).sum()) == weight.numel() // 4
    assert outcome.record["recipe"]["schedule"]["name"] == "FixedMask"
