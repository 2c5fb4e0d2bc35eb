"""`intarsia index` and `intarsia search`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import ConfigError, DataError
from ..core.folders import INDEX, check_index
from ..core.schema import setting
from ..data.documents import KINDS
from ..data.event_columns import parse_columns
from .declared import with_options
from .early import check_file
from .index_steps import begun_by, delete_documents, write_index
from .options import Json, Page, Threads, use_threads, writes
from .shell import note, say, show_json, show_table, whole_text
from .targets import finished_names, hold, target

if TYPE_CHECKING:
    from ..areas.search.sparse_index import SparseIndex

STORED = ("float16", "float32", "uint8")
FORMS = ("opensearch", "elasticsearch", "qdrant", "trec")
DOCS = (
    "Documents: a .jsonl, CSV or Parquet file with id, text and what else is known of each, a "
    "folder in BEIR's layout, or a collection: "
)
NAMED = "naves, naves-nt, reverse-dictionary; of BEIR scifact, nfcorpus, fiqa, ... (the Hub)."
WIDEST = 40  # characters of a field's value in a table


@dataclass(frozen=True)
class Indexing:
    """Settings of an index; a stopped command resumes with the same ones alone."""

    model: str | None = setting(
        None,
        "Sparse encoder: splade-tiny (where nothing is said), a folder of `fit --task "
        "sparse-retrieval`, or a masked language model (a folder, or a name of the Hub); none = "
        "BM25 alone. An index that gets documents has its own.",
        short="-m",
        offers=("splade-tiny", "none"),
    )
    columns: str | None = setting(
        None, "Columns of id and text that have other names: id=sku,text=beschreibung."
    )
    stored: str = setting("float16", "Type of the stored weights.", choices=STORED)
    prune: float = setting(
        0.0, "Leave out weights below this share.", least=0, most=1, fix="Try 0.1; 0 keeps all."
    )
    language: str = setting(
        "english", "Language of BM25's stems beside the model; none = the model alone."
    )
    megabytes: int | None = setting(
        None, "Megabytes of logits at a time, which bound the memory.", least=1
    )


@dataclass(frozen=True)
class Growing:
    """Changes of an index that is there already."""

    append: Path | None = setting(None, "Add the documents to this index.")
    update: Path | None = setting(
        None, "Add the documents to this index, in place of those with the same ids."
    )
    delete: tuple[str, ...] = setting(
        (), "Delete the document of this id from the index DOCS; may be repeated."
    )
    form: str | None = setting(None, "Engine in whose form an index is written.", choices=FORMS)


@dataclass(frozen=True)
class Searching:
    """Settings of a search: filters, number and form of its results."""

    k: int = setting(10, "Documents to show.", least=1, flag="-k")
    filters: tuple[str, ...] = setting(
        (),
        "Only documents whose field meets this: key=value, !=, <, <=, >, >=; may be "
        "repeated. Quote it: 'price<20'.",
        flag="--filter",
    )
    explain: bool = setting(False, "Show the score that each token added, too.")
    queries: Path | None = setting(None, "File of queries, one a line or .jsonl with id and text.")


@with_options()
def index(
    docs: Annotated[
        str, typer.Argument(help=f"{DOCS}{NAMED} With --form or --delete: an index's folder.")
    ],
    indexing: Indexing,
    growing: Growing,
    out: Annotated[Path | None, writes("The folder to write; with --form the file.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Index documents by a sparse encoder and BM25; called again, it resumes where it stopped.

    A collection with judged queries for validation has k1, b and the share of BM25 tuned by them.
    With `--model none` no model reads the documents: 100,000 of them take seconds.

    Example:  intarsia index docs.jsonl --out idx
    Example:  intarsia index new.jsonl --append idx
    Example:  intarsia index changed.jsonl --update idx
    Example:  intarsia index idx --delete a1 --delete a2
    Example:  intarsia index idx --form opensearch --out bulk.ndjson
    """
    use_threads(threads)
    if growing.form is not None:
        _exported(Path(docs), growing.form, out, as_json)
        return
    append, update = growing.append, growing.update
    actions = {"--out": out, "--append": append, "--update": update, "--delete": growing.delete}
    named = [option for option, value in actions.items() if value]
    if len(named) != 1:
        got, fix = ", ".join(named) or "none of them", "For example: --out idx"
        raise ConfigError(" and ".join(actions), got=got, want="one of them", fix=fix)
    if growing.delete:
        _deleted(Path(docs), growing.delete, as_json)
        return
    grown = append or update
    if grown is not None:
        # the other order, idx --update docs.jsonl, can only mean the same
        if (Path(docs) / INDEX).is_file() and grown.is_file():
            docs, grown = str(grown), Path(docs)
        if not (grown / INDEX).is_file():
            fix, want = "Begin one with --out.", "an index's folder"
            raise ConfigError(f"{named[0]} {grown}", got="no index", want=want, fix=fix)
        hold(grown)
    else:
        names = [] if out is None else finished_names(out, begun_by(out), INDEX)
        target(out, "idx", written_names=names)
    # a stopped command may only resume with the same ones
    options = {name: getattr(indexing, name) for name in ("stored", "prune", "language")}
    reading: dict[str, Any] = {"columns": parse_columns(indexing.columns, KINDS)}
    reading |= {"megabytes": indexing.megabytes, "update": update is not None}
    searchable = write_index(docs, indexing.model, out, grown, options, **reading)
    _show_index(searchable, out or grown, as_json)


