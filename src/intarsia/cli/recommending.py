"""`intarsia fit --task sessions | ranking`, and `intarsia recommend`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.checks import at_least
from ..core.errors import CheckpointError, ConfigError, UnknownName
from ..core.registry import find
from .early import RECOMMENDERS, check_numbers, check_settings
from .options import Json, flag, with_density
from .shell import note, say, show_json, show_table, warn

if TYPE_CHECKING:
    from ..models.recommend.recommender import Recommender

ASKED = "recommender.json"  # what was asked for, in a run folder
OPTIONS = ("epochs", "batch_size", "lr", "weight_decay", "warmup", "precision", "clip", "patience")
WHERE = ("device",)
OTHER = (
    *("data", "method", "seed", "out", "resume", "as_json", "task", "settings"),
    *("schedule", "density", "threads", "ctx"),
)
TITLES = ("title", "name")


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
    check_numbers({n: given[n] for n in (*OPTIONS, "seed", "schedule", "density") if n in words})
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
    named = Path(given["data"])
    out = out or Path("runs") / f"{named.stem}-{key}-{given['seed']}"
    if is_run(out):
        got, fix = "a recommender's run", "Choose another --out, or go on with it: --resume."
        raise ConfigError(f"run folder {out}", got=got, want="a new one", fix=fix)
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
    as_json: Json = False,
) -> None:
    """What somebody wants next, out of all items, those without any event among them.

    Example:  intarsia recommend runs/ml-100k-m2trec-0 --user 42
    Example:  intarsia recommend runs/ml-100k-m2trec-0 --history 50,181 --new premieres.item --why
    """
    at_least("-k", k, 1)
    if (user is None) == (history is None):
        got = "both" if user is not None else "neither"
        fix = "For example: --user 42, or --history 50,181"
        raise ConfigError("--user, --history", got=got, want="one of them", fix=fix)
    from ..data.atomic_files import read_items
    from ..experiments.recommending import add_items, open_recommender

    model = open_recommender(run)
    if new is not None:
        add_items(model, *read_items(new))
    who: Any = user if user is not None else [w.strip() for w in (history or "").split(",") if w]
    found = _found(model, who, k, seen, session)
    rows = _rows(model, who, found, why)
    if as_json:
        show_json({"run": str(run), "who": who, "items": rows})
        return
    columns = ("item", "title", "score", "events", *(("why",) if why else ()))
    show_table("", columns, [_line(row, why) for row in rows], right="item,score")


def _found(model: Any, who: Any, k: int, seen: bool, session: bool) -> list[Any]:
    """What the model recommends, with its warnings as lines."""
    import warnings

    write = getattr(model, "session", None)
    if session and write is None:
        fix = "Leave --session out, or ask a run of onerec."
        raise ConfigError("--session", got=type(model).__name__, want="a generator", fix=fix)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if session and write is not None:
            found = write(who, exclude_seen=not seen)
        else:
            found = model.recommend(who, k, exclude_seen=not seen)
    for line in told:
        warn(str(line.message))
    return found


def _rows(model: Any, who: Any, found: list[Any], why: bool) -> list[dict[str, Any]]:
    """Items with their titles, and what each field adds."""
    explain = getattr(model, "explain", None)
    if why and explain is None:
        fix = "Leave --why out, or ask a run of m2trec."
        raise ConfigError("--why", got=type(model).__name__, want="a model of fields", fix=fix)
    taken = set(model.known.items.tolist())
    return [
        {
            "item": one.item,
            "title": title_of(model, one.item),
            "score": one.score,
            "new": model.known.item(one.item) not in taken,
            "why": explain(who, one.item) if why and explain else {},
        }
        for one in found
    ]


def _line(row: Mapping[str, Any], why: bool) -> tuple[str, ...]:
    cells = (row["item"], row["title"], f"{row['score']:.3f}", "none" if row["new"] else "some")
    said = ", ".join(f"{name} {value:+.2f}" for name, value in list(row["why"].items())[:3])
    return (*cells, said) if why else cells


def title_of(model: Recommender, item: str) -> str:
    """What an item is called, where a field says so."""
    place = model.known.item(item)
    for name, field in model.known.fields.items():
        if any(word in name for word in TITLES) and field.kind != "float":
            return " ".join(field.values[place])
    return ""
