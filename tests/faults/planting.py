"""The list of faults: what is planted where, and whose tests must see it."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTS = Path(__file__).parent / "systems"
SOURCE = Path("src/intarsia")
OFFICIAL = "tests/reference/test_reference.py::test_ours_equals_the_official_function"


@dataclass(frozen=True)
class Fault:
    """A plausible mistake: a piece of a line, and its replacement."""

    system: str
    tests: tuple[str, ...]
    file: Path
    line: str
    fault: str
    says: str

    def planted(self, text: str) -> str:
        """Return a file's text with the fault.  Raises: ValueError unless it fits exactly once."""
        found = text.count(self.line)
        if found != 1 or self.line == self.fault:
            raise ValueError(
                f"{self.system}: got {found} places for {self.line!r} in {self.file}, want one. "
                "Write the line as it is now."
            )
        return text.replace(self.line, self.fault)


def faults(folder: Path = LISTS) -> list[Fault]:
    """Read all lists, one file for each part of the library, in order of name."""
    found: list[Fault] = []
    for path in sorted(folder.glob("*.toml")):
        for system in tomllib.loads(path.read_text())["system"]:
            official = (f"{OFFICIAL}[{name}]" for name in system.get("official", ()))
            tests = (*system["tests"], *official)
            for one in system["fault"]:
                words = (one["line"], one["fault"], one["says"])
                found.append(Fault(system["name"], tests, SOURCE / one["file"], *words))
    return found


def sample(some: Sequence[Fault], count: int, seed: int = 0) -> list[Fault]:
    """Return some faults, the same ones for the same list and seed."""
    return random.Random(seed).sample(some, min(count, len(some)))
