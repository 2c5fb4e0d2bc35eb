"""Default settings on every model that the documentation lists, and methods by their names."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import intarsia
from intarsia.catalog import card, cards
from intarsia.core.errors import ConfigError, TargetError, UnknownName
from intarsia.hosts.anatomy.blocks import block_kind, blocks, places
from intarsia.methods import LinearProbe
from intarsia_lab.pages.host_models import HOSTS, host
from intarsia_lab.pages.hosts import UPCYCLE, page, said, upcycles, works

from ..refusals import refused

PAGE = Path(__file__).parents[2] / "docs" / "hosts.md"
# a method of each place on a model of each kind; the page has the others
OTHERS = [
    ("lora", "timm EVA-02"), ("lora", "GPT-2"), ("lora", "DistilBERT"), ("bi", "BERT"),
    ("adamix", "Whisper encoder"), ("fourier", "timm RegNet"), ("llava_mole", "SigLIP"),
    ("llava_mole", "T5"), ("mixlora", "timm ConvNeXt"), ("mixlora", "GPT-2"), ("mos", "timm Swin"),
    ("ssf", "timm ResNet"), ("poly", "timm MLP-Mixer"), ("s2ft", "Llama"), ("lt_sft", "Wav2Vec2"),
    ("sparse", "CLIP"), ("bottleneck", "Gemma"), ("mixlora", "Phi-3"), ("mixlora", "ModernBERT"),
]  # fmt: skip


def on_page(key: str, name: str) -> str:
    """The cell of the table."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if "|" in line]
    column = rows[0].index(key) + 1
    return next(row for row in rows if row[0] == f"**{name}**")[column]


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", HOSTS)
def test_the_default_method_works_on_every_model(name: str) -> None:
    assert works(card("mosa"), name) == on_page("mosa", name)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("key", "name"), OTHERS)
def test_defaults_of_other_methods_work(key: str, name: str) -> None:
    assert works(card(key), name) == on_page(key, name)


# of families whose queries, keys and values are one layer, or have names of their own
FUSED = {
    "Phi-3": ["self_attn.qkv_proj"],
    "GPT-NeoX": ["attention.query_key_value"],
    "BLOOM": ["self_attention.query_key_value"],
    "MPT": ["attn.Wqkv"],
    "CodeGen": ["attn.qkv_proj"],
    "DeBERTa": ["attention.self.in_proj"],
    "DeBERTa v2": [f"attention.self.{n}_proj" for n in ("query", "key", "value")],
    "timm LeViT": ["attn.qkv.linear"],
    "timm PoolFormer": ["mlp.fc1", "mlp.fc2"],
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "name", [*FUSED, "timm Hiera", "Falcon", "Nemotron-H", "Gemma 4", "BLIP-2"]
)
def test_lora_folds_into_models_of_every_family(name: str) -> None:
    assert works(card("lora"), name) == on_page("lora", name) == "folds"


@pytest.mark.parametrize("name", FUSED)
def test_queries_keys_and_values_are_found_where_they_are_one_layer(name: str) -> None:
    _, block = blocks(host(name))[0]
    assert places(block, "qkv") == FUSED[name]


def test_a_hybrid_has_its_attention_and_its_mlp_in_blocks_of_their_own() -> None:
    mamba, attention, mlp = (block for _, block in blocks(host("Nemotron-H")))
    assert places(attention, "qkv") == ["mixer.q_proj", "mixer.k_proj", "mixer.v_proj"]
    assert places(mlp, "mlp") == ["mixer"] and places(attention, "mlp") == []
    assert all(places(mamba, role) == [] for role in ("qkv", "mlp", "attention", "mlp_linear"))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "name",
    ["Phi-3", "GLM", "GPT-NeoX", "Falcon", "GPT-J", "ModernBERT", "Nemotron-H", "timm Hiera"],
)
def test_mlps_of_other_dialects_become_mixtures(name: str) -> None:
    assert upcycles(name) == on_page(UPCYCLE, name) == "yes"


