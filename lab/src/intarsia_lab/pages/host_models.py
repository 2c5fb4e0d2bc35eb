"""Tiny models of the families of timm and transformers, with random weights, and their batches.

The families of PEFT's own mapping are all here except the ones that transformers has no code of
(ChatGLM, RefinedWeb's older form, BTLM, RWKV-7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
import transformers as hf
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.metaformer import MetaFormer
from timm.models.mlp_mixer import MlpMixer
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.regnet import RegNet, RegNetCfg
from torch import Tensor, nn

Batch = dict[str, Tensor]


class Host(NamedTuple):
    """A tiny model with random weights, and a batch as it takes it."""

    make: Callable[[], nn.Module]
    batch: Callable[[], Batch]


def _pictures(size: int = 32, name: str = "x") -> Batch:
    """Return a batch of two random pictures."""
    draws = torch.Generator().manual_seed(1)
    return {name: torch.randn(2, 3, size, size, generator=draws)}


def _tokens(**extra: Any) -> Batch:
    """Return a batch of two rows of six random token ids.  extra: more inputs of the model."""
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (2, 6), generator=draws)
    return {"input_ids": ids} | extra


def _sounds(name: str, *shape: int) -> Batch:
    """Return a batch of two random inputs of sound."""
    draws = torch.Generator().manual_seed(1)
    return {name: torch.randn(2, *shape, generator=draws)}


def _timm(name: str, **settings: Any) -> Host:
    """Return a tiny model of timm with random weights, and its batch."""
    size = settings.pop("size", 32)
    classes = {"num_classes": 5} | settings
    return Host(partial(timm.create_model, name, **classes), partial(_pictures, size))


def _hf(model: str, config: str, batch: Callable[[], Batch], **settings: Any) -> Host:
    """Return a tiny model of transformers with random weights, and its batch."""

    # built when it is asked for: to build all of them at import would be slow
    def make() -> nn.Module:
        """Build the config, then the model."""
        built = getattr(hf, config)(**settings)
        return getattr(hf, model)(built)

    return Host(make, batch)


# the smallest sizes that each family builds with: two layers of width 32
TRUNK = {"depth": 2, "embed_dim": 32, "num_heads": 2}
STAGES = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TEXT = SMALL | {"vocab_size": 64, "num_labels": 5, "pad_token_id": 0}
IMAGE = SMALL | {"image_size": 32, "patch_size": 16, "num_labels": 5}
DECODER = TEXT | {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
_hf_image = partial(_pictures, 32, "pixel_values")


def _classifier(name: str, **settings: Any) -> Host:
    """Return a tiny decoder of transformers with a classifier."""
    options = DECODER | settings
    return _hf(f"{name}ForSequenceClassification", f"{name}Config", _tokens, **options)


def _mixer() -> nn.Module:
    model = MlpMixer(5, 32, patch_size=8, num_blocks=2, embed_dim=32)
    nn.init.normal_(model.get_parameter("head.weight"))  # it starts at zero
    return model


def _mobile(kind: Callable[..., nn.Module], *stages: str) -> Host:
    """Return a tiny MobileNet of few stages."""

    def make() -> nn.Module:
        """Build the network from its block strings."""
        return kind(decode_arch_def([[s] for s in stages]), 5, num_features=32, stem_size=16)

    return Host(make, _pictures)


def _clip() -> nn.Module:
    """Return a tiny CLIP with random weights."""
    text = SMALL | {"vocab_size": 64, "max_position_embeddings": 16, "eos_token_id": 2}
    vision = SMALL | {"image_size": 32, "patch_size": 16}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def _image_and_text() -> Batch:
    return _pictures(32, "pixel_values") | _tokens()


def _both_texts() -> Batch:
    return _tokens(decoder_input_ids=torch.arange(1, 9).view(2, 4))


def _hiera() -> nn.Module:
    """Return a tiny Hiera with random weights, head included."""
    model = timm.create_model(
        "hiera_tiny_224", img_size=64, embed_dim=16, stages=(1, 1, 1, 1), num_classes=5
    )
    nn.init.normal_(model.get_parameter("head.fc.weight"))  # it starts near zero
    return model


def _blip2() -> nn.Module:
    """Return a tiny BLIP-2 with random weights: a picture encoder, a query model, and OPT."""
    vision = SMALL | {"image_size": 32, "patch_size": 16}
    asks = SMALL | {"encoder_hidden_size": 32, "vocab_size": 64}
    text = SMALL | {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32, "vocab_size": 64}
    config = hf.Blip2Config(
        vision_config=vision,
        qformer_config=asks,
        text_config=text,
        num_query_tokens=2,
        image_token_index=63,
    )
    return hf.Blip2ForConditionalGeneration(config)


def _image_then_text() -> Batch:
    text = torch.tensor([[63, 63, 5, 6, 7], [63, 63, 8, 9, 10]])
    return _pictures(32, "pixel_values") | {"input_ids": text}


def _ended() -> Batch:
    """Return tokens with an end, by which BART's classifier reads."""
    ids = _tokens()["input_ids"]
    ids[:, -1] = 2
    return {"input_ids": ids}


