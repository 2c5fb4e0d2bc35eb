"""`intarsia fit --task sessions | ranking`, and `intarsia recommend`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import CheckpointError, ConfigError, DataError, UnknownName
from ..core.folders import check_new_run, check_recommender, data_name
from ..core.registry import find
from ..core.schema import setting
from ..data.event_columns import parse_columns
from .declared import with_options
from .early import RECOMMENDERS, check_file, check_settings
from .options import Json, Page, Threads, flag, use_threads
from .shell import note, say, show_json, show_table, warn
from .values import check_options, with_density

if TYPE_CHECKING:
    from ..areas.recommend.showing import RecommenderPage

ASKED = "recommender.json"  # the request, in a run folder
OPTIONS = ("epochs", "batch_size", "lr", "weight_decay", "warmup", "precision", "clip", "patience")
WHERE = ("device",)
OTHER = (
    *("data", "method", "seed", "out", "resume", "as_json", "task", "settings"),
    *("schedule", "density", "threads", "ctx", "columns"),
)


def is_run(folder: Path | None) -> bool:
    """Return True if a folder holds a recommender's run, finished or not."""
    return folder is not None and (folder / ASKED).is_file()


def fit_recommender(arguments: Mapping[str, Any], words: set[str]) -> None:
    """Train a recommender: `intarsia fit DATA --task sessions` or `ranking`.

    arguments: all options of `intarsia fit`; words: names of those on the command line.
    """
    strange = sorted(words - {*OPTIONS, *WHERE, *OTHER})
    if strange:
        got = ", ".join(flag(name) for name in strange)
        allowed = ", ".join(flag(name) for name in (*OPTIONS, "settings", "schedule", "density"))
        fix = f"Leave it out. A recommender has {allowed}."
        raise ConfigError("options of --task", got=got, want="those of a recommender", fix=fix)
    check_options(
        {n: arguments[n] for n in (*OPTIONS, "seed", "schedule", "density") if n in words}
    )
    request, out = _request_of(arguments, words)
    note("Loading PyTorch.")
    from ..areas.recommend import recommending
    from ..core.files import write_json
    from ..data.atomic_files import load_interactions
    from ..runs import settings

    use_threads(arguments["threads"])
    data = load_interactions(request["data"], parse_columns(request.get("columns")))
    method = settings.method(
        request["method"], request["settings"], among=RECOMMENDERS[request["task"]]
    )
    schedule = settings.schedule(with_density(request["schedule"], request["density"]))
    say_data(data)
    if not arguments["resume"]:
        # Written before the training, so that a run stopped at any moment can resume.
        write_json(out / ASKED, request)
    options = {n: v for n, v in request["options"].items() if n != "device"}
    try:
        done = recommending.fit_recommender(
            method,
            data,
            schedule=schedule,
            seed=request["seed"],
            out=out,
            resume=arguments["resume"],
            device=arguments["device"],
            report=note,
            **options,
        )
    except KeyboardInterrupt as stop:
        again = f"Go on: intarsia fit --resume --out {shlex.quote(str(out))}"
        raise KeyboardInterrupt(again) from stop
    if arguments["as_json"]:
        tables = [vars(table) for table in done.tables]
        show_json({"folder": str(out), "measures": dict(done.measures), "tables": tables})
        return
    rows = [(name, f"{value:.4f}") for name, value in done.measures.items()]
    show_table("", ("test, all items ranked", "value"), rows, right="value")
    if request["schedule"]:
        for line in done.tables:
            say(str(line))
    someone = shlex.quote(data.user_ids[0])
    say(f"Next:  intarsia recommend {shlex.quote(str(out))} --user {someone}")


