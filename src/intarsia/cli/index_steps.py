"""The writing of an index by `intarsia index`: documents are encoded and kept block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, DataError
from .begun_index import begun_by, check_same, known_by, settings_file
from .shell import note, warn

if TYPE_CHECKING:
    from ..models.retrieve.inference_free import InferenceFree
    from ..models.retrieve.sparse_index import SparseIndex

# documents that are encoded, or only cut into stems, between two looks at the disk
BLOCK, MANY = 1024, 2**15
META, NO_STEMS = "meta.json", "none"  # of an index's folder; in the place of a language


def write_index(
    docs: str,
    model: str,
    out: Path | None,
    append: Path | None,
    options: dict[str, Any],
    megabytes: int | None,
) -> SparseIndex:
    """Encode documents and write the index, block by block, so that a stopped command can go on.

    docs: a file or a collection's name. model: the encoder. out: the new index, or append: one that
    gets the documents. options: stored, prune, language, the same when the command is repeated.
    megabytes: memory for a block of logits, None = the default.
    """
    from ..models.retrieve.lexical import NO_MODEL, Lexical, StemsAlone

    language, alone = options["language"], model == NO_MODEL
    if alone and language == NO_STEMS:
        want, fix = "a model, or stems", "Leave out one of them."
        raise ConfigError("--model and --language", got="none for both", want=want, fix=fix)
    lexical = None if language == NO_STEMS else Lexical(language=language)
    if lexical is not None and alone:
        lexical = replace(lexical, share=1.0)
    if not alone:
        note("Loading PyTorch and sentence-transformers.")
    from ..core.files import write_json
    from ..models.retrieve.sparse_index import SparseIndex, blocks

    # A new index grows beside --out, so that a half one is never taken for whole.
    partial = append or (begun_by(out) if out else Path())
    begun = (partial / META).is_file()
    # Going on is only right for the same documents, encoder and settings.
    identity = {"docs": known_by(docs), "model": model} | options
    if out is not None and begun:
        check_same(partial, identity, out)
    encoder = StemsAlone() if alone else _encoder(docs, model, options["prune"], megabytes, begun)
    if begun:
        searchable = SparseIndex.load(partial)
    else:
        details = {"model": encoder.name, "digest": encoder.digest, "stored": options["stored"]}
        searchable = SparseIndex(encoder.queries, **details, lexical=lexical)
    # an index that is going on has the first documents already; of an added file none
    total = len(searchable)
    if append is not None and _has_all(searchable, docs):
        warn(f"{append} has every document of {docs} already; nothing was added.")
        return searchable
    documents = (row for row in _documents(docs) if append is not None or row[0] not in searchable)
    for part in blocks(documents, MANY if alone else BLOCK):
        searchable.append(encoder, part)
        if append is None:  # documents are added all or none: the command can be repeated
            write_json(settings_file(partial), identity)
            searchable.save(partial)
        total += len(part)
        note(f"{total:,} documents")
    if not len(searchable):
        raise DataError(f"documents of {docs}", got="none", want="some", fix="Check the file.")
    # Blocks were written one by one; a search wants one sorted list for each token.
    searchable.merge()
    # An index that is added to keeps the weights it was tuned with.
    if append is None and lexical is not None:
        _tune(searchable, docs)
    searchable.save(out or partial)
    if out is not None:
        import shutil

        shutil.rmtree(partial, ignore_errors=True)
        settings_file(partial).unlink(missing_ok=True)
    return searchable


def _has_all(searchable: SparseIndex, docs: str) -> bool:
    """Return whether an index has the ids of all documents, as after a command that was killed."""
    return all(name in searchable for name, _ in _documents(docs))


def _encoder(
    docs: str, model: str, prune: float, megabytes: int | None, begun: bool
) -> InferenceFree:
    """Load the encoder; a plain language model gets word frequencies from the documents.

    docs: a file or the name of a collection. model: its name or folder. prune: share of a text's
    largest weight below which weights are left out. megabytes: memory for a block of logits. begun:
    True if an unfinished index is continued, which has the frequencies stored already.
    """
    from ..models.retrieve.inference_free import InferenceFree
    from ..models.retrieve.max_logits import MEGABYTES

    # A trained retriever has its idf; a plain language model takes it from the documents.
    is_saved = (Path(model) / "modules.json").is_file()
    texts = None if begun or is_saved else (text for _, text in _documents(docs))
    limit = MEGABYTES if megabytes is None else megabytes
    options: dict[str, Any] = {"prune": prune, "megabytes": limit, "report": note}
    return InferenceFree.from_pretrained(model, texts, **options)


def _tune(index: SparseIndex, docs: str) -> None:
    """Tune k1, b and the share of BM25 in a score, by a collection's validation queries, if any.

    index: is changed in place; docs: a file, which has no queries, or the name of a collection.
    """
    from ..data.collections import load_collection
    from ..models.retrieve.tuning import MOST_QUERIES, tune_lexical

    if Path(docs).is_file():
        return
    # the queries for validation, not those of the test
    val = load_collection(docs, "val", report=note)
    if val.judged:
        weights = tune_lexical(index, val.judged, val.qrels)
        count = min(MOST_QUERIES, len(val.judged))
        note(f"By {count:,} queries of validation: share of BM25 {weights.share:g}, "
             f"k1 {weights.k1:g}, b {weights.b:g}.")  # fmt: skip


def _documents(docs: str) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of each document.

    docs: a file with one a line, or the name of a collection.
    """
    from ..data.collections import load_collection, read_docs

    if Path(docs).is_file():
        return read_docs(docs)  # a line at a time
    return iter(load_collection(docs, report=note).docs.items())
