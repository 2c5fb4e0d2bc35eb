"""RECOMBINER: signals coded as samples of a small network's weights (arXiv:2309.17182)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core import Card, Paper
from ...core.checks import at_least, between, one_of
from ...core.errors import ShapeError

DIMENSIONS = {"image": 2, "audio": 1, "video": 3, "structure": 1}
"""Kinds of signals: over how many axes they are sampled; their order is that of a file's byte."""
CHANNELS = {"image": 3, "audio": 1, "video": 3, "structure": 3}
STEP = 16  # points along each axis that one latent of the positions covers
SPARE = 2  # bits of an index beyond the divergence of its group


@dataclass(frozen=True)
class RecombinerSettings:
    """Settings of a RECOMBINER codec: its network and its rate.

    A patch of a signal is f(x) of a SIREN with `depth` hidden layers of `width`. Its weights are
    w = h A, layer by layer (`reparametrise`), h ~ q = N(mu, sigma^2); its inputs are coordinates
    and channels that a convolution computes from `positions` latents for 16 points along each axis.
    With `levels` above 1, h = h_patch (+ h_block) + h_signal, a block being 4 patches a side.
    A group of latents of `kl_bits` bits of divergence costs kl_bits + 2 bits in the file.

    positions=0 and reparametrise=False is COMBINER (Guo et al., arXiv:2305.19185).
    kind: "image" (H, W), "audio" (T), "video" (T, H, W), or "structure" (a chain of 3-D points).
    Raises: ConfigError; ShapeError for a patch with an axis that is no multiple of 16.
    Not for large pictures in a hurry: encoding is an optimisation, of half an hour a megapixel.
    """

    kind: str = "image"
    patch: tuple[int, ...] = (32, 32)
    width: int = 16
    depth: int = 3
    positions: int = 16
    reparametrise: bool = True
    levels: int = 1
    kl_bits: int = 14

    def __post_init__(self) -> None:
        """Check the settings, among them a patch of as many axes as the kind has, multiples of 16.

        Raises: ConfigError; ShapeError for another patch.
        """
        one_of("kind", self.kind, tuple(DIMENSIONS))
        at_least("width", self.width, 1)
        between("depth", self.depth, 1, 64)
        at_least("positions", self.positions, 0)
        one_of("levels", self.levels, (1, 2, 3))
        between("kl_bits", self.kl_bits, 2, 18)
        object.__setattr__(self, "patch", tuple(self.patch))  # a list, read from JSON
        axes = DIMENSIONS[self.kind]
        if len(self.patch) != axes or any(side < 1 or side % STEP for side in self.patch):
            want = f"{axes} multiples of {STEP} for kind {self.kind!r}"
            fix = f"For example: patch={(32,) * axes}."
            raise ShapeError("patch", got=self.patch, want=want, fix=fix)

    @property
    def bits(self) -> int:
        """Number of bits of a group's index."""
        return self.kl_bits + SPARE

    @property
    def points(self) -> int:
        """Number of points of a patch."""
        return math.prod(self.patch)

    @property
    def channels(self) -> int:
        """Number of values of a point."""
        return CHANNELS[self.kind]


CARD = Card(
    "recombiner",
    kind="model",
    config=RecombinerSettings,
    paper=Paper(
        "2309.17182",
        2024,
        "RECOMBINER: Robust and Enhanced Compression with Bayesian Implicit Neural Representations",
    ),
    tiny={"patch": (16, 16), "width": 4, "depth": 1, "positions": 2, "kl_bits": 6},
    summary="A codec: a signal is a sample of the weights of a small network, near their prior.",
    family="codecs",
    names=("RECOMBINER", "COMBINER", "Bayesian implicit neural representations"),
    exceptions={"is_an_estimator": "a codec codes a signal to bytes; it predicts nothing"},
)
