"""The page to search an index, on this machine alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from .shell import note, say

if TYPE_CHECKING:
    from ..models.retrieve.sparse_index import SparseIndex


def answers(index: SparseIndex) -> dict[str, Any]:
    """Return the functions that answer requests of the search page, by path.

    index: what is searched. The function takes and returns a JSON object.
    """
    from ..models.retrieve.showing import search_results

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        """Answer one question of the page: the k best documents for a query.  Raises: DataError."""
        # a request comes from a browser: nothing in it is trusted
        query, k = question.get("query"), question.get("k", 10)
        if not isinstance(query, str) or not isinstance(k, int) or not 1 <= k <= 100:
            fix = 'For example {"query": "...", "k": 10}.'
            raise DataError("question", got=sorted(question), want="a query and a k", fix=fix)
        return search_results(index, query, k)

    return {"/search": answer}


def page_of(index: SparseIndex, folder: Path) -> str:
    """Return the HTML page to search an index.

    folder: of the index, for the title.
    """
    from ..reports.page import live
    from ..reports.report import Report

    lead = f"{len(index):,} documents, encoded by {Path(index.model).name}; no model runs here."
    return live(Report(f"Search {folder.name}", (lead,), eyebrow="intarsia search"), "search")


def serve_index(index: SparseIndex, folder: Path, port: int) -> None:
    """Serve the page to search an index until Ctrl-C."""
    from ..reports.local_page import serve_page

    serve_page(page_of(index, folder), answers(index), port, say, note)