def _show_index(searchable: SparseIndex, folder: Path | None, as_json: bool) -> None:
    sizes = searchable.sizes()
    if as_json:
        lexical = searchable.lexical and vars(searchable.lexical)
        show_json({"folder": str(folder), "model": searchable.model, "lexical": lexical} | sizes)
        return
    # of BM25 alone there are stems and no tokens of a model
    tokens = f"{sizes['mean']:.0f} tokens in each, " if sizes["postings"] else ""
    say(f"{folder}: {sizes['documents']:,} documents, {tokens}{sizes['bytes'] / 1e6:.1f} MB.")
    say(f'Next:  intarsia search {shlex.quote(str(folder))} "..."  (--serve: a page)')


def _deleted(folder: Path, ids: Sequence[str], as_json: bool) -> None:
    if not (folder / INDEX).is_file():
        want, fix = "an index's folder", "For example: intarsia index idx --delete a1"
        raise ConfigError(f"--delete from {folder}", got="no index", want=want, fix=fix)
    hold(folder)
    left = len(delete_documents(folder, ids))
    if as_json:
        show_json({"folder": str(folder), "deleted": list(ids), "documents": left})
        return
    say(f"{folder}: {len(set(ids)):,} deleted, {left:,} documents left.")


def _exported(folder: Path, form: str, out: Path | None, as_json: bool) -> None:
    check_index(folder)
    out = target(out, "bulk.ndjson")
    from ..areas.search.engines import export, queries_file
    from ..areas.search.sparse_index import SparseIndex

    searchable = SparseIndex.load(folder)
    export(searchable, form, out)
    queries = queries_file(out)
    if as_json:
        record = {"file": str(out), "queries": str(queries), "form": form}
        show_json(record | {"documents": len(searchable)})
        return
    say(f"{out}: {len(searchable):,} documents for {form}; {queries.name}: what queries need.")


