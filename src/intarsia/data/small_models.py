"""Small untrained models for comparisons: a language model and a ViT.

Their MLPs are plain, down(act(up x)), and initialised from separate random numbers. Models with the
same seed and different MLPs therefore share all other weights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from intarsia.core.checks import one_of
from intarsia.core.errors import ConfigError

ACTS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


@dataclass(frozen=True)
class SmallModel:
    """Sizes of a small model.

    width: d; hidden: the width inside the MLPs; act: their activation, "gelu", "relu" or "silu".
    Raises: ConfigError for another activation, or heads that do not divide the width.
    """

    width: int = 64
    layers: int = 4
    heads: int = 4
    hidden: int = 128
    act: str = "gelu"

    def __post_init__(self) -> None:
        one_of("act", self.act, ACTS)
        if min(self.width, self.layers, self.heads, self.hidden) < 1 or self.width % self.heads:
            want, fix = "sizes of at least 1, heads that divide the width", "Try width=64, heads=4."
            raise ConfigError("small model", got=self, want=want, fix=fix)


def small_decoder(shape: SmallModel, *, tokens: int, length: int, seed: int = 0) -> nn.Module:
    """Build an untrained decoder of Llama's architecture.  (B, T) -> .logits (B, T, tokens).

    tokens: size of the vocabulary; length: the longest row. Embedding and head are tied.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.width,
        max_position_embeddings=length,
        use_cache=False,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    _draw_mlps(dict(enumerate(model.model.layers)), shape, seed, bias=False)
    return cast(nn.Module, model)


def small_vit(
    shape: SmallModel, *, classes: int, size: int, patch: int, channels: int = 1, seed: int = 0
) -> nn.Module:
    """Build an untrained VisionTransformer of timm.  (B, channels, size, size) -> (B, classes)."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: Any = VisionTransformer(
            img_size=size,
            patch_size=patch,
            in_chans=channels,
            num_classes=classes,
            embed_dim=shape.width,
            depth=shape.layers,
            num_heads=shape.heads,
            mlp_ratio=1.0,
        )
    _draw_mlps(dict(enumerate(model.blocks)), shape, seed, bias=True)
    return cast(nn.Module, model)


def _draw_mlps(blocks: dict[int, Any], shape: SmallModel, seed: int, *, bias: bool) -> None:
    """Replace the MLP of each block by a fresh one, each drawn from a seed of its own."""
    for i, block in blocks.items():
        # Each block has a seed of its own, so that one wider MLP changes no other weight.
        digest = hashlib.sha256(f"{seed}:mlp:{i}".encode()).digest()
        draws = torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
        with torch.random.fork_rng(devices=[]):  # the weights are initialised again below
            mlp: Any = Mlp(shape.width, shape.hidden, act_layer=ACTS[shape.act], bias=bias)
        block.mlp = mlp
        for layer in (mlp.fc1, mlp.fc2):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=draws)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
