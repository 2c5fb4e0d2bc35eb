"""Search results for display: texts with the query's words marked, and explanations."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from .lexical import stems
from .sparse_index import Hit, SparseIndex

WIDTH = 600  # characters of a text that are displayed
WORD = re.compile(r"\w\w+")  # words that have a stem


def search_results(
    index: SparseIndex, query: str, k: int = 10, where: Sequence[str] = ()
) -> dict[str, Any]:
    """Search, and return the hits with their terms, ready for JSON.

    Returns hits: id, score, text, fields, parts (pieces of the text, and True for a word that
    scored), terms (token, score, expanded, stem); tokens: the query's tokens with a weight,
    heaviest first; stems: the query's stems.
    Raises: ConfigError; UnknownName for a field that no document has.
    """
    tokens = index.queries.of(query)
    words = index.stems_of(query)
    index.prepare()  # once in a process; only the query is timed
    start = time.perf_counter()
    hits = index.search(query, k, where=where)
    seconds = time.perf_counter() - start
    return {
        "query": query,
        "hits": [_hit(index, query, tokens, hit) for hit in hits],
        "tokens": [index.queries.word(token) for token, _ in tokens],
        "stems": words,
        "documents": len(index),
        "milliseconds": 1e3 * seconds,
    }


def _hit(
    index: SparseIndex, query: str, tokens: Sequence[tuple[int, float]], hit: Hit
) -> dict[str, Any]:
    """Return a hit ready for JSON, with the words marked that contributed to its score."""
    terms = index.explain(query, hit.id)
    scored = {term.token for term in terms if not term.stem}
    # mark only what contributed, and explain it by the same terms
    scoring_tokens = {token for token, _ in tokens if index.queries.word(token) in scored}
    stemmed = [term.token for term in terms if term.stem]
    return {
        "id": hit.id,
        "score": hit.score,
        "text": hit.text,
        "fields": dict(hit.fields),
        "parts": mark_parts(index, hit.text, scoring_tokens, stemmed),
        "terms": [vars(term) for term in terms],
    }


def mark_parts(
    index: SparseIndex,
    text: str,
    tokens: set[int],
    words: Sequence[str] = (),
    width: int = WIDTH,
) -> list[tuple[str, bool]]:
    """Split a text into pieces (piece, True = marked), at most `width` characters in all.

    Marked are the pieces of `tokens`, and words with a stem that is among `words`. Of a long text
    the part around the first marked piece is returned.
    """
    marked = [(a, b) for token, a, b in index.queries.places(text) if token in tokens]
    if words and index.lexical is not None:
        distinct = list(set(WORD.findall(text)))
        stemmed = zip(distinct, stems(distinct, index.lexical.language), strict=True)
        marked_words = {word for word, word_stems in stemmed if set(word_stems) & set(words)}
        marked += [(m.start(), m.end()) for m in WORD.finditer(text) if m.group() in marked_words]
        marked.sort(key=lambda place: (place[0], -place[1]))
    # begin a long text at a word, a quarter of the width before the first mark
    first = 0
    if len(text) > width and marked and marked[0][0] > width // 2:
        first = text.rfind(" ", 0, marked[0][0] - width // 4) + 1
    last, pieces = first, list[tuple[str, bool]]()
    end = min(len(text), first + width)
    if first:
        pieces.append(("… ", False))
    for a, b in marked:
        # overlapping marks: the first one wins
        if a >= last and b <= end:
            pieces += [(text[last:a], False), (text[a:b], True)]
            last = b
    pieces.append((text[last:end], False))
    if end < len(text):
        pieces.append((" …", False))
    return [piece for piece in pieces if piece[0]]
