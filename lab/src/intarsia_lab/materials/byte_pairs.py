"""A byte-level BPE tokenizer (arXiv:1508.07909) of a few hundred tokens, trained on one text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from intarsia.core.store import building

KINDS = ("space", "number", "mark", "name", "word", "part", "bytes")
"""Kinds of tokens: white space; digits; punctuation; letters that begin with a capital; letters
after a space; letters inside a word; bytes that are not a whole character."""


class BytePairs:
    """A tokenizer for `load_texts` with strings of bytes as tokens.

    A token never spans two words; a space belongs to the word after it. Any text can be encoded,
    and the bytes of its tokens are the bytes of the text.
    """

    eos_token_id: int | None = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a trained tokenizer of the library `tokenizers`."""
        self.tokenizer = tokenizer
        spelled = tokenizer.get_vocab()
        # the tokens in the order of their ids
        self._spelled = sorted(spelled, key=spelled.__getitem__)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": self.tokenizer.encode(text).ids}

    def __len__(self) -> int:
        return len(self._spelled)

    @property
    def sizes(self) -> list[int]:
        """The bytes of each token."""
        return [len(spelling) for spelling in self._spelled]  # one letter per byte

    @property
    def kinds(self) -> list[int]:
        """The index into KINDS of each token."""
        return [KINDS.index(kind_of(self.tokenizer.decode([i]))) for i in range(len(self))]


def kind_of(text: str) -> str:
    """Return the kind of a token with this text, one of KINDS."""
    # the replacement character: bytes that are no whole character
    bare = text.strip()
    if "\ufffd" in text:
        return "bytes"
    if not bare:
        return "space"
    if bare[0].isdigit():
        return "number"
    if not bare[0].isalpha():
        return "mark"
    if bare[0].isupper():
        return "name"
    return "word" if text[0].isspace() else "part"


def trained(texts: Iterable[str], size: int) -> BytePairs:
    """Train a byte-level BPE tokenizer on texts.

    size: tokens at most: the 256 bytes, then the most frequent merges.
    """
    tokenizer = Tokenizer(models.BPE())
    # text is cut into words first, so that no token spans two of them
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return BytePairs(tokenizer)


def trained_once(file: Path, texts: Iterable[str], size: int) -> BytePairs:
    """Return the tokenizer in a JSON file; train it and write the file the first time.

    texts, size: as in `trained`.
    """
    with building(file) as scratch:
        # None: the file exists
        if scratch is not None:
            trained(texts, size).tokenizer.save(str(scratch))
    return BytePairs(Tokenizer.from_file(str(file)))
