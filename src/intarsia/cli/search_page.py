"""The page to search an index, on this machine alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from .shell import note, say

if TYPE_CHECKING:
    from ..areas.search.sparse_index import SparseIndex


def answers(index: SparseIndex) -> dict[str, Any]:
    """Return the functions that answer requests of the search page, by path.

    index: the index to search. The function takes and returns a JSON object.
    """
    from ..areas.search.showing import search_results

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        """Return the k best documents for a query, with their fields.  Raises: DataError."""
        # a request comes from a browser: nothing in it is trusted
        query, k = question.get("query"), question.get("k", 10)
        where = question.get("filter", [])
        listed = isinstance(where, list) and all(isinstance(text, str) for text in where)
        if not (isinstance(query, str) and isinstance(k, int) and 1 <= k <= 100 and listed):
            fix = 'For example {"query": "...", "k": 10, "filter": ["price<20"]}.'
            want = "a query, a k of 1 to 100, and perhaps a list of filters"
            raise DataError("question", got=sorted(question), want=want, fix=fix)
        return search_results(index, query, k, where)

    return {"/search": answer}


def page_of(index: SparseIndex, folder: Path) -> str:
    """Return the HTML page to search an index."""
    from ..reports.page import live
    from ..reports.report import Report

    lead = f"{len(index):,} documents, encoded by {Path(index.model).name}; no model runs here."
    return live(Report(f"Search {folder.name}", (lead,), eyebrow="intarsia search"), "search")


def serve_index(index: SparseIndex, folder: Path, port: int) -> None:
    """Serve the page to search an index until Ctrl-C."""
    from ..reports.local_page import serve_page

    serve_page(page_of(index, folder), answers(index), port, say, note)
