"""What a query is without a model: its distinct tokens, each with a weight that was looked up."""

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
from ...core.files import write_text
from ...core.reading import read_tensors, read_text

TOKENIZER, WEIGHTS = "tokenizer.json", "queries.safetensors"
LONGEST = 100_000  # characters of a query
KNOWN = 100_000  # words whose tokens are remembered
APART = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")  # a space ends a word for these
SAME = ("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents")


def idf(frequencies: np.ndarray, documents: int) -> np.ndarray:
    """How rare each token is: log(1 + (N - n_j + 1/2) / (n_j + 1/2)).

    frequencies: n_j, in how many of the N documents the token is, (V,).  -> (V,) float32, above 0.
    """
    n = np.asarray(frequencies, np.float64)
    return np.log1p((documents - n + 0.5) / (n + 0.5)).astype(np.float32)


class QueryWeights:
    """A tokenizer and one weight for each of its tokens; a token of weight 0 is not looked up.

    tokenizer: the text of a tokenizer.json; weights: (V,), at least 0.
    Raises: CheckpointError for a text that is none; ConfigError for weights that do not fit.
    """

    def __init__(self, tokenizer: str, weights: np.ndarray) -> None:
        self.json, self.weights = tokenizer, np.ascontiguousarray(weights, np.float32)
        self.tokenizer = _tokenizer(tokenizer)
        self._apart, self._known = _words_apart(tokenizer), dict[str, list[int]]()
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
        """V, the size of a tokenizer.json's vocabulary.  Raises: CheckpointError."""
        return int(_tokenizer(tokenizer).get_vocab_size())

    @property
    def digest(self) -> str:
        """Of the tokenizer: which numbers tokens have."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The numbers of each text's tokens, without those that a model adds.

        Raises: ConfigError for a text of more than LONGEST characters.
        """
        for text in texts:
            if len(text) > LONGEST:
                got, want = f"{len(text):,} characters", f"at most {LONGEST:,}"
                fix = "Search for what it is about: its title or first paragraph."
                raise ConfigError("query", got=got, want=want, fix=fix)
        if not self._apart:
            found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
            return [one.ids for one in found]
        words = [text.split(" ") for text in texts]
        new = {word for own in words for word in own if word not in self._known}
        if len(self._known) + len(new) > KNOWN:
            self._known, new = {}, {word for own in words for word in own}
        if new:
            encoded = self.tokenizer.encode_batch(list(new), add_special_tokens=False)
            self._known |= {word: one.ids for word, one in zip(new, encoded, strict=True)}
        return [[token for word in own for token in self._known[word]] for own in words]

    def of(self, text: str, *, prune: float = 0.0) -> list[tuple[int, float]]:
        """The distinct tokens of a query with their weights, heaviest first.

        prune: tokens below this share of the heaviest are left out.
        Empty for a query without a known token.  Raises: ConfigError.
        """
        return self.of_many([text], prune=prune)[0]

    def of_many(self, texts: Sequence[str], *, prune: float = 0.0) -> list[list[tuple[int, float]]]:
        """`of` for each query."""
        between("prune", prune, 0, 1, fix="Try 0.1; 0 keeps all.")
        queries: list[list[tuple[int, float]]] = []
        for tokens in self.tokens(texts):
            pairs = [(token, float(self.weights[token])) for token in dict.fromkeys(tokens)]
            least = prune * max((weight for _, weight in pairs), default=0.0)
            kept = [pair for pair in pairs if pair[1] > 0 and pair[1] >= least]
            queries.append(sorted(kept, key=lambda pair: -pair[1]))
        return queries

    def places(self, text: str) -> list[tuple[int, int, int]]:
        """The tokens of a text and where they stand: (token, first, behind the last character)."""
        found = self.tokenizer.encode(text, add_special_tokens=False)
        return [(t, a, b) for t, (a, b) in zip(found.ids, found.offsets, strict=True)]

    def word(self, token: int) -> str:
        """A token as text."""
        return str(self.tokenizer.id_to_token(token))

    def frequencies(self, texts: Iterable[str], batch: int = 1024) -> tuple[np.ndarray, int]:
        """In how many of the texts each token is, (V,), and how many texts there are."""
        counts, total, part = np.zeros(len(self.weights), np.int64), 0, list[str]()

        def add() -> None:
            for one in self.tokenizer.encode_batch(part, add_special_tokens=False):
                counts[list(set(one.ids))] += 1

        for text in texts:
            part.append(text)
            total += 1
            if len(part) == batch:
                add()
                part.clear()
        add()
        return counts, total

    def table(self) -> dict[str, float]:
        """Token -> weight, above 0: idf.json as OpenSearch and sentence-transformers read it."""
        return {self.word(int(j)): float(self.weights[j]) for j in np.flatnonzero(self.weights)}

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the weights into a folder that is there."""
        write_text(folder / TOKENIZER, self.json)
        write_text(folder / WEIGHTS, save({"weights": self.weights}))

    @classmethod
    def load(cls, folder: Path) -> QueryWeights:
        """What `save` wrote.  Raises: CheckpointError."""
        try:
            text = read_text(folder / TOKENIZER)
            return cls(text, read_tensors(folder / WEIGHTS, "np")["weights"])
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            want, fix = "a tokenizer and a weight for each token", "Copy it again from its source."
            raise CheckpointError(f"queries of {folder}", got=error, want=want, fix=fix) from error


def _words_apart(tokenizer: str) -> bool:
    """Whether a text's tokens are those of its words, so that they can be remembered by word."""
    about = json.loads(tokenizer)
    normalizer, splitter = about.get("normalizer"), about.get("pre_tokenizer") or {}
    steps = [normalizer] if normalizer else []
    if normalizer and normalizer["type"] == "Sequence":
        steps = normalizer["normalizers"]
    return splitter.get("type") in APART and all(step["type"] in SAME for step in steps)


def _tokenizer(text: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra("tokenizers", "search") from error
    try:
        found = Tokenizer.from_str(text)
    except Exception as error:  # the library has no class of its own for it
        want, fix = "the text of a tokenizer.json", "Copy it again from its model."
        raise CheckpointError("tokenizer", got=error, want=want, fix=fix) from error
    found.no_truncation()  # documents are cut by their model, queries not at all
    found.no_padding()
    return found
