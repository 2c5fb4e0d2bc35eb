"""The writing of an index by `intarsia index`: documents are encoded and kept block by block."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ConfigError, DataError
from ..core.files import read_json
from ..core.folders import INDEX
from ..data.collections import CORPUS, check_collection, load_collection
from .shell import note, warn

if TYPE_CHECKING:
    from ..areas.search.inference_free import InferenceFree
    from ..areas.search.sparse_index import SparseIndex
    from ..data.documents import Document


def begun_by(out: Path) -> Path:
    """Return the folder next to --out in which an index grows until it is whole."""
    return out.with_name(f".{out.name}.part")


def settings_file(partial: Path) -> Path:
    """Return the file next to a begun index that has its documents and options."""
    return partial.with_name(f"{partial.name}.json")


def known_by(docs: str) -> list[Any]:
    """Return what identifies the documents without reading them: path, size and time of the file.

    docs: a file, a folder, or the name of a collection, which identifies itself.
    """
    path = Path(docs)
    # of a folder in BEIR's layout the documents are what matters
    file = path / "corpus.jsonl" if path.is_dir() else path
    if not file.is_file():
        return [docs]
    # Documents may be gigabytes: their size and time are compared, not a hash of them.
    return [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns]


def check_same(partial: Path, settings: dict[str, Any], out: Path) -> None:
    """Check that an unfinished index was begun by the same command as this one.

    partial: folder of the blocks encoded so far. settings: documents and options of this command.
    out: the folder of the finished index, for the error.
    Raises: ConfigError.
    """
    try:
        before = read_json(settings_file(partial))
    except (OSError, ValueError):
        # A settings file that cannot be read belongs to no known command: it is refused as another.
        before = None
    if before != settings:
        got = "an index that was begun of other documents, or with other options"
        fix = f"Repeat that command, or begin anew: rm -r {shlex.quote(str(partial))}"
        raise ConfigError(f"--out {out}", got=got, want="the same command again", fix=fix)


# documents that are encoded, or only cut into stems, between two looks at the disk
BLOCK, MANY = 1024, 2**15
NO_STEMS = "none"  # in the place of a language
DEFAULT_MODEL = "splade-tiny"


def write_index(
    docs: str,
    model: str | None,
    out: Path | None,
    append: Path | None,
    options: dict[str, Any],
    *,
    update: bool = False,
    columns: Mapping[str, str] | None = None,
    megabytes: int | None = None,
) -> SparseIndex:
    """Encode documents and write the index, block by block, so that a stopped command can resume.

    docs: a file or a collection's name. model: the encoder, None = the index's own, or splade-tiny.
    out: the new index, or append: one that gets the documents. options: stored, prune, language,
    the same when the command is repeated. update: documents of append with these ids are replaced.
    columns: names of the columns of id and text. megabytes: memory for a block of logits, None =
    the default.
    """
    from ..areas.search.lexical import NO_MODEL, Lexical, StemsAlone

    model = model or (_model_of(append) if append else DEFAULT_MODEL)
    language, alone = options["language"], model == NO_MODEL
    if alone and language == NO_STEMS:
        want, fix = "a model, or stems", "Leave out one of them."
        raise ConfigError("--model and --language", got="none for both", want=want, fix=fix)
    lexical = None if language == NO_STEMS else Lexical(language=language)
    if lexical is not None and alone:
        lexical = replace(lexical, share=1.0)
    # the first rows are read before a model is: a file of another form is refused at once
    check_collection(docs)
    if Path(docs).is_file() and next(_documents(docs, columns), None) is None:
        raise _no_document(docs)
    if not alone:
        note("Loading PyTorch and sentence-transformers.")
    from ..areas.search.sparse_index import SparseIndex
    from ..core.files import write_json
    from ..data.documents import in_blocks

    # A new index grows next to --out, so that a half one is never taken for whole.
    partial = append or (begun_by(out) if out else Path())
    begun = (partial / INDEX).is_file()
    # Going on is only right for the same documents, encoder and settings.
    identity = {"docs": known_by(docs), "model": model} | options
    identity |= {"columns": dict(columns)} if columns else {}
    if out is not None and begun:
        check_same(partial, identity, out)
    encoder = StemsAlone() if alone else _encoder(docs, model, options["prune"], megabytes, begun)
    if begun:
        searchable = SparseIndex.load(partial)
    else:
        details = {"model": encoder.name, "digest": encoder.digest, "stored": options["stored"]}
        searchable = SparseIndex(encoder.queries, **details, lexical=lexical)
    add = searchable.update if update else searchable.append
    # an index that is going on has the first documents already; of an added file none
    total = len(searchable)
    if append is not None and not update and _has_all(searchable, docs, columns):
        warn(f"{append} has every document of {docs} already; nothing was added.")
        return searchable
    documents = (
        document
        for document in _documents(docs, columns)
        if append is not None or document.id not in searchable
    )
    for part in in_blocks(documents, MANY if alone else BLOCK):
        add(encoder, part)
        if append is None:  # documents are added all or none: the command can be repeated
            write_json(settings_file(partial), identity)
            searchable.save(partial)
        total += len(part)
        note(f"{total:,} documents")
    if not len(searchable):
        raise _no_document(docs)
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


def _no_document(docs: str) -> DataError:
    return DataError(f"documents of {docs}", got="none", want="some", fix="Check the file.")


def delete_documents(folder: Path, ids: Sequence[str]) -> SparseIndex:
    """Delete documents of a saved index, all of them or, for an unknown id, none.

    folder: of the index; ids: of the documents.  Raises: DataError; CheckpointError.
    """
    from ..areas.search.sparse_index import SparseIndex

    searchable = SparseIndex.load(folder).delete(ids).merge()
    searchable.save(folder)
    return searchable


def _model_of(folder: Path) -> str:
    from ..areas.search.index_folder import read_index

    return read_index(folder).metadata["model"].partition(", pruned at ")[0]


def _has_all(searchable: SparseIndex, docs: str, columns: Mapping[str, str] | None) -> bool:
    """Return whether an index has the ids of all documents, as after a command that was killed."""
    return all(document.id in searchable for document in _documents(docs, columns))


def _encoder(
    docs: str, model: str, prune: float, megabytes: int | None, begun: bool
) -> InferenceFree:
    """Load the encoder; a plain language model gets word frequencies from the documents."""
    from ..areas.search.inference_free import InferenceFree
    from ..areas.search.max_logits import MEGABYTES

    # A trained retriever has its idf; a plain language model takes it from the documents.
    is_saved = (Path(model) / "modules.json").is_file()
    texts = None if begun or is_saved else (document.text for document in _documents(docs))
    limit = MEGABYTES if megabytes is None else megabytes
    options: dict[str, Any] = {"prune": prune, "megabytes": limit, "report": note}
    return InferenceFree.from_pretrained(model, texts, **options)


def _tune(index: SparseIndex, docs: str) -> None:
    """Tune k1, b and the share of BM25 in a score, by a collection's validation queries, if any."""
    from ..areas.search.tuning import MOST_QUERIES, tune_lexical

    if Path(docs).is_file():
        return
    # the queries for validation, not the test's
    val = load_collection(docs, "val", report=note)
    if val.judged:
        weights = tune_lexical(index, val.judged, val.qrels)
        count = min(MOST_QUERIES, len(val.judged))
        note(
            f"By {count:,} queries of validation: share of BM25 {weights.share:g}, "
            f"k1 {weights.k1:g}, b {weights.b:g}."
        )


def _documents(docs: str, columns: Mapping[str, str] | None = None) -> Iterator[Document]:
    """Yield the documents of a file, a folder in BEIR's layout, or a collection."""
    from ..data.documents import as_documents, read_documents

    path = Path(docs)
    file = path / CORPUS if path.is_dir() else path
    if file.is_file():
        return read_documents(file, columns)
    return as_documents(load_collection(docs, report=note).docs.items())
