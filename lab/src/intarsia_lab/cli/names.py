"""The lists of names.txt: `python -m intarsia_lab.cli.names` writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from intarsia.cli.names import text
from intarsia.core.files import write_text

from ..bench.profiles import PROFILES
from ..bench.protocols import PROTOCOLS
from ..experiments import studies
from ..materials import suites
from ..routing import VARIANTS
from ..routing.table import sized
from .words import NAMES


def names() -> Mapping[str, Iterable[str]]:
    """Return the words that names.txt lists for the command line, by kind.

    Kinds are experiment, suite, profile, protocol and router. The command line reads the file, so
    that it completes and checks words without importing torch.
    """
    return {
        "experiment": sorted(study.key for study in studies()),
        "suite": (*suites.MODULES, "sparse"),
        "profile": (profile.name for profile in PROFILES),
        "protocol": (protocol.name for protocol in PROTOCOLS),
        "router": sorted({*VARIANTS, *sized()}),
    }


def write() -> None:
    """Write names.txt."""
    write_text(NAMES, text(names()))


if __name__ == "__main__":
    write()
