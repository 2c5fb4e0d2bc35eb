"""What a search found, ready for people: texts with the query's words marked, and why."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from .lexical import stems
from .sparse_index import Hit, SparseIndex

WIDTH = 600  # characters of a text that are shown
WORD = re.compile(r"\w\w+")  # what has a stem


def found(index: SparseIndex, query: str, k: int = 10) -> dict[str, Any]:
    """The hits of a query with their terms, as JSON.

    hits: id, score, text, parts (pieces of the text and whether each is a word that scored), terms
    (token, score, expanded, stem); tokens: of the query that the model knows, heaviest first;
    stems: of the query.
    Raises: ConfigError.
    """
    start = time.perf_counter()
    hits = index.search(query, k)
    seconds = time.perf_counter() - start
    tokens = index.queries.of(query)
    words = index.stems_of(query)
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
    """Return a hit as JSON; marked are the words that added to its score, and no others."""
    terms = index.explain(query, hit.id)
    scored = {term.token for term in terms if not term.stem}
    known = {token for token, _ in tokens if index.queries.word(token) in scored}
    stemmed = [term.token for term in terms if term.stem]
    return {
        "id": hit.id,
        "score": hit.score,
        "text": hit.text,
        "parts": parts(index, hit.text, known, stemmed),
        "terms": [vars(term) for term in terms],
    }


def parts(
    index: SparseIndex,
    text: str,
    known: set[int],
    words: Sequence[str] = (),
    width: int = WIDTH,
) -> list[tuple[str, bool]]:
    """A text in pieces: (piece, whether it is one of the known tokens, or a word of these stems).

    Of a long text the part that begins shortly before the first of them.
    """
    marked = [(a, b) for token, a, b in index.queries.places(text) if token in known]
    if words and index.lexical is not None:
        others = list(set(WORD.findall(text)))
        stemmed = zip(others, stems(others, index.lexical.language), strict=True)
        own = {word for word, found in stemmed if set(found) & set(words)}
        marked += [(m.start(), m.end()) for m in WORD.finditer(text) if m.group() in own]
        marked.sort(key=lambda place: (place[0], -place[1]))
    first = 0
    if len(text) > width and marked and marked[0][0] > width // 2:
        first = text.rfind(" ", 0, marked[0][0] - width // 4) + 1
    last, pieces = first, list[tuple[str, bool]]()
    end = min(len(text), first + width)
    if first:
        pieces.append(("… ", False))
    for a, b in marked:
        if a >= last and b <= end:
            pieces += [(text[last:a], False), (text[a:b], True)]
            last = b
    pieces.append((text[last:end], False))
    if end < len(text):
        pieces.append((" …", False))
    return [piece for piece in pieces if piece[0]]
