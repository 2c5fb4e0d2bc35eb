"""Laws of every card: it describes itself completely, and its config is a frozen record."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

from ..core import Card
from ..core.errors import IntarsiaError
from ..core.registry import settings_from_dict, settings_to_dict
from ..core.schema import help_of
from .verdict import Broken, laws_of, require, require_equal

ARXIV = re.compile(r"\d{4}\.\d{4,5}")
SENTENCE = 15  # letters of a help that says what a setting is


def tiny(card: Card) -> Any:
    """Return the settings that a card names for tests, as its config class."""
    return _config(card, card.tiny, "tiny settings that work", "Correct the card's tiny={...}.")


def _config(card: Card, settings: Mapping[str, Any], want: str, fix: str) -> Any:
    """Build a method's settings, an object of its config class, from values by name."""
    try:
        return card.config(**settings)
    except (TypeError, IntarsiaError) as error:
        raise Broken(f"{type(error).__name__}: {error}", want, fix) from error


def says_what_it_is(card: Card) -> None:
    """Check that the card has a proper key, summary, family and paper."""
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
    want = "a lower-case key, one sentence, a family, a paper by arXiv number, title and year"
    require(not missing, f"no proper {', '.join(missing)}", want, "Complete the card.")


def documents_its_settings(card: Card) -> None:
    """Check that each setting is declared by `setting`, with a help of its own."""
    holds, got = dataclasses.is_dataclass(card.config), type(card.config).__name__
    require(holds, got, "a dataclass as config", "Make the config a frozen dataclass.")
    fields = dataclasses.fields(cast(Any, card.config))
    helps = {field.name: help_of(field) for field in fields}
    missing = [name for name, text in helps.items() if len(text) < SENTENCE]
    fix = "Declare it with `setting(default, help)`: its meaning, symbol and unit."
    require(not missing, f"nothing about {missing}", "a sentence on every setting", fix)
    shared = [names for names in pairwise(helps) if len({helps[name] for name in names}) == 1]
    require(not shared, f"one help for {shared}", "a help for each setting", "Tell them apart.")


def has_defaults(card: Card) -> None:
    """Check that the config can be built without any setting."""
    # the command line builds it before it reads --set
    _config(card, {}, "defaults that work", "Give every setting a default.")


def is_frozen(card: Card) -> None:
    """Check that the method's settings cannot be changed after they were validated."""
    config = tiny(card)
    name = next((f.name for f in dataclasses.fields(config)), "setting")
    try:
        # assign the value that it has: a frozen dataclass refuses even that
        setattr(config, name, getattr(config, name, None))
    except dataclasses.FrozenInstanceError:
        return
    fix = "Declare it with @dataclass(frozen=True)."
    raise Broken("a config that can be changed", "a frozen dataclass", fix)


def survives_json(card: Card) -> None:
    """Check that the method's settings are equal after they were written to JSON and read again."""
    config = tiny(card)
    try:
        # tuples become lists in JSON, and listed methods become their keys
        again = settings_from_dict(card, json.loads(json.dumps(settings_to_dict(config))))
    except (TypeError, ValueError, LookupError) as error:
        again = f"{type(error).__name__}: {error}"
    fix = "Keep numbers, strings, booleans, None, tuples and listed methods as settings only."
    require_equal(again, config, fix)


CARD_LAWS = laws_of(__name__)
