"""Queries without a model: their distinct tokens, each with a weight from a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save

from ...core.checks import between
from ...core.errors import CheckpointError, ConfigError, MissingExtra
from ...core.files import write_bytes, write_text
from ...core.reading import read_tensors, read_text

TOKENIZER, WEIGHTS = "tokenizer.json", "queries.safetensors"
LONGEST = 100_000  # characters of a query
CACHED = 100_000  # words with cached tokens
APART = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")  # these end a word at a space
# normalizers that treat each word on its own
SAME = ("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents")


def idf(frequencies: np.ndarray, documents: int) -> np.ndarray:
    """Compute the inverse document frequency log(1 + (N - n_j + 1/2) / (n_j + 1/2)).

    frequencies: n_j, (V,), how many of the N documents have token j.  -> (V,) float32, above 0.
    """
    n = np.asarray(frequencies, np.float64)
    return np.log1p((documents - n + 0.5) / (n + 0.5)).astype(np.float32)


class QueryWeights:
    """Tokenizer with one weight for each of its tokens; tokens of weight 0 are ignored.

    tokenizer: the text of a tokenizer.json; weights: (V,), at least 0.
    Raises: CheckpointError if the text is no tokenizer; ConfigError for weights that do not fit.
    """

    def __init__(self, tokenizer: str, weights: np.ndarray) -> None:
        """Check that there is one finite weight of at least 0 for each token."""
        self.json, self.weights = tokenizer, np.ascontiguousarray(weights, np.float32)
        self.tokenizer = _tokenizer(tokenizer)
        self._words_apart, self._cached = _splits_at_spaces(tokenizer), dict[str, list[int]]()
        size = self.tokenizer.get_vocab_size()
        if self.weights.shape != (size,):
            fix = "Take tokenizer and weights of one model."
            got = self.weights.shape
            raise ConfigError("query weights", got=got, want=f"({size},), one a token", fix=fix)
        if not (np.isfinite(self.weights).all() and (self.weights >= 0).all()):
            fix = "Cut them off at 0."
            raise ConfigError("query weights", got="some below 0", want="at least 0", fix=fix)

    @staticmethod
    def size(tokenizer: str) -> int:
        """Return the size V of a tokenizer.json's vocabulary.  Raises: CheckpointError."""
        return int(_tokenizer(tokenizer).get_vocab_size())

    @property
    def digest(self) -> str:
        """Digest of the tokenizer, which determines the tokens' numbers."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the numbers of each text's tokens, without a model's special tokens.

        Raises: ConfigError for a text of more than LONGEST characters.
        """
        for text in texts:
            if len(text) > LONGEST:
                got, want = f"{len(text):,} characters", f"at most {LONGEST:,}"
                fix = "Search for what it is about: its title or first paragraph."
                raise ConfigError("query", got=got, want=want, fix=fix)
        if not self._words_apart:
            encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        # tokenize new words alone; the tokens of a text are its words' tokens in order
        words = [text.split(" ") for text in texts]
        new = {word for of_text in words for word in of_text if word not in self._cached}
        # a full cache is emptied, so that memory stays bounded
        if len(self._cached) + len(new) > CACHED:
            self._cached, new = {}, {word for of_text in words for word in of_text}
        if new:
            encoded = self.tokenizer.encode_batch(list(new), add_special_tokens=False)
            self._cached |= {
                word: encoding.ids for word, encoding in zip(new, encoded, strict=True)
            }
        return [[token for word in of_text for token in self._cached[word]] for of_text in words]

    def of(self, text: str, *, prune: float = 0.0) -> list[tuple[int, float]]:
        """Return the distinct tokens of a query with their weights, heaviest first.

        prune: tokens below this share of the heaviest are left out. Empty for a query without a
          known token.  Raises: ConfigError.
        """
        return self.of_many([text], prune=prune)[0]

    def of_many(self, texts: Sequence[str], *, prune: float = 0.0) -> list[list[tuple[int, float]]]:
        """Return the distinct tokens of several queries with their weights, heaviest first.

        prune: tokens below this share of a query's heaviest are left out.
        """
        between("prune", prune, 0, 1, fix="Try 0.1; 0 keeps all.")
        queries: list[list[tuple[int, float]]] = []
        for tokens in self.tokens(texts):
            # a repeated token counts once: q_j is a weight of distinct tokens
            pairs = [(token, float(self.weights[token])) for token in dict.fromkeys(tokens)]
            least = prune * max((weight for _, weight in pairs), default=0.0)
            heavy = [pair for pair in pairs if pair[1] > 0 and pair[1] >= least]
            queries.append(sorted(heavy, key=lambda pair: -pair[1]))
        return queries

    def places(self, text: str) -> list[tuple[int, int, int]]:
        """Return the tokens of a text with their positions: (token, first character, end)."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return [(t, a, b) for t, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)]

    def word(self, token: int) -> str:
        """Return a token as text."""
        return str(self.tokenizer.id_to_token(token))

    def frequencies(self, texts: Iterable[str], batch: int = 1024) -> tuple[np.ndarray, int]:
        """Count the texts that have each token, (V,), and all texts."""
        counts, total, part = np.zeros(len(self.weights), np.int64), 0, list[str]()

        def add() -> None:
            for encoding in self.tokenizer.encode_batch(part, add_special_tokens=False):
                # a text counts once for each distinct token
                counts[list(set(encoding.ids))] += 1

        for text in texts:
            part.append(text)
            total += 1
            if len(part) == batch:
                add()
                part.clear()
        add()
        return counts, total

    def table(self) -> dict[str, float]:
        """Return token -> weight above 0, the idf.json of OpenSearch and sentence-transformers."""
        return {self.word(int(j)): float(self.weights[j]) for j in np.flatnonzero(self.weights)}

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the weights into an existing folder."""
        write_text(folder / TOKENIZER, self.json)
        write_bytes(folder / WEIGHTS, save({"weights": self.weights}))

    @classmethod
    def load(cls, folder: Path) -> QueryWeights:
        """Read the tokenizer and the weights of a folder that `save` wrote.

        Raises: CheckpointError for a folder without them, or a damaged one.
        """
        try:
            text = read_text(folder / TOKENIZER)
            return cls(text, read_tensors(folder / WEIGHTS, "np")["weights"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            want, fix = "a tokenizer and a weight for each token", "Copy it again from its source."
            raise CheckpointError(f"queries of {folder}", got=error, want=want, fix=fix) from error


def _splits_at_spaces(tokenizer: str) -> bool:
    """Return True if a text's tokens are its words' tokens, so that words can be cached."""
    settings = json.loads(tokenizer)
    normalizer, splitter = settings.get("normalizer"), settings.get("pre_tokenizer") or {}
    steps = [normalizer] if normalizer else []
    if normalizer and normalizer["type"] == "Sequence":
        steps = normalizer["normalizers"]
    return splitter.get("type") in APART and all(step["type"] in SAME for step in steps)


def _tokenizer(text: str) -> Any:
    """Build the tokenizer of a tokenizer.json, without truncation and padding."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", "search") from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library has no class of its own for it
        want, fix = "the text of a tokenizer.json", "Copy it again from its model."
        raise CheckpointError("tokenizer", got=error, want=want, fix=fix) from error
    tokenizer.no_truncation()  # documents are cut by their model, queries not at all
    tokenizer.no_padding()
    return tokenizer
