"""What `intarsia fit --task sparse-retrieval` does."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, UnknownName
from .options import flag, use_threads
from .shell import note, say, show_json
from .targets import finished_names, target

OWN = (
    "data",
    "task",
    "teachers",
    "out",
    "model",
    "seed",
    "settings",
    "resume",
    "threads",
    "as_json",
)


def fit_task(options: Mapping[str, Any], words: set[str], teachers: str) -> None:
    """Train a sparse retriever: `intarsia fit DOCS --task sparse-retrieval`.

    options: all options of `fit` by name; words: names of those given on the command line.
    teachers: names or folders with commas.
    """
    # An option that would be ignored is refused.
    if strange := sorted(words - {*OWN, "ctx"}):
        got = ", ".join(flag(name) for name in strange)
        want = "--model, --teachers, --out, --seed, --threads, --resume, --set steps=300 ..."
        raise ConfigError("options of --task", got=got, want=want, fix="Leave it out.")
    out: Path | None = options["out"]
    if out is None or options["data"] is None:
        fix = "For example: intarsia fit docs.jsonl --task sparse-retrieval --out enc"
        raise ConfigError("documents and --out", got="not both", want="both", fix=fix)
    state = out.with_name(f".{out.name}.training")
    # a training that ended may have been killed before it removed its checkpoints
    written = finished_names(out, state, "modules.json") if options["resume"] else []
    target(out, "enc", written_names=written)
    use_threads(options["threads"])
    note("Loading PyTorch and sentence-transformers.")
    from ..areas.search.inference_free import InferenceFree
    from ..areas.search.learning import draw_pairs, fit_retriever
    from ..data.collections import load_collection

    recipe = _recipe(options, teachers)
    collection = load_collection(options["data"], "train", report=note)
    # documents by number: pairs of training hold no ids
    numbers = {name: i for i, name in enumerate(collection.docs)}
    texts = list(collection.docs.values())
    # A query with the documents that were judged relevant to it (grade above 0).
    answered = [
        (collection.queries[q], [numbers[d] for d, g in collection.qrels[q].items() if g > 0])
        for q in collection.judged
    ]
    drawn = not answered
    # Without judged queries passages of the documents serve as queries.
    pairs = answered or draw_pairs(texts, recipe.steps * recipe.batch, options["seed"])
    note("Queries are drawn from the documents." if drawn else f"{len(pairs):,} judged queries.")
    name = options["model"] if "model" in words else "splade-tiny"
    model = InferenceFree.from_pretrained(name, texts, report=note)
    if not options["resume"]:  # what an earlier run left is no part of this one
        shutil.rmtree(state, ignore_errors=True)
    running: dict[str, Any] = {"seed": options["seed"], "out": state, "resume": options["resume"]}
    try:
        fit_retriever(model, texts, pairs, recipe, report=note, **running)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("Go on: the same command with --resume.") from stop
    model.save(out)
    shutil.rmtree(state, ignore_errors=True)
    record = {"folder": str(out), "queries": len(pairs), "drawn": drawn, "documents": len(texts)}
    if options["as_json"]:
        show_json(record)
        return
    say(f"{out}: {recipe.steps} steps on {len(pairs):,} queries of {len(texts):,} documents.")
    say(
        f"Next:  intarsia index {shlex.quote(options['data'])} --model {shlex.quote(str(out))} "
        "--out idx"
    )


def _recipe(options: Mapping[str, Any], teachers: str) -> Any:
    """Return the settings of the training of a retriever, changed by --set."""
    from dataclasses import fields

    from ..areas.search.learning import LearnedRetrieval

    defaults = {f.name: f.default for f in fields(LearnedRetrieval)}
    values: dict[str, Any] = {"teachers": tuple(n.strip() for n in teachers.split(",") if n)}
    for text in options["settings"] or ():
        name, _, value = text.partition("=")
        if name not in defaults or name == "teachers":
            raise UnknownName("setting of sparse-retrieval", name, defaults)
        try:
            # The type of the default is the type of the setting.
            values[name] = type(defaults[name])(value)
        except ValueError as error:
            want = f"as {defaults[name]}"
            raise ConfigError(name, got=repr(value), want=want, fix="Correct it.") from error
    return LearnedRetrieval(**values)
