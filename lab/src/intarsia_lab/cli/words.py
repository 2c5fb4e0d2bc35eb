"""The words that the laboratory's verbs take, read before torch is imported."""

from __future__ import annotations

from pathlib import Path

from intarsia.cli import early
from intarsia.core.errors import UnknownName

NAMES = Path(__file__).with_name("names.txt")
WORDS = early.read_words(NAMES)
CLAIMS, ROUTERS = WORDS["claim"], WORDS["router"]
CHOICES = {**early.CHOICES, **early.choices(WORDS)}


def check_claim(name: str) -> None:
    """Raises: UnknownName."""
    if name not in CLAIMS:
        raise UnknownName("claim", name, CLAIMS, "intarsia claim")


def check_routers(text: str) -> None:
    """Raises: UnknownName for a router, of several with commas, that `compare-routers` has not."""
    for name in (word.strip() for word in text.split(",")):
        if name not in ("", "all", *ROUTERS):
            raise UnknownName("router", name, ROUTERS)
