"""The closed lists of core/names.txt: `python -m intarsia.cli.names` writes them.

Their modules take seconds to import; the command line, and settings, read the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..core.files import write_text
from ..core.registry import NAMES, index, listed
from ..data import backbones, language_names, sets
from ..folders.out.gguf_model import QUANTS
from ..parallel.auto import NAMED
from ..runs.choosing.arms import ARMS
from ..senses.data.encoders import ENCODERS
from ..sparse.swap.compress import format_names
from ..train import progress
from .compress_steps import METHODS, NETS


def names() -> Mapping[str, Iterable[str]]:
    """Return the names that the command line accepts and completes, by list, such as "backbone"."""
    return {
        "set": sorted(sets.names()),
        "backbone": sorted({*backbones.names(), *language_names.PACKAGED}),
        "format": sorted({*format_names(), *METHODS, NETS}),
        "arm": sorted({arm.name for arm in ARMS} - index().keys()),
        "tracker": sorted(progress.TRACKERS),
        "quant": QUANTS,
        "plan": NAMED,
        "see": sorted(e.name for e in ENCODERS.values() if e.modality == "image"),
        "hear": sorted(e.name for e in ENCODERS.values() if e.modality == "audio"),
    }


def text(lists: Mapping[str, Iterable[str]]) -> str:
    """Return names.txt's text: a list and one of its names in each line, so that additions merge.

    lists: list -> its names, as `names` returns them.
    """
    return "".join(f"{name}: {word}\n" for name, words in lists.items() for word in words)


def write() -> None:
    """Write names.txt, and let the lists be read again."""
    write_text(NAMES, text(names()))
    listed.cache_clear()


if __name__ == "__main__":
    write()
