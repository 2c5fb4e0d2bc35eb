"""Features of rows, each by a word: words, tfidf, numbers, or a model as minilm@6:128.

feature = feature_of("tfidf").fit(texts)
x = feature(texts)                                # (n, d), sparse
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from ...core.errors import CheckpointError, ConfigError, DataError
from ...data.labelled import Rows
from ...data.language_models import headless_model
from ...data.packages import SENTENCE_ENCODERS, announce, packaged_folder
from .standalone import WORD, blocks_of, hidden_means
from .words import MODELS, NUMBERS, SPARSE, TOKENS, split_word

PARTS = {"word": ("word", 1, 2), "characters": ("char_wb", 2, 5)}
MOST_TERMS = 200_000  # of each part, the most frequent


class Feature(ABC):
    """A frozen description of how rows become numbers."""

    @property
    @abstractmethod
    def word(self) -> str:
        """The feature in a word, from which `feature_of` makes it again."""

    def fit(self, rows: Rows) -> Self:
        """Learn what the feature needs from training rows; no label is looked at."""
        return self

    @abstractmethod
    def __call__(self, rows: Rows) -> Any:
        """Return the features of n rows: an array (n, d), or a sparse matrix."""

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The part that JSON holds."""

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors, by name."""
        return {}


@dataclass(eq=False)
class Tfidf(Feature):
    """TF-IDF of words and pairs of words; with "tfidf" also of 2 to 5 characters inside words.

    A term's value is (1 + ln count) idf, and each part of a row has length 1 / sqrt(parts).
    """

    name: str = "tfidf"
    parts: tuple[TfidfVectorizer, ...] = ()

    @property
    def word(self) -> str:
        return self.name

    def fit(self, rows: Rows) -> Self:
        """Collect the terms of texts and their idf."""
        _check_texts(rows, self.name)
        self.parts = tuple(_vectorizer(*PARTS[part]) for part in SPARSE[self.name])
        for part in self.parts:
            try:
                part.fit(rows)
            except ValueError as error:
                fix = "Give texts with words, or columns of numbers."
                raise DataError("texts", got=error, want="words of letters", fix=fix) from error
        return self

    def __call__(self, rows: Rows) -> sp.csr_matrix:
        """Return (n, terms) as a sparse matrix."""
        _check_texts(rows, self.name)
        joined = sp.hstack([part.transform(rows) for part in self.parts], format="csr")
        return joined / len(self.parts) ** 0.5

    @property
    def settings(self) -> dict[str, Any]:
        parts = [
            {
                "analyzer": part.analyzer,
                "low": part.ngram_range[0],
                "high": part.ngram_range[1],
                "terms": part.get_feature_names_out().tolist(),
            }
            for part in self.parts
        ]
        return {"kind": "tfidf", "word": self.name, "parts": parts}

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        return {f"idf.{i}": part.idf_ for i, part in enumerate(self.parts)}

    @classmethod
    def opened(cls, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Tfidf:
        """Return the feature of its settings and tensors."""
        vectorizers = []
        for i, part in enumerate(settings["parts"]):
            terms = {str(term): n for n, term in enumerate(part["terms"])}
            vectorizer = _vectorizer(part["analyzer"], part["low"], part["high"], terms)
            vectorizer.idf_ = tensors[f"idf.{i}"]
            vectorizers.append(vectorizer)
        return cls(settings["word"], tuple(vectorizers))


def _vectorizer(
    analyzer: str, low: int, high: int, terms: Mapping[str, int] | None = None
) -> TfidfVectorizer:
    """Return scikit-learn's vectorizer of some n-grams.  terms: a fixed vocabulary."""
    options: dict[str, Any] = {"analyzer": analyzer, "ngram_range": (low, high)}
    options |= {"sublinear_tf": True, "max_features": MOST_TERMS, "vocabulary": terms}
    # a pattern that only words use would be warned of
    options |= {"token_pattern": WORD.pattern} if analyzer == "word" else {}
    return TfidfVectorizer(**options)


@dataclass(frozen=True)
class HiddenMean(Feature):
    """Mean over a text's tokens of a language model's hidden states behind one of its blocks.

    model: minilm, smollm2, a folder of save_pretrained or a name on the Hub.  layer: number of the
    block, 0 = in front of the first.  tokens: the most of a text that is read.
    """

    model: str
    layer: int
    tokens: int = TOKENS

    @property
    def word(self) -> str:
        return f"{self.model}@{self.layer}" + (f":{self.tokens}" * (self.tokens != TOKENS))

    def __call__(self, rows: Rows) -> np.ndarray:
        """Return (n, width) float32."""
        return states(self.model, rows, (self.layer,), self.tokens)[self.layer]

    def network(self) -> tuple[Any, Any]:
        """Return a copy of the model without the blocks behind the layer, and its tokenizer."""
        whole, tokenizer = text_model(self.model)
        model = copy.deepcopy(whole)
        blocks = blocks_of(model)
        # one block stays: layer 0 is read in front of it
        del blocks[max(1, self.layer) :]
        model.config.num_hidden_layers = len(blocks)
        if kinds := getattr(model.config, "layer_types", None):
            model.config.layer_types = kinds[: len(blocks)]
        return model, tokenizer

    @property
    def settings(self) -> dict[str, Any]:
        names = {"model": self.model, "layer": self.layer, "tokens": self.tokens}
        return {"kind": "hidden", **names}