def _request_of(arguments: Mapping[str, Any], words: set[str]) -> tuple[dict[str, Any], Path]:
    """Return what to train, and the folder: a new run of these options, or one to resume."""
    out: Path | None = arguments["out"]
    if arguments["resume"]:
        # A run resumes with the settings it has: only where it runs may change.
        extra = sorted(words - {"resume", "out", "as_json", "device", "threads"})
        if out is None or not is_run(out) or extra:
            got = f"it with {', '.join(map(flag, extra))}" if extra else f"--out {out}"
            want = "a recommender's run in --out, which has its own settings"
            fix = "For example: intarsia fit --resume --out runs/ml-100k-m2trec-0"
            raise ConfigError("--resume", got=got, want=want, fix=fix)
        return _read(out / ASKED), out
    if arguments["data"] is None:
        want = "ml-100k, a folder of atomic files, or a CSV, .jsonl or Parquet file"
        fix = "For example: intarsia fit ml-100k --task sessions"
        raise ConfigError("DATA", got="nothing", want=want, fix=fix)
    models = RECOMMENDERS[arguments["task"]]
    key = find(arguments["method"], "model") if "method" in words else models[0]
    if key not in models:
        raise UnknownName(f"method for --task {arguments['task']}", key, models)
    check_settings(key, arguments["settings"] or ())
    parse_columns(arguments["columns"])
    out = out or Path("runs") / f"{data_name(arguments['data'])}-{key}-{arguments['seed']}"
    if is_run(out):
        got, fix = "a recommender's run", "Choose another --out, or go on with it: --resume."
        raise ConfigError(f"run folder {out}", got=got, want="a new one", fix=fix)
    check_new_run(out, arguments["data"])
    # A path is kept absolute, as the run may resume from another folder.
    named = Path(arguments["data"])
    request = {"data": str(named.resolve()) if named.exists() else arguments["data"]}
    request |= {
        "task": arguments["task"],
        "method": key,
        "settings": list(arguments["settings"] or ()),
    }
    request |= {
        "schedule": arguments["schedule"],
        "density": arguments["density"],
        "seed": arguments["seed"],
        "columns": arguments["columns"],
    }
    return request | {"options": {n: arguments[n] for n in OPTIONS if n in words}}, out


def _read(path: Path) -> dict[str, Any]:
    """Read from a run's folder the options it was started with.  Raises: CheckpointError."""
    from ..core.files import read_json

    try:
        request = read_json(path)
        for name in (
            "data",
            "task",
            "method",
            "settings",
            "schedule",
            "density",
            "seed",
            "options",
        ):
            request[name]
        return request
    except (OSError, ValueError, KeyError, TypeError) as error:
        want, fix = "the file as `intarsia fit` wrote it", "Start the run anew."
        raise CheckpointError(str(path), got=error, want=want, fix=fix) from error


def say_data(data: Any) -> None:
    """Note how many events, users and items the data have."""
    fields = f", fields of items: {', '.join(data.fields)}" if data.fields else ""
    note(
        f"{len(data):,} events of {len(data.user_ids):,} users with {len(data.item_ids):,} items"
        f"{fields}."
    )


@dataclass(frozen=True)
class Recommending:
    """Settings of a ranking: the user, the items, and the columns of the table."""

    user: str | None = setting(None, "Id of a user, as in the data.")
    history: str | None = setting(None, "Ids of items with commas, oldest first: a session.")
    k: int = setting(10, "Number of items.", least=1, flag="-k")
    new: Path | None = setting(None, "File (.item) of new items, without any event.")
    seen: bool = setting(False, "Recommend also items that the user has taken before.")
    why: bool = setting(False, "Show the score that each field of an item adds (m2trec).")
    session: bool = setting(False, "Recommend a whole session in its order, at once (onerec).")


