"""`intarsia fit --task sessions | ranking`, and `intarsia recommend`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.checks import at_least
from ..core.errors import CheckpointError, ConfigError, DataError, UnknownName
from ..core.folders import data_name
from ..core.registry import find
from .early import RECOMMENDERS, check_settings
from .options import Json, flag
from .shell import note, say, show_json, show_table, warn
from .values import check_options, with_density

if TYPE_CHECKING:
    from ..models.recommend.showing import RecommenderPage

ASKED = "recommender.json"  # what was asked for, in a run folder
OPTIONS = ("epochs", "batch_size", "lr", "weight_decay", "warmup", "precision", "clip", "patience")
WHERE = ("device",)
OTHER = (
    *("data", "method", "seed", "out", "resume", "as_json", "task", "settings"),
    *("schedule", "density", "threads", "ctx"),
)


def is_run(folder: Path | None) -> bool:
    """Whether a folder holds a recommender's run, finished or not."""
    return folder is not None and (folder / ASKED).is_file()


def fit_recommender(given: Mapping[str, Any], words: set[str]) -> None:
    """Train a recommender.  given: all options of `intarsia fit`; words: those that were said."""
    strange = sorted(words - {*OPTIONS, *WHERE, *OTHER})
    if strange:
        got = ", ".join(flag(name) for name in strange)
        known = ", ".join(flag(name) for name in (*OPTIONS, "settings", "schedule", "density"))
        fix = f"Leave it out. A recommender has {known}."
        raise ConfigError("options of --task", got=got, want="those of a recommender", fix=fix)
    check_options({n: given[n] for n in (*OPTIONS, "seed", "schedule", "density") if n in words})
    asked, out = _asked(given, words)
    note("Loading PyTorch.")
    import torch

    from ..core.files import write_json
    from ..data.atomic_files import load_interactions
    from ..experiments import recommending, settings

    if given["threads"]:
        torch.set_num_threads(given["threads"])
    data = load_interactions(asked["data"])
    method = settings.method(asked["method"], asked["settings"], among=RECOMMENDERS[asked["task"]])
    schedule = settings.schedule(with_density(asked["schedule"], asked["density"]))
    say_data(data)
    if not given["resume"]:
        write_json(out / ASKED, asked)
    options = {n: v for n, v in asked["options"].items() if n != "device"}
    try:
        done = recommending.fit_recommender(
            method,
            data,
            schedule=schedule,
            seed=asked["seed"],
            out=out,
            resume=given["resume"],
            device=given["device"],
            report=note,
            **options,
        )
    except KeyboardInterrupt as stop:
        again = f"Go on: intarsia fit --resume --out {shlex.quote(str(out))}"
        raise KeyboardInterrupt(again) from stop
    if given["as_json"]:
        tables = [vars(one) for one in done.tables]
        show_json({"folder": str(out), "measures": dict(done.measures), "tables": tables})
        return
    rows = [(name, f"{value:.4f}") for name, value in done.measures.items()]
    show_table("", ("test, all items ranked", "value"), rows, right="value")
    if asked["schedule"]:
        for line in done.tables:
            say(str(line))
    someone = shlex.quote(data.user_ids[0])
    say(f"Next:  intarsia recommend {shlex.quote(str(out))} --user {someone}")


def _asked(given: Mapping[str, Any], words: set[str]) -> tuple[dict[str, Any], Path]:
    """What is to be run, and its folder: of the command line, or of the run to go on with."""
    out: Path | None = given["out"]
    if given["resume"]:
        more = sorted(words - {"resume", "out", "as_json", "device", "threads"})
        if out is None or not is_run(out) or more:
            got = f"it with {', '.join(map(flag, more))}" if more else f"--out {out}"
            want = "a recommender's run in --out, which has its own settings"
            fix = "For example: intarsia fit --resume --out runs/ml-100k-m2trec-0"
            raise ConfigError("--resume", got=got, want=want, fix=fix)
        return _read(out / ASKED), out
    if given["data"] is None:
        want = "ml-100k, a folder of atomic files, or a CSV file"
        fix = "For example: intarsia fit ml-100k --task sessions"
        raise ConfigError("DATA", got="nothing", want=want, fix=fix)
    known = RECOMMENDERS[given["task"]]
    key = find(given["method"], "model") if "method" in words else known[0]
    if key not in known:
        raise UnknownName(f"method for --task {given['task']}", key, known)
    check_settings(key, given["settings"] or ())
    out = out or Path("runs") / f"{data_name(given['data'])}-{key}-{given['seed']}"
    if is_run(out):
        got, fix = "a recommender's run", "Choose another --out, or go on with it: --resume."
        raise ConfigError(f"run folder {out}", got=got, want="a new one", fix=fix)
    named = Path(given["data"])
    asked = {"data": str(named.resolve()) if named.exists() else given["data"]}
    asked |= {"task": given["task"], "method": key, "settings": list(given["settings"] or ())}
    asked |= {"schedule": given["schedule"], "density": given["density"], "seed": given["seed"]}
    return asked | {"options": {n: given[n] for n in OPTIONS if n in words}}, out


