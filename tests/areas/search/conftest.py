"""A toy encoder: each word has a weight of its own, and "cat" makes a document mean "animal"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from tokenizers import Tokenizer, models, pre_tokenizers

from intarsia.areas.search.query_weights import QueryWeights

WORDS = ["the", "a", "cat", "dog", "house", "sleeps", "runs", "bark", "mouse", "tree", "animal"]
DOCS = [
    ("a", "the cat sleeps"),
    ("b", "the dog bark"),
    ("c", ""),
    ("d", "a cat a dog a tree"),
    ("e", "the house"),
]


def word_tokenizer(words: Sequence[str] = WORDS) -> str:
    numbers = {word: i for i, word in enumerate(["[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


def masked_language_model(place: Path, words: Sequence[str]) -> Path:
    """Write a masked language model of random weights, as transformers saves it."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (place / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(
        vocab={w: i for i, w in enumerate(vocabulary)}, model_max_length=10
    )
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 16}
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=len(vocabulary), **sizes))
    torch.nn.init.normal_(model.bert.embeddings.word_embeddings.weight, std=1.0)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


class Toy:
    """Word j weighs 1 + j / 10 in a document; of a query the, a weigh 0.1 and all others 1."""

    name = "toy"

    def __init__(self, digest: str = "0" * 64, words: Sequence[str] = WORDS) -> None:
        weights = np.ones(len(words) + 1, np.float32)
        weights[0] = 0
        weights[1:3] = 0.1
        self.digest = digest
        self.queries = QueryWeights(word_tokenizer(words), weights)

    def encode(self, texts: Sequence[str]) -> Any:
        rows = np.zeros((len(texts), len(self.queries.weights)), np.float32)
        cat, animal = (self.queries.tokenizer.token_to_id(w) for w in ("cat", "animal"))
        for i, tokens in enumerate(self.queries.tokens(texts)):
            for j in tokens:
                rows[i, j] = 1 + j / 10
            if cat in tokens:
                rows[i, animal] = 0.5
        rows[:, 0] = 0
        return sp.csr_matrix(rows)


@pytest.fixture(scope="session")
def toy() -> Toy:
    return Toy()


@pytest.fixture
def docs() -> list[tuple[str, str]]:
    return list(DOCS)
