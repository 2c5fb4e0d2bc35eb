"""Small random language models whose tokens are bytes, as transformers saves them, and a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)


def byte_tokenizer(*merges: tuple[str, str]) -> Any:
    """Return a tokenizer whose tokens are an end, all bytes, and some pairs of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {c: i for i, c in enumerate(["<end>", *alphabet, *map("".join, merges)])}
    letters = Tokenizer(models.BPE(vocab=words, merges=list(merges)))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<end>")


def llama(folder: Path, *merges: tuple[str, str], **settings: Any) -> Path:
    """Write a Llama of two layers.  merges: of its tokenizer; settings: of its config."""
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }
    return _write(LlamaForCausalLM, LlamaConfig, folder, merges, sizes | settings)


def mixtral(folder: Path, **settings: Any) -> Path:
    """Write a Mixtral of two layers with eight experts each.  settings: of its config."""
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
    }
    return _write(MixtralForCausalLM, MixtralConfig, folder, (), sizes | settings)


def _write(
    model: Any, config: Any, folder: Path, merges: tuple[tuple[str, str], ...], sizes: Any
) -> Path:
    tokenizer = byte_tokenizer(*merges)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model(config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return folder


def plain_text(lines: int = 80) -> str:
    return "".join(f"Line {i} of a plain text, which says {i * i}.\n" for i in range(lines))