def test_an_mlp_that_sees_more_than_a_token_becomes_no_mixture() -> None:
    for name in ("timm PVT", "timm LeViT", "timm PoolFormer", "BLOOM", "MPT"):
        with pytest.raises(TargetError):
            upcycles(name)


def test_a_cell_beside_experts_that_give_one_row_of_tokens_has_their_shape() -> None:
    adapted = intarsia.adapt(host("Llama 4"), intarsia.Bottleneck(4), targets=["feed_forward"])
    batch = HOSTS["Llama 4"].batch()
    names = ["default", "default"]
    assert torch.equal(said(adapted, batch), said(adapted, batch | {"adapter_names": names}))


def test_rwkv_that_divides_its_weights_for_inference_takes_no_cell_there() -> None:
    model: Any = host("RWKV")
    model.config.rescale_every = 6
    with pytest.raises(TargetError) as caught:
        intarsia.adapt(model, intarsia.Bottleneck(4))
    assert "rescale_every=6" in caught.value.got and "= 0" in caught.value.fix
    assert isinstance(intarsia.adapt(model, "lora"), nn.Module)


def test_a_fold_without_inputs_knows_the_size_that_hiera_was_built_for() -> None:
    adapted = intarsia.adapt(host("timm Hiera"), "lora")
    assert isinstance(intarsia.fold(adapted, report=lambda _: None), nn.Module)


def test_a_fold_without_inputs_says_that_it_cannot_guess_them() -> None:
    model: Any = intarsia.adapt(timm.create_model("levit_128s", img_size=64, num_classes=5), "lora")
    with pytest.raises(ConfigError) as caught:
        intarsia.fold(model)
    assert "inputs=" in caught.value.fix


GRIDS = ("convpass",)  # adapters of patches on a grid: text, sound and maps have none
MIXED = ("mixlora", "llava_mole", "uni_moe")  # of experts in one MLP
# without a linear layer in a role: experts are stacked tensors, or attention has other parts
LACKING = {("Mixtral", key) for key in ("lt_sft", "mos", "s2ft", "sparse")}
LACKING |= {("RWKV", key) for key in ("lt_sft", "mos", "sparse")}


def test_the_page_has_every_adapter_and_what_is_refused_has_its_reason() -> None:
    refused = {
        (name, card.key)
        for card in cards("adapter")
        for name in HOSTS
        if on_page(card.key, name) not in ("yes", "folds")
    }
    assert {(n, key) for n, key in refused if key not in (*MIXED, *GRIDS)} == LACKING
    assert not {(n, key) for n, key in refused if n == "timm ViT" and key in GRIDS}


def test_roles_leave_the_head_out_and_targets_do_not() -> None:
    adapted: Any = intarsia.adapt(host("XLM-RoBERTa"), "ssf")
    assert not any("classifier" in path for path in adapted.peft_config["default"].target_modules)
    with pytest.raises(TargetError) as caught:
        intarsia.adapt(host("XLM-RoBERTa"), "lora", targets=["classifier.dense"])
    assert "head=None" in caught.value.fix


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_page_is_what_is_tried_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTARSIA_HOME", str(tmp_path))  # no stored trials
    assert page() == PAGE.read_text()


@pytest.mark.parametrize(
    ("name", "count", "kind", "mlp", "after", "attention"),
    [
        ("BERT", 2, "split", [], ["output.dense"], ["attention.output.dense"]),
        ("Whisper encoder", 2, "split", [], ["fc2"], ["self_attn"]),
        ("DistilBERT", 2, "attention", ["ffn"], ["ffn"], ["attention"]),
        ("GPT-2", 2, "attention", ["mlp"], ["mlp"], ["attn"]),
        ("CLIP", 4, "attention", ["mlp"], ["mlp"], ["self_attn"]),
        ("Wav2Vec2", 2, "attention", ["feed_forward"], ["feed_forward"], ["attention"]),
        ("timm MLP-Mixer", 2, "mixer", ["mlp_channels"], ["mlp_channels"], ["mlp_tokens"]),
        ("timm ResNet", 4, "conv", [""], [""], []),
        ("timm RegNet", 4, "conv", [""], [""], []),
    ],
)
def test_blocks_are_known_by_their_structure(
    name: str, count: int, kind: str, mlp: list[str], after: list[str], attention: list[str]
) -> None:
    paths = blocks(host(name))
    assert len(paths) == count
    for _, block in paths:
        assert block_kind(block) == kind
        assert places(block, "mlp", "parallel") == mlp
        assert places(block, "mlp", "sequential") == after
        assert places(block, "attention", "sequential") == attention


