"""A part of SmolLM2 for experiments on models that see: its first blocks, and the words that occur.

The first blocks keep their pretrained weights, and so do the embeddings of the tokens that are
used; the last blocks are gone, so that such a trunk has to be adapted before it can say anything.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch

from intarsia.data.language_models import language_model


class Words:
    """A tokenizer of the tokens that occur in some texts, numbered from 0."""

    def __init__(self, tokenizer: Any, texts: Iterable[str]) -> None:
        """Number the tokens that occur in some texts, and the end token, from 0.

        tokenizer: of transformers; texts: all that will be encoded.
        """
        self.tokenizer = tokenizer
        used = {tokenizer.eos_token_id}
        for text in texts:
            used.update(tokenizer(text, add_special_tokens=False)["input_ids"])
        self.kept = sorted(used)
        self.number = {token: i for i, token in enumerate(self.kept)}
        self.eos_token_id = self.number[tokenizer.eos_token_id]

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Return the new numbers of a text's tokens, as {"input_ids": [...]}.

        Raises: KeyError for a token that was in none of the texts.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return {"input_ids": [self.number[i] for i in ids]}

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return self.tokenizer.decode([self.kept[int(i)] for i in ids], **options)


@lru_cache(maxsize=1)
def _whole() -> tuple[Any, Any]:
    return language_model("smollm2")


def trunk(texts: Iterable[str], layers: int) -> tuple[Any, Words]:
    """Return the first blocks of SmolLM2, with a vocabulary of some texts, and their tokenizer.

    texts: the vocabulary keeps their tokens; layers: number of blocks.
    """
    from transformers import LlamaForCausalLM

    model, tokenizer = _whole()
    words = Words(tokenizer, texts)
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.vocab_size = layers, len(words.kept)
    config.bos_token_id = config.pad_token_id = None
    config.eos_token_id = words.eos_token_id
    # the random weights are replaced below
    with torch.random.fork_rng(devices=[]):
        small: Any = LlamaForCausalLM(config)
    state = {n: t for n, t in model.state_dict().items() if n in small.state_dict()}
    # rows of the tokens that are kept
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][words.kept]
    small.load_state_dict(state)
    return small.eval(), words
