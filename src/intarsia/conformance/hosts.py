"""Which adapters work on which models by their defaults, tried on tiny ones; `python -m` writes the
page."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
import transformers as hf
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.mlp_mixer import MlpMixer
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet, RegNetCfg
from torch import Tensor, nn

from ..catalog import cards
from ..core import Card
from ..core.errors import FoldError, IntarsiaError
from ..hosts import adapt, fold, load, save
from ..hosts.anatomy.compare import outputs, tensors
from ..hosts.anatomy.own_weights import own_parameters

Batch = dict[str, Tensor]


class Host(NamedTuple):
    """A tiny model with random weights, and a batch as it takes it."""

    make: Callable[[], nn.Module]
    batch: Callable[[], Batch]


def _pictures(size: int = 32, name: str = "x") -> Batch:
    draws = torch.Generator().manual_seed(1)
    return {name: torch.randn(2, 3, size, size, generator=draws)}


def _tokens(**more: Any) -> Batch:
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (2, 6), generator=draws)
    return {"input_ids": ids} | more


def _sounds(name: str, *shape: int) -> Batch:
    draws = torch.Generator().manual_seed(1)
    return {name: torch.randn(2, *shape, generator=draws)}


def _timm(name: str, **settings: Any) -> Host:
    size = settings.pop("size", 32)
    classes = {"num_classes": 5} | settings
    return Host(partial(timm.create_model, name, **classes), partial(_pictures, size))


def _hf(model: str, config: str, batch: Callable[[], Batch], **settings: Any) -> Host:
    def make() -> nn.Module:
        built = getattr(hf, config)(**settings)
        return getattr(hf, model)(built)

    return Host(make, batch)


TRUNK = {"depth": 2, "embed_dim": 32, "num_heads": 2}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TEXT = SMALL | {"vocab_size": 64, "num_labels": 5, "pad_token_id": 0}
IMAGE = SMALL | {"image_size": 32, "patch_size": 16, "num_labels": 5}
DECODER = TEXT | {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64}
_hf_image = partial(_pictures, 32, "pixel_values")


def _classifier(name: str, **settings: Any) -> Host:
    """A decoder of transformers with a classifier."""
    found = DECODER | settings
    return _hf(f"{name}ForSequenceClassification", f"{name}Config", _tokens, **found)


def _mixer() -> nn.Module:
    model = MlpMixer(5, 32, patch_size=8, num_blocks=2, embed_dim=32)
    nn.init.normal_(model.get_parameter("head.weight"))  # it starts at zero
    return model


def _mobile(kind: Callable[..., nn.Module], *stages: str) -> Host:
    """A MobileNet of few stages, each a block string of timm's."""

    def make() -> nn.Module:
        return kind(decode_arch_def([[s] for s in stages]), 5, num_features=32, stem_size=16)

    return Host(make, _pictures)


def _clip() -> nn.Module:
    text = SMALL | {"vocab_size": 64, "max_position_embeddings": 16, "eos_token_id": 2}
    vision = SMALL | {"image_size": 32, "patch_size": 16}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def _image_and_text() -> Batch:
    return _pictures(32, "pixel_values") | _tokens()


def _both_texts() -> Batch:
    return _tokens(decoder_input_ids=torch.arange(1, 9).view(2, 4))


