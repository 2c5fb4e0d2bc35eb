"""Teachers of a retriever, which score how well each candidate document answers a query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...core.errors import AssetError, ConfigError
from ...data.packages import SENTENCE_ENCODERS, announce, packaged_folder
from .inference_free import sentence_transformers
from .lexical import Lexical, stems

BM25 = Lexical()  # its language, k1 and b
Report = Callable[[str], None]


class Teacher(Protocol):
    """Teacher that scores the documents of one collection, given by their numbers."""

    def scores(self, queries: Sequence[str], candidates: np.ndarray) -> np.ndarray:
        """Score candidates, (queries, n) int, of each query -> (queries, n), larger is better."""
        ...


class Bm25:
    """BM25 of bm25s as a teacher, on stems without stop words; it also finds candidates.

    Raises: MissingExtra without bm25s and PyStemmer.
    """

    def __init__(self, texts: Sequence[str], *, k1: float = BM25.k1, b: float = BM25.b) -> None:
        tokens = stems(texts, BM25.language, numbered=True)
        import bm25s

        self.index = bm25s.BM25(method="lucene", k1=k1, b=b)
        self.index.index(tokens, show_progress=False)
        self.count = len(texts)

    def retrieve(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers and scores of each query's k best documents, (queries, k) both."""
        tokens, k = stems(queries, BM25.language, numbered=True), min(k, self.count)
        best: Any = self.index.retrieve(tokens, k=k, show_progress=False, n_threads=1)
        return best

    def scores(self, queries: Sequence[str], candidates: np.ndarray) -> np.ndarray:
        """Score each query's candidates, numbers of documents (queries, n).  -> (queries, n)."""
        words = stems(queries, BM25.language)
        rows = [
            self.index.get_scores(query_stems)[row] if query_stems else np.zeros(len(row))
            for query_stems, row in zip(words, candidates, strict=True)
        ]
        return np.stack(rows)


class DenseTeacher:
    """Cosines of a sentence encoder as a teacher; each document is encoded once, when needed.

    Raises: AssetError for a model that is not available.
    """

    def __init__(self, texts: Sequence[str], name: str, *, report: Report = announce) -> None:
        """Load the sentence encoder; no text is encoded yet."""
        folder = packaged_folder(SENTENCE_ENCODERS, name, report) or name
        library = sentence_transformers()
        try:
            self.model = library.SentenceTransformer(
                folder,
                device="cpu",
                trust_remote_code=False,
                local_files_only=Path(folder).is_dir(),
            )
        except Exception as error:  # OSError, ValueError, KeyError, SafetensorError ...
            want = f"bm25, {', '.join(SENTENCE_ENCODERS)}, or a folder of a sentence encoder"
            fix = "Check the name of the teacher."
            raise AssetError(f"teacher {name!r}", got=error, want=want, fix=fix) from error
        self.texts, self._vectors = texts, dict[int, np.ndarray]()

    def scores(self, queries: Sequence[str], candidates: np.ndarray) -> np.ndarray:
        """Compute each query's cosines with its candidates, (queries, n)."""
        # vectors have length 1, so that a dot product is a cosine
        new = sorted({int(n) for n in candidates.ravel()} - self._vectors.keys())
        encoded = self._encode([self.texts[n] for n in new])
        self._vectors |= dict(zip(new, encoded, strict=True))
        query_vectors = self._encode(queries)
        rows = [
            np.stack([self._vectors[int(n)] for n in row]) @ q
            for q, row in zip(query_vectors, candidates, strict=True)
        ]
        return np.stack(rows)

    def _encode(self, texts: Sequence[str]) -> np.ndarray:
        return self.model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


def teachers_of(
    names: Sequence[str], texts: Sequence[str], *, report: Report = announce
) -> dict[str, Teacher]:
    """Build teachers by name: bm25, minilm, or a folder of a sentence encoder.

    Raises: ConfigError for none, or one that is named twice; AssetError, MissingExtra.
    """
    if not names or len(set(names)) != len(names):
        got, fix = ",".join(names) or "none", "For example: --teachers minilm,bm25"
        raise ConfigError("teachers", got=got, want="one or more, each once", fix=fix)
    return {
        name: Bm25(texts) if name == "bm25" else DenseTeacher(texts, name, report=report)
        for name in names
    }
