"""The index beside bm25s: CPU time of a query, by the number of documents.

    python benchmarks/search.py                       # the table on the terminal
    python benchmarks/search.py --write               # and into docs/benchmarks/search.md
    python benchmarks/search.py --index FOLDER        # of `intarsia index reverse-dictionary`
    python benchmarks/search.py --docs 300 --reps 1   # a smoke test

Documents are the entries of a dictionary (GCIDE), queries the glosses of another (WordNet): real
texts, 106,562 of them. Without --index a document's vector is log(1 + count) of its own tokens, for
encoding 1e5 documents by a model takes an hour; a learned vector has about twice as many tokens.
Both sides tokenize, score and return ten documents, on one thread, in one interleaved run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from frame import interleaved, markdown, parser, publish, read

from intarsia.data.collections import load_collection
from intarsia.models.retrieve.inference_free import MODELS, packaged
from intarsia.models.retrieve.postings import Postings
from intarsia.models.retrieve.query_weights import QueryWeights, idf
from intarsia.models.retrieve.segment import Segment
from intarsia.models.retrieve.sparse_index import SparseIndex
from intarsia.models.retrieve.teachers import Bm25

BAR = 1.1  # of bm25s' CPU time


class OwnTokens:
    """log(1 + count) of each token of a document; queries by idf."""

    name, digest = "own tokens", "0" * 64

    def __init__(self, texts: Sequence[str]) -> None:
        folder = packaged(MODELS, "splade-tiny") or ""
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


def first(index: SparseIndex, count: int) -> SparseIndex:
    """The first documents of an index."""
    whole = index.segments[0]
    made = SparseIndex(index.queries, model=index.model, digest=index.digest)
    rows = whole.postings.rows()[:count]
    made.segments = [Segment(Postings.of(rows), whole.ids[:count], [])]
    return made


def main() -> None:
    made = parser(__doc__, threads=1, reps=5)
    made.add_argument("--docs", default="1000,10000,100000")
    made.add_argument("--index", type=Path)
    args = read(made)
    found = load_collection("reverse-dictionary")
    counts = [int(word) for word in args.docs.split(",")]
    names, texts = (list(of)[: max(counts)] for of in (found.docs, found.docs.values()))
    queries = list(found.queries.values())[:500]
    if args.index is not None:
        whole = SparseIndex.load(args.index).merge()
    else:
        own = OwnTokens(texts)
        whole = SparseIndex.build(own, zip(names, texts, strict=True), texts=False)
    rows, points = [], []
    for count in counts:
        index, lexical = first(whole, count), Bm25(texts[:count])
        jobs = {
            "index": lambda index=index: index.search_many(queries),
            "two phases": lambda index=index: index.search_many(queries, two_phase=5),
            "bm25s": lambda lexical=lexical: lexical.found(queries, 10),
        }
        spent = interleaved(jobs, args.reps)
        ms = {name: 1e3 * one.cpu / len(queries) for name, one in spent.items()}
        ratio = ms["index"] / ms["bm25s"]
        points.append((count, ms["index"], ms["bm25s"]))
        verdict = "met" if ratio <= BAR else "not met"
        cells = [f"{count:,}", f"{index.sizes()['mean']:.0f}"]
        cells += [f"{ms[name]:.3f}" for name in ("bm25s", "index", "two phases")]
        rows.append([*cells, f"{ratio:.2f}", verdict])
    head = ["documents", "tokens each", "bm25s, ms", "index, ms", "two phases, ms", "ratio"]
    body = markdown([*head, f"at most {BAR}"], rows)
    if len(points) > 1:
        (n, a, b), (m, c, d) = points[-2:]
        slopes = [math.log(y / x) / math.log(m / n) for x, y in ((a, c), (b, d))]
        more = [1e7 / m, (1e7 / m) ** slopes[0] * c, (1e7 / m) ** slopes[1] * d]
        body += ["", f"Between the last two rows a query's time grows as documents ^ "
                 f"{slopes[0]:.2f} (bm25s {slopes[1]:.2f}); at 1e7 documents that would be "
                 f"{more[1]:.0f} ms (bm25s {more[2]:.0f})."]  # fmt: skip
    about = (
        f"CPU milliseconds of one query, of {len(queries)}; documents are encoded as {whole.model}."
    )
    publish("Searching an index beside bm25s", about, body, args)


if __name__ == "__main__":
    main()
