"""Collections for retrieval: documents, queries, and which document answers which query.

    naves = load_collection("naves")               # or "scifact", or a folder in BEIR's layout
    naves.docs["John.3.16"], naves.qrels["q17"]    # {"Matt.5.44": 1, ...}

A folder in BEIR's layout has corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and
qrels/train.tsv, dev.tsv, test.tsv (query-id, corpus-id, score). A file docs.jsonl with `id` and
`text` in each line is a collection without queries.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from intarsia.core.errors import DataError, UnknownName
from intarsia.core.files import writing
from intarsia.core.folders import describe_folder
from intarsia.data import beir
from intarsia.data.documents import read_documents
from intarsia.data.naves import in_new_testament, read_naves
from intarsia.data.packages import announce
from intarsia.data.records import lines_of
from intarsia.data.reverse_dictionary import read_reverse_dictionary

Qrels = Mapping[str, Mapping[str, int]]  # query -> document -> grade, above 0 = it answers
Report = Callable[[str], None]
PARTS = ("train", "val", "test")
TSV = {"train": "train", "val": "dev", "test": "test"}  # as BEIR calls them
NAMES = ("naves", "naves-nt", "reverse-dictionary")
CORPUS = "corpus.jsonl"  # the documents of a folder in BEIR's layout


@dataclass(frozen=True)
class Collection:
    """Documents and queries by id, and grades: qrels[query][document], above 0 = it answers.

    Every query of `qrels` is in `queries`, every document in `docs`, which may hold more.
    Raises: DataError where one is not.
    """

    docs: Mapping[str, str]
    queries: Mapping[str, str] = field(default_factory=dict[str, str])
    qrels: Qrels = field(default_factory=dict[str, dict[str, int]])

    def __post_init__(self) -> None:
        """Check that all judged queries and documents are there.  Raises: DataError."""
        for query, grades in self.qrels.items():
            if query not in self.queries:
                _refuse_unknown("query", query, "queries")
            if doc := next((doc for doc in grades if doc not in self.docs), None):
                _refuse_unknown("document", doc, "documents")

    @property
    def judged(self) -> dict[str, str]:
        """The queries that some document answers, by id."""
        rows = self.qrels.items()
        return {q: self.queries[q] for q, grades in rows if any(g > 0 for g in grades.values())}


def _refuse_unknown(kind: str, name: str, part: str) -> None:
    """Raise DataError for a judgement of an id that the collection does not have."""
    fix = f"Delete the judgement, or add the {kind}."
    raise DataError(
        f"judgement of {kind} {name!r}", got="no such id", want=f"one of the {part}", fix=fix
    )


def check_collection(spec: str) -> None:
    """Check, before anything is read, that documents are a known name, a file or a folder of some.

    Raises: DataError for a path where nothing is, or without documents; UnknownName.
    """
    path = Path(spec)
    if spec in NAMES or path.is_file() or (path / CORPUS).is_file():
        return
    if path.exists() or path.suffix or len(path.parts) > 1:
        got = describe_folder(path) if path.exists() else "nothing there"
        want, fix = f"a file of documents, or a folder with {CORPUS}", "Check the path."
        raise DataError(f"documents {spec!r}", got=got, want=want, fix=fix)
    if beir.named(spec) is None:
        raise UnknownName("collection", spec, (*NAMES, *(s.name for s in beir.SETS)))


def load_collection(spec: str, part: str = "test", *, report: Report = announce) -> Collection:
    """Load a collection for retrieval: documents, queries, and which document answers which query.

    spec: one of NAMES, a folder in BEIR's layout, a file of documents, or what BEIR or MTEB call a
    collection, such as "scifact". part: "train", "val" or "test": its queries and judgements are
    read; documents are the same. report: gets lines of progress.
    Raises: DataError for a file that is missing or damaged, an id that occurs twice, a judgement of
    an unknown id; UnknownName for another part, or a name that is neither known nor a path.
    """
    if part not in PARTS:
        raise UnknownName("part", part, PARTS)
    if spec in NAMES:
        # Queries of named collections are numbered in their order.
        docs, parts = _read_named(spec, report)
        lines = enumerate(parts[part].items())
        rows = [(f"q{number}", text, answers) for number, (text, answers) in lines]
        qrels = {query: dict.fromkeys(answers, 1) for query, _, answers in rows}
        return Collection(docs, {query: text for query, text, _ in rows}, qrels)
    check_collection(spec)
    path = Path(spec)
    if path.is_dir():
        return _read_beir(path, part)
    if (beir_set := beir.named(spec)) is not None and not path.exists():
        docs, queries, judged = beir.read_named(beir_set, TSV[part])
        return Collection(docs, {q: queries[q] for q in judged if q in queries}, judged)
    return Collection(dict(read_docs(path)))


@functools.lru_cache(maxsize=2)
def _read_named(
    name: str, report: Report
) -> tuple[dict[str, str], dict[str, dict[str, list[str]]]]:
    """Read one of the library's own collections: its documents, and the queries of each part."""
    if name == "reverse-dictionary":
        return read_reverse_dictionary(report)
    naves = read_naves(report)
    return in_new_testament(*naves) if name == "naves-nt" else naves


