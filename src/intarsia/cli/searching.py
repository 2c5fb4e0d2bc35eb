"""`intarsia index` and `intarsia search`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.checks import one_of
from ..core.errors import ConfigError, DataError
from .begun_index import check_same, known_by, settings_file
from .completing import among
from .options import Json
from .search_page import serve_index
from .shell import note, say, show_json, show_table, whole_text
from .targets import hold, target

if TYPE_CHECKING:
    from ..models.retrieve.inference_free import InferenceFree
    from ..models.retrieve.sparse_index import SparseIndex

BLOCK = 1024  # documents that are encoded between two looks at the disk
FORMS = ("opensearch", "elasticsearch", "qdrant", "trec")
META, NO_STEMS = "meta.json", "none"  # of an index's folder; in the place of a language
DOCS = "A .jsonl file with id and text in each line, a folder in BEIR's layout, or a collection: "
NAMED = "naves, naves-nt, reverse-dictionary; of BEIR scifact, nfcorpus, fiqa, ... (the Hub)."
Save = Annotated[Path | None, typer.Option(help="The folder (or file) to write.")]


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="splade-tiny, a folder of `fit --task sparse-retrieval`, or a "
        "masked language model (a folder, or a name of the Hub).",
    ),
]
Append = Annotated[
    Path | None, typer.Option(help="Add the documents to this index of the same model.")
]
Stored = Annotated[
    str,
    typer.Option(
        help="Of weights: float16, float32, uint8.",
        autocompletion=among(("float16", "float32", "uint8")),
    ),
]
Language = Annotated[
    str, typer.Option(help="Of BM25's stems beside the model; none = the model alone.")
]
Megabytes = Annotated[
    int | None, typer.Option(help="Of the model's logits at a time: what bounds the memory.")
]
Form = Annotated[
    str | None,
    typer.Option(
        help=f"Write an index for another engine: {', '.join(FORMS)}.",
        autocompletion=among(FORMS),
    ),
]


def index(
    docs: Annotated[str, typer.Argument(help=f"{DOCS}{NAMED} With --form: an index's folder.")],
    model: Model = "splade-tiny",
    save: Save = None,
    append: Append = None,
    stored: Stored = "float16",
    prune: Annotated[float, typer.Option(help="Leave out weights below this share.")] = 0.0,
    language: Language = "english",
    megabytes: Megabytes = None,
    form: Form = None,
    as_json: Json = False,
) -> None:
    """Index documents by a sparse encoder and by BM25; what was stopped goes on where it stood.

    A collection with judged queries for validation has k1, b and the share of BM25 tuned by them.

    Example:  intarsia index docs.jsonl --save idx
    Example:  intarsia index new.jsonl --append idx
    Example:  intarsia index idx --form opensearch --save bulk.ndjson
    """  # fmt: skip
    if form is not None:
        _exported(Path(docs), form, save)
        return
    if (save is None) == (append is None):
        got, fix = "both or neither", "For example: --save idx"
        raise ConfigError("--save and --append", got=got, want="one of them", fix=fix)
    if append is not None and not (append / META).is_file():
        fix = "Begin one with --save."
        raise ConfigError(f"--append {append}", got="no index", want="an index's folder", fix=fix)
    hold(append) if append is not None else target(save, "idx")
    options = {"stored": stored, "prune": prune, "language": language}
    searchable = _indexed(docs, model, save, append, options, megabytes)
    folder, sizes = save or append, searchable.sizes()
    if as_json:
        lexical = searchable.lexical and vars(searchable.lexical)
        show_json({"folder": str(folder), "model": searchable.model, "lexical": lexical} | sizes)
        return
    say(
        f"{folder}: {sizes['documents']:,} documents, {sizes['mean']:.0f} tokens in each, "
        f"{sizes['bytes'] / 1e6:.1f} MB."
    )
    say(f'Next:  intarsia search {shlex.quote(str(folder))} "..."  (--serve: a page)')


def _indexed(
    docs: str,
    model: str,
    save: Path | None,
    append: Path | None,
    options: dict[str, Any],
    megabytes: int | None,
) -> SparseIndex:
    """Encode the documents and write the index, block by block.

    options: stored, prune and language, which have to be the same when a command is repeated.
    """
    from ..models.retrieve.lexical import Lexical

    language = options["language"]
    lexical = None if language == NO_STEMS else Lexical(language=language)
    note("Loading PyTorch and sentence-transformers.")
    from ..core.files import write_json
    from ..models.retrieve.sparse_index import SparseIndex, blocks

    # A new index grows beside --save, so that a half one is never taken for whole.
    partial = append or (save.with_name(f".{save.name}.part") if save else Path())
    begun = (partial / META).is_file()
    # Going on is only right for the same documents, encoder and settings.
    identity = {"docs": known_by(docs), "model": model} | options
    if save is not None and begun:
        check_same(partial, identity, save)
    encoder = _encoder(docs, model, options["prune"], megabytes, begun)
    if begun:
        searchable = SparseIndex.load(partial)
    else:
        details = {"model": encoder.name, "digest": encoder.digest, "stored": options["stored"]}
        searchable = SparseIndex(encoder.queries, **details, lexical=lexical)
    total = len(searchable)
    # an index that is going on has the first documents already; of an added file none
    documents = (row for row in _documents(docs) if append is not None or row[0] not in searchable)
    for part in blocks(documents, BLOCK):
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
    searchable.save(save or partial)
    if save is not None:
        import shutil

        shutil.rmtree(partial, ignore_errors=True)
        settings_file(partial).unlink(missing_ok=True)
    return searchable


def _encoder(
    docs: str, model: str, prune: float, megabytes: int | None, begun: bool
) -> InferenceFree:
    """Return the encoder, with idf of these documents unless it or the begun index has one."""
    from ..models.retrieve.inference_free import InferenceFree
    from ..models.retrieve.max_logits import MEGABYTES

    # A trained retriever has its idf; a plain language model takes it from the documents.
    is_saved = (Path(model) / "modules.json").is_file()
    texts = None if begun or is_saved else (text for _, text in _documents(docs))
    limit = MEGABYTES if megabytes is None else megabytes
    options: dict[str, Any] = {"prune": prune, "megabytes": limit, "report": note}
    return InferenceFree.from_pretrained(model, texts, **options)


def _tune(index: SparseIndex, docs: str) -> None:
    """Set how much BM25 counts by the validation queries of a collection, where it has some."""
    from ..data.collections import load_collection
    from ..models.retrieve.tuning import MOST_QUERIES, tune_lexical

    if Path(docs).is_file():
        return
    val = load_collection(docs, "val", report=note)
    if val.judged:
        weights = tune_lexical(index, val.judged, val.qrels)
        count = min(MOST_QUERIES, len(val.judged))
        note(f"By {count:,} queries of validation: share of BM25 {weights.share:g}, "
             f"k1 {weights.k1:g}, b {weights.b:g}.")  # fmt: skip


def _documents(docs: str) -> Iterator[tuple[str, str]]:
    from ..data.collections import load_collection, read_docs

    if Path(docs).is_file():
        return read_docs(docs)  # a line at a time
    return iter(load_collection(docs, report=note).docs.items())


def _exported(folder: Path, form: str, save: Path | None) -> None:
    one_of("--form", form, FORMS)
    if save is None:
        fix = "For example: --save bulk.ndjson"
        raise ConfigError("--save", got="nothing", want="the file to write", fix=fix)
    from ..models.retrieve.engines import export
    from ..models.retrieve.sparse_index import SparseIndex

    target(save, "bulk.ndjson")
    searchable = SparseIndex.load(folder)
    export(searchable, form, save)
    say(f"{save}: {len(searchable):,} documents for {form}.")


def search(
    folder: Annotated[Path, typer.Argument(help="An index of `intarsia index`.")],
    query: Annotated[str | None, typer.Argument(help="The query.", callback=whole_text)] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Documents to show.")] = 10,
    explain: Annotated[
        bool, typer.Option("--explain", help="What each token added to the score.")
    ] = False,
    queries: Annotated[
        Path | None, typer.Option(help="A file of queries, one a line or .jsonl with id and text.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="With --queries: a run file in TREC's format.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="A page to search, on this machine alone.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 = any.")] = 0,
    as_json: Json = False,
) -> None:
    """Search an index; no model runs, so that a query takes a fraction of a millisecond.

    Example:  intarsia search idx "forgiveness of enemies" --explain
    Example:  intarsia search idx --serve
    Example:  intarsia search idx --queries topics.txt --run run.trec -k 100
    """
    if (query is not None) + (queries is not None) + serve != 1:
        got, fix = "none or several", 'For example: intarsia search idx "forgiveness of enemies"'
        want = "one of a query, --queries and --serve"
        raise ConfigError("what to search for", got=got, want=want, fix=fix)
    if (queries is None) != (run is None):
        want, fix = "both or neither", "For example: --queries topics.txt --run run.trec"
        raise ConfigError("--queries and --run", got="one of them", want=want, fix=fix)
    if run is not None:
        target(run, "run.trec", option="--run", mark=" intarsia\n")
    from ..models.retrieve.showing import search_results
    from ..models.retrieve.sparse_index import SparseIndex

    index = SparseIndex.load(folder)
    if serve:
        serve_index(index, folder, port)
    elif queries is not None and run is not None:
        _run(index, queries, run, k)
    else:
        _show(search_results(index, query or "", k), explain, as_json)


def _show(answer: dict[str, Any], explain: bool, as_json: bool) -> None:
    if as_json:
        show_json(answer)
        return
    if not answer["hits"]:
        terms = answer["tokens"] or answer["stems"]
        say("No document: " + ("none has one of these words." if terms else "no known word."))
        return
    rows = []
    for hit in answer["hits"]:
        words = [f"{t['token']}{'~' if t['stem'] else '*' if t['expanded'] else ''} "
                 f"{t['score']:.2f}" for t in hit["terms"]]  # fmt: skip
        text = "".join(part for part, _ in hit["parts"])
        rows.append((hit["id"], f"{hit['score']:.2f}", ", ".join(words) if explain else text[:200]))
    show_table("", ("id", "score", "words" if explain else "text"), rows, right="score")
    if explain:
        say("* not a word of the text: the model read it into it.  ~ a stem, by BM25.")
    say(f"{answer['documents']:,} documents, {answer['milliseconds']:.1f} ms.")


def _run(index: SparseIndex, queries: Path, run: Path, k: int) -> None:
    from ..core.files import write_text
    from ..data.collections import read_queries
    from ..train.ranked import run_lines

    questions = read_queries(queries)
    lines = run_lines(index.run(questions, k))
    write_text(run, "\n".join(lines) + "\n")
    say(f"{run}: {len(lines):,} rows of {len(questions):,} queries.")
