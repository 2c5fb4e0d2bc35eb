"""The index compared with bm25s: the documents it finds and the CPU time of a query, in one run.

    python benchmarks/search.py                       # the tables on the terminal
    python benchmarks/search.py --write               # and into docs/benchmarks/search.md
    python benchmarks/search.py --judged naves-nt,reverse-dictionary
    python benchmarks/search.py --judged "" --docs 300 --reps 1     # a smoke test

Judged collections are encoded by the packaged model, which takes minutes to hours, and kept in the
cache; their test queries are measured, k1, b and the share are tuned on validation queries,
for bm25s as for ours. The rows by number of documents are entries of a dictionary (GCIDE), queries
the glosses of another (WordNet); there a document's vector is log(1 + count) of its own tokens, for
time alone. All sides tokenize, score and return ten documents, on one thread, in interleaved runs.
Without a model the index holds BM25 alone; it is built and searched next to bm25s and, where they
are installed (`pip install tantivy numba`), tantivy and bm25s with its backend "numba".
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from frame import interleaved, markdown, parser, publish, read

from intarsia.areas.search.inference_free import MODELS, InferenceFree, packaged_folder
from intarsia.areas.search.lexical import Lexical, StemsAlone, stems
from intarsia.areas.search.query_weights import QueryWeights, idf
from intarsia.areas.search.sparse_index import SparseIndex
from intarsia.areas.search.teachers import Bm25
from intarsia.areas.search.tuning import BS, K1S, MOST_QUERIES, tune_lexical
from intarsia.data.collections import Collection, load_collection
from intarsia.data.packages import cache_dir
from intarsia.train.ranked import score_run

WORDS, ASKED = 17, 300  # of a long query; queries that are timed
MEASURE = "nDCG@10"
ENGINES = ("bm25s", "bm25s, numba", "tantivy", "index")


class OwnTokens:
    """log(1 + count) of each token of a document; queries by idf."""

    name, digest = "own tokens", "0" * 64

    def __init__(self, texts: Sequence[str]) -> None:
        folder = packaged_folder(MODELS, "splade-tiny") or ""
        text = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
        size = QueryWeights.size(text)
        flat = QueryWeights(text, np.ones(size))
        self.queries = QueryWeights(text, idf(*flat.frequencies(texts)))

    def encode(self, texts: Sequence[str]) -> Any:
        tokens = self.queries.tokens(texts)
        rows = np.repeat(np.arange(len(texts)), [len(own) for own in tokens])
        columns = np.concatenate([np.array(own, np.int64) for own in tokens])
        shape = len(texts), len(self.queries.weights)
        counts = sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape)
        counts.sum_duplicates()
        counts.data = np.log1p(counts.data)
        return counts


def index_of(name: str, found: Collection) -> SparseIndex:
    """A judged collection by the packaged model, encoded once."""
    folder = cache_dir() / "benchmarks" / "search" / name
    if not (folder / "meta.json").exists():
        model = InferenceFree.from_pretrained("splade-tiny", found.docs.values())
        SparseIndex.build(model, found.docs.items(), texts=False).save(folder)
    return SparseIndex.load(folder)


def small(found: Collection, names: Sequence[str]) -> Collection:
    """The judgements of documents of an index."""
    known = set(names)
    qrels = {q: g for q, g in found.qrels.items() if g.keys() <= known}
    return Collection(
        {n: found.docs[n] for n in names}, {q: found.queries[q] for q in qrels}, qrels
    )


def best_bm25(val: Collection, names: Sequence[str], texts: Sequence[str]) -> tuple[Bm25, str]:
    """bm25s with the k1 and b that find most on validation queries, and these."""
    asked = dict(islice(val.qrels.items(), MOST_QUERIES))
    part = replace(val, qrels=asked)
    made: dict[tuple[float, float], Bm25] = {
        (k1, b): Bm25(texts, k1=k1, b=b) for k1 in K1S for b in BS
    }
    k1, b = max(made, key=lambda pair: found_by(made[pair], part, names))
    return made[k1, b], f"{k1:g}, {b:g}"


def found_by(one: Bm25 | SparseIndex, part: Collection, names: Sequence[str]) -> float:
    """nDCG@10 on a part's judged queries."""
    queries = {q: part.queries[q] for q in part.qrels}
    if isinstance(one, SparseIndex):
        return score_run(part.qrels, one.run(queries, 10), [MEASURE])[MEASURE]
    numbers, scores = one.retrieve(list(queries.values()), 10)
    rows = zip(queries, numbers, scores, strict=True)
    run = {q: {names[int(n)]: float(s) for n, s in zip(ns, ss, strict=True) if s > 0}
           for q, ns, ss in rows}  # fmt: skip
    return score_run(part.qrels, run, [MEASURE])[MEASURE]


