"""Folders and files of models."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import peft
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import intarsia
from intarsia.conformance.made import torch_seed
from intarsia.conformance.senses import decoder
from intarsia.data import language_models
from intarsia.data.texts import read_prompts
from intarsia.folders.out.export import export_timm
from intarsia.folders.out.gguf_model import export_gguf
from intarsia.sparse.prune.files import read_folder
from intarsia.train import checkpoint

from .data import tokenizer
from .kinds import Kind

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
IDS = torch.arange(12).view(2, 6)
ROWS = torch.arange(256).view(8, 32) % 61


def _vit() -> nn.Module:
    with torch_seed(0):
        sizes = {"depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 3, "img_size": 32}
        return timm.create_model("vit_tiny_patch16_224", **sizes).eval()


def llama() -> Any:
    with torch_seed(0):
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def _mixtral() -> Any:
    with torch_seed(0):
        config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
        return MixtralForCausalLM(config).eval()


@torch.no_grad()
def _outputs(model: Any) -> torch.Tensor:
    if isinstance(getattr(model, "config", None), LlamaConfig | MixtralConfig):
        return model(input_ids=IDS).logits
    return model(torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32))


def _loaded(folder: Path) -> Any:
    return _outputs(intarsia.load(_vit(), folder).eval())


def _adapter(folder: Path) -> None:
    intarsia.save(intarsia.adapt(_vit(), intarsia.Mosa(experts=2), classes=["a", "b", "c"]), folder)


def _lora(folder: Path) -> None:
    intarsia.save(intarsia.adapt(_vit(), intarsia.Lora(2)), folder)


def _foreign(folder: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["qkv"], use_dora=True)
    peft.get_peft_model(_vit(), config).save_pretrained(str(folder))  # pyright: ignore


def _mixture(folder: Path) -> None:
    intarsia.save(intarsia.upcycle(_vit(), intarsia.TopK(experts=3)), folder)


def _changed(folder: Path) -> None:
    """Several steps in one folder: experts, and an adapter behind them."""
    model = intarsia.upcycle(_vit(), intarsia.TopK(experts=2), layers=[0])
    intarsia.save(intarsia.adapt(model, intarsia.adapters.Ssf()), folder)


def _packed(folder: Path) -> None:
    intarsia.pack(
        intarsia.adapt(_vit(), intarsia.methods.BiAdapter(intarsia.Bottleneck(5))), folder
    )


def _delta(folder: Path) -> None:
    entries = {"head.weight": (torch.tensor([1, 5, 9]), torch.tensor([0.5, -0.5, 1.0]))}
    intarsia.sparse.SparseDelta.of(entries, dict(_vit().named_parameters()), {}).save(
        folder / "d.safetensors"
    )


def _open_delta(folder: Path) -> Any:
    model = _vit()
    intarsia.sparse.SparseDelta.load(folder / "d.safetensors").apply(model)
    return _outputs(model)


def _pruned(layout: str) -> Any:
    def make(folder: Path) -> None:
        model = llama()
        intarsia.sparsify(model, intarsia.sparse.Magnitude(0.7))
        intarsia.sparse.save_sparse(model, folder / layout, layout=layout)

    return make


def _open_bitmask(folder: Path) -> Any:
    intarsia.sparse.convert_sparse(folder / "bitmask", folder / "new")
    return read_folder(folder / "new")


def _walk(folder: Path) -> None:
    intarsia.sparsify(llama(), intarsia.Wanda(0.5), ROWS, out=folder / "walk")


def _open_walk(folder: Path) -> Any:
    model = llama()
    intarsia.sparsify(model, intarsia.Wanda(0.5), ROWS, out=folder / "walk", resume=True)
    return _outputs(model)


def _store(folder: Path) -> None:
    _mixtral().save_pretrained(folder / "model")
    intarsia.offloading.pack_experts(folder / "model", folder / "store")


def _open_store(folder: Path) -> Any:
    return _outputs(intarsia.offload(folder / "store", slots=2))


def _open_experts(folder: Path) -> Any:
    """A folder of save_pretrained, which is packed on the way."""
    return _outputs(intarsia.offload(folder / "model", slots=2, store=folder / "new"))


def _tables_model() -> nn.Module:
    with torch_seed(0):
        return nn.ModuleDict({"users": nn.Embedding(30, 16), "films": nn.Embedding(50, 16)})


def _tables(folder: Path) -> None:
    model: Any = _tables_model()
    with torch.no_grad():
        model["films"].weight[:, 2:] = 0
    intarsia.sparse.save_tables(model, folder / "tables.safetensors")


def _open_tables(mapped: bool) -> Any:
    def read(folder: Path) -> Any:
        model = _tables_model()
        intarsia.sparse.load_tables(model, folder / "tables.safetensors", mapped=mapped)
        return model.state_dict()

    return read


def _export(folder: Path) -> None:
    with torch_seed(0):
        model = timm.create_model("test_vit", num_classes=3)
    export_timm(model, folder / "model")


def _open_timm(folder: Path) -> Any:
    return intarsia.backbone(f"local-dir:{folder / 'model'}", classes=3).state_dict()


def _soup(folder: Path) -> None:
    for name in ("a", "b"):
        intarsia.sparse.save_sparse(llama(), folder / name)


def _open_soup(folder: Path) -> Any:
    return intarsia.soup([folder / "a", folder / "b"])


def _checkpoint(folder: Path) -> None:
    state = {"step": 3, "model": {"w": torch.ones(4)}, "rng": (1, [2, {"a": torch.zeros(2)}])}
    checkpoint.save(folder, state | {"adam": {0: {"m": torch.ones(3)}}})


def _language(stock: bool) -> Any:
    """A folder of save_pretrained with a tokenizer; stock: of a model whose MLPs are mixtures."""

    def make(folder: Path) -> None:
        words, model = tokenizer(), llama()
        model = (
            intarsia.upcycle(model, intarsia.TopK(experts=2), sees_later=True) if stock else model
        )
        model.save_pretrained(folder / "model")  # pyright: ignore
        words.save_pretrained(folder / "model")

    return make


def _open_language(folder: Path) -> Any:
    model, words = intarsia.language_model(str(folder / "model"))
    chat = ['{"messages": [{"role": "user", "content": "say the cat"}]}']
    return _outputs(model), read_prompts(chat, words)


def _senses(folder: Path) -> None:
    see = intarsia.senses.Modalities("pixels", "log-mel", (4, 2))
    intarsia.save(
        intarsia.adapt(intarsia.apply(decoder(), see), intarsia.Lora(2), head=None), folder
    )


def _open_senses(folder: Path) -> Any:
    return intarsia.load(decoder(), folder).state_dict()


def _spans(folder: Path) -> None:
    intarsia.spans.Spans.uniform(2, 2, 0.5).save(folder / "spans.json")


def _gguf(folder: Path) -> None:
    helpers = runpy.run_path(str(Path(__file__).parents[1] / "language_models.py"))
    tokenizer = helpers["byte_tokenizer"](("t", "h"))
    with torch_seed(0):
        sizes = SIZES | {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32}
        model = LlamaForCausalLM(LlamaConfig(**sizes | {"head_dim": 16})).eval()
    words: dict[str, Any] = {"tokenizer": tokenizer, "report": lambda _: None}
    export_gguf(model, folder / language_models._GGUF, quant="q8_0", **words)


def _open_gguf(folder: Path) -> Any:
    """Unpack a packaged model, and return its weights."""
    with language_models.quietly(), torch.no_grad():
        language_models._convert_gguf(folder, folder / "out")
    return load_file(folder / "out" / "model.safetensors")


KINDS = (
    Kind("adapter", _adapter, _loaded),
    Kind("lora", _lora, _loaded),
    Kind("foreign", _foreign, _loaded),
    Kind("mixture", _mixture, _loaded),
    Kind("changes", _changed, _loaded),
    Kind("packed", _packed, _loaded),
    Kind("delta", _delta, _open_delta),
    Kind("sparse", _pruned("bitmask"), _open_bitmask),
    Kind("walk", _walk, _open_walk),
    Kind("store", _store, _open_store),
    Kind("experts", lambda folder: _mixtral().save_pretrained(folder / "model"), _open_experts),
    Kind("tables", _tables, _open_tables(mapped=False)),
    Kind("mapped", _tables, _open_tables(mapped=True)),
    Kind("timm", _export, _open_timm),
    Kind("soup", _soup, _open_soup),
    Kind("checkpoint", _checkpoint, lambda folder: checkpoint.load(folder / "save-000001")),
    Kind("language", _language(stock=False), _open_language),
    Kind("stock", _language(stock=True), _open_language),
    Kind("senses", _senses, _open_senses),
    Kind("gguf", _gguf, _open_gguf),
    Kind("spans", _spans, lambda folder: vars(intarsia.spans.load_spans(folder / "spans.json"))),
)