def read_docs(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of each document of a file; see `read_documents`, which has their fields."""
    return ((document.id, document.text) for document in read_documents(path))


def read_queries(path: str | Path) -> dict[str, str]:
    """Read queries by id from a .jsonl file with ids and texts, or a text file with one a line.

    path: of the file; queries without an id are called q1, q2 ... by their lines.
    Raises: DataError, as `read_docs`.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        return dict(read_docs(path))
    return {f"q{number}": line.strip() for number, line in lines_of(path)}


def write_collection(parts: Mapping[str, Collection], folder: str | Path) -> Path:
    """Write a collection as a folder in BEIR's layout; return the folder.

    parts: "train", "val" or "test" -> its queries and judgements; documents are the first
    part's.
    Raises: UnknownName for another part; ConfigError for a folder with other files; TrainingError
    if it cannot be written.
    """
    folder = Path(folder)
    with writing(folder, refuse_loss=True) as scratch:
        (scratch / "qrels").mkdir(parents=True)
        docs = next(iter(parts.values())).docs
        _write_lines(
            scratch / "corpus.jsonl", ({"_id": n, "title": "", "text": t} for n, t in docs.items())
        )
        queries: dict[str, str] = {}
        for part, collection in parts.items():
            if part not in PARTS:
                raise UnknownName("part", part, PARTS)
            # a query's id is its own among all parts' ids
            new_ids = {n: f"{part}-{n}" if n in queries else n for n in collection.queries}
            queries |= {new_ids[n]: text for n, text in collection.queries.items()}
            grades = (
                (new_ids[q], d, g) for q, row in collection.qrels.items() for d, g in row.items()
            )
            rows = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in grades)]
            (scratch / "qrels" / f"{TSV[part]}.tsv").write_text("\n".join(rows) + "\n", "utf-8")
        _write_lines(scratch / "queries.jsonl", ({"_id": n, "text": t} for n, t in queries.items()))
    return folder


def _write_lines(path: Path, rows: Iterator[dict[str, str]]) -> None:
    """Write rows as a .jsonl file."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _read_beir(folder: Path, part: str) -> Collection:
    """Read a folder in BEIR's layout: its documents, and queries and judgements of a part."""
    docs = dict(read_docs(folder / CORPUS))
    file = folder / "qrels" / f"{TSV[part]}.tsv"
    if not (folder / "queries.jsonl").exists():
        return Collection(docs)
    queries, qrels = dict(read_docs(folder / "queries.jsonl")), dict[str, dict[str, int]]()
    for number, line in lines_of(file) if file.exists() else ():
        cells = line.rstrip("\r\n").split("\t")
        # The header line.
        if number == 1 and cells[-1] == "score":
            continue
        try:
            query, doc, grade = cells[0], cells[1], int(cells[2])
        except (IndexError, ValueError) as error:
            want, fix = "query-id, corpus-id and score with tabs between", "Correct the line."
            raise DataError(f"line {number} of {file}", got=error, want=want, fix=fix) from error
        qrels.setdefault(query, {})[doc] = grade
    return Collection(docs, {query: queries[query] for query in qrels if query in queries}, qrels)
