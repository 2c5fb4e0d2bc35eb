"""Mixtures in models whose MLPs are two layers, transposed, or on two sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.testing import assert_close

import intarsia
from intarsia import TopK
from intarsia.core.errors import CheckpointError, ConfigError, TargetError
from intarsia.gating import learned_routers
from intarsia.mixtures import Mixture
from intarsia_lab.pages.host_models import HOSTS, host
from intarsia_lab.pages.hosts import said

from ..refusals import refused

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

M2M = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    "decoder_start_token_id": 2,
}  # fmt: skip


def m2m() -> nn.Module:
    torch.manual_seed(0)
    return hf.M2M100ForConditionalGeneration(hf.M2M100Config(**M2M)).eval()


def dry(model: nn.Module) -> nn.Module:
    """Remove the dropout that GPT-2, T5 and DistilBERT have inside their MLPs."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def mixtures(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if isinstance(module, Mixture)]


@pytest.mark.parametrize(
    ("name", "first", "count"),
    [
        ("BERT", "bert.encoder.layer.0.output.dense", 2),
        ("RoBERTa", "roberta.encoder.layer.0.output.dense", 2),
        ("DistilBERT", "distilbert.transformer.layer.0.ffn", 2),
        ("GPT-2", "transformer.h.0.mlp", 2),
        ("T5", "encoder.block.0.layer.1.DenseReluDense", 4),
        ("Whisper encoder", "encoder.layers.0.fc2", 2),
        ("Wav2Vec2", "wav2vec2.encoder.layers.0.feed_forward", 2),
        ("CLIP", "text_model.encoder.layers.0.mlp", 4),
        ("timm MLP-Mixer", "blocks.0.mlp_channels", 2),
    ],
)
def test_copies_give_the_dense_output_and_come_back(
    name: str, first: str, count: int, tmp_path: Path
) -> None:
    batch = HOSTS[name].batch()
    want = said(host(name), batch)
    model = intarsia.upcycle(dry(host(name)), TopK(4, 2))
    assert mixtures(model)[0] == first
    assert len(mixtures(model)) == count
    assert_close(said(model, batch), want, atol=1e-5, rtol=1e-4)
    for router in learned_routers(model).values():
        nn.init.normal_(router.get_parameter("weight"))
    for path in mixtures(model):
        model.get_submodule(path).experts.diversify(0.5, torch.Generator().manual_seed(0))  # pyright: ignore
    changed = said(model, batch)
    assert not torch.allclose(changed, want, atol=1e-6)
    again = intarsia.load(dry(host(name)), intarsia.save(model, tmp_path / "saved"))
    assert torch.equal(said(again, batch), changed)
    with pytest.raises(CheckpointError):
        model.load_state_dict(host(name).state_dict())


@pytest.mark.parametrize("name", ["GPT-2", "T5", "DistilBERT"])
def test_dropout_inside_an_mlp_is_refused_and_nothing_has_changed(name: str) -> None:
    model = host(name)
    before = [path for path, _ in model.named_modules()]
    with pytest.raises(TargetError, match=r"with dropout 0\.1.*set its dropout to 0"):
        intarsia.upcycle(model)
    assert [path for path, _ in model.named_modules()] == before


def test_layers_that_a_mixture_stands_for_pass_their_input_on() -> None:
    model: Any = intarsia.upcycle(host("BERT"), TopK(4, 2), residual="sum", layers=[1])
    dense, block = model.bert.encoder.layer
    assert isinstance(dense.output.dense, nn.Linear)
    x = torch.randn(2, 3, 32)
    assert torch.equal(block.intermediate(x), x)
    plain: Any = host("BERT").bert.encoder.layer[1]
    assert_close(block.output.dense(x), 2 * plain.output.dense(plain.intermediate(x)))


@pytest.mark.parametrize("make", [m2m, lambda: dry(host("T5"))], ids=["m2m100", "t5"])
def test_an_encoder_and_a_decoder_have_masks_of_their_own(make: Any) -> None:
    model: Any = intarsia.upcycle(make(), TopK(4, 2)).train()
    ids, mask = torch.arange(3, 15).view(2, 6), torch.ones(2, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    answers = torch.arange(5, 13).view(2, 4)
    heard = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    model(
        input_ids=ids, attention_mask=mask, decoder_input_ids=answers, decoder_attention_mask=heard
    )
    tokens: dict[str, Tensor] = {}
    for path, router in learned_routers(model).items():
        assert router.last is not None
        tokens[path] = router.last.token.unique()
    for path, numbers in tokens.items():
        mask_of_part = heard if "decoder" in path else mask
        assert numbers.tolist() == mask_of_part.flatten().nonzero().flatten().tolist()
    model(input_ids=ids, attention_mask=mask, decoder_input_ids=answers)
    last = [r.last for p, r in learned_routers(model).items() if "decoder" in p]
    assert all(r is not None and len(r.token.unique()) == 8 for r in last)
    (intarsia.gating.aux_loss(model) * 1).backward()


def test_a_decoder_of_t5_does_not_look_ahead_unless_told() -> None:
    with refused(ConfigError, what="routing of a decoder"):
        intarsia.upcycle(dry(host("T5")), intarsia.routers.ExpertChoice(4))
    intarsia.upcycle(dry(host("T5")), intarsia.routers.ExpertChoice(4), layers=[0, 1])
    intarsia.upcycle(host("BERT"), intarsia.routers.ExpertChoice(4))


@pytest.mark.parametrize("name", ["GLM", "GLM-4"])
def test_a_gated_mlp_of_one_layer_comes_back_whole_from_a_union(name: str) -> None:
    want = said(host(name), HOSTS[name].batch())
    with refused(
        TargetError, what="attention 'model.layers.0.self_attn'"
    ):  # it rotates half of each head
        intarsia.apply(host(name), intarsia.experts.UnionOfExperts(experts=4, active=4))
    settings = intarsia.experts.UnionOfExperts(experts=4, active=4, parts=("mlp",))
    union = intarsia.apply(host(name), settings)
    assert_close(said(union, HOSTS[name].batch()), want)
    folded: Any = intarsia.fold(union)
    assert_close(said(folded, HOSTS[name].batch()), want)
    assert folded.state_dict().keys() == host(name).state_dict().keys()
