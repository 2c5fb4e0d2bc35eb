"""Sparsey against the baselines it needs: neighbours in pixels, matrices of equal bits."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

from intarsia.areas.memory import Mac, SparseyNet
from intarsia.data import sets

from ..kit import NoControl, Report, Result, Study, above
from ..kit.arms import result_of, shown
from ..materials.thin_digits import Array, thin

TRAIN, TEST = 2000, 1000
SIZE, ACTIVE, MISSING = 144, 12, 3
# from where all memories hold to where none does, in steps of half an octave
COUNTS = tuple(round(10 * 2 ** (i / 2)) for i in range(14))  # 10 ... 905 items
REACHED = 0.95  # of the bits, up to which a memory is said to hold


def digits(seed: int) -> tuple[Array, Array, Array]:
    """Draw 3,000 MNIST digits; return them thinned, in grey, and their classes.

    The first 2,000 are for training. Thinned digits are strokes of one pixel; both forms have a row
    for each digit.
    """
    data = sets.load("mnist")
    picked = np.random.default_rng(seed).permutation(len(data))[: TRAIN + TEST]
    grey = np.stack([np.asarray(data.images)[i] for i in picked])
    lines = np.stack([thin(picture).ravel() for picture in grey]).astype(float)
    return lines, grey.reshape(len(grey), -1) / 255.0, np.asarray(data.labels)[picked]


def read_digits(seeds: Sequence[int], report: Report) -> Result:
    """Return the accuracy of a linear readout of Sparsey's codes of MNIST digits, in points.

    The network sees each training digit once, without labels; a ridge classifier reads its codes.
    One value for each seed; nearest neighbours in pixels stand in the table.
    """
    accuracies: dict[str, list[float]] = {}
    for seed in seeds:
        lines, grey, labels = digits(seed)
        net = SparseyNet(grid=(7, 3), radius=4.0, random_state=seed).fit(lines[:TRAIN])
        # both levels of the network have learned by now; they stay as they are
        codes = net.transform(lines)
        ways = {
            "codes, linear readout": (RidgeClassifier(alpha=100.0), codes),
            "codes, 1 neighbour": (KNeighborsClassifier(1, metric="cosine"), codes),
            "thin digits, linear readout": (RidgeClassifier(alpha=100.0), lines),
            "thin digits, 1 neighbour": (KNeighborsClassifier(1), lines),
            "grey digits, 1 neighbour": (KNeighborsClassifier(1), grey),
            "grey digits, 5 neighbours": (KNeighborsClassifier(5), grey),
        }
        for name, (reader, x) in ways.items():
            reader.fit(x[:TRAIN], labels[:TRAIN])
            accuracies.setdefault(name, []).append(
                100 * float(reader.score(x[TRAIN:], labels[TRAIN:]))
            )
        report(f"seed {seed}: { ({name: round(v[-1], 1) for name, v in accuracies.items()}) }")
    rows = [{"features": name, "accuracy": shown(v, ".1f")} for name, v in accuracies.items()]
    note = (
        f"MNIST, {TRAIN:,} digits seen once, {TEST:,} others; thinned to strokes of one pixel; "
        "7 x 7 macs of radius 4 px below 3 x 3 macs of radius 4 macs. Neighbours of codes share "
        "winners (cosine)."
    )
    return result_of(accuracies["codes, linear readout"], rows, note)


def items_of(n: int, seed: int) -> tuple[Array, Array]:
    """Draw n random items of 12 active bits among 144, and cues that lack three of the bits."""
    random = np.random.default_rng(seed)
    items = np.zeros((n, SIZE))
    for row in items:
        row[random.choice(SIZE, ACTIVE, replace=False)] = 1
    # a quarter of an item's units is missing, and has to be recalled
    cues = items.copy()
    for row in cues:
        row[random.choice(np.flatnonzero(row), MISSING, replace=False)] = 0
    return items, cues


def strongest(field: Array) -> Array:
    """Return the 12 units of the strongest input as 1, the others as 0.  field: (n, 144)."""
    winners = np.zeros_like(field)
    best = np.argsort(-field, axis=1, kind="stable")[:, :ACTIVE]
    np.put_along_axis(winners, best, 1.0, axis=1)
    return winners


def by_mac(items: Array, cues: Array, seed: int) -> Array:
    """Recall items from cues with one Sparsey memory of 18 modules of 8 units, 144^2 bits.

    items, cues: (n, 144); the result is the items as recalled, (n, 144) of 0 and 1. seed: of the
    memory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mac = Mac(n_modules=18, n_units=8, random_state=seed).fit(items)
        return mac.recall(cues, active=ACTIVE).astype(float)