def _read(path: Path) -> dict[str, Any]:
    from ..core.files import read_json

    try:
        found = read_json(path)
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
            found[name]
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        want, fix = "the file as `intarsia fit` wrote it", "Start the run anew."
        raise CheckpointError(str(path), got=error, want=want, fix=fix) from error


def say_data(data: Any) -> None:
    """How much there is."""
    fields = f", fields of items: {', '.join(data.fields)}" if data.fields else ""
    note(
        f"{len(data):,} events of {len(data.user_ids):,} users with {len(data.item_ids):,} items"
        f"{fields}."
    )


def recommend(
    run: Annotated[Path, typer.Argument(help="A run folder of `intarsia fit --task ...`.")],
    user: Annotated[str | None, typer.Option(help="A user's id, as the data have it.")] = None,
    history: Annotated[
        str | None, typer.Option(help="Ids of items with commas, oldest first: a session.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    new: Annotated[
        Path | None, typer.Option(help="A .item file of items that nobody has taken yet.")
    ] = None,
    seen: Annotated[
        bool, typer.Option("--seen", help="Items that were taken may come again.")
    ] = False,
    why: Annotated[
        bool, typer.Option("--why", help="What each field adds to an item's score (m2trec).")
    ] = False,
    session: Annotated[
        bool, typer.Option("--session", help="A whole session in its order, at once (onerec).")
    ] = False,
    serve: Annotated[
        bool, typer.Option("--serve", help="A page of recommendations, on this machine alone.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 = any.")] = 0,
    as_json: Json = False,
) -> None:
    """What somebody wants next, out of all items, those without any event among them.

    Example:  intarsia recommend runs/ml-100k-m2trec-0 --user 42
    Example:  intarsia recommend runs/ml-100k-m2trec-0 --history 50,181 --new premieres.item --why
    Example:  intarsia recommend runs/ml-100k-m2trec-0 --serve
    """
    at_least("-k", k, 1)
    if (user is not None) + (history is not None) + serve != 1:
        got = "several" if (user is not None) + (history is not None) + serve else "neither"
        fix = "For example: --user 42, or --history 50,181"
        raise ConfigError("--user, --history, --serve", got=got, want="one of them", fix=fix)
    from ..data.atomic_files import read_items
    from ..experiments.recommending import open_recommender
    from ..models.recommend.showing import RecommenderPage, item_rows, recommend_with_warnings

    model = open_recommender(run, mapped=True)
    if new is not None:
        model.add_items(*read_items(new))
    if serve:
        _serve(RecommenderPage(model), run, port)
        return
    who: Any = user if user is not None else [w.strip() for w in (history or "").split(",") if w]
    items, told = recommend_with_warnings(model, who, k, include_seen=seen, session=session)
    for line in told:
        warn(line)
    listed = item_rows(model, who, items, why)
    if as_json:
        show_json({"run": str(run), "who": who, "items": listed})
        return
    coded = any("code" in row for row in listed)
    columns = ("item", "title", "score", "events", *(("why",) if why else ()))
    columns += ("semantic id",) if coded else ()
    show_table("", columns, [_line(row, why) for row in listed], right="item,score")


def _line(row: Mapping[str, Any], why: bool) -> tuple[str, ...]:
    cells = (row["item"], row["title"], f"{row['score']:.3f}", "none" if row["new"] else "some")
    said = ", ".join(f"{name} {value:+.2f}" for name, value in list(row["why"].items())[:3])
    code = ("-".join(map(str, row["code"])),) if "code" in row else ()
    return (*cells, *((said,) if why else ()), *code)


def answers(showing: RecommenderPage) -> dict[str, Any]:
    """What the page of recommendations asks for."""

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        user, items, k = asked.get("user"), asked.get("items"), asked.get("k", 10)
        listed = isinstance(items, list) and {type(one) for one in items} == {str}
        if isinstance(user, str) == listed or not isinstance(k, int) or not 1 <= k <= 100:
            fix = 'For example {"user": "42"}, or {"items": ["50", "181"], "k": 10}.'
            raise DataError("question", got=sorted(asked), want="a user or items", fix=fix)
        flags = {name: asked.get(name) is True for name in ("session", "new")}
        query = user if isinstance(user, str) else list(items or ())
        return showing.answer(query, k, include_seen=asked.get("seen") is True, **flags)

    def find(asked: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(text := asked.get("text"), str):
            fix = 'For example {"text": "toy story"}.'
            raise DataError("question", got=sorted(asked), want="a text", fix=fix)
        return showing.find(text)

    return {"/recommend": answer, "/find": find, "/about": lambda _: showing.about()}


def page_of(showing: RecommenderPage, run: Path) -> str:
    """Return the page of recommendations of a run."""
    from ..core.registry import method_key
    from ..reports.page import live
    from ..reports.report import Report

    known = showing.model.known
    lead = (
        f"{method_key(showing.model.settings)} knows {len(known.item_ids):,} items and "
        f"{len(known.user_ids):,} users, and ranks all items for each."
    )
    return live(Report(f"What comes next, by {run.resolve().name}", (lead,)), "recommend")


def _serve(showing: RecommenderPage, run: Path, port: int) -> None:
    from ..reports.local_page import serve_page

    serve_page(page_of(showing, run), answers(showing), port, say, note)
