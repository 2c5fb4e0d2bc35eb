"""What other libraries read of ours, and we of theirs, in fresh processes."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import intarsia
from intarsia.adapters import Bottleneck, Lora
from intarsia.core.errors import CheckpointError
from intarsia.folders.saved import load, save
from intarsia.folders.verbs import adapt
from intarsia.hosts.attach.peft import is_adapted
from intarsia.hosts.folding.fold import fold
from intarsia.methods import Mosa
from intarsia.methods.peft_methods import PeftMethod

from ..refusals import refused

Make = Callable[[str], nn.Module]


def fresh(code: str, *args: Path) -> str:
    """Return the output of a new process.  args: its sys.argv[1:]."""
    ours = {**os.environ, "PYTHONPATH": str(Path(intarsia.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=ours,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


READ = """
import sys, intarsia, torch
from safetensors.torch import load_file
from transformers import ViTForImageClassification
base, adapter, x = sys.argv[1:]
tensors = load_file(x)
own = ViTForImageClassification.from_pretrained(base)
own.load_adapter(adapter)
from peft import PeftModel
again = ViTForImageClassification.from_pretrained(base)
for model in own, PeftModel.from_pretrained(again, adapter):
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(tensors["x"]).logits, tensors["y"])
print("equal")
"""


@pytest.mark.thorough
def test_peft_and_transformers_load_ours_after_nothing_but_the_import(
    make: Make, images: Callable[[str], Tensor], train: Callable[..., None], tmp_path: Path
) -> None:
    host, x = make("hf_vit"), images("hf_vit")
    host.save_pretrained(tmp_path / "base")  # pyright: ignore[reportCallIssue]
    model = adapt(host, Mosa(Bottleneck(4)))
    train(model, x)
    save(model, tmp_path / "adapter")
    with torch.no_grad():
        save_file({"x": x, "y": model(x).logits}, tmp_path / "said.safetensors")
    report = tmp_path / "said.safetensors"
    assert fresh(READ, tmp_path / "base", tmp_path / "adapter", report) == "equal\n"


def llama(seed: int = 0, **settings: Any) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **settings)).eval()  # pyright: ignore


def moved(model: nn.Module) -> nn.Module:
    """The model with numbers in all that is trained."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=draw))
    return model.eval()


def said(model: nn.Module) -> Tensor:
    ids = torch.arange(12).view(2, 6) * 5
    with torch.no_grad():
        return model(input_ids=ids).logits


WITHOUT_US = """
import sys, torch
sys.modules["intarsia"] = None
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
base, *folders = sys.argv[1:]
from peft import PeftModel
for folder in folders:
    own = LlamaForCausalLM.from_pretrained(base)
    own.load_adapter(folder)
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder)
    want = load_file(folder + "/../said.safetensors")[folder.rpartition("/")[2]]
    for one in own, model:
        with torch.no_grad():
            torch.testing.assert_close(one.eval()(torch.arange(12).view(2, 6) * 5).logits, want)
    print(model.peft_config["default"].peft_type.value)
"""
QV = ("qv", "mlp_linear")
THEIRS: dict[str, Any] = {
    "lora": Lora(2, alpha=5.0, roles=QV),
    "dora": PeftMethod("dora", roles=QV),
    "ia3": PeftMethod("ia3", roles=QV),
}