def long_queries(queries: Sequence[str]) -> list[str]:
    """Runs of 17 words of the queries one after another."""
    words = " ".join(queries).split()
    starts = range(0, max(1, len(words) - WORDS), WORDS)
    return [" ".join(words[a : a + WORDS]) for a in islice(starts, ASKED)]


def times(index: SparseIndex, lexical: Bm25, queries: Sequence[str], reps: int) -> list[float]:
    """CPU milliseconds of a query: bm25s and ours all together, then both one at a time."""
    jobs: Mapping[str, Any] = {
        "bm25s": lambda: lexical.retrieve(queries, 10),
        "index": lambda: index.search_many(queries),
        "bm25s, each": lambda: [lexical.retrieve([query], 10) for query in queries],
        "index, each": lambda: [index.search(query) for query in queries],
    }
    return [1e3 * one.cpu / len(queries) for one in interleaved(jobs, reps).values()]


def timed(index: SparseIndex, lexical: Bm25, queries: Sequence[str], reps: int) -> list[str]:
    """The cells of both kinds of queries: milliseconds of bm25s / ours, together and each."""
    cells: list[str] = []
    for asked in (list(queries)[:ASKED], long_queries(queries)):
        a, b, c, d = times(index, lexical, asked, reps)
        cells += [f"{a:.3f} / {b:.3f}", f"{c:.3f} / {d:.3f}"]
    return [*cells, f"{b / a:.2f}, {d / c:.2f}"]


class Tantivy:
    """tantivy with English stems, one thread; a query finds documents with any of its words."""

    def __init__(self, texts: Sequence[str]) -> None:
        import tantivy  # pyright: ignore[reportMissingImports]

        schema = tantivy.SchemaBuilder()
        schema.add_text_field("text", tokenizer_name="en_stem")
        self.index: Any = tantivy.Index(schema.build())
        writer = self.index.writer(heap_size=200_000_000, num_threads=1)
        for text in texts:
            writer.add_document(tantivy.Document(text=text))
        writer.commit()
        writer.wait_merging_threads()
        self.index.reload()
        self.searcher = self.index.searcher()

    def search(self, query: str) -> Any:
        words = "".join(c if c.isalnum() else " " for c in query)  # no operators
        return self.searcher.search(self.index.parse_query(words.lower(), ["text"]), 10).hits


