"""`intarsia index` and `intarsia search`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.checks import one_of
from ..core.errors import ConfigError
from .begun_index import begun_by
from .completing import among
from .index_steps import META, write_index
from .options import Json, Threads, use_threads, writes
from .search_page import serve_index
from .shell import say, show_json, show_table, whole_text
from .targets import finished_names, hold, target

if TYPE_CHECKING:
    from ..models.retrieve.sparse_index import SparseIndex

FORMS = ("opensearch", "elasticsearch", "qdrant", "trec")
DOCS = (
    "Documents: a .jsonl file with id and text in each line, a folder in BEIR's layout, or a "
    "collection: "
)
NAMED = "naves, naves-nt, reverse-dictionary; of BEIR scifact, nfcorpus, fiqa, ... (the Hub)."
Out = Annotated[Path | None, writes("The folder to write; with --form the file.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Sparse encoder: splade-tiny, a folder of `fit --task sparse-retrieval`, or a "
        "masked language model (a folder, or a name of the Hub); none = BM25 alone.",
    ),
]
Append = Annotated[
    Path | None, typer.Option(help="Add the documents to this index of the same model.")
]
Stored = Annotated[
    str,
    typer.Option(
        help="Type of the stored weights: float16, float32, uint8.",
        autocompletion=among(("float16", "float32", "uint8")),
    ),
]
Language = Annotated[
    str, typer.Option(help="Language of BM25's stems beside the model; none = the model alone.")
]
Megabytes = Annotated[
    int | None, typer.Option(help="Megabytes of logits at a time, which bound the memory.")
]
Form = Annotated[
    str | None,
    typer.Option(
        help=f"Engine in whose form an index is written: {', '.join(FORMS)}.",
        autocompletion=among(FORMS),
    ),
]


def index(
    docs: Annotated[str, typer.Argument(help=f"{DOCS}{NAMED} With --form: an index's folder.")],
    model: Model = "splade-tiny",
    out: Out = None,
    append: Append = None,
    stored: Stored = "float16",
    prune: Annotated[float, typer.Option(help="Leave out weights below this share.")] = 0.0,
    language: Language = "english",
    megabytes: Megabytes = None,
    form: Form = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Index documents by a sparse encoder and BM25; called again, it goes on where it stopped.

    A collection with judged queries for validation has k1, b and the share of BM25 tuned by them.
    With `--model none` no model reads the documents: 100,000 of them take seconds.

    Example:  intarsia index docs.jsonl --out idx
    Example:  intarsia index new.jsonl --append idx
    Example:  intarsia index idx --form opensearch --out bulk.ndjson
    """  # fmt: skip
    use_threads(threads)
    if form is not None:
        _exported(Path(docs), form, out, as_json)
        return
    if (out is None) == (append is None):
        got, fix = "both or neither", "For example: --out idx"
        raise ConfigError("--out and --append", got=got, want="one of them", fix=fix)
    if append is not None and not (append / META).is_file():
        fix = "Begin one with --out."
        raise ConfigError(f"--append {append}", got="no index", want="an index's folder", fix=fix)
    if append is not None:
        hold(append)
    else:
        names = [] if out is None else finished_names(out, begun_by(out), META)
        target(out, "idx", written_names=names)
    # a stopped command may only go on with the same ones
    options = {"stored": stored, "prune": prune, "language": language}
    searchable = write_index(docs, model, out, append, options, megabytes)
    folder, sizes = out or append, searchable.sizes()
    if as_json:
        lexical = searchable.lexical and vars(searchable.lexical)
        show_json({"folder": str(folder), "model": searchable.model, "lexical": lexical} | sizes)
        return
    say(
        f"{folder}: {sizes['documents']:,} documents, {sizes['mean']:.0f} tokens in each, "
        f"{sizes['bytes'] / 1e6:.1f} MB."
    )
    say(f'Next:  intarsia search {shlex.quote(str(folder))} "..."  (--serve: a page)')


def _exported(folder: Path, form: str, out: Path | None, as_json: bool) -> None:
    """Write an index in the form that another search engine reads.

    folder: of the index. form: one of FORMS; out: the file, None for bulk.ndjson. as_json: print a
    record in place of a line.
    Raises: UnknownName.
    """
    one_of("--form", form, FORMS)
    from ..models.retrieve.engines import export
    from ..models.retrieve.sparse_index import SparseIndex

    out = target(out, "bulk.ndjson")
    searchable = SparseIndex.load(folder)
    export(searchable, form, out)
    if as_json:
        show_json({"file": str(out), "form": form, "documents": len(searchable)})
        return
    say(f"{out}: {len(searchable):,} documents for {form}.")


def search(
    folder: Annotated[Path, typer.Argument(help="Index: a folder of `intarsia index`.")],
    query: Annotated[str | None, typer.Argument(help="The query.", callback=whole_text)] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Documents to show.")] = 10,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the score that each token added.")
    ] = False,
    queries: Annotated[
        Path | None, typer.Option(help="File of queries, one a line or .jsonl with id and text.")
    ] = None,
    out: Annotated[
        Path | None, writes("The run file to write, in TREC's format, for --queries.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve a page to search, on this machine alone.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 = any.")] = 0,
    as_json: Json = False,
) -> None:
    """Search an index; no model runs, so that a query takes a fraction of a millisecond.

    Example:  intarsia search idx "forgiveness of enemies" --explain
    Example:  intarsia search idx --serve
    Example:  intarsia search idx --queries topics.txt --out run.trec -k 100
    """
    if (query is not None) + (queries is not None) + serve != 1:
        got, fix = "none or several", 'For example: intarsia search idx "forgiveness of enemies"'
        want = "one of a query, --queries and --serve"
        raise ConfigError("what to search for", got=got, want=want, fix=fix)
    if (queries is None) != (out is None):
        want, fix = "both or neither", "For example: --queries topics.txt --out run.trec"
        raise ConfigError("--queries and --out", got="one of them", want=want, fix=fix)
    if out is not None:
        target(out, "run.trec", mark=" intarsia\n")
    from ..models.retrieve.showing import search_results
    from ..models.retrieve.sparse_index import SparseIndex

    index = SparseIndex.load(folder)
    if serve:
        serve_index(index, folder, port)
    elif queries is not None and out is not None:
        _run(index, queries, out, k, as_json)
    else:
        _show(search_results(index, query or "", k), explain, as_json)


def _show(answer: dict[str, Any], explain: bool, as_json: bool) -> None:
    """Print the documents found for a query as a table.

    answer: of `search_results`. explain: show each document's words with their shares of the score.
    as_json: print the answer as JSON.
    """
    if as_json:
        show_json(answer)
        return
    if not answer["hits"]:
        terms = answer["tokens"] or answer["stems"]
        say("No document: " + ("none has one of these words." if terms else "no known word."))
        return
    # one row for each document
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


def _run(index: SparseIndex, queries: Path, out: Path, k: int, as_json: bool) -> None:
    """Search for every query of a file, and write the documents found as a TREC run file.

    queries: the file; out: the file to write; k: documents for each query; as_json: print a record.
    """
    from ..core.files import write_text
    from ..data.collections import read_queries
    from ..train.ranked import run_lines

    questions = read_queries(queries)
    lines = run_lines(index.run(questions, k))
    write_text(out, "\n".join(lines) + "\n")
    if as_json:
        show_json({"file": str(out), "rows": len(lines), "queries": len(questions)})
        return
    say(f"{out}: {len(lines):,} rows of {len(questions):,} queries.")
