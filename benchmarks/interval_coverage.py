"""How often the 95 % interval over test items and seeds excludes 0 where nothing differs.

    python benchmarks/interval_coverage.py --write          # about ten CPU minutes
    python benchmarks/interval_coverage.py --draws 50       # a smoke test

A picture is right where difficulty + chance is above a threshold; the difficulty is the picture's,
the same for both arms.  Nothing differs: over new pictures and new seeds both arms have the same
expected accuracy. In a draw they do differ on pictures (an effect of picture by arm), from seed to
seed (an effect of seed by arm), or by chance alone. Each draw is new pictures, seeds and effects.
"""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from frame import markdown, parser, publish, read

from intarsia.reports.statistics import paired_interval, t_interval

ITEMS, SEEDS = (36, 150, 1000), (1, 2, 3, 5, 10)
ACCURACY = 0.75
SHARED = 0.1  # spread of a seed's effect on both arms; the pictures' difficulty has a spread of 1
HEAD = ["pictures", "seeds", "items and seeds", "drawn by seed", "loss", "seeds alone"]


@dataclass(frozen=True)
class World:
    """Spreads of the effects of picture by arm and of seed by arm, and of chance."""

    name: str
    by_item: float
    by_seed: float
    chance: float


WORLDS = (
    World("The arms differ by chance alone", 0.0, 0.0, 0.4),
    World("Each arm is better on pictures of its own", 0.5, 0.0, 0.3),
    World("Each training is better or worse as a whole", 0.0, 0.3, 0.3),
    World("All of it", 0.5, 0.15, 0.3),
)


def draw(
    world: World, items: int, seeds: int, rng: np.random.Generator, accuracy: float = ACCURACY
) -> tuple[np.ndarray, np.ndarray]:
    """The margin of each picture at each seed in two arms, right above 0.  (seeds, items) each."""
    spread = np.sqrt(1 + SHARED**2 + world.by_item**2 + world.by_seed**2 + world.chance**2)
    threshold = NormalDist().inv_cdf(accuracy) * spread
    shared = rng.normal(size=items) + SHARED * rng.normal(size=(seeds, 1)) + threshold

    def arm() -> np.ndarray:
        of_items = world.by_item * rng.normal(size=items)
        of_seeds = world.by_seed * rng.normal(size=(seeds, 1))
        return shared + of_items + of_seeds + world.chance * rng.normal(size=(seeds, items))

    return arm(), arm()


def excluded(
    world: World, items: int, seeds: int, rng: np.random.Generator, accuracy: float = ACCURACY
) -> tuple[bool, bool, bool, bool]:
    """Whether 0 is outside, for the columns of HEAD from the third on."""
    ours, theirs = draw(world, items, seeds, rng, accuracy)
    same = [np.arange(items)] * seeds
    by_seed = ((ours > 0).mean(1) - (theirs > 0).mean(1)).tolist()
    low, high = t_interval(by_seed)
    losses = (np.logaddexp(0, -ours), np.logaddexp(0, -theirs))
    wide_ours, wide_theirs = draw(world, 2 * items, seeds, rng, accuracy)
    mine = [np.sort(rng.permutation(2 * items)[:items]) for _ in range(seeds)]
    picked = [
        [row[i] > 0 for row, i in zip(wide, mine, strict=True)] for wide in (wide_ours, wide_theirs)
    ]
    intervals = (
        paired_interval(same, list(ours > 0), list(theirs > 0)),
        paired_interval(mine, *picked),
        paired_interval(same, list(losses[0]), list(losses[1])),
    )
    found = [interval is not None and interval.significant for interval in intervals]
    return found[0], found[1], found[2], low > 0 or high < 0


def rows(world: World, draws: int) -> Iterator[list[str]]:
    """A line for each number of pictures and seeds."""
    for items in ITEMS:
        for seeds in SEEDS:
            rng = np.random.default_rng([items, seeds, zlib.crc32(world.name.encode())])
            each = [excluded(world, items, seeds, rng) for _ in range(draws)]
            shares = [100 * statistics.fmean(column) for column in zip(*each, strict=True)]
            shown = [f"{share:.1f}" for share in shares]
            if seeds == 1:
                shown[-1] = ""
            yield [f"{items:,}", str(seeds), *shown]


def main() -> None:
    """Print the page, or write it."""
    options = parser(__doc__, threads=1, reps=0)
    options.add_argument("--draws", type=int, default=2000)
    args = read(options)
    body: list[str] = []
    for world in WORLDS:
        body += [f"## {world.name}", ""]
        body += [*markdown(HEAD, rows(world, args.draws)), ""]
        print("\n".join(body[-len(ITEMS) * len(SEEDS) - 3 :]), flush=True)
    publish("How often an interval excludes 0 where nothing differs", ABOUT, body, args)


ABOUT = f"""\
The 95 % interval of a difference between two arms that do not differ: over new pictures and new
seeds both have the same expected accuracy, {100 * ACCURACY:.0f} %. Per cent of the draws in which
0 lies outside; 5 is right. *Items and seeds* is `intarsia.reports.statistics.paired_interval`, by
which `compare`, `report`, `auto`, `demo` and `bench` judge on one set: the same pictures at every
seed, or each seed *drawn* its own half of twice as many, as `compare` does where the data have no
test part. *Loss* is the same on losses instead of right and wrong. *Seeds alone* is Student's
interval of the seeds' differences, by which they judged before: it takes the pictures as given.
With one seed the exact McNemar test decides (on losses Student's interval of the pictures), and
what a seed does to an arm as a whole cannot be seen: it speaks of these two trainings."""


if __name__ == "__main__":
    main()
