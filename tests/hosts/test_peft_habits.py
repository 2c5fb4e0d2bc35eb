"""What users of PEFT are used to: its classes by task, and its configs given to `adapt`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForSeq2SeqLM,
    FourierFTConfig,
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftModel,
    PeftModelForCausalLM,
    PeftModelForSeq2SeqLM,
    PromptTuningConfig,
    get_peft_model,
)
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import intarsia
from intarsia import Bottleneck, Lora, Mosa
from intarsia.core.errors import ConfigError, TargetError
from intarsia.hosts.attach.config import IntarsiaConfig

from ..toys import llama

Make = Callable[[str], nn.Module]
IDS = torch.arange(12).view(2, 6) * 5


def t5() -> Any:
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    return T5ForConditionalGeneration(config).eval()


def bert() -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = BertConfig(**sizes, num_attention_heads=4, num_labels=3)  # pyright: ignore
    return BertForSequenceClassification(config).eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("method", [Lora(2), Mosa(Bottleneck(4))], ids=["lora", "mosa"])
def test_peft_opens_a_language_model_in_its_class_for_language_models(
    method: Any, tmp_path: Path
) -> None:
    llama().save_pretrained(tmp_path / "base")
    host = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model = intarsia.adapt(host, method)
    assert type(model) is PeftModelForCausalLM
    assert model.peft_config["default"].task_type == "CAUSAL_LM"
    intarsia.save(model, tmp_path / "adapter")
    for opened in (
        PeftModel.from_pretrained(llama(), str(tmp_path / "adapter")),
        AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter")),
        intarsia.load(llama(), tmp_path / "adapter"),
    ):
        assert type(opened) is PeftModelForCausalLM
        assert_close(logits(opened), logits(model))


def test_models_that_do_not_generate_from_token_ids_have_no_task_type(make: Make) -> None:
    model = intarsia.adapt(make("vit"), Lora(2))
    assert type(model) is PeftModel and model.peft_config["default"].task_type is None
    assert type(intarsia.adapt(t5(), Lora(2))) is PeftModelForSeq2SeqLM


@pytest.mark.parametrize("method", [Lora(2), Mosa(Bottleneck(4)), LoraConfig(r=2)])
@pytest.mark.parametrize("kind", ["classifier", "seq2seq"])
def test_peft_s_auto_classes_open_what_was_saved(kind: str, method: Any, tmp_path: Path) -> None:
    host, auto, inputs = {
        "classifier": (bert(), AutoPeftModel, {"input_ids": IDS}),
        "seq2seq": (t5(), AutoPeftModelForSeq2SeqLM, {"input_ids": IDS, "decoder_input_ids": IDS}),
    }[kind]
    host.save_pretrained(tmp_path / "base")
    model: Any = intarsia.adapt(type(host).from_pretrained(tmp_path / "base"), method)
    intarsia.save(model, tmp_path / "adapter")
    again: Any = auto.from_pretrained(str(tmp_path / "adapter"))
    assert type(again) is type(model)
    assert (type(model) is PeftModelForSeq2SeqLM) == (kind == "seq2seq")
    with torch.no_grad():
        assert_close(again.eval()(**inputs).logits, model.eval()(**inputs).logits)


CONFIGS: dict[str, Any] = {
    "lora": LoraConfig(r=3, lora_alpha=7),
    "dora": LoraConfig(r=2, use_dora=True, target_modules=["o_proj"]),
    "fourier": FourierFTConfig(n_frequency=8, target_modules=["q_proj"]),
    "ia3": IA3Config(),
    "prompts": PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_of_peft_means_what_it_means_in_peft(kind: str) -> None:
    config = copy.deepcopy(CONFIGS[kind])
    model = intarsia.adapt(llama(), config, seed=3)
    assert config.to_dict() == CONFIGS[kind].to_dict()  # left as it was
    host = llama()
    torch.manual_seed(3)
    theirs = get_peft_model(host, copy.deepcopy(CONFIGS[kind]))
    assert model.state_dict().keys() == theirs.state_dict().keys()
    assert type(model) is PeftModelForCausalLM
    for name, value in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    trained = {n for n, p in theirs.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.requires_grad}
    assert torch.equal(logits(model), logits(theirs))


@pytest.mark.parametrize("config", [LoraConfig(r=2), IA3Config(), LNTuningConfig()])
def test_where_peft_knows_no_places_ours_are_taken_and_the_head_is_trained(
    config: Any, make: Make, images: Callable[[str], Tensor]
) -> None:
    model = intarsia.adapt(make("vit"), config)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("head.modules_to_save" in name for name in trained)
    assert any("blocks.1" in name for name in trained)
    model(images("vit")).sum().backward()
    last = intarsia.adapt(make("vit"), config, layers=[-1], head=None)
    trained = {n for n, p in last.named_parameters() if p.requires_grad}
    assert trained and all("blocks.1." in name or "norm." in name for name in trained)


def test_further_adapters_come_in_inactive_and_all_are_saved(tmp_path: Path) -> None:
    model = intarsia.apply(llama(), LoraConfig(r=2, init_lora_weights=False))
    first = logits(model)
    adapted = intarsia.adapt(model, LoraConfig(r=4, init_lora_weights=False), name="other")
    assert adapted is model and torch.equal(logits(adapted), first)
    intarsia.save(model, tmp_path / "out")
    assert_close(logits(intarsia.load(llama(), tmp_path / "out")), first)
    adapted.set_adapter("other")
    second = logits(adapted)
    assert_close(logits(intarsia.load(llama(), tmp_path / "out" / "other")), second)
    assert not torch.allclose(second, first)


def test_our_own_config_is_taken_too() -> None:
    model = intarsia.adapt(llama(), IntarsiaConfig(method="lora", options={"rank": 2}))
    assert model.peft_config["default"].method == "lora"


def test_what_peft_refuses_and_what_is_said_twice_is_an_error(make: Make) -> None:
    host = make("vit")
    before = {name: value.clone() for name, value in host.state_dict().items()}
    for options, error, field in (
        ({"method": LoraConfig(r=0)}, ConfigError, "settings of PEFT's LORA"),
        ({"method": LoraConfig(target_modules=["nope"])}, ConfigError, "settings of PEFT's LORA"),
        ({"method": LoraConfig(target_modules=["fc1"]), "layers": [0]}, ConfigError, "targets"),
        ({"method": LoraConfig(), "classes": ["a"]}, ConfigError, "classes"),
        ({"method": LoraConfig(), "name": "a.b"}, ConfigError, "adapter name"),
        ({"method": LoraConfig(), "targets": "nope"}, TargetError, "target 'nope'"),
        ({"method": PromptTuningConfig(num_virtual_tokens=2), "targets": "fc1"}, ConfigError,
         "targets"),
    ):  # fmt: skip
        with pytest.raises(error) as caught:
            intarsia.adapt(host, **options)
        assert caught.value.what == field
        assert host.state_dict().keys() == before.keys()
    ours = intarsia.adapt(llama(), Lora(2))
    with pytest.raises(ConfigError) as caught:
        intarsia.adapt(ours, LoraConfig(r=2), name="theirs")
    assert list(ours.peft_config) == ["default"]
