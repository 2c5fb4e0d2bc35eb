"""A tiny decoder, a tokenizer of letters, pictures and sounds for tests of seeing models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from ..senses.data.questions import Question
from .made import torch_seed

LETTERS = " \nabcdefghijklmnopqrstuvwxyz?.,"


class Letters:
    """A tokenizer with a token for each letter and one for the end."""

    eos_token_id = len(LETTERS)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [LETTERS.index(c) for c in text.lower() if c in LETTERS]}

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(LETTERS[i] for i in map(int, ids) if i < len(LETTERS))


def decoder(width: int = 32, layers: int = 2) -> nn.Module:
    """Return a tiny Llama for the tokens of `Letters`, with random weights, always the same."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(LETTERS) + 1,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=Letters.eos_token_id,
        pad_token_id=None,
        use_cache=False,
    )
    with torch_seed(0):
        return LlamaForCausalLM(config).eval()


def picture(number: int, size: tuple[int, int] = (112, 112)) -> Image.Image:
    """Return a picture of one colour, another one for each number."""
    return Image.new("RGB", size, (60 * number % 256, 130 * number % 256, 255 - 70 * number % 256))


def sound(number: int, seconds: float = 0.3) -> tuple[np.ndarray, int]:
    """Return a sine of another height for each number, and its rate."""
    time = np.arange(round(seconds * 16_000)) / 16_000
    return np.sin(2 * np.pi * 200 * (1 + number) * time).astype(np.float32), 16_000


WORDS = ("red", "blue", "dark", "pale")


def questions(count: int = 4) -> list[Question]:
    """Return 3 * count questions with answers: by a picture, by a sound and by a word in turn."""
    rows: list[Question] = []
    for i in range(count):
        word, next_word = WORDS[i % len(WORDS)], WORDS[(i + 1) % len(WORDS)]
        rows += [
            Question("which?", word, image=(picture(i % len(WORDS)),), group=f"a{i}"),
            Question("what?", next_word, audio=(sound(i % len(WORDS)),), group=f"b{i}"),
            Question(f"say {word}.", word, group=f"c{i}"),
        ]
    return rows