def _generator(name: str, model: str = "", **settings: Any) -> Host:
    """Return a tiny decoder of transformers with its language head."""
    return _hf(model or f"{name}ForCausalLM", f"{name}Config", _tokens, **DECODER | settings)


HOSTS: Mapping[str, Host] = MappingProxyType(
    {
        # pictures to classes: transformers first, then convolutional networks
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
        "timm LeViT": _timm(
            "levit_128s",
            size=64,
            img_size=64,
            embed_dim=(16, 16, 16),
            num_heads=(2, 2, 2),
            key_dim=8,
            depth=(1, 1, 1),
        ),
        "timm PVT": _timm("pvt_v2_b0", size=64, **STAGES, embed_dims=(16, 16, 32, 32)),
        "timm PoolFormer": Host(
            lambda: MetaFormer(depths=(1, 1), dims=(16, 32), num_classes=5), partial(_pictures, 64)
        ),
        "timm Hiera": Host(_hiera, partial(_pictures, 64)),
        # convolutional networks, with Conv2d layers
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
        # transformers: pictures
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
        # encoders and decoders of text, with a classifier where there is one
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
        "T5": _hf("T5ForConditionalGeneration", "T5Config", _both_texts, **T5),
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
        "mT5": _hf("MT5ForConditionalGeneration", "MT5Config", _both_texts, **T5),
        "BART": _hf(
            "BartForSequenceClassification",
            "BartConfig",
            _ended,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            vocab_size=64,
            max_position_embeddings=64,
            num_labels=5,
        ),
        "XLM-RoBERTa": _classifier("XLMRoberta"),
        "ELECTRA": _classifier("Electra", embedding_size=32),
        "DeBERTa": _classifier("Deberta", **RELATIVE),
        "DeBERTa v2": _classifier(
            "DebertaV2", relative_attention=True, pos_att_type=["p2c", "c2p"]
        ),
        "LayoutLM": _classifier("LayoutLM"),
        "ModernBERT": _classifier("ModernBert"),
        "OPT": _classifier("OPT", ffn_dim=64, word_embed_proj_dim=32),
        "BLOOM": _classifier("Bloom", n_layer=2, n_head=2),
        "MPT": _classifier("Mpt", d_model=32, n_heads=2, n_layers=2, max_seq_len=64),
        "Falcon": _hf("FalconForSequenceClassification", "FalconConfig", _tokens, **TEXT),
        "GPT-J": _classifier("GPTJ", **GPT, rotary_dim=8),
        "GPT-Neo": _classifier(
            "GPTNeo", num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]]
        ),
        "GPT-NeoX": _classifier("GPTNeoX"),
        "GPT-BigCode": _classifier("GPTBigCode", **GPT),
        "CodeGen": _hf(
            "CodeGenForCausalLM",
            "CodeGenConfig",
            _tokens,
            **DECODER | GPT | {"n_head": 4, "rotary_dim": 8, "n_ctx": 64},
        ),
        "StableLM": _classifier("StableLm"),
        "Phi": _classifier("Phi"),
        "Phi-3": _classifier("Phi3"),
        "GLM": _classifier("Glm"),
        "GLM-4": _classifier("Glm4"),
        "Gemma 3": _generator("Gemma3Text", "Gemma3ForCausalLM"),
        "Gemma 4": _generator(
            "Gemma4Text",
            "Gemma4ForCausalLM",
            global_head_dim=16,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=64,
        ),
        # mixtures of experts
        "Mixtral": _classifier("Mixtral", num_local_experts=4),
        "Llama 4": _generator(
            "Llama4Text", "Llama4ForCausalLM", num_local_experts=2, intermediate_size_mlp=64
        ),
        # no attention in some or all blocks: state spaces and recurrence
        "Nemotron-H": _generator(
            "NemotronH",
            hybrid_override_pattern="M*-",
            num_hidden_layers=3,
            mamba_num_heads=2,
            mamba_head_dim=16,
            n_groups=1,
            ssm_state_size=8,
        ),
        "RWKV": _generator("Rwkv", attention_hidden_size=32, context_length=64, rescale_every=0),
        # pictures and text
        "BLIP-2": Host(_blip2, _image_then_text),
        # sound
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
    """Return a tiny model by its name in `HOSTS`, in evaluation mode.

    The weights are random, and the same at each call.
    """
    torch.manual_seed(0)
    return HOSTS[name].make().eval()