class Bm25Numba(Bm25):
    """bm25s with its backend "numba", which is compiled by its first query."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        tokens = stems(texts, "english", numbered=True)
        self.index = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numba")
        self.index.index(tokens, show_progress=False)
        self.count = len(texts)


def without_model(
    names: Sequence[str], texts: Sequence[str], asked: Sequence[str], reps: int
) -> Any:
    """The cells of an index without a model: seconds to build, milliseconds of a query."""

    def build() -> SparseIndex:
        pairs = zip(names, texts, strict=True)
        return SparseIndex.build(StemsAlone(), pairs, texts=False, lexical=Lexical(share=1))

    makers: dict[str, Any] = {"bm25s": lambda: Bm25(texts), "index": build}
    if importlib.util.find_spec("tantivy") is not None:
        makers["tantivy"] = lambda: Tantivy(texts)
    if importlib.util.find_spec("numba") is not None:
        makers["bm25s, numba"] = lambda: Bm25Numba(texts)
    building = interleaved(makers, max(1, reps // 2))
    engines = {name: make() for name, make in makers.items()}
    queries = long_queries(asked)
    searches: dict[str, Any] = {}
    together: dict[str, Any] = {}
    for name in engines:
        engine = engines[name]
        if isinstance(engine, Bm25):
            searches[name] = lambda e=engine: [e.retrieve([query], 10) for query in queries]
            together[name] = lambda e=engine: e.retrieve(queries, 10)
        else:
            searches[name] = lambda e=engine: [e.search(query) for query in queries]
    together["index"] = lambda: engines["index"].search_many(queries)
    spent, all_spent = interleaved(searches, reps), interleaved(together, reps)
    cells = [f"{len(texts):,}", *cells_of(building, 1)]
    cells.append(f"{building['index'].cpu / building[beside('tantivy', building)].cpu:.3f}")
    for found in (spent, all_spent):
        cells += cells_of(found, 1e3 / len(queries))
        cells.append(f"{found['index'].cpu / found[beside('bm25s, numba', found)].cpu:.3f}")
    return cells


def beside(rival: str, spent: Mapping[str, Any]) -> str:
    """The rival, or bm25s where it is not installed."""
    return rival if rival in spent else "bm25s"


def cells_of(spent: Mapping[str, Any], factor: float) -> list[str]:
    """CPU seconds times a factor, of each engine."""
    return [f"{factor * spent[n].cpu:.3f}" if n in spent else "-" for n in ENGINES]


def judged_row(name: str, reps: int) -> list[str]:
    """What bm25s, the learned vectors and the index find, and what a query costs."""
    index = index_of(name, load_collection(name))
    names = index.segments[0].ids
    val, test = (small(load_collection(name, part), names) for part in ("val", "test"))
    lexical, how = best_bm25(val, names, list(test.docs.values()))
    cells = [name, f"{len(index):,}", f"{len(test.qrels):,}"]
    cells.append(f"{found_by(lexical, test, names):.4f} ({how})")
    for settings in (Lexical(share=0), Lexical()):
        index.lexical = settings
        cells.append(f"{found_by(index, test, names):.4f}")
    best = tune_lexical(index, val.queries, val.qrels)
    cells.append(f"{found_by(index, test, names):.4f} ({best.share:g}; {best.k1:g}, {best.b:g})")
    return [*cells, *timed(index, lexical, list(test.queries.values()), reps)]


def main() -> None:
    made = parser(__doc__, threads=1, reps=5)
    made.add_argument("--docs", default="700,10000,100000")
    made.add_argument("--alone", default="10000,100000", help="documents without a model")
    made.add_argument("--judged", default="naves-nt,naves,reverse-dictionary")
    args = read(made)
    time_head = ["ms, all together", "ms, one at a time", "17 words, together",
                 "17 words, one at a time", "ratios at 17 words"]  # fmt: skip
    body: list[str] = []
    if args.judged:
        head = ["collection", "documents", "test queries", f"bm25s, {MEASURE} (k1, b)",
                "learned alone", "index", "index, tuned (share; k1, b)", *time_head]  # fmt: skip
        rows = [judged_row(name, args.reps) for name in args.judged.split(",")]
        body += [*markdown(head, rows), ""]
    found = load_collection("reverse-dictionary")
    queries, rows = list(found.queries.values()), []
    for count in (int(word) for word in args.docs.split(",") if word):
        names, texts = (list(of)[:count] for of in (found.docs, found.docs.values()))
        pairs = zip(names, texts, strict=True)
        index = SparseIndex.build(OwnTokens(texts), pairs, texts=False)
        cells = [f"{count:,}", f"{index.sizes()['mean']:.0f}"]
        rows.append([*cells, *timed(index, Bm25(texts), queries, args.reps)])
    if rows:
        body += [*markdown(["documents, own tokens", "tokens each", *time_head], rows), ""]
    names, texts = list(found.docs), list(found.docs.values())
    rows = [
        without_model(names[:count], texts[:count], queries, args.reps)
        for count in (int(word) for word in args.alone.split(",") if word)
    ]
    head = ["documents, without a model", *(f"{name}, s to build" for name in ENGINES)]
    head.append("of tantivy")
    for how in ("one at a time", "all together"):
        head += [*(f"{name}, ms {how}" for name in ENGINES), "of numba"]
    body += [*markdown(head, rows)]
    about = (
        "The index holds BM25 and the vectors of a model. Pairs are CPU milliseconds of a query, "
        "bm25s / index; the packaged model is not trained on these collections."
    )
    publish("Searching an index compared with bm25s", about, body, args)


if __name__ == "__main__":
    main()