@dataclass(frozen=True, eq=False)
class AdaptedMean(Feature):
    """The same mean by a model with weights changed by an adapter: W' = W + B A.

    adapter: key of its method.  base: of the unchanged model.  changes: path of a weight -> (B, A).
    """

    adapter: str
    base: HiddenMean
    changes: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def word(self) -> str:
        return f"{self.adapter}={self.base.word}"

    def __call__(self, rows: Rows) -> np.ndarray:
        """Return (n, width) float32."""
        _check_texts(rows, self.word)
        layer = self.base.layer
        return hidden_means(*self._changed, rows, (layer,), self.base.tokens)[layer]

    @cached_property
    def _changed(self) -> tuple[Any, Any]:
        """The changed model, made once."""
        return self.network()

    def network(self) -> tuple[Any, Any]:
        """Return a copy of the changed model, as `HiddenMean.network`.  Raises: CheckpointError."""
        model, tokenizer = self.base.network()
        try:
            with torch.no_grad():
                for path, (up, down) in self.changes.items():
                    model.get_parameter(path).add_(up @ down)
        except (AttributeError, RuntimeError) as error:
            want, fix = f"changes of {self.base.model}", "Name the model that it was fitted on."
            raise CheckpointError(f"adapter {self.word}", got=error, want=want, fix=fix) from error
        return model, tokenizer

    @property
    def settings(self) -> dict[str, Any]:
        return self.base.settings | {"kind": "adapted", "adapter": self.adapter}

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        pairs = {f"{path}.{i}": t for path, two in self.changes.items() for i, t in enumerate(two)}
        return {name: tensor.numpy() for name, tensor in pairs.items()}

    @classmethod
    def opened(cls, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> AdaptedMean:
        """Return the feature that was saved; PATH.0 and .1 are the factors of a layer's change."""
        paths = [name.removesuffix(".0") for name in tensors if name.endswith(".0")]
        changes = {
            path: (torch.tensor(tensors[f"{path}.0"]), torch.tensor(tensors[f"{path}.1"]))
            for path in paths
        }
        return cls(str(settings["adapter"]), _hidden(settings), changes)


def _hidden(settings: Mapping[str, Any]) -> HiddenMean:
    return HiddenMean(str(settings["model"]), int(settings["layer"]), int(settings["tokens"]))


@dataclass(frozen=True)
class Numbers(Feature):
    """The numbers of a table themselves.  columns: their names."""

    columns: tuple[str, ...]

    @property
    def word(self) -> str:
        return NUMBERS

    def __call__(self, rows: Rows) -> np.ndarray:
        """Return the rows (n, d).  Raises: DataError for another number of columns."""
        wide = np.asarray(rows, dtype=np.float64)
        if wide.ndim != 2 or wide.shape[1] != len(self.columns):
            want, fix = f"(n, {len(self.columns)})", "Give the columns of the training rows."
            raise DataError("rows of numbers", got=wide.shape, want=want, fix=fix)
        return wide

    @property
    def settings(self) -> dict[str, Any]:
        return {"kind": NUMBERS, "columns": list(self.columns)}


def states(model: str, texts: Rows, layers: Sequence[int], tokens: int) -> dict[int, np.ndarray]:
    """Return layer -> mean hidden states of texts, (n, width), all from one pass.

    Raises: DataError for rows of numbers; ConfigError for a layer that the model has not.
    """
    _check_texts(texts, model)
    net, tokenizer = text_model(model)
    depth = net.config.num_hidden_layers
    if beyond := [layer for layer in layers if layer > depth]:
        fix = f"Leave the layer out ({model}), or take a smaller one."
        raise ConfigError(f"layer of {model}", got=beyond[0], want=f"0 ... {depth}", fix=fix)
    return hidden_means(net, tokenizer, texts, tuple(layers), tokens)


@lru_cache(maxsize=2)
def text_model(name: str) -> tuple[Any, Any]:
    """Return a model without its head and its tokenizer, read once.

    name: minilm, smollm2, a folder or a name on the Hub.
    Raises: AssetError.
    """
    return headless_model(name, packaged_folder(SENTENCE_ENCODERS, name), progress=announce)


def feature_of(word: str, columns: tuple[str, ...] = ()) -> Feature:
    """Return the feature of a word; of a model without a layer its last one.

    word: words, tfidf, numbers, or MODEL@LAYER:TOKENS.  columns: names of a table's numbers.
    Raises: ConfigError for a word that does not fit the rows; AssetError for an unknown model.
    """
    if columns or word == NUMBERS:
        if not (columns and word == NUMBERS):
            rows = "a table of numbers" if columns else "texts"
            fix = f"Use --method {NUMBERS if columns else 'tfidf'}."
            want = NUMBERS if columns else f"{', '.join(SPARSE)}, {', '.join(MODELS)} or a folder"
            raise ConfigError(f"method for {rows}", got=word, want=want, fix=fix)
        return Numbers(columns)
    if word in SPARSE:
        return Tfidf(word)
    model, layer, tokens = split_word(word)
    if layer is None:
        layer = text_model(model)[0].config.num_hidden_layers
    return HiddenMean(model, layer, tokens)


def opened_feature(settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Feature:
    """Return the feature that `settings` and `tensors` describe.  Raises: CheckpointError."""
    kind = settings["kind"]
    if kind == "tfidf":
        return Tfidf.opened(settings, tensors)
    if kind == "hidden":
        return _hidden(settings)
    if kind == "adapted":
        return AdaptedMean.opened(settings, tensors)
    if kind == NUMBERS:
        return Numbers(tuple(map(str, settings["columns"])))
    want = f"tfidf, hidden, adapted or {NUMBERS}"
    raise CheckpointError("feature", got=kind, want=want, fix="Update intarsia.")


def _check_texts(rows: Rows, word: str) -> None:
    if isinstance(rows, np.ndarray) or not all(isinstance(row, str) for row in rows):
        fix = "Give a list of texts."
        raise DataError(f"rows for {word}", got="other rows", want="texts", fix=fix)
