"""What must not pass without a word: unknown roles, stale losses, tied weights, foreign folders."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

import intarsia
from intarsia import Lora, TopK
from intarsia.adapters import Sparse
from intarsia.core.errors import ConfigError, FoldError, TargetError, UnknownName
from intarsia.folders.out.export import export_timm
from intarsia.hosts.anatomy.prefix import first_trained_block, split_at
from intarsia.hosts.attach.adapt import find_heads
from intarsia.methods import MixLora, Poly, S2ft
from intarsia.senses import LlavaMole
from intarsia.train.record import parameter_counts

from ..refusals import refused

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def vit(name: str = "vit_tiny_patch16_224", **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        name, img_size=32, depth=2, embed_dim=32, num_heads=2, num_classes=5, **settings
    ).eval()


def llama(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **settings)).eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def stir(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))


def test_a_word_for_a_list_of_words_is_refused_with_the_list() -> None:
    with refused(ConfigError, what="roles", got="'qkv'", fix="Give a list: ['qkv']."):
        Lora(2, roles=cast(Any, "qkv"))


@pytest.mark.parametrize("roles", [("attn_qkv",), ("mlp", "mlp_liner")])
def test_a_role_that_is_none_is_refused(roles: Any) -> None:
    with refused(UnknownName, what="unknown role"):
        intarsia.adapt(vit(), Lora(2, roles=roles))


def test_the_losses_are_those_of_the_adapter_that_ran() -> None:
    model = intarsia.adapt(vit(), MixLora(TopK(4, 2, balance=0.1), Lora(2), None), name="a")
    model = intarsia.adapt(model, Lora(2), name="b")
    x = images()
    model.set_adapter("a")
    model.train()
    (model(x).sum() + intarsia.gating.aux_loss(model)).backward()
    assert intarsia.gating.aux_loss(model) > 0
    model.set_adapter("b")
    (model(x).sum() + intarsia.gating.aux_loss(model)).backward()
    assert intarsia.gating.aux_loss(model) == 0


def test_the_classifier_of_a_decoder_is_found() -> None:
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=3))
    assert find_heads(model) == ["score"]
    model = intarsia.adapt(model, Lora(2))
    assert any("score" in n and p.requires_grad for n, p in model.named_parameters())
    counts = parameter_counts(model)
    assert counts["trained"] - counts["trained_without_head"] == 3 * SIZES["hidden_size"]


def test_experts_do_not_route_by_task() -> None:
    over = Poly(tasks=2, rank=2, skills=2)
    with refused(ConfigError, what="over", got="Poly, which routes whole samples by their task"):
        intarsia.adapt(vit(), MixLora(TopK(2, 1, "prob"), over, None))


def test_what_knows_the_order_of_units_is_not_left_behind() -> None:
    model = llama()
    method = intarsia.methods.choose_channels(model, S2ft(down=0.3))
    with refused(ConfigError, what="channels", got="none"):
        intarsia.methods.co_permute(llama(), S2ft(down=0.3))
    adapted = intarsia.adapt(model, MixLora(TopK(2, 1, "prob"), Lora(2), None))
    stir(adapted)
    ids = torch.arange(6)[None]
    before = adapted(ids).logits
    with refused(TargetError, what="permutation inside 'model.layers.0.mlp'"):
        intarsia.methods.co_permute(adapted, method)
    assert_close(adapted(ids).logits, before)


def test_a_model_with_two_heads_is_not_split() -> None:
    model = vit("deit_tiny_distilled_patch16_224")
    for block in (1, None):
        with refused(
            TargetError, what="model to split", got="VisionTransformerDistilled, with two heads"
        ):
            split_at(model, block)
    adapted = intarsia.adapt(model, Lora(2), layers=[1])
    with refused(
        TargetError, what="model to split", got="VisionTransformerDistilled, with two heads"
    ):
        first_trained_block(adapted)


def test_a_folder_of_another_library_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with refused(
        ConfigError,
        what="path of the export",
        want="a new folder, an empty one, or an earlier export",
    ):
        export_timm(vit(), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"
    export_timm(vit(), tmp_path / "new")
    export_timm(vit(), tmp_path / "new")  # an earlier export may go


def test_a_batch_of_adapters_some_without_a_head() -> None:
    model = intarsia.adapt(vit(), Lora(2), name="p")
    model = intarsia.adapt(model, Lora(2), name="q", head=None)
    for name in ("p", "q"):
        model.set_adapter(name)
        stir(model)
    model.eval()
    x = images()
    mixed = model(x, adapter_names=["p", "q", "__base__"])
    for row, name in enumerate("pq"):
        model.set_adapter(name)
        model.eval()
        assert_close(mixed[row], model(x)[row], atol=1e-5, rtol=1e-5)


def test_a_merged_adapter_is_no_delta() -> None:
    model = intarsia.adapt(vit(), Lora(2))
    stir(model)
    model.merge_adapter()
    with refused(FoldError, what="delta"):
        intarsia.sparse.delta_of(model)
    model.unmerge_adapter()
    assert intarsia.sparse.delta_of(model).entries


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
def test_a_tied_weight_is_not_merged_into() -> None:
    model = intarsia.adapt(llama(tie_word_embeddings=True), Lora(2), targets=["lm_head"])
    with refused(FoldError, what="merging at 'lm_head'"):
        model.merge_adapter()


@pytest.mark.parametrize("method", [MixLora(), LlavaMole()])
def test_mixtures_of_lora_can_be_pickled(method: Any) -> None:
    model = intarsia.adapt(llama(), method, head=None)
    again = pickle.loads(pickle.dumps(model))  # of this very process
    ids = torch.arange(6)[None]
    assert_close(again.eval()(ids).logits, model.eval()(ids).logits)


def test_folding_by_name_needs_no_active_adapter() -> None:
    model = intarsia.adapt(vit(), Lora(2))
    stir(model)
    want = model.eval()(images())
    with model.disable_adapter():
        stock = intarsia.fold(model, name="default", report=lambda _: None)
    assert_close(stock(images()), want, atol=1e-4, rtol=1e-4)


def test_entries_for_a_site_that_is_not_there() -> None:
    with refused(UnknownName, what="unknown site in entries", got="'blocks.9.mlp.fc1'"):
        intarsia.adapt(vit(), Sparse(entries=("blocks.9.mlp.fc1=3",)))