HOSTS: Mapping[str, Host] = MappingProxyType(
    {
        "timm ViT": _timm("vit_tiny_patch16_224", img_size=32, **TRUNK),
        "timm DeiT": _timm("deit_tiny_distilled_patch16_224", img_size=32, **TRUNK),
        "timm DINOv2": _timm("vit_small_patch14_dinov2", img_size=28, size=28, **TRUNK),
        "timm EVA-02": _timm(
            "eva02_tiny_patch14_224", img_size=28, size=28, **TRUNK | {"embed_dim": 48}
        ),
        "timm BEiT": _timm("beit_base_patch16_224", img_size=32, **TRUNK),
        "timm Swin": _timm(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            embed_dim=32,
            depths=(1, 2),
            num_heads=(1, 2),
        ),
        "timm MLP-Mixer": Host(_mixer, _pictures),
        "timm ConvNeXt": _timm("convnext_tiny", depths=(1, 1, 2, 1), dims=(32, 32, 32, 32)),
        "timm ResNet": _timm("test_resnet"),
        "timm RegNet": Host(
            lambda: RegNet(RegNetCfg(depth=4, w0=8, wa=12.0, wm=1.5, group_size=8), num_classes=5),
            _pictures,
        ),
        "timm MobileNetV2": _mobile(EfficientNet, "ds_r1_k3_s1_c16", "ir_r2_k3_s2_e6_c24"),
        "timm MobileNetV3": _mobile(
            MobileNetV3, "ds_r1_k3_s2_e1_c16_se0.25", "ir_r2_k5_s2_e4_c24_se0.25", "cn_r1_k1_s1_c48"
        ),
        "timm MobileNetV4": _mobile(
            MobileNetV3, "cn_r1_k3_s2_e1_c16", "uir_r1_a5_k5_s2_e3_c24", "uir_r1_a0_k3_s1_e4_c24"
        ),
        "timm EfficientNet": _timm("test_efficientnet"),
        "ViT": _hf("ViTForImageClassification", "ViTConfig", _hf_image, **IMAGE),
        "SigLIP": _hf(
            "SiglipForImageClassification",
            "SiglipConfig",
            _hf_image,
            vision_config=SMALL | {"image_size": 32, "patch_size": 16},
            text_config=SMALL,
            num_labels=5,
        ),
        "CLIP": Host(_clip, _image_and_text),
        "BERT": _hf("BertForSequenceClassification", "BertConfig", _tokens, **TEXT),
        "RoBERTa": _hf("RobertaForSequenceClassification", "RobertaConfig", _tokens, **TEXT),
        "DistilBERT": _hf(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            _tokens,
            dim=32,
            hidden_dim=64,
            n_layers=2,
            n_heads=2,
            vocab_size=64,
            num_labels=5,
        ),
        "T5": _hf(
            "T5ForConditionalGeneration",
            "T5Config",
            _both_texts,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
            vocab_size=64,
        ),
        "GPT-2": _hf(
            "GPT2ForSequenceClassification",
            "GPT2Config",
            _tokens,
            n_embd=32,
            n_layer=2,
            n_head=2,
            vocab_size=64,
            pad_token_id=0,
            num_labels=5,
        ),
        "Llama": _classifier("Llama"),
        "Mistral": _classifier("Mistral"),
        "Qwen2": _classifier("Qwen2"),
        "Qwen3": _classifier("Qwen3"),
        "Gemma": _classifier("Gemma"),
        "Gemma 2": _classifier("Gemma2"),
        "Whisper encoder": _hf(
            "WhisperForAudioClassification",
            "WhisperConfig",
            partial(_sounds, "input_features", 8, 24),
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=2,
            encoder_ffn_dim=64,
            num_mel_bins=8,
            max_source_positions=12,
            vocab_size=64,
            pad_token_id=0,
            decoder_layers=1,
            num_labels=5,
        ),
        "Wav2Vec2": _hf(
            "Wav2Vec2ForSequenceClassification",
            "Wav2Vec2Config",
            partial(_sounds, "input_values", 400),
            **SMALL,
            conv_dim=(8, 8),
            conv_stride=(5, 4),
            conv_kernel=(5, 4),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            classifier_proj_size=16,
            num_labels=5,
        ),
    }
)


def host(name: str) -> nn.Module:
    """A tiny model by its name in `HOSTS`, in evaluation mode; the same weights at every call."""
    torch.manual_seed(0)
    return HOSTS[name].make().eval()


def said(model: nn.Module, batch: Batch) -> Tensor:
    """The first tensor of a model's output in evaluation."""
    inputs = next(iter(batch.values())) if "x" in batch else batch
    return outputs(model.eval(), inputs)[0]


