"""Training of a retriever by teachers: KL of its scores to theirs, and a penalty on its vectors.

    fit_retriever(model, texts, pairs, LearnedRetrieval(teachers=("minilm", "bm25")), out="run")

sentence-transformers' trainer does the steps, with batches, schedule, checkpoints and resuming.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core import Card, Paper
from ...core.errors import DataError, MissingExtra
from ...core.schema import check, setting
from ...data.packages import announce
from .inference_free import InferenceFree, WeightedFlops, ensemble, sentence_transformers
from .max_logits import in_chunks
from .teachers import Bm25, teachers_of

Pairs = Sequence[tuple[str, Sequence[int]]]  # a query, and the numbers of documents that answer it
CANDIDATES = 60  # of BM25, from which negatives are drawn; the first few may answer unjudged
SKIPPED = 5
PENALTIES = ("flops", "idf")
Report = Callable[[str], None]


@dataclass(frozen=True)
class LearnedRetrieval:
    """Recipe of a retriever's training; `intarsia fit --task sparse-retrieval`.

    L = KL(softmax s_T || softmax s) + weight (t / T)^2 sum_p sum_j w_j (mean_q d_qpj)^2

    over a query's answer and `negatives` candidates of BM25; s_T: the ensemble of the teachers;
    d_qp: the document at place p of query q, the answer at place 0.
    Without teachers the target is the answer, against all documents of the batch (InfoNCE).
    The ramp (t / T)^2 lasts a third of the steps.
    Source: arXiv:2411.04403; the rates are ours. Not for documents that no query resembles: the
    result is then no better than BM25.
    """

    teachers: tuple[str, ...] = setting(
        ("minilm", "bm25"),
        "The names of the rankers in the ensemble that teaches; none = the answers alone.",
    )
    steps: int = setting(300, "The number T of training steps.", least=1)
    batch: int = setting(16, "The queries of a step.", least=1)
    negatives: int = setting(7, "The candidates of BM25 for each query.", least=1)
    lr: float = setting(
        5e-5,
        "AdamW's learning rate, after a warm-up over a tenth of the steps.",
        above=0,
        fix="Try 5e-5.",
    )
    penalty: str = setting(
        "flops",
        'The weights w of the penalty on tokens: "flops", w = 1; or "idf", w_j ~ 1 / idf_j^2 '
        "with mean 1, which thins out common tokens.",
        choices=PENALTIES,
    )
    weight: float = setting(
        0.0025, "The weight of that penalty after the ramp.", least=0, fix="Try 0.0025."
    )

    def __post_init__(self) -> None:
        check(self)


def draw_pairs(texts: Sequence[str], count: int, seed: int) -> list[tuple[str, list[int]]]:
    """Draw queries for documents that have none: 3 to 8 consecutive words of a document each.

    Returns pairs of a query and the number of the document that answers it.
    Raises: DataError where no document has 8 words.
    """
    draws = random.Random(seed)
    long = [number for number, text in enumerate(texts) if len(text.split()) >= 8]
    if not long:
        fix = "Give it longer documents, or queries with judgements (a folder in BEIR's layout)."
        raise DataError(
            "documents to draw queries from", got="none of 8 words", want="some", fix=fix
        )
    pairs: list[tuple[str, list[int]]] = []
    for _ in range(count):
        number = draws.choice(long)
        words = texts[number].split()
        size = draws.randint(3, 8)
        first = draws.randint(0, len(words) - size)
        pairs.append((" ".join(words[first : first + size]), [number]))
    return pairs


def fit_retriever(
    model: InferenceFree,
    texts: Sequence[str],
    pairs: Pairs,
    recipe: LearnedRetrieval | None = None,
    *,
    seed: int = 0,
    out: str | Path,
    resume: bool = False,
    report: Report = announce,
) -> InferenceFree:
    """Train a model's document encoder in place, and return the model.

    texts: the documents by number; pairs: queries and the numbers of their answers; recipe: loss,
      steps and rates, None = the default; seed: of all draws; out: a folder of checkpoints, from
      which `resume` continues; report: receives progress lines. During training idf is divided by
      its mean over the queries' tokens: the ranking stays, and the scores are as large as with
      a flat query; undivided they saturate the loss, and the documents lose terms.
    Raises: DataError for no pair; ConfigError, MissingExtra and AssetError for the teachers.
    """
    recipe = recipe or LearnedRetrieval()
    if not pairs:
        fix = "Give it judgements, or draw queries from the documents."
        raise DataError("pairs of query and answer", got="none", want="some", fix=fix)
    rows = _rows(texts, pairs, recipe, seed, report)
    library = sentence_transformers().sparse_encoder
    static = model.encoder[0].sub_modules["query"][0]
    weights = static.weight.data.clone()
    used = [w for query, _ in pairs for _, w in model.queries.of(query[:1000])]
    # divided by their mean while training alone, see the docstring
    static.weight.data /= float(np.mean(used)) if used else 1.0
    try:
        trainer = _trainer(library, model, rows, recipe, seed, Path(out))
        report(f"intarsia: {recipe.steps} steps of {recipe.batch} queries")
        begun = resume and any(Path(out).glob("checkpoint-*"))
        with in_chunks(model.documents, model.megabytes):
            trainer.train(resume_from_checkpoint=begun or None)
    finally:
        static.weight.data.copy_(weights)
    model.encoder.eval()
    return model


def _rows(
    texts: Sequence[str], pairs: Pairs, recipe: LearnedRetrieval, seed: int, report: Report
) -> Mapping[str, list[Any]]:
    """Build the columns of a training set: query, answer, negatives, and the teachers' scores."""
    draws = random.Random(seed)
    total = recipe.steps * recipe.batch
    order: list[int] = []
    # whole epochs in random order, cut at the number of queries needed
    while len(order) < total:
        order += draws.sample(range(len(pairs)), len(pairs))
    selected = [pairs[i] for i in order[:total]]
    queries = [query for query, _ in selected]
    report(f"intarsia: candidates of {len(set(queries)):,} queries, by BM25")
    search = Bm25(texts)
    distinct = list(dict.fromkeys(queries))
    numbers, _ = search.retrieve(distinct, CANDIDATES)
    near = dict(zip(distinct, numbers.tolist(), strict=True))
    # (queries, 1 + negatives): the answer first
    candidates = np.array(
        [
            _draw_candidates(near[query], answers, len(texts), recipe.negatives, draws)
            for query, answers in selected
        ]
    )
    columns: dict[str, list[Any]] = {"query": queries}
    for j in range(candidates.shape[1]):
        columns[f"document_{j}"] = [texts[n] for n in candidates[:, j]]
    if not recipe.teachers:
        return columns
    report(f"intarsia: scores of {', '.join(recipe.teachers)}")
    teachers = teachers_of(recipe.teachers, texts, report=report)
    # the label of each row: the teachers' joint scores of its documents
    scores = ensemble([teacher.scores(queries, candidates) for teacher in teachers.values()])
    return columns | {"label": scores.tolist()}


