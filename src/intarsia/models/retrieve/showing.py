"""What a search found, ready for people: texts with the query's words marked, and why."""

from __future__ import annotations

import time
from typing import Any

from .sparse_index import SparseIndex

WIDTH = 600  # characters of a text that are shown


def found(index: SparseIndex, query: str, k: int = 10) -> dict[str, Any]:
    """The hits of a query with their terms, as JSON.

    hits: id, score, text, parts (pieces of the text and whether each is a word of the query), terms
    (token, score, expanded); tokens: of the query that the index knows, heaviest first.
    Raises: ConfigError.
    """
    start = time.perf_counter()
    hits = index.search(query, k)
    seconds = time.perf_counter() - start
    tokens = index.queries.of(query)
    known = {token for token, _ in tokens}
    return {
        "query": query,
        "hits": [
            {
                "id": hit.id,
                "score": hit.score,
                "text": hit.text,
                "parts": parts(index, hit.text, known),
                "terms": [vars(term) for term in index.explain(query, hit.id)],
            }
            for hit in hits
        ],
        "tokens": [index.queries.word(token) for token, _ in tokens],
        "documents": len(index),
        "milliseconds": 1e3 * seconds,
    }


def parts(
    index: SparseIndex, text: str, known: set[int], width: int = WIDTH
) -> list[tuple[str, bool]]:
    """A text in pieces: (piece, whether it is one of the known tokens).

    Of a long text the part that begins shortly before the first of them.
    """
    marked = [(a, b) for token, a, b in index.queries.places(text) if token in known]
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