@with_options()
def recommend(
    run: Annotated[Path, typer.Argument(help="Run folder of `intarsia fit --task ...`.")],
    request: Recommending,
    page: Page,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Rank items by how likely a user is to take them next, also items that nobody has used yet.

    Example:  intarsia recommend runs/ml-100k-m2trec-0 --user 42
    Example:  intarsia recommend runs/ml-100k-m2trec-0 --history 50,181 --new premieres.item --why
    Example:  intarsia recommend runs/ml-100k-m2trec-0 --serve
    """
    user, history, k, new = request.user, request.history, request.k, request.new
    if (named := (user is not None) + (history is not None) + page.serve) != 1:
        got = "several" if named else "neither"
        fix = "For example: --user 42, or --history 50,181"
        raise ConfigError("--user, --history, --serve", got=got, want="one of them", fix=fix)
    check_recommender(run)
    check_file("--new", new)
    use_threads(threads)
    from ..areas.recommend.recommending import open_recommender
    from ..areas.recommend.showing import (
        RecommenderPage,
        item_rows,
        new_ranks,
        recommend_with_warnings,
    )
    from ..data.atomic_files import read_items

    model = open_recommender(run, mapped=True)
    added: Sequence[str] = ()
    if new is not None:
        added, fields = read_items(new)
        model.add_items(added, fields)
    if page.serve:
        _serve(RecommenderPage(model), run, page.port)
        return
    query: Any = user if user is not None else [w.strip() for w in (history or "").split(",") if w]
    also_seen = request.seen
    items, warnings = recommend_with_warnings(
        model, query, k, include_seen=also_seen, session=request.session
    )
    for line in warnings:
        warn(line)
    listed = item_rows(model, query, items, request.why)
    ranks = [] if new is None else new_ranks(model, query, added, include_seen=request.seen)
    if as_json:
        record = {"run": str(run), "who": query, "items": listed}
        show_json(record | ({} if new is None else {"new": ranks}))
        return
    columns = ("item", "title", "score", "events", *(("why",) if request.why else ()))
    columns += ("semantic id",) if any("code" in row for row in listed) else ()
    show_table("", columns, [_cells_of(row, request.why) for row in listed], right="item,score")
    for row in ranks[:k]:
        say(f"New item {row['item']} ranks {row['rank']:,} of {row['of']:,}.")


def _cells_of(row: Mapping[str, Any], explained: bool) -> tuple[str, ...]:
    cells = (row["item"], row["title"], f"{row['score']:.3f}", "none" if row["new"] else "some")
    reasons = ", ".join(f"{name} {value:+.2f}" for name, value in list(row["why"].items())[:3])
    code = ("-".join(map(str, row["code"])),) if "code" in row else ()
    return (*cells, *((reasons,) if explained else ()), *code)


def answers(showing: RecommenderPage) -> dict[str, Any]:
    """Return the functions that answer the page's requests, by path; each maps JSON to JSON."""

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        """Answer one question of the page: recommendations for a user, or after a list of items."""
        user, items, k = question.get("user"), question.get("items"), question.get("k", 10)
        # A question comes from a browser: types are checked as strictly as options are.
        listed = isinstance(items, list) and {type(item) for item in items} == {str}
        if isinstance(user, str) == listed or not isinstance(k, int) or not 1 <= k <= 100:
            fix = 'For example {"user": "42"}, or {"items": ["50", "181"], "k": 10}.'
            raise DataError("question", got=sorted(question), want="a user or items", fix=fix)
        flags = {name: question.get(name) is True for name in ("session", "new")}
        query = user if isinstance(user, str) else list(items or ())
        return showing.answer(query, k, include_seen=question.get("seen") is True, **flags)

    def find(question: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(text := question.get("text"), str):
            fix = 'For example {"text": "toy story"}.'
            raise DataError("question", got=sorted(question), want="a text", fix=fix)
        return showing.find(text)

    return {"/recommend": answer, "/find": find, "/about": lambda _: showing.about()}


def page_of(showing: RecommenderPage, run: Path) -> str:
    """Return the page of recommendations; showing: the model; run: the folder, for its title."""
    from ..core.registry import method_key
    from ..reports.page import live
    from ..reports.report import Report

    interactions = showing.model.known
    lead = (
        f"{method_key(showing.model.settings)} knows {len(interactions.item_ids):,} items and "
        f"{len(interactions.user_ids):,} users, and ranks all items for each."
    )
    title = f"What comes next, by {run.resolve().name}"
    return live(Report(title, (lead,), eyebrow="intarsia recommend"), "recommend")


def _serve(showing: RecommenderPage, run: Path, port: int) -> None:
    """Serve the page of recommendations until Ctrl-C."""
    from ..reports.local_page import serve_page

    serve_page(page_of(showing, run), answers(showing), port, say, note)
