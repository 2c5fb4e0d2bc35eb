"""An adapter with a head for labelled texts: transformers is the oracle of features and changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

import intarsia
from intarsia.core.errors import ConfigError, UnknownName
from intarsia.hosts.attach.as_lora import low_rank_changes
from intarsia.models.classify.classifier import RowClassifier
from intarsia.models.classify.features import AdaptedMean, HiddenMean, text_model
from intarsia.models.classify.words import check_method, split_adapter, with_model
from intarsia.runs import labelled_adapting
from intarsia.runs.labelled_adapting import MeanClassifier, deeper, fitted_member
from intarsia.train.folds import deal

from ..labelled import texts
from ..language_models import byte_tokenizer, llama

ROWS, NAMES = texts()
LABELS = np.unique(NAMES, return_inverse=True)[1]


def classifier_of(kind: str, folder: Path) -> Path:
    """Write a small model, with a head for sequences where transformers has one."""
    if kind == "llama":
        return llama(folder)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "num_labels": 4}
    torch.manual_seed(0)
    if kind == "bert":
        sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        model: Any = BertForSequenceClassification(BertConfig(intermediate_size=48, **sizes))
    else:
        model = GPT2ForSequenceClassification(
            GPT2Config(n_embd=32, n_layer=2, n_head=4, pad_token_id=0, **sizes)
        )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llama", "bert", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_of(request.param, tmp_path_factory.mktemp(request.param))


def test_features_under_an_adapter_are_those_of_the_adapted_model(model: Path) -> None:
    base = HiddenMean(str(model), 1, 32)
    trunk, tokenizer = base.network()
    adapted = intarsia.adapt(MeanClassifier(trunk, 3), intarsia.Lora(2)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "intarsia_cells" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    pairs = low_rank_changes(adapted)
    changes = {path.removeprefix("trunk."): pair for path, pair in pairs.items()}
    x = torch.from_numpy(AdaptedMean("lora", base, changes)(ROWS[:4]))
    assert not torch.allclose(x, torch.from_numpy(base(ROWS[:4])), atol=1e-3)
    head: Any = adapted.get_submodule("base_model.model.score")
    with torch.no_grad():
        head.modules_to_save["default"].weight.normal_()
        for row, text in zip(x, ROWS[:4], strict=True):
            batch = tokenizer(text, return_tensors="pt")
            batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
            assert torch.allclose(head(row[None]), adapted(**batch), atol=1e-4)


def test_the_classifier_reads_the_mean_of_hidden_states(model: Path) -> None:
    trunk, tokenizer = HiddenMean(str(model), 1).network()
    assert trunk.config.num_hidden_layers == 1
    unadapted, _ = text_model(str(model))
    assert unadapted.config.num_hidden_layers == 2
    network = MeanClassifier(trunk, 3).eval()
    torch.nn.init.normal_(network.score.weight)
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(ROWS[:3], return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = network(batch["input_ids"], batch["attention_mask"])
        for i, text in enumerate(ROWS[:3]):
            encoded = tokenizer(text, return_tensors="pt")
            states = unadapted(**encoded, output_hidden_states=True).hidden_states[1]
            assert torch.allclose(logits[i], network.score(states.mean(1))[0], atol=1e-4)


def test_a_fold_is_answered_by_a_training_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    word, fold = f"lora={llama(tmp_path)}@1:16", deal(LABELS, 5, 0)
    trainings: list[tuple[list[str], Any]] = []
    train = labelled_adapting._trained

    def noted(base: Any, adapter: str, rows: Any, *rest: Any) -> Any:
        trainings.append((list(rows), train(base, adapter, rows, *rest)))
        return trainings[-1][1]

    monkeypatch.setattr(labelled_adapting, "_trained", noted)
    member = fitted_member(word, ROWS, LABELS, 3, fold)
    assert member.feature.word == word
    assert member.held_out is not None
    assert len(trainings) == 6
    assert trainings[5][0] == ROWS
    for number in range(5):
        inside = [row for row, place in zip(ROWS, fold, strict=True) if place == number]
        rest = [row for row, place in zip(ROWS, fold, strict=True) if place != number]
        assert trainings[number][0] == rest
        part = trainings[number][1]
        logits = part.logits(part.feature(inside))
        ours = member.held_out[torch.from_numpy(fold == number)].double()
        # one temperature for all
        assert torch.allclose(ours.softmax(1).argsort(1), logits.softmax(1).argsort(1))


def test_an_adapter_that_could_not_be_kept_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama(tmp_path)
    monkeypatch.setattr(labelled_adapting, "fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ConfigError, match="as LoRA"):
        fitted_member(f"bottleneck={model}@1:16", ROWS, LABELS, 3, deal(LABELS, 5, 0))


def test_words_of_adapters(tmp_path: Path) -> None:
    model = llama(tmp_path)
    assert split_adapter("lora=minilm@6:64") == ("lora", "minilm@6:64")
    assert split_adapter("lora") == ("lora", "minilm")
    assert split_adapter("minilm@6") == (None, "minilm@6")
    assert deeper("lora", f"{model}@0:16") == f"lora={model}@2:16"
    assert deeper("lora", f"{model}@1:16") == f"lora={model}@2:16"
    assert with_model("lora", "folder/") == "lora=folder/"
    assert with_model(None, "folder/") == "folder/"
    with pytest.raises(ConfigError, match="--model"):
        with_model("tfidf", "folder/")
    check_method(f"lora+words+mosa={model}")
    for wrong in ("lora=words", "lora=numbers", "lorra=minilm"):
        with pytest.raises(UnknownName):
            check_method(wrong)
    # the class fits frozen features alone
    with pytest.raises(ConfigError, match="frozen features"):
        RowClassifier("lora").fit(ROWS, NAMES)


@pytest.mark.parametrize("adapter", ["lora", "mos"])
def test_a_folder_keeps_an_adapter(adapter: str, tmp_path: Path) -> None:
    model = llama(tmp_path / "model")
    member = fitted_member(f"{adapter}={model}@1:16", ROWS, LABELS, 3, deal(LABELS, 5, 0))
    classifier = RowClassifier.of([member], [1.0], ["a", "b", "c"], 0)
    classifier.save(tmp_path / "kept")
    opened = RowClassifier.load(tmp_path / "kept")
    assert np.abs(opened.predict_proba(ROWS) - classifier.predict_proba(ROWS)).max() < 1e-6
    assert opened.method == f"{adapter}={model}@1:16"
