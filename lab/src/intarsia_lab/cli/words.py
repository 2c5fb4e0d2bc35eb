"""The words that the laboratory's verbs take, read before torch is imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from intarsia.core.errors import UnknownName
from intarsia.core.registry import index, read_lists, spelled

NAMES = Path(__file__).with_name("names.txt")
WORDS = read_lists(NAMES)
EXPERIMENTS, ROUTERS = WORDS["experiment"], WORDS["router"]
SUITES, PROFILES, PROTOCOLS = map(WORDS.__getitem__, ("suite", "profile", "protocol"))


HEADS = ("one", "each")
"""Heads of several tasks at once."""


def names_in(text: str | None) -> tuple[str, ...]:
    """Return the names in a text with commas; none for no text."""
    return tuple(n.strip() for n in (text or "").split(",") if n.strip())


def check_experiment(name: str) -> None:
    """Check that an experiment has this name.  Raises: UnknownName."""
    if name not in EXPERIMENTS:
        raise UnknownName("experiment", name, EXPERIMENTS, "intarsia reproduce")


def router_names(text: str, report: Callable[[str], None]) -> str:
    """Return routers by their keys, with commas.

    text: names with commas, in any spelling, also the papers'; report: gets a line for each
    name that is not the key itself. Raises: UnknownName for one that `compare-routers` does not
    have.
    """
    return ",".join(_router_name(word.strip(), report) for word in text.split(","))


def _router_name(name: str, report: Callable[[str], None]) -> str:
    """Return a router's key for a name in any spelling; "" and "all" stay."""
    if name in ("", "all", *ROUTERS):
        return name
    # The card of a router lists the names that its papers use.
    key = next((k for k in ROUTERS if k in index() and spelled(name) in _spellings(k)), None)
    if key is None:
        raise UnknownName("router", name, ROUTERS)
    report(f"Router {name!r} is {key}.")
    return key


def _spellings(key: str) -> set[str]:
    """Return a router's key and other names, without case and punctuation."""
    return {spelled(name) for name in (key, *index()[key]["names"])}