def by_willshaw(items: Array, cues: Array, seed: int) -> Array:
    """Recall items from cues with Willshaw's binary matrix W = max_i x_i x_i^T of 144^2 bits.

    x_i: the items, 144 bits each. W is read once with the cue and then with its answer. items,
    cues: (n, 144); seed: unused, nothing is drawn.
    """
    # Willshaw's binary matrix: the strong simple memory of sparse items
    weights = (items.T @ items > 0).astype(float)
    answer = strongest(cues @ weights + 0.5 * cues)
    return strongest(answer @ weights + 0.5 * cues)


def by_hopfield(items: Array, cues: Array, seed: int) -> Array:
    """Recall items from cues with a Hopfield network of 2 bits a weight, in ten rounds.

    The weights are covariances of pairs of bits, cut to four levels. items, cues: (n, 144); seed:
    unused, nothing is drawn.
    """
    share = ACTIVE / SIZE
    weights = (items - share).T @ (items - share)
    np.fill_diagonal(weights, 0)
    level = weights[~np.eye(SIZE, dtype=bool)].std()
    # two bits a weight, as many as the others have
    steps = np.sign(weights) * np.where(np.abs(weights) > level, 1.5, 0.5)  # four levels
    np.fill_diagonal(steps, 0)
    state = cues
    for _ in range(10):
        state = strongest(state @ steps)
    return state


MEMORIES: dict[str, Callable[[Array, Array, int], Array]] = {
    "mac": by_mac,
    "Willshaw": by_willshaw,
    "Hopfield, 2 bits a pair": by_hopfield,
}


def capacity(curve: Sequence[float]) -> float:
    """Return the number of items up to which a memory gives back 95 % of the bits.

    curve: share of bits recalled at each number of COUNTS; between two numbers it is taken as a
    straight line.
    """
    last = 0.0
    for i, value in enumerate(curve):
        if value < REACHED:
            if i == 0:
                return 0.0
            # where the share crosses 95 %, on the line between two counts
            part = (curve[i - 1] - REACHED) / (curve[i - 1] - value)
            return COUNTS[i - 1] + part * (COUNTS[i] - COUNTS[i - 1])
        last = float(COUNTS[i])
    return last


def of_capacity(seeds: Sequence[int], report: Report) -> Result:
    """Return how many items a Sparsey memory completes, over Willshaw's matrix's number, by seed.

    Items have 12 of 144 bits, and a cue lacks three of them; both memories have as many bits. A
    Hopfield network stands in the table.
    """
    shares: dict[str, list[list[float]]] = {name: [] for name in MEMORIES}
    for seed in seeds:
        for name, memory in MEMORIES.items():
            # (items, cues) of each count
            item_sets = [items_of(n, seed) for n in COUNTS]
            shares[name].append(
                [float((memory(*m, seed) * m[0]).sum() / m[0].sum()) for m in item_sets]
            )
        report(f"seed {seed}: { ({n: round(capacity(v[-1])) for n, v in shares.items()}) }")
    capacities = {name: [capacity(curve) for curve in curves] for name, curves in shares.items()}
    rows = [
        {"memory": name, "items at 95 %": shown(capacities[name], ".0f")}
        | {
            f"{n} items": f"{statistics.mean(curve[i] for curve in curves):.3f}"
            for i, n in enumerate(COUNTS)
            if i % 2 == 0
        }
        for name, curves in shares.items()
    ]
    note = (
        f"Share of the {ACTIVE} of {SIZE} bits of random items that come back where {MISSING} are "
        "missing from the cue; each memory has 144 x 144 bits (Hopfield: 144 x 143). Willshaw's "
        "matrix is read twice."
    )
    values = [
        mac / willshaw
        for mac, willshaw in zip(capacities["mac"], capacities["Willshaw"], strict=True)
    ]
    return result_of(values, rows, note)


PAPER = " (arXiv:1710.07829)."
study = partial(Study, sense=">=")

CLAIMS = (
    study(
        "sparsey-digits",
        sentence="Codes of digits that were seen once say which digit it is" + PAPER,
        baseline="100 points are all; neighbours in pixels stand beside it",
        target=80.0,
        control=above(
            "One neighbour of grey digits is above chance, 10 %, by 60 points.",
            "accuracy",
            70,
            {"features": "grey digits, 1 neighbour"},
        ),
        measure=read_digits,
        seeds=(0, 1, 2),
        minutes=5,
    ),
    study(
        "sparsey-capacity",
        sentence="A mac completes as many random items as Willshaw's matrix of as many bits"
        + PAPER,
        baseline="Willshaw's matrix, items at 95 % of the bits; ratio",
        target=1.0,
        control=NoControl(
            "The memories are written in one pass by a fixed rule: no training could fail."
        ),
        measure=of_capacity,
        seeds=tuple(range(5)),
    ),
)
