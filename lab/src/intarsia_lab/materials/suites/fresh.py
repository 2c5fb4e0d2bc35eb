"""The `fresh` suite: six tasks on which no setting of this library was chosen.

They are for confirmation: findings on `mini` are tried here with sets and seeds that a
protocol file names before the run (benchmarks/mosa_pairs.json). Parts are made as `mini`'s are.
Squares of a photograph, and recordings of a sentence, are on one side of the split between
training and test pictures. The three tasks of photographs show the same photographs, the two of
prompts the same recordings; Twemoji draws what `mini`'s emoji draw, in another hand.
"""

from __future__ import annotations

from intarsia.data import sets

from .mini import USUAL, named
from .task import Suite

# name: (group, classes, images by part)
_NAMED: dict[str, tuple[str, int, tuple[int, int, int]]] = {
    "photo-origin": ("natural", 27, USUAL),
    "twemoji": ("natural", 9, (800, 200, 873)),
    "prompt-kind": ("specialized", 4, USUAL),
    "prompt-language": ("specialized", 5, USUAL),
    "photo-blur": ("structured", 5, USUAL),
    "photo-rotation": ("structured", 4, USUAL),
}

SUITE = Suite(
    "fresh",
    "6 tasks from package registries on which nothing was chosen",
    tuple(named(name, *options) for name, options in _NAMED.items()),
    how="Its pictures are downloaded from Debian and npm; there is nothing to prepare. To make a "
    "set again, delete its file in the cache's folder `sets`.",
    groups=("natural", "specialized", "structured"),
    obtained=sets.is_cached,
)
