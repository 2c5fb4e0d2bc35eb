"""A model that sees as one of transformers: its `Auto` classes open it, its `Trainer` trains it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Trainer,
    TrainingArguments,
)

import intarsia
from intarsia import Lora
from intarsia.conformance.made import moved
from intarsia.conformance.senses import Letters, decoder, picture, questions
from intarsia.core.errors import CheckpointError, ConfigError
from intarsia.senses import Modalities, Slime, UniMoe
from intarsia.senses.auto import SeeingForCausalLM, auto_model
from intarsia.senses.modalities import connectors_of
from intarsia.train.tasks.answers import answers_batch

from ..refusals import refused

SMALL = Modalities("pixels", "log-mel", (4, 2))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path_factory.getbasetemp() / "senses"))


def quiet(model: nn.Module) -> Any:
    return intarsia.senses.processor(model, Letters(), progress=lambda _: None)


def seeing(method: Any = None, change: Any = SMALL) -> Any:
    model = intarsia.apply(decoder(), change, seed=3)
    model = model if method is None else intarsia.adapt(model, method, head=None)
    return moved(model).eval()


@pytest.mark.parametrize(
    ("method", "change"),
    [
        (None, SMALL),
        (UniMoe(over=Lora(2), attention=Lora(2)), SMALL),
        (None, Slime("pixels", whole=4, queries=4, budget=9, over=None)),
    ],
)
def test_its_folder_is_opened_by_auto_classes(method: Any, change: Any, tmp_path: Path) -> None:
    model = seeing(method, change)
    seeing_model = auto_model(model)
    assert seeing_model.decoder is model  # the same weights, not a copy
    seeing_model.save_pretrained(tmp_path)
    files = {f.name for f in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors"} <= files
    assert not any(name.endswith((".py", ".bin")) for name in files)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is SeeingForCausalLM and not again.training
    rows = [q for q in questions(2) if hasattr(change, "audio") or not q.audio]
    batch = answers_batch(quiet(model).rows(rows))
    with torch.no_grad():
        first, second = seeing_model(**batch), again(**batch)
    assert_close((second.logits, second.loss), (first.logits, first.loss))
    learn = {n for n, p in again.named_parameters() if p.requires_grad}
    frozen = ("embed_tokens", "base_layer", "layernorm.weight")
    assert learn and not any(part in name for name in learn for part in frozen)
    picked = picture(1, (300, 120))
    answers = [intarsia.senses.answer(m, quiet(m), "which?", image=picked) for m in (model, again)]
    assert answers[0] == answers[1]
    row = quiet(again).rows([intarsia_question(picked)])[0]
    out = again.generate(**answers_batch([_unanswered(row)]), max_new_tokens=4, pad_token_id=0)
    assert Letters().decode(out[0]).strip() == answers[0][:4].strip()


def intarsia_question(image: Any) -> Any:
    from intarsia.senses.data.questions import Question

    return Question("which?", image=(image,))


def _unanswered(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "labels"}


def test_trainer_keeps_checkpoints_that_open_again(tmp_path: Path) -> None:
    seeing_model = auto_model(seeing(Lora(2, roles=("mlp_linear",))))
    for connector in connectors_of(seeing_model).values():
        connector.requires_grad_(True)
    data: Any = quiet(seeing_model).asked(questions(2))
    before = {n: p.clone() for n, p in seeing_model.named_parameters()}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=3, learning_rate=1e-2,
        report_to=[], save_steps=2, remove_unused_columns=False, use_cpu=True,
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(seeing_model, arguments, data_collator=answers_batch, train_dataset=data).train()
    changed = {n for n, p in seeing_model.named_parameters() if not torch.equal(p, before[n])}
    assert {n.split(".")[-1] for n in changed} >= {"queries", "weight"}
    assert not any("embed_tokens" in n for n in changed)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint-2")
    for name, value in seeing_model.state_dict().items():
        assert_close(again.state_dict()[name], value, rtol=0, atol=0)


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with refused(ConfigError, what="model", got="one without connectors"):
        auto_model(decoder())
    auto_model(seeing()).save_pretrained(tmp_path / "whole")
    record = json.loads((tmp_path / "whole/config.json").read_text())
    for name, entry in {
        "key": {"key": "no-such-method"},
        "settings": {"settings": {"image": "clip"}},
        "setting": {"settings": {"pictures": 1}},
    }.items():
        folder = tmp_path / name
        shutil.copytree(tmp_path / "whole", folder)
        steps = [record["steps"][0] | entry]
        (folder / "config.json").write_text(json.dumps(record | {"steps": steps}))
        with refused(CheckpointError, what="config.json of a seeing model"):
            AutoModelForCausalLM.from_pretrained(folder)
    two = record["steps"][0]["settings"] | {"by": ["queries", "queries"]}
    steps = [record["steps"][0] | {"settings": two}]
    (tmp_path / "setting/config.json").write_text(json.dumps(record | {"steps": steps}))
    with refused(CheckpointError, got="no 'decoder.connectors.image.resampler.k.bias'"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "setting")
