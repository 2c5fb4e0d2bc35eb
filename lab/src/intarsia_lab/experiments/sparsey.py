"""Sparsey against the baselines it needs: neighbours in pixels, matrices of equal bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier

from intarsia.areas.memory import SparseyNet
from intarsia.data import sets

from ..kit import Effect, Report, Result, Study
from ..kit.arms import result_of, shown
from ..materials.thin_digits import Array, thin

TRAIN, TEST = 2000, 1000


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


STUDIES = (
    Study(
        "sparsey-digits",
        system="Sparsey",
        arxiv="1710.07829",
        question="Do codes of digits that were seen once say which they are?",
        effect=Effect(
            "91 % of MNIST, 220 s on one thread",
            "200 pictures of each class",
            "author's page",
            sign=1,
            values=(91.0,),
            null=10.0,
        ),
        work="2,000 digits of MNIST seen once, 1,000 others",
        baseline="chance is 10; neighbours in pixels stand in the table",
        unit="% of digits right",
        differs="A ridge classifier reads the codes.",
        measure=read_digits,
        minutes=2,
    ),
)
