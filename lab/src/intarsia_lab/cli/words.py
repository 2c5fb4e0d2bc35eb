"""The words that the laboratory's verbs take, read before torch is imported."""

from __future__ import annotations

from pathlib import Path

from intarsia.core.errors import UnknownName
from intarsia.core.registry import read_lists

NAMES = Path(__file__).with_name("names.txt")
WORDS = read_lists(NAMES)
CLAIMS, ROUTERS = WORDS["claim"], WORDS["router"]
SUITES, PROFILES, PROTOCOLS = map(WORDS.__getitem__, ("suite", "profile", "protocol"))


def check_claim(name: str) -> None:
    """Raises: UnknownName."""
    if name not in CLAIMS:
        raise UnknownName("claim", name, CLAIMS, "intarsia reproduce")


def check_routers(text: str) -> None:
    """Raises: UnknownName for a router, of several with commas, that `compare-routers` has not."""
    for name in (word.strip() for word in text.split(",")):
        if name not in ("", "all", *ROUTERS):
            raise UnknownName("router", name, ROUTERS)
