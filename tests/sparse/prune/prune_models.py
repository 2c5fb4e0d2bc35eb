"""Tiny models of each kind, and calibration rows, for the tests of pruning."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def llama(layers: int = 3) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=layers, vocab_size=64,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
            max_position_embeddings=64,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
    model.config.use_cache = False
    return model


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=64,
            num_attention_heads=4, max_position_embeddings=64,
        )  # fmt: skip
        return BertModel(config).eval()


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            image_size=32, patch_size=8, num_labels=3,
        )  # fmt: skip
        return ViTForImageClassification(config).eval()


def timm_model(name: str, **sizes: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=3, **sizes).eval()


def vit() -> nn.Module:
    sizes: dict[str, Any] = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm_model("vit_tiny_patch16_224", **sizes)


def mobile() -> nn.Module:
    return timm_model("tf_mobilenetv3_small_minimal_100")


def rows(count: int = 8, length: int = 32) -> list[dict[str, Tensor]]:
    draw = seeded(3)
    ids = [torch.randint(64, (length,), generator=draw) for _ in range(count)]
    return [{"input_ids": i, "labels": i} for i in ids]


def padded() -> list[dict[str, Tensor]]:
    """Two batches, of which the second half of some rows is padding."""
    batches: list[dict[str, Tensor]] = []
    for seed in (1, 2):
        ids = torch.randint(64, (4, 32), generator=seeded(seed))
        mask = torch.ones_like(ids)
        mask[0, 20:] = 0
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def pictures() -> list[Tensor]:
    return [torch.randn(6, 3, 32, 32, generator=seeded(seed)) for seed in (1, 2)]
