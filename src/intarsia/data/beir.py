"""Collections of BEIR by their names there or in MTEB, from the Hub at a fixed revision.

Parquet and JSON files alone are read (`pip install intarsia[search]` has the reader): no code. A
machine without network reads the folder of a BEIR archive instead, see `collections`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from intarsia.core.errors import DataError, MissingExtra
from intarsia.core.registry import spelled


@dataclass(frozen=True, slots=True)
class BeirSet:
    """A collection on the Hub.  name: BEIR's; task: MTEB's; revision: of its repository."""

    name: str
    task: str
    repository: str
    revision: str


SETS = (
    BeirSet("arguana", "ArguAna", "mteb/arguana", "c22ab2a51041ffd869aaddef7af8d8215647e41a"),
    BeirSet("fiqa", "FiQA2018", "mteb/fiqa", "27a168819829fe9bcd655c2df245fb19452e8e06"),
    BeirSet("nfcorpus", "NFCorpus", "mteb/nfcorpus", "ec0fa4fe99da2ff19ca1214b7966684033a58814"),
    BeirSet("quora", "QuoraRetrieval", "mteb/quora", "e4e08e0b7dbe3c8700f0daef558ff32256715259"),
    BeirSet("scidocs", "SCIDOCS", "mteb/scidocs", "f8c2fcf00f625baaa80f62ec5bd9e1fff3b8ae88"),
    BeirSet("scifact", "SciFact", "mteb/scifact", "0228b52cf27578f30900b9e5271d331663a030d7"),
    BeirSet(
        "trec-covid", "TRECCOVID", "mteb/trec-covid", "bb9466bac8153a0349341eb1b22e06409e78ef4e"
    ),
    BeirSet(
        "webis-touche2020",
        "Touche2020",
        "mteb/touche2020",
        "a34f9a33db75fa0cbb21bb5cfc3dae8dc8bec93f",
    ),
)


def named(name: str) -> BeirSet | None:
    """Return the collection that BEIR or MTEB calls so, in any spelling; None for another name."""
    return next((s for s in SETS if spelled(name) in map(spelled, (s.name, s.task))), None)


def read_named(
    beir_set: BeirSet, split: str
) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """Read documents, queries and relevance judgements of a BEIR collection from the Hub.

    split: "train", "dev" or "test"; without judgements where the collection has no such split.
    Returns id -> text of documents and of queries, and query -> document -> grade.
    Raises: MissingExtra without the reader; DataError where the Hub cannot be reached, or has
    something else under this name.
    """
    try:
        reader: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingExtra("datasets", "search") from error
    # pinned, so that the collection is the same next year
    source: dict[str, Any] = {"revision": beir_set.revision}
    try:
        docs = {
            str(row["_id"]): f"{row['title']} {row['text']}" if row.get("title") else row["text"]
            for row in reader.load_dataset(beir_set.repository, "corpus", split="corpus", **source)
        }
        queries = {
            str(row["_id"]): row["text"]
            for row in reader.load_dataset(
                beir_set.repository, "queries", split="queries", **source
            )
        }
        splits = reader.load_dataset(beir_set.repository, "default", **source)
        qrels: dict[str, dict[str, int]] = {}
        for row in splits.get(split, ()):
            grades = qrels.setdefault(str(row["query-id"]), {})
            grades[str(row["corpus-id"])] = int(row["score"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = f"{type(error).__name__}: {error}"
        fix = f"Unpack BEIR's archive of {beir_set.name} here, and name its folder."
        raise DataError(
            f"collection {beir_set.name!r}", got=got, want="its files on the Hub", fix=fix
        ) from error
    return docs, queries, qrels