@with_options()
def search(
    folder: Annotated[Path, typer.Argument(help="Index: a folder of `intarsia index`.")],
    searching: Searching,
    page: Page,
    query: Annotated[str | None, typer.Argument(help="The query.", callback=whole_text)] = None,
    out: Annotated[
        Path | None, writes("The run file to write, in TREC's format, for --queries.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Search an index; no model runs: a query takes milliseconds, the start of a call a second.

    Example:  intarsia search idx "forgiveness of enemies" --explain
    Example:  intarsia search idx "lamp" --filter 'price<20' --filter colour=red
    Example:  intarsia search idx --serve
    Example:  intarsia search idx --queries topics.txt --out run.trec -k 100
    """
    queries, k, filters = searching.queries, searching.k, searching.filters
    if (query is not None) + (queries is not None) + page.serve != 1:
        got, fix = "none or several", 'For example: intarsia search idx "forgiveness of enemies"'
        want = "one of a query, --queries and --serve"
        raise ConfigError("what to search for", got=got, want=want, fix=fix)
    if (queries is None) != (out is None):
        want, fix = "both or neither", "For example: --queries topics.txt --out run.trec"
        raise ConfigError("--queries and --out", got="one of them", want=want, fix=fix)
    if out is not None:
        target(out, "run.trec", mark=" intarsia\n")
    check_index(folder)
    check_file("--queries", queries)
    from ..areas.search.showing import search_results
    from ..areas.search.sparse_index import SparseIndex

    index = SparseIndex.load(folder)
    if page.serve:
        serve_index(index, folder, page.port)
    elif queries is not None and out is not None:
        _run(index, queries, out, k, filters, as_json)
    else:
        _show(search_results(index, query or "", k, filters), searching.explain, as_json)


def _show(answer: dict[str, Any], explain: bool, as_json: bool) -> None:
    """Print the documents found for a query as a table."""
    if as_json:
        show_json(answer)
        return
    if not answer["hits"]:
        terms = answer["tokens"] or answer["stems"]
        say("No document: " + ("none has one of these words." if terms else "no known word."))
        return
    # one row for each document
    has_fields = any(hit["fields"] for hit in answer["hits"])
    columns = ("id", "score", "text", *(("fields",) if has_fields else ()))
    columns += ("words",) if explain else ()
    rows = []
    for hit in answer["hits"]:
        words = [
            f"{t['token']}{'~' if t['stem'] else '*' if t['expanded'] else ''} {t['score']:.2f}"
            for t in hit["terms"]
        ]
        text = "".join(part for part, _ in hit["parts"])
        row = (hit["id"], f"{hit['score']:.2f}", text[:200])
        row += (_fields_of(hit["fields"]),) if has_fields else ()
        rows.append((*row, ", ".join(words)) if explain else row)
    show_table("", columns, rows, right="score")
    if explain:
        say("* not a word of the text: the model read it into it.  ~ a stem, by BM25.")
    say(f"{answer['documents']:,} documents; the query took {answer['milliseconds']:.1f} ms.")


def _fields_of(fields: Mapping[str, Any]) -> str:
    """Return a document's fields in a cell; a long value is cut."""
    return ", ".join(f"{name}={str(value)[:WIDEST]}" for name, value in fields.items())


def _run(
    index: SparseIndex, queries: Path, out: Path, k: int, filters: Sequence[str], as_json: bool
) -> None:
    """Search for every query of a file, and write the documents found as a TREC run file."""
    from ..core.files import write_text
    from ..data.collections import read_queries
    from ..train.ranked import run_lines

    questions = read_queries(queries)
    lines = run_lines(index.run(questions, k, filters))
    write_text(out, "\n".join(lines) + "\n")
    if as_json:
        show_json({"file": str(out), "rows": len(lines), "queries": len(questions)})
        return
    say(f"{out}: {len(lines):,} rows of {len(questions):,} queries.")


def answers(index: SparseIndex) -> dict[str, Any]:
    """Return the functions that answer requests of the search page, by path.

    index: the index to search. The function takes and returns a JSON object.
    """
    from ..areas.search.showing import search_results

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        """Return the k best documents for a query, with their fields.  Raises: DataError."""
        # a request comes from a browser: nothing in it is trusted
        query, k = question.get("query"), question.get("k", 10)
        where = question.get("filter", [])
        listed = isinstance(where, list) and all(isinstance(text, str) for text in where)
        if not (isinstance(query, str) and isinstance(k, int) and 1 <= k <= 100 and listed):
            fix = 'For example {"query": "...", "k": 10, "filter": ["price<20"]}.'
            want = "a query, a k of 1 to 100, and perhaps a list of filters"
            raise DataError("question", got=sorted(question), want=want, fix=fix)
        return search_results(index, query, k, where)

    return {"/search": answer}


def page_of(index: SparseIndex, folder: Path) -> str:
    """Return the HTML page to search an index."""
    from ..reports.page import live
    from ..reports.report import Report

    lead = f"{len(index):,} documents, encoded by {Path(index.model).name}; no model runs here."
    return live(Report(f"Search {folder.name}", (lead,), eyebrow="intarsia search"), "search")


def serve_index(index: SparseIndex, folder: Path, port: int) -> None:
    """Serve the page to search an index until Ctrl-C."""
    from ..reports.local_page import serve_page

    serve_page(page_of(index, folder), answers(index), port, say, note)