def test_layers_of_an_encoder_decoder_are_those_of_both() -> None:
    layers = dict(blocks(host("T5")))
    assert list(layers) == [f"{side}.block.{i}" for side in ("encoder", "decoder") for i in (0, 1)]
    decoder = layers["decoder.block.0"]
    assert places(decoder, "mlp") == ["layer.2.DenseReluDense"]
    assert places(decoder, "qv") == ["layer.0.SelfAttention.q", "layer.0.SelfAttention.v"]


def test_a_placement_that_was_asked_for_is_not_changed() -> None:
    with refused(TargetError, what="role 'mlp'"):
        intarsia.adapt(host("BERT"), intarsia.Bottleneck(4, "adaptformer"))
    by_host = intarsia.adapt(host("BERT"), intarsia.Bottleneck(4))
    settings: Any = by_host.peft_config["default"]
    assert settings.options["placement"] == "pfeiffer"


def test_a_method_is_taken_by_its_name_with_its_defaults() -> None:
    assert inspect.signature(intarsia.adapt).parameters["method"].default == "lora"
    for name, key in (("mosa", "mosa"), ("MoSA", "mosa"), ("LoRA", "lora")):
        model: Any = intarsia.adapt(host("timm ViT"), name)
        assert model.peft_config["default"].method == key
    assert isinstance(intarsia.upcycle(host("timm ViT"), "switch"), nn.Module)
    assert isinstance(intarsia.apply(host("timm ViT"), "linear"), nn.Module)


@pytest.mark.parametrize(
    ("method", "error", "got"),
    [
        ("moza", UnknownName, "'moza'"),
        ("switch", UnknownName, "'switch'"),
        (intarsia.Mosa, ConfigError, "Mosa, a class"),
        (LinearProbe(), ConfigError, "LinearProbe"),
        (3, ConfigError, "int"),
    ],
)
def test_what_is_no_adapter_is_refused_with_what_to_pass(
    method: Any, error: type[Exception], got: str
) -> None:
    with refused(error, got=got):
        intarsia.adapt(host("timm ViT"), method)


@pytest.mark.parametrize("name", ["BERT", "OPT"])
@pytest.mark.parametrize("method", ["mixlora", "llava_mole"])
def test_experts_beside_an_mlp_need_one_that_is_a_module(method: str, name: str) -> None:
    with refused(TargetError, what="role 'mlp'"):
        intarsia.adapt(host(name), method)


def test_a_vit_of_transformers_has_no_union_of_experts() -> None:
    """Its layers have Llama's names, but neither rotary positions nor a place in a cache."""
    with pytest.raises(TargetError, match="got ViTAttention of"):
        intarsia.experts.UnionOfExperts(2, 1, heads=2).plan(host("ViT"))


@pytest.mark.parametrize("name", ["BERT", "Llama", "T5"])
def test_a_classifier_of_texts_is_folded_on_a_text_that_is_made_up(name: str) -> None:
    model = intarsia.adapt(host(name), intarsia.Lora(2))
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    said: list[str] = []
    stock = intarsia.fold(model, report=said.append)
    assert type(stock) is type(host(name)) and "largest output difference" in said[0]
    batch = HOSTS[name].batch()
    got, want = (m.eval()(**batch).logits for m in (stock, model))
    assert (got - want).abs().max() < 1e-4 * want.abs().max()
