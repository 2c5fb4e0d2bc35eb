"""The names that `early` refuses others by: `python -m intarsia.cli.names` writes names.txt.

They are read from the library, which takes seconds to import; the command line reads the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

from ..choosing.arms import ARMS
from ..core.files import write_text
from ..core.registry import card, index, keys
from ..data import backbones, calibration, corpora, language_models, sets, texts
from ..data.transforms import Augment
from ..experiments.settings import HEADS, SCHEDULES
from ..hosts.out.gguf_model import QUANTS
from ..hosts.swap.compress import format_names
from ..train import OBJECTIVES, progress
from ..train.settings import PRECISIONS, SELECTIONS
from .compressing import METHODS, NETS
from .early import NAMES, RETRIEVAL


def recommenders() -> dict[str, tuple[str, ...]]:
    """The recommenders by the task of `intarsia fit` that trains them; the first is its default."""
    found: dict[str, tuple[str, ...]] = {}
    for key, entry in index().items():
        if entry["family"] == "recommenders":
            task = card(key).config.data_of  # pyright: ignore[reportFunctionMemberAccess]
            found[task] = (*found.get(task, ()), key)
    return found


def names() -> Mapping[str, Iterable[str]]:
    """The words of every list: those of an option under its flag."""
    tasks = recommenders()
    return {
        "set": sorted(sets.names()),
        "corpus": sorted(corpora.names()),
        "text": texts.SUFFIXES,
        "backbone": sorted({*backbones.names(), *language_models.PACKAGED}),
        "format": sorted({*format_names(), *METHODS, NETS}),
        "arm": sorted({arm.name for arm in ARMS} - index().keys()),
        "tracker": sorted(progress.TRACKERS),
        "selection": SELECTIONS,
        "calibration": (calibration.MIXED,),
        **{f"{task} recommender": known for task, known in tasks.items()},
        "--augment": get_args(Augment),
        "--precision": PRECISIONS,
        "--objective": (*OBJECTIVES, *keys("objective"), HEADS),
        "--schedule": SCHEDULES,
        "--task": (*tasks, RETRIEVAL),
        "--quant": QUANTS,
    }


def text(lists: Mapping[str, Iterable[str]]) -> str:
    """Return the file: a list's name and a word in each line, so that two additions merge."""
    return "".join(f"{kind}: {word}\n" for kind, words in lists.items() for word in words)


if __name__ == "__main__":
    write_text(NAMES, text(names()))
