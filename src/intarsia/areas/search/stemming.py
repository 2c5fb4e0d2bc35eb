"""Words of texts and their stems by Snowball, each distinct word stemmed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ...core.errors import MissingExtra
from ...kernels.postings import PostingLists, count, word_numbers
from ...kernels.postings.naive import WORD

CACHED = 100_000  # words with remembered stems
MOST = 65_504.0  # of a count in float16, which is exact up to 2,048


def stems(texts: Sequence[str], language: str, *, numbered: bool = False) -> Any:
    """Return the stems of each text in order, without stop words, as bm25s has them.

    language: one of LANGUAGES; numbered: return bm25s' object with `ids`, the stems as numbers, and
      `vocab`, stem -> number. Raises: MissingExtra without bm25s and PyStemmer.
    """
    known_stems = _known(language)
    if numbered:
        options: dict[str, Any] = {"stopwords": language, "stemmer": known_stems.stemmer}
        return known_stems.tokenize(list(texts), show_progress=False, **options)
    if len(known_stems) > CACHED:
        known_stems.clear()
    words = (WORD.findall(text.lower()) for text in texts)
    return [
        [stem for word in of_text if (stem := known_stems[word]) is not None] for of_text in words
    ]


class KnownStems(dict[str, "str | None"]):
    """Stems of words, None for stop words, made when they are first asked for."""

    def __init__(self, stop: frozenset[str], stemmer: Any, tokenize: Callable[..., Any]) -> None:
        """Know no word yet.  stop: words without a stem; tokenize: of bm25s."""
        super().__init__()
        self.stop, self.stemmer, self.tokenize = stop, stemmer, tokenize

    def __missing__(self, word: str) -> str | None:
        stem = self[word] = None if word in self.stop else self.stemmer.stemWord(word)
        return stem


@lru_cache
def _known(language: str) -> KnownStems:
    """Return a language's stems, cached: building the stemmer takes longer than a query."""
    try:
        import bm25s
        import Stemmer
        from bm25s.tokenization import Tokenizer
    except ImportError as error:
        raise MissingExtra("bm25s", "search") from error
    stop = frozenset(Tokenizer(stopwords=language).stopwords or ())
    return KnownStems(stop, Stemmer.Stemmer(language), bm25s.tokenize)


class StemNumbers:
    """Numbers of the stems of texts that are added block by block."""

    def __init__(self, language: str) -> None:
        """Know no stem yet.  language: one of LANGUAGES.  Raises: MissingExtra."""
        known_stems = _known(language)
        self._stop, self._stemmer = known_stems.stop, known_stems.stemmer
        self._words, self._numbers = word_numbers(), dict[str, int]()
        self._of_word = np.empty(0, np.int32)  # the stem's number, -1 for stop words

    def counts(self, texts: Sequence[str]) -> tuple[list[str], PostingLists]:
        """Count how often each text has each stem that is in any of them.

        Returns the stems, and the lists of counts in float16.
        """
        words, ends = self._words.add(texts)
        self._of_word = np.append(self._of_word, self._new())
        starts, docs, counts, _ = count(self._of_word[words], ends, len(self._numbers))
        used, names = np.flatnonzero(np.diff(starts)), list(self._numbers)
        # lists without a document have no length: the others begin where they did
        starts = np.append(starts[used], len(docs)).astype(np.int64)
        counts = np.minimum(counts, MOST).astype(np.float16)
        return [names[number] for number in used.tolist()], PostingLists(starts, docs, counts)

    def _new(self) -> np.ndarray:
        """Return the stem's number of each word that has come since the last texts."""
        words, numbers = self._words.since(len(self._of_word)), self._numbers
        stemmed = zip(words, self._stemmer.stemWords(words), strict=True)
        stem_numbers = [
            -1 if word in self._stop else numbers.setdefault(stem, len(numbers))
            for word, stem in stemmed
        ]
        return np.array(stem_numbers, np.int32)