def _draw_candidates(
    near: Sequence[int], answers: Sequence[int], count: int, negatives: int, draws: random.Random
) -> list[int]:
    """Draw one document that answers a query, and some that do not."""
    answer_set = set(answers)
    hard = [n for n in near[SKIPPED:] if n not in answer_set]
    drawn = draws.sample(hard, min(negatives, len(hard)))
    while len(drawn) < negatives:
        drawn.append(draws.randrange(count))  # in a tiny collection one may be drawn twice
    return [draws.choice(list(answers)), *drawn]


def _trainer(
    library: Any,
    model: InferenceFree,
    columns: Mapping[str, list[Any]],
    recipe: LearnedRetrieval,
    seed: int,
    out: Path,
) -> Any:
    try:
        from datasets import Dataset
    except ImportError as error:
        raise MissingExtra("datasets", "search") from error
    losses = library.losses
    # the answer and the negatives, each a column
    names = [name for name in columns if name.startswith("document")]
    loss = losses.SpladeLoss(
        model.encoder,
        losses.SparseDistillKLDivLoss(model.encoder, temperature=1.0)
        if recipe.teachers
        else losses.SparseMultipleNegativesRankingLoss(model.encoder),
        document_regularizer_weight=recipe.weight,
        query_regularizer_weight=0.0,
        document_regularizer=WeightedFlops(penalty_weights(model, recipe.penalty), len(names)),
        query_regularizer=WeightedFlops(torch.zeros(1)),  # queries are a table: no penalty
    )
    arguments = library.SparseEncoderTrainingArguments(
        output_dir=str(out),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch,
        learning_rate=recipe.lr,
        warmup_steps=max(1, recipe.steps // 10),
        seed=seed,
        data_seed=seed,
        save_steps=max(10, recipe.steps // 5),
        save_total_limit=1,
        # without teachers a document that is twice in a batch would be its own negative
        batch_sampler="batch_sampler" if recipe.teachers else "no_duplicates",
        router_mapping={"query": "query"} | dict.fromkeys(names, "document"),
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        use_cpu=True,
    )
    data = Dataset.from_dict(dict(columns))
    return library.SparseEncoderTrainer(
        model=model.encoder, args=arguments, train_dataset=data, loss=loss
    )


def penalty_weights(model: InferenceFree, penalty: str) -> torch.Tensor:
    """Return the weight of each token in the penalty, (V,).

    penalty: "flops", 1 for each, or "idf", in proportion to 1 / idf^2.
    """
    weights = torch.from_numpy(model.queries.weights)
    if penalty == "flops":
        return torch.ones_like(weights)
    # a token in every document has an idf near 0: without a floor it would be all of the penalty
    inverse = weights.clamp_min(0.1).pow(-2)
    return inverse / inverse.mean()


CARDS = (
    Card(
        "inference_free",
        kind="model",
        config=LearnedRetrieval,
        paper=Paper(
            "2411.04403",
            2024,
            "Towards Competitive Search Relevance For Inference-Free Learned Sparse Retrievers",
        ),
        tiny={"teachers": ("bm25",), "steps": 2, "batch": 2, "negatives": 1},
        summary="Documents as sparse vectors of a model, queries as idf: no model when one "
        "searches.",
        family="retrieval",
        names=("inference-free learned sparse retrieval", "IDF-aware penalty"),
        exceptions={
            "is_an_estimator": "queries and documents are no table; fit_retriever trains it"
        },
    ),
)
