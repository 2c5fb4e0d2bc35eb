"""SET: drop the smallest weights, grow others at random (arXiv:1707.04780)."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import Card, Paper
from .drop_and_grow import DropAndGrow


@dataclass(frozen=True)
class Set(DropAndGrow):
    """Sparse from random masks; every so many steps the smallest weights go and others come.

    What comes is drawn at random, at 0, before a step's forward; nothing dense is ever computed.
    The paper drops the weights nearest to 0 of each sign, and by a fixed share.
    Source: paper, algorithm 1; the falling share is RigL's. Not where a dense gradient can be
    afforded now and then: RigL is better there.
    """


CARD = Card(
    "set",
    kind="schedule",
    config=Set,
    paper=Paper(
        "1707.04780",
        2017,
        "Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity "
        "inspired by Network Science",
    ),
    tiny={"density": 0.5, "every": 2},
    summary="Sparse training: the smallest weights go, others come at random.",
    family="sparse training",
    names=("Sparse evolutionary training",),
)
