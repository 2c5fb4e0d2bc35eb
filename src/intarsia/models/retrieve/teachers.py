"""Teachers of a retriever: how well each candidate answers a query, in a teacher's own scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...core.errors import AssetError, ConfigError
from ...data.packages import announce
from .inference_free import DENSE, packaged, sentence_transformers
from .lexical import Lexical, stems

BM25 = Lexical()  # its language, k1 and b
Report = Callable[[str], None]


class Teacher(Protocol):
    """Scores documents of one collection, which are known by their number."""

    def scores(self, queries: Sequence[str], candidates: np.ndarray) -> np.ndarray:
        """(queries, candidates) int -> (queries, candidates) float, larger is better."""
        ...


class Bm25:
    """BM25 of bm25s, with Snowball's stems and without stop words; it also finds candidates.

    Raises: MissingExtra without bm25s and PyStemmer.
    """

    def __init__(self, texts: Sequence[str], *, k1: float = BM25.k1, b: float = BM25.b) -> None:
        tokens = stems(texts, BM25.language, numbered=True)
        import bm25s

        self.index = bm25s.BM25(method="lucene", k1=k1, b=b)
        self.index.index(tokens, show_progress=False)
        self.count = len(texts)

    def found(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and scores of the best k documents of each query, (queries, k) both."""
        tokens, k = stems(queries, BM25.language, numbered=True), min(k, self.count)
        found: Any = self.index.retrieve(tokens, k=k, show_progress=False, n_threads=1)
        return found

    def scores(self, queries: Sequence[str], candidates: np.ndarray) -> np.ndarray:
        words = stems(queries, BM25.language)
        rows = [
            self.index.get_scores(own)[row] if own else np.zeros(len(row))
            for own, row in zip(words, candidates, strict=True)
        ]
        return np.stack(rows)


class DenseTeacher:
    """Cosines of a sentence encoder; a document is encoded once, when it is first asked for.

    Raises: AssetError for a model that cannot be had.
    """

    def __init__(self, texts: Sequence[str], name: str, *, report: Report = announce) -> None:
        folder = packaged(DENSE, name, report) or name
        library = sentence_transformers()
        try:
            self.model = library.SentenceTransformer(
                folder, device="cpu", trust_remote_code=False,
                local_files_only=Path(folder).is_dir(),
            )  # fmt: skip
        except Exception as error:  # OSError, ValueError, KeyError, SafetensorError ...
            want = f"bm25, {', '.join(DENSE)}, or a folder of a sentence encoder"
            fix = "Check the name of the teacher."
            raise AssetError(f"teacher {name!r}", got=error, want=want, fix=fix) from error
        self.texts, self._vectors = texts, dict[int, np.ndarray]()

    def scores(self, queries: Sequence[str], candidates: np.ndarray) -> np.ndarray:
        new = sorted({int(n) for n in candidates.ravel()} - self._vectors.keys())
        encoded = self._encoded([self.texts[n] for n in new])
        self._vectors |= dict(zip(new, encoded, strict=True))
        asked = self._encoded(queries)
        rows = [
            np.stack([self._vectors[int(n)] for n in row]) @ q
            for q, row in zip(asked, candidates, strict=True)
        ]
        return np.stack(rows)

    def _encoded(self, texts: Sequence[str]) -> np.ndarray:
        return self.model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


def teachers_of(
    names: Sequence[str], texts: Sequence[str], *, report: Report = announce
) -> dict[str, Teacher]:
    """Teachers by name: bm25, minilm, or a folder of a sentence encoder.

    Raises: ConfigError for none, or one that is named twice; AssetError, MissingExtra.
    """
    if not names or len(set(names)) != len(names):
        got, fix = ",".join(names) or "none", "For example: --teachers minilm,bm25"
        raise ConfigError("teachers", got=got, want="one or more, each once", fix=fix)
    return {
        name: Bm25(texts) if name == "bm25" else DenseTeacher(texts, name, report=report)
        for name in names
    }