@pytest.mark.thorough
def test_what_peft_has_is_written_as_pefts_own_type(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")  # pyright: ignore[reportCallIssue]
    logits: dict[str, Tensor] = {}
    for name, method in THEIRS.items():
        model = moved(intarsia.apply(llama(), method))
        save(model, tmp_path / name)
        if name == "lora":  # PEFT's and transformers' own functions write the same
            model.save_pretrained(tmp_path / "own")  # pyright: ignore[reportCallIssue]
            logits["own"] = said(model)
        logits[name] = said(model)
        assert_close(said(load(llama(), tmp_path / name)), logits[name])
    save_file(logits, tmp_path / "said.safetensors")
    printed = fresh(WITHOUT_US, tmp_path / "base", *(tmp_path / name for name in logits))
    assert printed.split() == ["LORA", "LORA", "LORA", "IA3"]
    # what vLLM and llama.cpp's converter look at
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"]) == (2, 5, "none")
    assert config["modules_to_save"] is None
    keys = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert all(k.endswith((".lora_A.weight", ".lora_B.weight")) for k in keys)
    assert all(k.startswith("base_model.model.model.layers.") for k in keys)


def test_plain_lora_comes_back_as_cells_and_is_checked(make: Make, tmp_path: Path) -> None:
    model = moved(adapt(make("vit"), Lora(2), classes=list("abcde")))
    adapt(model, Mosa(Bottleneck(4)), name="other")
    save(model, tmp_path)
    again = load(make("vit"), tmp_path, name="default", classes=list("abcde"))
    assert again.peft_config["default"].method == "lora"  # pyright: ignore
    assert_close(
        again.state_dict()["base_model.model.head.modules_to_save.default.weight"],
        model.state_dict()["base_model.model.head.modules_to_save.default.weight"],
    )
    x = torch.randn(2, 3, 32, 32)
    assert_close(again(x), model(x))
    with refused(CheckpointError, what="classes", got="['a', 'b', 'c', 'd', 'e']"):
        load(make("vit"), tmp_path, name="default", classes=list("edcba"))
    file = tmp_path / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 8
    file.write_bytes(data)
    with pytest.raises(CheckpointError):
        load(make("vit"), tmp_path, name="default")


def written(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_peft_s_own_saving_writes_plain_lora_as_peft_s(make: Make, tmp_path: Path) -> None:
    model = moved(adapt(make("vit"), Lora(2, alpha=5.0), classes=list("abcde")))
    folder = written(model, tmp_path / "lora")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 5)
    # PEFT's layers say the same; here it comes back as ours, with its head, seed and classes
    x = torch.randn(2, 3, 32, 32)
    opened = PeftModel.from_pretrained(make("vit"), str(folder)), load(make("vit"), folder)
    assert [is_adapted(again) for again in opened] == [False, True]
    for again in opened:
        assert_close(again.eval()(x), model(x))
    with refused(CheckpointError, what="classes", got="['a', 'b', 'c', 'd', 'e']"):
        load(make("vit"), folder, classes=list("edcba"))
    # the same adapter, the same bytes
    twin = written(load(make("vit"), folder), tmp_path / "twin")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (twin / name).read_bytes() == (folder / name).read_bytes()


def test_what_was_changed_in_such_a_folder_is_refused(make: Make, tmp_path: Path) -> None:
    folder = written(moved(adapt(make("vit"), Lora(2))), tmp_path)
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    stored = config.read_text()
    config.write_text(json.dumps(json.loads(stored) | {"lora_alpha": 64}))
    with refused(CheckpointError, got="settings that changed after they were saved"):
        load(make("vit"), folder)
    config.write_text(stored)
    data = bytearray(weights.read_bytes())
    data[-9] ^= 8
    weights.write_bytes(data)
    with refused(
        CheckpointError, got="bytes that changed after they were written, or no digest of them"
    ):
        load(make("vit"), folder)
    # written over by PEFT alone, it is PEFT's
    theirs = get_peft_model(make("vit"), LoraConfig(r=2, target_modules=["qkv"]))  # pyright: ignore
    assert is_adapted(load(make("vit"), written(theirs, folder)))


def test_beside_other_methods_our_type_is_kept(make: Make, tmp_path: Path) -> None:
    model = moved(adapt(make("vit"), Lora(2), name="lora"))
    adapt(model, Mosa(Bottleneck(4)), name="default")
    written(model, tmp_path)
    kinds = [
        json.loads((tmp_path / place / "adapter_config.json").read_text())["peft_type"]
        for place in ("", "lora")
    ]
    assert kinds == ["INTARSIA", "INTARSIA"]
    assert "`import intarsia`" in (tmp_path / "README.md").read_text()
    again = PeftModel.from_pretrained(make("vit"), str(tmp_path / "lora"), adapter_name="lora")
    again.load_adapter(str(tmp_path), "default")
    x = torch.randn(2, 3, 32, 32)
    assert_close(again.eval()(x), model(x))


def test_a_further_plain_lora_is_loaded_by_intarsia_where_peft_sees_two_types(
    make: Make, tmp_path: Path
) -> None:
    other = moved(adapt(make("vit"), Lora(2)))
    written(other, tmp_path)
    model = adapt(make("vit"), Lora(2), name="a")
    with pytest.raises(ValueError, match="different peft types"):
        model.load_adapter(str(tmp_path), "b")
    intarsia.load(model, tmp_path, name="b")
    model.set_adapter("b")
    x = torch.randn(2, 3, 32, 32)
    assert_close(model.eval()(x), other(x))


def test_transformers_trainer_goes_on_from_its_checkpoint_of_lora(tmp_path: Path) -> None:
    rows = [{"input_ids": [*range(i, i + 6)], "labels": [*range(i, i + 6)]} for i in range(8)]

    def trained(epochs: int, begin: Path | None) -> nn.Module:
        model = intarsia.adapt(llama(), Lora(2))
        arguments = TrainingArguments(
            str(tmp_path / "run"), num_train_epochs=epochs, save_strategy="epoch", use_cpu=True,
            per_device_train_batch_size=4, report_to=[], disable_tqdm=True, learning_rate=1e-2,
            lr_scheduler_type="constant",
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows).train(resume_from_checkpoint=begin)  # pyright: ignore
        return model.eval()

    straight = said(trained(2, None))
    first = tmp_path / "run" / "checkpoint-2"
    assert json.loads((first / "adapter_config.json").read_text())["peft_type"] == "LORA"
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    assert_close(said(trained(2, first)), straight)


PEFTS: dict[str, Any] = {
    "lora": LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"]),
    "rslora": LoraConfig(r=4, use_rslora=True, target_modules="all-linear"),
    "head": LoraConfig(r=2, target_modules=["down_proj"], modules_to_save=["lm_head"]),
    "dora": LoraConfig(r=2, use_dora=True, target_modules=["o_proj"]),
    "ranks": LoraConfig(r=2, rank_pattern={"v_proj": 4}, target_modules=["q_proj", "v_proj"]),
    "pissa": LoraConfig(r=2, init_lora_weights="pissa", target_modules=["q_proj"]),
    "embedding": LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": LoHaConfig(r=2, target_modules=["q_proj"]),
}


@pytest.mark.parametrize("kind", PEFTS)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_pefts_adapters_load_here(kind: str, tmp_path: Path) -> None:
    model = moved(get_peft_model(llama(), copy.deepcopy(PEFTS[kind])))  # pyright: ignore
    model.save_pretrained(str(tmp_path / "theirs"))  # pyright: ignore[reportCallIssue]
    loaded = load(llama(), tmp_path / "theirs")
    assert is_adapted(loaded) == (kind in ("lora", "rslora", "head"))
    assert_close(said(loaded), said(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    trainable = load(llama(), tmp_path / "theirs", trainable=True)
    assert any(p.requires_grad for p in trainable.parameters())
    save(loaded, tmp_path / "ours")
    assert_close(said(load(llama(), tmp_path / "ours")), said(model))
    if kind != "embedding":
        ids = {"input_ids": torch.arange(12).view(2, 6) * 5}
        stock = fold(loaded, inputs=ids, report=lambda _: None)  # pyright: ignore[reportArgumentType]
        assert type(stock) is LlamaForCausalLM
        assert_close(said(stock), said(model), atol=1e-4, rtol=1e-4)
        assert_close(said(loaded), said(model))  # left as it was


def test_what_reads_other_files_is_refused(tmp_path: Path) -> None:
    model = get_peft_model(llama(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))  # pyright: ignore
    model.save_pretrained(str(tmp_path))
    with refused(CheckpointError, got="type 'PROMPT_TUNING'"):
        load(llama(), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "NEW"}))
    with refused(CheckpointError, got="type 'NEW'"):
        load(llama(), tmp_path)


def test_a_run_of_pefts_own_adapter_is_loaded(tmp_path: Path) -> None:
    rows = [({"input_ids": torch.arange(6)}, torch.arange(6)) for _ in range(4)]
    model: Any = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))  # pyright: ignore
    intarsia.fit(model, rows, epochs=1, batch_size=4, out=tmp_path, trackers=())  # pyright: ignore
    assert_close(said(load(llama(), tmp_path)), said(model.eval()))