def one_step(model: nn.Module, batch: Batch) -> None:
    """A step of AdamW on what is trainable."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-2)
    out = model.train()(*batch.values()) if "x" in batch else model.train()(**batch)
    losses = [t.square().mean() for t in tensors(out)[:2] if t.is_floating_point()]
    torch.stack(losses).sum().backward()
    optimizer.step()
    model.eval()


def works(card: Card, name: str) -> str:
    """ "yes" or "folds": does an adapter's default go on this model, train, save, load and fold?

    Raises: what refuses it; AssertionError where it does something else than it should.
    """
    batch, model = HOSTS[name].batch(), host(name)
    before = said(model, batch)
    frozen = {n: p.detach().clone() for n, p in own_parameters(model).items()}
    adapted = adapt(model, card.config())
    if "zero_start" in card.tags:
        assert torch.allclose(said(adapted, batch), before, atol=1e-5), "other outputs at the start"
    one_step(adapted, batch)
    heads = tuple(f"{h}." for h in adapted.peft_config["default"].modules_to_save or ())  # pyright: ignore
    moved = [
        n
        for n, p in own_parameters(adapted).items()
        if not n.startswith(heads or ("-",)) and not torch.equal(p, frozen[n])
    ]
    assert not moved, f"frozen weights moved: {moved[:2]}"
    after = said(adapted, batch)
    assert not torch.allclose(after, before, atol=1e-6), "nothing was trained"
    with tempfile.TemporaryDirectory() as folder:
        again = load(host(name), save(adapted, f"{folder}/saved"))
    assert torch.allclose(said(again, batch), after, rtol=1e-4, atol=1e-5), "loaded: other outputs"
    if "folds" not in card.tags:
        return "yes"
    inputs = next(iter(batch.values())) if "x" in batch else batch
    try:
        stock = fold(adapted, inputs=inputs, report=lambda _: None)
    except FoldError as error:
        assert "differ" not in str(error), error
        return "yes"
    assert torch.allclose(said(stock, batch), after, rtol=1e-3, atol=1e-4), "another fold"
    return "folds"


INTRO = """# Which methods on which models

Every adapter with its default settings on a tiny random model of each family, tried when
`python -m intarsia.conformance.hosts` wrote this page: adapted, one training step that changes the
adapter and the head alone, saved, loaded into a fresh model with the same outputs, folded. Sizes
are small, structures are those of the libraries: a host is known by its modules, not by its name.

**folds**: into a stock model of the same outputs. **yes**: all of it but the fold, which is refused
(a gated MLP, an activation or a norm that the MLP does not have). A number: it is refused, and the
error says why; see below the table.

What is left open is chosen by the host. A bottleneck (and MoSA, AdaMix, Bi-Adapter over it) sits
beside the MLP; behind it, inside its branch, where the MLP is two layers of the block (BERT,
RoBERTa, Whisper); and behind the block in a convolutional net. Its norm is computed from the
LayerNorm before the MLP; where there is none it is an RMSNorm in a host of RMSNorms, a LayerNorm
in others, and none over the channels of pictures.

`intarsia.adapt(model)` takes MoSA, `intarsia.adapt(model, "lora")` a method by its name.
"""


def page(report: Callable[[str], None] = lambda _: None) -> str:
    """The page, all of it tried now."""
    found, reasons = cards("adapter"), list[str]()
    lines = [INTRO, f"| | {' | '.join(c.key for c in found)} |", f"|---{'|---' * len(found)}|"]
    for name in HOSTS:
        cells = [_cell(card, name, reasons) for card in found]
        lines.append(f"| **{name}** | {' | '.join(cells)} |")
        report(lines[-1])
    lines += ["", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1)), ""]
    return "\n".join(lines)


def _cell(card: Card, name: str, reasons: list[str]) -> str:
    try:
        return works(card, name)
    except IntarsiaError as error:
        # the same for all models but for paths and names
        got = re.sub(r"'[\w.]*'", "…", str(error.got)).replace(type(host(name)).__name__, "a model")
        reason = f"got {got}; want {error.want}"
    if reason not in reasons:
        reasons.append(reason)
    return str(reasons.index(reason) + 1)


if __name__ == "__main__":
    place = sys.argv[1] if len(sys.argv) > 1 else "docs/hosts.md"
    Path(place).write_text(page(print))
