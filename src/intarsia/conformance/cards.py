"""Laws of every card: what it says of itself is complete, and its config is a frozen record."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, cast

from ..core import Card
from ..core.errors import IntarsiaError
from ..core.registry import settings_from_dict, settings_to_dict
from .verdict import Broken, Law, require

ARXIV = re.compile(r"\d{4}\.\d{4,5}")


def tiny(card: Card) -> Any:
    """The card's config with its settings for tests."""
    try:
        return card.config(**card.tiny)
    except (TypeError, IntarsiaError) as error:
        raise Broken(
            f"{type(error).__name__}: {error}",
            "tiny settings that work",
            "Correct the card's tiny={...}.",
        ) from error


def says_what_it_is(card: Card) -> None:
    """Key, summary, family and paper are there."""
    paper = card.paper
    wrong = {
        "key": re.fullmatch(r"[a-z][a-z0-9_-]*", card.key) is None,
        "summary": not card.summary.endswith("."),
        "family": not card.family,
        "paper": not (ARXIV.fullmatch(paper.arxiv) and paper.title),
        # an arXiv number begins with year and month; a revision may be cited by a later year
        "year": not (ARXIV.fullmatch(paper.arxiv) and paper.year >= 2000 + int(paper.arxiv[:2])),
    }
    missing = [name for name, bad in wrong.items() if bad]
    require(
        not missing,
        got=f"no proper {', '.join(missing)}",
        want="a lower-case key, one sentence, a family, a paper by arXiv number, title and year",
        fix="Complete the card.",
    )


def documents_its_settings(card: Card) -> None:
    """Each setting stands in the config's docstring, which `intarsia show` prints."""
    text = getattr(card.config, "__doc__", None) or ""
    require(
        dataclasses.is_dataclass(card.config),
        got=type(card.config).__name__,
        want="a dataclass as config",
        fix="Make the config a frozen dataclass.",
    )
    names = [f.name for f in dataclasses.fields(cast(Any, card.config))]
    missing = [name for name in names if re.search(rf"\b{name}\b", text) is None]
    require(
        not missing,
        got=f"nothing about {missing}",
        want="a word on every setting",
        fix="Name it in the config's docstring.",
    )


def has_defaults(card: Card) -> None:
    """The config can be made without a word."""
    try:
        card.config()
    except (TypeError, IntarsiaError) as error:
        raise Broken(
            f"{type(error).__name__}: {error}",
            "defaults that work",
            "Give every setting a default.",
        ) from error


def is_frozen(card: Card) -> None:
    """A config cannot be changed after it was checked."""
    config = tiny(card)
    name = next((f.name for f in dataclasses.fields(config)), "setting")
    try:
        setattr(config, name, getattr(config, name, None))
    except dataclasses.FrozenInstanceError:
        return
    raise Broken(
        "a config that can be changed",
        "a frozen dataclass",
        "Declare it with @dataclass(frozen=True).",
    )


def survives_json(card: Card) -> None:
    """A saved config is the same one when it is read again."""
    config = tiny(card)
    try:
        again = settings_from_dict(card, json.loads(json.dumps(settings_to_dict(config))))
    except (TypeError, ValueError, LookupError) as error:
        again = f"{type(error).__name__}: {error}"
    require(
        again == config,
        got=again,
        want=config,
        fix="Keep numbers, strings, booleans, None, tuples and listed methods as settings only.",
    )


CARD_LAWS: tuple[Law, ...] = (
    says_what_it_is,
    documents_its_settings,
    has_defaults,
    is_frozen,
    survives_json,
)
