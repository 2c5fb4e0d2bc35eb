"""Small models and numbers that several test files take, each from one place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def quiet(_: str) -> None:
    """Leave a line of progress out."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers, other ones for each shape."""
    return torch.randn(shape, generator=seeded(seed + sum(shape)))


def doubles(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def rows(count: int, seed: int = 2) -> Tensor:
    """Return rows of a router's input, 5 wide, in double precision."""
    return doubles(count, 5, seed=seed)


def llama(**settings: Any) -> LlamaForCausalLM:
    """Return a Llama of two layers with random weights.  settings: of its config."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(LLAMA | settings))).eval()


def tied_llama() -> LlamaForCausalLM:
    return llama(tie_word_embeddings=True)
