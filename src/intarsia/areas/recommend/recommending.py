"""A recommender from its data to a folder, and back: what `intarsia fit --task` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ...core.errors import CheckpointError, ConfigError, IntarsiaError
from ...core.files import read_json, repaired, write_json, writing
from ...core.folders import CARD, RECOMMENDER, check_recommender
from ...core.modes import evaluating
from ...core.reading import read_tensors
from ...core.registry import by_name, card, method_key, settings_from_dict, settings_to_dict
from ...core.sealing import check_sealed, is_format, seal_folder
from ...data.interactions import Interactions, ItemField, as_interactions
from ...schedules import SparseSchedule
from ...sparse.prune.tables import SavedTable, put_tables, save_tables, unfilled
from ...train import Run
from .measures import full_sort
from .recommender import Recommendation, Recommender, Settings, seen_rows

FOLDER, WEIGHTS = RECOMMENDER, "weights.safetensors"
EVENTS, NAMES = "events.safetensors", "names.json"
FORMAT, DEEP = 1, 20  # of the card; how deep the measures look
LAST = 5  # events of each user that are held out, twice: for validation and for the test
ARRAYS = ("users", "items", "times", "ratings")

Parts = tuple[Interactions, Interactions, Interactions]


@dataclass(frozen=True)
class FittedRecommender:
    """A trained recommender: its run, full-sort measures on the test part, tables as written.

    built_of: the training events.
    """

    model: Recommender
    run: Run
    measures: Mapping[str, float]
    built_of: Interactions
    tables: tuple[SavedTable, ...] = ()

    def recommend(
        self, query: str | int | Sequence[str], k: int = 10, *, exclude_seen: bool = True
    ) -> list[Recommendation]:
        """Return the k best items, best first, see `Recommender.recommend`."""
        return self.model.recommend(query, k, exclude_seen=exclude_seen)

    def save(self, folder: str | Path) -> None:
        """Write the recommender into a folder, which `open_recommender` opens.

        Raises: TrainingError if it cannot be written.
        """
        save_recommender(self.model, folder, self.built_of)


def parts_of(data: Interactions, data_of: str) -> Parts:
    """Split events into training, validation and test part, in the order of time.

    data: who took which item when. data_of: "sessions" splits by time (80, 10, 10 %); otherwise the
    last LAST events of each user are the test, those before them validation.
    Raises: DataError where a user's later events would come before her earlier ones.
    """
    if data_of == "sessions":
        train, val, test = data.split_by_time(0.8, 0.9)
        return train, val, test
    # the last events are the test, those before them validation, as time passed
    rest, test = data.leave_last(LAST)
    train, val = rest.leave_last(LAST)
    return train, val, test


def fit_recommender(
    settings: Settings | str,
    data: Any,
    *,
    parts: Parts | None = None,
    schedule: Any = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    report: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> FittedRecommender:
    """Train a recommender on the early part of its data, and score it on the late part.

    settings: of the recommender, or its name, as "ease". data: who took which item when, as `fit`
    of the settings takes it. parts: train, val and test, None =
    `parts_of`. schedule: of masks, as `Dsl(density=0.2)`; its layers "tables" are the settings' own
    `tables`. seed: of weights and order. out: the run folder; in addition to `fit`'s files it has
    `recommender/`, which `open_recommender` reads. resume: continue a stopped run. report: gets
    lines of progress. options: keywords of `fit`; the settings' own `training` is the default.
    Models of users keep the epoch that is best on val. The model returned knows all events: what a
    user has taken is not recommended to her again.
    Raises: as `build` and `fit` do.
    """
    settings = by_name(settings, "model") if isinstance(settings, str) else settings
    if not isinstance(settings, Settings):
        want, fix = "a recommender", 'Pass "ease", or intarsia.recommend.Ease().'
        raise ConfigError("settings", got=type(settings).__name__, want=want, fix=fix)
    data = as_interactions(data)
    train, val, test = parts or parts_of(data, settings.data_of)
    model = settings.build(train, seed=seed)
    # users with a list of items, and not sessions of events
    ranking = settings.data_of == "ranking"
    defaults: dict[str, Any] = dict(settings.training) | {"trackers": ()}
    defaults |= {"select": "val"} if ranking and settings.training else {}
    # "tables" is a word for the layers that this method keeps its tables in
    if isinstance(schedule, SparseSchedule) and schedule.layers in (None, ("tables",)):
        schedule = replace(schedule, layers=settings.tables)  # pyright: ignore
    outputs: dict[str, Any] = {}

    def finish(run: Run) -> Run:
        """Score the trained model on the test part, save it, and return the run with its scores."""
        outputs["measures"] = measured(model, val, test)
        # only now: the items that a user is known to have are left out of her ranking
        model.known = data
        report(f"Test, all items ranked: {in_words(outputs['measures'])}.")
        if out is not None:
            outputs["tables"] = save_recommender(model, Path(out) / FOLDER, train)
        return replace(run, record={**run.record, "measures": outputs["measures"]})

    run = model.learn(
        train,
        val,
        **defaults | options | {"schedule": schedule, "seed": seed, "out": out, "resume": resume},
        finish=finish,
        record={"recommender": method_key(settings)},
    )
    return FittedRecommender(model, run, outputs["measures"], train, outputs.get("tables", ()))


def measured(model: Recommender, val: Interactions, test: Interactions) -> dict[str, float]:
    """Rank all items for each test user or session; return the measures, such as recall at 20.

    model: trained. val, test: held-out events. An item that a user took in training or validation
    is left out of her ranking: ranking it high would be no error.
    """
    questions: Any = model.questions(test)
    ranked: list[Any] = []
    right_items: list[Any] = []
    device = next(model.parameters()).device  # where the training was
    if model.settings.data_of == "ranking":
        users, items = questions.tensors
        # what a user took for validation is not a wrong answer: it leaves the ranking
        val_only = seen_rows(val) & ~seen_rows(test)
        test_users = users.unique()
        with evaluating(model), torch.no_grad():
            # users in groups, since a row of scores is as long as the list of items
            for part in test_users.split(256):
                hidden = val_only[part].to(device)
                ranked += model.ranked(part.to(device), DEEP, hidden).tolist()
        right_items = [items[users == user].tolist() for user in test_users]
    else:
        with evaluating(model), torch.no_grad():
            for first in range(0, len(questions), 256):
                rows = [questions[i] for i in range(first, min(len(questions), first + 256))]
                both: Any = model.task.collate(rows)
                x, y = both
                ranked += model.ranked(x.to(device), DEEP).tolist()
                # the items that really followed
                right_items += [answer.flatten().tolist() for answer in y]
    return full_sort(ranked, right_items)


def in_words(measures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in measures.items())


def save_recommender(
    model: Recommender, folder: str | Path, built_of: Interactions
) -> tuple[SavedTable, ...]:
    """Write a recommender into a folder: card.json, weights, ids, item fields and events.

    built_of: the training events, which a model of users needs again. Tables with zeros are written
    as CSR rows where that is smaller; returns a line for each table.
    Raises: TrainingError if it cannot be written.
    """
    events = model.known
    names = {
        "users": events.user_ids,
        "items": events.item_ids,
        "fields": {n: {"kind": f.kind, "values": f.values} for n, f in events.fields.items()},
    }
    arrays = {n: np.ascontiguousarray(getattr(events, n)) for n in ARRAYS}
    arrays |= {f"train.{n}": np.ascontiguousarray(getattr(built_of, n)) for n in ARRAYS}
    with writing(folder) as scratch:
        scratch.mkdir()
        lines = save_tables(model, scratch / WEIGHTS)
        save_file(arrays, scratch / EVENTS)
        write_json(scratch / NAMES, names, indent=None)
        card_content = {"format": FORMAT, "key": method_key(model.settings)}
        card_content |= {
            "version": version("intarsia"),
            "settings": settings_to_dict(model.settings),
        }
        card_content |= {"built_of": [len(built_of.item_ids), len(built_of.user_ids)]}
        seal_folder(scratch, CARD, card_content)
    return lines


def open_recommender(folder: str | Path, *, mapped: bool = False) -> Recommender:
    """Return the recommender of a run folder, or of a folder that `save_recommender` wrote.

    mapped: True leaves its tables in the file, from which pages are read when they are needed.
    Raises: ConfigError where there is none; CheckpointError for a damaged one.
    """
    folder = repaired(folder)
    folder = check_recommender(folder)
    try:
        needs = (WEIGHTS, EVENTS, NAMES)
        content = check_sealed(folder / CARD, read_json(folder / CARD), needs=needs)
        if not is_format(content["format"], FORMAT):
            raise ValueError(f"format {content['format']!r}")
        settings: Any = settings_from_dict(card(content["key"]), content["settings"])
        arrays, names = read_tensors(folder / EVENTS, "np"), read_json(folder / NAMES)
        events, train = (_events(arrays, names, start) for start in ("", "train."))
        items, users = content["built_of"]
        train = first_of(train, items, users)
        with unfilled() if mapped else nullcontext():
            model: Recommender = settings.restore(train, read_tensors(folder / WEIGHTS))
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, IntarsiaError) as error:
        want, fix = "what `intarsia fit` wrote", "Copy it again from its source, or train anew."
        raise CheckpointError(f"folder {folder}", got=error, want=want, fix=fix) from error
    put_tables(model, folder / WEIGHTS, mapped)
    # items that came after the training are added to the trained model
    if len(events.item_ids) > items:
        new = events.item_ids[items:]
        if not model.takes_items:
            fix = "Train it anew with these items."
            raise CheckpointError(f"folder {folder}", got="new items", want="none", fix=fix)
        model.add_items(
            new, {n: f.take(np.arange(items, len(f.values))) for n, f in events.fields.items()}
        )
    model.known = events
    model.eval()
    return model


def _events(arrays: Mapping[str, Any], names: Mapping[str, Any], start: str) -> Interactions:
    """Build interactions of users with items from stored arrays, with names behind `start`."""
    fields = {
        n: ItemField(
            f["kind"],
            tuple(v if f["kind"] == "float" else tuple(v) for v in f["values"]),
        )
        for n, f in names["fields"].items()
    }
    columns: dict[str, Any] = {n: arrays[f"{start}{n}"] for n in ARRAYS}
    columns |= {"user_ids": tuple(names["users"]), "item_ids": tuple(names["items"])}
    return Interactions(**columns, fields=fields)


def first_of(data: Interactions, items: int, users: int) -> Interactions:
    """Return interactions with the first items and users only."""
    # items and users are numbered in the order they came, so that the first are the trained ones
    fields = {n: f.take(np.arange(items)) for n, f in data.fields.items()}
    ids = {"item_ids": data.item_ids[:items], "user_ids": data.user_ids[:users]}
    return replace(data, **ids, fields=fields)
